"""The state of a run on disk: everything that the next step depends on, whole or not at all.

A checkpoint is written to a temporary name, flushed to the disk and renamed over the old one, so a `kill -9` or a
power cut leaves the old or the new, never a half. Random states need no place in it: every draw of a run (order,
augmentation, dropout, sampled words) is seeded by (seed, phase, step), see `seed_step`, which also makes a resume on
another number of processes possible. It holds tensors and plain values only and is read with
`weights_only=True`: a checkpoint from a stranger cannot run code.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from phrase_loc.errors import ConfigError, DataError

VERSION = 1


@dataclass
class Checkpoint:
    """A run between two steps.

    Attributes:
        config: of the run, as plain values.
        phase: number of the phase in work.
        step: steps of that phase that are done.
        done: steps of all phases that are done.
        model, average, optimizer, scaler: state dictionaries; empty where there is none.
        best: best validation score so far, and at which step over all phases; empty before the first.
        faults: (kind, name) of the samples that were skipped.
    """

    config: dict[str, Any]
    phase: int = 0
    step: int = 0
    done: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    average: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    faults: list[list[str]] = field(default_factory=list)
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Writes it whole or not at all.

        Raises:
            DataError: the disk is full or the folder cannot be written; what stood there is untouched.
        """
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            with temporary.open("wb") as file:
                torch.save({key: getattr(self, key) for key in self.__dataclass_fields__}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _flush_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            temporary.unlink(missing_ok=True)
            raise DataError(
                f"the checkpoint {path} cannot be written ({' '.join(str(error).split())[:120]}); "
                "free space there or give another out folder"
            ) from None

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Reads what `save` wrote.

        Raises:
            DataError: another kind of file, or of another version.
        """
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for a file that is no checkpoint
            raise DataError(
                f"{path} is no checkpoint of a run ({' '.join(str(error).split())[:120]}); delete it to start anew"
            ) from None
        if not isinstance(held, dict) or held.get("version") != VERSION:
            raise DataError(f"{path} is no checkpoint of version {VERSION}; delete it to start anew")
        return cls(**held)


def check_same_run(held: dict[str, Any], asked: dict[str, Any], folder: Path, free: frozenset[str]) -> None:
    """Refuses to go on with a run under other settings.

    Args:
        held: config of the checkpoint as plain values, nested.
        asked: that of now.
        folder: of the run, for the message.
        free: dotted keys that may differ, with all below them. So may settings that only one version of
            the program knows.

    Raises:
        ConfigError: a setting differs.
    """
    before, now = _flat(held), _flat(asked)
    both = before.keys() & now.keys() | {k for k in before.keys() ^ now.keys() if k.startswith("phases.")}
    changed = sorted(k for k in both if not _within(k, free) and before.get(k) != now.get(k))
    if changed:
        told = ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed[:3])
        raise ConfigError(
            f"{folder} holds a run with other settings ({told}); give another out folder, or delete that one"
        )


def _within(key: str, free: frozenset[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in free)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        items = ((str(i), entry) for i, entry in enumerate(tree))  # type: ignore[assignment]
    else:
        return {prefix.rstrip("."): tree}
    return {name: leaf for key, value in items for name, leaf in _flat(value, f"{prefix}{key}.").items()}


def _flush_folder(folder: Path) -> None:
    """A rename is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
