"""Photographs of every kind become upright 8-bit RGB, or one sentence."""

import io
import os
import socket
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from phrase_loc.errors import DataError
from phrase_loc.image_inputs import orientation
from phrase_loc.images import IMAGE_ENDINGS, UNREAD_ENDINGS, load_image, load_tensor, picture_size, to_tensor
from tests.conftest import encoded


def test_rotation_is_applied(drawn_image):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    upright = load_image(encoded(drawn_image, "JPEG", exif=exif, quality=95))
    assert upright.size == (80, 120)
    red, _, blue = upright.getpixel((80 - 40, 30))  # (30, 40) of the stored picture
    assert red > 200 > 60 > blue


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I", "F", "YCbCr"])
def test_modes_become_rgb(mode, drawn_image):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(drawn_image.convert("L")).astype(np.uint16) * 257)
    else:
        image = drawn_image.convert("L").convert(mode) if mode in {"I", "F"} else drawn_image.convert(mode)
    rgb = load_image(image)
    assert (rgb.mode, rgb.size) == ("RGB", (120, 80))
    white, dark = rgb.getpixel((0, 0)), rgb.getpixel((30, 40))
    assert min(white) > 240
    assert min(dark) < 128, "the red square is darker than the ground in every mode"


def test_transparent_pixels_are_white():
    assert load_image(Image.new("RGBA", (3, 2), (255, 0, 0, 0))).getpixel((1, 1)) == (255, 255, 255)


