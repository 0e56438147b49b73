# Made from nbs/96_testing.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch

from perceiver_moe_diffusion.data.batches import Batch
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DDIM
from perceiver_moe_diffusion.tools.testing import (
    Elsewhere,
    OneDevice,
    TrivialModel,
    blank_set,
    changed,
    image_numbers,
    quick_config,
    write_folder,
)


def test_two_devices_are_noticed():
    table, index = torch.zeros(3, 2), torch.tensor([1, 2], device="meta")
    with OneDevice():
        table.to("meta")[index]
        with pytest.raises(AssertionError, match="mixes"):
            table[index]


def test_what_is_elsewhere_can_be_counted_and_brought_here_and_nothing_else():
    there = torch.arange(3).as_subclass(Elsewhere)
    assert len(there) == 3 and there.cpu().tolist() == [0, 1, 2]
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.ones(3)


def test_a_change_changes_a_copy():
    config = changed({"model.dim": 16, "seed": 3})
    assert (config.model.dim, config.seed) == (16, 3) and quick_config().model.dim == 32


def test_an_image_carries_its_number():
    images = blank_set(600)
    batch = Batch(images.inputs(torch.tensor([0, 255, 256, 599])), images.labels[:4], 0)
    assert image_numbers(batch) == [0, 255, 256, 599]
    assert images.shape == (1, 2, 2) and digits().shape == (1, 8, 8)


def test_a_folder_of_pictures_is_two_kinds_of_files_in_ten_classes(tmp_path):
    write_folder(tmp_path, 40)
    files = sorted(path.relative_to(tmp_path).parts for path in tmp_path.rglob("*.*g"))
    assert len(files) == 40 and len({parts[0] for parts in files}) == 10
    assert {name.rpartition(".")[2] for _, name in files} == {"png", "jpg"}


def test_the_trivial_model_is_sampled_like_any_other():
    labels, seeds = torch.zeros(3, dtype=torch.long), [(0, i) for i in range(3)]
    images = DDIM(2).sample(TrivialModel(), Diffusion(10), labels, (1, 28, 28), seeds)
    assert images.shape == (3, 1, 28, 28) and bool(images.isfinite().all())
