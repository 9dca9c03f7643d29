"""Mutated pictures of every format through the two ways of reading them, `load_image` and the decoder of training.

A try is right when both give a picture of the same frame or refuse it in one sentence, and when a mutation that
spares the pixels (a broken EXIF block, a text, a profile, an unknown chunk) leaves them, turned as the tag says.
"""

import io
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
from PIL import Image

from benchmarks.attacks.tally import Tally
from phrase_loc.errors import PhraseLocError
from phrase_loc.images import load_image, load_tensor, picture_size

Random = np.random.Generator
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"} | {
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def attack(count: int, seed: int, folder: Path) -> Tally:
    """`count` mutated pictures; `folder` stays empty, since all of it happens in memory."""
    random, tally, files = np.random.default_rng(seed), Tally(), list(originals().items())
    for number in range(count):
        name, content = files[number % len(files)]
        if random.random() < 0.3 and (told := spared(name, content, random)):
            mutation, changed, expected = told
            tally.take(f"{number} {name} {mutation}", lambda c=changed, e=expected: same(c, e))
        else:
            mutation, changed = broken(content, random)
            tally.take(f"{number} {name} {mutation}", lambda c=changed: agreeing(c))
    return tally


def agreeing(content: bytes) -> Image.Image:
    """The picture as both ways read it; the refusal of both; or an AssertionError."""
    try:
        picture = load_image(content)
    except PhraseLocError:
        try:
            load_tensor(content)
        except PhraseLocError:
            raise
        raise AssertionError("training reads what the query refuses") from None
    try:
        pixels = load_tensor(content)
    except PhraseLocError as error:
        raise AssertionError(f"the query reads what training refuses: {error}") from None
    assert tuple(pixels.shape) == (3, picture.height, picture.width), "two frames"
    return picture


def same(content: bytes, expected: Image.Image) -> None:
    """The pixels of the original, turned as expected, by both ways."""
    try:
        picture, pixels = load_image(content), load_tensor(content)
    except PhraseLocError as error:
        raise AssertionError(f"a whole picture is refused: {error}") from None
    assert np.array_equal(np.asarray(picture), np.asarray(expected)), "other pixels"
    difference = np.asarray(expected).astype(int) - pixels.permute(1, 2, 0).numpy()
    assert np.abs(difference).max() <= 3, "other pixels in training"
    assert picture_size(content)[0] == (picture.height, picture.width), "another size in the header"


@cache
def originals() -> dict[str, bytes]:
    """Small pictures of every format and mode that is read, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((29, 20), Image.Resampling.BICUBIC)
    grey16 = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    modes = {
        "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "P", "RGBA", "LA", "1", "I;16"), "WEBP": ("RGB", "RGBA"),
        "GIF": ("P", "L"), "BMP": ("RGB", "L", "1"), "DIB": ("RGB",), "AVIF": ("RGB",), "JPEG2000": ("RGB", "L"),
        "TIFF": ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "F"), "PPM": ("RGB", "L", "1"), "ICO": ("RGBA",),
        "TGA": ("RGB", "RGBA", "P"), "MPO": ("RGB",),
    }  # fmt: skip
    found = {}
    for kind, its in modes.items():
        for mode in its:
            shown = (
                grey16 if mode == "I;16" else picture.convert("L").convert(mode) if mode == "F" else picture
            )
            shown = shown if shown.mode == mode else shown.convert(mode)
            found[f"{kind} {mode}"] = encoded(shown, kind)
    more = [picture.rotate(9 * i) for i in range(3)]
    options: list[tuple[str, str, dict]] = [
        ("JPEG progressive", "JPEG", {"progressive": True}),
        ("JPEG restarts", "JPEG", {"restart_marker_rows": 1}),
        ("JPEG exif", "JPEG", {"exif": turned(6)}),
        ("PNG exif", "PNG", {"exif": turned(8)}),
        ("WEBP exif", "WEBP", {"exif": turned(3), "lossless": True}),
        ("TIFF lzw", "TIFF", {"compression": "tiff_lzw"}),
        ("TIFF jpeg", "TIFF", {"compression": "jpeg"}),
        ("TIFF deflate", "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF big", "TIFF", {"big_tiff": True}),
        ("GIF frames", "GIF", {"save_all": True, "append_images": more}),
        ("PNG frames", "PNG", {"save_all": True, "append_images": more}),
        ("WEBP frames", "WEBP", {"save_all": True, "append_images": more}),
        ("TIFF frames", "TIFF", {"save_all": True, "append_images": more}),
        ("MPO frames", "MPO", {"save_all": True, "append_images": more}),
        ("TGA rle", "TGA", {"compression": "tga_rle"}),
    ]
    return found | {name: encoded(picture, kind, **given) for name, kind, given in options}


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """The content of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(value: int, *further: tuple[int, int, int, bytes], order: str = "<", first: bool = True) -> bytes:
    """An EXIF block with the orientation and further entries (tag, type, count, four bytes)."""
    own = (0x0112, 3, 1, struct.pack(order + "HH", value, 0))
    entries = [own, *further] if first else [*further, own]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    body = b"".join(struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries)
    return head + body + bytes(4)


