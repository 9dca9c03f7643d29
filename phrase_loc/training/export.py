"""From the trained weights to the folder that `query` reads, with what it was trained on in its card."""

import os
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch

from phrase_loc.config import to_dict
from phrase_loc.errors import DataError
from phrase_loc.models.store import save_model
from phrase_loc.models.text_to_region import TextToRegion
from phrase_loc.text.embeddings import glove_package
from phrase_loc.text.tables import align
from phrase_loc.training.config import TrainConfig


def save_whole(model: TextToRegion, config: TrainConfig, folder: Path, figures: dict[str, float]) -> None:
    """Writes a model folder whole or not at all.

    Args:
        model: as trained; it is not changed.
        config: of the run, kept in the card.
        folder: of the model; an older one there is replaced.
        figures: kept in the card.
    """
    released = deepcopy(model).cpu().float().eval().requires_grad_(False)
    if config.further_words:
        add_further_words(released, config.further_words)
    card = {**released.config.card, **config.card, "training": to_dict(config), "measured": figures}
    card["training"].pop("out")
    released.config = replace(released.config, card=card)
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


def add_further_words(model: TextToRegion, count: int) -> None:
    """Gives the model the `count` most frequent GloVe words beyond its vocabulary, mapped into its space."""
    glove = glove_package()
    words = model.vocabulary.words
    known = [i for i, word in enumerate(words) if word in glove]
    source = torch.stack([v for i in known if (v := glove.get(words[i])) is not None])
    weights = torch.tensor([model.vocabulary.counts[i] + 1.0 for i in known]).sqrt()
    bridge = align(source, model.words.vectors.detach()[known], weights=weights)
    chosen = [i for i, word in enumerate(glove.words) if word.isalpha() and word not in model.vocabulary][
        :count
    ]
    model.words.set_extra(glove.vectors[chosen], bridge)
    model.extra = tuple(glove.words[i] for i in chosen)
