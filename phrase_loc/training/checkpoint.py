"""The state of a run on disk: everything that the next step depends on, whole or not at all.

A checkpoint is written by files.writing, so a `kill -9` or a power cut leaves the old or the new, never a half, and
it ends with the SHA-256 of what stands before: a changed bit is refused, never trained or released. Random states
need no place in it: every draw of a run (order, augmentation, dropout, sampled words) is seeded by (seed, phase,
step), see `step_seed`, which also makes a resume on another number of processes possible. It holds tensors and plain
values only and is read with `weights_only=True`: a checkpoint from a stranger cannot run code.

`save_whole` makes of the trained weights the folder that `query` reads, with what it was trained on in its card.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from phrase_loc.config import to_dict
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import (
    SEAL,
    writing,
)
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import save_model
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.out_of_vocabulary import add_further_words

#: Version 1 is the same without a digest.
VERSION = 2


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
        data: facts of the data and the vocabulary, see identity.py; empty in version 1.
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
    data: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Writes it whole or not at all.

        Raises:
            DataError: the disk is full or the folder cannot be written; what stood there is untouched.
        """
        values = {key: getattr(self, key) for key in self.__dataclass_fields__}
        with (
            writing(path, "free space there or give another out folder") as temporary,
            temporary.open("w+b") as file,
        ):
            try:
                torch.save(values, file)
            except RuntimeError as error:  # torch turns a full disk into a RuntimeError
                raise OSError(str(error)) from None
            file.write(_stream_digest(file, file.tell()))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Reads what `save` wrote.

        Raises:
            DataError: another kind of file, or of another version, or one whose bits have changed.
        """
        advice = f"copy it again, or delete the folder {path.parent} to start anew"
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2) - SEAL
                whole = size > 0 and _stream_digest(file, size) == file.read()
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for a file that is no checkpoint
            raise DataError(
                f"{path} is no checkpoint of a run ({' '.join(str(error).split())[:120]}); {advice}"
            ) from None
        if not isinstance(held, dict) or held.get("version") not in (1, VERSION):
            raise DataError(f"{path} is no checkpoint of version {VERSION}; {advice}")
        if not whole and held["version"] == VERSION:
            raise DataError(f"{path} has changed since it was written (its digest is another); {advice}")
        try:
            return cls(**{**held, "version": VERSION})
        except TypeError:
            raise DataError(
                f"{path} holds other parts than a checkpoint of version {VERSION}; {advice}"
            ) from None


def _stream_digest(file: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first bytes of a file, which is left standing behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 2**20))):
        digest.update(block)
        size -= len(block)
    return digest.digest()


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


def save_whole(model: TextToRegion, config: TrainConfig, folder: Path, figures: dict[str, float]) -> None:
    """Writes a model folder whole or not at all.

    Args:
        model: as trained; it is not changed.
        config: of the run, kept in the card.
        folder: of the model; an older one there is replaced.
        figures: kept in the card.

    Raises:
        DataError: the folder cannot be written, or the disk is full; an older one is then untouched.
    """
    released = deepcopy(model).cpu().float().eval().requires_grad_(False)
    further = config.further
    if further.words:
        add_further_words(released, further.words, further.texts, further.penalty, config.seed)
    measured = {key: value if math.isfinite(value) else None for key, value in figures.items()}
    card = {**released.config.card, **config.card, "training": to_dict(config), "measured": measured}
    card["training"].pop("out")
    inference = {**released.config.inference, **config.inference}
    released.config = replace(released.config, card=_printable(card), inference=inference)
    with writing(folder, "free space there; the same command then goes on") as fresh:
        save_model(released, fresh)


def _printable(card: dict[str, Any]) -> dict[str, Any]:
    """A card without what UTF-8 cannot hold, such as the bytes of a path that is not UTF-8."""
    text = json.dumps(card, ensure_ascii=False).encode("utf-8", "replace")
    return dict(json.loads(text))


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several state dictionaries of one model; whole numbers are those of the last."""
    last = states[-1]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in last.items()
    }
