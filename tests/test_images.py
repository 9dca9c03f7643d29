"""Photographs of every kind become upright 8-bit RGB, or one sentence."""

import io

import numpy as np
import pytest
from PIL import Image

from phrase_loc.errors import DataError
from phrase_loc.images import load_image, to_tensor


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
        (b"", "not an image"),
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
