"""Controls: methods that must fail. A map that does not change with the word is no grounding.

    <method>@shuffled_words   the map of another phrase said of the same image; when every phrase of the image
                              shares its words, of another word the model knows
    <method>@random_word      the map of another word the model knows, drawn once for each phrase
    <method>@random_top       the map of units whose weights are shuffled: a top layer that has learnt nothing

Each runs with the same look, smoothing and ranker as the method itself, so the drop from method to control is
what the word contributed; what is left is the bias of the photographs. Draws depend on the phrase and the image
alone, so the rows are the same on every machine and at any number of processes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phrase_loc.attention import METHODS
from phrase_loc.evaluation.map_method import Looker, MapMethod
from phrase_loc.evaluation.protocols import Protocol
from phrase_loc.evaluation.rows import Rows
from phrase_loc.evaluation.tables import Floats, Table
from phrase_loc.structures import GroundingSample, Scene

METRIC = "same_peak"
NEAR = 0.05  # of the longer side


def same_peak_rows(
    rows: Rows, protocols: tuple[Protocol, ...], asked: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row for each pointing protocol and control whose own method is among `asked`."""
    found = []
    for protocol in protocols:
        for name in asked:
            method, _, control = name.partition("@")
            if control and method in asked and "pointing" in protocol.kind:
                found.append(_row(rows, protocol, method, name))
    return found


def same_peak(own: Table, other: Table) -> Floats:
    """(N,) 1 where the two peaks are near each other; 0 where one of them is missing."""
    sizes = np.array([max(own.things.samples[i].size) for i in own.things.image.tolist()], dtype=np.float64)
    distance = np.linalg.norm(own.peak - other.peak, axis=1)
    return (np.nan_to_num(distance, nan=np.inf) <= NEAR * sizes).astype(np.float64)


def _row(rows: Rows, protocol: Protocol, method: str, control: str) -> dict[str, Any]:
    own, other = rows.tables[protocol.name, method], rows.tables[protocol.name, control]
    compared = {(protocol.name, control): replace(other, values={METRIC: same_peak(own, other)})}
    row = Rows(compared, rows.images, rows.bootstrap).row(protocol, control, METRIC, own.known)
    return row | {"baselines": {}, "by_type": {}, "compared_with": method}


Choice = Callable[[Any, GroundingSample, Sequence[str]], list[str]]


class OtherWords(MapMethod):
    """A method whose phrases are replaced by others before it is asked.

    Args:
        name: its name in reports.
        localizer: asked for the maps.
        looker: shared by all methods.
        choose: localizer, sample and phrases -> what is asked instead of each.
    """

    def __init__(self, name: str, localizer: Any, looker: Looker, choose: Choice):
        super().__init__(name, localizer, looker)
        self.choose = choose

    def attention(self, scene: Scene, sample: GroundingSample, phrases: Sequence[str]) -> Tensor:
        """Maps of the other phrases, in the order of the asked ones: (P, h, w)."""
        return self.localizer.attend(scene, self.choose(self.localizer, sample, phrases))


def shuffled_words(localizer: Any, sample: GroundingSample, phrases: Sequence[str]) -> list[str]:
    """For each phrase another one of the image that shares no word with it, else a word from elsewhere."""
    said = sorted({phrase.text for phrase in sample.phrases})
    words = dict(zip(said, _known_words(localizer, said)))
    asked = dict(zip(phrases, _known_words(localizer, phrases)))
    chosen = []
    for phrase in phrases:
        others = [text for text in said if words[text] and not words[text] & asked[phrase]]
        chosen.append(_drawn(others, sample, phrase) if others else _elsewhere(localizer, sample, phrase))
    return chosen


def random_word(localizer: Any, sample: GroundingSample, phrases: Sequence[str]) -> list[str]:
    """For each phrase a word the model knows and the phrase does not have."""
    return [_elsewhere(localizer, sample, phrase) for phrase in phrases]


class ShuffledUnits:
    """A model whose units are shuffled, each in its own fixed order; everything else is the model's own.

    The weights keep their values and lose their places, so nothing but what was learnt is taken away.
    """

    def __init__(self, model: Any):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def units(self, words: Tensor) -> Tensor:
        """(K,) rows -> (K, D) shuffled units."""
        units = self._model.units(words)
        return torch.stack([shuffled(unit, number) for unit, number in zip(units, words.tolist())])


def shuffled(unit: Tensor, number: int) -> Tensor:
    """A unit (D,) in an order fixed by its number."""
    generator = torch.Generator().manual_seed(number)
    return unit[torch.randperm(len(unit), generator=generator).to(unit.device)]


def randomised(localizer: Any) -> Any:
    """A localizer with a top layer that has learnt nothing, over the same network."""
    own = getattr(localizer.model, "with_random_top", None)
    return type(localizer)(own() if own else ShuffledUnits(localizer.model), localizer.settings)


def _with(method: str, control: str) -> Callable[[Any, Looker], MapMethod]:
    """The builder of `<method>@<control>`."""

    def build(localizer: Any, looker: Looker) -> MapMethod:
        asked, name = localizer.with_settings(method=method), f"{method}@{control}"
        if control == "random_top":
            return MapMethod(name, randomised(asked), looker)
        return OtherWords(name, asked, looker, CHOICES[control])

    return build


def _known_words(localizer: Any, phrases: Sequence[str]) -> list[frozenset[str]]:
    return [frozenset(w.text for w in e.words if w.known) for e in localizer.encode(phrases)]


def _elsewhere(localizer: Any, sample: GroundingSample, phrase: str) -> str:
    """A known word that no phrase of the image has, or the phrase itself when the model knows nothing else."""
    names = getattr(localizer, "names", None) or localizer.vocabulary.words
    texts = [phrase, *(p.text for p in sample.phrases)]
    said = set().union(*_known_words(localizer, texts), texts)
    others = [word for word in names if word not in said]
    return _drawn(others, sample, phrase) if others else phrase


def _drawn(options: Sequence[str], sample: GroundingSample, phrase: str) -> str:
    digest = hashlib.sha256(f"{sample.image_id}\n{phrase}".encode()).digest()
    return options[int.from_bytes(digest[:8], "big") % len(options)]


CHOICES: dict[str, Choice] = {"shuffled_words": shuffled_words, "random_word": random_word}

CONTROLS: dict[str, Callable[[Any, Looker], MapMethod]] = {
    f"{method}@{control}": _with(method, control)
    for method in METHODS
    for control in (*CHOICES, "random_top")
}
