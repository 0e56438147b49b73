# Made from nbs/75_dmmoe_text.ipynb by `pmd-dev tests`. Edit the notebook.
import pytest
import torch
from lightning import Trainer
from torch.testing import assert_close

from perceiver_moe_diffusion.compat import silence_lightning
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.questions import best_accuracy_without
from perceiver_moe_diffusion.evaluation.metrics import Mean
from perceiver_moe_diffusion.experiments.dmmoe_text import (
    accuracy_by_kind,
    judge_questions,
    modality_of_rows,
    show_modalities,
    split_between,
    tokens_by_expert,
)
from perceiver_moe_diffusion.pipelines.classify import ClassifierPipeline
from perceiver_moe_diffusion.pipelines.files import load_pipeline
from perceiver_moe_diffusion.runs.build import build_run
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.train import save_model
from perceiver_moe_diffusion.training.loop import EMA, TrainerData


def parts_of(*overrides, experiment="dmmoe_questions"):
    "Data and model of an experiment, smaller or otherwise changed."
    return build_run(load_config([f"experiment={experiment}", *overrides]))


SMALL = ("data.dataset.training=20", "data.dataset.validation=20", "data.dataset.test=20", "model.num_latents=4",
         "model.dim=16", "model.depth=1", "model.num_heads=2", "model.query_dim=16")


def fit(parts, steps, decay=0.98):
    "Train, without a file; the trained model as a pipeline."
    silence_lightning()
    silent = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(max_steps=steps, accelerator="cpu", devices=1, callbacks=[EMA(decay)], num_sanity_val_steps=0,
                      val_check_interval=steps, gradient_clip_val=1.0, **silent)
    trainer.fit(parts.module, TrainerData(parts.data))
    return ClassifierPipeline(parts.module.model, parts.data.examples.class_names)


def test_each_row_is_counted_for_the_modality_of_its_token():
    parts = parts_of(*SMALL)
    model, inputs = parts.module.model.eval(), parts.data.examples.inputs(torch.arange(0, 140, 7))
    rows = modality_of_rows(model.preprocess, inputs)
    letters = (inputs["text"] < 256).sum(dim=1)
    assert rows.tolist() == [modality for n in letters.tolist() for modality in [0] * 8 + [1] * n]
    counts, (_, routings) = tokens_by_expert(model, inputs), model(inputs, return_routing=True)
    assert list(counts) == ["image", "text"] and counts["image"].shape == (2, 4)
    for layer in range(2):
        chosen = list(zip(rows.tolist(), routings[layer].expert_ids.tolist()))
        by_hand = [[sum(row == m and e in experts for row, experts in chosen) for e in range(4)] for m in range(2)]
        assert [counts[name][layer].tolist() for name in counts] == by_hand


def test_what_is_not_shown_is_not_routed():
    parts = parts_of(*SMALL, "model.preprocessor.shown=[text]")
    counts = tokens_by_expert(parts.module.model.eval(), parts.data.examples.inputs(slice(0, 8)))
    assert not counts["image"].any() and counts["text"].sum() > 0


def test_the_distance_is_zero_for_equal_shares_and_one_for_separate_experts():
    one, other = torch.tensor([[4, 4, 0], [6, 0, 0]]), torch.tensor([[1, 1, 0], [0, 2, 2]])
    assert_close(split_between(one, other), torch.tensor([0.0, 1.0]))
    assert_close(split_between(torch.tensor([[3, 1]]), torch.tensor([[1, 1]])), torch.tensor([0.25]))


def test_latents_belong_to_no_modality():
    parts = parts_of(*SMALL, "model.input_depth=0")
    with pytest.raises(UserError, match="without input layers .* model.input_depth=1"):
        tokens_by_expert(parts.module.model, parts.data.examples.inputs(slice(0, 4)))


def test_a_bar_for_each_modality_and_expert_and_an_interval_where_there_is_one():
    plain, measured = [[0.5, 0.5], [1.0, 0.0]], [[Mean(0.5, 0.4, 0.7), Mean(0.5, 0.5, 0.5)]] * 2
    models = {"a": {"image": plain, "text": plain}, "b": {"image": measured, "text": measured}}
    figure = show_modalities(models, ["X", "Y"])
    assert [axes.get_title() for axes in figure.axes] == [f"{m}, input layer {n}" for m in "ab" for n in (1, 2)]
    first, *_, last = figure.axes
    assert [bar.get_height() for bar in first.patches] == [0.5, 0.5] * 2 and len(first.lines) == 1, "no interval"
    ends = [segment[:, 1].tolist() for segment in last.collections[0].get_segments()]
    assert ends == [[pytest.approx(0.4), pytest.approx(0.7)], [pytest.approx(0.5)] * 2]


class Oracle:
    "Knows the answers to the questions whose kind it is good at, and says no to all others."
    def __init__(self, data, known):
        self.data, self.known, self.class_names = data, known, data.class_names
        self.answers = data.labels[-data.official_test:]

    def predict(self, inputs, batch_size=250):
        asked = [self.data.kinds[number] for number in self.data.question[-self.data.official_test:].tolist()]
        good = torch.tensor([kind in self.known for kind in asked])
        return torch.nn.functional.one_hot(torch.where(good, self.answers, 0), len(self.class_names)).float()


