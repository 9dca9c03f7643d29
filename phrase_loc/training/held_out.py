"""The photographs that a run with few of them does not train on, and whether its words are found there."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from phrase_loc.models.model import TextToRegion
from phrase_loc.pairs.dataset import Transform, WebImages, collate
from phrase_loc.training.checkpoint import texts_of
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.features import any_word
from phrase_loc.training.setup import Setup

log = logging.getLogger(__name__)

_SHUFFLES = 200


def score(config: TrainConfig, model: TextToRegion, setup: Setup) -> dict[str, Any]:
    """How well the learned words rank the photographs that were held out; {} where none were.

    The baseline does not look: the average precision of any order is about the share of photographs that have the
    word, and shuffled orders show how far chance alone goes. Words that none or all of them have are not scored.
    """
    numbers = list(setup.held_out)
    if not numbers:
        return {}
    ids = setup.new or range(len(model.vocabulary))
    labels = np.zeros((len(numbers), len(model.vocabulary)), bool)
    for row, texts in enumerate(texts_of(setup.source, numbers)):
        labels[row, list(setup.labeller(texts).ids)] = True
    size = (config.run_phases[-1].sizes or (model.image_size,))[-1]
    images = WebImages(setup.source, any_word, [Transform((size, size))], config.seed)
    items: Any = [[(0, n, 0) for n in numbers[i : i + 32]] for i in range(0, len(numbers), 32)]
    device, kind = model.words.vectors.device, model.words.vectors.dtype
    rows, usable, found = torch.arange(ids.start, ids.stop, device=device), [], []
    with torch.inference_mode():
        for batch in DataLoader(images, batch_sampler=items, collate_fn=collate):
            found.append(model(batch.images.to(device).to(kind), rows).float().cpu())
            usable.append(batch.weights > 0)
    kept = torch.cat(usable).numpy()
    return _summary(
        [model.vocabulary.words[i] for i in ids], torch.cat(found).numpy()[kept], labels[kept][:, ids]
    )


def _summary(words: Sequence[str], scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    count, said = len(labels), labels.sum(0)
    asked = (said > 0) & (said < count)
    result: dict[str, Any] = {"photographs": count, "words_scored": int(asked.sum())}
    places = np.argsort(-scores[:, asked], axis=0, kind="stable")
    truth, each = labels[:, asked], np.full(len(words), np.nan)
    if asked.any():
        each[asked] = average_precision(truth, places)
        random = np.random.default_rng(0)
        shuffled = [
            average_precision(truth[random.permutation(count)], places).mean() for _ in range(_SHUFFLES)
        ]
        result["average_precision"] = float(each[asked].mean())
        result["share"] = float(truth.mean())
        result["shuffled_95"] = float(np.quantile(shuffled, 0.95))
    result["words"] = {
        word: {
            "photographs": int(n),
            "average_precision": None if np.isnan(ap) else float(ap),
            "share": n / count,
        }
        for word, n, ap in zip(words, said, each, strict=True)
    }
    return result


def average_precision(labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,K) bool, (n,K) photographs by descending score -> (K,); each word has a photograph."""
    hits = np.take_along_axis(labels, places, 0)
    precision = hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]
    mean: np.ndarray = (precision * hits).sum(0) / hits.sum(0)
    return mean


def tell(found: dict[str, Any], path: Path) -> str:
    """Says what `score` found, with a warning where that is no better than not looking; the sentence for the card."""
    if not found:
        return ""
    if not found["words_scored"] or found["shuffled_95"] > 0.999:  # chance alone would often seem perfect
        log.warning("not measured: %d held-out photographs are too few to tell", found["photographs"])
        return "Not measured: too few photographs were held out to tell."
    told = (
        f"{found['photographs']} photographs were held out; of {found['words_scored']} words they are ranked with a "
        f"mean average precision of {found['average_precision']:.2f}, without looking {found['share']:.2f}"
    )
    ranked = sorted(found["words"].items(), key=lambda pair: -pair[1]["photographs"])
    for word, row in [pair for pair in ranked if pair[1]["average_precision"] is not None][:10]:
        one = (word, row["average_precision"], row["share"], row["photographs"])
        log.info("  %s: average precision %.2f, without looking %.2f (%d photographs)", *one)
    log.info("held out: %s (%s)", told, path)
    if found["average_precision"] > found["shuffled_95"]:
        return f"{told}."
    log.warning(
        "NO BETTER THAN NOT LOOKING: the words rank the held-out photographs with a mean average precision of %.2f, "
        "and shuffled ones reach %.2f; give more photographs of each word, or words for what can be seen",
        *(found["average_precision"], found["shuffled_95"]),
    )
    return f"{told}: no better than chance, which reaches {found['shuffled_95']:.2f}."
