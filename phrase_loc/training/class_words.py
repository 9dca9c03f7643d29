"""Gives words the units of the 1,000 ImageNet classes that a trunk was pretrained on; no box is seen.

Training on captions forgets classes that captions seldom say. What the pretrained classifier says at locations of
photographs (C = 1,000 logits y) is regressed on the model's features h (D,) there, in float64:

    U = argmin sum |y - U (h, 1)|^2 + p |U|^2        (C, D + 1), p = PENALTY mean(diag(sum h h')), no p on the biases
    u(class) = U(class) - mean of U over classes

A name of one word stands for its class, the last word of a first name of several words where no class has it as a
name ('dog' of 'Eskimo dog'); a word for several classes has the mean of their units. A word's unit is scaled and
shifted so that its score of a photograph, pooled over locations, has the mean and standard deviation that are usual
among the half of the trained words that is said least. The captions check the sense: a word that they say and whose
score does not tell its photographs from others (AUC below LEAST_AUC: 'chest' is furniture to ImageNet) is left out,
and so is the pair as a name of the joined word ('walking stick' of 'walkingstick', an insect). The rest is learned:
in a row of an out-of-vocabulary word u takes the place of what was there, a new word takes that of one of the last of
them, and a trained word v has

    (n v + PRIOR u) / (n + PRIOR)

where n is the greater of its count in the vocabulary (mentions in the captions it was trained on) and the number of
these photographs that say it.
"""

import random
from collections.abc import Collection, Container, Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from phrase_loc.datasets.annotations import imagenet_classes
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.evaluation.classifier import classifier
from phrase_loc.images import load_image
from phrase_loc.inference import squashed
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.backbones import IMAGENET, imagenet_classifier
from phrase_loc.models.model import TextToRegion
from phrase_loc.pairs.sources import Source
from phrase_loc.skipped import Fault, Skipped
from phrase_loc.text.english import canonical, may_be_shown, tokens

PENALTY = 0.03  # of the ridge regression, in mean squares of a feature
PRIOR = 20  # mentions that the unit of a class counts for, beside those of a trained word
LEAST_AUC = 0.7
LEARNED = "(`phrase-loc learn-classes`)"  # by which the card of a model tells that its words were changed
LEAST, BATCH = 8, 16  # photographs without which nothing is learned, and of a step
PASSES = 3  # of the scaling: what a log-sum-exp pools is not linear in its scale


class Looked(NamedTuple):
    """N photographs, what their captions say, and the units of the classes over their features."""

    features: Tensor  # (N, D, h, w) in half precision: 0.1 MB a photograph at 320 pixels
    said: list[set[str]]  # dictionary forms, and pairs of neighbours
    units: Tensor  # (C, D + 1), each with its bias as last number


def learn_classes(
    localizer: PhraseLocalizer, source: Source, photographs: int, seed: int = 0
) -> tuple[PhraseLocalizer, dict[str, Any]]:
    """The localizer with class words learned from photographs drawn by the seed; how many, and what was left out.

    It looks at them at the first input size. The calibration was that of other words, and is gone. Raises a
    ConfigError for an image-text pair, a head that is not free, a backbone without an ImageNet classifier, a
    DataError where too few photographs can be read.
    """
    from sklearn.metrics import roc_auc_score as area

    model, skipped = localizer.model, Skipped()
    teacher = _teacher(model).to(localizer.device)
    drawn = sorted(random.Random(seed).sample(range(len(source)), min(photographs, len(source))))
    bar = tqdm(drawn, "photographs", unit="image", disable=None, leave=False)
    looked = look(localizer, teacher, source, bar, skipped)
    names = class_words()
    units = torch.stack([looked.units[list(numbers)].mean(0) for numbers in names.values()])
    units, scores = scaled(model, looked.features, units, *usual(model, looked.features))
    rows = dict(zip(names, scores.T.numpy(), strict=True))

    def of_another_sense(name: str, word: str) -> bool:
        said = [name in own for own in looked.said]
        return 0 < sum(said) < len(said) and area(said, rows[word]) < LEAST_AUC

    other = [word for word in names if of_another_sense(word, word)]
    taken = {w: u for w, u in zip(names, units, strict=True) if w not in other}
    pairs = {pair for pair, word in names_in_two(taken).items() if not of_another_sense(pair, word)}
    times = {word: sum(word in own for own in looked.said) for word in names}
    made, counts = with_units(model, taken, times, pairs)
    told = (
        f"{counts['trained']} trained words, {counts['out_of_vocabulary']} out-of-vocabulary and {counts['new']} new "
        f"ones have the units of ImageNet classes, by {len(looked.said):,} photographs {LEARNED}."
    )
    card = {**model.config.card, "words": " ".join([str(model.config.card.get("words", "")), told]).strip()}
    made.config = replace(made.config, calibration={}, card=card)
    examples = sorted(other, key=lambda word: -times[word])[:5]
    facts = {"photographs": len(looked.said), **counts, "of_another_sense": len(other), "such_as": examples}
    return PhraseLocalizer(made, localizer.settings, localizer.cache), facts | {"left_out": skipped.counts}


