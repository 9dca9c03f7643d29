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
    from phrase_loc.attention import contrastive_mwp, excitation_backprop, mwp  # noqa: F401
    from phrase_loc.attention.explain import explain  # noqa: F401
    from phrase_loc.display import overlay, plot, to_coco, to_detections, to_dict, to_frame  # noqa: F401
    from phrase_loc.errors import ConfigError, DataError, PhraseLocError  # noqa: F401
    from phrase_loc.localizer import PhraseLocalizer  # noqa: F401
    from phrase_loc.structures import Phrase, Prediction, Predictions, Scene, Word  # noqa: F401

__version__ = "0.1.0"

_NAMES = {
    "attention": ("contrastive_mwp", "excitation_backprop", "mwp"),
    "attention.explain": ("explain",),
    "display": ("overlay", "plot", "to_coco", "to_detections", "to_dict", "to_frame"),
    "errors": ("ConfigError", "DataError", "PhraseLocError"),
    "localizer": ("PhraseLocalizer",),
    "structures": ("Phrase", "Prediction", "Predictions", "Scene", "Word"),
}
_HOME = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'phrase_loc' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
