"""Which data a run belongs to: by the files' places and times for what is cached, by their content for what goes on.

A cache may be made anew whenever a file was touched, so its name holds each file's place, size and time of change. A
run goes on with the same data wherever they lie: copied to another disk they have other places and times, but the
same names, sizes and texts. The texts are read once and their digest is kept in OUT/source.key until a file changes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phrase_loc import __version__
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.files import fingerprint, read_bytes, sealed, unsealed, write_bytes
from phrase_loc.pairs.paths import is_remote, remote_version
from phrase_loc.pairs.sources import ShardSource, Source

log = logging.getLogger(__name__)

_BLOCK = 4096  # samples whose texts make one digest: the same at any number of processes


@dataclass(frozen=True)
class Identity:
    """What is known of a run's data.

    Attributes:
        stamp: changes when a file with photographs is replaced, touched or moved, or their order is another.
        facts: number of images, digest of the files' names and sizes, digest of the texts.
    """

    stamp: str
    facts: dict[str, Any]


def identify(source: Source, kept: Path, world: World) -> Identity:
    """The identity of a source, equal on all processes.

    Args:
        source: opened.
        kept: file that keeps the digest of the texts, for the next start.
        world: the processes, which share the reading of the texts.
    """
    stamp, held = world.from_main(lambda: (_stamp(source), read_kept(kept)))
    # the texts of a table are in memory and cost little; they come from a file whose time is not known here
    if isinstance(source, ShardSource) and held is not None and held.get("stamp") == stamp:
        return Identity(stamp, held["facts"])
    facts = {
        "images": len(source),
        "files": world.from_main(lambda: _digest(_names_and_sizes(source))),
        "texts": _texts(source, world),
    }
    if world.is_main:
        write_kept(kept, {"stamp": stamp, "facts": facts})
    return Identity(stamp, facts)


def check_same_data(held: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuses to go on with a run on other data.

    Args:
        held: facts in the checkpoint; those of an older program may be fewer.
        now: facts of the data that were found.
        folder: of the run, for the message.

    Raises:
        DataError: a fact differs.
    """
    changed = [key for key in held.keys() & now.keys() if held[key] != now[key]]
    if changed:
        told = [f"images: {held[k]} -> {now[k]}" if k == "images" else f"other {k}" for k in sorted(changed)]
        raise DataError(
            f"{folder} holds a run on other data ({', '.join(told)}); give the same data, or another out folder"
        )


def texts_of(source: Source, i: int) -> list[str]:
    """The texts of a sample; none where they cannot be read, which the loader counts and names."""
    try:
        return source.texts(i)
    except (OSError, UnicodeDecodeError):
        return []


def read_kept(path: Path) -> dict[str, Any] | None:
    """What `write_kept` wrote; None where it is missing or has changed since."""
    if not path.is_file():
        return None
    content = unsealed(read_bytes(path))
    return None if content is None else json.loads(content)


def write_kept(path: Path, facts: dict[str, Any]) -> None:
    """Facts behind their digest, whole or not at all; raises DataError when the disk is full."""
    write_bytes(path, sealed(json.dumps(facts).encode()), "free space there or give another out=")


def _stamp(source: Source) -> str:
    if not isinstance(source, ShardSource):
        return _digest(_place(source.name(i)) for i in range(len(source)))
    shards = source.shards
    sides = [
        None if is_remote(shard) else _place(os.path.splitext(shard)[0] + ".parquet") for shard in shards
    ]
    rows = hashlib.sha256(source.rows.tobytes()).hexdigest()
    return _digest([__version__, source.text_fields, rows], zip(map(_place, shards), sides, strict=True))


def _place(path: str) -> Any:
    """What changes with a file; None where there is none."""
    try:
        return remote_version(path) if is_remote(path) else fingerprint(path)
    except (OSError, ValueError):  # ValueError: a null character in a path
        return None


def _names_and_sizes(source: Source) -> Iterator[tuple[str, Any]]:
    """Of each shard, or of each photograph; for an address what its store says of the content."""
    named = source.shards if isinstance(source, ShardSource) else map(source.name, range(len(source)))
    for path in named:
        found = _place(path)
        size = found.partition("|")[2] if isinstance(found, str) else found and found[1]
        yield os.path.basename(path), size


def _texts(source: Source, world: World) -> str:
    """Digest of all texts in their order; empty for shards at an address, whose store marks their content."""
    if isinstance(source, ShardSource) and any(map(is_remote, source.shards)):
        return ""
    log.info("reading the texts of %d images", len(source))
    starts = range(0, len(source), _BLOCK)
    mine = {
        start: _digest(texts_of(source, i) for i in range(start, min(start + _BLOCK, len(source))))
        for start in starts[world.rank :: world.size]
    }
    found = {start: one for rank in world.gather(mine) for start, one in rank.items()}
    return _digest(found[start] for start in starts)


def _digest(*parts: Any) -> str:
    """Of JSON values, read one at a time: ten million of them need no memory."""
    digest = hashlib.sha256()
    for part in parts:
        for value in part:
            digest.update(json.dumps(value).encode())
    return digest.hexdigest()
