"""Teaches a BoxRanker by photographs with captions and no boxes: what the model's own maps elect, seen over many.

A map is right about many boxes of a word and wrong about each in another way; what the regions that it elects have in
common is what the thing looks like. So the ranker learns, from the picture alone, what `vote` reads from the map: how
much of the probability lies on boxes that overlap a proposal by half.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.localizer import PhraseLocalizer, mean_units
from phrase_loc.pairs.sources import Source
from phrase_loc.ranking import BoxRanker, hit_probability, score_boxes
from phrase_loc.text.splitting import noun_phrases

PHRASES, BOXES, BATCH = 10, 100, 8  # of a photograph, of those in a step, photographs of a step
RATE, WEIGHT_DECAY = 2e-3, 0.02
RANKER = 0.2  # its weight, chosen on val (docs/experiments.md)


class Example(NamedTuple):
    """A photograph and what its captions name."""

    plane: Tensor  # (C, h, w) activations in half precision
    boxes: Tensor  # (R, 4) proposals
    size: tuple[int, int]  # (H, W) of their frame
    units: Tensor  # (P, D) of each phrase the mean unit of its words
    hits: Tensor  # (P, R) the probability that a box overlaps what the phrase names by half, by its map


def teach(
    localizer: PhraseLocalizer, source: Source, photographs: int, seed: int = 0
) -> tuple[PhraseLocalizer, dict[str, int]]:
    """The localizer with a ranker that has learned from photographs drawn by the seed, and from how many it did.

    Raises a ConfigError for an image-text pair, a DataError where too few photographs can be used.
    """
    model, stage = deepcopy(localizer.model), min(localizer.settings.stages, key=localizer.model.stage_index)
    if model.reads_phrases:
        raise ConfigError(
            "a box ranker is part of a word model, and this is an image-text pair; give another model"
        )
    drawn = sorted(random.Random(seed).sample(range(len(source)), min(photographs, len(source))))
    found = list(examples(localizer, source, tqdm(drawn, "photographs", leave=False)))
    ranker = learn(found, seed=seed)
    model.head.ranker = ranker.to(localizer.device)
    model.config = replace(model.config, ranker=(stage, found[0].plane.shape[0]))
    said = {"photographs": len(found), "left_out": len(drawn) - len(found)}
    said["phrases"] = sum(len(example.units) for example in found)
    return PhraseLocalizer(model, localizer.settings, localizer.cache), said


def examples(localizer: PhraseLocalizer, source: Source, numbers: Iterable[int]) -> Iterator[Example]:
    """Those of the photographs that have a proposal and a caption with a known noun; broken ones are left out."""
    s = localizer.settings
    for number in numbers:
        try:
            texts, scene = source.texts(number), localizer.look(source.image(number))
        except DataError:
            continue
        phrases = _phrases(localizer, texts)
        boxes = scene.proposals
        if not phrases or boxes is None or not len(boxes):
            continue
        heats = localizer.heat(localizer.attend(scene, phrases).cpu(), (s.grid, s.grid))
        scores = score_boxes(heats, boxes.to(heats), scene.size, s.gamma, s.spread)
        hits = hit_probability(boxes.to(heats), scores, s.temperature or 0.1)
        units = mean_units(localizer.model, localizer.encode(phrases)).cpu()
        yield Example(scene.activations[0][0].half().cpu(), boxes.to(heats), scene.size, units, hits)


def _phrases(localizer: PhraseLocalizer, texts: Sequence[str]) -> list[str]:
    """Noun phrases of the captions whose noun is known, of those with the same words the first, at most PHRASES."""
    said = [phrase for text in texts for phrase in noun_phrases(text)]
    found = {e.ids: p for p, e in zip(said[::-1], localizer.encode(said[::-1]), strict=True) if e.head_known}
    return list(found.values())[::-1][:PHRASES]


def learn(found: Sequence[Example], epochs: int = 6, seed: int = 0) -> BoxRanker:
    """The ranker of the examples, in eval mode: AdamW with one cycle of the rate, cross-entropy to `hits`.

    Raises a DataError where there are fewer than BATCH of them.
    """
    if len(found) < BATCH:
        raise DataError(
            f"a box ranker learns from {BATCH} photographs or more, got {len(found)} with known nouns"
        )
    torch.manual_seed(seed)
    order, draw = list(range(len(found))), random.Random(seed)
    ranker = BoxRanker(found[0].plane.shape[0], found[0].units.shape[1])
    pixels = torch.cat([example.plane.float().flatten(1)[:, ::7] for example in found], 1)
    ranker.mean.copy_(pixels.mean(1))
    ranker.std.copy_(pixels.std(1).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(ranker.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(found) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    for step in tqdm(range(steps), "ranker", leave=False):
        if (place := step * BATCH % (len(found) // BATCH * BATCH)) == 0:
            draw.shuffle(order)
        losses = [_loss(ranker, found[i]) for i in order[place : place + BATCH]]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        schedule.step()
    return ranker.eval().requires_grad_(False)


def _loss(ranker: BoxRanker, example: Example) -> Tensor:
    chosen = torch.randperm(len(example.boxes))[:BOXES]
    logits = ranker(example.plane.float(), example.boxes[chosen], example.size, example.units)
    return F.binary_cross_entropy_with_logits(logits, example.hits[:, chosen])
