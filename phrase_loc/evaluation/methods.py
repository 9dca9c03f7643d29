"""Names of methods -> methods: blind baselines, a localizer as a query asks it, and controls, which must fail.

    <method>@shuffled_words   the map of another phrase said of the same image; when every phrase of the image
                              shares its words, of another word the model knows
    <method>@random_word      the map of another word the model knows, drawn once for each phrase
    <method>@random_top       the map of units whose weights are shuffled: a top layer that has learnt nothing
    predictions:FILE          other people's answers, and
    transformers:ID           a detector of theirs (external.py)

A map that does not change with the word is no grounding. Each control runs with the same look, smoothing and ranker
as the method itself, so the drop from method to control is what the word contributed. Draws depend on the phrase and
the image alone. Where all methods are baselines no model, no torchvision and no image file is loaded.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from phrase_loc.attention import METHODS
from phrase_loc.boxes import rescale
from phrase_loc.datasets.annotations import Annotated
from phrase_loc.errors import ConfigError, nearest
from phrase_loc.evaluation import external
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.protocols import EvaluateConfig, MapBox, Protocol
from phrase_loc.evaluation.rows import Rows, Table, content_words
from phrase_loc.evaluation.scoring import BASELINES, Answers, Baseline, Method, Query, hashed
from phrase_loc.evaluation.statistics import Floats
from phrase_loc.evaluation.thresholds import map_boxes
from phrase_loc.files import digest
from phrase_loc.inference import Inference
from phrase_loc.maps import peak
from phrase_loc.proposals import tidy
from phrase_loc.structures import GroundingSample, Scene
from phrase_loc.tables import TABLE_ENDINGS

if TYPE_CHECKING:
    from phrase_loc.localizer import PhraseLocalizer

CACHE_VARIABLE = "PHRASE_LOC_CACHE"  # environment: folder of what is kept between runs
BOXES_OF_MAPS = "level_sets"  # a proposal source that leaves the picture alone
SAME_PEAK = "same_peak"
NEAR = 0.05  # of the longer side
CHUNK = 16  # full-size maps held at once,
HELD_PIXELS = 2**25  # or fewer, of so many pixels together

#: What is asked instead of the phrases of an image.
Choice = Callable[["PhraseLocalizer", GroundingSample, Sequence[str]], Sequence[str]]


def check(names: list[str], inference: dict[str, Any] | None = None) -> None:
    """Refuses names that are no methods' and settings of no localizer, before annotations and weights are read."""
    Inference.from_dict(inference or {})
    known = [*METHODS, *(f"{m}@{c}" for m in METHODS for c in CONTROLS), *BASELINES]
    for name in (n for n in names if not n.startswith(external.PREFIXES)):
        if name not in known:
            is_file = name.endswith((*TABLE_ENDINGS, ".json"))
            hint = f" (did you mean 'predictions:{name[:80]}'?)" if is_file else nearest(name[:80], known)
            offered = ", ".join([*sorted(known), "predictions:FILE", "transformers:ID"])
            raise ConfigError(f"unknown method {name[:80]!r}{hint}; choose from {offered}")


def load_localizer(config: EvaluateConfig, device: str) -> "PhraseLocalizer":
    """The localizer of a config, with its changed settings; where no boxes are ranked it proposes none."""
    from phrase_loc.evaluation import classifier
    from phrase_loc.localizer import PhraseLocalizer

    ranks = any(protocol.top_k for protocol in config.chosen_protocols())
    folder = cache_folder(config.proposal_cache) if ranks else None
    settings = config.inference if ranks else {"proposals": BOXES_OF_MAPS, **config.inference}
    if config.model.startswith(classifier.PREFIX):
        localizer: PhraseLocalizer = classifier.load_classifier(config.model, device, **settings)
    else:
        localizer = PhraseLocalizer.from_pretrained(config.model, device=device).with_settings(**settings)
    return localizer if folder is None else localizer.with_cache(folder)


def cache_folder(setting: str) -> Path | None:
    """The folder that `proposal_cache` names, tidied; None where nothing is kept."""
    if setting in ("", "none"):
        return None
    try:
        folder = Path(setting).expanduser()
        if setting == "auto":
            own = os.environ.get(CACHE_VARIABLE)
            folder = Path(own or user_cache_path("phrase_loc", appauthor=False)) / "proposals"
    except RuntimeError:  # ~nobody
        raise ConfigError(f"proposal_cache is auto, none or a folder, got {setting!r:.200}") from None
    tidy(folder)
    return folder


def fingerprint(localizer: "PhraseLocalizer | None") -> str:
    """A hash of the weights and settings of a localizer, '' for none."""
    if localizer is None:
        return ""
    return digest(f"{localizer.settings} {external.weights_digest(localizer.model)}".encode())


