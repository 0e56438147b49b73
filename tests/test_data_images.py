# Made from nbs/40_images.ipynb by `pmd-dev tests`. Edit the notebook.
import gzip
import hashlib
import pickle
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.images import (
    FIRST_LABELS,
    IDX_FILES,
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


LAYOUTS = {
    "torchvision": "MNIST/raw", "flat": ".", "raw": "raw", "named": "MNIST", "a level too high": "data/MNIST/raw",
    "a level too high, flat": "my-mnist",
}


@pytest.mark.parametrize("packed", [0, 1, 2], ids=["plain", "packed", "packed twice"])
@pytest.mark.parametrize("dotted", [False, True], ids=["hyphen", "dot"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_by_hand_are_found_in_every_layout_and_spelling(layout, dotted, packed, tmp_path, monkeypatch):
    no_network(monkeypatch, AssertionError("nothing may be downloaded"))
    pixels = write_mnist(tmp_path / "made")
    place = tmp_path / "there" / LAYOUTS[layout]
    place.mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "made" / "MNIST" / "raw").iterdir():
        data = path.read_bytes()
        for _ in range(packed):
            data = gzip.compress(data)
        name = path.name.replace("-idx", ".idx") if dotted else path.name
        (place / (name + ".gz" * (packed > 0))).write_bytes(data)
    for root in (tmp_path / "there", place, next(place.iterdir())):  # as it should be, too deep, a file
        data = mnist(str(root))
        torch.testing.assert_close(data.pixels, pixels.unsqueeze(1), rtol=0, atol=0)
        assert data.labels.tolist() == [i % 10 for i in range(80)] and data.official_test == 20


def test_what_is_read_is_what_torchvision_reads(tmp_path):
    from torchvision import datasets
    write_mnist(tmp_path)
    data = mnist(str(tmp_path))
    halves = [datasets.MNIST(tmp_path, train=train) for train in (True, False)]
    assert torch.equal(data.pixels[:, 0], torch.cat([half.data for half in halves]))
    assert torch.equal(data.labels, torch.cat([half.targets for half in halves]))
    assert data.class_names == halves[0].classes


@pytest.mark.parametrize("missing", IDX_FILES)
def test_a_part_of_the_files_is_not_downloaded_over(missing, tmp_path, monkeypatch):
    no_network(monkeypatch, AssertionError("nothing may be downloaded"))
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / missing).unlink()
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"MNIST.raw holds .* of MNIST but not {missing}. Put the missing files beside"):
        mnist(str(tmp_path))
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_kin_are_not_taken_for_each_other(tmp_path, monkeypatch):
    no_network(monkeypatch, RuntimeError("no network here"))
    write_mnist(tmp_path, name="FashionMNIST")
    (tmp_path / "FashionMNIST" / "raw").rename(tmp_path / "fashion-mnist")
    with pytest.raises(UserError, match="MNIST is not in data.root"):
        mnist(str(tmp_path))
    assert len(fashion_mnist(str(tmp_path)).labels) == 80
    for name, source in {"MNIST": fashion_mnist, "FashionMNIST": mnist}.items():
        place = tmp_path / f"files of {name}"
        write_mnist(place, name="raw")
        labels = torch.arange(60) % 10
        labels[:10] = torch.tensor(FIRST_LABELS[name])
        write_idx(place / "raw" / "raw" / "train-labels-idx1-ubyte", labels)
        with pytest.raises(UserError, match=f"as .*MNIST is not possible; .*These are {name}"):
            source(str(place / "raw"))


def test_two_places_are_a_question(tmp_path, monkeypatch):
    no_network(monkeypatch, AssertionError("nothing may be downloaded"))
    write_mnist(tmp_path / "a")
    write_mnist(tmp_path / "b")
    with pytest.raises(UserError, match="with MNIST in .*a.MNIST.raw and in .*b.MNIST.raw .*one of these"):
        mnist(str(tmp_path))
    write_mnist(tmp_path)
    assert len(mnist(str(tmp_path)).labels) == 80, "what lies where it should is taken"


@pytest.mark.parametrize("file, change, said", [
    ("train-labels-idx1-ubyte", torch.arange(59) % 10, "train-labels-idx1-ubyte with 59 labels for 60 images"),
    ("t10k-labels-idx1-ubyte", torch.arange(20), "t10k-labels-idx1-ubyte with the label 19 .*0 to 9"),
    ("t10k-images-idx3-ubyte", torch.zeros(20, 14, 14), "of .28, 28. pixels and test images of .14, 14."),
    ("train-images-idx3-ubyte", torch.zeros(60, 28), "train-images-idx3-ubyte of 1,692 bytes as images .*3 axes"),
    ("train-images-idx3-ubyte", torch.zeros(0, 28, 28), "train-images-idx3-ubyte of 16 bytes as images"),
])
def test_files_that_do_not_belong_together_are_named(file, change, said, tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "MNIST" / "raw" / file, change)
    with pytest.raises(UserError, match=said):
        mnist(str(tmp_path))


