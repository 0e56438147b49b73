# Made from nbs/48_image_folders.ipynb by `pmd-dev tests`. Edit the notebook.
import os
import shutil
import tempfile
import time
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.batches import natural_order, split_indices
from perceiver_moe_diffusion.data.image_folders import image_folder, load_listing


@pytest.mark.parametrize("names, expected", [
    ("0 1 10 11 2", "0 1 2 10 11"), ("010 9 1", "1 9 010"), ("dog cat", "cat dog"), ("b 10 a 9", "9 10 a b"),
    ("v10 v9", "v10 v9"),
    ("² 1", "1 ²"), ("B a", "B a"), ("5 -3 +1 -", "-3 +1 5 -"),
])
def test_whole_numbers_stand_in_their_order_and_names_by_name(names, expected):
    assert sorted(names.split(), key=natural_order) == expected.split()


def draw(shape: str, width: int, height: int) -> Image.Image:
    "A disc, a square or stripes on a coloured ground, in the middle of a picture of any size."
    y, x = np.mgrid[:height, :width]
    x, y = (x - (width - 1) / 2) / min(width, height), (y - (height - 1) / 2) / min(width, height)
    shapes = {"disc": x**2 + y**2 < 0.1, "square": np.maximum(abs(x), abs(y)) < 0.25, "stripes": np.sin(20 * x) > 0}
    inside = shapes[shape][..., None]
    return Image.fromarray(np.where(inside, (240, 200, 40), (30, 60, 160)).astype(np.uint8))


def write_pictures(root: Path, sizes: list[tuple[int, int]], suffix: str = ".png") -> None:
    "One folder per shape, one picture per size."
    for shape in ("disc", "square", "stripes"):
        (root / shape).mkdir(parents=True, exist_ok=True)
        for width, height in sizes:
            draw(shape, width, height).save(root / shape / f"{width}x{height}{suffix}")


def write_remains(root: Path) -> None:
    "What systems and people leave in folders, at each level."
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "._1.png", "Thumbs.db", "desktop.ini", "notes.TXT"):
            (folder / name).write_bytes(b"?")
        for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN", "System Volume Information"):
            (folder / name).mkdir()
            (folder / name / "1-checkpoint.png").write_bytes(b"?")


def test_a_folder_of_class_folders_becomes_an_image_set(tmp_path):
    write_pictures(tmp_path, sizes=[(60, 40), (30, 90), (32, 32)])
    data = image_folder(str(tmp_path), image_size=32)
    assert data.pixels.shape == (9, 3, 32, 32) and data.pixels.dtype == torch.uint8 and data.levels == 256
    assert data.class_names == ["disc", "square", "stripes"] and data.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.about == "9 images, 3 classes (disc 3, square 3, stripes 3), 32×32 RGB"
    grey = image_folder(str(tmp_path), image_size=8, channels=1)
    assert grey.pixels.shape == (9, 1, 8, 8) and grey.about.endswith("8×8 grey")


