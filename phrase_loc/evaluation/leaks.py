"""Is an evaluation image among the training images? Shared ids, and near duplicates by their looks.

Flickr30k, COCO, YFCC, SBU and Open Images are all Flickr: a model that saw an evaluation photograph with its
captions has seen the answer. The evaluation set is indexed; the training set streams past it once, in chunks,
so it may hold millions of images. Mirrored copies are looked for as well.

A name tells a photograph only where it is an id: `image_ids` says which names are. A counter ('1', '0001', 'image1',
'IMG_0001', 'DSC00012', 'photo (3)', a downloader's '000000123') or a date of a camera is none; a true copy under such
a name is found by its looks.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from phrase_loc.errors import DataError
from phrase_loc.files import reason
from phrase_loc.images import IMAGE_ENDINGS, load_image
from phrase_loc.pairs.paths import expand
from phrase_loc.pairs.shards import Damage, open_shard, walk

BANDS, BITS = 4, 16
REACH = 2 * BANDS - 1  # differing bits up to which no pair is missed
THUMB = 16
BLOCK = 32  # pictures looked up at a time: each may share its hash with all
SIMILAR = 0.9  # least correlation of the thumbnails

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Prints:
    """Fingerprints of n pictures: phash (n,) uint64 and standardised thumbnails (n, 256) float32."""

    hashes: Hashes
    thumbs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, images: Iterable[Image.Image]) -> "Prints":
        """Fingerprints of pictures in order."""
        pairs = [(perceptual_hash(image), thumbnail(image)) for image in images]
        thumbs = np.array([t for _, t in pairs], dtype=np.float32).reshape(-1, THUMB * THUMB)
        return cls(np.array([h for h, _ in pairs], dtype=np.uint64), thumbs)

    @classmethod
    def joined(cls, parts: Sequence["Prints"]) -> "Prints":
        """Several, one after the other."""
        return cls(np.concatenate([p.hashes for p in parts]), np.concatenate([p.thumbs for p in parts]))


@dataclass(frozen=True)
class Index:
    """Hashes of n pictures, each band sorted."""

    hashes: Hashes
    orders: tuple[NDArray[np.intp], ...]
    values: tuple[NDArray[np.uint32], ...]

    @classmethod
    def of(cls, hashes: Hashes) -> "Index":
        """Sort each band."""
        bands = [band(hashes, number) for number in range(BANDS)]
        orders = [np.argsort(values, kind="stable") for values in bands]
        return cls(hashes, tuple(orders), tuple(v[o] for v, o in zip(bands, orders)))

    def within(self, queries: Hashes, distance: int) -> NDArray[np.int64]:
        """All pairs at most `distance` bits apart: (q,) -> (m, 3) of query, entry, bits, in that order.

        Raises:
            ValueError: a distance beyond what the bands promise to find.
        """
        if not 0 <= distance <= REACH:
            raise ValueError(f"the index finds distances 0 to {REACH}, got {distance}")
        flips = np.array([0, *(1 << bit for bit in range(BITS))], dtype=np.uint32)
        found = [np.zeros((0, 2), dtype=np.int64)]
        for number, (order, values) in enumerate(zip(self.orders, self.values)):
            probes = (band(queries, number)[:, None] ^ flips).ravel()
            start, end = np.searchsorted(values, probes, "left"), np.searchsorted(values, probes, "right")
            rows = np.repeat(np.arange(len(probes)), end - start)
            places = np.arange(len(rows)) - np.repeat(np.cumsum(end - start) - (end - start), end - start)
            found.append(np.stack([rows // len(flips), order[start[rows] + places]], 1))
        pairs = np.unique(np.concatenate(found), axis=0)
        bits = np.bitwise_count(queries[pairs[:, 0]] ^ self.hashes[pairs[:, 1]]).astype(np.int64)
        near = bits <= distance
        return np.concatenate([pairs[near], bits[near, None]], 1)


def band(hashes: Hashes, number: int) -> NDArray[np.uint32]:
    """The `number`-th 16 bits of each hash: (n,) -> (n,)."""
    return ((hashes >> np.uint64(BITS * number)) & np.uint64((1 << BITS) - 1)).astype(np.uint32)


def perceptual_hash(image: Image.Image) -> int:
    """The phash of imagehash as one 64-bit number."""
    return int(str(imagehash.phash(image)), 16)


def thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """A 16 x 16 grey picture with mean 0 and norm 1 (all zeros when it is flat): (256,)."""
    small = np.asarray(image.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX), dtype=np.float32)
    centred = small.ravel() - small.mean()
    norm = float(np.linalg.norm(centred))
    return centred / norm if norm > 1e-3 else np.zeros_like(centred)


def duplicates(
    index: Index, known: Prints, asked: Prints, distance: int, similar: float = SIMILAR
) -> list[tuple[int, int, int, float]]:
    """Pairs of `asked` and `known` that are near duplicates: (asked, known, bits, correlation).

    Args:
        index: over known.hashes.
        known: n pictures.
        asked: q pictures.
        distance: greatest number of differing bits.
        similar: least correlation of the thumbnails.
    """
    found: list[tuple[int, int, int, float]] = []
    textured = np.flatnonzero(asked.thumbs.any(1))  # flat pictures are like nothing, and share their hashes
    for first in range(0, len(textured), BLOCK):
        own = textured[first : first + BLOCK]
        pairs = index.within(asked.hashes[own], distance)
        alike = np.einsum("ij,ij->i", asked.thumbs[own[pairs[:, 0]]], known.thumbs[pairs[:, 1]])
        for i in np.flatnonzero(alike >= similar).tolist():
            place, entry, bits = map(int, pairs[i])
            found.append((int(own[place]), entry, bits, round(float(alike[i]), 4)))
    return found


CHUNK = 512
SIDE = 64  # pictures are shrunk to this before hashing; enough for 32 x 32
DISTANCE = 6
TAKEN = re.compile(  # when a camera took it, with or without the time of day
    r"(?<!\d)(19|20)\d\d[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])([-_. T]*\d{6,9})?(?!\d)"
)
IDS = re.compile(
    r"""(?<![0-9a-zA-Z])(
      \d{12}                                      # COCO: twelve digits, zeros in front
    | [1-9]\d{6,}                                 # Flickr: a number of seven digits or more
    | n\d{8}_\d+ | ILSVRC\d{4}_[a-z]+_\d{8}       # ImageNet
    | [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}  # a UUID
    | (?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{16,}       # a hash, such as Open Images'
    )(?![0-9a-zA-Z])""",
    re.VERBOSE | re.IGNORECASE,
)
Source = bytes | Path | DataError  # the file of an image, or why there is none


@dataclass
class Stream:
    """Names and small pictures of a set, and what of it could not be read."""

    images: Iterator[tuple[str, Source]]
    unreadable: list[str] = field(default_factory=list)
    count: int = 0

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        for name, source in self.images:
            try:
                if isinstance(source, DataError):
                    raise source
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
    names, prints, mirrored = _fingerprints(asked, f"no readable image in {evaluation}")
    indices = [(False, Index.of(prints.hashes), prints), (True, Index.of(mirrored.hashes), mirrored)]
    ids: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for key in image_ids(name):
            ids[key].append(name)
    seen = Stream(training_images(train))
    shared: list[dict[str, str]] = []
    near: list[dict[str, Any]] = []
    with tqdm(unit=" images", desc="train", disable=None) as bar:
        for chunk in _chunks(seen):
            for name, _ in chunk:
                hits = {hit for key in image_ids(name) for hit in ids.get(key, [])}
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
    """What in a file's name tells one photograph from all others anywhere; empty for counters and dates.

    COCO's twelve digits, Flickr's numbers, ImageNet's names, UUIDs and hashes. Leading zeros stay: a downloader's
    nine-digit counter is no COCO number.

    >>> image_ids("COCO_val2014_000000391895.jpg")
    {'000000391895'}
    >>> image_ids("2513260012_03d33305cf_b.jpg"), image_ids("IMG_20200131_123456.jpg"), image_ids("000012345.jpg")
    ({'2513260012'}, set(), set())
    """
    return {found.lower() for found in IDS.findall(TAKEN.sub(" ", Path(name).stem))}


def folder_images(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names relative to the folder and paths, in order of name."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the root of the images")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_ENDINGS:
            yield str(path.relative_to(folder)), path


def training_images(sources: Sequence[str]) -> Iterator[tuple[str, Source]]:
    """Images of shards and folders, one source after the other."""
    for source in sources:
        if Path(source).is_dir() and not list(Path(source).glob("*.tar")):
            yield from folder_images(Path(source))
        else:
            pattern = str(Path(source) / "*.tar") if Path(source).is_dir() else source
            for shard in expand(pattern):
                yield from shard_images(shard)


def shard_images(shard: str) -> Iterator[tuple[str, Source]]:
    """Names and bytes of the images in a WebDataset shard, in file order, and what of it is damaged.

    Raises:
        DataError: no image of it can be read, and something is wrong with it.
    """
    damage, images = "", 0
    try:
        with open_shard(shard) as tar:
            for member in walk(tar):
                if isinstance(member, Damage):
                    damage = damage or member.what
                    yield f"{shard}:byte {member.start}", DataError(member.what)
                elif Path(member.name).suffix.lower() in IMAGE_ENDINGS:
                    images += 1
                    if member.unread:
                        yield member.name, DataError(member.unread)
                    else:
                        tar.seek(member.offset_data)
                        yield member.name, tar.read(member.size)
    except Exception as error:  # each store of remote shards raises its own
        damage = reason(error)
        yield shard, DataError(damage)
    if damage and not images:
        raise DataError(f"shard {shard} cannot be read: {damage}")


def _fingerprints(stream: Stream, empty: str) -> tuple[list[str], Prints, Prints]:
    """Names, and fingerprints as they are and mirrored."""
    names: list[str] = []
    straight, mirrored = [], []
    for chunk in _chunks(stream):
        names += [name for name, _ in chunk]
        straight.append(Prints.of(picture for _, picture in chunk))
        mirrored.append(Prints.of(ImageOps.mirror(picture) for _, picture in chunk))
    if not names:
        raise DataError(f"{empty}; name the folder that holds the evaluation images")
    return names, Prints.joined(straight), Prints.joined(mirrored)


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
