# Made from nbs/55_metrics.ipynb by `pmd-dev tests`. Edit the notebook.
import functools
import math

import numpy as np
import pytest
import scipy.linalg
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import StepLoader, random_examples
from perceiver_moe_diffusion.data.images import ImageSet, digits
from perceiver_moe_diffusion.data.module import DataModule
from perceiver_moe_diffusion.evaluation.metrics import (
    CLASSIFIER_STEPS,
    FeatureSet,
    SmallCNN,
    accuracy_figures,
    accuracy_table,
    bootstrap_mean,
    density_coverage,
    describe_missing,
    diversity_figures,
    frechet_distance,
    is_copy,
    missing_figures,
    nearest_distances,
    quality,
    train_classifier,
    within_class_diversity,
)
from perceiver_moe_diffusion.tools.testing import Elsewhere


@functools.cache
def digits_and_judge():
    "The digits (1,077 to train, 360 held out, 360 to test) and a judge of few steps."
    data = DataModule(digits, val_fraction=0.25)
    return data, train_classifier(data, steps=150)


def test_the_judge_sees_the_training_images_and_nothing_else():
    data = DataModule(digits)
    before = train_classifier(data, steps=3).state_dict()
    hidden = torch.cat([data.val_index, data.test_index])
    data.examples.pixels[hidden] = 0
    data.examples.labels[hidden] = 7
    for name, value in train_classifier(data, steps=3).state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_the_judge_depends_on_its_seed_and_not_on_anyone_elses_random_numbers():
    data = DataModule(digits)
    torch.manual_seed(1)
    a, state = train_classifier(data, 2), torch.get_rng_state()
    torch.manual_seed(1)
    torch.testing.assert_close(torch.get_rng_state(), state)  # training a judge leaves the global generator alone
    torch.manual_seed(2)
    torch.testing.assert_close(train_classifier(data, 2).classify.weight, a.classify.weight, rtol=0, atol=0)
    assert (train_classifier(data, 2, seed=1).classify.weight != a.classify.weight).any()


def test_the_judge_reads_unseen_digits_and_one_image_at_a_time():
    data, judge = digits_and_judge()
    images, labels = data.split("test")
    features, predicted = judge.features_and_labels(images)
    assert features.shape == (360, 64) and features.dtype == torch.float64
    assert (predicted == labels).double().mean() > 0.95
    # no statistics of the batch
    torch.testing.assert_close(judge.features_and_labels(images[5:6])[0], features[5:6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 20), (3, 32, 32), (1, 28, 28), (3, 17, 40)])
def test_the_judge_takes_any_image_of_4_pixels_or_more(shape):
    net = SmallCNN(shape, 7).eval()
    assert net(torch.zeros(2, *shape)).shape == (2, 7)


def test_mistakes_with_the_judge_are_named():
    with pytest.raises(UserError, match="3×8.*4×4 or larger"):
        SmallCNN((1, 3, 8), 10)
    with pytest.raises(UserError, match="steps=0"):
        train_classifier(DataModule(digits), steps=0)


def test_the_judge_is_trained_as_for_every_record():
    import inspect

    seen = []

    def loader(data, index, batch_size, seed):
        seen.append((len(index), batch_size, seed))
        return StepLoader(data, index, batch_size, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train_classifier.__globals__, "StepLoader", loader)
        train_classifier(DataModule(digits), steps=1, seed=3)
        train_classifier(DataModule(digits, shots=5, batch_size=50), steps=1)
    assert [size for _, size, _ in seen] == [128, 50], "128 images, or all that there are"
    assert [seed for _, _, seed in seen] == [3, 0] and seen[1][0] == 50
    assert CLASSIFIER_STEPS == inspect.signature(train_classifier).parameters["steps"].default == 800


def repeated_means(repeats, n=60):
    "Intervals from `repeats` experiments of `n` values each whose true mean is 0; skewed, as distances are."
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.empty(n).exponential_(generator=generator) - 1
    return [bootstrap_mean(draw(), resamples=300, seed=i) for i in range(repeats)]


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    hits = np.mean([mean.low <= 0 <= mean.high for mean in repeated_means(400)])
    assert 0.88 <= hits <= 0.99