def test_an_image_of_the_right_size_is_read_exactly(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(2, 12, 12, 3), dtype=np.uint8)
    (tmp_path / "noise").mkdir()
    for name, image in zip("ab", pixels):
        Image.fromarray(image).save(tmp_path / "noise" / f"{name}.png")
    np.testing.assert_array_equal(image_folder(str(tmp_path), image_size=12).pixels.permute(0, 2, 3, 1), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_labels_and_their_order_are_those_of_torchvision(channels, tmp_path):
    datasets, transforms = pytest.importorskip("torchvision.datasets"), pytest.importorskip("torchvision.transforms")
    for suffix in (".png", ".jpg", ".bmp"):
        write_pictures(tmp_path, sizes=[(60, 40), (30, 91), (32, 32)], suffix=suffix)
        write_pictures(tmp_path / "disc" / "a b", sizes=[(17, 40)], suffix=suffix)
        write_pictures(tmp_path / "disc" / "a", sizes=[(40, 17)], suffix=suffix)
    steps = [transforms.Resize(16), transforms.CenterCrop(16), *([transforms.Grayscale()] if channels == 1 else [])]
    theirs = datasets.ImageFolder(tmp_path, transform=transforms.Compose([*steps, transforms.PILToTensor()]))
    ours = image_folder(str(tmp_path), 16, channels)
    assert ours.class_names == theirs.classes and ours.labels.tolist() == theirs.targets
    torch.testing.assert_close(ours.pixels, torch.stack([image for image, _ in theirs]), rtol=0, atol=0)


def test_the_middle_square_is_kept(tmp_path):
    for name, middle in (("white", 255), ("grey", 90)):
        (tmp_path / name).mkdir()
        wide = np.zeros((10, 30, 3), np.uint8)
        wide[:, 10:20] = middle  # in the middle third, which is the middle square
        Image.fromarray(wide).save(tmp_path / name / "wide.png")
    assert image_folder(str(tmp_path), image_size=10).pixels.flatten(1).unique(dim=1).flatten().tolist() == [90, 255]


@pytest.mark.parametrize("options, message", [
    (dict(root=None), "data.root=None"), (dict(root="no/such/folder"), "data.root=no/such/folder"),
    (dict(image_size=0), "data.dataset.image_size=0"), (dict(image_size=8.5), "data.dataset.image_size=8.5"),
    (dict(image_size="big"), "image_size=big"), (dict(channels=2), "data.dataset.channels=2.*1 .grey. or 3"),
    (dict(background="wite"), "data.dataset.background=wite"), (dict(cache=3), "data.dataset.cache=3"),
    (dict(class_order="size"), "data.dataset.class_order=size.*numbers or text"),
])
def test_a_wrong_option_of_a_folder_is_explained(options, message, tmp_path):
    write_pictures(tmp_path, sizes=[(8, 8)])
    with pytest.raises(UserError, match=message):
        image_folder(**{"root": str(tmp_path), **options})


@pytest.mark.parametrize("make", [
    lambda root: None, lambda root: (root / "cat").mkdir(), lambda root: (root / "cat.png").write_bytes(b"?"),
    lambda root: (write_pictures(root, [(8, 8)]), (root / "empty").mkdir()),
    lambda root: ((root / "cat" / ".o").mkdir(parents=True), draw("disc", 9, 9).save(root / "cat" / ".o" / "1.png")),
], ids=["nothing", "class without images", "images without class", "one empty class", "all hidden"])
def test_an_empty_folder_is_explained(make, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=r"holds no images.*ROOT/cat/1.png"):
        image_folder(str(tmp_path))


def test_images_that_are_all_equal_are_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (8, 8), (255, 255, 255, 100)).save(tmp_path / name / "1.png")
    with pytest.raises(UserError, match="2 images are all equal.*data.dataset.background"):
        image_folder(str(tmp_path), 8)


def test_many_classes_are_told_in_short(tmp_path):
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        Image.new("L", (4, 4), number).save(tmp_path / str(number) / "1.png")
    data = image_folder(str(tmp_path), 4, 1)
    assert data.class_names == [str(number) for number in range(40)]
    assert data.pixels[:, 0, 0, 0].tolist() == list(range(40))
    assert data.about.startswith("40 images, 40 classes (0 1, 1 1, 2 1, ") and "and 30 more" in data.about
    old = image_folder(str(tmp_path), 4, 1, class_order="text")  # as old runs have them
    assert old.class_names == sorted(data.class_names) and old.class_names[2] == "10"
    assert old.pixels[:, 0, 0, 0].tolist() == [int(name) for name in old.class_names]


@pytest.mark.parametrize("names", [
    ("train", "val", "test"), ("Train", "VALID", "Test"), ("training", "validation", "testing"), ("train", "dev"),
    ("train", "test"), ("TRAIN", "val"), ("train",),
])
def test_splits_by_their_usual_names_are_splits(names, tmp_path):
    counts = [4, 2, 3]
    for name, count in zip(names, counts):
        write_pictures(tmp_path / name, sizes=[(8 + i, 8) for i in range(count)])
    is_test = {name: name.lower().startswith("test") for name in names}
    data = image_folder(str(tmp_path), image_size=8)
    assert data.class_names == ["disc", "square", "stripes"]
    n_test = sum(3 * count for name, count in zip(names, counts) if is_test[name])
    n_val = sum(3 * count for name, count in zip(names[1:], counts[1:]) if not is_test[name])
    assert (data.official_test, data.official_val, len(data.labels)) == (n_test, n_val, 3 * sum(counts[:len(names)]))
    for name in names[1:]:
        assert f"{'test' if is_test[name] else 'validation'}: folder {name}" in data.about
    train, val, test = (set(part.tolist()) for part in split_indices(data, 0.4, 0.4, seed=0))
    whole = set(range(len(data.labels)))
    assert train | val | test == whole and len(train) + len(val) + len(test) == len(whole)
    assert not n_test or test == set(range(len(whole) - n_test, len(whole)))
    assert not n_val or val == set(range(12, 12 + n_val)), "the folder's own images, and no others"
    assert train <= set(range(12))


