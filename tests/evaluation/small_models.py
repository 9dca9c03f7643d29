"""Small localizers with random weights: what they answer means nothing, how they answer does."""

from dataclasses import replace

import torch

from phrase_loc.evaluation.classifier import ClassifierLocalizer
from phrase_loc.evaluation.classifier import classifier as made
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models.build import create, folded
from phrase_loc.text.vocabulary import Vocabulary

WORDS = ("dog", "cat", "person", "hat", "car", "tree", "ball")


def text_localizer(calibrated: bool = False, **settings) -> PhraseLocalizer:
    """A text-to-region model over the tiny trunk that knows WORDS."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(WORDS, tuple(range(100, 100 - len(WORDS), -1)))
    model = create(
        vocabulary, torch.randn(len(WORDS), 6), backbone="tiny", weights=None, image_size=32, hidden=12
    )
    if calibrated:
        model.config = replace(model.config, calibration={"slope": 1.0, "offset": 0.0})
    return PhraseLocalizer(folded(model), Inference.from_dict({"image_sizes": [32], **settings}))


def classifier(names: dict[str, tuple[int, ...]], classes: int = 10, **settings) -> ClassifierLocalizer:
    """A classifier over the tiny trunk with random units."""
    torch.manual_seed(0)
    units = torch.nn.Linear(32, classes)
    chosen = {"image_sizes": [32], **settings}
    return made("tiny", None, units.weight.detach(), units.bias.detach(), names, **chosen)
