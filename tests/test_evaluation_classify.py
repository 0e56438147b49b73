# Made from nbs/57_evaluate_classifier.ipynb by `pmd-dev tests`. Edit the notebook.
import json

import pytest
import torch
from hydra.utils import instantiate

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.evaluation.classify import (
    classify,
    confusion,
    load_and_flops,
    moe_layers,
    routings_of,
    save_classifier_pictures,
    show_confusion,
    show_predictions,
)
from perceiver_moe_diffusion.evaluation.generate import evaluate
from perceiver_moe_diffusion.models.classifier import Classifier
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.classify import ClassifierPipeline
from perceiver_moe_diffusion.pipelines.files import from_pretrained
from perceiver_moe_diffusion.runs.build import build_run
from perceiver_moe_diffusion.runs.cli import pmd_evaluate, pmd_sample, pmd_train
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.tools.testing import Elsewhere


def test_the_confusion_matrix_counts_who_was_taken_for_whom():
    counts = confusion(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    axes = show_confusion(counts, ["cat", "dog", "eel"]).axes[0]
    assert [text.get_text() for text in axes.texts] == ["50", "50", "100", "100"]
    assert axes.get_yticklabels()[2].get_text() == "eel"


def test_a_class_that_does_not_occur_has_an_empty_row():
    counts = confusion(torch.tensor([0, 0]), torch.tensor([0, 2]), 3)
    assert counts.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert [text.get_text() for text in show_confusion(counts, ["a", "b", "c"]).axes[0].texts] == ["50", "50"]


def test_predictions_are_marked_where_they_are_wrong():
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    figure = show_predictions(torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 1]), probs, ["cat", "dog"], columns=2)
    assert [axes.get_title() for axes in figure.axes] == ["cat\n90 %", "dog\n80 %", "× cat\n60 %", ""]


@pytest.mark.parametrize("names, width, height, rotation", [
    (["a", "b"], 4.0, 3.2, 0), ([str(i) for i in range(10)], 6.0, 5.2, 0), (["cat", "dog", "owl"], 4.0, 3.2, 45)])
def test_the_picture_of_a_confusion_matrix_grows_with_its_classes_and_long_names_are_slanted(
    names, width, height, rotation
):
    figure = show_confusion(torch.eye(len(names), dtype=torch.long), names)
    axes = figure.axes[0]
    assert figure.get_size_inches().tolist() == pytest.approx([width, height])
    assert axes.images[0].get_clim() == (0, 1), "the colours mean the same in every picture"
    assert axes.images[0].get_cmap().name == "cividis", "light where the numbers are black, also without colour vision"
    assert [label.get_text() for label in axes.get_xticklabels()] == names
    places = list(range(len(names)))
    assert axes.get_xticks().tolist() == axes.get_yticks().tolist() == places, "a name at each row and column"
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {rotation}
    assert {label.get_ha() for label in axes.get_xticklabels()} == {"right" if rotation else "center"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "is")


def test_shares_are_rounded_and_can_be_read_on_their_colour():
    counts = torch.tensor([[996, 4, 0], [400, 600, 0], [5, 405, 590]])
    axes = show_confusion(counts, ["a", "b", "c"]).axes[0]
    found = {(int(y), int(x)): (text.get_text(), text.get_color())
             for text in axes.texts for x, y in [text.get_position()]}
    assert found == {(0, 0): ("100", "black"), (1, 0): ("40", "white"), (1, 1): ("60", "black"),
                     (2, 0): ("0", "white"), (2, 1): ("40", "white"), (2, 2): ("59", "white")}


def test_predictions_stand_in_rows_without_axes_and_what_is_wrong_is_red():
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    figure = show_predictions(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1]), probs, ["cat", "dog"], columns=2)
    assert [axes.axison for axes in figure.axes] == [False] * 4
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 0]
    assert [axes.title.get_color() for axes in figure.axes[:3]] == ["black", "black", "#D55E00"]
    assert figure.get_size_inches().tolist() == pytest.approx([1.9, 2.9])


@pytest.mark.parametrize("images, shown", [(40, 32), (32, 32), (5, 5)])
def test_the_picture_of_predictions_shows_the_first_32_images(tmp_path, monkeypatch, images, shown):
    drawn = []
    monkeypatch.setitem(save_classifier_pictures.__globals__, "show_predictions",
                        lambda *given: drawn.append(given) or show_predictions(*given))
    inputs, labels = digits().inputs(slice(0, images)), digits().labels[:images]
    probs = torch.rand(images, 10, generator=torch.Generator().manual_seed(0))
    save_classifier_pictures(tmp_path, inputs, labels, probs, [str(i) for i in range(10)], torch.ones(1, 1), ["dense"])
    (given,) = drawn
    for whole, part in zip((inputs, labels, probs), given):
        assert torch.equal(part, whole[:shown])


def test_a_row_of_predictions_holds_eight():
    figure = show_predictions(torch.zeros(9, 1, 4, 4), torch.zeros(9, dtype=torch.long), torch.ones(9, 1), ["cat"])
    assert figure.axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 8)


TINY = ["experiment=perceiver_cifar10", "data=digits", "data/augment=none", "model.dim=32", "model.depth=1",
        "model.num_latents=4", "model.num_heads=2", "model.query_dim=32"]


def small(**core):
    "A very small classifier of digits with fresh weights; always the same."
    torch.manual_seed(0)
    settings = {"dim": 32, "num_latents": 6, "depth": 1, "num_heads": 2, **core}
    net = Classifier((1, 8, 8), 10, core=lambda *given, **more: PerceiverIO(*given, **more, **settings), query_dim=32)
    return ClassifierPipeline(net, [str(i) for i in range(10)])