@pytest.mark.parametrize("folders, message", [
    (["train/cat", "train/dog", "cat", "dog"], "Are train splits, and cat, dog classes"),
    (["train/cat", "test/cat", "extra"], "Are test, train splits, and extra classes"),
    (["bus", "test", "train"], "Are test, train splits, and bus classes"),
    (["train", "test"], "no class folders in test, train"), (["train/cat", "test"], "no class folders in test"),
    (["train/cat", "val/cat", "valid/cat"], "Two of them are for the same"),
    (["val/cat", "test/cat"], "no folder train"),
    (["test"], "no folder train"), (["train/cat", "train/dog", "test/cat"], "with the classes cat .* cat, dog"),
    (["cat/train", "cat/test", "dog/train", "dog/test"], "cat, a class with test, train in it"),
    (["pets/train/cat", "pets/test/cat"], "Or is it data.root=.*pets"),
])
def test_where_it_cannot_be_told_a_sentence_asks(folders, message, tmp_path):
    for number, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("L", (4, 4), number).save(tmp_path / folder / "1.png")
    with pytest.raises(UserError, match=message) as raised:
        image_folder(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("names", [["bus", "train"], ["invalid", "valid"], ["control", "test"]])
def test_a_class_may_have_the_name_of_a_split(names, tmp_path):
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), number).save(tmp_path / name / "1.png")
    data = image_folder(str(tmp_path), 4)
    assert data.class_names == names and data.official_test == data.official_val == 0


def test_what_people_and_systems_leave_behind_is_passed_over_and_counted(tmp_path):
    write_pictures(tmp_path / "train", sizes=[(8, 8), (9, 8)])
    write_pictures(tmp_path / "val", sizes=[(10, 8)])
    clean = image_folder(str(tmp_path), 8)
    write_remains(tmp_path)
    data = image_folder(str(tmp_path), 8)
    assert torch.equal(data.pixels, clean.pixels) and data.class_names == clean.class_names
    assert data.official_val == 3 and data.about == clean.about + "; passed over: 54 of the system, 27 hidden, 9 .txt"


def test_other_kinds_and_images_without_a_class_are_said_once(tmp_path, capsys):
    write_pictures(tmp_path, sizes=[(8, 8)])
    for name in ("1.heic", "disc/2.heic", "disc/x.json", "README", "over.png"):
        (tmp_path / name).write_bytes(b"?")
    assert image_folder(str(tmp_path), 8).about.endswith(
        "; passed over: 2 .heic, 1 .json, 1 outside the class folders, 1 without a suffix")
    assert capsys.readouterr().out == ""


def test_images_beside_the_class_folders_of_a_split_are_said(tmp_path):
    for part in ("train", "val"):
        write_pictures(tmp_path / part, sizes=[(8, 8)])
        draw("disc", 8, 8).save(tmp_path / part / "lost.png")
    assert image_folder(str(tmp_path), 8).about.endswith("passed over: 2 outside the class folders")


