# Made from nbs/56_evaluate.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
import json

import pytest
import torch
from matplotlib import image as pictures
from torch.testing import assert_close

from perceiver_moe_diffusion.data.images import digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.diffusion.process import Diffusion
from perceiver_moe_diffusion.diffusion.sampling import DPMSolverPP
from perceiver_moe_diffusion.evaluation.generate import (
    evaluate,
    measured_flops,
    measured_load,
    missing_before_training,
    needs_examples,
    routings_over_time,
    save_pictures,
    show_samples,
)
from perceiver_moe_diffusion.models.adapters import ConvAdapter
from perceiver_moe_diffusion.models.attention import Dense
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.flops import count_flops
from perceiver_moe_diffusion.models.moe import build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline
from perceiver_moe_diffusion.tools.testing import Elsewhere

EXPERTS = functools.partial(build_moe, num_experts=4, top_k=2)


def small_pipeline(data, feed_forward=EXPERTS, depth=1):
    "A pipeline for 8×8 digits with fresh weights."
    torch.manual_seed(0)
    core = functools.partial(PerceiverIO, dim=48, num_latents=6, depth=depth, num_heads=2, feed_forward=feed_forward)
    adapter = functools.partial(ConvAdapter, dim=48, stem_channels=16)
    model = PerceiverDenoiser(data.input_shape, data.num_classes, adapter, core=core, condition_dim=48)
    return GeneratorPipeline(model, Diffusion(100), DPMSolverPP(steps=6), data.examples.class_names)


@functools.cache
def tiny():
    "Data and a model with fresh weights: measuring works on any model."
    data = DataModule(digits)
    return data, small_pipeline(data)


def test_routings_cover_every_token_and_every_noise_level_once():
    data, pipeline = tiny()
    images, labels = data.split("test")
    routings = routings_over_time(pipeline, images[:260], labels[:260])
    # the decoder answers one query per token; the latent block holds 6 latents and the condition
    tokens = len(pipeline.model.adapter.positions)
    assert [tuple(r.expert_ids.shape) for r in routings] == [(260 * 7, 2), (260 * tokens, 2)]
    assert_close(routings[0].expert_ids, routings_over_time(pipeline, images[:260], labels[:260])[0].expert_ids)
    other = routings_over_time(pipeline, images[:260], labels[:260], seed=1)
    assert not torch.equal(routings[0].logits, other[0].logits)


def test_the_load_of_each_layer_adds_up_to_its_number_of_experts():
    data, _ = tiny()
    pipeline = small_pipeline(data, functools.partial(build_moe, num_experts=3, top_k=1), depth=2)
    load = measured_load(pipeline, data, images=50)
    assert load.shape == (3, 3) and bool((load >= 0).all())
    assert_close(load.sum(dim=1), torch.full((3,), 3.0, dtype=load.dtype))


def test_a_dense_model_has_one_expert_that_is_always_used():
    data, _ = tiny()
    pipeline = small_pipeline(data, Dense)
    assert routings_over_time(pipeline, *(part[:10] for part in data.split("test"))) == []
    assert measured_load(pipeline, data).tolist() == [[1.0]]


def test_the_routers_are_watched_on_the_device_of_the_model():
    "The meta device has shapes and no values, and is on every machine: what mixes devices fails there too."
    data, _ = tiny()
    images, labels = (part[:260] for part in data.split("test"))
    pipeline, there = small_pipeline(data), small_pipeline(data).to("meta")
    routings = routings_over_time(there, images, labels)
    assert [routing.logits.device.type for routing in routings] == ["meta", "meta"]
    shapes = [routing.logits.shape for routing in routings]
    assert shapes == [routing.logits.shape for routing in routings_over_time(pipeline, images, labels)]
    assert measured_flops(there, data, images=20) == measured_flops(pipeline, data, images=20)


def test_operations_are_the_mean_over_a_hundred_images():
    data, _ = tiny()
    pipeline, seen = small_pipeline(data), []
    pipeline.model.register_forward_pre_hook(lambda model, given: seen.append(len(given[0])))
    flops = measured_flops(pipeline, data)
    images, labels = (part[:1] for part in data.split("test"))
    assert sum(seen) == 100
    alone = count_flops(lambda: routings_over_time(pipeline, images, labels))
    assert 0.95 * alone < flops < alone, "a batch does once what it has in common"