def _teacher(model: TextToRegion) -> TextToRegion:
    """The pretrained classifier of the same backbone, whose words are the classes."""
    if model.reads_phrases:
        raise ConfigError("classes are for models that read words, this is an image-text pair; take another")
    if not model.config.free:
        raise ConfigError(
            "classes are for models whose word vectors are the units (vectors.source=free), this one's are projected "
            "to units; take another"
        )
    weights = imagenet_classifier(model.config.backbone)
    return classifier(model.config.backbone, IMAGENET, *weights, names={}).model


def class_words() -> dict[str, tuple[int, ...]]:
    """Words in alphabetical order -> the numbers of the classes that each names."""
    own: dict[str, set[int]] = {}
    last: dict[str, set[int]] = {}
    for number, (_, lemmas) in enumerate(imagenet_classes()):
        names = [lemma.split() for lemma in lemmas.lower().split(", ")]
        for name in names:
            if len(name) == 1:
                own.setdefault(canonical(name[0]), set()).add(number)
        last.setdefault(canonical(names[0][-1]), set()).add(number)
    found = last | own  # names win
    typed = [word for word in sorted(found) if tokens(word) == [word] and may_be_shown(word)]
    return {word: tuple(sorted(found[word])) for word in typed}


def names_in_two(words: Container[str]) -> dict[str, str]:
    """Names of classes in two words, in dictionary forms -> the one of `words` that is the same ('hotdog')."""
    lemmas = (lemma.split() for _, lemmas in imagenet_classes() for lemma in lemmas.lower().split(", "))
    pairs = sorted(tuple(map(canonical, lemma)) for lemma in lemmas if len(lemma) == 2)
    joined = ((pair, joint.join(pair)) for pair in pairs for joint in ("", "-"))
    return {" ".join(pair): word for pair, word in joined if word in words}


@torch.no_grad()
def look(
    localizer: PhraseLocalizer,
    teacher: TextToRegion,
    source: Source,
    numbers: Iterable[int],
    skipped: Skipped,
) -> Looked:
    """Those of the photographs that can be read; a DataError where they are fewer than LEAST."""
    model, side = localizer.model, localizer.settings.image_sizes[0]
    classes = torch.arange(len(teacher.vocabulary), device=localizer.device)
    features, said = [], []
    gram: Any = 0
    cross: Any = 0
    for number in numbers:
        try:
            texts, picture = source.texts(number), load_image(source.image(number))
        except DataError as error:
            skipped.add(Fault("image", source.name(number), str(error)))
            continue
        image = squashed(picture, side)[None].to(localizer.device)
        h = model.features(image)
        y = teacher.location_scores(teacher.features(image), classes)
        rows = torch.cat([h, torch.ones_like(h[:, :1])], 1)[0].flatten(1).cpu().double()  # (D + 1, locations)
        gram, cross = gram + rows @ rows.T, cross + rows @ y[0].flatten(1).T.cpu().double()
        features.append(h[0].half().cpu())
        read = [[canonical(token) for token in tokens(text)] for text in texts]
        said.append({*chain(*read), *(" ".join(pair) for own in read for pair in pairwise(own))})
    if len(said) < LEAST:
        why = f" (left out: {skipped.summary()})" if skipped.seen else ""
        raise DataError(
            f"classes are learned from {LEAST} photographs or more that can be read, got {len(said)}{why}; name more "
            "--shards or --photographs"
        )
    units = ridge(gram, cross)
    return Looked(torch.stack(features), said, (units - units.mean(0)).float())


