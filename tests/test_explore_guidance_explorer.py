# Made from nbs/63_guidance_explorer.ipynb by `pmd-dev tests`. Edit the notebook.
import html
import threading

import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.evaluation.pretrained import judge_of
from perceiver_moe_diffusion.explore.guidance_explorer import (
    GuidanceExplorer,
    Panel,
    SamplingRequest,
    describe_quality,
    guidance_strip,
    quality_of,
    run_request,
)
from perceiver_moe_diffusion.pipelines.files import from_pretrained
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline


@pytest.fixture(scope="module")
def digits_model():
    return from_pretrained("digits"), judge_of("digits")


def test_a_wish_is_drawn_as_the_pipeline_draws_it(digits_model):
    pipeline, _ = digits_model
    wish = SamplingRequest(guidance_scale=3.0, rows=2, seed=4, steps=5)
    so_far = []
    for last in run_request(pipeline, wish):
        so_far.append(len(last.steps))
    labels = torch.arange(10).repeat(2)
    assert so_far == [1, 2, 3, 4, 5]
    assert (
        torch.equal(last.images, pipeline.sample(labels, seed=4, guidance_scale=3.0, steps=5))
        and last.labels.tolist() == labels.tolist()
    )


def test_one_class_fills_the_grid_with_different_images(digits_model):
    pipeline, _ = digits_model
    *_, last = run_request(pipeline, SamplingRequest(label=3, rows=1, steps=3))
    assert last.labels.tolist() == [3] * 10 and not torch.equal(last.images[0], last.images[1])


@pytest.mark.parametrize("wish, said", [
    (SamplingRequest(guidance_scale=float("nan")), "guidance_scale=nan"),
    (SamplingRequest(guidance_scale=float("inf")), "guidance_scale=inf"),
    (SamplingRequest(label=12), "label=12"),
    (SamplingRequest(rows=0), "rows=0"),
    (SamplingRequest(seed=-1), "seed=-1"),
    (SamplingRequest(steps=0), "steps=0"),
    (SamplingRequest(sampler="Euler"), "DPM-Solver++, DDIM, DDPM"),
    (SamplingRequest(guidance_rescale=2.0), "guidance_rescale=2.0"),
    (SamplingRequest(guidance_interval=(3.0, 1.0)), "guidance_interval"),
])
def test_a_wish_that_cannot_be_fulfilled_is_one_sentence(digits_model, wish, said):
    with pytest.raises(UserError) as refused:
        next(run_request(digits_model[0], wish))
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("label", [None, 3])
def test_the_images_are_made_where_the_model_is(label):
    pipeline = from_pretrained("digits").to("meta")  # a device without values: whatever meets a tensor of the CPU fails
    *_, last = run_request(pipeline, SamplingRequest(label=label, steps=2))
    assert last.images.shape == (20, 1, 8, 8) and {step.x.device.type for step in last.steps} == {"meta"}


def test_a_wish_takes_numbers_of_numpy_and_names_of_classes(digits_model):
    import numpy as np
    pipeline = GeneratorPipeline(*(getattr(digits_model[0], part) for part in ("model", "diffusion", "sampler")),
                                 ["zero", "one", "two", *"3456789"])
    *_, plain = run_request(pipeline, SamplingRequest(label=2, steps=2, rows=1, seed=1))
    for wish in (SamplingRequest(label="two", steps=np.int64(2), rows=np.int8(1), seed=np.int64(1)),
                 SamplingRequest(label=torch.tensor(2), steps=torch.tensor(2), rows=1, seed=torch.tensor(1),
                                 guidance_scale=np.float32(2))):
        *_, drawn = run_request(pipeline, wish)
        assert torch.equal(drawn.images, plain.images) and drawn.labels.tolist() == [2] * 10
    for label, said in (("tow", "Did you mean two?"), ([1, 2], "one class, or None for all"), (12, "0 to 9")):
        with pytest.raises(UserError) as error:
            next(run_request(pipeline, SamplingRequest(label=label)))
        assert said in str(error.value)
    assert Panel(pipeline, wish=SamplingRequest(label="two", steps=1)).controls["label"].label == "two"


def test_accuracy_and_diversity_move_apart_with_the_scale(digits_model):
    pipeline, judge = digits_model
    found = {}
    for s in (0.0, 1.0, 4.0):
        *_, drawing = run_request(pipeline, SamplingRequest(guidance_scale=s, rows=8))
        found[s] = quality_of(drawing, judge)
    assert found[0.0].accuracy.value < 0.4 < 0.85 < found[1.0].accuracy.value <= found[4.0].accuracy.value
    assert found[0.0].diversity > found[1.0].diversity > found[4.0].diversity


def test_one_image_per_class_has_no_diversity(digits_model):
    pipeline, judge = digits_model
    *_, drawing = run_request(pipeline, SamplingRequest(rows=1, steps=3))
    numbers = quality_of(drawing, judge)
    assert numbers.diversity is None and "one image per class" in describe_quality(numbers)


def test_the_strip_has_a_row_per_scale(digits_model):
    figure = guidance_strip(*digits_model, scales=(0.0, 2.0), wish=SamplingRequest(steps=3))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == 2 and labels[1].startswith("s=2 (w=1)")


def settled(panel):
    "Wait for the worker; the text of the status line."
    assert panel.worker.wait(60)
    return html.unescape(panel.status.value)


@pytest.fixture
def panel(digits_model, tmp_path):
    made = Panel(*digits_model, wish=SamplingRequest(rows=2, steps=4), folder=tmp_path)
    settled(made)
    return made