@pytest.mark.parametrize("feed_forward, layers", [(lambda dim: build_moe(dim, 4, 2), 2), (None, 0)])
def test_a_classifier_is_judged_on_all_test_images_with_and_without_experts(tmp_path, feed_forward, layers):
    data = build_run(load_config([*TINY])).data
    pipeline = small(**({"feed_forward": feed_forward} if feed_forward else {}))
    results = classify(pipeline, data, folder=tmp_path)
    probs = pipeline.predict(data.split("test")[0])
    right = float((probs.argmax(-1) == data.split("test")[1]).double().mean())
    assert results["accuracy"] == pytest.approx(right) and results["test_size"] == len(probs) == 360
    low, high = results["accuracy_interval"]
    assert low <= results["accuracy"] <= high and list(results["accuracy_by_class"]) == pipeline.class_names
    assert results["confidence"] == pytest.approx(float(probs.max(dim=-1).values.mean()))
    flops = count_flops(lambda: pipeline.model(data.split("test")[0][:1]))
    assert len(results["expert_load"]) == max(layers, 1) and results["flops"] == pytest.approx(flops, rel=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "predictions.png", "routing.png"]


def test_what_draws_images_is_no_classifier_and_the_other_way_round(tmp_path, monkeypatch, capsys):
    data = build_run(load_config([*TINY])).data
    with pytest.raises(UserError, match="ClassifierPipeline.* evaluation=generate"):
        classify(from_pretrained("digits"), data)
    with pytest.raises(UserError, match="a ClassifierPipeline .* evaluation=classify"):
        evaluate(small(), data)
    monkeypatch.chdir(tmp_path)
    pmd_train([*TINY, "trainer.max_steps=2", "run_dir=run"])
    assert "accuracy on the test part" in capsys.readouterr().out
    for command, line in ((pmd_sample, ["run=run", "label=3"]), (pmd_evaluate, ["run=run"])):
        with pytest.raises(SystemExit) as ended:
            command(line)
        told = capsys.readouterr().err
        assert ended.value.code == 2 and "ClassifierPipeline" in told and "Traceback" not in told
    pmd_evaluate(["run=run", "evaluation=classify"])
    again, before = (json.loads((tmp_path / "run" / name).read_text()) for name in ("evaluation.json", "metrics.json"))
    assert again["accuracy"] == before["accuracy"]


def with_experts():
    return small(feed_forward=lambda dim: build_moe(dim, 4, 2))


def test_layers_have_names_and_routings_cover_every_token():
    pipeline, images = with_experts(), digits().inputs(slice(0, 260))
    assert list(moe_layers(pipeline.model)) == ["stages.0.blocks.0", "decoder"] and not moe_layers(small().model)
    latents, answer = routings_of(pipeline, images)
    assert latents.expert_ids.shape == (260 * 6, 2) and answer.expert_ids.shape == (260, 2)
    assert routings_of(small(), images) == []


def test_the_routers_are_watched_on_the_device_of_the_model():
    "The meta device has shapes and no values, and is on every machine: what mixes devices fails there too."
    pipeline, images = with_experts(), digits().inputs(slice(0, 260))
    here, there = routings_of(pipeline, images), routings_of(with_experts().to("meta"), images)
    assert [routing.logits.device.type for routing in there] == ["meta", "meta"]
    assert [routing.logits.shape for routing in there] == [routing.logits.shape for routing in here]


def test_probabilities_of_another_device_are_counted_on_the_cpu():
    data, here, there = DataModule(digits), with_experts(), with_experts()
    there.predict = lambda inputs: here.predict(inputs).as_subclass(Elsewhere)
    assert classify(there, data) == classify(here, data)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_classifier_on_a_gpu_is_evaluated(tmp_path):
    data, pipeline = DataModule(digits), with_experts()
    here = classify(pipeline, data)
    there = classify(pipeline.to("cuda"), data, folder=tmp_path)
    assert there["accuracy"] == pytest.approx(here["accuracy"], abs=0.01) and there["flops"] == here["flops"]


def test_the_experts_are_watched_on_the_examples_of_the_seed():
    data, pipeline = DataModule(digits), with_experts()
    for weight in pipeline.model.parameters(): torch.nn.init.normal_(weight)  # fresh ones do not look at the image yet
    loads = [load_and_flops(pipeline, data, seed=seed)[0].tolist() for seed in (0, 3)]
    assert [classify(pipeline, data, seed=seed)["expert_load"] for seed in (0, 3)] == loads and loads[0] != loads[1]


@pytest.mark.parametrize("core, names", [({}, ["dense"]), ({"feed_forward": lambda dim: build_moe(dim, 4, 2)},
                                                          ["stages.0.blocks.0", "decoder"])])
def test_the_picture_of_the_load_names_the_layers(core, names, tmp_path, monkeypatch):
    from perceiver_moe_diffusion.figures import show_load

    drawn = []
    monkeypatch.setitem(save_classifier_pictures.__globals__, "show_load",
                        lambda load, names: drawn.append(show_load(load, names)) or drawn[-1])
    results = classify(small(**core), DataModule(digits), folder=tmp_path)
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == names
    assert [[bar.get_height() for bar in axes.patches] for axes in figure.axes] == results["expert_load"]


def test_the_reference_has_the_size_that_its_source_reports_and_ours_is_smaller():
    sizes = []
    for name in ("perceiver_cifar10", "perceiver_cifar10_fast"):
        node = load_config([f"experiment={name}"]).model.net
        net = instantiate(node, input_shape=(3, 32, 32), num_classes=10, _convert_="all")
        sizes.append(sum(p.numel() for p in net.parameters()))
    assert abs(sizes[0] / 4.00e6 - 1) < 0.01 and sizes[1] <= sizes[0]
