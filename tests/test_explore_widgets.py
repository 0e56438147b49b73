# Made from nbs/62_widgets.ipynb by `pmd-dev tests`. Edit the notebook.
import html
import threading
from io import BytesIO

import ipywidgets
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image as Picture

from perceiver_moe_diffusion.core import require_number
from perceiver_moe_diffusion.explore.widgets import LatestTaskWorker, LiveFigure, status_line, to_png


def stepwise(log, name, started, go_on):
    "Work of many steps that says when it has begun and waits for leave to go on."
    def work(stopped):
        started.set()
        go_on.wait(10)
        for step in range(1000):
            if stopped():
                log.append((name, step))
                return
        log.append((name, "done"))
    return work


def test_a_newer_request_stops_the_one_that_runs_and_replaces_the_one_that_waits():
    log, worker = [], LatestTaskWorker()
    started, go_on = threading.Event(), threading.Event()
    worker.submit(stepwise(log, "first", started, go_on))
    assert started.wait(10)
    for name in ("second", "third"):
        worker.submit(stepwise(log, name, threading.Event(), go_on))
    go_on.set()
    assert worker.wait(10)
    assert log == [("first", 0), ("third", "done")], "the first stopped at its next step, the second never began"


def test_stop_acts_within_one_step_and_the_next_request_is_served():
    log, worker = [], LatestTaskWorker()
    started, go_on = threading.Event(), threading.Event()
    worker.submit(stepwise(log, "long", started, go_on))
    assert started.wait(10)
    worker.stop()
    go_on.set()
    assert worker.wait(10) and log == [("long", 0)]
    worker.submit(lambda stopped: log.append("next"))
    assert worker.wait(10) and log[-1] == "next"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_work_that_fails_leaves_nobody_waiting_and_the_next_request_is_served():
    log, worker = [], LatestTaskWorker()
    worker.submit(lambda stopped: 1 / 0)
    assert worker.wait(10), "whoever waits is told"
    worker.thread.join(10)
    worker.submit(lambda stopped: log.append("next"))
    assert worker.wait(10) and log == ["next"]


def square(size):
    "A grey square of `size` pixels as PNG; a size that is no number is refused."
    require_number("size", size, 1, 100)
    buffer = BytesIO()
    Picture.new("L", (int(size), int(size)), 128).save(buffer, format="PNG")
    return buffer.getvalue()


def size_of(live):
    assert live.worker.wait(20)
    return Picture.open(BytesIO(live.image.value)).size[0]


def test_the_picture_follows_its_control():
    live = LiveFigure(square, {"size": ipywidgets.FloatText(5)})
    assert size_of(live) == 5
    live.controls["size"].value = 9
    assert size_of(live) == 9 and live.status.value == ""


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -3.0])
def test_a_mistake_is_a_sentence_and_the_next_value_works(bad):
    live = LiveFigure(square, {"size": ipywidgets.FloatText(5)})
    assert size_of(live) == 5
    live.controls["size"].value = bad
    assert size_of(live) == 5, "the last good picture stays"
    assert f"size={bad} is not possible" in html.unescape(live.status.value)
    live.controls["size"].value = 7
    assert size_of(live) == 7 and live.status.value == ""


def test_an_error_that_is_nobodys_mistake_is_shown_too():
    live = LiveFigure(lambda size: 1 / size, {"size": ipywidgets.FloatText(0)})
    assert live.worker.wait(20) and "ZeroDivisionError" in live.status.value


def test_text_in_the_status_line_is_text():
    assert "<b>" not in status_line("<b>bold</b>")


def test_a_function_that_yields_is_shown_as_it_goes():
    seen = []
    live = LiveFigure(lambda size: (square(size + i) for i in range(3)), {"size": ipywidgets.FloatText(5)})
    live.image.observe(lambda change: seen.append(change["new"]), names="value")
    live.worker.wait(20)
    live.controls["size"].value = 20
    assert size_of(live) == 22 and len(seen) >= 3


def test_a_figure_is_shown_as_png():
    figure, axes = plt.subplots()
    plt.close(figure)
    assert to_png(figure).startswith(b"\x89PNG") and to_png(b"as it is") == b"as it is"


def test_too_little_memory_is_a_sentence_that_names_the_control_to_lower():
    figure = LiveFigure(lambda rows, dark: torch.empty(2**60), {"rows": ipywidgets.IntSlider(value=7),
                                                                "dark": ipywidgets.Checkbox(value=True)})
    assert figure.worker.wait(10)
    said = html.unescape(figure.status.value)
    assert "There is not enough memory for this picture. Lower rows (now 7)." in said and "allocat" not in said