def damage(root: Path) -> dict[str, str]:  # file -> what is said of it
    "Every fault that a file can have, in one folder of class folders."
    good = (root / "disc" / "40x40.png").read_bytes()
    square = root / "square"
    (square / "cut.png").write_bytes(good[:len(good) // 2])
    (square / "empty.jpg").write_bytes(b"")
    (square / "text.gif").write_bytes(b"not an image")
    (square / "gone.png").symlink_to("nowhere.png")
    (square / "round.png").symlink_to("round.png")
    (square / "memory.png").symlink_to("/proc/self/mem")
    os.mkfifo(square / "pipe.png")
    (square / "bomb.png").write_bytes(good[:16] + (60_000).to_bytes(4, "big") * 2 + good[24:])
    Image.fromarray(np.full((4, 4), 1e6, np.float32)).save(square / "float.tif")
    (root / "stripes" / "missing").symlink_to("/no/such/folder")
    return {"cut.png": "", "empty.jpg": "not an image", "text.gif": "not an image", "gone.png": "a link to nothing",
            "round.png": "link", "memory.png": "", "pipe.png": "no ordinary file", "bomb.png": "",
            "float.tif": "values go from", "missing": "a link to nothing"}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="pipes and unreadable files as Linux has them")
def test_all_that_cannot_be_read_is_named_at_once(tmp_path):
    write_pictures(tmp_path, sizes=[(40, 40), (41, 40)])
    reasons = damage(tmp_path)
    with pytest.raises(UserError) as raised:
        image_folder(str(tmp_path), 8)
    message = str(raised.value)
    assert "holds 10 files that cannot be read" in message and "\n" not in message
    for name, reason in reasons.items():
        assert f"{name} (" in message and reason in message.partition(f"{name} (")[2].partition(")")[0]


def test_many_faults_are_counted(tmp_path):
    write_pictures(tmp_path, sizes=[(8, 8)])
    for number in range(22):
        (tmp_path / "disc" / f"{number:02}.png").write_bytes(b"?")
    with pytest.raises(UserError, match="holds 22 files .*09.png .* and 12 more. Mend"):
        image_folder(str(tmp_path), 8)


def test_loops_of_links_end(tmp_path):
    write_pictures(tmp_path / "pets", sizes=[(8, 8), (9, 8)])
    write_pictures(tmp_path / "others", sizes=[(8, 8)])  # a link that leads above the root does not bring them in
    clean = image_folder(str(tmp_path / "pets"), 8)
    for where, to in [("pets/disc/up", "../.."), ("pets/disc/self", "."), ("pets/square/root", ".."),
                      ("pets/square/a", "../stripes"), ("pets/stripes/b", "../square")]:
        (tmp_path / where).symlink_to(to)
    data = image_folder(str(tmp_path / "pets"), 8)
    assert "linked twice" in data.about
    assert len(data.labels) == len(clean.labels) + 4, "each sees the other's images once"


def test_names_that_are_no_text(tmp_path):
    write_pictures(tmp_path, sizes=[(8, 8)])
    odd = os.fsdecode(b"\xff\xfe.png")
    try:
        (tmp_path / "disc" / odd).write_bytes((tmp_path / "square" / "8x8.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes text only")
    assert len(image_folder(str(tmp_path), 8, cache=str(tmp_path / ".cache")).labels) == 4
    (tmp_path / "disc" / odd).write_bytes(b"?")
    with pytest.raises(UserError) as raised:
        image_folder(str(tmp_path), 8)
    str(raised.value).encode()
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(UserError, match="class name .*can be printed"):
        image_folder(str(tmp_path), 8)


def test_the_first_frame_of_an_animated_file_is_read_and_said(tmp_path):
    write_pictures(tmp_path, sizes=[(8, 8)])
    first, second = draw("disc", 8, 8), draw("stripes", 8, 8)
    first.save(tmp_path / "disc" / "a.png", save_all=True, append_images=[second])
    data = image_folder(str(tmp_path), 8)
    assert torch.equal(data.pixels[0], data.pixels[1]) and data.about.endswith("; first frame of 1 with several")


def test_drawings_on_nothing_are_laid_over_the_ground(tmp_path):
    for name, opacity in (("a", 255), ("b", 100)):
        (tmp_path / name).mkdir()
        Image.new("RGBA", (4, 4), (0, 0, 0, opacity)).save(tmp_path / name / "1.png")
    assert image_folder(str(tmp_path), 4).pixels[:, 0, 0, 0].tolist() == [0, 155]
    assert image_folder(str(tmp_path), 4, background=[100, 0, 0]).pixels[:, 0, 0, 0].tolist() == [0, 61]


def touched(path: Path) -> None:
    "Another picture of the same length, with the times of the old one put back."
    before, about = path.read_bytes(), path.stat()
    time.sleep(0.02)
    image = Image.open(BytesIO(before))
    image.transpose(Image.Transpose.ROTATE_180).save(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size


def noise(root: Path, count: int = 3) -> None:
    "Uncompressed pictures, so that all files have one length."
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(root / name / f"{i}.bmp")


def no_reading(monkeypatch) -> None:
    "Let every reading of a file fail, and forget what is in memory."
    from perceiver_moe_diffusion.data import image_folders

    def fail(*arguments):
        raise AssertionError("a file was read")
    monkeypatch.setattr(image_folders, "read_images", fail)
    load_listing.cache_clear()


def test_a_folder_is_read_once_and_again_when_it_has_changed(tmp_path):
    noise(tmp_path)
    first = image_folder(str(tmp_path), 8, 3)
    assert image_folder(str(tmp_path), 8, 3) is first and image_folder(str(tmp_path), 4, 3).shape == (3, 4, 4)
    shutil.copy(tmp_path / "a" / "0.bmp", tmp_path / "a" / "9.bmp")
    assert len(image_folder(str(tmp_path), 8, 3).labels) == len(first.labels) + 1


def test_the_cache_spares_the_reading(tmp_path, monkeypatch):
    noise(tmp_path / "data")
    cache = str(tmp_path / "runs" / "cache")
    first = image_folder(str(tmp_path / "data"), 8, 3, cache=cache)
    no_reading(monkeypatch)
    again = image_folder(str(tmp_path / "data"), 8, 3, cache=cache)
    assert again is not first and torch.equal(again.pixels, first.pixels) and again.about == first.about
    assert len(list(Path(cache).iterdir())) == 1
    for other in (dict(image_size=4), dict(channels=1), dict(background="black")):
        load_listing.cache_clear()
        with pytest.raises(AssertionError, match="a file was read"):
            image_folder(str(tmp_path / "data"), **{"image_size": 8, "cache": cache, **other})


@pytest.mark.parametrize("change", [
    lambda root: touched(root / "a" / "1.bmp"), lambda root: (root / "b" / "0.bmp").unlink(),
    lambda root: (root / "a" / "0.bmp").rename(root / "a" / "5.bmp"),
    lambda root: (root / "a" / "0.bmp").rename(root / "b" / "7.bmp"),
    lambda root: shutil.copy(root / "a" / "0.bmp", root / "a" / "7.bmp"),
], ids=["content", "removed", "renamed", "another class", "added"])
def test_the_cache_notices_changed_files(change, tmp_path):
    noise(tmp_path / "data")
    cache = str(tmp_path / "cache")
    image_folder(str(tmp_path / "data"), 8, cache=cache)
    change(tmp_path / "data")
    load_listing.cache_clear()
    kept = image_folder(str(tmp_path / "data"), 8, cache=cache)
    load_listing.cache_clear()
    fresh = image_folder(str(tmp_path / "data"), 8)
    assert torch.equal(kept.pixels, fresh.pixels) and torch.equal(kept.labels, fresh.labels)
    assert len(list(Path(cache).iterdir())) == 1, "the new one took the place of the old"


@pytest.mark.parametrize("where", [0, 40, 300, 700, -200, -1])
def test_a_damaged_cache_is_read_anew(where, tmp_path):
    noise(tmp_path / "data")
    cache = str(tmp_path / "cache")
    first = image_folder(str(tmp_path / "data"), 8, cache=cache)
    file = next(Path(cache).iterdir())
    raw = bytearray(file.read_bytes())
    for damaged in (raw[:where], raw[:where] + bytes([raw[where] ^ 255]) + raw[where:][1:], b"", b"nonsense"):
        file.write_bytes(damaged)
        load_listing.cache_clear()
        assert torch.equal(image_folder(str(tmp_path / "data"), 8, cache=cache).pixels, first.pixels)
        load_listing.cache_clear()
        assert torch.equal(image_folder(str(tmp_path / "data"), 8, cache=cache).pixels, first.pixels)


def test_a_cache_is_for_its_own_settings_and_hides_no_fault(tmp_path):
    noise(tmp_path / "data")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "data" / "a" / "clear.png")
    cache = tmp_path / "cache"
    read = lambda **more: image_folder(str(tmp_path / "data"), 8, cache=str(cache), **more)
    white = read()
    first = next(cache.iterdir())
    black = read(background="black")
    second = next(path for path in cache.iterdir() if path != first)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    for wanted, more in ((white, {}), (black, {"background": "black"})):
        load_listing.cache_clear()
        assert torch.equal(read(**more).pixels, wanted.pixels)
    (tmp_path / "data" / "a" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match="gone.png .a link to nothing"):
        read()


def test_a_cache_with_code_in_it_is_not_run(tmp_path):
    noise(tmp_path / "data")
    cache = str(tmp_path / "cache")
    first = image_folder(str(tmp_path / "data"), 8, cache=cache)
    file = next(Path(cache).iterdir())
    with np.load(file) as kept:
        fields = dict(kept)

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)
    np.savez(file, **{**fields, "pixels": np.array([Hostile()], dtype=object)})
    load_listing.cache_clear()
    assert torch.equal(image_folder(str(tmp_path / "data"), 8, cache=cache).pixels, first.pixels)
    assert not (tmp_path / "ran").exists()


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path):
    noise(tmp_path / "data")
    (tmp_path / "file").write_text("in the way")
    data = image_folder(str(tmp_path / "data"), 8, cache=str(tmp_path / "file" / "cache"))
    assert len(data.labels) == 6 and "not kept for the next run" in data.about and "\n" not in data.about


