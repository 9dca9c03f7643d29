"""Is an evaluation image among the training images? Shared ids, and near duplicates by their looks.

Flickr30k, COCO, YFCC, SBU and Open Images are all Flickr: a model that saw an evaluation photograph with its captions
has seen the answer. The training set streams past the evaluation set once, so it may hold millions of images.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tqdm import tqdm

from phrase_loc.errors import DataError
from phrase_loc.files import reason
from phrase_loc.images import IMAGE_ENDINGS, UNREAD_ENDINGS, load_image
from phrase_loc.pairs.paths import expand
from phrase_loc.pairs.shards import Damage, open_shard, walk
from phrase_loc.pairs.sources import files_below

DISTANCE = 6  # differing bits of 64; beyond 7 pictures are merely alike
SIMILAR = 0.9  # least correlation of the thumbnails
THUMB = 16
SIDE = 64  # pictures are shrunk to this before hashing; enough for 32 x 32
CHUNK = 512  # training images held at once
NOT_READ = "is of a format that is not read"
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
#: The name of an image, and its file or why there is none.
Source = tuple[str, bytes | Path | DataError]
#: Fingerprints of n pictures: phash (n,) and standardised thumbnails (n, 256).
Prints = tuple[NDArray[np.uint64], NDArray[np.float32]]


def prints(images: Iterable[Image.Image]) -> Prints:
    """The perceptual hashes as numbers, and 16 x 16 grey pictures with mean 0 and norm 1 (zeros when flat)."""
    hashes, small = [], []
    for image in images:
        hashes.append(int(str(imagehash.phash(image)), 16))
        grey = image.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX)
        small.append(np.asarray(grey, dtype=np.float32).ravel())
    centred = np.array(small) - np.mean(small, axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.array(hashes, np.uint64), np.where(norms > 1e-3, centred / np.maximum(norms, 1e-3), 0)


def duplicates(known: Prints, asked: Prints, distance: int) -> list[tuple[int, int, int, float]]:
    """Near duplicates, at most `distance` bits apart and alike as thumbnails: (asked, known, bits, correlation)."""
    (hashes, thumbs), (own_hashes, own_thumbs), found = known, asked, []
    for place in np.flatnonzero(own_thumbs.any(1)).tolist():  # flat pictures are like nothing
        bits = np.bitwise_count(own_hashes[place] ^ hashes)
        near = np.flatnonzero(bits <= distance)
        alike = thumbs[near] @ own_thumbs[place]
        pairs = zip(near.tolist(), bits[near].tolist(), alike.tolist(), strict=True)
        found += [(place, entry, n, round(r, 4)) for entry, n, r in pairs if r >= SIMILAR]
    return found


def audit(train: Sequence[str], evaluation: str | Path, distance: int = DISTANCE) -> dict[str, Any]:
    """Look for the images of a folder, mirrored or not, among training images: shards (globs) and folders.

    `distance` is the bits of 64 in which two perceptual hashes may differ. A set without a readable image is refused.
    """
    unread: tuple[list[str], list[str]] = ([], [])
    asked = dict(_pictures(folder_images(Path(evaluation)), unread[1]))
    if not asked:
        raise DataError(f"no readable image in {evaluation}; name the folder of the evaluation images")
    names = list(asked)
    known = {False: prints(asked.values()), True: prints(map(ImageOps.mirror, asked.values()))}
    ids = defaultdict[str, set[str]](set)
    for name in names:
        for key in image_ids(name):
            ids[key].add(name)
    shared, near, count = list[dict[str, str]](), list[dict[str, Any]](), 0
    rest = iter(tqdm(_pictures(training_images(train), unread[0]), "train", unit=" images", disable=None))
    while chunk := list(islice(rest, CHUNK)):
        count += len(chunk)
        for name, _ in chunk:
            hits = set[str]().union(*(ids[key] for key in image_ids(name) if key in ids))
            shared += [{"train": name, "evaluation": hit} for hit in sorted(hits)]
        own = prints(picture for _, picture in chunk)
        near += [
            {"train": chunk[a][0], "evaluation": names[b], "bits": n, "correlation": r, "mirrored": mirrored}
            for mirrored, of_set in known.items()
            for a, b, n, r in duplicates(of_set, own, distance)
        ]
    if not count:
        raise DataError(f"no readable image in {', '.join(train)}; name shards (.tar) or folders of images")
    content = {
        "train": {"sources": list(train), "images": count, "unreadable": unread[0]},
        "evaluation": {"source": str(evaluation), "images": len(asked), "unreadable": unread[1]},
        "rule": {"hash": "imagehash.phash, 64 bits", "distance": distance, "correlation": SIMILAR},
        "shared_ids": shared,
        "near_duplicates": near,
    }
    by_id, by_look = ({pair["evaluation"] for pair in pairs} for pairs in (shared, near))
    verdict = "No leak was found"
    if touched := len(by_id | by_look):
        share = f"{touched:,} evaluation images ({100 * touched / len(asked):.1f} %)"
        verdict = f"{share} are in the training set: leave them out of one of the two before reporting"
    exact = sum(pair["bits"] == 0 for pair in near)
    return content | {
        "summary": f"{count:,} training images against {len(asked):,} evaluation images: {len(by_id):,} share an id, "
        f"{len(by_look):,} have a near duplicate (at most {distance} of 64 bits apart, thumbnails correlated by "
        f"{SIMILAR} or more, mirrored copies included; {exact:,} pairs with equal hashes). "
        f"{sum(map(len, unread)):,} files could not be read and were not compared. {verdict}."
    }


def _pictures(sources: Iterator[Source], unreadable: list[str]) -> Iterator[tuple[str, Image.Image]]:
    """Names and small grey pictures of a set; what of it cannot be read is added to a list."""
    for name, source in sources:
        try:
            if isinstance(source, DataError):
                raise source
            yield name, load_image(source).resize((SIDE, SIDE), Image.Resampling.BOX).convert("L")
        except DataError as error:
            unreadable.append(f"{name}: {error}")


def image_ids(name: str) -> set[str]:
    """What in a file's name tells one photograph from all others anywhere.

    COCO's twelve digits, Flickr's numbers, ImageNet's names, UUIDs and hashes. A counter ('0001', 'IMG_0001',
    'photo (3)', a downloader's '000000123') or a date of a camera is none: such a copy is found by its looks.

    >>> image_ids("COCO_val2014_000000391895.jpg")
    {'000000391895'}
    >>> image_ids("2513260012_03d33305cf_b.jpg"), image_ids("IMG_20200131_123456.jpg"), image_ids("000012345.jpg")
    ({'2513260012'}, set(), set())
    """
    return {found.lower() for found in IDS.findall(TAKEN.sub(" ", Path(name).stem))}


def folder_images(folder: Path, shards: bool = False) -> Iterator[Source]:
    """Names relative to the folder and paths, in order of name; what is of another format than is read says so.

    With `shards` the images of those in it follow; else a shard is one of the formats that are not read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the root of the images")
    found = files_below(folder)
    for path in found:
        if path.suffix.lower() in IMAGE_ENDINGS:
            yield str(path.relative_to(folder)), path
        elif path.suffix.lower() in (UNREAD_ENDINGS if shards else UNREAD_ENDINGS | {".tar"}):
            yield str(path.relative_to(folder)), DataError(NOT_READ)
    for path in found if shards else ():
        yield from shard_images(str(path)) if path.suffix.lower() == ".tar" else ()


def training_images(sources: Sequence[str]) -> Iterator[Source]:
    """Images of shards and folders, one source after the other."""
    for source in sources:
        if (folder := Path(source)).is_dir():
            yield from folder_images(folder, shards=True)
        else:
            yield from chain.from_iterable(map(shard_images, expand(source)))


def shard_images(shard: str) -> Iterator[Source]:
    """Names and bytes of the images in a shard, in file order, and what of it is damaged; refused if that is all."""
    damage, images = "", 0
    try:
        with open_shard(shard) as tar:
            for member in walk(tar):
                if isinstance(member, Damage):
                    damage = damage or member.what
                    yield f"{shard}:byte {member.start}", DataError(member.what)
                elif Path(member.name).suffix.lower() in IMAGE_ENDINGS:
                    images += 1
                    tar.seek(member.offset_data)
                    why = member.unread
                    yield member.name, DataError(why) if why else tar.read(member.size)
                elif Path(member.name).suffix.lower() in UNREAD_ENDINGS:
                    yield member.name, DataError(NOT_READ)
    except Exception as error:  # each store of remote shards raises its own
        damage = reason(error)
        yield shard, DataError(damage)
    if damage and not images:
        raise DataError(f"shard {shard} cannot be read: {damage}")
