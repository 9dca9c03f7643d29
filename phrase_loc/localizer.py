"""From a phrase to a box on one photograph: the single image-phrase query.

    phrase -> words -> units -> attention map -> boxes

`look` runs the network below the map's stage once and returns a value, the Scene; everything else is asked
of that value, so forty phrases cost little more than one. A localizer holds no state that a call changes:
threads may share it. `Inference` and `prepare` need no model.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import pairwise
from math import exp
from operator import index
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from phrase_loc.attention import METHODS, SIGNED, maps_at_depths
from phrase_loc.config import STRICT, checked, without_retired
from phrase_loc.distributed import pick_device
from phrase_loc.drawing import small_jpeg
from phrase_loc.errors import ConfigError, choose
from phrase_loc.image_inputs import Picture
from phrase_loc.images import checked_frame, load_image, to_tensor
from phrase_loc.maps import centre_prior, min_max, resize, resized_peak, smooth
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import load_model, push_model, save_model
from phrase_loc.profiling import lap
from phrase_loc.proposals import PROPOSALS, Cached, Source
from phrase_loc.ranking import rank_phrases
from phrase_loc.structures import ABSENT_BELOW, FOUND_AT, Prediction, Predictions, Scene
from phrase_loc.text.phrases import EncodedPhrase, distinct_words
from phrase_loc.text.splitting import phrase_list
from phrase_loc.text.vocabulary import Vocabulary

#: Settings of older models and the value at which they did nothing; any other value is refused.
RETIRED: dict[str, Any] = {"sharpness": 0, "mirrored": False, "score": "mass"}

PLANAR = ("occlusion", "rise")  # methods that mask squares of a plane
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Side = Annotated[int, Field(ge=1, le=4096)]

OneOrMore = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is asked; chosen on val, saved in the model's config.json. `from_dict` checks the values.

    Of several stages, all are read at the first input size, in one pass, and the other sizes at the highest alone: a
    pass further down costs more with the square of the size and gains no more there. Stages count alike. The maps of
    several input sizes are brought to the grid, min-max normalised and averaged.
    """

    __pydantic_config__ = STRICT

    method: str = "contrastive_mwp"  # a key of attention.METHODS
    #: how signed activations compete in mwp and contrastive_mwp, a key of attention.SIGNED
    signed: str = "clamp"
    #: where maps are read: a stage of the trunk, "features", or several of them
    stage: str | Annotated[tuple[str, ...], OneOrMore] = "features"
    #: sides in pixels of the squares a photograph is resized to
    image_sizes: Annotated[tuple[Side, ...], OneOrMore] = (224,)
    smoothing: Share = 0.05  # Gaussian sigma of the map as a share of its side
    prompts: tuple[str, ...] = ()  # of an image-text pair, {phrase} in each; () for "a photo of {phrase}"
    #: what contrastive_mwp holds a unit against: its negative, or the mean unit of the model's commonest words
    dual: Literal["negative", "mean"] = "negative"
    #: exponent of a Gaussian bump at the image's centre, 0 for none: bias and no grounding
    prior: Weight = 0.0
    prior_sigma: Annotated[float, Field(ge=1e-6, le=1e9)] = 0.25  # width of that bump as a share of the side
    proposals: str = "default"  # a key of proposals.PROPOSALS
    gamma: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.4  # exponent of a box's area (ranking.score_boxes)
    spread: Weight = 0.0  # how strongly a box's area is held to what the map's extent lets expect; 0 for none
    temperature: Weight = 0.1  # of the vote of neighbouring boxes on the first (ranking.vote); 0 for none
    nms: Share = 0.5  # greatest IoU between two boxes of an answer
    grid: Side = 64  # side of the square grid on which maps are smoothed and boxes ranked

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages at which maps are read, one or several."""
        return self.stage if isinstance(self.stage, tuple) else (self.stage,)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "inference") -> "Inference":
        """Checked settings from plain values; an unknown name raises a ConfigError, as does a retired one in use."""
        what = f"{source} setting"
        settings = checked(cls, without_retired(values, RETIRED, what), what)
        choose(METHODS, settings.method, "attention method")
        choose(SIGNED, settings.signed, "rule for signed activations")
        if wrong := [prompt for prompt in settings.prompts if "{phrase}" not in prompt]:
            raise ConfigError(f"{what} prompts needs {{phrase}} in each, got {wrong[0]!r:.80}")
        choose(PROPOSALS, settings.proposals, "proposal source")
        return settings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photograph ready for the network; made without a model, so by any thread or process."""

    squares: tuple[Tensor, ...]  # for each input size S a (3, S, S) uint8
    size: tuple[int, int]  # (H, W) of the frame in which answers are given
    proposals: Tensor | None  # (R, 4) boxes that need the picture
    picture: bytes | None = None  # a small JPEG of it, for showing and for masks