def test_the_first_picture_is_there_without_a_click(panel):
    assert bytes(panel.image.value).startswith(b"\x89PNG") and bytes(panel.frame.value).startswith(b"\x89PNG")
    assert "4 steps in" in panel.status.value and "conditional accuracy" in panel.numbers.value
    assert "w = s − 1 = 1" in panel.w.value
    assert panel.controls["label"].label == "all classes" and panel.wish().label is None


@pytest.mark.parametrize("name, value", [
    ("guidance_scale", 5.0), ("label", 3), ("rows", 1), ("seed", 7), ("steps", 6), ("sampler", "DDIM"),
    ("sampler", "DDPM"), ("guidance_rescale", 0.7)])
def test_each_control_changes_the_picture_and_the_way_back_is_cached(panel, name, value):
    before, control = panel.image.value, panel.controls[name]
    old = control.value
    control.value = value
    settled(panel)
    changed = panel.image.value
    assert changed != before and getattr(panel.wish(), name) == value
    control.value = old
    assert panel.image.value == before and "from the cache" in settled(panel), (
        "no waiting: it is shown in the same call"
    )


def test_the_interval_counts_once_it_is_switched_on(panel):
    before = panel.image.value
    panel.controls["guidance_scale"].value = 6.0
    settled(panel)
    guided = panel.image.value
    panel.controls["guidance_interval"].value = (0.5, 1.0)
    settled(panel)
    assert panel.image.value == guided and panel.wish().guidance_interval is None
    panel.controls["interval"].value = True
    settled(panel)
    assert panel.image.value not in (guided, before) and panel.wish().guidance_interval == (0.5, 1.0)


def test_scrubbing_shows_every_step_without_the_model(panel):
    calls = []
    panel.pipeline.model.register_forward_hook(lambda *call: calls.append(1))
    frames = set()
    for step in (1, 2, 3, 4):
        panel.scrubber.value = step
        frames.add(panel.frame.value)
    assert len(frames) == 4 and calls == []


@pytest.mark.parametrize("name, bad, said", [("guidance_scale", float("nan"), "guidance_scale=nan")])
def test_a_value_that_cannot_work_is_a_sentence_and_the_next_one_is_drawn(panel, name, bad, said):
    before = panel.image.value
    panel.controls[name].value = bad
    assert said in settled(panel) and panel.image.value == before
    panel.controls[name].value = 4.0
    assert "4 steps in" in settled(panel) and panel.image.value != before


def test_stop_acts_between_two_steps_and_the_panel_goes_on(panel):
    begun = threading.Event()
    panel.progress.observe(lambda change: begun.set() if change["new"] == 2 else None, names="value")
    panel.controls["steps"].value = 200
    assert begun.wait(60)
    panel.stop.click()
    said = settled(panel)
    assert said.split(">")[1].startswith("stopped after step") and int(said.split("step ")[1].split()[0]) < 200
    panel.controls["steps"].value = 3
    assert "3 steps in" in settled(panel)


def test_stop_before_the_first_step_is_told_too(panel):
    begun, go = threading.Event(), threading.Event()
    # keeps the worker busy, so that the wish has to wait
    panel.worker.submit(lambda stopped: begun.set() or go.wait(60))
    assert begun.wait(60)
    before = panel.image.value
    panel.controls["steps"].value = 200
    assert "step 0 of 200" in panel.status.value
    panel.stop.click()
    go.set()
    assert "stopped after step 0 of 200" in settled(panel) and panel.image.value == before


def test_the_newest_of_many_wishes_wins(panel):
    for s in (3.0, 4.0, 5.0, 6.0):
        panel.controls["guidance_scale"].value = s
    settled(panel)
    assert panel.shown[0].guidance_scale == 6.0


def test_save_writes_the_picture_that_is_shown(panel, tmp_path):
    panel.save.click()
    (saved,) = tmp_path.iterdir()
    assert saved.read_bytes() == panel.image.value and saved.name in panel.status.value
    panel.folder = tmp_path / "nowhere"
    panel.save.click()
    assert "nowhere" in panel.status.value and list(tmp_path.iterdir()) == [saved]


def test_saving_before_there_is_a_picture_is_a_sentence(panel, tmp_path):
    panel.shown = None
    panel.save.click()
    assert "saving before there is a picture is not possible; allowed: a finished grid." in panel.status.value
    assert list(tmp_path.iterdir()) == []


def test_the_cache_forgets_what_was_shown_longest_ago(panel, monkeypatch):
    monkeypatch.setattr(Panel, "KEPT", 2)
    for seed in (1, 2, 0):
        panel.controls["seed"].value = seed
        settled(panel)
    assert [wish.seed for wish in panel.cache] == [2, 0]


def test_compare_opens_a_copy_that_goes_its_own_way(digits_model):
    explorer = GuidanceExplorer(*digits_model, wish=SamplingRequest(rows=1, steps=3))
    first = explorer.panels[0]
    first.controls["guidance_scale"].value = 3.5
    settled(first)
    explorer.compare.value = True
    second = explorer.panels[1]
    settled(second)
    assert second.wish() == first.wish() and second.image.value == first.image.value
    assert len(explorer.side_by_side.children) == 2
    second.controls["guidance_scale"].value = 0.0
    settled(second)
    assert second.image.value != first.image.value and first.wish().guidance_scale == 3.5
    explorer.compare.value = False
    assert explorer.panels == [first] and len(explorer.side_by_side.children) == 1


def test_without_a_judge_there_are_pictures_and_no_numbers(digits_model):
    explorer = GuidanceExplorer(digits_model[0], wish=SamplingRequest(rows=1, steps=2))
    settled(explorer.panels[0])
    assert explorer.panels[0].image.value and explorer.panels[0].numbers.value == ""
