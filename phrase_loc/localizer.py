"""From a phrase to a box on one photograph: the single image-phrase query.

    phrase -> words -> units -> attention map -> boxes

`look` runs the network below the map's stage once and returns a value, the Scene; everything else is asked
of that value, so forty phrases cost little more than one. A localizer holds no state that a call changes:
threads may share it.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import asdict, replace
from functools import reduce
from itertools import pairwise
from math import exp
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention import METHODS, maps_at_depths
from phrase_loc.distributed import pick_device
from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.files import AnyPath, as_path
from phrase_loc.image_inputs import Picture
from phrase_loc.images import checked_frame, load_image
from phrase_loc.inference import Inference, Prepared, prepare
from phrase_loc.maps import checked, min_max, resize, resized_peak, smooth
from phrase_loc.models.model import TextToRegion, WordTable
from phrase_loc.models.store import load_model, push_model, save_model
from phrase_loc.profiling import lap
from phrase_loc.proposals import PROPOSALS, Cached, Source
from phrase_loc.ranking import BoxRanker, rank_phrases
from phrase_loc.structures import ABSENT_BELOW, FOUND_AT, Prediction, Predictions, Scene
from phrase_loc.text.phrases import EncodedPhrase, distinct_words
from phrase_loc.text.splitting import phrase_list
from phrase_loc.text.vocabulary import Vocabulary

PLANAR = ("occlusion", "rise")  # methods that mask squares of a plane


def _checked_top_k(top_k: int) -> int:
    with suppress(TypeError):
        if not isinstance(top_k, bool) and index(top_k) >= 1:
            return index(top_k)
    raise ConfigError(f"top_k is a number of boxes, 1 or more, got {str(top_k)[:40]!r}")


def _checked_threshold(threshold: float | None) -> float | None:
    number = isinstance(threshold, Real) and not isinstance(threshold, bool)
    if threshold is None or (number and 0 <= threshold <= 1):
        return threshold
    raise ConfigError(
        f"threshold is a probability from 0 to 1, or None for none, got {str(threshold)[:40]!r}"
    )


def _checked_rows(rows: Any, words: WordTable) -> Tensor:
    with suppress(TypeError, ValueError, RuntimeError):
        given = torch.as_tensor(rows)
        numbers = given.dim() == 1 and given.dtype in (torch.int32, torch.int64)
        if numbers and int(given.min()) >= 0 and int(given.max()) < len(words):
            return given
        if given.is_floating_point() and given.shape[1:] == words.vectors.shape[1:]:
            return given
    told = f"words are their rows (K,) from 0 to {len(words) - 1}, one at least, or their vectors"
    raise ConfigError(f"{told} (K, {words.vectors.shape[1]}), got {str(rows)[:60]!r}")


def _oddity(peak: Tensor | None, boxes: Tensor) -> str | None:
    """The sentence where map and first box do not say the same."""
    if peak is None:
        return "its map is flat: no place stands out, so there is neither box nor peak"
    if not len(boxes) or bool(((boxes[0, :2] <= peak) & (peak <= boxes[0, 2:])).all()):
        return None
    return "map and box disagree: the peak of the map lies outside the best box"


class PhraseLocalizer:
    """Answers where phrases are in photographs.

    Args:
        model: in eval mode, on the device where it shall run.
        settings: how it is asked; None takes what the model was saved with.
        cache: folder that keeps proposals between runs, None for none.
    """

    def __init__(self, model: TextToRegion, settings: Inference | None = None, cache: AnyPath | None = None):
        if not isinstance(model, TextToRegion):
            told = f"got {type(model).__name__}; PhraseLocalizer.from_pretrained reads one by its name"
            raise ConfigError(f"a localizer asks a model, {told}")
        if not isinstance(settings, Inference | None):
            told = f"got {type(settings).__name__}; with_settings(gamma=0.5) changes one by its name"
            raise ConfigError(f"settings are an Inference, {told}")
        self.model = model
        self.cache = None if cache is None else as_path(cache, "a folder of proposals")
        saved = dict(model.config.inference)
        if settings is None and saved.pop("prior", 0):
            told = "the model was saved with a location prior, which is gone: peaks are read without it"
            warnings.warn(told, stacklevel=2)
        self.settings = Inference.from_dict(asdict(settings) if settings else saved)
        source = PROPOSALS[self.settings.proposals]
        self.source: Source = source if self.cache is None else Cached(source, self.cache)
        stages = sorted(set(self.settings.stages), key=model.stage_index)
        between = [model.between(low, high) for low, high in pairwise(stages)]
        highest = model.above(stages[-1])
        further = len(self.settings.image_sizes) - 1
        ranker = model.config.ranker if self.settings.ranker else None
        own = ranker[0] if ranker else stages[0]
        first = min(stages[0], own, key=model.stage_index)
        # for each input size the network up to what a scene keeps, and over that, cut where maps are read
        self._below = [model.below(first), *[model.below(stages[-1])] * further]
        self._parts = [[*between, highest], *[[highest]] * further]
        # of the first size from what a scene keeps to where its lowest map is read, and to what the ranker reads
        self._to_maps, self._to_ranker = model.between(first, stages[0]), model.between(first, own)
        self._ranker = cast(BoxRanker, deepcopy(model.head.ranker)).cpu().float() if ranker else None

    @classmethod
    def from_pretrained(
        cls, source: AnyPath = "default", device: str | torch.device = "auto"
    ) -> "PhraseLocalizer":
        """The shipped model ("default"), one in a folder or from a hub, an image-text tower (docs/towers.md) too.

        Raises a DataError where it is broken or out of reach.
        """
        return cls(load_model(source).to(pick_device(device)))

    def save_pretrained(self, folder: AnyPath, weights: bool | None = None) -> Path:
        """Write model and settings to a folder that `from_pretrained` reads; `weights`: see store.save_model."""
        return save_model(self._with_own_settings(), folder, weights)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload model, settings and card to `owner/name`; the address of the commit. Options: store.push_model."""
        return push_model(self._with_own_settings(), repo_id, **options)

    def _with_own_settings(self) -> TextToRegion:
        model = copy(self.model)  # shares the tensors; other localizers keep their settings
        model.config = replace(model.config, inference=asdict(self.settings))
        return model

    def with_settings(self, **changes: Any) -> Self:
        """The same weights asked otherwise, such as `with_settings(method="cam", gamma=0.5)`."""
        settings = Inference.from_dict({**asdict(self.settings), **changes})
        return type(self)(self.model, settings, self.cache)

    def with_synonyms(self, synonyms: Mapping[str, str]) -> Self:
        """The same, reading each key as its value, such as {"perro": "dog"}; a ConfigError for an unknown value."""
        return type(self)(self.model.with_synonyms(synonyms), self.settings, self.cache)

    def with_cache(self, folder: AnyPath) -> Self:
        """The same, keeping the proposals of each picture in `folder` by a hash of its pixels."""
        return type(self)(self.model, self.settings, as_path(folder, "a folder of proposals"))

    @property
    def vocabulary(self) -> Vocabulary:
        """The words the model was trained on."""
        return self.model.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.words.vectors.device

    def __call__(
        self, image: Picture, phrases: Iterable[str], top_k: int = 5, method: str | None = None
    ) -> Predictions:
        """Look at a photograph and locate phrases in it; keep the scene of `look` to ask it again."""
        phrases, top_k = phrase_list(phrases), _checked_top_k(top_k)  # before the costly look
        return self.locate(self.look(image), phrases, top_k, method)

    def look(self, image: Picture, size: tuple[int, int] | None = None) -> Scene:
        """Run the network below the map's stage on a photograph; any phrase can be asked of the result.

        Args:
            image: a path, the bytes of a file, an open file, a Pillow picture, or uint8 pixels: an array (H,W,3),
                (H,W,4) or (H,W), or a tensor (3,H,W).
            size: (H, W) of the frame in which answers are given; None is the photograph's own.
        """
        return self.look_at([prepare(load_image(image), self.settings, size, self.source, keep=True)])[0]

    @lap("trunk")
    @torch.inference_mode()
    def look_at(self, pictures: Sequence[Prepared]) -> list[Scene]:
        """Several prepared photographs in one pass of the network."""
        if not isinstance(pictures, Sequence) or not all(isinstance(p, Prepared) for p in pictures):
            raise ConfigError(
                "look_at takes a list of what `inference.prepare` gives; look takes a photograph"
            )
        if not pictures:
            return []
        sizes = zip(*(p.squares for p in pictures), strict=True)
        batches = (torch.stack(squares).to(self.device) for squares in sizes)
        seen = [below(images) for below, images in zip(self._below, batches, strict=True)]
        activations = zip(*(scale.split(1) for scale in seen), strict=True)
        return [Scene(a, p.size, p.proposals, p.picture) for a, p in zip(activations, pictures, strict=True)]

    def encode(self, phrases: Iterable[str]) -> list[EncodedPhrase]:
        """The words of each phrase and their weights; a ConfigError for a bare string and for what is no text."""
        return self.model.encode(phrase_list(phrases), self.settings.prompts)

    def attend(self, scene: Scene, phrases: Iterable[str], method: str | None = None) -> Tensor:
        """Where each phrase wins: (P, h, w) >= 0, zeros for a phrase without a known word.

        All phrases share one pass; the signed seeds of a phrase's words are averaged before it.
        """
        return self._attend(scene, self.encode(phrases), method or self.settings.method)

    def _read(self, scene: Scene) -> tuple[Tensor, ...]:
        """For each input size the activations where its lowest map is read; a ConfigError for what is no scene."""
        if not isinstance(scene, Scene):
            raise ConfigError(f"expected the scene that look(image) gives, got {type(scene).__name__}")
        return (self._to_maps(scene.activations[0]), *scene.activations[1:])

    @torch.inference_mode()
    def phrase_units(self, encoded: Sequence[EncodedPhrase]) -> Tensor:
        """The mean unit of each phrase's words by their weights, on the CPU: (P, D), zeros without a known word."""
        ids, weights = map(torch.from_numpy, distinct_words(encoded))
        if not len(ids):
            return torch.zeros(len(encoded), self.model.config.hidden or self.model.config.channels)
        return weights @ self.model.units(ids.to(self.device)).float().cpu()

    @torch.inference_mode()
    def ranker_plane(self, scene: Scene) -> Tensor:
        """The activations that the box ranker reads, on the CPU: (C, h, w), a transformer's over its patches."""
        return self.model.grid(self._to_ranker(scene.activations[0]))[0].float().cpu()

    @torch.inference_mode()
    def box_scores(self, scene: Scene, boxes: Tensor | None, units: Tensor) -> Tensor | None:
        """What the box ranker adds to the scores of boxes: (R, 4), (P, D) -> (P, R); None where there is none."""
        if self._ranker is None or boxes is None:
            return None
        plane, channels = self.ranker_plane(scene), len(self._ranker.mean)
        if len(plane) != channels:
            told = f"{len(plane)} channels where it reads, and the model's box ranker expects {channels}"
            raise DataError(
                f"the trunk has {told}; run `phrase-loc learn-ranker` again, or ask with ranker=0"
            )
        logits = self._ranker(plane, boxes.cpu(), scene.size, units)
        return self.settings.ranker * F.logsigmoid(logits)

    @lap("maps")
    @torch.inference_mode()
    def _attend(
        self, scene: Scene, encoded: Sequence[EncodedPhrase], method: str, seen: list[Tensor] | None = None
    ) -> Tensor:
        """(P, h, w) of one size and stage on its own grid, of several on the settings' grid; `seen`: `_features`."""
        ids, weights = map(torch.from_numpy, distinct_words(encoded))
        single, read = len(self._parts) == len(self._parts[0]) == 1, self._read(scene)
        if len(ids) == 0:
            grid = self.model.grid(read[0]).shape[-2:] if single else self._grid
            return read[0].new_zeros(len(encoded), *grid)
        attention, ids = choose(METHODS, method, "attention method"), ids.to(self.device)
        units = self.model.units(ids)
        if method in PLANAR and self.model.grid(read[0]) is not read[0]:
            raise ConfigError(f"{method} masks a plane and not a transformer's tokens; take another method")
        dual = self.model.common_units(self.settings.prompts) if self.settings.dual == "mean" else None
        rules: dict[str, Any] = {"method": attention, "signed": self.settings.signed, "dual": dual}
        rules.update(weights=weights.to(units), seen=seen)
        found = [
            [self.model.grid(maps[:, 0]) for maps in maps_at_depths(parts, x, units, **rules)]
            for parts, x in zip(self._parts, read, strict=True)
        ]
        if single:
            return found[0][0]
        (*lower, top), *others = [[min_max(resize(maps, self._grid)) for maps in depths] for depths in found]
        highest = [depths[-1] for depths in others]
        if not lower or not others:
            highest.append(top)
        return torch.stack([*lower, torch.stack(highest).mean(0)]).mean(0)

    @property
    def _grid(self) -> tuple[int, int]:
        return (self.settings.grid, self.settings.grid)

    @lap("full-size maps")
    def heat(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps over the whole image, smoothed on the settings' square `grid`: (P, h, w) -> (P, H, W)."""
        maps = resize(checked(attention, "heat takes maps (P, h, w)"), self._grid)
        return resize(smooth(maps, self.settings.smoothing), checked_frame(size))

    def locate(
        self, scene: Scene, phrases: Iterable[str], top_k: int = 5, method: str | None = None,
        threshold: float | None = None,
    ) -> Predictions:  # fmt: skip
        """An answer for each phrase, in order; without box and peak where no word is known or the map is flat.

        Where `present` is below a threshold no map is made, which the note says.
        """
        phrases, top_k, threshold = phrase_list(phrases), _checked_top_k(top_k), _checked_threshold(threshold)
        encoded, features, asked = self.encode(phrases), list[Tensor](), list(range(len(phrases)))
        if threshold is not None:
            chances = self._present(scene, encoded)
            asked = [i for i, p in enumerate(chances) if p is None or p >= threshold]
        method = method or self.settings.method
        maps = self._attend(scene, [encoded[i] for i in asked], method, features).cpu()
        if threshold is None:
            chances = self._present(replace(scene, features=tuple(features)), encoded)
        attention = maps.new_zeros(len(encoded), *maps.shape[1:])
        attention[asked] = maps
        uneven = min_max(attention).flatten(1).amax(1).bool().tolist()
        known = [i for i, e in enumerate(encoded) if e.known and uneven[i]]
        heats = self.heat(attention[known], self._grid)
        with lap("peaks"):
            peaks = resized_peak(heats, scene.size)
        ranked = self._ranked(scene, heats, top_k, self.phrase_units([encoded[i] for i in known]))
        found = dict(zip(known, zip(peaks, ranked, strict=True), strict=True))
        none, fit = attention.new_zeros(0, 4), self.model.config.calibration
        thresholds = (fit.get("absent_below", ABSENT_BELOW), fit.get("found_at", FOUND_AT))
        answers = Predictions()
        for i, (e, present) in enumerate(zip(encoded, chances, strict=True)):
            peak, (boxes, scores) = found.get(i, (None, (none, none[:, 0])))
            odd = _oddity(peak, boxes) if e.known else None
            if i not in asked:
                odd = f"no box, present {present:.3f} is below the threshold {threshold:g}"
            note = ". ".join(filter(None, (e.note, odd))) or None
            shown = (attention[i], scene.size, scene.picture, note, thresholds)
            answers.append(Prediction(phrases[i], e.words, present, peak, boxes, scores, *shown))
        return answers

    def rank_all(
        self, scene: Scene, attention: Tensor, top_k: int, units: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The best boxes of each map: (P, h, w), units (P, D) -> P times boxes (k, 4), best first, scores (k,)."""
        heats = self.heat(attention, self._grid)
        if not isinstance(units, Tensor) or heats.shape[:-2] != units.shape[:1]:
            got = tuple(units.shape) if isinstance(units, Tensor) else type(units).__name__
            raise ConfigError(f"expected maps (P, h, w) and units (P, D), got {tuple(heats.shape)} and {got}")
        return self._ranked(scene, heats, _checked_top_k(top_k), units)

    @lap("ranking")
    def _ranked(self, scene: Scene, heats: Tensor, top_k: int, units: Tensor) -> list[tuple[Tensor, Tensor]]:
        s, size = self.settings, scene.size
        how: dict[str, Any] = {"gamma": s.gamma, "spread": s.spread, "temperature": s.temperature}

        def rank(maps: Tensor, boxes: Tensor, units: Tensor) -> list[tuple[Tensor, Tensor]]:
            added = self.box_scores(scene, boxes, units)
            return rank_phrases(maps, boxes, size, overlap=s.nms, top_k=top_k, added=added, **how)

        shared = heats.new_zeros(0, 4) if scene.proposals is None else scene.proposals
        own = [self.source.of_map(heat, size) for heat in heats]
        if all(boxes is None for boxes in own):
            return rank(heats, shared, units)
        parts = [shared if boxes is None else torch.cat([shared, boxes]) for boxes in own]
        asked = zip(heats.split(1), parts, units.split(1), strict=True)
        return [rank(heat, boxes, unit)[0] for heat, boxes, unit in asked]

    def presence(self, scene: Scene, phrases: Iterable[str]) -> list[float]:
        """The model's raw score that the image shows each phrase; -inf without a known word. Not a probability."""
        return self._presence(scene, self.encode(phrases))

    def present(self, scene: Scene, phrases: Iterable[str]) -> list[float | None]:
        """Calibrated image-level confidence of each phrase, as `locate` says it; None where there is none."""
        return self._present(scene, self.encode(phrases))

    @lap("presence")
    @torch.inference_mode()
    def _presence(self, scene: Scene, encoded: Sequence[EncodedPhrase]) -> list[float]:
        """The weighted mean of the scores of a phrase's words, each with its `presence_bias`."""
        ids, weights = map(torch.from_numpy, distinct_words(encoded))
        if len(ids) == 0:
            return [-torch.inf] * len(encoded)
        found = weights @ (self.word_scores(scene, ids) + self.model.presence_bias(ids))  # (P,)
        return [float(s) if e.known else -torch.inf for s, e in zip(found, encoded, strict=True)]

    def _present(self, scene: Scene, encoded: Sequence[EncodedPhrase]) -> list[float | None]:
        """Platt-scaled `_presence`, of the phrases whose naming noun is known."""
        fit = self.model.config.calibration
        if not fit:
            return [None] * len(encoded)
        logits = (fit["slope"] * raw + fit["offset"] for raw in self._presence(scene, encoded))
        sure = [1 / (1 + exp(-max(-700.0, min(logit, 700.0)))) for logit in logits]
        return [p if e.known and e.head_known else None for p, e in zip(sure, encoded, strict=True)]

    @torch.inference_mode()
    def word_scores(self, scene: Scene, rows: Tensor) -> Tensor:
        """The pooled scores of words, given by their rows (K,), averaged over input sizes: (K,), on the CPU."""
        vectors = self.model.word_vectors(_checked_rows(rows, self.model.words).to(self.device))
        scores = [self.model.scores(h, vectors)[0] for h in self._features(scene)]
        return torch.stack(scores).mean(0).float().cpu()

    @torch.inference_mode()
    def features(self, scene: Scene) -> Tensor:
        """The features of the scene's largest view, over which word units stand: (D, h, w) >= 0."""
        return self._features(scene)[-1][0]

    def _features(self, scene: Scene) -> Sequence[Tensor]:
        """For each input size (1, D, h, w)."""
        pairs = zip(self._parts, self._read(scene), strict=True)
        return scene.features or [reduce(lambda value, part: part(value), parts, x) for parts, x in pairs]
