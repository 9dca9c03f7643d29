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

DISTANCE, FARTHEST = 6, 7  # differing bits of 64: the default, and beyond which pictures are merely alike
SIMILAR = 0.9  # least correlation of the thumbnails
THUMB = 16
SIDE = 64  # pictures are shrunk to this before hashing; enough for 32 x 32
CHUNK = 512  # training images held at once
BLOCK = 32  # pictures compared at a time: each may share its hash with all
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


@dataclass(frozen=True)
class Prints:
    """Fingerprints of n pictures: phash (n,) uint64 and standardised thumbnails (n, 256) float32."""

    hashes: NDArray[np.uint64]
    thumbs: NDArray[np.float32]

    @classmethod
    def of(cls, images: Iterable[Image.Image]) -> "Prints":
        """Fingerprints of pictures in order."""
        return cls.joined([fingerprint(image) for image in images])

    @classmethod
    def joined(cls, prints: Sequence[tuple[int, NDArray[np.float32]]]) -> "Prints":
        """Several fingerprints."""
        hashes, thumbs = zip(*prints, strict=True)
        return cls(np.array(hashes, dtype=np.uint64), np.stack(thumbs))


def fingerprint(image: Image.Image) -> tuple[int, NDArray[np.float32]]:
    """The perceptual hash as one number, and the 16 x 16 grey picture with mean 0 and norm 1 (zeros when flat)."""
    small = np.asarray(image.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX), dtype=np.float32)
    centred = small.ravel() - small.mean()
    norm = float(np.linalg.norm(centred))
    thumb = centred / norm if norm > 1e-3 else np.zeros_like(centred)
    return int(str(imagehash.phash(image)), 16), thumb


def duplicates(known: Prints, asked: Prints, distance: int) -> list[tuple[int, int, int, float]]:
    """Near duplicates, at most `distance` bits apart and alike as thumbnails: (asked, known, bits, correlation).

    All are compared with all: 64-bit popcounts, of which a decoded training image pays for a million.
    """
    found: list[tuple[int, int, int, float]] = []
    textured = np.flatnonzero(asked.thumbs.any(1))  # flat pictures are like nothing, and share their hashes
    for first in range(0, len(textured), BLOCK):
        own = textured[first : first + BLOCK]
        bits = np.bitwise_count(asked.hashes[own, None] ^ known.hashes)
        places, entries = np.nonzero(bits <= distance)
        alike = np.einsum("ij,ij->i", asked.thumbs[own[places]], known.thumbs[entries])
        for i in np.flatnonzero(alike >= SIMILAR).tolist():
            place, entry = int(places[i]), int(entries[i])
            found.append((int(own[place]), entry, int(bits[place, entry]), round(float(alike[i]), 4)))
    return found


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
    if not 0 <= distance <= FARTHEST:
        raise DataError(f"the distance is a number of bits from 0 to {FARTHEST}, got {distance}")
    asked = Stream(folder_images(Path(evaluation)))
    both = [(name, fingerprint(image), fingerprint(ImageOps.mirror(image))) for name, image in asked]
    if not both:
        raise DataError(
            f"no readable image in {evaluation}; name the folder that holds the evaluation images"
        )
    names, straight, flipped = zip(*both, strict=True)
    prints, mirrored = Prints.joined(straight), Prints.joined(flipped)
    ids: dict[str, list[str]] = defaultdict(list)
    for name in names:
        for key in image_ids(name):
            ids[key].append(name)
    seen = Stream(training_images(train))
    shared: list[dict[str, str]] = []
    near: list[dict[str, Any]] = []
    with tqdm(unit=" images", desc="train", disable=None) as bar:
        rest = iter(seen)
        while chunk := list(islice(rest, CHUNK)):
            for name, _ in chunk:
                hits = {hit for key in image_ids(name) for hit in ids.get(key, [])}
                shared += [{"train": name, "evaluation": hit} for hit in sorted(hits)]
            own = Prints.of(picture for _, picture in chunk)
            near += [
                {"train": chunk[a][0], "evaluation": names[b], "bits": n, "correlation": r, "mirrored": m}
                for m, known in ((False, prints), (True, mirrored))
                for a, b, n, r in duplicates(known, own, distance)
            ]
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
        folder = Path(source)
        if folder.is_dir() and not any(folder.glob("*.tar")):
            yield from folder_images(folder)
        else:
            for shard in expand(str(folder / "*.tar") if folder.is_dir() else source):
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
