# Made from nbs/41_batches.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial
from itertools import combinations, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import (
    Batch,
    CropFlip,
    StepLoader,
    keep_classes,
    random_examples,
    sorted_class_names,
    split_indices,
    subsample_per_class,
)
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.tools.testing import blank_set, image_numbers


@pytest.mark.parametrize("names, order", [
    ([str(i) for i in range(12)], [str(i) for i in range(12)]),
    (["neutral", "10", "9", "-1"], ["-1", "9", "10", "neutral"]),
    (["dog", "Cat", "cat"], ["Cat", "cat", "dog"]),
    (["1", "01", "1"], ["01", "1"]),                                # as numbers equal, as names two
    (["class10", "class9"], ["class10", "class9"]),                 # no whole numbers: by name
    (["²", "1.5", "2", ""], ["2", "", "1.5", "²"]),                 # a superscript is a digit, and no whole number
])
def test_whole_numbers_come_in_their_order_and_names_by_name(names, order):
    assert sorted_class_names(names) == sorted_class_names(reversed(names)) == order


@pytest.mark.parametrize("data", [digits(), blank_set(103), blank_set(140, official_test=40)],
                         ids=["digits", "blank", "official"])
def test_the_parts_are_disjoint_cover_everything_and_have_the_classes_in_proportion(data):
    train, val, test = split_indices(data, 0.1, 0.2, seed=0)
    assert torch.equal(torch.cat([train, val, test]).sort().values, torch.arange(len(data.labels)))
    all_but_test = torch.cat([train, val])
    drawn = [(train, all_but_test), (val, all_but_test)]
    drawn += [] if data.official_test else [(test, torch.arange(len(data.labels)))]
    for part, whole in drawn:
        classes = len(data.class_names)
        exact = data.labels[whole].bincount(minlength=classes) * len(part) / len(whole)
        assert (data.labels[part].bincount(minlength=classes) - exact).abs().max() <= 1


def test_an_official_test_set_is_kept():
    train, val, test = split_indices(blank_set(140, official_test=40), 0.1, 0.2, seed=0)
    assert test.tolist() == list(range(100, 140)) and len(val) == 10 and len(train) == 90


def test_a_validation_set_that_is_given_is_kept_too():
    train, val, test = split_indices(blank_set(140, official_test=40)._replace(official_val=20), 0.1, 0.2, seed=0)
    assert train.tolist() == list(range(80))
    assert val.tolist() == list(range(80, 100)) and test.tolist() == list(range(100, 140))


def test_a_validation_set_without_a_test_set_is_kept_whole():
    train, val, test = split_indices(blank_set(140)._replace(official_val=20), 0.1, 0.25, seed=0)
    assert val.tolist() == list(range(120, 140)), "none of them is drawn into the test"
    assert len(test) == 30 and len(train) == 90 and not set(train.tolist()) & set(test.tolist())


