# Made from nbs/61_figures.ipynb by `pmd-dev tests`. Edit the notebook.
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.diffusion.sampling import SamplerStep
from perceiver_moe_diffusion.figures import (
    draw_image,
    house_style,
    save_figure,
    show_curves,
    show_grid,
    show_load,
    show_trajectory,
)
from perceiver_moe_diffusion.models.moe import Routing


def numbered(n, channels, height, width):
    "[n, C, H, W] where every pixel has a value of its own in [−1, 1]."
    return torch.linspace(-1, 1, n * channels * height * width).view(n, channels, height, width)


def test_the_style_stays_inside_its_block_and_does_not_depend_on_the_theme():
    with plt.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        with house_style():
            assert matplotlib.rcParams["figure.facecolor"] == "white" and matplotlib.rcParams["text.color"] == "black"
        assert dict(matplotlib.rcParams) == before
        figure = show_curves({"a": ([0, 1], [0, 1])}, "x", "y")
    assert figure.get_facecolor() == (1, 1, 1, 1)


def test_an_error_inside_the_block_leaves_no_style_behind():
    before = dict(matplotlib.rcParams)
    with pytest.raises(RuntimeError), house_style():
        raise RuntimeError
    assert dict(matplotlib.rcParams) == before


def test_names_stand_at_the_middle_of_their_images():
    figure = show_grid(numbered(6, 1, 4, 10), 3, ["a", "b"], ["x", "y", "z"], title="t")
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["x", "y", "z"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"] and ax.get_title() == "t"
    # pixel i is drawn around the coordinate i; images of 10 pixels start at 0, 11 and 22
    np.testing.assert_allclose(ax.get_xticks(), [4.5, 15.5, 26.5])
    np.testing.assert_allclose(ax.get_yticks(), [1.5, 6.5])


@pytest.mark.parametrize("names", [dict(row_names=["a"]), dict(row_names=["a"] * 3), dict(column_names=["x", "y"])])
def test_a_wrong_number_of_names_is_refused(names):
    with pytest.raises(UserError, match="names for"):
        show_grid(numbered(6, 1, 4, 4), 3, **names)


def test_a_wrong_number_of_images_is_refused_before_anything_is_drawn():
    with pytest.raises(UserError, match="5 images in 3 columns"):
        show_grid(numbered(5, 1, 4, 4), 3)
    assert plt.get_fignums() == []


def test_figures_do_not_pile_up_in_pyplot():
    show_grid(numbered(2, 3, 4, 4), 2)
    show_curves({"a": ([0, 1], [0, 1])}, "x", "y")
    show_load(torch.ones(2, 3))
    assert plt.get_fignums() == []


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_drawn_pixel_by_pixel_and_clipped(channels):
    image = 2 * numbered(1, channels, 3, 5)[0]  # from −2 to 2: a half lies outside
    _, axes = plt.subplots()
    draw_image(axes, image, "a title")
    plt.close(axes.figure)
    shown = np.asarray(axes.images[0].get_array())
    assert axes.get_title() == "a title" and shown.shape == ((3, 5) if channels == 1 else (3, 5, 3))
    expected = (image.clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown.reshape(3, 5, channels), expected)
    assert axes.images[0].get_clim() == (0, 1), "the grey scale does not depend on the image"


def fake_steps(n):
    "Steps whose images tell them apart: x is filled by the step's number, x0 by its negative."
    fill = lambda value: torch.full((2, 1, 3, 3), float(value))
    return [SamplerStep(n - i, n - i - 1, fill(i / n), fill(-i / n), 0.5, fill(0)) for i in range(n)]


@pytest.mark.parametrize("n,columns,expected", [
    (5, 12, [5, 4, 3, 2, 1]), (100, 4, [100, 67, 34, 1]), (9, 3, [9, 5, 1]), (1, 12, [1]), (7, 1, [7])])
def test_a_trajectory_shows_the_first_and_the_last_step_and_some_between(n, columns, expected):
    figure = show_trajectory(fake_steps(n), columns)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"t={t}" for t in expected]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x_t", "predicted x0"]
    array = np.asarray(ax.images[0].get_array())
    middle = lambda row: [float(array[4 * row + 1, 4 * i + 1]) for i in range(len(expected))]
    shown = [(n - t) / n for t in expected]
    np.testing.assert_allclose(middle(0), [value / 2 + 0.5 for value in shown], atol=1e-6)
    np.testing.assert_allclose(middle(1), [-value / 2 + 0.5 for value in shown], atol=1e-6)


def test_a_trajectory_without_steps_is_refused():
    with pytest.raises(UserError, match="0 steps"):
        show_trajectory([])