def test_accuracy_is_counted_for_each_kind():
    data = parts_of(*SMALL).data
    said = Oracle(data.examples, ["digit", "larger"]).predict(None).argmax(dim=-1)
    found = accuracy_by_kind(said == data.split("test")[1], data)
    right = {"larger": 1.0, "equal": 0.5, "sum": 0.5, "digit": 1.0, "extreme": 0.0}
    assert {kind: mean.value for kind, mean in found.items()} == right


def test_a_model_is_judged_with_its_routing_and_its_pictures(tmp_path):
    parts = parts_of(*SMALL)
    pipeline = ClassifierPipeline(parts.module.model, parts.data.examples.class_names)
    results = judge_questions(pipeline, parts.data, folder=tmp_path)
    assert 0 <= results["split_between"] <= 1
    assert (tmp_path / "modalities.png").is_file() and (tmp_path / "confusion.png").is_file()
    for place in ("image_1", "image_2", "text_1", "text_2"):
        shares = [results[f"share_{place}_{expert}"] for expert in ("Conv", "Attention", "Recurrent", "MLP")]
        assert sum(shares) == pytest.approx(1)
    questions = {"larger": 1, "equal": 1, "sum": 1, "digit": 2, "extreme": 2}
    total = sum(number * results[f"accuracy_{kind}"] for kind, number in questions.items())
    assert results["accuracy"] == pytest.approx(total / 7)


def test_a_model_that_does_not_see_has_no_share_of_image_tokens():
    parts = parts_of(*SMALL, "model.preprocessor.shown=[text]")
    results = judge_questions(ClassifierPipeline(parts.module.model, parts.data.examples.class_names), parts.data)
    assert "share_text_1_Conv" in results and "share_image_1_Conv" not in results and "split_between" not in results


def test_training_changes_every_expert_and_the_blind_model_stays_at_its_ceiling():
    parts = parts_of(*SMALL, "model.preprocessor.shown=[text]", "data.batch_size=16")
    before = {name: p.clone() for name, p in parts.module.model.core.input_layers.named_parameters()}
    pipeline = fit(parts, 12, decay=0.5)
    assert all((p != before[name]).any() for name, p in pipeline.model.core.input_layers.named_parameters())
    inputs, labels = parts.data.split("test")
    accuracy = (pipeline.predict(inputs).argmax(-1) == labels).float().mean()
    assert accuracy <= best_accuracy_without()["image"] + 1e-6, "balanced answers: not one more than the ceiling"


def test_a_trained_model_is_saved_and_read_again(tmp_path):
    config = load_config(["experiment=dmmoe_questions", *SMALL])
    parts = build_run(config)
    pipeline, inputs = save_model(config, parts, tmp_path), parts.data.examples.inputs(slice(0, 8))
    assert_close(load_pipeline(tmp_path).predict(inputs), pipeline.predict(inputs))


def test_pretrained_weights_are_taken_over_and_the_head_is_not(tmp_path):
    short = ("data.dataset.max_length=24", "moe.grid=[24]", "model.num_latents=4", "model.dim=16", "model.query_dim=16",
             "model.num_heads=2")
    config = load_config(["experiment=dmmoe_language_pretraining", *short])
    first = build_run(config)
    save_model(config, first, tmp_path)
    second = parts_of(*short, "seed=1", "data.shots=5", f"init={tmp_path}", "fresh=[core.head]",
                      experiment="dmmoe_language")
    taken, own = first.module.model.state_dict(), second.module.model.state_dict()
    assert len(second.data.train_index) == 35
    assert not set(first.data.examples.class_names) & set(second.data.examples.class_names)
    for name, weight in own.items():
        same = weight.shape == taken[name].shape and torch.equal(weight, taken[name])
        assert same == (not name.startswith("core.head")), name


def test_other_seeds_draw_other_examples():
    draw = lambda seed: parts_of(f"seed={seed}", "data.shots=5", experiment="dmmoe_language").data
    one, other = draw(0), draw(1)
    assert not torch.equal(one.train_index, other.train_index) and torch.equal(one.train_index, draw(0).train_index)
    assert not set(one.train_index.tolist()) & set(one.test_index.tolist())


def test_a_published_csv_file_goes_through_the_same_model(tmp_path):
    lines = [f'"{1 + i % 4}","Title {i}","Some text of the {i}th entry."\n' for i in range(80)]
    (tmp_path / "train.csv").write_text("".join(lines[:60]))
    (tmp_path / "test.csv").write_text("".join(lines[60:]))
    parts = parts_of("data=ag_news", f"data.root={tmp_path}", "data.dataset.max_length=32", "moe.grid=[32]",
                     "model.num_latents=4", "data.batch_size=8", experiment="dmmoe_language")
    pipeline = fit(parts, 2)
    assert len(parts.data.test_index) == 20 and pipeline.predict(parts.data.split("test")[0]).shape == (20, 4)
