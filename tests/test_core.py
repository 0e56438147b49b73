# Made from nbs/80_core.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch
from perceiver_moe_diffusion.core import RandomWords
from perceiver_moe_diffusion.core import Stream
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.core import atomic_write
from perceiver_moe_diffusion.core import checked_index
from perceiver_moe_diffusion.core import fold_seed
from perceiver_moe_diffusion.core import renamed_arguments


def test_an_argument_that_was_renamed_tells_its_new_name():
    @renamed_arguments(objective="prediction_type")
    def diffusion(prediction_type="v"):
        return prediction_type
    assert diffusion("x0") == diffusion(prediction_type="x0") == "x0"
    with pytest.raises(UserError, match="objective is now prediction_type: write prediction_type='eps'"):
        diffusion(objective="eps")


@pytest.mark.parametrize("value", [-1, 3, 0.5, True, float("nan"), float("inf"), "1", None])
def test_an_index_is_a_whole_number_below_the_count(value):
    assert checked_index("t", 2, 3) == 2 and checked_index("t", 2.0, 3) == 2
    with pytest.raises(UserError, match="allowed: a whole number from 0 to 2"):
        checked_index("t", value, 3)


def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path):
    target = tmp_path / "model.json"
    with atomic_write(target) as file:
        file.write_text("old")
    with pytest.raises(RuntimeError):
        with atomic_write(target) as file:
            file.write_text("ne")
            raise RuntimeError("stopped half-way")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target], "no temporary file may stay behind"


def test_fold_seed_depends_on_every_part_and_on_their_order():
    seeds = {fold_seed(*parts) for parts in [(1, 2), (2, 1), (1,), (1, 2, 0, 1), (3, 0), (0, 3)]}
    assert len(seeds) == 6
    assert fold_seed(7, 9) == fold_seed(7, 9)


def test_streams_that_share_a_number_differ_in_their_parts():
    step = 7
    training = {
        fold_seed(0, Stream.TRAINING_NOISE, step),
        fold_seed(0, Stream.VALIDATION_NOISE, step),
        fold_seed(0, Stream.INITIAL_WEIGHTS),
        fold_seed(0, step, Stream.AUGMENTATION),
        fold_seed(0, Stream.ROUTER_NOISE, step, 0),
    }
    assert len(training) == 5


def test_the_numbers_of_the_streams_are_those_of_recorded_results():
    assert {name: int(stream) for name, stream in Stream.__members__.items()} == dict(
        TRAINING_NOISE=0,
        VALIDATION_NOISE=1,
        INITIAL_WEIGHTS=1,
        AUGMENTATION=1,
        ROUTER_NOISE=2,
        CLASSIFIER_WEIGHTS=3,
        ROUTING_NOISE=4,
        GUIDED_IMAGES=5,
        CONDITIONAL_IMAGES=6,
        FEW_EXAMPLES=7,
        UPSCALED_IMAGES=7,
        SPECTRUM_NOISE=8,
        INTERVAL_NOISE=9,
    )


def test_words_belong_to_their_stream_and_not_to_its_company():
    together, alone = RandomWords([(1, 0), (1, 1)]), RandomWords([(1, 1)])
    words = together.draw(3, 8)
    assert words.shape == (3, 2, 8) and words.min() >= 0 and words.max() < 2**16
    assert torch.equal(words[:, 1:], torch.cat([alone.draw(1, 8) for _ in range(3)]))
