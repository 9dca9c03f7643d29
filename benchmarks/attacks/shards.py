"""Mutated shards, tables and indices, of which it is known what stayed whole.

What was not touched must be delivered with its bytes and texts; where a touched sample is not, it must be named.
"""

import csv
import io
import json
import logging
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.attacks.tally import Tally
from phrase_loc.errors import DataError
from phrase_loc.pairs.shards import load_index
from phrase_loc.pairs.sources import Source, open_source
from phrase_loc.tables import cell_texts, open_table

Pairs = dict[bytes, list[str]]  # content of an image -> its texts
Span = tuple[
    int, int, bytes
]  # bytes from .. to of a tar that are the image of this content or one of its texts
SAMPLES = 12


def attack(count: int, seed: int, folder: Path) -> Tally:
    """Tries `count` mutations, of each kind as often as of the others."""
    tally = Tally()
    logging.disable(logging.CRITICAL)
    try:
        for number in range(count):
            name, kind = list(KINDS.items())[number % len(KINDS)]
            kind(tally, f"{name} {number}", np.random.default_rng([seed, number]), folder)
    finally:
        logging.disable(logging.NOTSET)
    return tally


def shard(random: np.random.Generator, names: str = "{:06d}") -> tuple[bytes, Pairs, list[Span]]:
    """A shard in one of tar's forms, what it holds, and where."""
    pairs: Pairs = {}
    spans: list[Span] = []
    form = int(random.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for number in range(SAMPLES):
            image = random.bytes(int(random.integers(1, 3000)))
            texts = [f"a dog {number}, wet", f"one caf\u00e9 {number}"]
            pairs[image] = texts
            inner = {"json": json.dumps({"captions": texts}).encode()}
            inner = inner if random.random() < 0.5 else {"txt": "\n".join(texts).encode()}
            for ending, content in {"jpg": image, **inner}.items():
                start = tar.offset
                member = tarfile.TarInfo(f"{names.format(number)}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                spans.append((start, tar.offset, image))
    return data.getvalue(), pairs, spans


def _touched(spans: list[Span], first: int, last: int) -> set[bytes]:
    return {image for start, end, image in spans if start < last and end > first}


def _check(
    tally: Tally, name: str, path: Path, pairs: Pairs, touched: set[bytes], harmless: bool = False
) -> None:
    """Opens a source and compares; `harmless` says that nothing at all was lost."""
    whole = {image: texts for image, texts in pairs.items() if image not in touched}

    def act() -> None:
        try:
            source = open_source(str(path))
        except DataError:
            if whole:
                raise AssertionError("refused though samples are whole") from None
            raise
        delivered, named = _delivered(source)
        lost = [image for image, texts in whole.items() if texts not in delivered.get(image, [])]
        changed = [image for image in touched if pairs[image] not in delivered.get(image, [])]
        if lost:
            raise AssertionError(f"{len(lost)} of {len(whole)} whole samples are lost, {source.faults}")
        if (changed and not named) or (harmless and named):
            raise AssertionError(f"{len(changed)} samples are lost or changed, said was {named}")

    tally.take(name, act)


def _delivered(source: Source) -> tuple[dict[bytes, list[list[str]]], list[str]]:
    found: dict[bytes, list[list[str]]] = {}
    named = [f"{fault.name} {fault.detail}" for fault in source.faults]
    for i in range(len(source)):
        texts, wrong = source.told(i)
        wordless = not any(letter.isalpha() for text in texts for letter in text)  # training names it
        named += [wrong or "no word"] if wrong or wordless else []
        found.setdefault(source.image(i), []).append(texts)
    return found, named


def _flipped(content: bytes, place: int, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1 << int(random.integers(8))
    return bytes(changed)


def header_bit(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """One bit of a header, of whatever member."""
    names = str(random.choice(["{:06d}", "IMG.2020.{:02d}", "é/{:03d}", "n" * 60 + "/" + "n" * 90 + "{:d}"]))
    content, pairs, spans = shard(random, names)
    start, _, image = spans[random.integers(len(spans))]
    path = folder / "a.tar"
    path.write_bytes(_flipped(content, start + int(random.integers(512)), random))
    _check(tally, name, path, pairs, {image})


def overwritten(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """Zeros or noise over up to 4 kB that hold at least one header."""
    content, pairs, spans = shard(random)
    number = int(random.integers(len(spans) - 4))  # zeros over the last are a shorter shard's end mark
    start, size = max(0, spans[number][0] - int(random.integers(1500))), int(random.integers(2000, 3000))
    behind = next(first for first, _, _ in spans if first >= start + size)
    zeros = random.random() < 0.5 and behind % tarfile.RECORDSIZE  # else as if two archives were joined there
    path = folder / "a.tar"
    path.write_bytes(
        content[:start] + (bytes(size) if zeros else random.bytes(size)) + content[start + size :]
    )
    _check(tally, name, path, pairs, _touched(spans, start, start + size))


def truncated(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """The shard ends early, or lacks bytes in its middle."""
    content, pairs, spans = shard(random)
    cut = int(random.integers(spans[-1][1]))
    path = folder / "a.tar"
    gone = int(random.integers(1, 2000)) if random.random() < 0.3 else len(content)
    path.write_bytes(content[:cut] + content[cut + gone :])
    _check(tally, name, path, pairs, _touched(spans, cut, len(content)))


def joined(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """Archives one behind the other, all equally numbered, with a damaged end or nothing wrong at all."""
    parts = [shard(random) for _ in range(int(random.integers(2, 4)))]
    pairs = {image: texts for _, held, _ in parts for image, texts in held.items()}
    path = folder / "a.tar"
    path.write_bytes(b"".join(content for content, _, _ in parts))
    _check(tally, name, path, pairs, set(), harmless=True)


def odd_members(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """Folders, links, files of macOS and of other kinds between the samples; odd names; two of a kind."""
    pairs: Pairs = {}
    path = folder / "a.tar"
    twice = bool(random.random() < 0.5)
    with tarfile.open(path, "w") as tar:
        for number in range(SAMPLES):
            stem = str(
                random.choice(
                    [
                        "{:d}",
                        "a.b.{:d}",
                        "/abs/{:d}",
                        "../{:d}",
                        "./x/{:d}",
                        "a#{:d}",
                        "\udce9{:d}",
                        "{{{:d}}}",
                    ]
                )
            )
            stem = stem.format(number)
            image = random.bytes(100)
            pairs[image] = [f"a cat {number}"]
            members = [(f"{stem}.jpg", image), (f"{stem}.txt", pairs[image][0].encode())]
            members += [(f"{stem}.cls", b"3"), (f"{stem}.seg.png", b"?"), (f"._{number}.jpg", b"?")][
                : random.integers(4)
            ]
            for member, content in [members[i] for i in random.permutation(len(members))]:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo(f"folder{number}")
            link.type = tarfile.DIRTYPE
            tar.addfile(link)
        if twice:
            link = tarfile.TarInfo(f"{stem}.jpg" if random.random() < 0.5 else "link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "x.jpg"
            tar.addfile(link)
    _check(tally, name, path, pairs, set(), harmless=not twice)


def index_bit(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """One bit of a kept index; the rows must be those of the shard."""
    path, cache = folder / "a.tar", folder / "index"
    path.write_bytes(shard(random)[0])
    rows = load_index(str(path), cache)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(_flipped(content, int(random.integers(len(content))), random))

    def act() -> None:
        again = load_index(str(path), cache)
        if again[0].tobytes() != rows[0].tobytes() or again[1] != rows[1] or kept.read_bytes() != content:
            raise AssertionError("a damaged index was used, or was not made anew")

    tally.take(name, act)
    kept.unlink()


def text_table(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """A bit, a cut, a sign more or a line twice in a CSV, TSV or JSON-lines table; a row each line."""
    kind = str(random.choice(["csv", "tsv", "jsonl"]))
    rows = [
        (
            f"{i:02d}.jpg",
            str(random.choice(["a dog", "a dog, wet", 'a "big" dog', "caf\u00e9; null"])) + f" {i}",
        )
        for i in range(20)
    ]
    text = io.StringIO()
    if kind == "jsonl":
        text.writelines(json.dumps({"image": image, "caption": said}) + "\n" for image, said in rows)
    else:
        writer = csv.writer(text, delimiter="," if kind == "csv" else "\t", lineterminator="\n")
        writer.writerows([("image", "caption"), *rows])
    content = text.getvalue().encode()
    place = int(random.integers(len(content)))
    sign = bytes(random.choice([b'"', b",", b"\t", b"\n", b"\r", b"\0", b"\xe9", b"{", b"#"]))
    way = int(random.integers(4))
    mutated = [
        _flipped(content, place, random),
        content[:place],
        content[:place] + sign + content[place:],
        content[:place] + content[place + int(random.integers(1, 60)) :],
    ][way]
    path = folder / f"a.{kind}"
    path.write_bytes(mutated)
    left = mutated.split(b"\n")
    lines = dict(zip(rows, content.splitlines()[0 if kind == "jsonl" else 1 :], strict=True))
    whole = [row for row, line in lines.items() if line in left]
    headed = kind == "jsonl" or mutated.startswith(content.partition(b"\n")[0] + b"\n")
    gone = way in (1, 3)  # a cut can take whole lines with it, of which nothing is left to see

    def act() -> None:
        bad: list[str] = []
        table = open_table(path)
        if not {"image", "caption"} <= set(table.columns):
            raise DataError("the header is gone")
        found = [cells for _, cells in table.rows(["image", "caption"], lambda place, _: bad.append(place))]
        lost = [row for row in whole if row not in found]
        if lost and headed:
            raise AssertionError(f"{kind} {way} {mutated!r}: {lost} are whole and lost; {bad}")
        if headed and not gone and len(found) < len(rows) and not bad:
            raise AssertionError(f"{kind} {way} {mutated!r}: a row is lost without a word")

    tally.take(name, act)


def parquet_table(tally: Tally, name: str, random: np.random.Generator, folder: Path) -> None:
    """A bit or a cut in a Parquet table whose pages carry their checksums: the same rows, or refused."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [(f"{i}.jpg", [f"a dog {i}", "a cat"]) for i in range(30)]
    path = folder / "a.parquet"
    columns = {"image": [image for image, _ in rows], "caption": [said for _, said in rows]}
    parquet.write_table(pa.table(columns), path, write_page_checksum=True)
    content = path.read_bytes()
    place = int(random.integers(len(content)))
    path.write_bytes(_flipped(content, place, random) if random.random() < 0.8 else content[:place])

    def act() -> None:
        table = open_table(path)
        if not {"image", "caption"} <= set(table.columns):
            raise DataError("a column's name is gone")
        found = [cells for _, cells in table.rows(["image", "caption"])]
        pairs = [
            isinstance(image, str) and cell_texts(said) for image, said in found
        ]  # others are named as none
        if any(pair and cells != row for pair, cells, row in zip(pairs, found, rows, strict=True)):
            raise AssertionError(f"other rows than were written (byte {place} of {len(content)})")

    tally.take(name, act)


KINDS: dict[str, Callable[[Tally, str, np.random.Generator, Path], None]] = {
    "header bit": header_bit,
    "overwritten": overwritten,
    "truncated": truncated,
    "text table": text_table,
    "joined": joined,
    "header bit again": header_bit,
    "odd members": odd_members,
    "index bit": index_bit,
    "text table again": text_table,
    "parquet": parquet_table,
}
