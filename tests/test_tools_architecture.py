# Made from nbs/94_architecture.ipynb by `pmd-dev tests`. Edit the notebook.
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.tools.architecture import (
    PACKAGE,
    ROOMS,
    Import,
    broken_doors,
    circles,
    draw_house,
    face_of,
    floors_of,
    public_names,
    read_imports,
    room_arrows,
)


def the_imports():
    return read_imports(Path(__file__).parent.parent / PACKAGE)


def test_every_import_goes_through_a_door_that_is_there():
    assert broken_doors(the_imports()) == []
    assert circles(the_imports()) == []


@pytest.mark.parametrize("module, source, sentence", [
    ("models/moe.py", "from ..pipelines.base import Pipeline", "models may not import pipelines"),
    ("models/moe.py", "import numpy", "models may not import numpy"),
    ("core.py", "from .models import moe", "core may not import models"),
    ("data/images.py", "def f():\n    from ..models.moe import MoE", "data may not import models"),
    ("pipelines/files.py", "from matplotlib import pyplot", "pipelines may not import matplotlib"),
    ("runs/train.py", "from ..experiments.meme import by_noise", "runs may not import experiments"),
    ("cellar/wine.py", "import torch", "the room cellar is not in the table"),
])
def test_a_forbidden_import_is_told(module, source, sentence, tmp_path):
    path = tmp_path / module
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    told = broken_doors(read_imports(tmp_path))
    assert len(told) == 1 and sentence in told[0]


def test_a_circle_is_found(tmp_path):
    (tmp_path / "models").mkdir()
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / "models" / f"{name}.py").write_text(f"from .{other} import x\nfrom ..core import y")
    (tmp_path / "core.py").write_text("import torch")
    assert circles(read_imports(tmp_path)) == [["models.a", "models.b", "models.c"]]


def test_experiments_are_imported_by_nobody():
    outside = [entry for entry in the_imports() if entry.inside and entry.room != "experiments"]
    assert not [entry for entry in outside if entry.target.startswith("experiments")]


def test_a_face_offers_public_names_and_leaves_a_modules_name_to_the_module(tmp_path):
    for name, names in {"train": ["train", "fit"], "build": ["build_run"], "private": []}.items():
        (tmp_path / f"{name}.py").write_text(f"__all__ = {names}")
    face = face_of(tmp_path, "Runs.")
    assert face.startswith('"Runs."\n') and '"train": ["fit"],' in face and '"build": ["build_run"],' in face
    assert "private" not in face and all(len(line) <= 120 for line in face.splitlines())


def test_a_room_stands_above_all_that_it_imports():
    arrows = room_arrows(the_imports())
    floors = floors_of(arrows)
    assert floors["core"] == 0
    assert all(floors[room] > floors[other] for room, below in arrows.items() for other in below)
    with pytest.raises(UserError, match="circle"):
        floors_of({"a": {"b"}, "b": {"a"}})


def test_the_picture_has_every_room_and_no_arrow_that_others_imply():
    steps = [("figures", "image_grid.x"), ("figures", "core"), ("image_grid", "core"), ("figures", "torch")]
    picture = draw_house([Import(f"{room}.y", target, target != "torch", 1) for room, target in steps])
    assert all(f">{room}</text>" in picture for room in ROOMS)
    arrows = picture.count('marker-end="url(#tip)"')
    assert arrows == 2, "figures → core is implied by the other two"


def test_every_face_offers_the_public_names_of_its_room_and_loads_them_when_asked():
    for name in ROOMS:
        package = import_module(f"{PACKAGE}.{name}")
        for public in package.__all__:
            thing = getattr(package, public)
            assert thing is not None and public in dir(package)


def test_about_two_hundred_names_are_public_and_each_says_what_it_is():
    undocumented, count = [], 0
    for path in (Path(__file__).parent.parent / PACKAGE).rglob("*.py"):
        module = ".".join([PACKAGE, *path.relative_to(Path(__file__).parent.parent / PACKAGE).with_suffix("").parts])
        for name in public_names(path):
            count += 1
            thing = getattr(import_module(module), name)
            if callable(thing) and not (thing.__doc__ or "").strip():
                undocumented.append(f"{module}.{name}")
    assert count <= 220 and undocumented == []


FORK = """
import importlib, os, sys
# libraries once; of the package nothing
import torch, einops, hydra, lightning, matplotlib.pyplot, sklearn, scipy, safetensors
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_each_module_can_be_imported_first():
    "Each in a process of its own that has imported nothing of the package yet."
    modules = sorted({f"{PACKAGE}.{entry.module}" for entry in the_imports()})
    assert len(modules) > 50
    done = subprocess.run([sys.executable, "-c", FORK, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