def test_a_damaged_packed_file_is_named(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    whole = gzip.compress(path.read_bytes())
    flipped = bytes([*whole[:40], whole[40] ^ 8, *whole[41:]])
    for damaged in (whole[:-20], flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="t10k-images-idx3-ubyte cannot be read"):
            mnist(str(tmp_path))


def write_cifar(monkeypatch, place: Path) -> torch.Tensor:  # [12, 3, 32, 32], the pixels written
    "The seven files of a small CIFAR-10, two images each, and torchvision told their MD5."
    from torchvision import datasets
    place.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(12, 3, 32, 32), dtype=np.uint8)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    two = pixels.reshape(6, 2, -1)
    batches = {name: {"data": two[i], "labels": [i, 9 - i]} for i, name in enumerate(names)}
    batches["batches.meta"] = {"label_names": [f"class {i}" for i in range(10)]}
    for name, batch in batches.items():
        (place / name).write_bytes(pickle.dumps(batch))
    md5 = {name: hashlib.md5((place / name).read_bytes()).hexdigest() for name in batches}
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, md5[name]] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5["batches.meta"]})
    monkeypatch.setattr(datasets.CIFAR10, "url", "file:///no/such/file")  # the network of this test
    return torch.from_numpy(pixels)


@pytest.mark.parametrize("layout", ["cifar-10-batches-py", ".", "CIFAR10/cifar-10-batches-py", "my cifar"])
def test_cifar_is_found_in_every_layout(layout, tmp_path, monkeypatch):
    place = tmp_path / "there" / layout
    if layout == ".":
        place = tmp_path / "there"
    pixels = write_cifar(monkeypatch, place)
    for root in (tmp_path / "there", place, place / "batches.meta"):
        data = cifar10(str(root))
        assert torch.equal(data.pixels, pixels) and data.pixels.is_contiguous() and data.official_test == 2
        assert data.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5, 5, 4] and data.class_names[3] == "class 3"


def test_a_packed_cifar_is_unpacked_if_it_is_the_published_file(tmp_path, monkeypatch):
    from torchvision import datasets
    pixels = write_cifar(monkeypatch, tmp_path / "made" / "cifar-10-batches-py")
    (tmp_path / "there").mkdir()
    packed = tmp_path / "there" / "cifar-10-python.tar.gz"
    with tarfile.open(packed, "w:gz") as file:
        file.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    with pytest.raises(UserError, match="cifar-10-python.tar.gz is not possible; .*byte for byte"):
        cifar10(str(tmp_path / "there"))
    assert [path.name for path in (tmp_path / "there").iterdir()] == [packed.name], "nothing was unpacked"
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(packed.read_bytes()).hexdigest())
    assert torch.equal(cifar10(str(tmp_path / "there")).pixels, pixels)


def test_a_pickle_that_is_not_the_published_one_is_never_opened(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "code ran",)

    place = tmp_path / "cifar-10-batches-py"
    write_cifar(monkeypatch, place)
    for name in ("data_batch_3", "batches.meta"):
        whole = (place / name).read_bytes()
        (place / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(UserError, match=f"cifar-10-batches-py with {name} is not possible.*could run any code"):
            cifar10(str(tmp_path))
        (place / name).write_bytes(whole)
    (place / "data_batch_2").unlink()
    with pytest.raises(UserError, match="cifar-10-batches-py holds .* of CIFAR-10 but not data_batch_2"):
        cifar10(str(tmp_path))
    assert not (tmp_path / "code ran").exists()


def test_cifar_that_is_nowhere_is_one_line_with_the_place(tmp_path, monkeypatch):
    write_cifar(monkeypatch, tmp_path / "elsewhere")
    with pytest.raises(UserError, match="CIFAR10 is not in data.root=.*none .*cifar-10-batches-py or cifar-10-python"):
        cifar10(str(tmp_path / "none"))


@pytest.mark.parametrize("error", [
    RuntimeError("Error downloading train-images:\nTried a mirror, got: 404"), URLError("no route to host"),
])
def test_a_failing_download_is_one_line_that_says_what_to_do(error, tmp_path, monkeypatch):
    no_network(monkeypatch, error)
    message = "MNIST is not in data.root=.* could not be downloaded .*Put its four files there.*use data=digits"
    with pytest.raises(UserError, match=message) as raised:
        mnist(str(tmp_path / "none"))
    assert str(tmp_path / "none") in str(raised.value) and "\n" not in str(raised.value)
    assert all(file in str(raised.value) for file in IDX_FILES)


@pytest.mark.parametrize("size", [0, 3, 1000])
def test_damaged_files_are_named(size, tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="train-images-idx3-ubyte of .* bytes as images of MNIST's kind"):
        mnist(str(tmp_path))


def test_an_interrupted_download_to_the_cache_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_mnist(tmp_path / ".cache" / "perceiver_moe_diffusion")
    (tmp_path / ".cache" / "perceiver_moe_diffusion" / "MNIST" / "raw" / IDX_FILES[2]).unlink()
    no_network(monkeypatch, RuntimeError("it was asked"))
    with pytest.raises(UserError, match="could not be downloaded .it was asked"):
        mnist(None)


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
