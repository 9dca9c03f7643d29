"""What somebody gives for a photograph: the bytes of a file, or pixels; and what is said where it is neither."""

import io
import os
import re
import stat
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from phrase_loc.errors import DataError
from phrase_loc.files import reason


class SomeTensor(Protocol):
    """A torch.Tensor, named without torch: an exported model reads pictures too."""

    def detach(self) -> Any:
        """Without its gradient."""


#: A path, the bytes of a file, a file open for reading bytes, a Pillow picture, an array (H,W,3), (H,W,4) or (H,W) of
#: uint8, or a tensor (3,H,W), (4,H,W), (1,H,W) or (H,W) of uint8.
Picture: TypeAlias = (
    str | os.PathLike | bytes | bytearray | memoryview | BinaryIO | Image.Image | NDArray[np.uint8] | SomeTensor
)  # fmt: skip

#: What of Pillow's formats is read; MPO comes with JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
MAX_BYTES = 1 << 30  # of a file; 80 million pixels of three 32-bit floats are 0.9 GiB
_TROUBLE: dict[type[Exception], str] = {
    UnidentifiedImageError: "is not an image, or in a format that cannot be read; give a JPEG, PNG or WebP",
    Image.DecompressionBombError: "has more pixels than are accepted; shrink it",
    MemoryError: "needs more memory than there is; shrink it",
}


def pixels_given(source: Any) -> NDArray[np.uint8] | None:
    """Pixels given as an array or a tensor: (H, W), (H, W, 3) or (H, W, 4); None for anything else."""
    torch = sys.modules.get("torch")
    tensor = torch is not None and isinstance(source, torch.Tensor)
    if not tensor and not isinstance(source, np.ndarray):
        return None
    shape, dtype = tuple(source.shape), str(source.dtype)
    channels = shape[0 if tensor else 2] if len(shape) == 3 else 1
    if len(shape) not in {2, 3} or channels not in {1, 3, 4} or dtype.removeprefix("torch.") != "uint8":
        layout = "(3,H,W) or (H,W)" if tensor else "(H,W,3), (H,W,4) or (H,W)"
        raise DataError(
            f"a picture as {_kind(source)} must have uint8 values from 0 to 255 and the shape {layout}; got {dtype} "
            f"of shape {str(shape)[:60]}"
        )
    array = source.detach().cpu().numpy() if tensor else source
    array = np.moveaxis(array, 0, -1) if tensor and len(shape) == 3 else array
    return np.ascontiguousarray(array[..., 0] if len(shape) == 3 and channels == 1 else array)