# mutations that may break everything


def broken(content: bytes, random: Random) -> tuple[str, bytes]:
    """A mutation that may break everything: its name and the content."""
    name = str(random.choice(list(BREAKS)))
    return name, BREAKS[name](content, random)


def _flipped(content: bytes, random: Random) -> bytes:
    data = bytearray(content)
    for place in random.integers(0, len(data), int(random.integers(1, 9))):
        data[place] ^= 1 << int(random.integers(8))
    return bytes(data)


def _head_flipped(content: bytes, random: Random) -> bytes:
    place = int(random.integers(0, min(64, len(content))))
    return content[:place] + bytes([int(random.integers(256))]) + content[place + 1 :]


def _odd_number(content: bytes, random: Random) -> bytes:
    """A field of two or four bytes becomes 0, 1, huge or negative."""
    size = int(random.choice([2, 4]))
    place = int(random.integers(0, max(1, min(256, len(content)) - size)))
    value = int(random.choice([0, 1, 0x7F, 0xFFFF, 0x7FFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]))
    order = "big" if random.random() < 0.5 else "little"
    return content[:place] + (value & (256**size - 1)).to_bytes(size, order) + content[place + size :]  # type: ignore[arg-type]


def _cut(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(0, len(content)))]


def _cut_with_end(content: bytes, random: Random) -> bytes:
    return _cut(content, random) + b"\xff\xd9"


def _hole(content: bytes, random: Random) -> bytes:
    start = int(random.integers(0, len(content)))
    return content[:start] + content[start + int(random.integers(1, 40)) :]


def _inserted(content: bytes, random: Random) -> bytes:
    place = int(random.integers(0, len(content)))
    return content[:place] + random.bytes(int(random.integers(1, 40))) + content[place:]


def _doubled(content: bytes, random: Random) -> bytes:
    start, end = sorted(int(x) for x in random.integers(0, len(content), 2))
    return content[:end] + content[start:end] + content[end:]


def _swapped(content: bytes, random: Random) -> bytes:
    other = list(originals().values())[int(random.integers(len(originals())))]
    place = int(random.integers(0, min(len(content), len(other))))
    return content[:place] + other[place:]


def _zeros(content: bytes, random: Random) -> bytes:
    start = int(random.integers(0, len(content)))
    length = int(random.integers(1, 60))
    return content[:start] + bytes(length) + content[start + length :]


BREAKS: dict[str, Callable[[bytes, Random], bytes]] = {
    "flipped bits": _flipped, "flipped head": _head_flipped, "odd number": _odd_number, "cut": _cut,
    "cut with an end": _cut_with_end, "hole": _hole, "inserted": _inserted, "doubled": _doubled,
    "of two files": _swapped, "zeros": _zeros,
}  # fmt: skip


# mutations that spare the pixels


def spared(name: str, content: bytes, random: Random) -> tuple[str, bytes, Image.Image] | None:
    """A mutation beside the pixels: its name, the content and the picture it must give; None for other formats."""
    kind = name.split()[0]
    if kind not in SPARES or "exif" in name or name == "TIFF big":
        return None
    turn, exif = odd_exif(random)
    stored = load_image(content)
    upright = stored.transpose(Image.Transpose[TURNS[turn]]) if turn in TURNS else stored
    return f"metadata of {kind}", SPARES[kind](content, exif, random), upright


def _odd_segments(content: bytes, exif: bytes, random: Random) -> bytes:
    odd = [(0xE2, b"ICC_PROFILE\0" + random.bytes(50)), (0xE2, b"MPF\0" + random.bytes(30)), (0xED, random.bytes(30)),
           (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + random.bytes(30)), (0xFE, random.bytes(9))]  # fmt: skip
    segments = [(0xE1, b"Exif\0\0" + exif), *(part for part in odd if random.random() < 0.5)]
    told = [bytes([0xFF, m]) + struct.pack(">H", len(data) + 2) + data for m, data in segments]
    return content[:2] + b"".join(told[i] for i in random.permutation(len(told))) + content[2:]


