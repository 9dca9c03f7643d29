"""What an image file says beside its pixels, taken off before a decoder sees it, and which way up it is.

Orientation is the EXIF tag alone, as in browsers, and read without parsing the rest: cameras, phones and editors
write EXIF blocks, colour profiles, texts and previews that are broken or huge; none of that breaks a photograph.
"""

import re
import struct
from collections.abc import Iterator

ORIENTATION = 0x0112

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # with "+" offsets have 64 bits
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # types of a TIFF entry
# JPEG: APP1 to APP15 but Adobe's colours (APP14), comments
_DROPPED_SEGMENTS = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
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


def without_metadata(content: bytes) -> tuple[bytes, int]:
    """An image file with nothing but its first picture, and the orientation that it was marked with.

    Args:
        content: of a file in any format; what is no JPEG, PNG, TIFF or AVIF comes back as it is.

    Returns:
        The file, and 1 (upright) to 8; 1 where the file carries no readable tag. WebP and AVIF are left to Pillow,
        which hands their block out unread (`orientation`).
    """
    if content.startswith(_JPEG):
        return _bare_jpeg(content)
    if content.startswith(_PNG):
        return _bare_png(content)
    if content[:4] in _TIFF:
        return _bare_tiff(content), orientation(content)
    if content[4:8] == b"ftyp" and content[8:12] in {b"avif", b"avis", b"mif1", b"msf1"}:
        return _AVIF_EXIF.sub(rb"\1free", content), 1  # AVIF is turned by its own boxes; Pillow tells how
    return content, 1


def orientation(exif: bytes) -> int:
    r"""The orientation in an EXIF block or a TIFF file, 1 to 8; 1 where there is none or it is not readable.

    >>> orientation(b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0")
    6
    """
    while exif.startswith(b"Exif\0"):
        exif = exif[6:]
    for at, tag, kind, count in _entries(exif):
        if tag == ORIENTATION and count == 1 and kind in _INTEGERS:
            (value,) = struct.unpack_from(_TIFF[exif[:4]] + _INTEGERS[kind], exif, at)
            return value if 1 <= value <= 8 else 1
    return 1


def _directory(data: bytes) -> tuple[int, str, str] | None:
    """Where the first directory's entries begin, and the formats of its count and of an entry's head."""
    order = _TIFF.get(data[:4])
    if order is None:
        return None
    wide = b"+" in data[2:4]
    number, head, at = (order + "Q", order + "HHQ", 8) if wide else (order + "H", order + "HHI", 4)
    offset = order + ("Q" if wide else "I")
    if len(data) < at + struct.calcsize(offset):
        return None
    (start,) = struct.unpack_from(offset, data, at)
    start += struct.calcsize(number)
    return (start, number, head) if 8 < start <= len(data) else None


def _entries(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The first directory of a TIFF: (place of the value, tag, type, count) of each whole entry."""
    found = _directory(data)
    if found is None:
        return
    start, number, head = found
    size = struct.calcsize(head)
    (count,) = struct.unpack_from(number, data, start - struct.calcsize(number))
    step = size + (8 if head.endswith("Q") else 4)
    for at in range(start, min(start + step * count, len(data) - step + 1), step):
        yield at + size, *struct.unpack_from(head, data, at)


def _bare_tiff(content: bytes) -> bytes:
    """The directory keeps what the pixels need, in place, and leads to no other."""
    found = _directory(content)
    if found is None:
        return content
    start, number, head = found
    size = struct.calcsize(head)
    step = size + (8 if head.endswith("Q") else 4)
    kept = [content[at - size : at - size + step] for at, tag, *_ in _entries(content) if tag in _PIXEL_TAGS]
    length = struct.pack(number, len(kept))
    directory = length + b"".join(kept) + bytes(step - size)  # no further directory
    before = start - len(length)
    return content[:before] + directory + content[before + len(directory) :]


def _bare_jpeg(content: bytes) -> tuple[bytes, int]:
    parts, at, exif = [content[:2]], 2, b""
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA or end > len(content) or end < at + 4:
            break  # the pixels begin, or it is broken, which the decoder shall say
        if marker not in _DROPPED_SEGMENTS:
            parts.append(content[at:end])
        elif marker == 0xE1 and not exif and content.startswith(b"Exif\0", at + 4):
            exif = content[at + 4 : end]
        at = end
    return b"".join([*parts, content[at:]]), orientation(exif)


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


def foreign_format(content: bytes) -> str:
    """What a file that is not read seems to be, with its article; "" for all else."""
    return next((name for name, begins in _FOREIGN.items() if begins.match(content)), "")
