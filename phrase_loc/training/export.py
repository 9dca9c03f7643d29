"""From the trained weights to the folder that `query` reads, with what it was trained on in its card."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phrase_loc.config import to_dict
from phrase_loc.files import writing_folder
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import save_model
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.further import add_further_words


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
    with writing_folder(folder, "free space there; the same command then goes on") as fresh:
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
