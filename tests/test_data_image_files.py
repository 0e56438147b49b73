# Made from nbs/47_image_files.ipynb by `pmd-dev tests`. Edit the notebook.
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin, UnidentifiedImageError

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.data.image_files import (
    decode,
    middle_square,
    parse_colour,
    read_image,
    read_images,
    refuse_faults,
    scale_to_bytes,
    some_of,
)


@pytest.mark.parametrize("mode, stored, top", [
    ("I;16", "I;16B", 65535), ("I", "I;32N", 65535), ("I", "I;16S", 32767), ("I;16", "I;12", 4095), ("F", "F;32F", 1.0),
])
def test_numbers_are_scaled_by_the_range_of_their_kind(mode, stored, top):
    values = np.linspace(0, top, 1001)[None] if mode == "F" else np.arange(0, top + 1, max(1, top // 1000))[None]
    found = scale_to_bytes(values.astype(np.float64), mode, stored)
    assert abs(found - values / top * 255).max() <= 0.5 + 1e-9 and found.min() == 0 and found.max() == 255


@pytest.mark.parametrize("values, mode, message", [
    ([[0, 65536]], "I", "go from 0 to 65536"), ([[-1, 9]], "I", "from -1 to 9"), ([[0, 255.0]], "F", "0 to 255"),
    ([[0, np.nan]], "F", "nan"), ([[np.inf, 0]], "F", "inf"), ([[0, 255]], "I;16", "reach 255 .*would be black"),
    ([[0, 0.003]], "F", "would be black"),
])
def test_numbers_without_a_range_are_refused(values, mode, message):
    with pytest.raises(ValueError, match=message):
        scale_to_bytes(np.array(values, dtype=np.float64), mode, mode)


def test_black_stays_black():
    assert scale_to_bytes(np.zeros((2, 2)), "I;16", "I;16").max() == 0


def drawing() -> Image.Image:  # [24, 24] RGBA, transparent but for the lines
    "A flag that points to the right on a pole, over a line: up, down, left and right can be told."
    image = Image.new("RGBA", (24, 24), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.rectangle((6, 3, 8, 19), fill=(0, 0, 0, 255))
    pen.rectangle((9, 4, 17, 9), fill=(200, 30, 30, 255))
    pen.rectangle((3, 19, 20, 21), fill=(0, 0, 0, 255))
    return image


def over(rgba: np.ndarray, ground=(255, 255, 255)) -> np.ndarray:
    "Independent reading of [H, W, 4]: Porter and Duff's equation in float64."
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return alpha * rgba[..., :3] + (1 - alpha) * np.array(ground)


def oriented(array: np.ndarray, orientation: int) -> np.ndarray:
    "What a file must hold so that it is upright after EXIF's orientation: the table of the standard, turned around."
    undo = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
            5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
            8: lambda a: np.rot90(a, -1)}
    return np.ascontiguousarray(undo[orientation](array))


def with_orientation(orientation: int) -> Image.Exif:
    "EXIF data that say how the camera was held."
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def saved_and_decoded(image: Image.Image, suffix: str, ground=(255, 255, 255), **options) -> np.ndarray:  # [H, W, 3]
    "A picture through a real file, as `decode` reads it."
    file = BytesIO()
    image.save(file, {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}.get(suffix, suffix), **options)
    decoded = decode(Image.open(BytesIO(file.getvalue())), ground)
    assert decoded.mode == "RGB"
    return np.asarray(decoded).astype(np.float64)


def random_image(mode: str, size=(7, 5)) -> Image.Image:
    "Random bytes as a picture of a mode with 8-bit channels."
    bands = len(Image.new(mode, (1, 1)).getbands())
    data = np.random.default_rng(0).integers(256, size=(size[1], size[0], bands), dtype=np.uint8)
    return Image.frombytes(mode, size, data.tobytes())


@pytest.mark.parametrize("mode, suffix", [
    ("L", "png"), ("RGB", "png"), ("L", "tif"), ("RGB", "tif"), ("RGB", "bmp"), ("RGB", "ppm"), ("L", "jpg"),
    ("RGB", "jpg"),
])
def test_what_was_right_before_is_the_same_to_the_bit(mode, suffix):
    image = random_image(mode)
    file = BytesIO()
    image.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    before = np.asarray(Image.open(BytesIO(file.getvalue())).convert("RGB"))
    np.testing.assert_array_equal(saved_and_decoded(image, suffix), before)


@pytest.mark.parametrize("ground", [(255, 255, 255), (0, 0, 0), (10, 200, 90)])
@pytest.mark.parametrize("mode, suffix, options", [
    ("RGBA", "png", {}), ("LA", "png", {}), ("RGBA", "webp", {"lossless": True, "exact": True}), ("RGBA", "tif", {}),
    ("LA", "tif", {}),
])
def test_a_channel_of_opacity_is_laid_over_the_ground(mode, suffix, options, ground):
    image = random_image(mode)
    array = np.asarray(image)
    rgba = array[..., [0, 0, 0, 1]] if mode == "LA" else array
    found = saved_and_decoded(image, suffix, ground, **options)
    assert abs(found - over(rgba, ground)).max() <= 0.51


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_colours_are_laid_over_the_ground(mode):
    straight = random_image({"RGBa": "RGBA", "La": "LA"}[mode])
    array = np.asarray(straight)
    found = np.asarray(decode(straight.convert(mode))).astype(float)
    rgba = array[..., [0, 0, 0, 1]] if mode == "La" else array
    assert abs(found - over(rgba)).max() <= 2, "8 bits of colour × opacity"


@pytest.mark.parametrize("how", ["index", "bytes"])
def test_a_palette_with_transparency_is_laid_over_the_ground(how):
    colours, opacity = np.random.default_rng(1).integers(256, size=(6, 3)), [255, 0, 128, 255, 30, 200]
    index = np.arange(35).reshape(5, 7) % 6
    image = Image.frombytes("P", (7, 5), index.astype(np.uint8).tobytes())
    image.putpalette(colours.astype(np.uint8).tobytes())
    opacity = opacity if how == "bytes" else [255, 0, 255, 255, 255, 255]
    rgba = np.concatenate([colours[index], np.array(opacity)[index][..., None]], axis=-1)
    found = saved_and_decoded(image, "png", (9, 99, 200), transparency=bytes(opacity) if how == "bytes" else 1)
    assert abs(found - over(rgba, (9, 99, 200))).max() <= 0.51
    if how == "index":
        np.testing.assert_array_equal(saved_and_decoded(image, "gif", (9, 99, 200), transparency=1), found)


def test_a_palette_with_its_own_channel_of_opacity():
    image = Image.merge("LA", random_image("LA").split())
    palette = Image.frombytes("P", (7, 5), (np.arange(35) % 6).astype(np.uint8).tobytes())
    palette.putpalette(list(range(18)))
    both = palette.convert("PA")
    both.putalpha(image.getchannel("A"))
    rgba = np.dstack([np.asarray(palette.convert("RGB")), np.asarray(image)[..., 1]])
    assert both.mode == "PA" and abs(np.asarray(decode(both)) - over(rgba)).max() <= 0.51


def png(depth: int, colour: int, rows: bytes, width: int, height: int, *more: tuple[bytes, bytes]) -> Image.Image:
    "A PNG put together by hand, chunk by chunk, for what Pillow does not write; each row begins with filter 0."
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(kind, data) for kind, data in [*more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    return Image.open(BytesIO(b"\x89PNG\r\n\x1a\n" + head + body))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_transparent_grey_is_meant_in_the_units_of_the_file(depth):
    top, width = 2**depth - 1, 8
    values = np.arange(width) % (top + 1) if depth < 16 else np.arange(width) * 9000
    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = int(bits, 2).to_bytes(len(bits) // 8, "big")
    image = png(depth, 0, b"\0" + row, width, 1, (b"tRNS", struct.pack(">H", int(values[1]))))
    found = np.asarray(decode(image, (1, 2, 3)))[0]
    for value, pixel in zip(values, found):
        expected = (1, 2, 3) if value == values[1] else (round(255 * value / top),) * 3
        assert tuple(pixel) == expected, f"{value} of {top}"


def test_one_transparent_colour():
    colours = np.array([[10, 20, 30], [10, 20, 31], [10, 20, 30]], dtype=np.uint8)
    image = png(8, 2, b"\0" + colours.tobytes(), 3, 1, (b"tRNS", struct.pack(">HHH", 10, 20, 30)))
    assert np.asarray(decode(image)).tolist() == [[[255] * 3, [10, 20, 31], [255] * 3]]
    wide = png(16, 2, b"\0" + bytes(18), 3, 1, (b"tRNS", struct.pack(">HHH", 10, 20, 30)))
    with pytest.raises(ValueError, match="16-bit colours, one of them transparent"):
        decode(wide)


@pytest.mark.parametrize("channels, colour", [(2, 4), (3, 2), (4, 6)])
def test_sixteen_bits_of_colour_keep_their_brightness(channels, colour):
    values = np.random.default_rng(0).integers(65536, size=(5, channels)).astype(">u2")
    found = np.asarray(decode(png(16, colour, b"\0" + values.tobytes(), 5, 1)))[0]
    rgba = values.astype(float) / 257
    rgba = rgba[:, [0, 0, 0, 1]] if channels == 2 else rgba if channels == 4 else np.c_[rgba, np.full(5, 255.0)]
    assert abs(found - over(rgba)).max() < 1.6, "Pillow keeps the high byte: under one level of colour and of opacity"


@pytest.mark.parametrize("suffix, options", [
    ("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("pgm", {}),
])
def test_sixteen_bit_grey_is_scaled(suffix, options):
    values = (np.arange(35).reshape(5, 7) * 1920).astype(np.uint16)
    found = saved_and_decoded(Image.fromarray(values), {"pgm": "ppm"}.get(suffix, suffix), **options)
    np.testing.assert_array_equal(found, (values[..., None] / 257).round() + np.zeros(3))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_both_orders_of_bytes(mode):
    values = (np.arange(6).reshape(2, 3) * 12000).astype({"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2"))
    image = Image.frombytes(mode, (3, 2), values.tobytes())
    np.testing.assert_array_equal(np.asarray(decode(image))[..., 1], (values / 257).round())


def test_integers_and_floats():
    values = (np.arange(35).reshape(5, 7) * 1920).astype(np.int32)
    expected = (values[..., None] / 257).round() + np.zeros(3)
    np.testing.assert_array_equal(saved_and_decoded(Image.fromarray(values), "tif"), expected)
    floats = Image.fromarray((values / 65535).astype(np.float32))
    np.testing.assert_array_equal(saved_and_decoded(floats, "tif"), expected)
    with pytest.raises(ValueError, match="go from 0 to 1.3"):
        saved_and_decoded(Image.fromarray((values * 20).astype(np.int32)), "tif")
    with pytest.raises(ValueError, match="allowed for mode F: 0 to 1"):
        saved_and_decoded(Image.fromarray(values.astype(np.float32)), "tif")


def test_a_tiff_in_which_zero_is_white():
    values = (np.arange(35).reshape(5, 7) * 1920).astype(np.uint16)
    found = saved_and_decoded(Image.fromarray(values), "tif", tiffinfo={262: 0})
    file = BytesIO()
    Image.fromarray(values).save(file, "tiff", tiffinfo={262: 0})
    assert Image.open(BytesIO(file.getvalue())).tag_v2[262] == 0
    np.testing.assert_array_equal(found[..., 0], 255 - (values / 257).round())


@pytest.mark.parametrize("mode, suffix, options", [
    ("1", "png", {}), ("1", "tif", {}), ("CMYK", "tif", {}), ("YCbCr", "tif", {}), ("RGBX", "tif", {}),
    ("HSV", None, {}),
])
def test_other_modes_have_the_colours_that_pillow_gives_them(mode, suffix, options):
    image = random_image("L").convert("1") if mode == "1" else random_image(mode)
    found = saved_and_decoded(image, suffix, **options) if suffix else np.asarray(decode(image))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def test_cmyk_in_a_jpeg_is_not_inverted():
    found = saved_and_decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpg", quality=95)
    assert abs(found - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("lab, rgb", [((255, 128, 128), (255, 255, 255)), ((0, 128, 128), (0, 0, 0)),
                                      ((138, 209, 198), (255, 0, 0))])
def test_lab(lab, rgb):
    signed = np.array(lab, dtype=np.uint8) ^ np.array([0, 128, 128], dtype=np.uint8)  # a and b as a TIFF stores them
    image = Image.frombytes("LAB", (4, 4), bytes(signed) * 16)
    found = np.asarray(decode(image)).astype(int)
    assert abs(found - rgb).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode, suffix, options", [
    ("RGB", "jpg", {"quality": 100, "subsampling": 0}), ("RGB", "png", {}), ("RGB", "webp", {"lossless": True}),
    ("RGB", "tif", {}), ("RGB", "tif", {"compression": "tiff_lzw"}), ("L", "png", {}), ("LA", "png", {}),
    ("RGBA", "png", {}), ("P", "png", {}), ("I;16", "png", {}), ("I;16", "tif", {}), ("1", "png", {}),
    ("CMYK", "jpg", {"quality": 100}), ("F", "tif", {}),
])
def test_a_picture_stands_upright(mode, suffix, options, orientation):
    upright = np.asarray(decode(drawing()).resize((24, 16), Image.Resampling.NEAREST))
    stored = Image.fromarray(oriented(upright, orientation))
    grey = np.asarray(stored.convert("L"))
    made = {"I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
            "F": lambda: Image.fromarray(grey.astype(np.float32) / 255), "P": lambda: stored.quantize(16)}
    image = made.get(mode, lambda: stored.convert(mode))()
    found = saved_and_decoded(image, suffix, exif=with_orientation(orientation), **options)
    colours = mode in ("RGB", "RGBA", "P", "CMYK")
    plain = Image.fromarray(upright)
    expected = upright if colours else np.asarray(plain.convert("1" if mode == "1" else "L").convert("RGB"))
    assert found.shape == expected.shape
    assert np.mean(abs(found - expected) > 60) < 0.1, "lies on its side, or is mirrored"


def test_the_eight_orientations_differ():
    upright = np.asarray(decode(drawing()))
    turned = [oriented(upright, orientation) for orientation in range(1, 9)]
    assert len({array.tobytes() for array in turned}) == 8
    assert all(np.mean(abs(a.astype(int) - b) > 60) > 0.1 for i, a in enumerate(turned) for b in turned[:i])


def test_an_orientation_in_xmp_counts_too():
    upright = np.asarray(decode(drawing()))
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    lying = Image.fromarray(oriented(upright, 6))
    np.testing.assert_array_equal(saved_and_decoded(lying, "png", pnginfo=text), upright)


@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_are_those_of_torchvision_to_the_bit(channels):
    transforms = pytest.importorskip("torchvision.transforms")
    grey = [transforms.Grayscale()] if channels == 1 else []
    for width, height, size in [(40, 40, 32), (33, 71, 16), (71, 33, 16), (5, 9, 32), (32, 32, 32), (100, 37, 8),
                                (1, 1, 4), (64, 65, 64), (35, 32, 32), (32, 35, 32)]:
        image = random_image("RGB", (width, height))
        steps = [transforms.Resize(size), transforms.CenterCrop(size), *grey, transforms.PILToTensor()]
        torchvision = transforms.Compose(steps)
        ours = middle_square(image, size)
        ours = np.asarray(ours.convert("L"))[None] if channels == 1 else np.asarray(ours).transpose(2, 0, 1)
        np.testing.assert_array_equal(ours, torchvision(image).numpy())


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_frame_is_read_and_the_others_are_told(name, tmp_path):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if name.endswith("webp") else {}
    red.save(tmp_path / name, save_all=True, append_images=[blue, red], **options)
    pixels, more = read_image(tmp_path / name, 4, 3, (255, 255, 255))
    assert more and (pixels == np.array([255, 0, 0])[:, None, None]).all()
    red.save(tmp_path / ("one" + name))
    assert read_image(tmp_path / ("one" + name), 4, 3, (255, 255, 255))[1] is False


def test_a_png_by_another_name_is_read_and_a_program_is_not_started(tmp_path):
    drawing().save(tmp_path / "a.jpg", "png")
    assert read_image(tmp_path / "a.jpg", 24, 1, (255, 255, 255))[0].shape == (1, 24, 24)
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UnidentifiedImageError):
        read_image(tmp_path / "b.png", 4, 3, (255, 255, 255))


def test_a_strip_is_refused(tmp_path):
    Image.new("L", (1, 60_000)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match="strip of 1×60000"):
        read_image(tmp_path / "strip.png", 64, 3, (255, 255, 255))


@pytest.mark.parametrize("given, colour", [
    ("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ([1, 2, 3], (1, 2, 3)),
])
def test_a_ground(given, colour):
    assert parse_colour(given) == colour


@pytest.mark.parametrize("given", ["wite", "#ffffff80", [1, 2], [1, 2, 256], [1.0, 2, 3], 7, None, [True, 0, 0]])
def test_a_wrong_ground_is_explained(given):
    with pytest.raises(UserError, match="data.dataset.background=.*name of a colour"):
        parse_colour(given)


def test_a_broken_file_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    from perceiver_moe_diffusion.data import image_files
    paths = [f"{number}.png" for number in range(30)]
    for number, path in enumerate(paths):
        Image.new("L", (5, 4), 8 * number).save(tmp_path / path)
    for broken in (3, 17):
        (tmp_path / paths[broken]).write_bytes(b"?")
    pictures = read_images(str(tmp_path), paths, 4, 1, (255, 255, 255))
    assert [path for path, _ in pictures.faults] == ["3.png", "17.png"] and capsys.readouterr().err == ""
    assert all((pictures.pixels[number] == 8 * number).all() for number in range(30) if number not in (3, 17))
    with pytest.raises(UserError, match="holds 2 files that cannot be read as an image: 17.png .* 3.png .*remove them"):
        refuse_faults("root", pictures.faults)
    monkeypatch.setattr(image_files, "MANY", 30)
    image_files.read_images(str(tmp_path), paths, 4, 1, (255, 255, 255))
    assert "reading images" in capsys.readouterr().err


def test_images_that_no_memory_holds_are_refused():
    with pytest.raises(UserError, match="lower data.dataset.image_size=1000000"):
        read_images("root", ["a.png"] * 1000, 10**6, 3, (0, 0, 0))


def test_a_long_list_is_cut():
    assert some_of("abc") == "a, b, c" and some_of("abc", 2) == "a, b and 1 more"
