"""The values that travel between the layers: a phrase and its truth, an image looked at, an answer.

Letters used in every docstring: N images, C channels, h w map grid, H W image pixels, K word units, D
pooled features, V vocabulary, E embedding size, P phrases, R proposal boxes, M true boxes. What a notebook
asks of a value (`_repr_html_`) is drawn by `drawing`, imported when asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

#: probabilities below which a phrase is not there, and from which it is found, of a model that has none of its own
ABSENT_BELOW, FOUND_AT = 0.05, 0.5


def state_of(present: float | None, thresholds: tuple[float, float]) -> str | None:
    """'found', 'not sure' or 'not there' by the thresholds between them; None where `present` is None."""
    if present is None:
        return None
    absent_below, found_at = thresholds
    if present < absent_below:
        return "not there"
    return "found" if present >= found_at else "not sure"


def corners(box: Sequence[float]) -> str:
    """A box for people, '[10, 20, 50, 60]'."""
    return f"[{', '.join(f'{v:.0f}' for v in box)}]"


@dataclass(frozen=True, slots=True)
class Word:
    """A content word of a phrase."""

    text: str  # the word that is looked for, in its dictionary form
    known: bool
    weight: float  # share in the phrase's map; the known words of a phrase sum to 1
    misspelt: str | None = None  # what was written where that is no form of `text` ('umbrela' for umbrella)

    @property
    def written(self) -> str:
        """What stands in the phrase, in its dictionary form."""
        return self.text if self.misspelt is None else self.misspelt

    @property
    def read_as(self) -> str | None:
        """The word that was read instead of the written one, None where that is the one."""
        return None if self.misspelt is None else self.text


@dataclass(frozen=True, slots=True)
class Phrase:
    """A mention of something in an image."""

    text: str
    labels: tuple[str, ...] = ()  # Flickr30k types ('people', 'scene', ...) or the name of a class
    entity: str = ""  # what it refers to within its image (Flickr30k chain id); mentions may share one
    sentence: int = -1  # 0-based number of the caption it stands in, -1 when there is none


@dataclass(frozen=True, slots=True)
class GroundingSample:
    """An image and what is said of it."""

    image_id: str  # unique within the dataset
    path: Path  # of the image; the file may be absent when only annotations are there
    size: tuple[int, int]  # (H, W) of the frame in which the boxes are given, the annotation's own
    phrases: tuple[Phrase, ...]
    boxes: tuple[Tensor, ...]  # per phrase the true boxes (M_i, 4) xyxy in that frame; M_i may be 0
    #: a dataset's own (VOC 'difficult' flags, captions, ...)
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.phrases) != len(self.boxes):
            raise ValueError(f"{self.image_id}: {len(self.phrases)} phrases, {len(self.boxes)} sets of boxes")


@dataclass(frozen=True, repr=False)
class Scene:
    """An image looked at once; any number of phrases can be asked of it."""

    activations: tuple[Tensor, ...]  # for each input size (1, C, h, w) features at the attended stage, >= 0
    size: tuple[int, int]  # (H, W) of the frame of the answers in pixels
    proposals: Tensor | None = None  # (R, 4) boxes of the picture, or None when the map alone proposes
    picture: bytes | None = None  # a small JPEG of the photograph for showing; no answer depends on it
    features: tuple[Tensor, ...] = ()  # for each input size, over which word units stand; () while not known

    def __repr__(self) -> str:
        boxes = "" if self.proposals is None else f", {len(self.proposals)} proposals"
        return f"Scene({self.size[1]} x {self.size[0]} pixels{boxes})"

    def _repr_html_(self) -> str:
        from phrase_loc.drawing import scene_html

        return scene_html(self)


@dataclass(frozen=True, repr=False)
class Prediction:
    """Where a phrase is."""

    phrase: str
    words: tuple[Word, ...]
    #: probability that the image shows it, None when the noun that names it is not known
    present: float | None
    peak: Tensor | None  # (2,) x, y of the map's first maximum in pixels of the original image
    boxes: Tensor  # (k, 4) best first, xyxy in those pixels; k = 0 when no word is known or the map is flat
    scores: Tensor  # (k,) the ranker's scores, descending
    attention: Tensor  # (h, w) the map on its grid, >= 0
    size: tuple[int, int] | None = None  # (H, W) of the original image
    picture: bytes | None = None  # a small JPEG of it
    note: str | None = None  # what was not asked as it is written and what is odd in the answer, in sentences
    thresholds: tuple[float, float] = (ABSENT_BELOW, FOUND_AT)  # on `present`, between the three states

    @property
    def known(self) -> bool:
        """Whether at least one word of the phrase has a vector."""
        return any(word.known for word in self.words)

    @property
    def state(self) -> str | None:
        """'found', 'not sure' or 'not there', by the model's thresholds; None where `present` is None."""
        return state_of(self.present, self.thresholds)

    @property
    def unsure(self) -> bool:
        """Whether its frame is dashed: 'not sure', or no state since a word of the phrase is not known."""
        return self.state == "not sure" or (self.present is None and not all(w.known for w in self.words))

    @property
    def verdict(self) -> str:
        """The state for people, 'not sure, present 12%'; empty without calibration."""
        if self.present is not None:
            return f"{self.state}, present {self.present:.0%}"
        return ("in part unknown" if self.unsure else "") if self.known else "no known word"

    @property
    def place(self) -> str:
        """The corners of the best box for people, or that there is none."""
        if not len(self.boxes):
            return "no box" if self.known else "no known word, no box"
        return corners(self.boxes[0].tolist())

    @property
    def mask(self) -> Tensor | None:
        """The pixels of the thing in the best box, (H, W) bool, made when asked; None where there is no box."""
        return self.mask_in(0)

    def mask_in(self, rank: int) -> Tensor | None:
        """The same of the box at a place from 0 (`masks.thing_mask`); by the map alone without `picture`."""
        import torch

        from phrase_loc.masks import thing_mask

        if rank >= len(self.boxes) or self.size is None:
            return None
        box, heat = self.boxes[rank].tolist(), self.attention.cpu().numpy()
        return torch.from_numpy(thing_mask(heat, box, self.size, self.picture))

    def __repr__(self) -> str:
        if not len(self.boxes):
            return f"Prediction({self.phrase!r}, no box)"
        said = f", {self.verdict}" if self.verdict else ""
        return f"Prediction({self.phrase!r}, box {self.place}{said})"

    def _repr_html_(self) -> str:
        return Predictions([self])._repr_html_()


class Predictions(list[Prediction]):
    """The answers for one photograph, in the order of the phrases: a list that a notebook shows as pictures."""

    def _repr_html_(self) -> str:
        from phrase_loc.drawing import predictions_html

        return predictions_html(self)