def ridge(gram: Tensor, cross: Tensor) -> Tensor:
    """Sums (D + 1, D + 1) of products of features and a 1, and (D + 1, C) of those with targets -> (C, D + 1)."""
    penalty = PENALTY * gram.diagonal()[:-1].mean() * torch.ones(len(gram)).double()
    penalty[-1] = 0
    return torch.linalg.solve(gram + penalty.diag(), cross).T


@torch.no_grad()
def pooled(model: TextToRegion, features: Tensor, words: Tensor) -> Tensor:
    """The scores of photographs (N,D,h,w): (N,W) of words, given by their rows (W,) or units with biases (W,D+1)."""
    device = model.words.vectors.device
    words = words.to(device)
    return torch.cat([model.scores(h.to(device).float(), words).cpu() for h in features.split(BATCH)])


def usual(model: TextToRegion, features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scores of the half of the trained words that is said least, medians."""
    counts = torch.tensor(model.vocabulary.counts)
    scores = pooled(model, features, counts.argsort(stable=True)[: (len(counts) + 1) // 2])
    return scores.mean(0).median(), scores.std(0).median()


def scaled(
    model: TextToRegion, features: Tensor, units: Tensor, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Units with biases (W,D+1) whose scores (N,W) have this mean and standard deviation, and those scores."""
    for _ in range(PASSES):
        units = units * (std / pooled(model, features, units).std(0).clamp_min(1e-6))[:, None]
    scores = pooled(model, features, units)
    shift = mean - scores.mean(0)
    return torch.cat([units[:, :-1], units[:, -1:] + shift[:, None]], 1), scores + shift


def with_units(
    model: TextToRegion, units: Mapping[str, Tensor], said: Mapping[str, int], pairs: Collection[str] = ()
) -> tuple[TextToRegion, dict[str, int]]:
    """The model with units (D + 1,) for words, which so many photographs `said`; how many of each kind.

    `pairs` are other names of these words, in two.
    The table of out-of-vocabulary words keeps its size where it has room for new ones; the last of the others go.
    """
    words, vocabulary, V = deepcopy(model.words), model.vocabulary, len(model.vocabulary)
    every = model.words(torch.arange(V, len(words), device=words.vectors.device)).detach()
    table = dict(zip(model.extra, every, strict=True))
    new = [word for word in units if word not in table and word not in vocabulary]
    further = [word for word in units if word in table and word not in vocabulary]
    others = [word for word in table if word not in units]
    if len(new) <= len(table):
        for word in others[max(0, len(others) - len(new)) :]:
            del table[word]
    table |= {word: units[word].to(every) for word in [*further, *new]}
    trained = [word for word in units if word in vocabulary]
    for word in trained:
        (row,), n = vocabulary.rows([word]), max(vocabulary.count(word), said[word])
        own = words.vectors.data[row]
        words.vectors.data[row] = (n * own + PRIOR * units[word].to(own)) / (n + PRIOR)
    if table:
        words.set_extra(torch.stack(list(table.values())))
    seen = {*further, *new, *model.config.class_words} & table.keys()
    config = replace(model.config, class_words=tuple(sorted(seen.union(pairs))))
    made = TextToRegion(config, model.trunk, model.head, words, vocabulary, tuple(table))
    counts = {"trained": len(trained), "out_of_vocabulary": len(further), "new": len(new)}
    return made.eval().requires_grad_(False), counts