def build(
    config: EvaluateConfig,
    samples: Annotated,
    protocols: Sequence[Protocol],
    device: torch.device,
    localizer: "PhraseLocalizer | None" = None,
) -> tuple[list[Method], "PhraseLocalizer | None"]:
    """The methods of a config, and the localizer that they ask: the given one, else the config's if one is needed."""
    found, looks = list[Method](), list[Look]()
    for name in config.methods:
        if name in BASELINES:
            found.append(Baseline(name, BASELINES[name]))
        elif name.startswith(external.PREDICTIONS):
            found.append(external.Predictions(name, samples, protocols))
        elif name.startswith(external.TRANSFORMERS):
            found.append(external.Detector(name, device))
        else:
            localizer = load_localizer(config, str(device)) if localizer is None else localizer
            method, _, control = name.partition("@")
            asked = localizer.with_settings(method=method)
            asked = randomised(asked) if control == "random_top" else asked
            found.append(MapMethod(name, asked, looks, CONTROLS.get(control)))
    return found, localizer


class Look(NamedTuple):
    """An image that was looked at, and method -> phrase -> map (h, w) >= 0 and mean unit (D,), zeros if unknown."""

    sample: GroundingSample
    scene: Scene
    maps: defaultdict[str, dict[str, tuple[Tensor, Tensor]]]


