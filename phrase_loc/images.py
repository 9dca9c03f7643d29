"""A photograph from a file or from Python, as 8-bit RGB and upright, or one clear sentence: the one decoder.

The EXIF orientation is applied, transparency is laid on white, any mode becomes RGB, of several frames the first is
taken. A picture of more than `MAX_PIXELS` pixels is refused before it is decoded, and what is decoded takes a small
multiple of its pixels. Only formats that Pillow decodes by itself are read: an EPS would start Ghostscript.
"""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from phrase_loc import files
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.image_inputs import Picture, exif_orientation, file_given, one_sentence, opened, pixels_given
from phrase_loc.profiling import lap

if TYPE_CHECKING:  # an exported model reads pictures without torch
    from torch import Tensor

log = logging.getLogger(__name__)

MAX_PIXELS = 80_000_000
_ENDINGS = (
    ".jpg .jpeg .jpe .jfif .jif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .jp2 .j2k .j2c .jpc "
    ".jpf .jpx .jpg2000 .ppm .pgm .pbm .pnm .pfm .ico .tga"
)
_UNREAD = ".heic .heif .hif .jxl .svg .psd .eps .raw .dng .cr2 .cr3 .nef .arw .orf .raf .rw2 .xcf"
#: Endings (lower case) of the files that a folder's reader takes for pictures; `load_image` reads all of them.
IMAGE_ENDINGS = frozenset(_ENDINGS.split())
#: Endings of pictures in formats that are not read; whoever lists a folder names them as left out.
UNREAD_ENDINGS = frozenset(_UNREAD.split())
#: Endings of videos, of which `frames` takes pictures.
VIDEO_ENDINGS = frozenset([".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"])

_TURN = Image.Transpose
_TURNS = (  # of the orientations 2 to 8
    _TURN.FLIP_LEFT_RIGHT, _TURN.ROTATE_180, _TURN.FLIP_TOP_BOTTOM, _TURN.TRANSPOSE, _TURN.ROTATE_270,
    _TURN.TRANSVERSE, _TURN.ROTATE_90,
)  # fmt: skip
_RANGES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)  # cameras put 10 to 14 bits into files of 16
_BAND = 1 << 20  # pixels that are converted at once


@lap("decode")
def load_image(source: Picture, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """A photograph, of which `source` is not changed, as an 8-bit RGB picture; `upright` False is the stored frame.

    A DataError says where it is no file, no image, truncated, empty or of more than `max_pixels` pixels.
    """
    with one_sentence(source) as name:
        image, turn = _given(source, name)
        _check_size(image, name, max_pixels)
        image.load()
        _check_size(image, name, max_pixels)  # an icon's own picture may be larger than its list says
        found = _rgb(image)
        found.info = {}  # without the tag that says how it is turned: nobody turns it twice
        turn = (turn or exif_orientation(image)) if upright else 1
        return found.transpose(_TURNS[turn - 2]) if turn > 1 else found


def load_tensor(content: bytes) -> "Tensor":
    """The content of an image file -> (3, H, W) uint8 as `load_image` decodes it, but for a decoder's rounding.

    An upright whole JPEG goes to torchvision's decoder, about twice as fast; everything else, and whatever that
    refuses, to Pillow, which also decides what is broken: not an image, or a truncated one, is a DataError.
    """
    with one_sentence(content) as name:
        image, turn = opened(content, name)
        _check_size(image, name, MAX_PIXELS)
        quick = image.format in {"JPEG", "MPO"} and image.mode in {"RGB", "L"} and turn == 1
        if quick and content.rstrip(b"\0").endswith(b"\xff\xd9"):
            with suppress(Exception):  # a coding that it does not know, a torchvision without its library
                import torch
                from torchvision.io import ImageReadMode, decode_jpeg

                pixels = decode_jpeg(
                    torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB
                )
                if pixels.shape == (3, image.height, image.width):
                    return pixels
    return to_tensor(load_image(content))


def picture_size(source: Picture) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) upright, as `load_image` gives it, and (H, W) as it is stored; nothing is decoded. Raises as there."""
    with one_sentence(source) as name:
        image, turn = _given(source, name)
        width, height = image.size
        turned = (turn or exif_orientation(image)) >= 5
    return ((width, height) if turned else (height, width)), (height, width)


def upright(photograph: Picture, ending: str) -> bytes | None:
    """The file of a photograph that is stored turned, turned; None where it stands upright."""
    with one_sentence(photograph) as name:
        image, turn = _given(photograph, name)
        if (turn or exif_orientation(image)) == 1:
            return None
    kind, file = "PNG" if ending.lower() == ".png" else "JPEG", io.BytesIO()
    load_image(photograph).save(file, kind, quality=95)
    return file.getvalue()


def checked_frame(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) as whole numbers; a ConfigError for a frame without pixels or with more than MAX_PIXELS."""
    with suppress(TypeError, ValueError, OverflowError):
        height, width = map(int, given := list(size))  # of numpy and torch too
        whole = [height, width] == given and bool not in map(type, given)  # 64.7 and "64" are not
        if whole and min(height, width) >= 1 and height * width <= MAX_PIXELS:
            return height, width
    raise ConfigError(
        f"size is (H, W) of the frame of the answers in whole pixels, at most {MAX_PIXELS:,} of them; got "
        f"{str(size)[:60]}"
    )


