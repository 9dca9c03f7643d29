"""What a model is, as plain values."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from phrase_loc.config import STRICT, checked, shortened, without_retired
from phrase_loc.errors import ConfigError, DataError

FORMAT = 1  # version of the model folder; a reader refuses a newer one
#: Keys of older models and the value at which they did nothing; any other value is refused.
RETIRED: dict[str, Any] = {
    "fuse": None,
    "fine_channels": None,
    "output_stride": 32,
    "learn_sharpness": False,
    "cosine": False,
}

Size = Annotated[int, Field(ge=1, le=65_536)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]


def _slope_and_offset(fit: dict[str, int | float]) -> dict[str, int | float]:
    if fit and not {"slope", "offset"} <= set(fit):
        raise ConfigError("key calibration needs slope and offset; run `phrase-loc calibrate` again")
    return fit


def _figures(card: dict[str, Any]) -> dict[str, Any]:
    """The rows that the card prints; all else in it is printed as text, whatever it is."""
    rows = card.get("figures") or []
    whole = isinstance(rows, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("ci95") or [], (list, tuple))
        and isinstance(row.get("baselines") or {}, dict)
        for row in rows
    )
    if not whole:
        raise ConfigError("key card.figures holds rows as reports have them; leave it out")
    return card


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model is, as plain values: enough to build it again, saved as config.json beside the weights."""

    __pydantic_config__ = STRICT

    backbone: str  # a name of backbones.BACKBONES, or `transformers:...`
    channels: Size  # of the last stage
    embedding: Size  # E, numbers in a word vector
    architecture: dict[str, Any] | None = None  # config.json of a transformers backbone, whose folder may go
    folded: bool = True  # whether the weights have their batch norms folded
    mean: tuple[Finite, Finite, Finite] = (127.0, 127.0, 127.0)  # subtracted from RGB in 0..255
    std: tuple[Positive, Positive, Positive] = (128.0, 128.0, 128.0)  # then divided by
    image_size: Size = 224  # short side of an image in training, pixels
    hidden: Size | None = (
        512  # D, channels of the head's 1x1 convolution, None without one (then D = channels)
    )
    pool: str = "log_sum_exp"  # a key of POOLS
    sharpness: Positive = 4.0  # inverse temperature r of the pool
    free: bool = False  # whether a word vector is the unit itself, with its bias as last number
    tuned: bool = False  # whether training changed the word vectors
    inference: dict[str, Any] = field(default_factory=dict)  # settings of the localizer, checked by it
    #: slope and offset of the probability that a phrase is shown, and how good it is; {} for none
    calibration: Annotated[dict[str, int | float], AfterValidator(_slope_and_offset)] = field(
        default_factory=dict
    )
    #: facts for the model card (data, recipe, command, figures), kept as they are
    card: Annotated[dict[str, Any], AfterValidator(_figures)] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dump."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, source: str) -> "ModelConfig":
        """Plain values -> a config; a DataError that begins with `source` where they are those of no config."""
        if not isinstance(values, dict):
            raise DataError(
                f"{source} must hold a JSON object, got a {type(values).__name__}; save the model again"
            )
        if type(values.get("format")) is not int or not 1 <= values["format"] <= FORMAT:
            raise DataError(
                f"{source} has model format {shortened(values.get('format'))}, this phrase_loc reads up to {FORMAT}; "
                "it is a newer model or none of ours: update phrase_loc or name another folder"
            )
        try:
            return checked(cls, without_retired(values, RETIRED, "key"), "key")
        except ConfigError as error:
            raise DataError(f"{source}: {error}; save the model again or copy it whole") from None