def test_one_pixel_works():
    image = load_image(encoded(Image.new("L", (1, 1), 7), "PNG"))
    assert to_tensor(image).tolist() == [[[7]], [[7]], [[7]]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"hello", "not an image"),
        (b"\xff\xd8\xff\xe0 nothing more", "not an image|broken"),
    ],
)
def test_no_image(content, sentence, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        load_image(path)


def test_truncated_file_is_named(drawn_image, tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(drawn_image.resize((600, 400)), "JPEG")[:2000])
    with pytest.raises(DataError, match=r"cut\.jpg is a broken image"):
        load_image(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="is a folder"):
        load_image(tmp_path)


def test_too_many_pixels_are_refused_before_decoding(drawn_image):
    with pytest.raises(DataError, match="120 x 80 pixels, more than the 9,000"):
        load_image(drawn_image, max_pixels=9_000)


# which way up


def exif_of(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """An EXIF block of entries (tag, type, count, four bytes of value)."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + b"".join(struct.pack(order + "HHI", *e[:3]) + e[3] for e in entries) + bytes(4)


def turn(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return (0x0112, 3, 1, struct.pack(order + "HH", value, 0))


BROKEN = {
    "signed rational over zero": [(0x011A, 10, 1, b"\x10\0\0\0")],
    "text in an offset": [(0xA005, 2, 4, b"abc\0")],
    "sub-directory outside": [(0x8769, 4, 1, b"\xff" * 4)],
    "directory in itself": [(0x8825, 4, 1, b"\x08\0\0\0")],
    "count without end": [(0x010F, 2, 0xFFFFFFFF, b"\x30\0\0\0")],
    "type that is none": [(0x0132, 99, 1, bytes(4))],
}


def with_exif(image: Image.Image, kind: str, block: bytes) -> bytes:
    """A file with an EXIF block as it is, whatever Pillow thinks of it."""
    if kind == "JPEG":
        block = b"Exif\0\0" + block
        data = encoded(image, "JPEG", quality=95)
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    if kind == "PNG":  # at the end, where Pillow finds it only after decoding, and with a wrong checksum
        data = encoded(image, "PNG")
        return data[:-12] + struct.pack(">I", len(block)) + b"eXIf" + block + bytes(4) + data[-12:]
    if kind == "WEBP":
        return encoded(image, "WEBP", lossless=True, exif=block)
    data = encoded(image, "TIFF")  # the directory moves to the end, with the block's entries
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    own, more = data[start + 2 : start + 2 + 12 * count], block[10:-4]
    directory = struct.pack("<H", count + len(more) // 12) + own + more + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_exif_block_leaves_a_picture_whole_and_upright(kind, broken, drawn_image):
    for entries in ([turn(6), *BROKEN[broken]], [*BROKEN[broken], turn(6)]):
        data = with_exif(drawn_image, kind, exif_of(*entries))
        expected = np.asarray(drawn_image.transpose(Image.Transpose.ROTATE_270)).astype(int)
        assert np.abs(np.asarray(load_image(data)) - expected).mean() < 2
        assert load_tensor(data).shape == (3, 120, 80)
        assert picture_size(data) == ((120, 80), (80, 120))


@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("order", ["<", ">"])
def test_all_eight_turns_are_those_of_pillow(value, order, drawn_image):
    from PIL import ImageOps

    data = with_exif(drawn_image, "JPEG", exif_of(turn(value, order), order=order))
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(np.asarray(load_image(data)), expected)
    assert np.abs(load_tensor(data).permute(1, 2, 0).numpy().astype(int) - expected).max() <= 3
    stored = load_image(data, upright=False)
    assert (
        picture_size(data)
        == (expected.shape[:2], (stored.height, stored.width))
        == (expected.shape[:2], (80, 120))
    )


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP", "AVIF"])
def test_a_picture_that_is_open_is_turned_alike(kind, drawn_image):
    data = encoded(drawn_image, kind, exif=b"Exif\0\0" + exif_of(turn(6)))
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(np.asarray(load_image(opened)), np.asarray(load_image(data)))
    assert picture_size(data) == ((120, 80), (80, 120))
    for upright in (True, False):
        once = load_image(data, upright=upright)
        assert load_image(once).size == once.size, "nothing is turned twice"
        with Image.open(io.BytesIO(data)) as opened:
            assert load_image(load_image(opened)).size == (80, 120)


def test_an_avif_with_a_broken_exif_block_is_read(drawn_image):
    text = (0x010F, 2, 4, b"abc\0")
    data = encoded(drawn_image, "AVIF", exif=exif_of(text)).replace(exif_of(text), b"?" * len(exif_of(text)))
    assert load_image(data).size == (120, 80)


@pytest.mark.parametrize(
    "segment", [b"\xff\xe2\0\x0fICC_PROFILE\0\1", b"\xff\xed\0\x16Photoshop 3.0\x008BIM\3\xed"]
)
def test_a_jpeg_with_a_broken_profile_or_resource_is_read(segment, drawn_image):
    data = encoded(drawn_image, "JPEG")
    odd = data[:2] + segment + data[2:]
    assert np.array_equal(np.asarray(load_image(odd)), np.asarray(load_image(data)))
    assert load_tensor(odd).equal(load_tensor(data))


@pytest.mark.parametrize(
    ("block", "value"),
    [
        (b"", 1), (b"II*", 1), (b"II*\0", 1), (b"II*\0\xff\xff\xff\xff", 1), (b"II*\0\x08\0\0\0\xff\xff", 1),
        (b"XX*\0" + exif_of(turn(6))[4:], 1), (exif_of(turn(9)), 1), (exif_of(turn(0)), 1),
        (exif_of(turn(8))[:22], 8), (exif_of((0x0112, 2, 1, b"6\0\0\0")), 1),
        (exif_of((0x0112, 4, 1, b"\x06\0\0\0")), 6),
        (exif_of((0x0112, 3, 7, b"\x06\0\0\0")), 1), (b"Exif\0\0Exif\0\0" + exif_of(turn(5)), 5),
    ],
)  # fmt: skip
def test_the_orientation_is_read_where_it_is_readable(block, value):
    assert orientation(block) == value


# formats


def test_metadata_beside_the_pixels_may_be_large(drawn_image):
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
    for data in (
        encoded(drawn_image, "PNG", pnginfo=texts),
        encoded(drawn_image, "PNG", icc_profile=bytes(2_500_000)),
        encoded(drawn_image, "TIFF", icc_profile=bytes(2_500_000)),
    ):
        assert np.array_equal(np.asarray(load_image(data)), np.asarray(drawn_image))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\nshowpage\n", "a PostScript file"),
        (b"\xc5\xd0\xd3\xc6" + bytes(40), "a PostScript file"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC picture"),
        (b"\xff\x0a" + bytes(20), "a JPEG XL picture"),
        (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<svg width='9'/>", "an SVG drawing"),
        (b"\n<!DOCTYPE html><html><svg/></html>", "an HTML page"),
        (b"8BPS\0\1" + bytes(30), "a Photoshop file"),
    ],
)
def test_a_format_that_is_not_read_is_named_and_starts_no_program(content, what, tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a program was started"))
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for read, source in ((load_image, path), (load_image, content), (load_tensor, content)):
        with pytest.raises(DataError, match=f"is {what}, in a format that cannot be read; convert it"):
            read(source)


def test_every_listed_ending_is_read(drawn_image, tmp_path):
    kinds = Image.registered_extensions()
    more = {".jif": "JPEG", ".jpg2000": "JPEG2000"}
    for ending in IMAGE_ENDINGS:
        path = tmp_path / f"photo{ending}"
        kind = more.get(ending) or kinds[ending]
        mode = {".pbm": "1", ".pgm": "L", ".pfm": "F"}.get(ending, "RGB")
        drawn_image.convert("L" if mode == "F" else "RGB").convert(mode).save(path, kind)
        assert load_image(path).mode == "RGB"
    assert not IMAGE_ENDINGS & UNREAD_ENDINGS


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "MPO", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_taken(kind, drawn_image):
    others = [Image.new("RGB", drawn_image.size, "green")] * 2
    picture = load_image(encoded(drawn_image, kind, save_all=True, append_images=others))
    assert picture.size == (120, 80)
    assert picture.getpixel((30, 40))[0] > 200 > 60 > picture.getpixel((30, 40))[2]


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "RGBX", "HSV", "LAB", "I;16B", "I;16L"])
def test_rare_modes_become_rgb(mode):
    assert (load_image(Image.new(mode, (6, 4))).mode, load_image(Image.new(mode, (6, 4))).size) == (
        "RGB",
        (6, 4),
    )


def test_palettes_with_transparent_entries_lie_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    picture = load_image(encoded(image, "PNG", transparency=bytes([0, 128])))
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 0)) == (127, 127, 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 200, 255]], np.uint16), [0, 200, 255]),
        (np.array([[0, 2048, 4095]], np.uint16), [0, 128, 255]),
        (np.array([[0, 400, 1000]], np.uint16), [0, 100, 249]),
        (np.array([[-10, 0, 10]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, np.inf, 1, -np.inf, 0]], np.float32), [0, 255, 255, 0, 0]),
        (np.full((1, 2), np.nan, np.float32), [0, 0]),
    ],
)
def test_deep_grey_becomes_eight_bits(values, expected):
    assert np.asarray(load_image(Image.fromarray(values)))[0, :, 0].tolist() == expected


def test_deep_pictures_take_a_small_multiple_of_their_pixels():
    side = 4000
    content = encoded(Image.fromarray(np.full((side, side), 30_000, np.uint16)), "PNG")
    tracemalloc.start()  # numpy's arrays; Pillow's own buffers are 2, 1 and 4 bytes for each pixel
    try:
        assert load_image(content).size == (side, side)
        assert tracemalloc.get_traced_memory()[1] < 4 * side * side
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "error", [struct.error("a"), MemoryError(), RecursionError("b"), OverflowError(), KeyError("c"), IndexError("d"),
              AttributeError("e"), AssertionError(), NotImplementedError(), ZeroDivisionError()], ids=repr
)  # fmt: skip
def test_whatever_a_decoder_raises_is_one_sentence(error, drawn_image, monkeypatch):
    from PIL import ImageFile

    def fail(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    for read in (load_image, load_tensor):
        with pytest.raises(DataError, match=r"the image (is a broken image|needs more memory)"):
            read(encoded(drawn_image, "PNG"))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_a_picture_without_pixels_is_refused(size):
    with pytest.raises(DataError, match="at least one is needed"):
        load_image(Image.new("RGB", size))


def test_a_size_beyond_the_bound_is_refused_by_training_too(drawn_image):
    data = bytearray(encoded(drawn_image, "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xff\xff\xff\xff"
    for read in (load_image, load_tensor):
        with pytest.raises(DataError, match="pixels"):
            read(bytes(data))


# files that are none


def sentence(path: object) -> str:
    with pytest.raises(DataError) as caught:
        load_image(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_pipes_devices_sockets_and_loops_are_refused_unopened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        for path in (tmp_path / "pipe.jpg", "/dev/zero", "socket.jpg"):
            assert "is a pipe, a device or a socket" in sentence(path)
    assert "cannot be read" in sentence(tmp_path / "loop.jpg")


def test_odd_paths_get_one_sentence(tmp_path):
    assert "cannot be read" in sentence("a\0b.jpg")
    assert "does not exist" in sentence("")
    assert "cannot be read" in sentence("x" * 100_000)
    assert "does not exist" in sentence("two\nlines.jpg")
    (tmp_path / "empty.jpg").touch()
    assert "is empty" in sentence(tmp_path / "empty.jpg")
    assert "more than the" in sentence(_sparse(tmp_path / "huge.jpg"))


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep names as Unicode")
def test_a_name_that_is_not_utf8_is_read_or_named(drawn_image, tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    drawn_image.save(path)
    assert load_image(path).size == (120, 80)
    os.truncate(path, 60)
    sentence(path).encode("utf-8")


# given in Python


@pytest.mark.parametrize(
    "make",
    [
        np.asarray, lambda i: np.asarray(i)[::1, ::1].copy(order="F"), to_tensor, lambda i: to_tensor(i).clone(),
        lambda i: encoded(i, "PNG"), lambda i: bytearray(encoded(i, "PNG")), lambda i: memoryview(encoded(i, "PNG")),
        lambda i: io.BytesIO(encoded(i, "PNG")), lambda i: i,
    ],
)  # fmt: skip
def test_a_picture_may_be_given_in_many_ways(make, drawn_image):
    assert np.array_equal(np.asarray(load_image(make(drawn_image))), np.asarray(drawn_image))


def test_an_open_file_is_read_from_its_start_and_stays_open(drawn_image, tmp_path):
    drawn_image.save(tmp_path / "photo.png")
    with (tmp_path / "photo.png").open("rb") as file:
        file.seek(10)
        assert load_image(file).size == (120, 80)
        assert not file.closed
    with pytest.raises(DataError, match="broken image"):
        load_image(file)


def test_grey_and_transparent_arrays(drawn_image):
    grey = np.asarray(drawn_image.convert("L"))
    for given in (grey, grey[..., None], torch.from_numpy(grey.copy()), torch.from_numpy(grey.copy())[None]):
        assert np.array_equal(np.asarray(load_image(given)), np.stack([grey] * 3, -1))
    clear = np.zeros((2, 3, 4), np.uint8)
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(torch.from_numpy(clear).permute(2, 0, 1)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (np.zeros((4, 5, 3)), "float64"),
        (np.zeros((3, 40, 50), np.uint8), r"\(3, 40, 50\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"\(1, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), "at least one"),
        (np.array(["photo.jpg"]), "uint8"),
        (np.zeros((4, 5), bool), "bool"),
        (torch.zeros(3, 4, 5), "float32"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8)[None], r"\(1, 4, 5, 3\)"),
        ([np.zeros((400, 500, 3), np.uint8)], "got a list"),
        (None, "got a NoneType"),
        (3.5, "got a float"),
        ({"image": 1}, "got a dict"),
        (io.StringIO("text"), "mode 'rb'"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_picture_is_named_by_its_type(given, names):
    with pytest.raises(DataError, match=names) as caught:
        load_image(given)
    assert len(str(caught.value)) < 300