FLOORS = ["fd_floor", "density_floor", "coverage_floor", "memorisation_floor", "nearest_distance_floor",
          "classifier_accuracy_on_test"]
FIGURES = ["conditional_accuracy", "conditional_accuracy_interval", "conditional_accuracy_by_class",
           "conditional_accuracy_s1", "fd", "fd_images", "density", "coverage", "memorisation", "nearest_distance",
           "diversity", "diversity_s1", "min_expert_load", "expert_load", "guidance_scale", "fd_guidance_scale",
           "steps", "flops_per_step", "parameters", "evaluate_seconds"]
QUICK = dict(samples_per_class=6, max_fd_images=60, classifier_steps=25)


@functools.cache
def measured():
    data, pipeline = tiny()
    return evaluate(pipeline, data, **QUICK)


def numbers(value):
    "All numbers in a nested result."
    if isinstance(value, dict):
        value = list(value.values())
    return [n for item in value for n in numbers(item)] if isinstance(value, (list, tuple)) else [value]


def test_every_figure_is_there_and_finite():
    results = measured()
    assert sorted(results) == sorted(FLOORS + FIGURES)
    assert all(isinstance(n, (int, float)) for n in numbers(results))
    assert bool(torch.tensor(numbers(results)).isfinite().all())
    assert results["fd_images"] == 60 and results["steps"] == 6 and results["guidance_scale"] == 2.0
    assert results["parameters"] == sum(p.numel() for p in tiny()[1].model.parameters())
    assert list(results["conditional_accuracy_by_class"]) == [str(i) for i in range(10)]
    assert results["min_expert_load"] == min(min(layer) for layer in results["expert_load"])


def test_results_survive_json():
    results = measured()
    again = json.loads(json.dumps(results))
    assert numbers(again) == numbers(results) and list(again) == list(results)


def test_an_evaluation_is_asked_with_its_settings_and_may_say_nothing():
    @needs_examples(lambda data, least=1, **settings: {"x": f"{data} of {least}"})
    def evaluation(pipeline, data, least=1, other=2):
        ...
    assert missing_before_training(functools.partial(evaluation, least=3, other=1), 2) == {"x": "2 of 3"}
    assert missing_before_training(evaluation, 2) == {"x": "2 of 1"} and missing_before_training(print, 2) == {}


def test_what_cannot_be_computed_is_told_before_and_left_out_after():
    few = digits()
    few = few._replace(pixels=few.pixels[:40], labels=few.labels[:40] % 2, class_names=["even", "odd"])
    data = DataModule(lambda root: few)
    settings = dict(samples_per_class=2, max_fd_images=5, classifier_steps=2)
    before = missing_before_training(functools.partial(evaluate, **settings), data)
    results = evaluate(small_pipeline(data), data, **settings)
    assert list(before) == ["fd", "density", "coverage"] and results["not_computed"] == before
    assert not {"fd", "fd_floor", "density", "coverage_floor"} & set(results)
    assert {"conditional_accuracy", "memorisation", "diversity", "min_expert_load"} <= set(results)
    assert json.loads(json.dumps(results, allow_nan=False))["not_computed"] == before


def test_of_one_class_the_copies_are_counted():
    few = digits()
    few = few._replace(pixels=few.pixels[:40], labels=few.labels[:40] * 0, class_names=["any"])
    data = DataModule(lambda root: few)
    results = evaluate(small_pipeline(data), data, samples_per_class=2, max_fd_images=5)
    assert set(results["not_computed"].values()) == {"one class, so a judge has nothing to tell apart"}
    assert "memorisation" in results and "conditional_accuracy" not in results


def test_the_same_seed_gives_the_same_figures():
    data, pipeline = tiny()
    drop = lambda results: {name: value for name, value in results.items() if name != "evaluate_seconds"}
    assert drop(evaluate(pipeline, data, **QUICK)) == drop(measured())
    assert drop(evaluate(pipeline, data, **QUICK, seed=1)) != drop(measured())


def test_distances_are_measured_at_the_scale_that_is_asked_for():
    data, pipeline = tiny()
    asked = []
    sample = lambda labels, seed=0, **changes: (
        asked.append(changes["guidance_scale"]) or GeneratorPipeline.sample(pipeline, labels, seed, **changes)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "sample", sample)
        results = evaluate(pipeline, data, **QUICK, fd_guidance_scale=0.0)
    assert asked == [2.0, 0.0] and results["fd_guidance_scale"] == 0.0 and results["fd"] != measured()["fd"]


