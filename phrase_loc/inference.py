"""How a model is asked, and a photograph made ready for it; neither needs a model."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import Field
from torch import Tensor

from phrase_loc.attention import METHODS, SIGNED
from phrase_loc.config import STRICT, checked, without_retired
from phrase_loc.drawing import small_jpeg
from phrase_loc.errors import ConfigError, choose
from phrase_loc.images import checked_frame, to_tensor
from phrase_loc.profiling import lap
from phrase_loc.proposals import PROPOSALS, Source

#: Settings of older models and the value at which they did nothing; any other value is refused.
RETIRED: dict[str, Any] = {"sharpness": 0, "mirrored": False, "score": "mass", "prior": 0}

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1e9)]
Side = Annotated[int, Field(ge=1, le=4096)]

OneOrMore = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is asked; chosen on val, saved in the model's config.json. `from_dict` checks the values.

    Of several stages and sizes the lower stages are read at the first size and the highest at the others: a pass
    further down costs more with the square of the size and gains no more there. Stages count alike. Maps are brought
    to the grid, min-max normalised and averaged.
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
    proposals: str = "default"  # a key of proposals.PROPOSALS
    gamma: Annotated[float, Field(ge=-1e9, le=1e9)] = 0.4  # exponent of a box's area (ranking.score_boxes)
    spread: Weight = 0.0  # how strongly a box's area is held to what the map's extent lets expect; 0 for none
    #: of the box ranker's log-probability in a box's score; 0, or a model without one: none
    ranker: Weight = 0.0
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
        # the width of a location prior did nothing without one
        values = {key: value for key, value in values.items() if key != "prior_sigma"}
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
        squares = tuple(squashed(picture, side) for side in settings.image_sizes)
    with lap("propose"):
        proposals = source.of_image(picture, frame)
    return Prepared(squares, frame, proposals, small_jpeg(picture) if keep else None)


def squashed(picture: Image.Image, side: int) -> Tensor:
    """An RGB picture as the network takes it: (3, side, side) uint8."""
    return to_tensor(picture.resize((side, side), Image.Resampling.BICUBIC))
