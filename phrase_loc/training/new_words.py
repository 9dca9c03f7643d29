"""Words of the captions that a model to go on from lacks: which are learned, and where their rows start.

Rows of words that look alike are alike, so a new row need not begin at random. Where mu is the mean of the features
over all photographs and places, mu+ that over the photographs of which the word is said, and s2 the variance,

    row = median length of the trained rows * d / |d|,    d = (mu+ - mu) / s2

the direction of a linear discriminant with a diagonal covariance. The bias is the median of the trained ones.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import DEFAULT, load_model
from phrase_loc.pairs.dataset import Batch
from phrase_loc.pairs.sources import Source, texts_of
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.config import FurtherConfig, ModelSettings, TrainConfig
from phrase_loc.training.objective import table

log = logging.getLogger(__name__)

#: Photographs from which new words start, evenly spaced over all: enough for a mean.
LOOKED_AT = 4096
_NAMED = 20  # words of a kind that the log names


def resolve_start(config: TrainConfig, photographs: int, begun: str | None) -> TrainConfig:
    """The config of a run with so many photographs: model.start=auto decided, as `begun` where the run has begun.

    The shipped model, where it is kept, is released with its own settings: `inference` is the recipe's.
    """
    few, start = config.few, config.model.start
    is_few, is_auto = photographs < few.below, start == "auto"
    if is_auto:
        start = begun if begun is not None else "default" if is_few and _fits(config) else ""
    told = f"{photographs} photographs are few (few.below={few.below}): "
    if is_few and is_auto and not start:
        log.warning(f"{told}training from scratch, as the settings are not the shipped model's")
    if is_few and start:
        least = min(few.min_count, config.vocabulary.min_count)
        config = replace(config, vocabulary=replace(config.vocabulary, min_count=least))
    config = replace(config, model=replace(config.model, start=start))
    if not is_auto or not start:
        return config
    if config.only:
        log.info(f"{told}starting from the shipped model, {start}")
        return config
    log.info(
        f"{told}the shipped model is kept as it is and learns the words that it lacks; model.start=none trains from "
        "scratch, and model.start=default all of the model by the phases of the config, whose inference settings the "
        "kept model does not take"
    )
    return replace(config, phases=(few.phase,), average_of=(), further=FurtherConfig(), inference={})


def _fits(config: TrainConfig) -> bool:
    """Whether a run from scratch would make a model like the shipped one."""
    try:
        shipped = load_model(DEFAULT).config
    except DataError:  # an installation without it
        return False
    asked, normal = config.model, ModelSettings()
    same = ("backbone", "hidden", "pool", "sharpness")
    wanted = [getattr(shipped, key) for key in same] + [normal.weights, shipped.free]
    given = [getattr(asked, key) for key in same] + [asked.weights, config.vectors.source == "free"]
    return given == wanted and asked.image_size in (None, shipped.image_size)


def looked_at(numbers: Sequence[int]) -> Sequence[int]:
    """At most LOOKED_AT of them, evenly spaced."""
    few = min(len(numbers), LOOKED_AT)
    return [numbers[i * len(numbers) // few] for i in range(few)]


def extended(
    model: TextToRegion, counted: Vocabulary, source: Source, numbers: Sequence[int], least: int
) -> tuple[TextToRegion, int, Counter[str]]:
    """A row more for each unit of `counted` that the model lacks and that is said of `least` of these photographs.

    Of many photographs those looked at must hold their share of that. Words of the out-of-vocabulary table start at
    their vector, others at zeros until `start_rows`; where vectors come from text those others stay unknown.

    Returns:
        The model; the row of its first new word; word -> photographs looked at of which it is said.
    """
    seen = looked_at(numbers)
    said: Counter[str] = Counter()
    for texts in texts_of(source, seen):
        said.update({unit for text in texts for unit in counted.units(text)})
    old, V = model.vocabulary, len(model.vocabulary)
    new = [w for w in counted.words if w not in old]
    needed = max(1, least * len(seen) // max(1, len(numbers)))
    learn = [w for w in new if needed <= said[w] < len(seen)]
    place = {word: V + i for i, word in enumerate(model.extra)}
    _tell("known words of the texts", [w for w in counted.words if w in old], said)
    if not model.config.free:
        without = [w for w in learn if w not in place]
        if without:
            why = "STAYING UNKNOWN, as this model's words have vectors from text and these have none"
            _tell(why, without, said)
        learn = [w for w in learn if w in place]
    _tell(f"new words to learn, with their photographs of {len(seen)}", learn, said)
    rest = [w for w in new if not needed <= said[w] < len(seen)]
    _tell(f"not learned, said of fewer than {needed} photographs or of all", rest, said)
    if not learn:
        return model, V, said
    blank, words = torch.zeros(model.config.embedding), deepcopy(model.words)
    rows = [words(torch.tensor([place[w]]))[0] if w in place else blank for w in learn]
    words.vectors = nn.Parameter(torch.cat([words.vectors, torch.stack(rows)]).detach(), requires_grad=False)
    kept = [i for i, word in enumerate(model.extra) if word not in set(learn)]
    words.rows, words.scale = words.rows[kept], words.scale[kept]
    if not kept:
        words.reserve(0, 1)
    bias = model.words.presence_bias
    mean = bias[:V].mean().expand(len(learn))  # until the new words are calibrated themselves
    words.presence_bias = torch.cat([bias[:V], mean, bias[V:][kept]])
    vocabulary = Vocabulary((*old.words, *learn), (*old.counts, *(said[w] for w in learn)))
    config = replace(model.config, tuned=True)
    extra = tuple(model.extra[i] for i in kept)
    made = TextToRegion(config, model.trunk, model.head, words, vocabulary, extra)
    return made.eval().requires_grad_(False), V, said


def _tell(what: str, words: Sequence[str], said: Counter[str]) -> None:
    ranked = sorted(words, key=lambda word: -said[word])
    named = ", ".join(f"{word} {said[word]}" for word in ranked[:_NAMED])
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    log.info("%d %s%s%s%s", len(words), what, ": " if named else "", named, more)


@torch.no_grad()
def start_rows(
    model: TextToRegion, batches: Iterable[tuple[Tensor, Batch]], first: int, world: World
) -> None:
    """Gives rows of zeros from `first` on their start, equal in all processes, each of which has its own batches.

    `batches` are features (N,D,h,w) with their labels.
    """
    vectors = model.words.vectors
    blank = first + (vectors[first:] == 0).all(1).nonzero()[:, 0]
    if not len(blank):
        return
    D = vectors.shape[1] - 1
    # sums over photographs: of means, of squares, their number; and for each word of means and number
    every, shown = vectors.new_zeros(2 * D + 1), vectors.new_zeros(len(blank), D + 1)
    for features, batch in batches:
        means = torch.cat([features.mean((2, 3)), features.new_ones(len(features), 1)], 1)
        means = (means * batch.weights[:, None]).to(vectors.dtype)
        squares = (features.square().mean((2, 3)) * batch.weights[:, None]).to(vectors.dtype)
        every += torch.cat([squares.sum(0), means.sum(0)])
        shown += (table(batch.words, blank, len(features), vectors.dtype) > 0).to(vectors.dtype).T @ means
    every, shown = world.sum(every), world.sum(shown)
    mean = every[D:-1] / every[-1].clamp_min(1)
    variance = every[:D] / every[-1].clamp_min(1) - mean.square()
    away = (shown[:, :-1] / shown[:, -1:].clamp_min(1) - mean) / (variance + 1e-4)
    trained = vectors[:first]
    length, bias = trained[:, :-1].norm(dim=1).median(), trained[:, -1].median()
    vectors[blank] = torch.cat([length * F.normalize(away, dim=1), bias.expand(len(blank), 1)], 1)