def _odd_chunks(content: bytes, exif: bytes, random: Random) -> bytes:
    """Chunks of odd content, some with a wrong checksum, between those of a PNG; not among its pixels."""
    odd = [(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + b"x" * 50), (b"zTXt", random.bytes(40)), (b"pHYs", b"1"),
           (b"iCCP", random.bytes(40)), (b"tEXt", random.bytes(40)), (b"prVt", random.bytes(9))]  # fmt: skip
    chunks = list(_chunks(content))
    places = [i for i in range(1, len(chunks)) if not chunks[i - 1][0] == chunks[i][0] == b"IDAT"]
    for kind, data in [(b"eXIf", exif), *(chunk for chunk in odd if random.random() < 0.5)]:
        place = int(random.choice(places))
        chunks[place] = (chunks[place][0], chunks[place][1], [*chunks[place][2], (kind, data)])
    wrong, parts = bool(random.random() < 0.3), [content[:8]]
    for kind, data, before in chunks:
        parts += [_chunk(k, d, wrong) for k, d in before] + [_chunk(kind, data, False)]
    return b"".join(parts)


def _odd_block(content: bytes, exif: bytes, random: Random) -> bytes:
    """The picture of a WebP with the block as it is."""
    picture = load_image(content)
    block = exif if random.random() < 0.5 else b"Exif\0\0" + exif
    return encoded(picture, "WEBP", lossless=True, exif=block)


def _odd_directory(content: bytes, exif: bytes, random: Random) -> bytes:
    """A TIFF whose directory, moved to its end, also holds the entries of the block."""
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    own = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    readable = exif[:4] in {b"II*\0", b"MM\0*"}
    number = (len(exif) - 10) // 12 if readable else 0
    for at in range(10, 10 + 12 * number, 12):
        tag, kind, count = struct.unpack_from(("<" if exif[:2] == b"II" else ">") + "HHI", exif, at)
        value = exif[at + 8 : at + 12]
        if tag == 0x0112:
            (turn,) = struct.unpack_from("<H" if exif[:2] == b"II" else ">H", value)
            value = struct.pack(order + "HH", turn, 0)
        own.insert(int(random.integers(len(own) + 1)), struct.pack(order + "HHI", tag, kind, count) + value)
    directory = struct.pack(order + "H", len(own)) + b"".join(own) + random.bytes(4)
    return content[:4] + struct.pack(order + "I", len(content)) + content[8:] + directory


SPARES: dict[str, Callable[[bytes, bytes, Random], bytes]] = {
    "JPEG": _odd_segments, "MPO": _odd_segments, "PNG": _odd_chunks, "WEBP": _odd_block, "TIFF": _odd_directory,
}  # fmt: skip


def odd_exif(random: Random) -> tuple[int, bytes]:
    """The orientation that is readable in an EXIF block, and the block, broken elsewhere."""
    turn, order = int(random.integers(1, 9)), str(random.choice(["<", ">"]))
    odd = [
        (0x011A, 10, 1, struct.pack(order + "I", 0xFFFFFF)), (0xA005, 2, 4, b"abc\0"), (0x8769, 4, 1, b"\xff" * 4),
        (0x8825, 4, 1, struct.pack(order + "I", 8)), (0x010F, 2, 0xFFFFFFFF, random.bytes(4)),
        (0x0132, 99, 1, random.bytes(4)), (0x927C, 7, 0xFFFF, random.bytes(4)), (0x011B, 5, 1, bytes(4)),
    ]  # fmt: skip
    chosen = [odd[i] for i in random.permutation(len(odd))[: int(random.integers(0, 5))]]
    block = turned(turn, *chosen, order=order, first=bool(random.random() < 0.5))
    way = random.integers(4)
    if way == 0:  # without the end of the directory
        block = block[:-4]
    if way == 1:  # more entries promised than there are
        block = block[:8] + struct.pack(order + "H", 0xFFFF) + block[10:]
    if way == 2:  # the header is broken: nothing is readable
        turn, block = 1, random.bytes(4) + block[4:]
    return turn, block


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, list]]:
    """Kind and data of each chunk, and the list of those to be put before it."""
    at = 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length], []
        at += 12 + length


def _chunk(kind: bytes, data: bytes, wrong: bool) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data) ^ wrong)
