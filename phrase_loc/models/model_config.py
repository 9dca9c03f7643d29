"""What a model is, as plain values: enough to build it again, saved as config.json beside the weights."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from phrase_loc.errors import DataError, nearest

FORMAT = 1
"""Version of the model folder; a reader refuses a newer one."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The parts of a TextToRegion.

    Attributes:
        backbone: a name of backbones.BACKBONES, or `transformers:...`.
        architecture: config.json of a transformers backbone, so that its folder is not needed again.
        output_stride: pixels to a cell of the last stage.
        folded: whether the weights have their batch norms folded.
        mean: subtracted from RGB in 0..255.
        std: then divided by.
        image_size: short side of an image in training, pixels.
        fuse: name of a finer stage that the head reads as well, or None.
        channels: of the last stage.
        fine_channels: of the finer stage, None without one.
        hidden: D, channels of the head's 1x1 convolution, None without one (then D = channels).
        embedding: E, numbers in a word vector.
        pool: a key of pooling.POOLS.
        sharpness: of the pool at the beginning of training.
        learn_sharpness: whether training changed it.
        cosine: whether units and features are divided by their lengths.
        free: whether a word vector is the unit itself, with its bias as last number.
        tuned: whether training changed the word vectors.
        inference: settings of the localizer, kept as they are.
        calibration: of the probability that a phrase is shown, kept as it is.
        card: facts for the model card (data, recipe, command, figures), kept as they are.
        format: version of the model folder.
    """

    backbone: str
    channels: int
    embedding: int
    architecture: dict[str, Any] | None = None
    output_stride: int = 32
    folded: bool = True
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    image_size: int = 224
    fuse: str | None = None
    fine_channels: int | None = None
    hidden: int | None = 512
    pool: str = "log_sum_exp"
    sharpness: float = 4.0
    learn_sharpness: bool = False
    cosine: bool = False
    free: bool = False
    tuned: bool = False
    inference: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dump."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, source: str) -> "ModelConfig":
        """Plain values -> a config; `source` names the file in messages.

        Raises:
            DataError: not a mapping, a newer format, an unknown or a missing key.
        """
        if not isinstance(values, dict):
            raise DataError(
                f"{source} must hold a JSON object, got a {type(values).__name__}; save the model again"
            )
        if not isinstance(values.get("format"), int) or not 1 <= values["format"] <= FORMAT:
            raise DataError(
                f"{source} has model format {values.get('format')!r}, this phrase_loc reads up to {FORMAT}; "
                "it is a newer model or none of ours: update phrase_loc or name another folder"
            )
        known = [f.name for f in fields(cls)]
        if unknown := [key for key in values if key not in known]:
            raise DataError(
                f"{source} has the unknown key {unknown[0]!r}{nearest(unknown[0], known)}; remove it"
            )
        if missing := [key for key in ("backbone", "channels", "embedding") if key not in values]:
            raise DataError(f"{source} lacks the key {missing[0]!r}; save the model again")
        for key in ("mean", "std"):
            if key in values:
                values = {**values, key: tuple(values[key])}
        return cls(**values)
