"""Teaches a BoxRanker from photographs with captions: what the boxes that the model's own maps elect have in common.

A map is right about many boxes of a word and wrong about each in another way; what the regions that it elects have in
common is what the thing looks like. So the ranker learns to say from the picture alone what `ranking.vote` reads from
the map: how much of the probability lies on boxes that overlap a proposal by half. No true box is seen.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from phrase_loc.boxes import iou
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.pairs.sources import Source
from phrase_loc.ranking import BoxRanker, score_boxes
from phrase_loc.skipped import Fault, Skipped
from phrase_loc.text.splitting import noun_phrases

PHRASES, BOXES, BATCH = 10, 100, 8  # of a photograph at most, of those in a step, photographs of a step
EPOCHS, RATE, WEIGHT_DECAY = 6, 2e-3, 0.02
TEMPERATURE = 0.1  # of the vote where the model has none
#: Settings of a ranking by maps alone, by which a ranker is taught, and of one with it, chosen on val
#: (docs/experiments.md).
ALONE = {"gamma": 0.4, "spread": 0.05, "ranker": 0.0}
WITH = {"gamma": 0.65, "spread": 0.07, "ranker": 0.3}


class Example(NamedTuple):
    """A photograph and what its captions name."""

    plane: Tensor  # (C, h, w) activations in half precision
    boxes: Tensor  # (R, 4) proposals
    size: tuple[int, int]  # (H, W) of their frame
    units: Tensor  # (P, D) of each phrase the mean unit of its words
    hits: Tensor  # (P, R) the probability that a box overlaps what the phrase names by half, by its map


def teach(
    localizer: PhraseLocalizer, source: Source, photographs: int, seed: int = 0
) -> tuple[PhraseLocalizer, dict[str, Any]]:
    """The localizer with a ranker learned from photographs drawn by the seed; how many, and what was left out.

    It learns from boxes ranked with ALONE; the localizer keeps its own settings. It reads the lowest stage at which
    the model's maps are read, at the first input size. Raises a ConfigError for an image-text pair, a DataError where
    too few photographs can be used.
    """
    if localizer.model.reads_phrases:
        raise ConfigError(
            "a box ranker is for models that read words, this is an image-text pair; take another"
        )
    asked, skipped = localizer.with_settings(**ALONE), Skipped()
    drawn = sorted(random.Random(seed).sample(range(len(source)), min(photographs, len(source))))
    bar = tqdm(drawn, "photographs", unit="image", disable=None, leave=False)
    found = list(examples(asked, source, bar, skipped))
    if len(found) < BATCH:
        why = f" (left out: {skipped.summary()})" if skipped.seen else ""
        raise DataError(
            f"a box ranker learns from {BATCH} photographs or more whose captions name something known, got "
            f"{len(found)} of {len(drawn)}{why}; name more --shards or --photographs"
        )
    model, stage = deepcopy(localizer.model), min(asked.settings.stages, key=localizer.model.stage_index)
    model.head.ranker = learn(found, seed=seed).to(localizer.device)
    model.config = replace(model.config, ranker=(stage, len(found[0].plane)))
    said = {"photographs": len(found), "phrases": sum(len(example.units) for example in found)}
    return PhraseLocalizer(model, localizer.settings, localizer.cache), said | {"left_out": skipped.counts}


def examples(
    localizer: PhraseLocalizer, source: Source, numbers: Iterable[int], skipped: Skipped
) -> Iterator[Example]:
    """Those of the photographs that name something known; a ConfigError where no picture has proposals."""
    s = localizer.settings
    for number in numbers:
        try:
            phrases = _phrases(localizer, source.texts(number))
            scene = localizer.look(source.image(number))
        except DataError as error:
            skipped.add(Fault("image", source.name(number), str(error)))
            continue
        if scene.proposals is None:
            raise ConfigError(f"{s.proposals} proposes no boxes of a picture alone; take another proposals=")
        if not phrases or not len(scene.proposals):
            skipped.add(Fault("words", source.name(number), "" if phrases else "no noun phrase is known"))
            continue
        heats = localizer.heat(localizer.attend(scene, phrases).cpu().float(), (s.grid, s.grid))
        scores = score_boxes(heats, scene.proposals, scene.size, s.gamma, s.spread)
        near = (iou(scene.proposals, scene.proposals) >= 0.5).to(scores)
        hits = torch.softmax(scores / (s.temperature or TEMPERATURE), -1) @ near
        units = localizer.phrase_units(localizer.encode(phrases))
        yield Example(localizer.ranker_plane(scene).half(), scene.proposals, scene.size, units, hits)


def _phrases(localizer: PhraseLocalizer, texts: Sequence[str]) -> list[str]:
    """Noun phrases of the texts whose noun is known, of those with the same words the first, at most PHRASES."""
    said = [phrase for text in texts for phrase in noun_phrases(text)]
    found: dict[tuple[Any, ...], str] = {}
    for phrase, encoded in zip(said, localizer.encode(said), strict=True):
        if encoded.head_known:
            found.setdefault(encoded.ids, phrase)
    return list(found.values())[:PHRASES]


def learn(found: Sequence[Example], epochs: int = EPOCHS, seed: int = 0) -> BoxRanker:
    """The ranker of BATCH examples or more, in eval mode: AdamW, one cycle of the rate, cross-entropy to `hits`."""
    torch.manual_seed(seed)
    ranker = BoxRanker(len(found[0].plane), found[0].units.shape[1])
    pixels = torch.cat([example.plane.float().flatten(1)[:, ::7] for example in found], 1)
    ranker.mean.copy_(pixels.mean(1))
    ranker.std.copy_(pixels.std(1).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(ranker.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    steps = len(found) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps + 1)
    for step in tqdm(range(epochs * steps), "box ranker", unit="step", disable=None, leave=False):
        if step % steps == 0:
            order = torch.randperm(len(found)).tolist()
        place = step % steps * BATCH
        loss = torch.stack([_loss(ranker, found[i]) for i in order[place : place + BATCH]]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return ranker.eval().requires_grad_(False)


def _loss(ranker: BoxRanker, example: Example) -> Tensor:
    chosen = torch.randperm(len(example.boxes))[:BOXES]
    logits = ranker(example.plane.float(), example.boxes[chosen], example.size, example.units)
    return F.binary_cross_entropy_with_logits(logits, example.hits[:, chosen])
