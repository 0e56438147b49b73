# Made from nbs/29_labels.ipynb by `pmd-dev tests`. Edit the notebook.
import numpy as np
import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.labels import class_title, label_numbers

ANIMALS = ["cat", "dog", "owl"]
WIDTHS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
TENSORS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("given", [
    2, "owl", ["owl"], ("owl",), "2", " 2", np.str_("owl"), np.array("owl"), np.array(["owl"]), iter(["owl"]),
    range(2, 3), *(kind(2) for kind in WIDTHS), *(np.array([2], dtype=kind) for kind in WIDTHS),
    [np.int16(2)], [torch.tensor(2)],
    *(torch.tensor([2], dtype=kind) for kind in TENSORS), torch.tensor(2), torch.tensor([[2]]), [[2]],
], ids=lambda given: type(given).__name__)
def test_a_class_is_taken_by_number_and_by_name(given):
    assert label_numbers(given, ANIMALS) == [2]


def test_several_classes_are_taken_in_their_order():
    for given in (["owl", "cat", "owl"], [2, 0, 2], ["owl", 0, np.uint8(2)], torch.tensor([2, 0, 2]).short(),
                  np.array([[2, 0, 2]]), [torch.tensor(2), "cat", "2"]):
        assert label_numbers(given, ANIMALS) == [2, 0, 2]


@pytest.mark.parametrize("given", [
    3, -1, 0.5, 2.0, np.float32(1), torch.tensor([1.0]), True, [True], np.array([True]), None, [], [[]], "", "bird",
    "-1", "3", "1.0", b"cat", {"cat": 1}, {"cat", "dog"}, float("nan"), 2**70, np.uint64(2**63), "9" * 5000,
    [[0], [1, 2]], [["cat"], 1],
    torch.zeros(2, dtype=torch.long, device="meta"), [None], object(), "²", 1j], ids=lambda given: type(given).__name__)
def test_what_is_no_class_is_refused_in_one_line_with_what_there_is(given):
    with pytest.raises(UserError, match=r"label=.* from 0 to 2 \(cat, dog, owl\), or these names") as error:
        label_numbers(given, ANIMALS)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_the_nearest_name_is_told_and_the_one_that_is_wrong():
    with pytest.raises(UserError, match=r"^data.classes=Dgo .* Did you mean dog\?$"):
        label_numbers(["cat", "Dgo", 7], ANIMALS, "data.classes")
    with pytest.raises(UserError, match=r"\(c0, c1, .*c19, … \(80 more\)\), or these names\.$"):
        label_numbers("zebra", [f"c{i}" for i in range(100)])


def test_a_name_that_two_classes_share_names_none_of_them():
    assert label_numbers([0, 2, "b"], ["a", "b", "a"]) == [0, 2, 1]
    with pytest.raises(UserError, match="label=a, the name of several classes, is not possible; allowed: whole num"):
        label_numbers("a", ["a", "b", "a"])


@pytest.mark.parametrize("given, numbers", [
    (2, [2]), ("2", [4]), ("10", [2]), ("3", [3]), (np.int8(4), [4]), (["10", 3], [2, 3])])
def test_a_text_is_a_name_and_a_number_a_number_where_names_are_numbers_in_another_order(given, numbers):
    names = ["0", "1", "10", "11", "2"]
    assert label_numbers(given, names) == numbers
    assert [class_title(i, names) for i in range(5)] == ["0", "1", "10 (label 2)", "11 (label 3)", "2 (label 4)"]
    assert class_title(1, ANIMALS) == "dog"
