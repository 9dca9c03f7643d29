"""The state of a run on disk, whole or not at all, and the model folder that is released.

A checkpoint ends with the SHA-256 of what stands before: a changed bit is refused, never trained or released. Random
states need no place in it: every draw of a run (order, augmentation, dropout, sampled words) is seeded by (seed,
phase, step), which also makes a resume on another number of processes possible. It is read with `weights_only=True`:
a checkpoint from a stranger cannot run code.
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
from phrase_loc.errors import DataError
from phrase_loc.files import SEAL, writing, writing_folder
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import save_model
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.setup import add_further_words

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
    data: dict[str, Any] = field(default_factory=dict)  # facts of identity.py; empty in version 1
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Writes it whole or not at all; raises DataError when the disk is full or the folder cannot be written."""
        advice = "free space there or give another out folder"
        with writing(path, advice) as temporary, temporary.open("w+b") as file:
            try:
                torch.save(vars(self), file)
            except RuntimeError as error:  # torch turns a full disk into a RuntimeError
                raise OSError(str(error)) from None
            file.write(_stream_digest(file, file.tell()))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Reads what `save` wrote; a DataError for another kind of file or version, or for changed bits."""
        advice = f"copy it again, or delete the folder {path.parent} to start anew"
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2) - SEAL
                whole = size > 0 and _stream_digest(file, size) == file.read()
            held = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises a dozen kinds for a file that is no checkpoint
            reason = " ".join(str(error).split())[:120]
            raise DataError(f"{path} is no checkpoint of a run ({reason}); {advice}") from None
        if not isinstance(held, dict) or held.get("version") not in (1, VERSION):
            raise DataError(f"{path} is no checkpoint of version {VERSION}; {advice}")
        if not whole and held["version"] == VERSION:
            raise DataError(f"{path} has changed since it was written (its digest is another); {advice}")
        if not {"config"} <= held.keys() <= cls.__dataclass_fields__.keys():
            raise DataError(f"{path} holds other parts than a checkpoint of version {VERSION}; {advice}")
        return cls(**{**held, "version": VERSION})


def _stream_digest(file: IO[bytes], size: int) -> bytes:
    """SHA-256 of the first bytes of a file, which is left standing behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(size, 2**20))):
        digest.update(block)
        size -= len(block)
    return digest.digest()


def save_whole(model: TextToRegion, config: TrainConfig, folder: Path, figures: dict[str, float]) -> None:
    """Writes a model folder whole or not at all (DataError), with the config and the figures in its card."""
    released = deepcopy(model).cpu().float().eval().requires_grad_(False)
    if config.further.words:
        add_further_words(released, config.further, config.seed)
    training = to_dict(config)
    training.pop("out")
    measured = {key: value if math.isfinite(value) else None for key, value in figures.items()}
    card = {**released.config.card, **config.card, "training": training, "measured": measured}
    # without what UTF-8 cannot hold, such as the bytes of a path that is not UTF-8
    card = json.loads(json.dumps(card, ensure_ascii=False).encode("utf-8", "replace"))
    inference = {**released.config.inference, **config.inference}
    released.config = replace(released.config, card=card, inference=inference)
    with writing_folder(folder, "free space there; the same command then goes on") as fresh:
        save_model(released, fresh)


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several state dictionaries of one model; whole numbers are those of the last."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }
