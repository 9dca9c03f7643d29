"""The state of a run on disk, whole or not at all, and whether a run goes on as it began: its settings, its data.

A checkpoint ends with the SHA-256 of what stands before: a changed bit is refused, never trained or released. Random
states need no place in it: every draw of a run (order, augmentation, dropout, sampled words) is seeded by (seed,
phase, step), which also makes a resume on another number of processes possible. It is read with `weights_only=True`:
a checkpoint from a stranger cannot run code.

Data on another disk have other places and times, but the same names, sizes and texts; the texts are read once and
their digest is kept in OUT/source.key until a file changes. Caches are named by places and times instead.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import torch

from phrase_loc import __version__, files
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.pairs.paths import is_remote, remote_version
from phrase_loc.pairs.sources import ShardSource, Source, texts_of

log = logging.getLogger(__name__)

_BLOCK = 4096  # samples whose texts make one digest: the same at any number of processes
#: Version 1 is the same without a digest.
VERSION = 2


@dataclass
class Checkpoint:
    """A run between two steps; state dictionaries are empty where there is none."""

    config: dict[str, Any]  # of the run, as plain values
    phase: int = 0  # number of the phase in work
    step: int = 0  # steps of that phase that are done
    done: int = 0  # steps of all phases that are done
    model: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # validation score so far, and its step
    faults: list[list[str]] = field(default_factory=list)  # (kind, name) of the samples that were skipped
    data: dict[str, Any] = field(default_factory=dict)  # see `identify`; empty in version 1
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Writes it whole or not at all; raises DataError when the disk is full or the folder cannot be written."""
        advice = "free space there or give another out folder"
        with files.writing(path, advice) as temporary:
            try:
                torch.save(vars(self), temporary)
            except RuntimeError as error:  # torch turns a full disk into a RuntimeError
                raise OSError(str(error)) from None
            with temporary.open("ab") as file:
                file.write(bytes.fromhex(files.digest(temporary)))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Reads what `save` wrote; a DataError for another kind of file or version, or for changed bits."""
        advice = f"copy it again, or delete the folder {path.parent} to start anew"
        try:
            with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as blob:
                whole = hashlib.sha256(memoryview(blob)[: -files.SEAL]).digest() == blob[-files.SEAL :]
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for a file that is no checkpoint
            raise DataError(f"{path} is no checkpoint of a run ({files.reason(error)}); {advice}") from None
        if not isinstance(held, dict) or held.get("version") not in (1, VERSION):
            raise DataError(f"{path} is no checkpoint of version {VERSION}; {advice}")
        if not whole and held["version"] == VERSION:
            raise DataError(f"{path} has changed since it was written (its digest is another); {advice}")
        if not {"config"} <= held.keys() <= cls.__dataclass_fields__.keys():
            raise DataError(f"{path} holds other parts than a checkpoint of version {VERSION}; {advice}")
        return cls(**{**held, "version": VERSION})


class Identity(NamedTuple):
    """What is known of a run's data."""

    stamp: str  # changes when a file is replaced, touched or moved, or the photographs' order is another
    facts: dict[str, Any]  # number of images, digests of files' names and sizes, of texts, of the vocabulary


def identify(source: Source, kept: Path, world: World) -> Identity:
    """The identity of a source, equal on all processes, which share the reading; `kept` is for the next start."""
    stamp, held = world.from_main(lambda: (_stamp(source), read_kept(kept)))
    # the texts of a table are in memory and cost little; they come from a file whose time is not known here
    if isinstance(source, ShardSource) and held is not None and held.get("stamp") == stamp:
        return Identity(stamp, held["facts"])
    named = world.from_main(lambda: _digest(_names_and_sizes(source)))
    facts = {"images": len(source), "files": named, "texts": _digest_of_texts(source, world)}
    if world.is_main:
        write_kept(kept, {"stamp": stamp, "facts": facts})
    return Identity(stamp, facts)


