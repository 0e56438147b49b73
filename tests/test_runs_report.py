# Made from nbs/87_report.ipynb by `pmd-dev tests`. Edit the notebook.
from perceiver_moe_diffusion.runs.report import save_log


def test_logs_of_a_run_in_parts_become_one_table(tmp_path):
    first, second = (tmp_path / "log" / f"from_step_{step:07d}" / "metrics.csv" for step in (0, 20))
    for path, text in (
        (first, "loss,step,val_loss\n0.9,10,\n0.8,20,\n0.5,30,\n"),
        (second, "loss,step,val_loss\n0.7,30,\n,30,0.6\n0.4,40,\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    save_log(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,loss,val_loss",
        "10,0.9,",
        "20,0.8,",
        "30,0.7,",
        "30,,0.6",
        "40,0.4,",
    ]
    assert (tmp_path / "loss.png").is_file()


def test_a_run_too_short_for_a_log_still_has_its_files(tmp_path):
    save_log(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().strip() == "step,loss,val_loss" and (tmp_path / "loss.png").is_file()
