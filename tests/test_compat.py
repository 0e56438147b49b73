# Made from nbs/90_compat.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from perceiver_moe_diffusion.compat import (
    is_out_of_memory,
    keep_memory,
    silence_lightning,
    told_out_of_memory,
    torchvision_error,
    without_process_observer,
)
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import cifar10, digits, fashion_mnist, mnist


def test_keep_memory_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PMD_KEEP_MEMORY", "0")
    assert keep_memory() is False


SHORT = """
import resource
import numpy as np, torch
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
from perceiver_moe_diffusion.compat import OutOfMemory, told_out_of_memory
for ask in (lambda: torch.zeros(10**10), lambda: np.zeros(10**10), lambda: [0] * 10**10):
    try:
        with told_out_of_memory("three zeros", **{"data.batch_size": 64}, steps=2): ask()
    except OutOfMemory as error: print(error)
"""


def test_too_little_memory_is_one_sentence_whoever_asks_for_it():
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, check=False)
    said = "There is not enough memory for three zeros. Lower data.batch_size (now 64) or steps (now 2)."
    assert done.stdout.splitlines() == [said] * 3, done.stderr


def test_other_errors_are_not_told_as_a_lack_of_memory():
    for error in (RuntimeError("sizes do not match"), UserError("out of memory"), KeyError("out of memory")):
        with pytest.raises(type(error)) as raised:
            with told_out_of_memory("training", batch_size=1):
                raise error
        assert raised.value is error
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("could not create a primitive")), "oneDNN, short of memory for its own tables"
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor")), "sizes that it does not know"


@pytest.fixture
def no_torchvision(monkeypatch):
    "torchvision as if it were not installed."
    monkeypatch.setitem(sys.modules, "torchvision", None)
    torchvision_error.cache_clear()
    yield
    torchvision_error.cache_clear()


def test_without_torchvision_the_message_names_versions_and_cure(no_torchvision, tmp_path):
    for source in (mnist, fashion_mnist, cifar10):
        cure = "(?s)beside torch .*pip install --force-reinstall torch torchvision.*data=digits"
        with pytest.raises(UserError, match=cure) as raised:
            source(str(tmp_path))
        assert torch.__version__ in str(raised.value) and "\n" not in str(raised.value)
    assert len(digits().labels) == 1797


@pytest.fixture
def broken_torchvision(tmp_path):
    "The environment of a process that finds a torchvision built for another torch."
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nand more')"
    )
    paths = [str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def run_python(program, *arguments, env=None):
    "What a program prints in a process of its own."
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits_work_beside_a_torchvision_built_for_another_torch(broken_torchvision):
    program = ("from perceiver_moe_diffusion.data import *; print(len(DataModule(digits).train_index))\n"
               "try: mnist()\nexcept ValueError as error: print(error)")
    count, message = run_python(program, env=broken_torchvision).splitlines()
    assert count == "1293" and "RuntimeError: operator torchvision::nms does not exist" in message


def test_the_observer_of_processes_is_back_after_the_block():
    from lightning.pytorch.strategies.launchers import subprocess_script as launcher
    observe = launcher._launch_process_observer
    with pytest.raises(KeyError):
        with without_process_observer():
            assert launcher._launch_process_observer is not observe
            raise KeyError
    assert launcher._launch_process_observer is observe


def test_a_warning_that_is_not_one_of_the_remarks_comes_through():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        silence_lightning()
        for text in ("The loader does not have many workers", "The directory exists and is not empty", "loss is nan"):
            warnings.warn(text, stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["loss is nan"]


PROBE = """
import ctypes, importlib, inspect, json, platform, sys, warnings

class MallInfo(ctypes.Structure):  # of mallinfo(3); hblks: blocks that were taken with mmap
    _fields_ = [(name, ctypes.c_int) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

def large_block_is_mapped():
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo.restype, libc.malloc.restype = MallInfo, ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    before = libc.mallinfo().hblks
    block = libc.malloc(64 * 2**20)
    mapped = libc.mallinfo().hblks > before
    libc.free(block)
    return mapped

def filters():
    return [str(entry) for entry in warnings.filters]

def patched_by(folder):
    known = [value for module in list(sys.modules.values()) for value in list(vars(module).values())]
    classes = {value for value in known if inspect.isclass(value) and not str(value.__module__).startswith(package)}
    methods = [(c, name, f) for c in classes for name, f in vars(c).items() if inspect.isfunction(f)]
    return [f"{c.__module__}.{c.__qualname__}.{name}" for c, name, f in methods
            if f.__code__.co_filename.startswith(folder)]

libraries, package, modules, folder = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
for name in libraries:
    importlib.import_module(name)
before = filters()
for name in modules:
    importlib.import_module(name)
from lightning_utilities.core.imports import RequirementCache
code = RequirementCache.__bool__.__code__
after = filters()
print(json.dumps({"filters": [entry for entry in after if entry not in before], "fewer": len(after) < len(before),
                  "patched": patched_by(folder), "mapped": large_block_is_mapped(),
                  "requirement": [code.co_filename, code.co_firstlineno, code.co_name]}))
"""


def modules_and_libraries():
    "All modules of the package, and the libraries that they import at their top level."
    root = Path(inspect.getfile(UserError)).parent
    paths = [p for p in sorted(root.rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")]
    modules = [".".join([root.name, *path.relative_to(root).with_suffix("").parts]) for path in paths]
    nodes = [node for path in paths for node in ast.parse(path.read_text(encoding="utf-8")).body]
    nodes += [inner for node in nodes if isinstance(node, ast.With) for inner in node.body]  # Lightning, in a block
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return modules, sorted(name for name in names if name.partition(".")[0] not in (root.name, "__future__")), root


def probed(modules, libraries, folder, package="perceiver_moe_diffusion", env=None):
    "What importing the modules, after the libraries, changes in a fresh process."
    return json.loads(run_python(PROBE, json.dumps(libraries), package, json.dumps(modules), str(folder), env=env))


def test_importing_the_package_changes_nothing_in_other_libraries():
    modules, libraries, root = modules_and_libraries()
    assert len(modules) > 50 and {"torch", "lightning", "matplotlib"} <= set(libraries)
    told, alone = probed(modules, libraries, root), probed([], [], root)
    assert told["patched"] == [] and told["requirement"] == alone["requirement"]
    assert told["filters"] == [] and not told["fewer"]
    assert told["mapped"] in (True, None), "a large block still comes from mmap"


def test_beside_a_broken_torchvision_the_patch_is_gone_after_the_import(broken_torchvision):
    modules, _, root = modules_and_libraries()
    training = [name for name in modules if ".training." in name or ".runs." in name]
    told = probed(training, [], root, env=broken_torchvision)
    assert told["patched"] == [] and told["requirement"] == probed([], [], root)["requirement"]


def test_a_module_that_changes_the_world_is_found(tmp_path):
    (tmp_path / "rude.py").write_text(
        "import warnings\nfrom lightning_utilities.core.imports import RequirementCache\n"
        "from perceiver_moe_diffusion.compat import keep_memory\nwarnings.filterwarnings('ignore', 'loss is nan')\n"
        "RequirementCache.__bool__ = lambda self: True\nkept = keep_memory()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PMD_KEEP_MEMORY": "1"}
    told = probed(["rude"], [], tmp_path, "rude", env)
    assert told["patched"] == ["lightning_utilities.core.imports.RequirementCache.__bool__"]
    assert told["requirement"] != probed([], [], tmp_path)["requirement"]
    assert any("loss is nan" in entry for entry in told["filters"]) and told["mapped"] in (False, None)
