# Made from nbs/90_compat.ipynb by `pmd-dev tests`. Edit the notebook.
import os
import pytest
import subprocess
import sys
import torch
from pathlib import Path
from perceiver_moe_diffusion.compat import keep_memory
from perceiver_moe_diffusion.compat import torchvision_error
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import cifar10
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.images import fashion_mnist
from perceiver_moe_diffusion.data.images import image_folder
from perceiver_moe_diffusion.data.images import mnist


def test_keep_memory_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PMD_KEEP_MEMORY", "0")
    assert keep_memory() is False


@pytest.fixture
def no_torchvision(monkeypatch):
    "torchvision as if it were not installed."
    monkeypatch.setitem(sys.modules, "torchvision", None)
    torchvision_error.cache_clear()
    yield
    torchvision_error.cache_clear()


def test_without_torchvision_the_message_names_versions_and_cure(no_torchvision, tmp_path):
    for source in (mnist, fashion_mnist, cifar10, image_folder):
        with pytest.raises(
            UserError, match="(?s)beside torch .*pip install --force-reinstall torch torchvision.*data=digits"
        ) as raised:
            source(str(tmp_path))
        assert torch.__version__ in str(raised.value) and "\n" not in str(raised.value)
    assert len(digits().labels) == 1797


def test_digits_work_beside_a_torchvision_built_for_another_torch(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist\\nand more')"
    )
    program = ("from perceiver_moe_diffusion.data import *; print(len(DataModule(digits).train_index))\n"
               "try: mnist()\nexcept ValueError as error: print(error)")
    paths = [str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    count, message = done.stdout.splitlines()
    assert count == "1293" and "RuntimeError: operator torchvision::nms does not exist" in message
