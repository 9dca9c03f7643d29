"""What somebody gives for a photograph: the bytes of a file, or pixels; and what is said where it is neither."""

import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from phrase_loc.errors import DataError


class SomeTensor(Protocol):
    """A torch.Tensor, named without torch: an exported model reads pictures too."""

    def detach(self) -> Any:
        """Without its gradient."""


#: A path, the bytes of a file, a file open for reading bytes, a Pillow picture, an array (H,W,3), (H,W,4) or (H,W) of
#: uint8, or a tensor (3,H,W), (4,H,W), (1,H,W) or (H,W) of uint8.
Picture: TypeAlias = (
    str
    | os.PathLike
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | NDArray[np.uint8]
    | SomeTensor
)

MAX_BYTES = 1 << 30  # of a file; 80 million pixels of three 32-bit floats are 0.9 GiB

_ENDINGS = (
    ".jpg .jpeg .jpe .jfif .jif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .jp2 .j2k .j2c .jpc "
    ".jpf .jpx .jpg2000 .ppm .pgm .pbm .pnm .pfm .ico .tga"
)
_UNREAD = ".heic .heif .hif .jxl .svg .psd .eps .raw .dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .xcf"
#: Endings (lower case) of the files that a folder's reader takes for pictures; `load_image` reads all of them.
IMAGE_ENDINGS = frozenset(_ENDINGS.split())
#: Endings of pictures in formats that are not read; whoever lists a folder names them as left out.
UNREAD_ENDINGS = frozenset(_UNREAD.split())


def pixels_given(source: object) -> NDArray[np.uint8] | None:
    """Pixels given as an array or a tensor: (H, W), (H, W, 3) or (H, W, 4); None for anything else."""
    torch = sys.modules.get("torch")
    if isinstance(source, np.ndarray):
        array, shape = source, source.shape
        good = array.ndim == 2 or (array.ndim == 3 and shape[2] in {1, 3, 4})
    elif torch is not None and isinstance(source, torch.Tensor):
        shape = tuple(source.shape)
        good = source.ndim == 2 or (source.ndim == 3 and shape[0] in {1, 3, 4})
        good = good and source.dtype == torch.uint8
        array = source.detach().cpu().numpy() if good else np.zeros(0)
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    else:
        return None
    if not good or array.dtype != np.uint8:
        layout = "(H,W,3), (H,W,4) or (H,W)" if isinstance(source, np.ndarray) else "(3,H,W) or (H,W)"
        dtype = str(source.dtype)  # type: ignore[attr-defined]
        raise DataError(
            f"a picture as {_kind(source)} must have uint8 values from 0 to 255 and the shape {layout}; got {dtype} "
            f"of shape {str(tuple(shape))[:60]}"
        )
    return np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


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
    if len(content) > MAX_BYTES:
        raise DataError(f"{name} has {len(content):,} bytes, more than the {MAX_BYTES:,} accepted; shrink it")
    if not content:
        raise DataError(f"{name} is empty (0 bytes) and not an image; copy it again")
    return content


def _file_content(path: str | os.PathLike, name: str) -> bytes:
    try:
        status = os.stat(path)  # a pipe that nobody writes to must not even be opened
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{name} is a folder; an image file was expected")
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{name} is a pipe, a device or a socket; an image file was expected")
        if status.st_size > MAX_BYTES:
            raise DataError(
                f"{name} has {status.st_size:,} bytes, more than the {MAX_BYTES:,} accepted; shrink it"
            )
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"image file {name} does not exist; check the path") from None
    except PermissionError:
        raise DataError(f"image file {name} may not be read; check its permissions") from None
    except (OSError, ValueError) as error:  # a null character in a path is a ValueError
        if isinstance(error, DataError):
            raise
        raise DataError(f"image file {name} cannot be read ({_reason(error)}); check the path") from None


@contextmanager
def one_sentence(name: str) -> Iterator[None]:
    """Whatever a decoder raises becomes one DataError; what it warns of is of no use to who asked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{name} is not an image, or in a format that cannot be read; give a JPEG, PNG or WebP"
        ) from None
    except Image.DecompressionBombError:
        raise DataError(f"{name} has more pixels than are accepted; shrink it") from None
    except MemoryError:
        raise DataError(f"{name} needs more memory than there is; shrink it") from None
    except Exception as error:  # decoders raise nearly everything on broken content
        raise DataError(f"{name} is a broken image: {_reason(error)}") from None


def name_of(source: object) -> str:
    """How a source is called in a sentence: its path, made printable and not too long."""
    if not isinstance(source, (str, os.PathLike)):
        return "the image"
    path = os.fspath(source)
    text = os.fsdecode(path) if isinstance(path, bytes) else path
    text = text if text and text.isprintable() else ascii(text)
    return text if len(text) <= 300 else f"{text[:140]}...{text[-140:]}"


def _kind(source: object) -> str:
    kind = type(source)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"a {name}"[:100]


def _reason(error: Exception) -> str:
    said = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
    return said or type(error).__name__