def check_same_data(held: dict[str, Any] | None, now: dict[str, Any], folder: Path) -> None:
    """Refuses, with a DataError, to go on with a run on data of other facts; an older program knew fewer of them."""
    held = held or {}
    changed = sorted(key for key in held.keys() & now.keys() if held[key] != now[key])
    if changed:
        told = [f"images: {held[k]} -> {now[k]}" if k == "images" else f"other {k}" for k in changed]
        raise DataError(
            f"{folder} holds a run on other data ({', '.join(told)}); give the same data, or another out folder"
        )


def check_same_run(held: dict[str, Any], asked: dict[str, Any], folder: Path, free: Iterable[str]) -> None:
    """Refuses, with a ConfigError, to go on with a run under other settings (configs as plain values).

    Dotted keys in `free` may differ, with all below them, and settings that only one version of the program knows.
    """
    before, now, but = _flat(held), _flat(asked), tuple(f"{key}." for key in free)
    bound = sorted(key for key in before.keys() & now.keys() if not f"{key}.".startswith(but))
    changed = [f"{key}: {before[key]!r} -> {now[key]!r}" for key in bound if before[key] != now[key]]
    if changed:
        raise ConfigError(
            f"{folder} holds a run with other settings ({', '.join(changed[:3])}); give another out folder, or "
            "delete that one"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        tree = {"number": len(tree), **{str(i): entry for i, entry in enumerate(tree)}}
    if not isinstance(tree, dict) or prefix.endswith(".losses."):
        return {prefix.rstrip("."): tree}
    below = (_flat(value, f"{prefix}{key}.") for key, value in tree.items())
    return {name: leaf for found in below for name, leaf in found.items()}


def read_kept(path: Path) -> dict[str, Any] | None:
    """What `write_kept` wrote; None where it is missing or has changed since."""
    content = files.unsealed(files.read_bytes(path)) if path.is_file() else None
    return None if content is None else json.loads(content)


def write_kept(path: Path, facts: dict[str, Any]) -> None:
    """Facts behind their digest, whole or not at all; raises DataError when the disk is full."""
    files.write_bytes(path, files.sealed(json.dumps(facts).encode()), "free space there or give another out=")


def _stamp(source: Source) -> str:
    if not isinstance(source, ShardSource):
        return _digest(_place(source.name(i)) for i in range(len(source)))
    shards = source.shards
    texts = [f"{os.path.splitext(shard)[0]}.parquet" for shard in shards]  # the tables beside them
    sides = [None if is_remote(path) else _place(path) for path in texts]
    rows = hashlib.sha256(source.rows.tobytes()).hexdigest()
    return _digest([__version__, source.text_fields, rows], zip(map(_place, shards), sides, strict=True))


def _place(path: str) -> Any:
    """What changes with a file; None where there is none."""
    try:
        return remote_version(path) if is_remote(path) else files.fingerprint(path)
    except (OSError, ValueError):  # ValueError: a null character in a path
        return None


def _names_and_sizes(source: Source) -> Iterator[tuple[str, Any]]:
    """Of each shard, or of each photograph; for an address what its store says of the content."""
    named = source.shards if isinstance(source, ShardSource) else map(source.name, range(len(source)))
    for path in named:
        found = _place(path)
        size = found.partition("|")[2] if isinstance(found, str) else found and found[1]
        yield os.path.basename(path), size


def _digest_of_texts(source: Source, world: World) -> str:
    """Of all texts in their order; empty for shards at an address, whose store marks their content."""
    if isinstance(source, ShardSource) and any(map(is_remote, source.shards)):
        return ""
    log.info("reading the texts of %d images", len(source))
    blocks = [range(i, min(i + _BLOCK, len(source))) for i in range(0, len(source), _BLOCK)]
    mine = {block.start: _digest(texts_of(source, block)) for block in blocks[world.rank :: world.size]}
    found = {start: one for rank in world.gather(mine) for start, one in rank.items()}
    return _digest(found[block.start] for block in blocks)


def _digest(*parts: Iterable[Any]) -> str:
    """Of JSON values, read one at a time: ten million of them need no memory."""
    found = hashlib.sha256()
    for value in chain(*parts):
        found.update(json.dumps(value).encode())
    return found.hexdigest()