def test_the_split_is_a_function_of_its_seed():
    data = digits()
    first, again, other = (split_indices(data, 0.1, 0.2, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("num_images", [12, 16, 25, 40])
def test_of_few_images_every_part_has_one_of_each_class(num_images):
    data = blank_set(num_images)
    for part in split_indices(data, 0.1, 0.2, seed=0):
        assert data.labels[part].bincount(minlength=4).min() >= 1


@pytest.mark.parametrize("num_images", [4, 9])
def test_too_few_images_to_split_is_explained(num_images):
    with pytest.raises(UserError, match=f"{num_images} images of 4 classes cannot be split.*at least 3 .* has [12]; "):
        split_indices(blank_set(num_images), 0.1, 0.2, seed=0)


def test_few_images_of_each_class_and_more_hold_the_fewer():
    data = digits()
    train, _, _ = split_indices(data, 0.1, 0.2, seed=0)
    five, twenty = (subsample_per_class(train, data.labels, n, seed=0) for n in (5, 20))
    assert data.labels[five].bincount().tolist() == [5] * 10 and data.labels[twenty].bincount().tolist() == [20] * 10
    assert set(five.tolist()) < set(twenty.tolist()) < set(train.tolist())
    assert not torch.equal(five, subsample_per_class(train, data.labels, 5, seed=1))
    for shots in (0, 1000):
        with pytest.raises(UserError, match=f"data.shots={shots} .* 1 to 12"):
            subsample_per_class(train, data.labels, shots, seed=0)


def test_some_classes_are_numbered_anew_and_stay_in_their_part():
    data = digits()._replace(official_test=300)
    parts = split_indices(data, 0.1, 0.2, seed=0)
    some, some_parts = keep_classes(data, parts, [8, 3])
    threes_and_eights = torch.isin(data.labels, torch.tensor([3, 8]))
    assert some.class_names == ["8", "3"] and some.official_test == int(threes_and_eights[-300:].sum())
    for index, part in zip(some_parts, parts):
        wanted = part[threes_and_eights[part]]
        assert torch.equal(some.pixels[index], data.pixels[wanted])
        assert torch.equal(some.labels[index], (data.labels[wanted] == 3).long())


def test_classes_are_chosen_by_name_too():
    data = digits()._replace(class_names=["zero", "one", "two", *"3456789"])
    parts = split_indices(data, 0.1, 0.2, seed=0)
    by_number, same_parts = keep_classes(data, parts, [2, 0, 5])
    names = ["two", "zero", "5"]
    for classes in (names, ("two", 0, np.int8(5)), np.array(names), torch.tensor([2, 0, 5])):
        by_name, by_name_parts = keep_classes(data, parts, classes)
        assert by_name.class_names == names and torch.equal(by_name.labels, by_number.labels)
        assert all(map(torch.equal, by_name_parts, same_parts))
    assert keep_classes(data, parts, "two")[0].class_names == ["two"], "one name is no list of letters"
    with pytest.raises(UserError, match=r"data.classes=tow .* Did you mean two\?"):
        keep_classes(data, parts, ["zero", "tow"])


@pytest.mark.parametrize("classes", [[], [3, 3], [3, "3"], [10], [-1], ["three"], [1.0], [True]])
def test_classes_that_are_not_there_are_refused(classes):
    with pytest.raises(UserError, match=r"data.classes=.* numbers from 0 to 9 \(0, 1"):
        keep_classes(digits(), (torch.arange(3),), classes)


def random_flip(images: torch.Tensor) -> torch.Tensor:
    "Flip each image upside down, or don't, at random."
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(2), images)


@pytest.mark.parametrize("augment", [None, random_flip])
@pytest.mark.parametrize("start", [1, 7, 60])
def test_starting_at_any_step_gives_the_batches_of_the_whole_run(start, augment):
    make = lambda first: StepLoader(blank_set(100), torch.arange(50), 8, seed=3, first=lambda: first, augment=augment)
    torch.manual_seed(0)
    whole = list(islice(make(0), start + 9))
    torch.manual_seed(1)  # the state of the global generator must not matter
    for a, b in zip(islice(make(start), 9), whole[start:], strict=True):
        assert a.step == b.step
        torch.testing.assert_close(a.input, b.input, rtol=0, atol=0)
        torch.testing.assert_close(a.label, b.label, rtol=0, atol=0)


@pytest.mark.parametrize("augment", [None, random_flip])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_all_processes_are_the_batch_of_one(processes, augment):
    make = partial(StepLoader, blank_set(100), torch.arange(50), 8, seed=3, augment=augment)
    loaders = [make(process=lambda rank=rank: (rank, processes)) for rank in range(processes)]
    alone = make()
    for shares, whole in zip(zip(*(islice(loader, 15) for loader in loaders)), alone):
        assert {len(share.input) for share in shares} == {8 // processes}
        torch.testing.assert_close(torch.cat([share.input for share in shares]), whole.input, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([share.label for share in shares]), whole.label, rtol=0, atol=0)


def test_an_epoch_visits_each_image_at_most_once_and_each_epoch_has_its_own_order():
    index = torch.arange(300, 350)
    loader = StepLoader(blank_set(400), index, batch_size=8, seed=0)
    numbers_of = lambda steps: [n for step in steps for n in image_numbers(loader.batch(step))]
    epochs = [numbers_of(range(6 * epoch, 6 * epoch + 6)) for epoch in range(20)]
    for numbers in epochs:
        assert len(numbers) == len(set(numbers)) == 48 and set(numbers) <= set(index.tolist())
    assert len({tuple(numbers) for numbers in epochs}) == 20
    assert set().union(*epochs) == set(index.tolist()), "the two images left out are others each time"


def test_images_and_labels_stay_together_and_the_seed_matters():
    data = blank_set(400)
    loader, other = (StepLoader(data, torch.arange(400), 64, seed) for seed in (0, 1))
    for step in (0, 5, 6, 40):
        numbers = image_numbers(loader.batch(step))
        assert data.labels[numbers].tolist() == loader.batch(step).label.tolist()
        assert numbers != image_numbers(other.batch(step))


def test_augmentation_has_random_numbers_of_its_own_in_each_step_and_leaves_the_global_generator_alone():
    loader = StepLoader(blank_set(100), torch.arange(50), 8, seed=0, augment=torch.rand_like)
    state = torch.get_rng_state()
    noise = [loader.batch(step).input for step in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(torch.equal(a, b) for a, b in combinations(noise, 2))


@pytest.mark.parametrize("batch_size", [0, -1, 51])
def test_a_batch_size_outside_the_training_set_is_explained(batch_size):
    with pytest.raises(UserError, match=f"data.batch_size={batch_size}.*1 to 50"):
        StepLoader(blank_set(100), torch.arange(50), batch_size, seed=0)


def test_a_batch_that_the_processes_cannot_share_is_explained():
    with pytest.raises(UserError, match="data.batch_size=9 on 2 processes"):
        next(iter(StepLoader(blank_set(100), torch.arange(50), 9, seed=0, process=lambda: (0, 2))))


@pytest.mark.parametrize("processes", [1, 4])
def test_augmented_images_and_their_labels_stay_together(processes):
    data = blank_set(400)
    mirror = lambda images: images.flip(3)  # an image still tells its number
    loader = StepLoader(data, torch.arange(400), 64, seed=0, augment=mirror)
    for step, rank in ((0, 0), (5, processes - 1)):
        batch = loader.batch(step, rank, processes)
        assert len(batch.label) == 64 // processes
        assert data.labels[image_numbers(batch)].tolist() == batch.label.tolist()


def test_an_augmented_image_is_a_window_of_the_padded_one_mirrored_or_not():
    images = digits().inputs(slice(0, 40))
    torch.manual_seed(0)
    moved = CropFlip(2)(images)
    assert moved.shape == images.shape
    padded, mirrored = torch.nn.functional.pad(images, [2] * 4, mode="reflect"), 0
    for image, wide in zip(moved, padded):
        windows = wide.unfold(1, 8, 1).unfold(2, 8, 1).flatten(1, 2)[0]  # [25, 8, 8]
        plain, flipped = (windows == image).all((1, 2)).any(), (windows.flip(-1) == image).all((1, 2)).any()
        assert plain or flipped
        mirrored += int(flipped and not plain)
    assert 8 < mirrored < 32
    assert torch.equal(CropFlip(0, flip=False)(images), images)


def test_a_padding_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="padding=8 for images of 8×8 .* 0 to 7"):
        CropFlip(8)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="padding=-1"):
        CropFlip(-1)


def test_random_examples_are_of_their_split_without_repetition_and_depend_on_the_seed():
    data = SimpleNamespace(examples=blank_set(100), val_index=torch.arange(20, 60))
    inputs, labels = random_examples(data, "val", 15, seed=0)
    numbers = image_numbers(Batch(inputs, labels, 0))
    assert len(set(numbers)) == 15 and set(numbers) <= set(range(20, 60))
    assert labels.tolist() == [number % 4 for number in numbers]
    again, other = (random_examples(data, "val", 15, seed)[0] for seed in (0, 1))
    assert torch.equal(again, inputs) and not torch.equal(other, inputs)
    assert len(random_examples(data, "val", 1000, seed=0)[1]) == 40, "no more than there are"
