# Made from nbs/40_images.ipynb by `pmd-dev tests`. Edit the notebook.
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import (
    ImageSet,
    cifar10,
    class_counts,
    describe,
    digits,
    fashion_mnist,
    mnist,
    resized,
)


def test_images_fill_the_range_and_convert_back_exactly():
    data = digits()
    images = data.inputs()
    assert images.dtype == torch.float32 and images.min() == -1 and images.max() == 1
    assert len(images.unique()) == data.levels == 17
    back = ((images + 1) / 2 * (data.levels - 1)).round().to(torch.uint8)
    torch.testing.assert_close(back, data.pixels, rtol=0, atol=0)


@pytest.mark.parametrize("levels", [2, 17, 42, 256])
def test_every_level_of_a_pixel_survives(levels):
    pixels = torch.arange(levels).to(torch.uint8).view(-1, 1, 1, 1)
    data = ImageSet(pixels, torch.zeros(levels, dtype=torch.long), ["any"], levels)
    images = data.inputs()
    assert images.min() == -1 and images.abs().max() <= 1
    evenly = torch.linspace(-1, 1, levels, dtype=torch.double)
    torch.testing.assert_close(images[:, 0, 0, 0].double(), evenly, rtol=0, atol=2e-7)


def test_the_digits_are_what_scikit_learn_publishes():
    data = digits()
    assert data.pixels.shape == (1797, 1, 8, 8) and data.pixels.dtype == torch.uint8
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.official_test == 0 and data.class_names == list("0123456789")


def test_a_line_tells_what_a_data_set_holds():
    assert describe(digits()).startswith("1,797 images, 10 classes (0 178, 1 182, ")
    assert describe(digits()).endswith("9 180), 8×8 grey")
    one = ImageSet(torch.zeros(1, 3, 4, 6, dtype=torch.uint8), torch.zeros(1).long(), ["cat"], 256)
    assert describe(one) == "1 image, 1 class (cat 1), 6×4 RGB"
    labels, names = torch.arange(13), [f"n{i}" for i in range(13)]
    assert class_counts(labels, names).endswith("n9 1, and 3 more)")
    assert "more" not in class_counts(labels[:12], names[:12])


def write_idx(path: Path, array: torch.Tensor) -> None:
    "A file in MNIST's format: two zero bytes, the type (8: bytes), the number of axes, their sizes, the values."
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.to(torch.uint8).numpy().tobytes())


def write_mnist(
    root: Path, train: int = 60, test: int = 20, name: str = "MNIST"
) -> torch.Tensor:  # [train + test, 28, 28], the pixels written
    "The four files of MNIST as torchvision leaves them on disk, with few images; label of image i: i mod 10."
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    pixels = torch.randint(256, (train + test, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for prefix, part in [("train", slice(0, train)), ("t10k", slice(train, None))]:
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels[part])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", torch.arange(train + test)[part] % 10)
    return pixels


def no_network(monkeypatch, error: Exception) -> None:
    "Let every download of MNIST and its relatives fail with `error`."
    from torchvision import datasets

    def fail(self):
        raise error
    monkeypatch.setattr(datasets.MNIST, "download", fail)


@pytest.mark.parametrize("source, name", [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
def test_data_on_disk_is_read_without_a_download(source, name, tmp_path, monkeypatch):
    no_network(monkeypatch, AssertionError("nothing may be downloaded"))
    pixels = write_mnist(tmp_path, name=name)
    data = source(str(tmp_path))
    torch.testing.assert_close(data.pixels, pixels.unsqueeze(1), rtol=0, atol=0)
    assert data.labels.tolist() == [i % 10 for i in range(80)] and data.labels.dtype == torch.long
    assert (data.levels, data.official_test, len(data.class_names)) == (256, 20, 10)


@pytest.mark.parametrize("root, folder", [("~/pictures", "pictures"), (None, ".cache/perceiver_moe_diffusion")])
def test_the_home_folder_is_found(root, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    no_network(monkeypatch, AssertionError("nothing may be downloaded"))
    write_mnist(tmp_path / folder)
    assert len(mnist(root).labels) == 80


def test_colour_images_come_with_their_channels_first(monkeypatch):
    from torchvision import datasets
    pixels = np.random.default_rng(0).integers(256, size=(6, 32, 32, 3), dtype=np.uint8)

    class SmallCIFAR:
        classes = [f"class {i}" for i in range(10)]

        def __init__(self, root, train, download):
            part = slice(0, 4) if train else slice(4, 6)
            self.data, self.targets = pixels[part], list(range(6))[part]

        def __len__(self):
            return len(self.data)

    monkeypatch.setattr(datasets, "CIFAR10", SmallCIFAR)
    data = cifar10()
    assert data.labels.tolist() == list(range(6)) and data.class_names == SmallCIFAR.classes
    assert data.pixels.shape == (6, 3, 32, 32) and data.pixels.is_contiguous() and data.official_test == 2
    np.testing.assert_array_equal(data.pixels[5, 2].numpy(), pixels[5, :, :, 2])


@pytest.mark.parametrize("error", [
    RuntimeError("Error downloading train-images:\nTried a mirror, got: 404"), URLError("no route to host"),
])
def test_a_failing_download_is_one_line_that_says_what_to_do(error, tmp_path, monkeypatch):
    no_network(monkeypatch, error)
    message = "MNIST is not in data.root=.* could not be downloaded .*use data=digits"
    with pytest.raises(UserError, match=message) as raised:
        mnist(str(tmp_path / "none"))
    assert str(tmp_path / "none") in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [0, 3, 1000])
def test_damaged_files_are_named(size, tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="The files of MNIST in data.root=.* cannot be read"):
        mnist(str(tmp_path))


def test_a_smaller_pixel_is_the_mean_of_what_it_covers():
    data, small = digits(), resized(None, digits, 4)
    means = data.pixels.float().unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(small.pixels.float(), means.round())
    assert (small.labels is data.labels or torch.equal(small.labels, data.labels)) and small.levels == data.levels


def test_a_colour_becomes_its_brightness():
    rgb = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], dtype=torch.uint8)
    colours = rgb.view(4, 3, 1, 1).expand(-1, -1, 6, 6)
    data = lambda root: ImageSet(colours, torch.arange(4), list("rgbw"), 256)
    assert resized(None, data, 3, grey=True).pixels[:, 0, 2, 2].tolist() == [76, 150, 29, 90]
    assert resized(None, data, 3).pixels.shape == (4, 3, 3, 3)
    with pytest.raises(UserError, match="data.dataset.size=0"):
        resized(None, data, 0)
