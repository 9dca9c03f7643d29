"""From the trained weights to the folder that `query` reads, with what it was trained on in its card."""

import os
import shutil
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from phrase_loc.config import to_dict
from phrase_loc.errors import DataError
from phrase_loc.models.store import save_model
from phrase_loc.models.text_to_region import TextToRegion
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.further import add_further_words


def save_whole(model: TextToRegion, config: TrainConfig, folder: Path, figures: dict[str, float]) -> None:
    """Writes a model folder whole or not at all.

    Args:
        model: as trained; it is not changed.
        config: of the run, kept in the card.
        folder: of the model; an older one there is replaced.
        figures: kept in the card.
    """
    released = deepcopy(model).cpu().float().eval().requires_grad_(False)
    further = config.further
    if further.words:
        add_further_words(released, further.words, further.texts, further.penalty, config.seed)
    card = {**released.config.card, **config.card, "training": to_dict(config), "measured": figures}
    card["training"].pop("out")
    inference = {**released.config.inference, **config.inference}
    released.config = replace(released.config, card=card, inference=inference)
    fresh, old = (
        folder.with_name(f"{folder.name}.{os.getpid()}.part"),
        folder.with_name(f"{folder.name}.old.part"),
    )
    try:
        save_model(released, fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise DataError(f"the model folder {folder} cannot be written ({error}); free space there") from None


def mean_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several state dictionaries of one model; whole numbers are those of the last."""
    last = states[-1]
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in last.items()
    }
