"""Is an evaluation image among the training images? Shared ids, and near duplicates by their looks.

Flickr30k, COCO, YFCC, SBU and Open Images are all Flickr: a model that saw an evaluation photograph with its
captions has seen the answer. The evaluation set is indexed; the training set streams past it once, in chunks,
so it may hold millions of images. Mirrored copies are looked for as well.
"""

import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from phrase_loc.datasets.web_paths import expand
from phrase_loc.errors import DataError
from phrase_loc.evaluation.near_duplicates import REACH, SIMILAR, Index, Prints, duplicates
from phrase_loc.images import load_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
CHUNK = 512
SIDE = 64  # pictures are shrunk to this before hashing; enough for 32 x 32
DISTANCE = 6
ID = re.compile(r"\d{6,}")  # Flickr and COCO number their photographs; shorter runs are counters


@dataclass
class Stream:
    """Names and small pictures of a set, and what of it could not be read."""

    images: Iterator[tuple[str, bytes | Path]]
    unreadable: list[str] = field(default_factory=list)
    count: int = 0

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        for name, source in self.images:
            try:
                picture = load_image(source)
            except DataError as error:
                self.unreadable.append(f"{name}: {error}")
                continue
            self.count += 1
            yield name, picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def audit(train: Sequence[str], evaluation: str | Path, distance: int = DISTANCE) -> dict[str, Any]:
    """Look for the images of an evaluation set among training images.

    Args:
        train: shards (.tar, braces and globs allowed) and folders of images.
        evaluation: a folder with images, at any depth.
        distance: bits of 64 in which two perceptual hashes may differ, at most 7.

    Returns:
        {"train", "evaluation"}: counts and what was unreadable; {"rule", "shared_ids", "near_duplicates"}:
        what was found and how; {"summary"}: one paragraph.

    Raises:
        DataError: one of the two sets holds no readable image, or the distance is out of range.
    """
    if not 0 <= distance <= REACH:
        raise DataError(f"the distance is a number of bits from 0 to {REACH}, got {distance}")
    asked = Stream(folder_images(Path(evaluation)))
    names, prints = _fingerprints(asked, f"no readable image in {evaluation}")
    mirrored = _fingerprints(Stream(folder_images(Path(evaluation))), "", mirror=True)[1]
    indices = [(False, Index.of(prints.hashes), prints), (True, Index.of(mirrored.hashes), mirrored)]
    ids = {key: name for name in names for key in image_ids(name)}
    seen = Stream(training_images(train))
    shared: list[dict[str, str]] = []
    near: list[dict[str, Any]] = []
    with tqdm(unit=" images", desc="train", disable=None) as bar:
        for chunk in _chunks(seen):
            for name, _ in chunk:
                hits = {ids[key] for key in image_ids(name) if key in ids}
                shared += [{"train": name, "evaluation": hit} for hit in sorted(hits)]
            near += _near(chunk, names, indices, distance)
            bar.update(len(chunk))
    if not seen.count:
        raise DataError(f"no readable image in {', '.join(train)}; name shards (.tar) or folders of images")
    content = {
        "train": {"sources": list(train), "images": seen.count, "unreadable": seen.unreadable},
        "evaluation": {"source": str(evaluation), "images": asked.count, "unreadable": asked.unreadable},
        "rule": {"hash": "imagehash.phash, 64 bits", "distance": distance, "correlation": SIMILAR},
        "shared_ids": shared,
        "near_duplicates": near,
    }
    return content | {"summary": summary(content)}


def summary(content: dict[str, Any]) -> str:
    """One paragraph on what was found."""
    train, asked = content["train"], content["evaluation"]
    by_id = {pair["evaluation"] for pair in content["shared_ids"]}
    by_look = {pair["evaluation"] for pair in content["near_duplicates"]}
    touched = len(by_id | by_look)
    unreadable = len(train["unreadable"]) + len(asked["unreadable"])
    exact = sum(pair["bits"] == 0 for pair in content["near_duplicates"])
    verdict = (
        f"{touched:,} evaluation images ({100 * touched / asked['images']:.1f} %) are in the training set: "
        "leave them out of one of the two before reporting"
        if touched
        else "No leak was found"
    )
    rule = content["rule"]
    return (
        f"{train['images']:,} training images against {asked['images']:,} evaluation images: {len(by_id):,} "
        f"share an id, {len(by_look):,} have a near duplicate (at most {rule['distance']} of 64 bits apart, "
        f"thumbnails correlated by {rule['correlation']} or more, mirrored copies included; {exact:,} pairs "
        f"with equal hashes). {unreadable:,} files could not be read and were not compared. {verdict}."
    )


def image_ids(name: str) -> set[str]:
    """Names under which a photograph may be known elsewhere: its stem, and its numbers of six digits or more.

    Leading zeros stay: COCO writes twelve digits, and a downloader's nine-digit counter is no COCO number.

    >>> sorted(image_ids("COCO_val2014_000000391895.jpg"))
    ['000000391895', 'COCO_val2014_000000391895']
    """
    stem = Path(name).stem
    return {stem, *ID.findall(stem)}


def folder_images(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names relative to the folder and paths, in order of name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the root of the images")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            yield str(path.relative_to(folder)), path


def training_images(sources: Sequence[str]) -> Iterator[tuple[str, bytes | Path]]:
    """Images of shards and folders, one source after the other."""
    for source in sources:
        if Path(source).is_dir() and not list(Path(source).glob("*.tar")):
            yield from folder_images(Path(source))
        else:
            pattern = str(Path(source) / "*.tar") if Path(source).is_dir() else source
            for shard in expand(pattern):
                yield from shard_images(shard)


def shard_images(shard: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the images in a WebDataset shard, in file order."""
    try:
        with tarfile.open(shard) as archive:
            for member in archive:
                if member.isfile() and Path(member.name).suffix.lower() in SUFFIXES:
                    file = archive.extractfile(member)
                    if file is not None:
                        yield member.name, file.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"shard {shard} cannot be read: {error}") from None


def _fingerprints(stream: Stream, empty: str, mirror: bool = False) -> tuple[list[str], Prints]:
    names, pictures = [], []
    for name, picture in stream:
        names.append(name)
        pictures.append(ImageOps.mirror(picture) if mirror else picture)
    if not names:
        raise DataError(f"{empty}; name the folder that holds the evaluation images")
    return names, Prints.of(pictures)


def _chunks(stream: Iterable[tuple[str, Image.Image]]) -> Iterator[list[tuple[str, Image.Image]]]:
    rest = iter(stream)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _near(
    chunk: list[tuple[str, Image.Image]],
    names: list[str],
    indices: list[tuple[bool, Index, Prints]],
    distance: int,
) -> list[dict[str, Any]]:
    """Near duplicates between a chunk of training images and the evaluation set."""
    prints = Prints.of(picture for _, picture in chunk)
    return [
        {"train": chunk[a][0], "evaluation": names[b], "bits": bits, "correlation": r, "mirrored": mirrored}
        for mirrored, index, known in indices
        for a, b, bits, r in duplicates(index, known, prints, distance)
    ]