def test_the_interval_of_a_mean():
    values = torch.arange(100.0)
    mean = bootstrap_mean(values)
    assert mean.value == pytest.approx(49.5) and mean.low < 49.5 < mean.high
    # the textbook's, for many values
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * float(values.std()) / 10, rel=0.15)
    assert bootstrap_mean(values) == mean and bootstrap_mean(values, seed=1) != mean
    draws = np.random.default_rng(0).integers(100, size=(1000, 100))  # as for every record
    assert mean[1:] == pytest.approx(np.percentile(draws.mean(axis=1), [2.5, 97.5]), rel=1e-12)
    equal = bootstrap_mean(torch.ones(7))
    assert equal == (1, 1, 1) and str(equal) == "1.0000 [1.0000, 1.0000]"
    assert bootstrap_mean(torch.tensor([True, False])).value == 0.5
    with pytest.raises(UserError, match="no values"):
        bootstrap_mean(torch.zeros(0))


def sample_with(mean, root, n=500, seed=0):
    "[n, F] values whose sample mean is exactly `mean` and whose sample covariance is exactly root·rootᵀ."
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ root.T + mean


def test_frechet_distance_of_gaussians_with_diagonal_covariance():
    mean_a, mean_b = torch.tensor([[0.0, 1, 2], [3, 1, -1]], dtype=torch.float64)
    std_a, std_b = torch.tensor([[1.0, 2, 3], [2, 2, 0.5]], dtype=torch.float64)
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    a, b = sample_with(mean_a, std_a.diag()), sample_with(mean_b, std_b.diag(), n=300, seed=1)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a + 2, a) == pytest.approx(4 * 3, rel=1e-9)  # a shift of 2 in three dimensions