def test_no_more_images_are_compared_than_the_test_part_holds():
    data, pipeline = tiny()
    results = evaluate(pipeline, data, samples_per_class=1, max_fd_images=10_000, classifier_steps=2)
    assert results["fd_images"] == len(data.split("test")[1])


def test_images_that_are_drawn_on_another_device_are_judged_on_the_cpu():
    data, pipeline = tiny()
    there = small_pipeline(data)
    there.sample = lambda *args, **changes: GeneratorPipeline.sample(pipeline, *args, **changes).as_subclass(Elsewhere)
    drop = lambda results: {name: value for name, value in results.items() if name != "evaluate_seconds"}
    assert drop(evaluate(there, data, **QUICK)) == drop(measured())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_is_evaluated(tmp_path):
    data, pipeline = tiny()
    results = evaluate(small_pipeline(data).to("cuda"), data, **QUICK, folder=tmp_path)
    assert sorted(results) == sorted(measured()) and results["parameters"] == measured()["parameters"]
    assert results["fd"] == pytest.approx(measured()["fd"], rel=0.05)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["denoising.png", "routing.png", "samples.png"]


def test_fresh_weights_are_far_from_real_images():
    results = measured()
    assert results["fd"] > 3 * results["fd_floor"] and results["coverage"] < results["coverage_floor"]


def test_the_defaults_are_those_that_recorded_results_were_measured_with():
    import inspect

    defaults = {name: p.default for name, p in inspect.signature(evaluate).parameters.items()}
    assert (defaults["samples_per_class"], defaults["max_fd_images"], defaults["classifier_steps"]) == (100, 2000, 800)
    assert (defaults["guidance_scale"], defaults["fd_guidance_scale"], defaults["seed"]) == (2.0, 1.0, 0)


def test_the_pictures_are_written(tmp_path):
    _, pipeline = tiny()
    save_pictures(tmp_path, pipeline, measured()["expert_load"], scales=(1.0, 2.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["denoising.png", "routing.png", "samples.png"]
    for path in tmp_path.iterdir():
        picture = pictures.imread(path)
        assert picture.std() > 0.05 and path.stat().st_size <= 100_000, f"{path.name} is empty or too large"


def test_the_grid_of_samples_has_a_row_per_class_and_a_column_per_scale():
    _, pipeline = tiny()
    axes = show_samples(pipeline, scales=(0.0, 2.5)).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == [str(i) for i in range(10)]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["s=0\nw=-1", "s=2.5\nw=1.5"]


def test_a_dense_model_is_measured_and_drawn_too(tmp_path):
    data, _ = tiny()
    pipeline = small_pipeline(data, Dense)
    results = evaluate(pipeline, data, **QUICK)
    assert sorted(results) == sorted(measured())
    assert results["expert_load"] == [[1.0]] and results["min_expert_load"] == 1.0
    save_pictures(tmp_path, pipeline, results["expert_load"], scales=(1.0,))
    assert (tmp_path / "routing.png").is_file()


def test_the_pictures_follow_their_seed(tmp_path):
    _, pipeline = tiny()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        save_pictures(tmp_path / name, pipeline, measured()["expert_load"], scales=(1.0,), seed=seed)
    read = lambda name, file: (tmp_path / name / file).read_bytes()
    for file in ("samples.png", "denoising.png"):
        assert read("a", file) == read("b", file) != read("c", file)
    assert read("a", "routing.png") == read("c", "routing.png")


def test_an_evaluation_leaves_the_pictures_of_its_seed_in_its_folder(tmp_path):
    data, pipeline = tiny()
    few = dict(samples_per_class=1, max_fd_images=10, classifier_steps=2)
    for name in ("a", "b"): (tmp_path / name).mkdir()
    results = evaluate(pipeline, data, **few, seed=1, folder=tmp_path / "a")
    save_pictures(tmp_path / "b", pipeline, results["expert_load"], seed=1)
    files = sorted((tmp_path / "b").iterdir())
    assert len(files) == 3 == len(list((tmp_path / "a").iterdir()))
    assert all((tmp_path / "a" / file.name).read_bytes() == file.read_bytes() for file in files)