@dataclass
class MapMethod(Method):
    """A method that gives attention maps; peaks and boxes follow from the localizer's own rules."""

    needs_image = True
    name: str
    localizer: "PhraseLocalizer"
    looks: list[Look]  # the last image looked at, for all methods
    choose: Choice | None  # what is asked instead of the phrases

    def answer(self, sample: GroundingSample, queries: Sequence[Query], asked: Sequence[Protocol]) -> Answers:
        """Answer distinct queries about one image (scoring.py)."""
        if not self.looks or self.looks[0].sample is not sample:
            scene = self.localizer.look(framed(sample).picture, size=sample.size)
            self.looks[:] = [Look(sample, scene, defaultdict(dict))]
        scene, found = self.looks[0].scene, self.looks[0].maps[self.name]
        phrases = list(dict.fromkeys(p for query in queries for p in query))
        if new := [phrase for phrase in phrases if phrase not in found]:
            said = self.choose(self.localizer, sample, new) if self.choose else new
            units = self.localizer.phrase_units(self.localizer.encode(said))
            found.update(zip(new, zip(self.localizer.attend(scene, said), units, strict=True), strict=True))
        maps, units = (
            torch.stack([torch.stack([found[p][part] for p in query]).mean(0) for query in queries])
            for part in range(2)
        )
        knows = {p: e.known for p, e in zip(phrases, self.localizer.encode(phrases), strict=True)}
        known = torch.tensor([any(knows[p] for p in query) for query in queries])
        peaks, boxes = self._from_heat(maps, sample.size, asked)
        for values in [*peaks.values(), *boxes.values()]:
            values[~known] = float("nan")
        ranked = self._ranked(scene, maps, known, max(p.top_k for p in asked), units)
        of_classifier = getattr(self.localizer, "class_ranks", None) if any(p.sweep for p in asked) else None
        ranks = of_classifier(scene, [query[0] for query in queries]) if of_classifier else None
        return Answers(known, peaks, ranked, boxes, ranks)

    def _from_heat(
        self, maps: Tensor, size: tuple[int, int], asked: Sequence[Protocol]
    ) -> tuple[dict[int, Tensor], dict[MapBox, Tensor]]:
        """Peaks (P, 2) for each border and boxes (P, 4) for each rule (on its own grid), by chunks of maps."""
        peaks, found = defaultdict[int, list[Tensor]](list), defaultdict[MapBox, list[Tensor]](list)
        borders = {protocol.border for protocol in asked if "pointing" in protocol.kind}
        rules = {rule for protocol in asked for rule in protocol.rules}
        for chunk in maps.split(max(1, min(CHUNK, HELD_PIXELS // (size[0] * size[1])))):
            heat = self.localizer.heat(chunk, size) if borders else chunk
            for border in borders:
                inner = heat[:, border : heat.shape[1] - border, border : heat.shape[2] - border]
                peaks[border].append(peak(pad(inner, [border] * 4)).cpu())
            for grid in {rule.grid for rule in rules}:
                frame = (grid, grid) if grid else size
                own = [rule for rule in rules if rule.grid == grid]
                full = self.localizer.heat(chunk, frame)
                boxes = rescale(torch.stack([map_boxes(one, own) for one in full]), frame, size)  # (P, R, 4)
                for rule, part in zip(own, boxes.unbind(1), strict=True):
                    found[rule].append(part)
        return {b: torch.cat(p) for b, p in peaks.items()}, {r: torch.cat(p) for r, p in found.items()}

    def _ranked(self, scene: Scene, maps: Tensor, known: Tensor, top_k: int, units: Tensor) -> Tensor:
        """(P, k, 5): the boxes of each map, best first, and their scores; NaN where a ranking is shorter."""
        if not top_k or not known.any():
            return torch.full((len(maps), 0, 5), torch.nan)
        ranked = self.localizer.rank_all(scene, maps[known.to(maps.device)], top_k, units[known])
        rows = [torch.zeros(0, 5)] * len(maps)
        for place, (boxes, scores) in zip(known.nonzero()[:, 0].tolist(), ranked, strict=True):
            rows[place] = torch.cat([boxes, scores[:, None]], 1).detach().cpu().float()
        return pad_sequence(rows, batch_first=True, padding_value=torch.nan)


def shuffled_words(localizer: "PhraseLocalizer", sample: GroundingSample, texts: Sequence[str]) -> list[str]:
    """For each phrase another one of the image that shares no word with it, else a word from elsewhere."""
    said = sorted({phrase.text for phrase in sample.phrases})
    words = known_words(localizer, said)
    chosen = []
    for phrase, asked in zip(texts, known_words(localizer, texts), strict=True):
        others = [text for text, own in zip(said, words, strict=True) if own and not own & asked]
        chosen.append(_drawn(others, sample, phrase) if others else _elsewhere(localizer, sample, phrase))
    return chosen


def random_word(localizer: "PhraseLocalizer", sample: GroundingSample, phrases: Sequence[str]) -> list[str]:
    """For each phrase a word the model knows and the phrase does not have."""
    return [_elsewhere(localizer, sample, phrase) for phrase in phrases]


def known_words(localizer: "PhraseLocalizer", phrases: Sequence[str]) -> list[frozenset[str]]:
    """Per phrase the words that the model knows; of a model that reads whole phrases, its content words."""
    if getattr(localizer.model, "reads_phrases", False):
        return [frozenset(content_words(phrase)) for phrase in phrases]
    return [frozenset(w.text for w in e.words if w.known) for e in localizer.encode(phrases)]


def _elsewhere(localizer: "PhraseLocalizer", sample: GroundingSample, phrase: str) -> str:
    """A known word that no phrase of the image has, or the phrase itself when the model knows nothing else."""
    own: Any = localizer.model
    names = getattr(localizer, "names", None) or localizer.vocabulary.words or own.word_list
    texts = [phrase, *(p.text for p in sample.phrases)]
    said = set().union(*known_words(localizer, texts), texts)
    others = [word for word in names if word not in said]
    return _drawn(others, sample, phrase) if others else phrase


def _drawn(options: Sequence[str], sample: GroundingSample, phrase: str) -> str:
    return options[hashed(f"{sample.image_id}\n{phrase}") % len(options)]


CONTROLS: dict[str, Choice | None] = {
    "shuffled_words": shuffled_words,
    "random_word": random_word,
    "random_top": None,
}


def randomised(localizer: "PhraseLocalizer") -> "PhraseLocalizer":
    """A localizer over the same network whose units are shuffled, each in its own fixed order."""
    known: Any = localizer
    model, own = copy(known.model), known.model.units

    def units(words: Tensor) -> Tensor:
        numbers = words if words.dim() == 1 else words[:, 0].view(torch.int32)  # of embeddings their own bits
        rows = zip(own(words), numbers.tolist(), strict=True)
        seeded = ((unit, torch.Generator().manual_seed(number)) for unit, number in rows)
        return torch.stack(
            [unit[torch.randperm(len(unit), generator=seed).to(unit.device)] for unit, seed in seeded]
        )

    model.units = units
    return type(known)(model, known.settings, known.cache)


def same_peak_rows(rows: Rows, protocols: Sequence[Protocol], asked: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each pointing protocol and control whose own method is among `asked`."""
    found = []
    for protocol, name in product((p for p in protocols if "pointing" in p.kind), asked):
        method, _, control = name.partition("@")
        if control and method in asked:
            own, other = rows.tables[protocol.name, method], rows.tables[protocol.name, name]
            compared = Table(own.things, {SAME_PEAK: same_peak(own, other)}).take(own.column("known") > 0)
            alone = Rows({(protocol.name, name): compared}, rows.images, rows.bootstrap)
            row = alone.row(protocol, name, SAME_PEAK)
            found.append(row | {"baselines": {}, "by_type": {}, "compared_with": method})
    return found


def same_peak(own: Table, other: Table) -> Floats:
    """(N,) 1 where the two peaks are near each other; 0 where one of them is missing."""
    sizes = np.array([max(thing.sample.size) for thing in own.things], dtype=np.float64)
    distance = np.linalg.norm(own.column("peak", 2) - other.column("peak", 2), axis=1)
    return (np.nan_to_num(distance, nan=np.inf) <= NEAR * sizes).astype(np.float64)