def test_frechet_distance_against_the_matrix_root_of_scipy():
    generator = torch.Generator().manual_seed(0)
    for size, n in ((5, 400), (64, 300), (64, 20)):  # the last: fewer images than features, singular covariances
        normal = lambda rows, columns: torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        a = normal(n, size) @ normal(size, size)
        b = normal(n, size) + 0.3
        cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
        root = scipy.linalg.sqrtm((cov_a @ cov_b + 1e-10 * torch.eye(size)).numpy())
        means_and_traces = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace()
        expected = float(means_and_traces) - 2 * np.trace(root).real
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_is_zero_for_itself_symmetric_and_blind_to_order():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, 8, generator=generator) for _ in range(2))
    assert 0 <= frechet_distance(a, a) < 1e-9
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a.flip(0), b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_frechet_distance_needs_a_spread():
    with pytest.raises(UserError, match="between 1 and 5 images.*2 or more"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_density_and_coverage_by_hand():
    real = torch.tensor([[0.0], [1], [2], [3]])  # with k = 1 every neighbourhood has radius 1, its border left out
    assert density_coverage(real, torch.tensor([[0.5]]), k=1) == (2.0, 0.5)           # in the balls of 0 and 1
    assert density_coverage(real, torch.tensor([[0.5], [9.0]]), k=1) == (1.0, 0.5)    # a second one far away
    assert density_coverage(real, torch.tensor([[0.5], [2.5]]), k=1) == (2.0, 1.0)
    assert density_coverage(real, torch.tensor([[4.5]]), k=1) == (0.0, 0.0)


def test_real_points_themselves_score_one():
    real = torch.randn(100, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    density, coverage = density_coverage(real, real, k=5)
    assert density == pytest.approx(1) and coverage == 1  # each lies in its own ball and in k − 1 others on average


def test_collapse_keeps_density_and_loses_coverage():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    centre = 0.01 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
    density, coverage = density_coverage(real, centre)
    assert density > 1 and coverage < 0.3


@pytest.mark.parametrize("n,k", [(5, 5), (3, 5), (5, 0)])
def test_neighbourhoods_need_neighbours(n, k):
    with pytest.raises(UserError, match=f"{n} real images with k={k}"):
        density_coverage(torch.randn(n, 2), torch.randn(9, 2), k)


def some_images(n, seed):
    return torch.randn(n, 1, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_nearest_distances_against_the_obvious_way():
    images, train = some_images(7, 0), some_images(30, 1)
    for image, found in zip(images, nearest_distances(images, train)):
        torch.testing.assert_close(found, torch.stack([(image - other).norm() for other in train]).sort().values[:2])


def test_planted_copies_are_found_and_nothing_else():
    train, images = some_images(50, 0), some_images(20, 1)
    planted = torch.tensor([3, 8, 19])
    images[planted] = train[[5, 0, 49]] + 0.05 * some_images(3, 2)
    assert is_copy(nearest_distances(images, train)).nonzero().flatten().tolist() == planted.tolist()


def test_exact_copies_are_found_even_of_images_that_stand_twice_in_the_training_set():
    train = some_images(50, 0)
    train[1] = train[0]
    distances = nearest_distances(train, train)
    assert (distances[:, 0] == 0).all() and (distances[:2] == 0).all()
    assert is_copy(distances).all()


def test_an_image_between_two_is_near_but_no_copy():
    train = some_images(50, 0)
    between = (train[:1] + train[1:2]) / 2
    distances = nearest_distances(between, train)
    torch.testing.assert_close(distances[0, 0], distances[0, 1])
    assert not is_copy(distances).any()


def test_a_training_set_of_one_is_refused():
    with pytest.raises(UserError, match="training set of 1 images"):
        nearest_distances(some_images(3, 0), some_images(1, 1))


def test_a_copy_is_near_compared_with_the_second_nearest_not_near_as_such():
    distances = torch.tensor([[0.2, 0.3], [0.2, 0.61], [12.0, 35.0], [12.0, 37.0], [0.0, 0.0]])
    assert is_copy(distances).tolist() == [False, True, False, True, True]
    assert is_copy(distances, ratio=0.7).tolist() == [True] * 5


def test_diversity_by_hand():
    features = torch.tensor([[0.0, 0], [3, 4], [10, 0], [10, 1], [10, 3], [7, 7]])
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    expected = torch.tensor([5, 5, 2, 1.5, 2.5, 0], dtype=torch.float64)
    torch.testing.assert_close(within_class_diversity(features, labels), expected)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    torch.testing.assert_close(within_class_diversity(features[order], labels[order]), expected[order])


def test_a_collapsed_set_has_no_diversity_however_far_apart_its_classes_are():
    labels = torch.arange(10).repeat_interleave(30)
    features = torch.randn(10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[labels]
    nothing = torch.zeros(300, dtype=torch.float64)
    torch.testing.assert_close(within_class_diversity(features, labels), nothing, rtol=0, atol=1e-5)


@functools.cache
def controls():
    "name -> (images, labels) of models with known faults, 350 images each."
    data, judge = digits_and_judge()
    images, labels = (part[:350] for part in data.split("val"))
    train_images, train_labels = data.split("train")
    means = torch.stack([train_images[train_labels == label].mean(dim=0) for label in range(10)])
    typical = 0.4 * images + 0.6 * means[labels]
    to_mean = (images - means[labels]).flatten(1).norm(dim=1)
    best = torch.stack([to_mean.masked_fill(labels != label, math.inf).argmin() for label in range(10)])
    generator = torch.Generator().manual_seed(0)
    return {
        "held-out": (images, labels),
        "memorised": random_examples(data, "train", 350, seed=1),
        "typical": (typical, labels),
        "one per class": (images[best[labels]], labels),
        "wrong labels": (images, labels[torch.randperm(350, generator=generator)]),
        "noise": (torch.randn(images.shape, generator=generator).clamp(-1, 1), labels),
    }


@functools.cache
def judged_controls():
    data, judge = digits_and_judge()
    return {name: quality(judge, data, control, control) for name, control in controls().items()}


def test_real_held_out_images_score_about_the_floor():
    row = judged_controls()["held-out"]
    assert row["fd"] < 1.3 * row["fd_floor"] and row["fd_images"] == 350
    assert row["conditional_accuracy_s1"].value > 0.95 and row["classifier_accuracy_on_test"].value > 0.95
    assert row["coverage"] > 0.93 * row["coverage_floor"] and abs(row["density"] - row["density_floor"]) < 0.25
    assert row["memorisation"].value <= 0.01 and row["memorisation_floor"].value <= 0.01
    assert 0.85 < row["diversity"].value < 1.15
    assert row["nearest_distance"].value == pytest.approx(row["nearest_distance_floor"].value, rel=0.1)


def test_a_memoriser_is_caught_by_its_copies_and_by_nothing_else():
    row, real = judged_controls()["memorised"], judged_controls()["held-out"]
    assert row["memorisation"].value == 1 and row["nearest_distance"].value == 0
    assert row["fd"] < 1.3 * row["fd_floor"] and row["coverage"] > 0.9 * real["coverage"]


def test_noise_is_far_away():
    row = judged_controls()["noise"]
    assert row["fd"] > 20 * row["fd_floor"] and row["coverage"] < 0.1 and row["density"] < 0.3
    assert row["conditional_accuracy_s1"].value < 0.3


def test_one_image_per_class_is_accurate_and_nothing_else():
    row = judged_controls()["one per class"]
    assert row["conditional_accuracy"] > 0.99
    assert row["diversity"].value < 1e-3 and row["coverage"] < 0.3 and row["fd"] > 5 * row["fd_floor"]


def test_typical_images_beat_real_ones_in_accuracy_and_lose_diversity():
    row, real = judged_controls()["typical"], judged_controls()["held-out"]
    assert row["conditional_accuracy_s1"].value > real["conditional_accuracy_s1"].value
    assert row["diversity"].value < 0.8 and row["fd"] > 2 * row["fd_floor"]


def test_only_accuracy_sees_wrong_labels():
    row, real = judged_controls()["wrong labels"], judged_controls()["held-out"]
    assert row["conditional_accuracy"] < 0.25
    assert (row["fd"], row["coverage"], row["density"]) == (real["fd"], real["coverage"], real["density"])


def test_the_table_of_accuracies_has_the_classes_that_occur():
    _, judge = digits_and_judge()
    labels = torch.tensor([0, 0, 0, 2])
    judged = FeatureSet(torch.zeros(4, 1, 8, 8), labels, torch.zeros(4, 64), torch.tensor([0, 1, 0, 2]))
    table = accuracy_table(judged, ["zero", "one", "two"])
    assert {name: round(mean.value, 3) for name, mean in table.items()} == {"all": 0.75, "zero": 0.667, "two": 1.0}
    table = accuracy_table(judged, ["all", "one", "two"])
    assert {name: round(mean.value, 3) for name, mean in table.items()} == {"all": 0.75, "class all": 0.667, "two": 1.0}


def test_quality_draws_its_real_images_by_seed_and_takes_no_more_than_there_are():
    data, judge = digits_and_judge()
    images, labels = data.split("val")
    few = (images[:40], labels[:40])
    a, b, other = (quality(judge, data, few, few, seed=seed) for seed in (0, 0, 1))
    assert a == b and a["fd"] != other["fd"]
    many = (images.repeat(2, 1, 1, 1), labels.repeat(2))
    with pytest.raises(UserError, match="720 images to compare with 360 test images"):
        quality(judge, data, few, many)
    assert quality(judge, data, many, few)["conditional_accuracy"] > 0.9, "the guided set may be as large as you like"


def small_data(classes, each, side=8, seed=0, test=0, **settings):
    "A data module of so many classes of random images."
    pixels = torch.randint(256, (classes * each, 1, side, side), generator=torch.Generator().manual_seed(seed))
    names = [f"class {i}" for i in range(classes)]
    data = ImageSet(pixels.to(torch.uint8), torch.arange(classes * each) % classes, names, 256, official_test=test)
    return DataModule(lambda root: data, **settings)


def figures_of(data, judge=None):
    "The figures of real images, as if a model had drawn them."
    drawn = data.split("train")
    return quality(judge, data, drawn, random_examples(data, "test", 1000, seed=1))


@pytest.mark.parametrize("classes, each, side, missing", [
    (2, 12, 8, {"fd": "5 test images; 64 features need at least 65", "density": "5 test images; k=5 needs at least 6",
                "coverage": "5 test images; k=5 needs at least 6"}),
    (2, 15, 8, {"fd": "6 test images; 64 features need at least 65"}),
    (2, 160, 8, {"fd": "64 test images; 64 features need at least 65"}),
    (2, 163, 8, {}),
    (9, 6, 8, {"fd": "11 test images; 64 features need at least 65"}),
])
def test_what_cannot_be_had_is_known_and_left_out_and_nothing_else(classes, each, side, missing):
    data = small_data(classes, each, side)
    assert missing_figures(data) == missing
    figures = figures_of(data, train_classifier(data, 2))
    assert figures.pop("not_computed", {}) == missing
    wanted = ["conditional_accuracy", "fd", "density", "coverage", "diversity", "memorisation", "nearest_distance"]
    assert [name for name in wanted if name not in figures] == list(missing)
    assert not any(name.removesuffix("_floor") in missing for name in figures)
    flat = [x for v in figures.values() for x in (v if isinstance(v, (tuple, list)) else [v]) if isinstance(x, float)]
    assert all(map(math.isfinite, flat))


@pytest.mark.parametrize("data, why", [
    (small_data(1, 20), "one class, so a judge has nothing to tell apart"),
    (small_data(2, 20, side=3), "images of 3×3; the judge needs 4×4"),
])
def test_without_a_judge_the_figures_of_pixels_are_left(data, why):
    figures = figures_of(data)
    judged = ["conditional_accuracy", "fd", "density", "coverage", "diversity"]
    assert figures.pop("not_computed") == missing_figures(data) == dict.fromkeys(judged, why)
    assert sorted(figures) == ["memorisation", "memorisation_floor", "nearest_distance", "nearest_distance_floor"]


def test_diversity_needs_images_of_a_class_that_differ():
    data = small_data(2, 20, test=2)
    assert missing_figures(data)["diversity"] == "no class has two test images"
    assert "diversity" not in figures_of(data, train_classifier(data, 2))
    data = small_data(2, 20, test=6)
    data.examples.pixels[data.test_index] = 7
    assert "diversity" not in missing_figures(data), "that shows only when the images are looked at"
    figures = figures_of(data, train_classifier(data, 2))
    assert figures["not_computed"]["diversity"] == "the test images of a class do not differ"
    assert "diversity" not in figures and "diversity_s1" not in figures


def test_copies_need_two_training_images():
    data = small_data(2, 20)
    data.train_index = data.train_index[:1]
    assert list(missing_figures(data))[-2:] == ["memorisation", "nearest_distance"]
    assert "memorisation" not in figures_of(data)


def test_fewer_images_may_be_asked_for_than_there_are():
    data = small_data(2, 170)
    assert missing_figures(data) == {} == missing_figures(data, max_fd_images=6)
    assert missing_figures(data, max_fd_images=5) == dict.fromkeys(["density", "coverage"],
                                                                   "5 test images; k=5 needs at least 6")


def test_the_line_has_one_reason_for_several_figures():
    assert describe_missing({}) == ""
    missing = {"fd": "why", "density": "few", "coverage": "few", "diversity": "few"}
    assert describe_missing(missing) == "not computed: fd (why); density, coverage and diversity (few)"


def test_every_image_needs_a_label():
    _, judge = digits_and_judge()
    with pytest.raises(UserError, match="3 images with 2 labels"):
        FeatureSet.of(judge, torch.zeros(3, 1, 8, 8), torch.zeros(2, dtype=torch.long))


def test_images_of_another_device_are_judged_on_the_cpu():
    data, judge = digits_and_judge()
    images, labels = (part[:40] for part in data.split("val"))
    elsewhere = (images.as_subclass(Elsewhere), labels.as_subclass(Elsewhere))
    with pytest.raises(RuntimeError, match="two devices"):
        judge.features_and_labels(elsewhere[0])
    assert quality(judge, data, elsewhere, elsewhere) == quality(judge, data, (images, labels), (images, labels))


def test_a_random_part_has_no_image_twice():
    data, _ = digits_and_judge()
    images, labels = random_examples(data, "test", 10_000, seed=0)
    assert sorted(images.flatten(1).sum(dim=1).tolist()) == sorted(data.split("test")[0].flatten(1).sum(dim=1).tolist())
    assert labels.bincount().tolist() == data.split("test")[1].bincount().tolist()
    assert len(random_examples(data, "test", 7, seed=0)[1]) == 7


def test_the_figures_of_accuracy_tell_mean_and_interval_of_each_set():
    def seen(right, n=40):
        "A set of which so many are what was asked for."
        labels = torch.arange(n) % 2
        said = torch.where(torch.arange(n) < right, labels, 1 - labels)
        return FeatureSet(torch.zeros(n, 1, 8, 8), labels, torch.zeros(n, 64), said)

    guided, conditional, test = seen(30), seen(20), seen(36)
    found = accuracy_figures(guided, conditional, test, ["zero", "one"])
    mean = bootstrap_mean(guided.correct)
    assert found["conditional_accuracy"] == mean.value == 0.75
    assert found["conditional_accuracy_interval"] == (mean.low, mean.high) and mean.low < 0.75 < mean.high
    assert found["conditional_accuracy_s1"].value == 0.5 and found["classifier_accuracy_on_test"].value == 0.9
    assert list(found["conditional_accuracy_by_class"]) == ["zero", "one"]


def test_diversity_is_told_as_a_share_of_that_of_real_images():
    def spread(by):
        "A set of two classes with these distances within them, times so much."
        features = by * torch.tensor([[0.0], [4.0], [1.0], [3.0]], dtype=torch.float64)
        return FeatureSet(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), features, torch.zeros(4))

    found = diversity_figures(guided=spread(0.5), conditional=spread(2.0), test=spread(5.0))
    assert found["diversity"].value == pytest.approx(0.1) and found["diversity_s1"].value == pytest.approx(0.4)
    assert found["diversity"].low < 0.1 < found["diversity"].high
