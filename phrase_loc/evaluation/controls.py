"""A localizer as a method, exactly as a query asks it; and its controls, which must fail.

    <method>@shuffled_words   the map of another phrase said of the same image; when every phrase of the image
                              shares its words, of another word the model knows
    <method>@random_word      the map of another word the model knows, drawn once for each phrase
    <method>@random_top       the map of units whose weights are shuffled: a top layer that has learnt nothing

A map that does not change with the word is no grounding. Each control runs with the same look, smoothing and ranker
as the method itself, so the drop from method to control is what the word contributed; what is left is the bias of the
photographs. Draws depend on the phrase and the image
alone, so the rows are the same on every machine and at any number of processes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from phrase_loc.attention import METHODS
from phrase_loc.boxes import rescale
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.map_boxes import map_boxes
from phrase_loc.evaluation.protocols import MapBox, Protocol
from phrase_loc.evaluation.rows import Rows
from phrase_loc.evaluation.tables import Floats, Table
from phrase_loc.evaluation.targets import Answers, Query, Request, padded
from phrase_loc.maps import peak
from phrase_loc.structures import GroundingSample, Scene

if TYPE_CHECKING:
    from phrase_loc.localizer import Localizer

METRIC = "same_peak"
NEAR = 0.05  # of the longer side
CHUNK = 16  # full-size maps held at once,
HELD_PIXELS = 2**25  # or fewer, of so many pixels together


Choice = Callable[["Localizer", GroundingSample, Sequence[str]], Sequence[str]]


class Looker:
    """Looks at each image once for all methods: keeps the last scene."""

    def __init__(self, localizer: "Localizer"):
        self.localizer = localizer
        self._last: tuple[GroundingSample, Scene] | None = None

    def __call__(self, sample: GroundingSample) -> Scene:
        """The scene of an image in the frame of its annotation; DataError where the file is unreadable."""
        if self._last is None or self._last[0] is not sample:
            self._last = (sample, self.localizer.look(framed(sample).picture, size=sample.size))
        return self._last[1]


class MapMethod:
    """A method that gives attention maps; peaks and boxes follow from the localizer's own rules.

    Args:
        name: its name in reports.
        localizer: as it is asked.
        looker: shared by all methods over the same network.
        choose: what is asked instead of the phrases of a sample; None asks them as they are.
    """

    needs_image = True

    def __init__(self, name: str, localizer: "Localizer", looker: Looker, choose: Choice | None = None):
        self.name, self.localizer, self.looker, self.choose = name, localizer, looker, choose
        self._last: tuple[GroundingSample | None, dict[str, Tensor]] = (None, {})

    def attention(self, scene: Scene, sample: GroundingSample, phrases: Sequence[str]) -> Tensor:
        """Maps of distinct phrases, >= 0, zeros for a phrase without a known word: (P, h, w)."""
        asked = self.choose(self.localizer, sample, phrases) if self.choose else phrases
        return self.localizer.attend(scene, asked)

    def knows(self, phrases: Sequence[str]) -> list[bool]:
        """Whether each phrase has a word with a vector."""
        return [encoded.known for encoded in self.localizer.encode(phrases)]

    def answer(self, sample: GroundingSample, queries: Sequence[Query], request: Request) -> Answers:
        """Answer distinct queries about one image (targets.py)."""
        scene = self.looker(sample)
        maps = self._maps(scene, sample, queries)
        phrases = list(dict.fromkeys(p for query in queries for p in query))
        knows = dict(zip(phrases, self.knows(phrases)))
        known = torch.tensor([any(knows[p] for p in query) for query in queries])
        peaks, found = self._from_heat(maps, sample.size, request)
        boxes, scores = _side_by_side(self._ranked(scene, maps, known, request.top_k))
        for values in [*peaks.values(), *found.values()]:
            values[~known] = float("nan")
        of_classifier = getattr(self.localizer, "class_ranks", None) if request.ranks else None
        ranks = of_classifier(scene, [query[0] for query in queries]) if of_classifier else None
        return Answers(known, peaks, boxes, scores, found, ranks)

    def _maps(self, scene: Scene, sample: GroundingSample, queries: Sequence[Query]) -> Tensor:
        """(P, h, w): the mean over each query's phrases; a phrase's map is computed once an image."""
        if self._last[0] is not sample:
            self._last = (sample, {})
        cache = self._last[1]
        new = [p for p in dict.fromkeys(p for query in queries for p in query) if p not in cache]
        if new:
            cache.update(zip(new, self.attention(scene, sample, new)))
        return torch.stack([torch.stack([cache[p] for p in query]).mean(0) for query in queries])

    def _from_heat(
        self, maps: Tensor, size: tuple[int, int], request: Request
    ) -> tuple[dict[int, Tensor], dict[Any, Tensor]]:
        """Peaks for each border and boxes for each rule, from full-size maps, a chunk at a time."""
        peaks: dict[int, list[Tensor]] = {border: [] for border in sorted(request.borders)}
        found: dict[Any, list[Tensor]] = {rule: [] for rule in request.map_boxes}
        if not peaks and not found:
            return {}, {}
        for chunk in maps.split(max(1, min(CHUNK, HELD_PIXELS // (size[0] * size[1])))):
            heat = self.localizer.heat(chunk, size)
            for border, parts in peaks.items():
                parts.append(peak(_framed(heat, border)).cpu())
            for rule, boxes in self._map_boxes(chunk, heat, size, list(found)).items():
                found[rule].append(boxes)
        return {b: torch.cat(p) for b, p in peaks.items()}, {r: torch.cat(p) for r, p in found.items()}

    def _map_boxes(
        self, maps: Tensor, heat: Tensor, size: tuple[int, int], rules: Sequence[MapBox]
    ) -> dict[MapBox, Tensor]:
        """Per rule the (P, 4) boxes of maps, from `heat`, or from the rule's own grid and then rescaled."""
        found: dict[MapBox, Tensor] = {}
        for grid in {rule.grid for rule in rules}:
            frame = (grid, grid) if grid else size
            own = [rule for rule in rules if rule.grid == grid]
            full = self.localizer.heat(maps, frame) if grid else heat
            boxes = torch.stack([map_boxes(one, own) for one in full])  # (P, R, 4)
            found |= dict(zip(own, rescale(boxes, frame, size).unbind(1), strict=True))
        return found

    def _ranked(self, scene: Scene, maps: Tensor, known: Tensor, top_k: int) -> list[tuple[Tensor, Tensor]]:
        """Per map its boxes (k, 4), best first, and scores (k,); none where no word is known."""
        nothing = (torch.zeros(0, 4), torch.zeros(0))
        if top_k == 0 or not known.any():
            return [nothing] * len(maps)
        found = iter(self.localizer.rank_all(scene, maps[known.to(maps.device)], top_k))
        ranked = [next(found) if k else nothing for k in known.tolist()]
        return [(boxes.detach().cpu().float(), scores.detach().cpu().float()) for boxes, scores in ranked]


