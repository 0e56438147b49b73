# Made from nbs/60_image_grid.ipynb by `pmd-dev tests`. Edit the notebook.
import numpy as np
import pytest
import torch
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.image_grid import tile


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
