"""A photograph from a file, as 8-bit RGB and upright, or one clear sentence.

EXIF rotation is applied, transparency is laid on white, palette, grey, CMYK and 16-bit pictures become
RGB. A picture of more than `MAX_PIXELS` pixels is refused before it is decoded: Pillow itself only warns
between 89 and 179 million pixels.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from phrase_loc.errors import DataError
from phrase_loc.profiling import lap

MAX_PIXELS = 80_000_000

#: Endings (lower case) of the files that a folder's reader takes for pictures; `load_image` reads all of them.
IMAGE_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .jif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .jp2 .j2k .j2c .jpc "
    ".jpf .jpx .jpg2000 .ppm .pgm .pbm .pnm .pfm .ico .tga".split()
)
#: Endings of pictures in formats that are not read; whoever lists a folder names them as left out.
UNREAD_ENDINGS = frozenset(
    ".heic .heif .hif .jxl .svg .psd .eps .raw .dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .xcf".split()
)


@lap("decode")
def load_image(
    source: str | os.PathLike | bytes | Image.Image, max_pixels: int = MAX_PIXELS, upright: bool = True
) -> Image.Image:
    """Decode and normalise a photograph.

    Args:
        source: a path, the bytes of a file, or a picture that is already open.
        max_pixels: largest width times height that is decoded.
        upright: turn it as its EXIF orientation says; False leaves the stored frame.

    Returns:
        An upright 8-bit RGB picture; its `size` is (W, H), as Pillow has it.

    Raises:
        DataError: no file, not an image, truncated, empty or too large.
    """
    name = "the image" if isinstance(source, (bytes, Image.Image)) else str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = _open(source)
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"{name} has {width} x {height} pixels, more than the {max_pixels:,} accepted; shrink it"
                )
            if isinstance(source, Image.Image):
                image.load()
                return to_rgb(image, upright)
            with image:
                image.load()
                return to_rgb(image, upright)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"image file {name} does not exist; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{name} is a folder; an image file was expected") from None
    except PermissionError:
        raise DataError(f"image file {name} may not be read; check its permissions") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{name} has more than the {max_pixels:,} pixels that are accepted; shrink it"
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name} is not an image, or in a format that cannot be read; give a JPEG, PNG or WebP"
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        raise DataError(f"{name} is a broken image: {' '.join(str(error).split())}") from None


def picture_size(source: str | os.PathLike | bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) of a picture file upright, as `load_image` gives it, and (H, W) as it is stored; pixels are not decoded.

    Raises:
        DataError: no file, or not an image.
    """
    try:
        with _open(source) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    except OSError:
        raise DataError(f"{source!r} is not an image, or in a format that cannot be read") from None
    return ((width, height) if turned else (height, width)), (height, width)


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """Any Pillow picture as 8-bit RGB on a white ground, turned as its EXIF orientation says if `upright`."""
    image = ImageOps.exif_transpose(image) if upright else image
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_bytes(np.asarray(image)))
    if "transparency" in image.info or image.mode in {"LA", "PA", "RGBA", "La", "RGBa"}:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def _open(source: str | os.PathLike | bytes | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """16-bit, 32-bit or float grey -> 8-bit: the type's range for integers up to 16 bits, else min to max."""
    values = np.nan_to_num(values.astype(np.float64))
    low, high = (0.0, 65535.0) if 255 < values.max() <= 65535 and values.min() >= 0 else (0.0, 255.0)
    if values.max() > 65535 or values.min() < 0 or (values.max() <= 1.0 and values.max() > 0):
        low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, 1e-12)
    return np.round(scaled.clip(0, 1) * 255).astype(np.uint8)
