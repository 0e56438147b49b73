# Made from nbs/42_module.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.tools.testing import blank_set, image_numbers


def test_the_split_does_not_depend_on_the_training_seed():
    first, second = (DataModule(digits, seed=seed) for seed in (0, 1))
    other = DataModule(digits, split_seed=1)
    for name in ("train_index", "val_index", "test_index"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    batches = [next(iter(module.train_batches())) for module in (first, second)]
    assert not torch.equal(batches[0].input, batches[1].input), "the order of the batches does depend on it"


@pytest.mark.parametrize("batch_size", [8, 64])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_validation_image_is_seen_once_and_no_process_is_idle(batch_size, processes):
    module = DataModule(lambda root: blank_set(210), batch_size=batch_size)
    shares = [module.val_batches(rank, processes) for rank in range(processes)]
    assert all(shares), "a process without a validation batch would leave the others waiting"
    seen = [n for share in shares for batch in share for n in image_numbers(batch)]
    assert sorted(seen) == module.val_index.tolist()
    whole = {batch.step: image_numbers(batch) for batch in module.val_batches()}
    for step, numbers in whole.items():
        assert [n for share in shares for batch in share if batch.step == step for n in image_numbers(batch)] == numbers


def test_a_training_goes_on_from_any_step_and_is_shared_among_processes():
    module = DataModule(digits, batch_size=16)
    asked = []
    later = module.train_batches(first=lambda: asked.append("first") or 7)
    assert not asked, "what the trainer knows is asked for when the training begins"
    batch = next(iter(later))
    assert asked == ["first"] and batch.step == 7
    shares = [next(iter(module.train_batches(lambda: 7, lambda rank=rank: (rank, 2)))) for rank in range(2)]
    assert torch.equal(torch.cat([share.input for share in shares]), batch.input)
    assert torch.equal(torch.cat([share.label for share in shares]), batch.label)


def test_parts_are_what_the_indices_say_and_only_training_images_are_augmented():
    module = DataModule(digits, batch_size=16, augment=lambda images: images * 0)
    assert (module.input_shape, module.num_classes) == ((1, 8, 8), 10)
    for name in ("train", "val", "test"):
        images, labels = module.split(name)
        index = getattr(module, f"{name}_index")
        torch.testing.assert_close(images, module.examples.inputs()[index], rtol=0, atol=0)
        torch.testing.assert_close(labels, module.examples.labels[index], rtol=0, atol=0)
    assert next(iter(module.train_batches())).input.count_nonzero() == 0
    assert module.val_batches()[0].input.count_nonzero() > 0


def test_the_data_module_keeps_the_split_of_the_whole():
    whole, some = DataModule(digits), DataModule(digits, classes=[8, 9], shots=5)
    images, labels = whole.split("test")
    assert torch.equal(some.split("test")[0], images[labels >= 8])
    assert torch.equal(some.split("test")[1], labels[labels >= 8] - 8)
    assert some.num_classes == 2 and some.split("train")[1].bincount().tolist() == [5, 5]


@pytest.mark.parametrize("options, message", [
    (dict(val_fraction=0), "data.val_fraction=0 "), (dict(val_fraction=1.5), "data.val_fraction=1.5"),
    (dict(test_fraction=1), "data.test_fraction=1 "), (dict(test_fraction=float("nan")), "data.test_fraction=nan"),
])
def test_a_wrong_share_is_explained(options, message):
    with pytest.raises(UserError, match=message):
        DataModule(digits, **options)


def test_an_unknown_split_is_explained():
    with pytest.raises(UserError, match="split 'holdout'.*train, val or test"):
        DataModule(digits).split("holdout")