def prepare(
    picture: Image.Image,
    settings: Inference,
    size: tuple[int, int] | None = None,
    source: Source | None = None,
    keep: bool = False,
) -> Prepared:
    """Squash an RGB picture to the settings' input sizes and propose boxes in it.

    `size` is the (H, W) of the frame of the answers, None the picture's own; `source` proposes boxes, None is
    that of the settings; `keep` keeps a small picture. Raises a ConfigError for a frame without pixels or with more
    than MAX_PIXELS.
    """
    source = source or PROPOSALS[settings.proposals]
    frame = (picture.height, picture.width) if size is None else checked_frame(size)
    with lap("resize"):
        squares = tuple(
            to_tensor(picture.resize((side, side), Image.Resampling.BICUBIC)) for side in settings.image_sizes
        )
    with lap("propose"):
        proposals = source.of_image(picture, frame)
    return Prepared(squares, frame, proposals, small_jpeg(picture) if keep else None)


def _checked_top_k(top_k: int) -> int:
    with suppress(TypeError):
        if not isinstance(top_k, bool) and index(top_k) >= 1:
            return index(top_k)
    raise ConfigError(f"top_k is a number of boxes, 1 or more, got {str(top_k)[:40]!r}")


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

    def __init__(self, model: TextToRegion, settings: Inference | None = None, cache: Path | None = None):
        self.model, self.cache = model, cache
        self.settings = Inference.from_dict(asdict(settings) if settings else dict(model.config.inference))
        source = PROPOSALS[self.settings.proposals]
        self.source: Source = source if cache is None else Cached(source, cache)
        stages = sorted(set(self.settings.stages), key=model.stage_index)
        between = [model.between(low, high) for low, high in pairwise(stages)]
        highest = model.above(stages[-1])
        further = len(self.settings.image_sizes) - 1
        # for each input size the network up to where its lowest map is read, and over that, cut where maps are read
        self._below = [model.below(stages[0]), *[model.below(stages[-1])] * further]
        self._parts = [[*between, highest], *[[highest]] * further]

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike = "default", device: str | torch.device = "auto"
    ) -> "PhraseLocalizer":
        """The shipped model ("default"), one in a folder or from a hub, an image-text tower (docs/towers.md) too.

        Raises a DataError where it is broken or out of reach.
        """
        return cls(load_model(source).to(pick_device(device)))

    def save_pretrained(self, folder: str | os.PathLike, weights: bool | None = None) -> Path:
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
        """The same weights asked otherwise, such as `with_settings(method="cam", prior=0.0)`."""
        settings = Inference.from_dict({**asdict(self.settings), **changes})
        return type(self)(self.model, settings, self.cache)

    def with_synonyms(self, synonyms: Mapping[str, str]) -> Self:
        """The same, reading each key as its value, such as {"perro": "dog"}; a ConfigError for an unknown value."""
        return type(self)(self.model.with_synonyms(synonyms), self.settings, self.cache)

    def with_cache(self, folder: str | os.PathLike) -> Self:
        """The same, keeping the proposals of each picture in `folder` by a hash of its pixels."""
        return type(self)(self.model, self.settings, Path(folder))

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

    @lap("maps")
    @torch.inference_mode()
    def _attend(self, scene: Scene, encoded: Sequence[EncodedPhrase], method: str) -> Tensor:
        """(P, h, w) of one size and stage on its own grid, of several on the settings' grid."""
        ids, weights = map(torch.from_numpy, distinct_words(encoded))
        single = len(self._parts) == len(self._parts[0]) == 1
        if len(ids) == 0:
            grid = self.model.grid(scene.activations[0]).shape[-2:] if single else self._grid
            return scene.activations[0].new_zeros(len(encoded), *grid)
        attention, ids = choose(METHODS, method, "attention method"), ids.to(self.device)
        units, weights = self.model.units(ids), weights.to(self.device)
        if method in PLANAR and self.model.grid(scene.activations[0]) is not scene.activations[0]:
            raise ConfigError(f"{method} masks a plane and not a transformer's tokens; take another method")
        dual = self.model.common_units(self.settings.prompts) if self.settings.dual == "mean" else None
        rules: dict[str, Any] = {"method": attention, "signed": self.settings.signed, "dual": dual}
        rules["weights"] = weights
        found = [
            [self.model.grid(maps[:, 0]) for maps in maps_at_depths(parts, x, units, **rules)]
            for parts, x in zip(self._parts, scene.activations, strict=True)
        ]
        if single:
            return found[0][0]
        fine = [[min_max(resize(maps, self._grid)) for maps in depths] for depths in found]
        highest = torch.stack([depths[-1] for depths in fine]).mean(0)  # of all sizes; the lower ones of one
        return torch.stack([*fine[0][:-1], highest]).mean(0)

    @property
    def _grid(self) -> tuple[int, int]:
        return (self.settings.grid, self.settings.grid)

    @lap("full-size maps")
    def heat(self, attention: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps over the whole image, smoothed, with the prior if one is set: (P, h, w) -> (P, H, W).

        Smoothing and prior work on the settings' square `grid`, so their cost does not grow with the photograph.
        """
        s = self.settings
        fine = smooth(resize(attention, self._grid), s.smoothing)
        if s.prior > 0:
            fine = fine * centre_prior(self._grid, s.prior_sigma, s.prior).to(fine)
        return fine if size == self._grid else resize(fine, size)

    def locate(
        self, scene: Scene, phrases: Iterable[str], top_k: int = 5, method: str | None = None,
        threshold: float | None = None,
    ) -> Predictions:  # fmt: skip
        """An answer for each phrase, in order; without box and peak where no word is known or the map is flat.

        Where `present` is below a threshold no map is made, which the note says.
        """
        phrases, top_k = phrase_list(phrases), _checked_top_k(top_k)
        encoded = self.encode(phrases)
        chances = self._present(scene, encoded)
        asked = [i for i, p in enumerate(chances) if threshold is None or p is None or p >= threshold]
        maps = self._attend(scene, [encoded[i] for i in asked], method or self.settings.method).cpu()
        attention = maps.new_zeros(len(encoded), *maps.shape[1:])
        attention[asked] = maps
        uneven = min_max(attention).flatten(1).amax(1).bool().tolist()
        known = [i for i, e in enumerate(encoded) if e.known and uneven[i]]
        heats = self.heat(attention[known], self._grid)
        with lap("peaks"):
            peaks = resized_peak(heats, scene.size)
        found = dict(zip(known, zip(peaks, self._ranked(scene, heats, top_k), strict=True), strict=True))
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

    def rank_all(self, scene: Scene, attention: Tensor, top_k: int) -> list[tuple[Tensor, Tensor]]:
        """The best boxes of each map: (P, h, w) -> P times boxes (k, 4), best first, and scores (k,)."""
        return self._ranked(scene, self.heat(attention, self._grid), _checked_top_k(top_k))

    @lap("ranking")
    def _ranked(self, scene: Scene, heats: Tensor, top_k: int) -> list[tuple[Tensor, Tensor]]:
        s, size = self.settings, scene.size
        how: dict[str, Any] = {"gamma": s.gamma, "spread": s.spread, "temperature": s.temperature}

        def rank(maps: Tensor, boxes: Tensor) -> list[tuple[Tensor, Tensor]]:
            return rank_phrases(maps, boxes, size, overlap=s.nms, top_k=top_k, **how)

        shared = heats.new_zeros(0, 4) if scene.proposals is None else scene.proposals
        own = [self.source.of_map(heat, size) for heat in heats]
        if all(boxes is None for boxes in own):
            return rank(heats, shared)
        parts = [shared if boxes is None else torch.cat([shared, boxes]) for boxes in own]
        return [rank(heat[None], boxes)[0] for heat, boxes in zip(heats, parts, strict=True)]

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
        scores = [self.model.scores(h, rows.to(self.device))[0] for h in self._features(scene)]
        return torch.stack(scores).mean(0).cpu()

    @torch.inference_mode()
    def features(self, scene: Scene) -> Tensor:
        """The features of the scene's largest view, over which word units stand: (D, h, w) >= 0."""
        return self._features(scene)[-1][0]

    def _features(self, scene: Scene) -> list[Tensor]:
        """For each input size (1, D, h, w)."""
        pairs = zip(self._parts, scene.activations, strict=True)
        return [reduce(lambda value, part: part(value), parts, x) for parts, x in pairs]
