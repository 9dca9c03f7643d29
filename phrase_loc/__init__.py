"""phrase_loc: type a phrase, get the region of the photograph it names.

    from phrase_loc import PhraseLocalizer

    localizer = PhraseLocalizer.from_pretrained("default")
    for prediction in localizer("photo.jpg", ["a red hat", "the dog"]):
        print(prediction.phrase, prediction.boxes[:1], prediction.present)

Names load on first use: importing the package imports neither torch nor anything else that is slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phrase_loc.attention import contrastive_mwp, excitation_backprop, mwp
    from phrase_loc.display import plot, to_coco, to_detections, to_dict, to_frame
    from phrase_loc.errors import ConfigError, DataError, PhraseLocError
    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.structures import Phrase, Prediction, Predictions, Scene, Word

__version__ = "0.1.0"

_HOME = {
    "ConfigError": "phrase_loc.errors",
    "DataError": "phrase_loc.errors",
    "Phrase": "phrase_loc.structures",
    "PhraseLocError": "phrase_loc.errors",
    "PhraseLocalizer": "phrase_loc.localizer",
    "Prediction": "phrase_loc.structures",
    "Predictions": "phrase_loc.structures",
    "Scene": "phrase_loc.structures",
    "Word": "phrase_loc.structures",
    "contrastive_mwp": "phrase_loc.attention",
    "excitation_backprop": "phrase_loc.attention",
    "mwp": "phrase_loc.attention",
    "plot": "phrase_loc.display",
    "to_coco": "phrase_loc.display",
    "to_detections": "phrase_loc.display",
    "to_dict": "phrase_loc.display",
    "to_frame": "phrase_loc.display",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Phrase",
    "PhraseLocError",
    "PhraseLocalizer",
    "Prediction",
    "Predictions",
    "Scene",
    "Word",
    "contrastive_mwp",
    "excitation_backprop",
    "mwp",
    "plot",
    "to_coco",
    "to_detections",
    "to_dict",
    "to_frame",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'phrase_loc' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