def to_tensor(image: Image.Image) -> "Tensor":
    """RGB picture -> (3, H, W) uint8."""
    import torch

    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def _given(source: Picture, name: str) -> tuple[Image.Image, int | None]:
    """A picture whose pixels are not decoded yet, and its orientation; of an open one it may stand behind them."""
    if isinstance(source, Image.Image):
        return source, None
    if (array := pixels_given(source)) is not None:
        return Image.fromarray(array), 1
    return opened(file_given(source, name), name)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels:,} accepted; shrink it"
        )
    if width * height == 0:
        raise DataError(f"{name} has {width} x {height} pixels; at least one is needed")


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
    """16-bit, 32-bit or float grey -> 8-bit: the least of _RANGES for integers up to 16 bits, else min to max."""
    finite = (values[np.isfinite(values)] for values in (np.asarray(band) for _, band in _bands(image)))
    ends = [float(end) for values in finite if values.size for end in (values.min(), values.max())]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    if not (high > 65535 or low < 0 or 0 < high <= 1):
        low, high = 0.0, next(top for top in _RANGES if high <= top)
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


def frames(clip: Path, every: int | None, folder: Path, overwrite: bool = False) -> list[str]:
    """Every n-th frame of a video (None: one a second) as JPEGs in a folder, which is kept for the next call.

    Raises a DataError where it is no video that OpenCV reads, or other frames lie there that it may not overwrite.
    Frames are labelled alone: nothing is tracked.
    """
    import cv2

    about = json.dumps([*files.fingerprint(clip), every])
    record = folder / "video.json"
    if not (record.is_file() and record.read_text(encoding="utf-8") == about):
        if record.is_file() and not overwrite:
            what = f"{folder} holds frames of another video or of another --every"
            raise DataError(f"{what}; give another --output, or --overwrite to replace them")
        video = cv2.VideoCapture(str(clip))
        step = every or max(1, round(video.get(cv2.CAP_PROP_FPS) or 1))
        said = video.get(cv2.CAP_PROP_FRAME_COUNT)
        files.make_folder(folder.parent)
        with files.writing(folder) as temporary:
            temporary.mkdir()
            number = -1
            while video.grab():
                number += 1
                if number % step == 0 and (found := video.retrieve())[0]:
                    name = str(temporary / f"{clip.stem}_{number:06d}.jpg")
                    if not cv2.imwrite(name, found[1], [cv2.IMWRITE_JPEG_QUALITY, 95]):
                        raise DataError(f"{name} cannot be written; free space there")
            if number < 0:
                raise DataError(f"{clip} is no video that OpenCV can read; convert it to MP4 (H.264)")
            if number + 1 < 0.9 * said:  # of some videos the number is an estimate
                log.warning("%s says %d frames and gives %d; perhaps it is cut off", clip, said, number + 1)
            (temporary / record.name).write_text(about, encoding="utf-8")
        video.release()
    return sorted(str(path) for path in folder.glob("*.jpg"))
