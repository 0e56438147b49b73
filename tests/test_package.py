"The package as a user gets it: exported from the notebooks, free of undefined names, whole as a wheel."
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import perceiver_moe_diffusion as package

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_is_what_the_notebooks_export(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("nbs", "perceiver_moe_diffusion"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    run(Path(sys.executable).parent / "nbdev_export", cwd=copy)
    modules = {p.relative_to(folder / "perceiver_moe_diffusion") for folder in (ROOT, copy)
               for p in (folder / "perceiver_moe_diffusion").rglob("*.py")}
    for name in sorted(modules):
        exported, committed = (folder / "perceiver_moe_diffusion" / name for folder in (copy, ROOT))
        assert exported.read_text() == committed.read_text(), f"{name}: run nbdev_export"


def test_the_linter_finds_nothing_in_package_tests_and_notebooks():
    run(sys.executable, "-m", "ruff", "check", ".", cwd=ROOT)


def test_a_wheel_works_in_a_clean_environment(tmp_path):
    "Only the wheel and its dependencies are importable there: what is not packed is missed."
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", ".venv"),
    )
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source, cwd=tmp_path)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # The dependencies of this environment, but not what is installed here in editable form.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(tmp_path.glob("*.whl"))
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        wheel,
        cwd=tmp_path,
    )
    small = [
        "model.dim=32",
        "model.num_latents=4",
        "model.depth=1",
        "trainer.max_steps=3",
        "evaluation.samples_per_class=1",
        "evaluation.classifier_steps=5",
    ]
    printed = run(site.parents[2] / "bin" / "pmd-train", *small, "run_dir=run", cwd=tmp_path)
    assert printed.strip().splitlines()[-1] == "run folder: run"
    run(
        site.parents[2] / "bin" / "pmd-sample",
        "run=run",
        "label=3",
        "guidance_scale=3",
        "steps=4",
        "seed=0",
        "out=three.png",
        cwd=tmp_path,
    )
    run(site.parents[2] / "bin" / "pmd-sample", "model=mnist", "label=7", "steps=2", "out=seven.png", cwd=tmp_path)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("three.png", "seven.png"))
    alone = ("import perceiver_moe_diffusion as package\n"
             "images = package.from_pretrained('digits').sample([1, 2], steps=2, seed=0)\n"
             "print(package.__file__, tuple(images.shape), sep='\\n')")
    where, shape = run(python, "-c", alone, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(site) and shape == "(2, 1, 8, 8)"


@pytest.mark.parametrize("base, asked, opened", [
    ("/", "/lab", "/lab/tree/index.ipynb"),
    ("/user/ada/", "/user/ada/lab", "/user/ada/lab/tree/index.ipynb"),
    ("/", "/tree", "/tree"),  # jupyter notebook
    ("/", "/lab/tree/30_moe.ipynb", "/lab/tree/30_moe.ipynb")])
def test_jupyter_lab_opens_on_the_index_here_and_as_ever_elsewhere(base, asked, opened, tmp_path):
    "Elsewhere: another folder, one with an index of its own, another project's notebooks."
    server = lambda folder: SimpleNamespace(root_dir=str(folder), base_url=base, default_url=asked)
    here = server(ROOT / "nbs")
    package._load_jupyter_server_extension(here)
    assert here.default_url == opened
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "index.ipynb").touch()
    for settings in (None, "lib_name = another\n", "lib_name = perceiver_moe_diffusion_2\n"):
        if settings:
            (tmp_path / "settings.ini").write_text(settings)
        for folder in (tmp_path, tmp_path / "nbs", ROOT):
            elsewhere = server(folder)
            package._load_jupyter_server_extension(elsewhere)
            assert elsewhere.default_url == asked


def test_the_package_costs_a_jupyter_server_nothing():
    "It is imported by each server of its environment: nothing heavy may come with it."
    heavy = "import sys, perceiver_moe_diffusion; print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    assert run(sys.executable, "-c", heavy, cwd=ROOT).strip() == "set()"


def test_an_editable_installation_switches_the_index_on(tmp_path):
    "setuptools leaves `data_files` out of an editable wheel, unless it is asked in its own words (setup.py)."
    names = ("setup.py", "settings.ini", "README.md", "LICENSE", "MANIFEST.in")
    for name in names:
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("etc", "perceiver_moe_diffusion"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    run(sys.executable, "-c", "from setuptools.build_meta import build_editable as make; make('.')", cwd=tmp_path)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        config = "data/etc/jupyter/jupyter_server_config.d/perceiver_moe_diffusion.json"
        assert [name for name in wheel.namelist() if name.endswith(config)]
