# Made from nbs/01_data.ipynb by `pmd-dev tests`. Edit the notebook.
import numpy as np
import os
import pytest
import subprocess
import sys
import torch
from PIL import Image
from itertools import combinations
from itertools import islice
from pathlib import Path
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data import Batch
from perceiver_moe_diffusion.data import CropFlip
from perceiver_moe_diffusion.data import ImageDataModule
from perceiver_moe_diffusion.data import ImageSet
from perceiver_moe_diffusion.data import StepLoader
from perceiver_moe_diffusion.data import cifar10
from perceiver_moe_diffusion.data import digits
from perceiver_moe_diffusion.data import fashion_mnist
from perceiver_moe_diffusion.data import few
from perceiver_moe_diffusion.data import image_folder
from perceiver_moe_diffusion.data import mnist
from perceiver_moe_diffusion.data import only
from perceiver_moe_diffusion.data import resized
from perceiver_moe_diffusion.data import split
from perceiver_moe_diffusion.data import torchvision_error
from types import SimpleNamespace
from urllib.error import URLError


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
    torch.testing.assert_close(images[:, 0, 0, 0].double(), torch.linspace(-1, 1, levels, dtype=torch.double), rtol=0, atol=2e-7)


def test_the_digits_are_what_scikit_learn_publishes():
    data = digits()
    assert data.pixels.shape == (1797, 1, 8, 8) and data.pixels.dtype == torch.uint8
    assert data.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.official_test == 0 and data.class_names == list("0123456789")


def test_few_images_of_each_class_and_more_hold_the_fewer():
    data = digits()
    train, _, _ = split(data, 0.1, 0.2, seed=0)
    five, twenty = (few(train, data.labels, n, seed=0) for n in (5, 20))
    assert data.labels[five].bincount().tolist() == [5] * 10 and data.labels[twenty].bincount().tolist() == [20] * 10
    assert set(five.tolist()) < set(twenty.tolist()) < set(train.tolist())
    assert not torch.equal(five, few(train, data.labels, 5, seed=1))
    for shots in (0, 1000):
        with pytest.raises(UserError, match=f"data.shots={shots} .* 1 to 12"):
            few(train, data.labels, shots, seed=0)


def test_some_classes_are_numbered_anew_and_stay_in_their_part():
    data = digits()._replace(official_test=300)
    parts = split(data, 0.1, 0.2, seed=0)
    some, some_parts = only(data, parts, [8, 3])
    assert some.class_names == ["8", "3"] and some.official_test == int(torch.isin(data.labels[-300:], torch.tensor([3, 8])).sum())
    for index, (images, labels) in zip(some_parts, ((data.pixels[part], data.labels[part]) for part in parts)):
        wanted = torch.isin(labels, torch.tensor([3, 8]))
        assert torch.equal(some.pixels[index], images[wanted]) and torch.equal(some.labels[index], (labels[wanted] == 3).long())


@pytest.mark.parametrize("classes", [[], [3, 3], [10], [-1], ["3"], [1.0]])
def test_classes_that_are_not_there_are_refused(classes):
    with pytest.raises(UserError, match=r"data.classes=.* numbers from 0 to 9 \(0, 1"):
        only(digits(), (torch.arange(3),), classes)


def test_the_data_module_keeps_the_split_of_the_whole():
    whole, some = ImageDataModule(digits), ImageDataModule(digits, classes=[8, 9], shots=5)
    images, labels = whole.part("test")
    assert torch.equal(some.part("test")[0], images[labels >= 8]) and torch.equal(some.part("test")[1], labels[labels >= 8] - 8)
    assert some.num_classes == 2 and some.part("train")[1].bincount().tolist() == [5, 5]