def file_given(source: Any, name: str) -> bytes:
    """The bytes of a file given by its path, its content, or open."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        content = _file_content(source, name)
    elif callable(getattr(source, "read", None)):
        if callable(getattr(source, "seekable", None)) and source.seekable():
            source.seek(0)
        content = source.read()
        if not isinstance(content, bytes):
            raise DataError(f"{_kind(source)} gives no bytes; open the image file with mode 'rb'")
    else:
        raise DataError(
            "expected a photograph: a path, the bytes of a file, an open file, a Pillow picture, or an array (H,W,3) "
            f"or tensor (3,H,W) of uint8; got {_kind(source)}"
        )
    if not content:
        raise DataError(f"{name} is empty (0 bytes) and not an image; copy it again")
    _check_bytes(len(content), name)
    return content


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{name} has {size:,} bytes, more than the {MAX_BYTES:,} accepted; shrink it")


def _file_content(path: str | os.PathLike, name: str) -> bytes:
    try:
        status = os.stat(path)  # a pipe that nobody writes to must not even be opened
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe, a device or a socket"
            raise DataError(f"{name} is a {kind}; an image file was expected")
        _check_bytes(status.st_size, name)
        with open(path, "rb") as file:
            return file.read()
    except DataError:
        raise
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        what = f"cannot be read ({reason(error)}); check the path"
        if isinstance(error, FileNotFoundError):
            what = "does not exist; check the path"
        elif isinstance(error, PermissionError):
            what = "may not be read; check its permissions"
        raise DataError(f"image file {name} {what}") from None


@contextmanager
def one_sentence(source: object) -> Iterator[str]:
    """The name of a source; within it what a decoder raises becomes one DataError, and warnings are dropped."""
    name = name_of(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield name
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly everything on broken content
        told = (what for kind, what in _TROUBLE.items() if isinstance(error, kind))
        raise DataError(f"{name} {next(told, f'is a broken image: {reason(error)}')}") from None


def name_of(source: object) -> str:
    """How a source is called in a sentence: its path, made printable and not too long."""
    if not isinstance(source, (str, os.PathLike)):
        return "the image"
    text = os.fsdecode(source)
    text = text if text and text.isprintable() else ascii(text)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def _kind(source: object) -> str:
    kind = type(source)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a {name}"[:100]


_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = {b"II*\0": "<", b"MM\0*": ">"}  # byte orders; Pillow turns a BigTIFF by itself
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # types of a TIFF entry
_AVIF_EXIF = re.compile(rb"(infe(?:\x02.{3}.{2}|\x03.{3}.{4})..)Exif", re.DOTALL)
# TIFF: size, samples, compression, strips, palette, fax options, predictor, tiles, inks, alpha, JPEG, YCbCr
_PIXEL_TAGS = frozenset(
    {*range(256, 260), 262, 266, 273, *range(277, 280), 284, 292, 293, 317, 320, *range(322, 326), 332, 334}
    | {*range(338, 342), 347, *range(512, 522), *range(529, 533), 50674}
)

_FOREIGN = {
    "a HEIC picture": re.compile(rb".{4}ftyp(?:he[iv]|mif1|msf1)", re.DOTALL),
    "a JPEG XL picture": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "a PostScript file": re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"),
    "a PDF": re.compile(rb"%PDF"),
    "a Photoshop file": re.compile(rb"8BPS"),
    "an HTML page": re.compile(rb"\s*<(?:!doctype html|html)", re.IGNORECASE),  # saved in place of a picture
    "an SVG drawing": re.compile(rb"\s*(?:<svg|<.{0,1000}?<svg)", re.DOTALL),
}


def _without_metadata(content: bytes) -> tuple[bytes, int]:
    """A PNG, TIFF, AVIF or JPEG without what Pillow refuses it for where it is broken, its first picture alone.

    With its orientation, 1 (upright or no readable tag) to 8. In other formats than PNG and TIFF (AVIF is turned by
    boxes of its own) the orientation is left to Pillow, which hands the block out unread.
    """
    if content.startswith(b"\xff\xd8\xff"):  # a broken profile or resource of a whole picture stops Pillow
        return content.replace(b"ICC_PROFILE\0", bytes(12)).replace(b"Photoshop 3.0\0", bytes(14)), 1
    if content.startswith(_PNG):
        return _bare_png(content)
    if content[:4] in _TIFF:  # the directory keeps what the pixels need, in place, and leads to no other
        order, place, entries = _directory(content)
        kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _PIXEL_TAGS]
        directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4) if place else b""
        return content[:place] + directory + content[place + len(directory) :], orientation(content)
    if content[4:8] == b"ftyp" and content[8:12] in {b"avif", b"avis", b"mif1", b"msf1"}:
        return _AVIF_EXIF.sub(rb"\1free", content), 1
    return content, 1


def orientation(exif: bytes) -> int:
    r"""The orientation in an EXIF block or a TIFF file, 1 to 8; 1 where there is none or it is not readable.

    >>> orientation(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
    6
    """
    while exif.startswith(b"Exif\0"):
        exif = exif[6:]
    order, _, entries = _directory(exif)
    for entry in entries:
        tag, kind, count = struct.unpack_from(order + "HHI", entry)
        if tag == 0x0112 and count == 1 and kind in _INTEGERS:
            (value,) = struct.unpack_from(order + _INTEGERS[kind], entry, 8)
            return value if 1 <= value <= 8 else 1
    return 1


def _directory(data: bytes) -> tuple[str, int, list[bytes]]:
    """Byte order, place and whole entries of a TIFF's first directory; "", 0 and [] where there is none."""
    order = _TIFF.get(data[:4], "")
    place = struct.unpack_from(order + "I", data, 4)[0] if order and len(data) >= 8 else 0
    if not 8 <= place <= len(data) - 2:
        return "", 0, []
    (count,) = struct.unpack_from(order + "H", data, place)
    end = min(place + 2 + 12 * count, len(data) - 11)
    return order, place, [data[at : at + 12] for at in range(place + 2, end, 12)]


def _bare_png(content: bytes) -> tuple[bytes, int]:
    parts, at, exif = [_PNG], 8, b""
    while at + 8 <= len(content):
        end, kind = at + 12 + int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if not kind.isalpha():
            parts.append(content[at:])
            break
        if kind == b"eXIf" and not exif:
            exif = content[at + 8 : end - 4]
        elif kind == b"tRNS" or kind[:1].isupper():  # a capital letter: no picture without it
            parts.append(content[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(parts), orientation(exif)


def opened(content: bytes, name: str) -> tuple[Image.Image, int]:
    """The file with its header read, and its orientation."""
    bare, turn = _without_metadata(content)
    try:
        image = Image.open(io.BytesIO(bare), formats=FORMATS)
    except UnidentifiedImageError:
        if kind := next((name for name, begins in _FOREIGN.items() if begins.match(content)), ""):
            raise DataError(
                f"{name} is {kind}, in a format that cannot be read; convert it to JPEG, PNG or WebP"
            ) from None
        raise
    return image, exif_orientation(image) if turn == 1 else turn


def exif_orientation(image: Image.Image) -> int:
    """The orientation that Pillow has read, 1 to 8; of a picture given by pixels it may stand behind them."""
    exif = image.info.get("exif")
    return orientation(exif) if isinstance(exif, bytes) else 1
