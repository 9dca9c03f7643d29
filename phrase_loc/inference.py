"""How a model is asked, and a photograph made ready for it: no model is needed for either."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from operator import index
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from phrase_loc.attention import METHODS
from phrase_loc.config import without_retired
from phrase_loc.errors import ConfigError, choose, nearest
from phrase_loc.image_inputs import Picture
from phrase_loc.images import MAX_PIXELS, to_tensor
from phrase_loc.profiling import lap
from phrase_loc.proposals import PROPOSALS, Source
from phrase_loc.structures import Predictions, Scene
from phrase_loc.text.phrases import EncodedPhrase
from phrase_loc.text.vocabulary import Vocabulary

_LARGEST = 1e9
_SIDES = (1, 4096)  # pixels of an input, cells of a grid
#: setting -> least and greatest value
_RANGES = {
    "smoothing": (0, 1),
    "prior": (0, _LARGEST),
    "prior_sigma": (1e-6, _LARGEST),
    "gamma": (-_LARGEST, _LARGEST),
    "temperature": (0, _LARGEST),
    "nms": (0, 1),
    "grid": _SIDES,
}
#: Settings of older models and the value at which they did nothing; any other value is refused.
RETIRED: dict[str, Any] = {"sharpness": 0, "mirrored": False, "score": "mass"}


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is asked; chosen on val, saved in the model's config.json.

    Attributes:
        method: a key of attention.METHODS.
        stage: where maps are read: a stage of the trunk, "features", or several of them. Of several, all are read at
            the first input size, in one pass, and the other sizes at the highest alone: a pass further down costs
            more with the square of the size and gains no more there. Stages count alike.
        image_sizes: sides in pixels of the squares a photograph is resized to; of several the maps are brought to
            the grid, min-max normalised and averaged.
        smoothing: Gaussian sigma of the map as a share of its side.
        prior: exponent of a Gaussian bump at the image's centre, 0 for none. It is bias and no grounding.
        prior_sigma: width of that bump as a share of the side.
        proposals: a key of proposals.PROPOSALS.
        gamma: exponent of the area in the score of a box (ranking.score_boxes).
        temperature: of the vote of neighbouring boxes on the first (ranking.vote); 0 for none.
        nms: greatest IoU between two boxes of an answer.
        grid: side of the square grid on which maps are smoothed and boxes ranked.
    """

    method: str = "contrastive_mwp"
    stage: str | tuple[str, ...] = "features"
    image_sizes: tuple[int, ...] = (224,)
    smoothing: float = 0.05
    prior: float = 0.0
    prior_sigma: float = 0.25
    proposals: str = "default"
    gamma: float = 0.4
    temperature: float = 0.1
    nms: float = 0.5
    grid: int = 64

    def __post_init__(self) -> None:
        """Raises ConfigError for a value of a wrong type or outside its range."""
        sides = self.image_sizes if isinstance(self.image_sizes, (tuple, list)) else ()
        named = self.stages and all(isinstance(stage, str) for stage in self.stages)
        checks: dict[str, tuple[Any, str]] = {
            "method": (isinstance(self.method, str), "a name"),
            "proposals": (isinstance(self.proposals, str), "a name"),
            "stage": (named, "a stage's name or a list of names"),
            "image_sizes": (
                sides and all(_within(side, *_SIDES, True) for side in sides),
                "a list of whole numbers from 1 to 4096, such as [384]",
            ),
        }
        for name, (low, high) in _RANGES.items():
            whole = name == "grid"
            what = f"a {'whole ' * whole}number from {low:g} to {high:g}"
            checks[name] = (_within(getattr(self, name), low, high, whole), what)
        for name, (right, what) in checks.items():
            if not right:
                raise ConfigError(f"the inference setting {name} is {what}, got {getattr(self, name)!r:.100}")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages at which maps are read, one or several."""
        return self.stage if isinstance(self.stage, tuple) else (self.stage,)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "inference") -> "Inference":
        """Checked settings from plain values; an unknown name raises a ConfigError, as does a retired one in use."""
        known = [f.name for f in fields(cls)]
        values = without_retired(values, RETIRED, f"{source} setting")
        for key in values:
            if key not in known:
                hint = nearest(key, known)
                raise ConfigError(f"unknown {source} setting {key!r}{hint}; known: {', '.join(known)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        settings = cls(**plain)
        choose(METHODS, settings.method, "attention method")
        choose(PROPOSALS, settings.proposals, "proposal source")
        return settings


def _within(value: Any, low: float, high: float, whole: bool = False) -> bool:
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    return number and low <= value <= high  # false for nan


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photograph ready for the network; made without a model, so by any thread or process.

    Attributes:
        squares: for each input size S a (3, S, S) uint8.
        size: (H, W) of the frame in which answers are given.
        proposals: (R, 4) boxes that need the picture, or None.
    """

    squares: tuple[Tensor, ...]
    size: tuple[int, int]
    proposals: Tensor | None