def _framed(heat: Tensor, border: int) -> Tensor:
    """Maps with a frame of `border` pixels set to zero: (P, H, W)."""
    if border == 0:
        return heat
    inner = torch.zeros_like(heat)
    inner[:, border:-border, border:-border] = heat[:, border:-border, border:-border]
    return inner


def _side_by_side(ranked: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """P ragged rankings -> (P, k, 4) and (P, k), NaN where a ranking is shorter."""
    scores = pad_sequence([score for _, score in ranked], batch_first=True, padding_value=float("nan"))
    return padded([boxes for boxes, _ in ranked]), scores


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


def shuffled_words(localizer: "Localizer", sample: GroundingSample, phrases: Sequence[str]) -> list[str]:
    """For each phrase another one of the image that shares no word with it, else a word from elsewhere."""
    said = sorted({phrase.text for phrase in sample.phrases})
    words = dict(zip(said, _known_words(localizer, said)))
    asked = dict(zip(phrases, _known_words(localizer, phrases)))
    chosen = []
    for phrase in phrases:
        others = [text for text in said if words[text] and not words[text] & asked[phrase]]
        chosen.append(_drawn(others, sample, phrase) if others else _elsewhere(localizer, sample, phrase))
    return chosen


def random_word(localizer: "Localizer", sample: GroundingSample, phrases: Sequence[str]) -> list[str]:
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


def randomised(localizer: "Localizer") -> "Localizer":
    """A localizer with a top layer that has learnt nothing, over the same network."""
    own = getattr(localizer.model, "with_random_top", None)
    kind: Any = type(localizer)
    return kind(own() if own else ShuffledUnits(localizer.model), localizer.settings)


def _with(method: str, control: str) -> Callable[["Localizer", Looker], MapMethod]:
    """The builder of `<method>@<control>`."""

    def build(localizer: "Localizer", looker: Looker) -> MapMethod:
        asked, name = localizer.with_settings(method=method), f"{method}@{control}"
        choose = CHOICES.get(control)
        return MapMethod(name, asked if choose else randomised(asked), looker, choose)

    return build


def _known_words(localizer: "Localizer", phrases: Sequence[str]) -> list[frozenset[str]]:
    return [frozenset(w.text for w in e.words if w.known) for e in localizer.encode(phrases)]


def _elsewhere(localizer: "Localizer", sample: GroundingSample, phrase: str) -> str:
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

CONTROLS: dict[str, Callable[["Localizer", Looker], MapMethod]] = {
    f"{method}@{control}": _with(method, control)
    for method in METHODS
    for control in (*CHOICES, "random_top")
}
