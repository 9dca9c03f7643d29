"""How a model is asked, and a photograph made ready for it: no model is needed for either."""

from dataclasses import dataclass, fields
from typing import Any

from PIL import Image
from torch import Tensor

from phrase_loc.attention import METHODS
from phrase_loc.errors import ConfigError, choose, nearest
from phrase_loc.images import to_tensor
from phrase_loc.profiling import lap
from phrase_loc.proposals import PROPOSALS, Source
from phrase_loc.ranking import SCORES

#: Settings of older models and the value at which they did nothing; any other value is refused.
RETIRED: dict[str, Any] = {"sharpness": 0, "mirrored": False}


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is asked; chosen on val, saved in the model's config.json.

    Attributes:
        method: a key of attention.METHODS.
        stage: where maps are read: a stage of the trunk, or "features".
        image_sizes: sides in pixels of the squares a photograph is resized to; of several the maps are brought to
            the grid, min-max normalised and averaged.
        smoothing: Gaussian sigma of the map as a share of its side.
        prior: exponent of a Gaussian bump at the image's centre, 0 for none. It is bias and no grounding.
        prior_sigma: width of that bump as a share of the side.
        proposals: a key of proposals.PROPOSALS.
        score: a key of ranking.SCORES.
        gamma: its constant; of "mass" the exponent of the area.
        temperature: of the vote of neighbouring boxes that elects the first (ranking.elect); 0 for none.
        nms: greatest IoU between two boxes of an answer.
        grid: side of the square grid on which maps are smoothed and boxes ranked.
    """

    method: str = "contrastive_mwp"
    stage: str = "features"
    image_sizes: tuple[int, ...] = (224,)
    smoothing: float = 0.05
    prior: float = 0.0
    prior_sigma: float = 0.25
    proposals: str = "default"
    score: str = "mass"
    gamma: float = 0.4
    temperature: float = 0.1
    nms: float = 0.5
    grid: int = 64

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "inference") -> "Inference":
        """Checked settings from plain values; an unknown name raises a ConfigError, as does a retired one in use."""
        known = [f.name for f in fields(cls)]
        for key in values.keys() & RETIRED.keys():
            if values[key] != RETIRED[key]:
                raise ConfigError(
                    f"the {source} setting {key}={values[key]!r} is no longer there: it lowered the figures "
                    f"(docs/experiments.md); set it to {RETIRED[key]!r} or leave it out"
                )
        values = {key: value for key, value in values.items() if key not in RETIRED}
        for key in values:
            if key not in known:
                hint = nearest(key, known)
                raise ConfigError(f"unknown {source} setting {key!r}{hint}; known: {', '.join(known)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        settings = cls(**plain)
        choose(METHODS, settings.method, "attention method")
        choose(PROPOSALS, settings.proposals, "proposal source")
        choose(SCORES, settings.score, "box score")
        return settings


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

    Args:
        picture: as `load_image` gives it.
        settings: of the localizer that will look at it.
        size: (H, W) of the frame of the answers; None is the picture's own.
        source: of the boxes; None is the settings' own.
    """
    source = PROPOSALS[settings.proposals] if source is None else source
    frame = (picture.height, picture.width) if size is None else (int(size[0]), int(size[1]))
    with lap("resize"):
        squares = tuple(
            to_tensor(picture.resize((side, side), Image.Resampling.BICUBIC)) for side in settings.image_sizes
        )
    with lap("propose"):
        proposals = source.of_image(picture, frame)
    return Prepared(squares, frame, proposals)