def prepare(
    picture: Image.Image,
    settings: Inference,
    size: tuple[int, int] | None = None,
    source: Source | None = None,
) -> Prepared:
    """Squash an RGB picture to the settings' input sizes and propose boxes in it.

    `size` is the (H, W) of the frame of the answers, None the picture's own; `source` proposes boxes, None is
    that of the settings. Raises a ConfigError for a frame without pixels or with more than MAX_PIXELS.
    """
    source = PROPOSALS[settings.proposals] if source is None else source
    frame = (picture.height, picture.width) if size is None else _checked_frame(size)
    with lap("resize"):
        squares = tuple(
            to_tensor(picture.resize((side, side), Image.Resampling.BICUBIC)) for side in settings.image_sizes
        )
    with lap("propose"):
        proposals = source.of_image(picture, frame)
    return Prepared(squares, frame, proposals)


def checked_top_k(top_k: int) -> int:
    """A number of boxes, 1 or more; raises ConfigError for anything else."""
    try:
        number = 0 if isinstance(top_k, bool) else index(top_k)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"top_k is a number of boxes, 1 or more, got {str(top_k)[:40]!r}")
    return number


def _checked_frame(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in size)
    except (TypeError, ValueError, OverflowError):
        height = width = 0
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ConfigError(
            f"size is (H, W) of the frame of the answers in pixels, at most {MAX_PIXELS:,} of them; "
            f"got {str(size)[:60]}"
        )
    return height, width


class Localizer(Protocol):
    """What evaluation, server and command line ask of a localizer: see PhraseLocalizer for each."""

    model: Any
    settings: Inference
    source: Source

    @property
    def vocabulary(self) -> Vocabulary: ...
    def with_settings(self, **changes: Any) -> "Localizer": ...
    def with_cache(self, folder: str | os.PathLike) -> "Localizer": ...
    def encode(self, phrases: Iterable[str]) -> list[EncodedPhrase]: ...
    def look(self, image: Picture, size: tuple[int, int] | None = None) -> Scene: ...
    def look_at(self, pictures: Sequence[Prepared]) -> list[Scene]: ...
    def attend(self, scene: Scene, phrases: Iterable[str], method: str | None = None) -> Tensor: ...
    def heat(self, attention: Tensor, size: tuple[int, int]) -> Tensor: ...
    def locate(
        self, scene: Scene, phrases: Iterable[str], top_k: int = 5, method: str | None = None
    ) -> Predictions: ...
    def rank_all(self, scene: Scene, attention: Tensor, top_k: int) -> list[tuple[Tensor, Tensor]]: ...
    def presence(self, scene: Scene, phrases: Iterable[str]) -> list[float]: ...
    def present(self, scene: Scene, phrases: Iterable[str]) -> list[float | None]: ...
    def features(self, scene: Scene) -> Tensor: ...
