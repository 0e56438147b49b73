# Made from nbs/00_core.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.core import atomic_write
from perceiver_moe_diffusion.core import checked_index
from perceiver_moe_diffusion.core import fold_seed
from perceiver_moe_diffusion.core import keep_memory


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


def test_keep_memory_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("PMD_KEEP_MEMORY", "0")
    assert keep_memory() is False
