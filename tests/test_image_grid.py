# Made from nbs/60_image_grid.ipynb by `pmd-dev tests`. Edit the notebook.
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.image_grid import png_grid, save_images, tile


def numbered(n, channels, height, width):
    "[n, C, H, W] where every pixel has a value of its own in [−1, 1]."
    return torch.linspace(-1, 1, n * channels * height * width).view(n, channels, height, width)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("gap", [0, 1, 3])
def test_tile_puts_every_pixel_in_its_place(channels, gap):
    images, columns, (height, width) = numbered(6, channels, 2, 5), 3, (2, 5)
    array = tile(images, columns, gap)
    assert array.shape[:2] == (2 * height + gap, 3 * width + 2 * gap) and array.ndim == (2 if channels == 1 else 3)
    free = np.ones(array.shape[:2], dtype=bool)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        expected = (image / 2 + 0.5).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(
            array[y : y + height, x : x + width].reshape(height, width, channels), expected, atol=1e-6
        )
        free[y:y + height, x:x + width] = False
    assert (array[free] == 0.5).all(), "what is left is the gap"


def test_tile_keeps_what_is_out_of_range_inside_and_takes_any_float_with_a_gradient():
    images = torch.tensor([-7.0, 7.0]).view(2, 1, 1, 1).double().requires_grad_()
    np.testing.assert_array_equal(tile(images, 2, gap=0), [[0, 1]])


@pytest.mark.parametrize("n,columns", [(5, 2), (3, 4), (0, 2), (4, 0), (4, -2)])
def test_images_that_do_not_fill_rows_are_refused(n, columns):
    with pytest.raises(UserError, match=f"{n} images in {columns} columns.*whole rows"):
        tile(torch.zeros(n, 1, 2, 2), columns)


@pytest.mark.parametrize("shape", [(4, 2, 2), (4, 2, 2, 2), (4, 4, 2, 2)])
def test_what_is_not_an_image_is_refused(shape):
    with pytest.raises(UserError, match="grey.*RGB"):
        tile(torch.zeros(shape), 2)


def pixels_of(png):
    "[H, W, channels] in [0, 1] of the bytes of a PNG that has been checked to be one."
    with Image.open(BytesIO(png)) as image:
        assert image.format == "PNG"
        image.verify()
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")) / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_every_pixel_is_a_square_of_its_brightness(channels, scale):
    images = numbered(4, channels, 3, 5)
    array, expected = pixels_of(png_grid(images, 2, scale)), tile(images, 2).reshape(7, 11, channels)
    assert array.shape == (7 * scale, 11 * scale, 3)
    expected = np.broadcast_to(expected, (7, 11, 3))
    for y in range(scale):
        for x in range(scale):
            np.testing.assert_allclose(array[y::scale, x::scale], expected, atol=0.501 / 255)


def test_names_stand_in_margins_and_leave_the_images_as_they_are():
    images = numbered(4, 1, 3, 5)
    plain, named = (np.asarray(Image.open(BytesIO(png_grid(images, 2, 3, *names))))
                    for names in ((), (["above", "below"], ["A", "B"])))
    assert named.shape[0] > plain.shape[0] and named.shape[1] > plain.shape[1]
    assert (named[-plain.shape[0]:, -plain.shape[1]:] == plain).all()
    assert (named[:, : -plain.shape[1]] < 128).any() and (named[: -plain.shape[0]] < 128).any(), (
        "something is written in both margins"
    )


@pytest.mark.parametrize("scale", [0, -1])
def test_a_scale_below_one_is_refused(scale):
    with pytest.raises(UserError, match=f"scale={scale} is not possible; allowed: 1 or more"):
        png_grid(numbered(2, 1, 2, 2), 2, scale)


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_images_come_back_pixel_by_pixel(channels, tmp_path):
    images, path = numbered(4, channels, 3, 5), tmp_path / "images.png"
    save_images(images, path, columns=2, scale=3)
    array = pixels_of(path.read_bytes())
    assert array.shape == (3 * 7, 3 * 11, 3)
    expected = tile(images, 2).reshape(7, 11, channels)
    for offset in range(3):  # every pixel is three pixels wide and high
        np.testing.assert_allclose(array[offset::3, offset::3], np.broadcast_to(expected, (7, 11, 3)), atol=0.501 / 255)


def test_the_file_is_a_png_of_exactly_the_name_given(tmp_path):
    save_images(numbered(2, 1, 4, 4), tmp_path / "A.PNG", 2, row_names=["one"], column_names=["left", "right"])
    named = png_grid(numbered(2, 1, 4, 4), 2, row_names=["one"], column_names=["left", "right"])
    assert (tmp_path / "A.PNG").read_bytes() == named and [path.name for path in tmp_path.iterdir()] == ["A.PNG"]


@pytest.mark.parametrize("name", ["without_ending", "wrong.jpg", "f.pdf", ".png"])
def test_a_name_that_promises_another_kind_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"allowed: a file name that ends in \.png"):
        save_images(numbered(2, 1, 4, 4), tmp_path / name, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["猫", "naïve", "two\nlines", "a" * 500, "$x$", "", "\u202eright to left"])
def test_any_name_of_a_class_can_be_written_into_the_margins(name):
    array = pixels_of(png_grid(numbered(2, 1, 4, 4), 2, 4, [name], [name, "b"]))
    assert array.shape[0] == 14 + 4 * 4 and array.shape[1] == 4 * 9 + 8 * (1 + min(len(name), 40))


def test_an_interrupted_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "images.png"
    save_images(numbered(2, 1, 4, 4), path, 2)
    before = path.read_bytes()

    def half(file, content):
        with open(file, "wb") as opened:
            opened.write(content[:len(content) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        save_images(-numbered(2, 1, 4, 4), path, 2)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_mistakes_leave_no_file(tmp_path):
    with pytest.raises(UserError, match="5 images in 2 columns"):
        save_images(numbered(5, 1, 4, 4), tmp_path / "a.png", 2)
    with pytest.raises(UserError, match="scale=0"):
        save_images(numbered(4, 1, 4, 4), tmp_path / "a.png", 2, scale=0)
    assert list(tmp_path.iterdir()) == []
