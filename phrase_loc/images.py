"""A photograph from a file or from Python, as 8-bit RGB and upright, or one clear sentence: the one decoder.

Query, training, evaluation, server and exported models all read through it. The EXIF orientation is applied,
transparency is laid on white, palette, grey, CMYK and 16-bit pictures become RGB, of several frames the first is
taken. A picture of more than `MAX_PIXELS` pixels is refused before it is decoded, and what is decoded takes a small
multiple of its pixels. Only formats that Pillow decodes by itself are read: an EPS would start Ghostscript.
"""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from phrase_loc.errors import DataError
from phrase_loc.image_inputs import (
    IMAGE_ENDINGS,
    UNREAD_ENDINGS,
    Picture,
    file_given,
    foreign_format,
    name_of,
    one_sentence,
    orientation,
    pixels_given,
    without_metadata,
)
from phrase_loc.profiling import lap

if TYPE_CHECKING:  # an exported model reads pictures without torch
    from torch import Tensor

__all__ = [
    "FORMATS",
    "IMAGE_ENDINGS",
    "MAX_PIXELS",
    "UNREAD_ENDINGS",
    "load_image",
    "load_tensor",
    "picture_size",
    "to_tensor",
]

MAX_PIXELS = 80_000_000

#: What of Pillow's formats is read; MPO comes with JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BAND = 1 << 20  # pixels that are converted at once
_END_OF_JPEG = b"\xff\xd9"


@lap("decode")
def load_image(source: Picture, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """Decode and normalise a photograph.

    Args:
        source: a file, its content, or a picture that is already open: see `Picture`. It is not changed.
        max_pixels: largest width times height that is decoded.
        upright: turn it as its EXIF orientation says; False leaves the stored frame.

    Returns:
        An 8-bit RGB picture; its `size` is (W, H), as Pillow has it.

    Raises:
        DataError: no file, not an image, truncated, empty, too large, or nothing that a picture can be made of.
    """
    name = name_of(source)
    with one_sentence(name):
        if isinstance(source, Image.Image):
            _check_size(source, name, max_pixels)
            source.load()
            return _upright(_rgb(source), _orientation(source) if upright else 1)
        if (array := pixels_given(source)) is not None:
            image = Image.fromarray(array)
            _check_size(image, name, max_pixels)
            return _upright(_rgb(image), 1)
        image, turn, _ = _opened(file_given(source, name), name)
        with image:
            _check_size(image, name, max_pixels)
            image.load()
            _check_size(image, name, max_pixels)  # an icon's own picture may be larger than its list says
            return _upright(_rgb(image), turn if upright else 1)


def load_tensor(content: bytes) -> "Tensor":
    """The content of an image file -> (3, H, W) uint8 as `load_image` decodes it, but for a decoder's rounding.

    An upright whole JPEG goes to torchvision's decoder, about twice as fast; everything else, and whatever that
    refuses, to Pillow, which also decides what is broken.

    Raises:
        DataError: not an image, or a truncated one.
    """
    with one_sentence("the image"):
        image, turn, bare = _opened(content, "the image")
        with image:
            _check_size(image, "the image", MAX_PIXELS)
            quick = image.format == "JPEG" and image.mode in {"RGB", "L"} and turn == 1
            if quick and bare.rstrip(b"\0").endswith(_END_OF_JPEG):
                try:
                    import torch
                    from torchvision.io import ImageReadMode, decode_jpeg

                    raw = torch.frombuffer(bytearray(bare), dtype=torch.uint8)
                    pixels = decode_jpeg(raw, mode=ImageReadMode.RGB)
                    if pixels.shape == (3, image.height, image.width):
                        return pixels
                except Exception:  # a coding that it does not know, a torchvision without its library
                    pass
            image.load()
            return to_tensor(_upright(_rgb(image), turn))


def picture_size(source: Picture) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) of a picture upright, as `load_image` gives it, and (H, W) as it is stored; pixels are not decoded.

    Raises:
        DataError: no file, or not an image.
    """
    name = name_of(source)
    with one_sentence(name):
        if isinstance(source, Image.Image):
            image, turn = source, _orientation(source)
        elif (array := pixels_given(source)) is not None:
            image, turn = Image.fromarray(array), 1
        else:
            image, turn, _ = _opened(file_given(source, name), name)
        width, height = image.size
    return ((width, height) if turn >= 5 else (height, width)), (height, width)


def to_tensor(image: Image.Image) -> "Tensor":
    """RGB picture -> (3, H, W) uint8."""
    import torch

    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def _opened(content: bytes, name: str) -> tuple[Image.Image, int, bytes]:
    """The file with its header read, its orientation, and what of the file the decoder is given."""
    bare, turn = without_metadata(content)
    try:
        image = Image.open(io.BytesIO(bare), formats=FORMATS)
    except UnidentifiedImageError:
        if kind := foreign_format(content):
            raise DataError(
                f"{name} is {kind}, in a format that cannot be read; convert it to JPEG, PNG or WebP"
            ) from None
        raise
    return image, _orientation(image) if turn == 1 else turn, bare


def _orientation(image: Image.Image) -> int:
    exif = image.info.get("exif")
    return orientation(exif) if isinstance(exif, bytes) else 1


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels:,} accepted; shrink it"
        )
    if width * height == 0:
        raise DataError(f"{name} has {width} x {height} pixels; at least one is needed")


# pixels


def _upright(image: Image.Image, turn: int) -> Image.Image:
    """Turned, and without the tag that said so: nobody turns it twice."""
    image.info = {}
    return image.transpose(_TURNS[turn]) if turn in _TURNS else image


def _rgb(image: Image.Image) -> Image.Image:
    """Any loaded Pillow picture as 8-bit RGB on a white ground, in its stored frame."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if "transparency" not in image.info and image.mode not in {"LA", "PA", "RGBA", "La", "RGBa"}:
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for top, band in _bands(image):
        whole = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")
        ground = Image.new("RGBA", band.size, "white")
        rgb.paste(Image.alpha_composite(ground, whole).convert("RGB"), (0, top))
    return rgb


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit or float grey -> 8-bit: the type's range for integers up to 16 bits, else min to max."""
    finite = (values[np.isfinite(values)] for values in (np.asarray(band) for _, band in _bands(image)))
    ends = [float(end) for values in finite if values.size for end in (values.min(), values.max())]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    if not (high > 65535 or low < 0 or 0 < high <= 1):
        low, high = 0.0, 65535.0 if high > 255 else 255.0
    grey = Image.new("L", image.size)
    for top, band in _bands(image):
        values = np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=high, neginf=low)
        scaled = (values - low) / max(high - low, 1e-12)
        grey.paste(Image.fromarray(np.round(scaled.clip(0, 1) * 255).astype(np.uint8)), (0, top))
    return grey


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The picture in bands of whole rows, each with its top."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(image.height, top + rows)))