def blank_set(num_images: int, num_classes: int = 4, official_test: int = 0) -> ImageSet:
    "Images of 2×2 pixels that carry their own number, so that a batch tells which images it holds."
    number = torch.arange(num_images)
    pixels = torch.stack([number % 256, number // 256], dim=1).to(torch.uint8).view(-1, 1, 2, 1).expand(-1, 1, 2, 2)
    return ImageSet(pixels, number % num_classes, [f"class {i}" for i in range(num_classes)], 256, official_test)


@pytest.mark.parametrize("data", [digits(), blank_set(103), blank_set(140, official_test=40)], ids=["digits", "blank", "official"])
def test_the_parts_are_disjoint_cover_everything_and_have_the_classes_in_proportion(data):
    train, val, test = split(data, 0.1, 0.2, seed=0)
    assert torch.equal(torch.cat([train, val, test]).sort().values, torch.arange(len(data.labels)))
    all_but_test = torch.cat([train, val])
    for part, whole in [(train, all_but_test), (val, all_but_test)] + ([] if data.official_test else [(test, torch.arange(len(data.labels)))]):
        classes = len(data.class_names)
        exact = data.labels[whole].bincount(minlength=classes) * len(part) / len(whole)
        assert (data.labels[part].bincount(minlength=classes) - exact).abs().max() <= 1


def test_an_official_test_set_is_kept():
    train, val, test = split(blank_set(140, official_test=40), 0.1, 0.2, seed=0)
    assert test.tolist() == list(range(100, 140)) and len(val) == 10 and len(train) == 90


def test_a_validation_set_that_is_given_is_kept_too():
    train, val, test = split(blank_set(140, official_test=40)._replace(official_val=20), 0.1, 0.2, seed=0)
    assert test.tolist() == list(range(100, 140)) and val.tolist() == list(range(80, 100)) and train.tolist() == list(range(80))


def test_the_split_is_a_function_of_its_seed():
    data = digits()
    first, again, other = (split(data, 0.1, 0.2, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("num_images", [4, 9])
def test_too_few_images_to_split_is_explained(num_images):
    with pytest.raises(UserError, match=f"{num_images} images of 4 classes cannot be split.*at least 3 images"):
        split(blank_set(num_images), 0.1, 0.2, seed=0)


def test_an_augmented_image_is_a_window_of_the_padded_one_mirrored_or_not():
    images = digits().inputs(slice(0, 40))
    torch.manual_seed(0)
    moved = CropFlip(2)(images)
    assert moved.shape == images.shape
    padded, mirrored = torch.nn.functional.pad(images, [2] * 4, mode="reflect"), 0
    for image, wide in zip(moved, padded):
        windows = wide.unfold(1, 8, 1).unfold(2, 8, 1).flatten(1, 2)[0]  # [25, 8, 8]
        plain, flipped = (windows == image).all((1, 2)).any(), (windows.flip(-1) == image).all((1, 2)).any()
        assert plain or flipped
        mirrored += int(flipped and not plain)
    assert 8 < mirrored < 32
    assert torch.equal(CropFlip(0, flip=False)(images), images)


def test_a_padding_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="padding=8 for images of 8×8 .* 0 to 7"):
        CropFlip(8)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UserError, match="padding=-1"):
        CropFlip(-1)


def image_numbers(batch: Batch) -> list[int]:
    "Which images of a `blank_set` a batch holds."
    low, high = ((batch.input[:, 0, row, 0] + 1) * 127.5 for row in (0, 1))
    return (low + 256 * high).round().long().tolist()


def random_flip(images: torch.Tensor) -> torch.Tensor:
    "Flip each image upside down, or don't, at random."
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(2), images)


@pytest.mark.parametrize("augment", [None, random_flip])
@pytest.mark.parametrize("start", [1, 7, 60])
def test_starting_at_any_step_gives_the_batches_of_the_whole_run(start, augment):
    make = lambda first: StepLoader(blank_set(100), torch.arange(50), 8, seed=3, first=lambda: first, augment=augment)
    torch.manual_seed(0)
    whole = list(islice(make(0), start + 9))
    torch.manual_seed(1)  # the state of the global generator must not matter
    for a, b in zip(islice(make(start), 9), whole[start:], strict=True):
        assert a.step == b.step
        torch.testing.assert_close(a.input, b.input, rtol=0, atol=0)
        torch.testing.assert_close(a.label, b.label, rtol=0, atol=0)


@pytest.mark.parametrize("augment", [None, random_flip])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_all_processes_are_the_batch_of_one(processes, augment):
    loaders = [StepLoader(blank_set(100), torch.arange(50), 8, seed=3, process=lambda rank=rank: (rank, processes), augment=augment)
               for rank in range(processes)]
    alone = StepLoader(blank_set(100), torch.arange(50), 8, seed=3, augment=augment)
    for shares, whole in zip(zip(*(islice(loader, 15) for loader in loaders)), alone):
        assert {len(share.input) for share in shares} == {8 // processes}
        torch.testing.assert_close(torch.cat([share.input for share in shares]), whole.input, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([share.label for share in shares]), whole.label, rtol=0, atol=0)


def test_an_epoch_visits_each_image_at_most_once_and_each_epoch_has_its_own_order():
    index = torch.arange(300, 350)
    loader = StepLoader(blank_set(400), index, batch_size=8, seed=0)
    epochs = [[n for step in range(6 * epoch, 6 * epoch + 6) for n in image_numbers(loader.batch(step))] for epoch in range(20)]
    for numbers in epochs:
        assert len(numbers) == len(set(numbers)) == 48 and set(numbers) <= set(index.tolist())
    assert len({tuple(numbers) for numbers in epochs}) == 20
    assert set().union(*epochs) == set(index.tolist()), "the two images left out are others each time"


def test_images_and_labels_stay_together_and_the_seed_matters():
    data = blank_set(400)
    loader, other = (StepLoader(data, torch.arange(400), 64, seed) for seed in (0, 1))
    for step in (0, 5, 6, 40):
        numbers = image_numbers(loader.batch(step))
        assert data.labels[numbers].tolist() == loader.batch(step).label.tolist()
        assert numbers != image_numbers(other.batch(step))


def test_augmentation_has_random_numbers_of_its_own_in_each_step_and_leaves_the_global_generator_alone():
    loader = StepLoader(blank_set(100), torch.arange(50), 8, seed=0, augment=torch.rand_like)
    state = torch.get_rng_state()
    noise = [loader.batch(step).input for step in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(torch.equal(a, b) for a, b in combinations(noise, 2))


@pytest.mark.parametrize("batch_size", [0, -1, 51])
def test_a_batch_size_outside_the_training_set_is_explained(batch_size):
    with pytest.raises(UserError, match=f"data.batch_size={batch_size}.*1 to 50"):
        StepLoader(blank_set(100), torch.arange(50), batch_size, seed=0)


def test_a_batch_that_the_processes_cannot_share_is_explained():
    with pytest.raises(UserError, match="data.batch_size=9 on 2 processes"):
        next(iter(StepLoader(blank_set(100), torch.arange(50), 9, seed=0, process=lambda: (0, 2))))


def write_idx(path: Path, array: torch.Tensor) -> None:
    "A file in MNIST's format: two zero bytes, the type (8: unsigned byte), the number of axes, their sizes, the values."
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.to(torch.uint8).numpy().tobytes())


def write_mnist(root: Path, train: int = 60, test: int = 20, name: str = "MNIST") -> torch.Tensor:  # [train + test, 28, 28]
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


@pytest.mark.parametrize("error", [RuntimeError("Error downloading train-images:\nTried a mirror, got: 404"), URLError("no route to host")])
def test_a_failing_download_is_one_line_that_says_what_to_do(error, tmp_path, monkeypatch):
    no_network(monkeypatch, error)
    with pytest.raises(UserError, match="MNIST is not in data.root=.* could not be downloaded .*use data=digits") as raised:
        mnist(str(tmp_path / "none"))
    assert str(tmp_path / "none") in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [0, 3, 1000])
def test_damaged_files_are_named(size, tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="The files of MNIST in data.root=.* cannot be read"):
        mnist(str(tmp_path))


@pytest.fixture
def no_torchvision(monkeypatch):
    "torchvision as if it were not installed."
    monkeypatch.setitem(sys.modules, "torchvision", None)
    torchvision_error.cache_clear()
    yield
    torchvision_error.cache_clear()


def test_without_torchvision_the_message_names_versions_and_cure(no_torchvision, tmp_path):
    for source in (mnist, fashion_mnist, cifar10, image_folder):
        with pytest.raises(UserError, match="(?s)beside torch .*pip install --force-reinstall torch torchvision.*data=digits") as raised:
            source(str(tmp_path))
        assert torch.__version__ in str(raised.value) and "\n" not in str(raised.value)
    assert len(digits().labels) == 1797


def test_digits_work_beside_a_torchvision_built_for_another_torch(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist\\nand more')")
    program = ("from perceiver_moe_diffusion.data import *; print(len(ImageDataModule(digits).train_index))\n"
               "try: mnist()\nexcept ValueError as error: print(error)")
    paths = [str(tmp_path), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    assert done.returncode == 0, done.stderr
    count, message = done.stdout.splitlines()
    assert count == "1293" and "RuntimeError: operator torchvision::nms does not exist" in message


def draw(shape: str, width: int, height: int) -> Image.Image:
    "A disc, a square or stripes on a coloured ground, in the middle of a picture of any size."
    y, x = np.mgrid[:height, :width]
    x, y = (x - (width - 1) / 2) / min(width, height), (y - (height - 1) / 2) / min(width, height)
    inside = {"disc": x**2 + y**2 < 0.1, "square": np.maximum(abs(x), abs(y)) < 0.25, "stripes": np.sin(20 * x) > 0}[shape]
    return Image.fromarray(np.where(inside[..., None], (240, 200, 40), (30, 60, 160)).astype(np.uint8))


def write_pictures(root: Path, sizes: list[tuple[int, int]], suffix: str = ".png") -> None:
    "One folder per shape, one picture per size."
    for shape in ("disc", "square", "stripes"):
        (root / shape).mkdir(parents=True, exist_ok=True)
        for width, height in sizes:
            draw(shape, width, height).save(root / shape / f"{width}x{height}{suffix}")


def test_a_folder_of_class_folders_becomes_an_image_set(tmp_path):
    write_pictures(tmp_path, sizes=[(60, 40), (30, 90), (32, 32)])
    data = image_folder(str(tmp_path), image_size=32)
    assert data.pixels.shape == (9, 3, 32, 32) and data.pixels.dtype == torch.uint8 and data.levels == 256
    assert data.class_names == ["disc", "square", "stripes"] and data.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    grey = image_folder(str(tmp_path), image_size=8, channels=1)
    assert grey.pixels.shape == (9, 1, 8, 8)


def test_an_image_of_the_right_size_is_read_exactly(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(2, 12, 12, 3), dtype=np.uint8)
    (tmp_path / "noise").mkdir()
    for name, image in zip("ab", pixels):
        Image.fromarray(image).save(tmp_path / "noise" / f"{name}.png")
    np.testing.assert_array_equal(image_folder(str(tmp_path), image_size=12).pixels.permute(0, 2, 3, 1), pixels)


def test_folders_train_and_test_keep_the_official_test_images(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        write_pictures(tmp_path / part, sizes=[(8 + i, 8) for i in range(6 if part == "train" else 2)])
    data = image_folder(str(tmp_path), image_size=8)
    assert len(data.labels) == 24 and data.official_test == 6
    train, val, test = split(data, 0.2, 0.5, seed=0)
    assert test.tolist() == list(range(18, 24)) and len(train) + len(val) == 18
    (tmp_path / "test" / "disc").rename(tmp_path / "test" / "ball")
    with pytest.raises(UserError, match="classes ball, square, stripes .* disc, square, stripes"):
        image_folder(str(tmp_path), image_size=8)


def test_the_middle_square_is_kept(tmp_path):
    (tmp_path / "one").mkdir()
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # white in the middle third, which is the middle square
    Image.fromarray(wide).save(tmp_path / "one" / "wide.png")
    assert image_folder(str(tmp_path), image_size=10).pixels.min() == 255


@pytest.mark.parametrize("options, message", [
    (dict(root=None), "data.root=None"), (dict(root="no/such/folder"), "data.root=no/such/folder"),
    (dict(image_size=0), "data.image_size=0"), (dict(image_size=8.5), "data.image_size=8.5"), (dict(image_size="big"), "data.image_size=big"),
    (dict(channels=2), "data.channels=2.*1 .grey. or 3"),
])
def test_a_wrong_option_of_a_folder_is_explained(options, message, tmp_path):
    write_pictures(tmp_path, sizes=[(8, 8)])
    with pytest.raises(UserError, match=message):
        image_folder(**{"root": str(tmp_path), **options})


@pytest.mark.parametrize("make", [lambda root: None, lambda root: (root / "cat").mkdir(),
                                  lambda root: (write_pictures(root, [(8, 8)]), (root / "empty").mkdir())],
                         ids=["nothing", "class without images", "one empty class"])
def test_an_empty_folder_is_explained(make, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=r"holds no images.*ROOT/cat/1.png"):
        image_folder(str(tmp_path))


@pytest.mark.parametrize("damage", [lambda raw: b"not an image", lambda raw: raw[:len(raw) // 2], lambda raw: b""], ids=["text", "half", "empty"])
def test_a_broken_image_is_named(damage, tmp_path):
    write_pictures(tmp_path, sizes=[(40, 40)])
    broken = tmp_path / "square" / "40x40.png"
    broken.write_bytes(damage(broken.read_bytes()))
    with pytest.raises(UserError, match="square.40x40.png cannot be read as an image"):
        image_folder(str(tmp_path))


def test_a_folder_is_read_once_and_again_when_it_has_changed(tmp_path):
    write_pictures(tmp_path, sizes=[(8, 8)] * 3)
    first = image_folder(str(tmp_path), 8, 3)
    assert image_folder(str(tmp_path), 8, 3) is first and image_folder(str(tmp_path), 4, 3).shape == (3, 4, 4)
    file = sorted(path for path in tmp_path.rglob("*") if path.is_file())[0]
    file.with_name("another" + file.suffix).write_bytes(file.read_bytes())
    assert len(image_folder(str(tmp_path), 8, 3).labels) == len(first.labels) + 1


def test_a_smaller_pixel_is_the_mean_of_what_it_covers():
    data, small = digits(), resized(None, digits, 4)
    means = data.pixels.float().unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(small.pixels.float(), means.round())
    assert (small.labels is data.labels or torch.equal(small.labels, data.labels)) and small.levels == data.levels


def test_a_colour_becomes_its_brightness():
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], dtype=torch.uint8).view(4, 3, 1, 1).expand(-1, -1, 6, 6)
    data = lambda root: ImageSet(colours, torch.arange(4), list("rgbw"), 256)
    assert resized(None, data, 3, grey=True).pixels[:, 0, 2, 2].tolist() == [76, 150, 29, 90]
    assert resized(None, data, 3).pixels.shape == (4, 3, 3, 3)
    with pytest.raises(UserError, match="data.dataset.size=0"):
        resized(None, data, 0)


def as_process(module: ImageDataModule, rank: int = 0, processes: int = 1, step: int = 0, accumulate: int = 1) -> ImageDataModule:
    "The module, asked by a trainer that has reached `step`."
    module.trainer = SimpleNamespace(global_step=step, accumulate_grad_batches=accumulate, global_rank=rank, world_size=processes)
    return module


def test_the_split_does_not_depend_on_the_training_seed():
    first, second = (ImageDataModule(digits, seed=seed) for seed in (0, 1))
    other = ImageDataModule(digits, split_seed=1)
    for name in ("train_index", "val_index", "test_index"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))
    batches = [next(iter(as_process(module).train_dataloader())) for module in (first, second)]
    assert not torch.equal(batches[0].input, batches[1].input), "the order of the batches does depend on it"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_goes_on_at_the_step_of_the_trainer(accumulate):
    module = ImageDataModule(lambda root: blank_set(200), batch_size=10)
    expected = StepLoader(module.data, module.train_index, 10, seed=0).batch(7 * accumulate)
    loader = as_process(module, accumulate=accumulate).train_dataloader()
    module.trainer.global_step = 7  # the checkpoint is read after the loader was made
    batch = next(iter(loader))
    assert batch.step == 7 * accumulate and image_numbers(batch) == image_numbers(expected)


@pytest.mark.parametrize("batch_size", [8, 64])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_validation_image_is_seen_once_and_no_process_is_idle(batch_size, processes):
    module = ImageDataModule(lambda root: blank_set(210), batch_size=batch_size)
    shares = [list(as_process(module, rank, processes).val_dataloader()) for rank in range(processes)]
    assert all(shares), "a process without a validation batch would leave the others waiting"
    seen = [n for share in shares for batch in share for n in image_numbers(batch)]
    assert sorted(seen) == module.val_index.tolist()
    whole = {batch.step: image_numbers(batch) for batch in as_process(module).val_dataloader()}
    for step, numbers in whole.items():
        assert [n for share in shares for batch in share if batch.step == step for n in image_numbers(batch)] == numbers


def test_parts_are_what_the_indices_say_and_only_training_images_are_augmented():
    module = ImageDataModule(digits, batch_size=16, augment=lambda images: images * 0)
    assert (module.image_shape, module.num_classes) == ((1, 8, 8), 10)
    for name in ("train", "val", "test"):
        images, labels = module.part(name)
        index = getattr(module, f"{name}_index")
        torch.testing.assert_close(images, module.data.inputs()[index], rtol=0, atol=0)
        torch.testing.assert_close(labels, module.data.labels[index], rtol=0, atol=0)
    assert next(iter(as_process(module).train_dataloader())).input.count_nonzero() == 0
    assert next(iter(as_process(module).val_dataloader())).input.count_nonzero() > 0


@pytest.mark.parametrize("options, message", [
    (dict(val_fraction=0), "data.val_fraction=0 "), (dict(val_fraction=1.5), "data.val_fraction=1.5"),
    (dict(test_fraction=1), "data.test_fraction=1 "), (dict(test_fraction=float("nan")), "data.test_fraction=nan"),
])
def test_a_wrong_share_is_explained(options, message):
    with pytest.raises(UserError, match=message):
        ImageDataModule(digits, **options)


def test_an_unknown_part_is_explained():
    with pytest.raises(UserError, match="part 'holdout'.*train, val or test"):
        ImageDataModule(digits).part("holdout")