def encoded(mode: str, kind: str, value: int, **options) -> tuple[bytes, np.ndarray]:
    "A picture of one colour in a file, and what it should be read as, [3] of 0 … 255."
    file = BytesIO()
    colours = {"L": value, "RGB": (value, 0, 255), "RGBA": (value, 0, 9, 51), "LA": (value, 0), "I;16": value * 257}
    Image.new(mode, (4, 4), colours[mode]).save(file, kind, **options)
    over_white = {"L": (value,) * 3, "RGB": (value, 0, 255), "LA": (255,) * 3, "I;16": (value,) * 3,
                  "RGBA": tuple(round(0.2 * part + 0.8 * 255) for part in (value, 0, 9))}[mode]
    return file.getvalue(), np.array(over_white)


FILES = st.one_of(
    st.builds(encoded, st.sampled_from(["L", "RGB", "RGBA", "LA", "I;16"]), st.just("png"), st.integers(2, 255)),
    st.builds(encoded, st.sampled_from(["L", "RGB", "I;16"]), st.sampled_from(["tiff"]), st.integers(2, 255)),
    st.builds(encoded, st.sampled_from(["L", "RGB"]), st.just("bmp"), st.integers(0, 255)),
)
BROKEN = st.one_of(st.binary(max_size=30).map(lambda raw: (raw, None)),
                   FILES.map(lambda made: (made[0][:len(made[0]) // 3], None)))
SPLIT_WORDS = {"train": "train", "Training": "train", "val": "validation", "VALID": "validation", "test": "test"}
IGNORED = [".git", "__MACOSX", ".ipynb_checkpoints", "@eaDir"]
CLASSES = st.sampled_from(["cat", "dog", "0", "2", "10", "Ä b"])
HIDDEN_FOLDERS = st.sampled_from(IGNORED)
IMAGES = st.sampled_from(["1.png", "2.PNG", "3.jpg", "a b.tif", "ü.webp", "x.gif"])
OTHERS = st.sampled_from(["notes.txt", "Thumbs.db", "README", "data.csv", "._1.png", ".h.png"])


def together(*parts):
    "Dictionaries that are drawn one by one, as one."
    return st.builds(lambda *drawn: {name: inside for part in drawn for name, inside in part.items()}, *parts)


def contents(broken: bool, least: int = 1):
    "Files of a folder: name -> (content, what it is read as); None for what is broken."
    kinds = st.one_of(*[FILES] * 7, BROKEN) if broken else FILES
    images = st.dictionaries(IMAGES, kinds, min_size=least, max_size=3)
    return together(images, st.dictionaries(OTHERS, BROKEN, max_size=1))


def class_tree(broken: bool, least: int = 1):
    "Class folders, some with folders inside, and what is passed over."
    below = st.dictionaries(st.one_of(CLASSES, HIDDEN_FOLDERS), contents(broken, 0), max_size=1)
    return together(st.dictionaries(CLASSES, together(contents(broken, least), below), min_size=least, max_size=3),
                    st.dictionaries(HIDDEN_FOLDERS, contents(True, 0), max_size=1))


def split_tree(broken: bool):
    "The same classes in several splits, with others now and then, or with something beside them."
    others = st.lists(st.sampled_from(list(SPLIT_WORDS)), unique=True, min_size=1, max_size=3)
    names = st.one_of(others, st.sampled_from([["train", "val"], ["Training", "test"], ["train", "VALID", "test"]]))
    beside = st.one_of(*[st.just({})] * 3, contents(broken), class_tree(broken, 0)) if broken else st.just({})
    return together(st.builds(dict.fromkeys, names, class_tree(broken)), beside)


TREES = st.one_of(class_tree(False), class_tree(True, 0), split_tree(False), split_tree(True),
                  together(class_tree(True), contents(True)))


def write_tree(folder: Path, content: dict) -> None:
    "A tree of dictionaries as folders and files."
    folder.mkdir(parents=True, exist_ok=True)
    for name, inside in content.items():
        if isinstance(inside, dict):
            write_tree(folder / name, inside)
        else:
            (folder / name).write_bytes(inside[0])


def images_of(content: dict, place: str = "") -> list:
    "Independent reading: ((folder, name), what it is read as) of the images in a class."
    shown = {name: inside for name, inside in content.items() if not name.startswith(".") and name not in IGNORED}
    here = [((place, name), inside[1]) for name, inside in shown.items() if not isinstance(inside, dict)
            and name.lower()[-4:] in (".png", ".jpg", ".tif", "webp", ".gif")]
    return here + [image for name, inside in shown.items() if isinstance(inside, dict)
                   for image in images_of(inside, f"{place}/{name}")]


def expected(content: dict) -> tuple | None:  # (class names, colours, labels, validation, test); None: to be refused
    "Independent reading of a tree: what `image_folder` should make of it."
    folders = lambda inside: {name: below for name, below in inside.items() if isinstance(below, dict)
                              and not name.startswith(".") and name not in IGNORED}
    top = folders(content)
    words = [name for name in top if name in SPLIT_WORDS]
    parts = {"train": top}
    if words and not (len(words) == 1 and len(top) > 1 and not folders(top[words[0]])):
        parts = {SPLIT_WORDS[name]: folders(top[name]) for name in words}
        if len(words) < len(top) or len(parts) < len(words) or "train" not in parts or not all(parts.values()):
            return None
    if any(set(classes) != set(parts["train"]) for classes in parts.values()) or not parts["train"]:
        return None
    numbers = sorted((name for name in parts["train"] if name.isdigit()), key=int)
    names = numbers + sorted(name for name in parts["train"] if not name.isdigit())
    colours, labels, counts = [], [], Counter()
    for role in ("train", "validation", "test"):
        for label, name in enumerate(names if role in parts else []):
            found = sorted(images_of(parts[role][name]), key=lambda image: image[0])
            if not found or any(colour is None for _, colour in found):
                return None
            colours += [colour for _, colour in found]
            labels += [label] * len(found)
            counts[role] += len(found)
    if len(colours) > 1 and len({tuple(colour) for colour in colours}) == 1:
        return None
    return names, np.array(colours), labels, counts["validation"], counts["test"]


def agrees(content: dict, folder: Path) -> bool:  # whether it was read; False: refused
    "Read a tree from the disk and compare it with the independent reading."
    write_tree(folder, content)
    wanted = expected(content)
    try:
        data = image_folder(str(folder), 4)
    except UserError as error:
        assert wanted is None, f"refused, and should not be: {error}"
        assert "\n" not in str(error)
        return False
    assert wanted is not None, "read, and should be refused"
    names, colours, labels, validation, test = wanted
    assert (data.class_names, data.labels.tolist()) == (names, labels)
    assert (data.official_val, data.official_test) == (validation, test)
    every_pixel = np.tile(colours[:, None, None], (1, 4, 4, 1))
    np.testing.assert_array_equal(data.pixels.permute(0, 2, 3, 1).numpy(), every_pixel)
    return True


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(content=TREES)
def test_any_folder_is_read_rightly_or_refused_by_a_sentence(content):
    with tempfile.TemporaryDirectory() as folder:
        agrees(content, Path(folder))