def routing_by(shares, rows=1200, top_k=1):
    "A `Routing` of `rows` rows whose experts occur in the given shares."
    counts = (torch.tensor(shares) / sum(shares) * rows * top_k).round().long()
    index = torch.repeat_interleave(torch.arange(len(shares)), counts).view(-1, top_k)
    return Routing(index, torch.ones(index.shape) / top_k, torch.zeros(len(index), len(shares)))


@pytest.mark.parametrize("layers,names", [(1, ["decoder"]), (3, ["latent block 0", "latent block 1", "decoder"])])
def test_the_load_picture_names_its_layers_and_axes(layers, names):
    load = torch.rand(layers, 5, generator=torch.Generator().manual_seed(0))
    figure = show_load(load)
    assert [ax.get_title() for ax in figure.axes] == names
    assert all(ax.get_xlabel() == "expert" for ax in figure.axes) and "uniform" in figure.axes[0].get_ylabel()
    for ax, shares in zip(figure.axes, load):
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], shares.numpy(), rtol=1e-6)


def test_curves_have_labelled_axes_their_data_and_a_legend_where_it_helps():
    figure = show_curves(
        {"a": ([1, 2, 3], [4, 5, 6]), "b": ([1, 2], [7, 8])}, "step", "loss", "title", logx=True, logy=True
    )
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_xscale(), ax.get_yscale()) == (
        "step",
        "loss",
        "title",
        "log",
        "log",
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert [line.get_ydata().tolist() for line in ax.lines] == [[4, 5, 6], [7, 8]]
    assert len({line.get_color() for line in ax.lines}) == 2
    alone = show_curves({"a": ([1, 2], [3, 4])}, "x", "y").axes[0]
    assert alone.get_legend() is None and alone.get_xscale() == alone.get_yscale() == "linear"



@pytest.mark.parametrize("spread", [1.5, 10, 1e4])
def test_logarithmic_axes_have_numbers_and_no_formulas(spread):
    figure = show_curves({"a": ([1, spread], [0.001, 0.001 * spread])}, "x", "y", logx=True, logy=True)
    figure.canvas.draw()
    axis = figure.axes[0].yaxis
    texts = [label.get_text() for label in (*axis.get_ticklabels(), *axis.get_ticklabels(minor=True))]
    assert [float(text) for text in texts if text], "each is a number"
    assert not [text for text in texts if "$" in text or "e" in text and spread < 1e4]


def read_png(path):
    "[H, W, channels] in [0, 1] of a PNG that has been checked to be one."
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.verify()
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")) / 255


PICTURES = {
    "samples": lambda: show_grid(torch.rand(50, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1, 5,
                                 [str(i) for i in range(10)], [f"s={s}\nw={s - 1}" for s in range(5)]),
    "trajectory": lambda: show_trajectory(fake_steps(12)),
    "load": lambda: show_load(torch.rand(4, 8, generator=torch.Generator().manual_seed(0))),
    "curves": lambda: show_curves({"a": (range(2000), np.random.default_rng(0).random(2000))}, "step", "loss"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_saved_figure_is_a_png_of_at_most_100_kb_and_alone_in_its_folder(name, tmp_path):
    path = tmp_path / f"{name}.png"
    save_figure(PICTURES[name](), path)
    array = read_png(path)
    assert array.min() < 0.5 and array[0, 0].tolist() == [1, 1, 1], "something is drawn, on white"
    assert path.stat().st_size <= 100 * 1024
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name, first", [
    ("a.png", b"\x89PNG"), ("a.PNG", b"\x89PNG"), ("f.pdf", b"%PDF-"), ("f.svg", b"<?xml"), ("f.jpg", b"\xff\xd8\xff")])
def test_a_file_is_what_its_name_says(name, first, tmp_path):
    save_figure(show_load(torch.ones(1, 2)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(first) and [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["without_ending", "f.docx", "f.", ".png"])
def test_a_name_that_promises_what_cannot_be_written_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"allowed: a file name that ends in .*\.pdf.*\.png"):
        save_figure(show_load(torch.ones(1, 2)), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_names_of_classes_are_shown_as_they_are(tmp_path):
    names = ["$5", r"$\frac$", "a_b^c", "100 %"]
    save_figure(show_grid(torch.zeros(4, 1, 2, 2), 2, names[:2], names[2:], title="$ and $"), tmp_path / "a.png")
    figure = show_grid(torch.zeros(4, 1, 2, 2), 2, names[:2], names[2:])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names[:2]
    assert read_png(tmp_path / "a.png").min() < 0.5


class Interrupted:
    "A figure whose writing fails half-way."

    def savefig(self, file, **options):
        Path(file).write_bytes(b"\x89PNG half of")
        raise KeyboardInterrupt


def test_an_interrupted_write_leaves_the_old_picture(tmp_path):
    path = tmp_path / "loss.png"
    save_figure(show_load(torch.ones(1, 2)), path)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        save_figure(Interrupted(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
