"""Small localizers with random weights: what they answer means nothing, how they answer does."""

from dataclasses import replace

import torch
from torch import nn

from phrase_loc.evaluation.classifier import Classifier, ClassifierLocalizer
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models import backbones
from phrase_loc.models.build import create, fold_batch_norm, folded
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
    trunk = fold_batch_norm(backbones.build("tiny"))
    for parameter in trunk.parameters():
        parameter.requires_grad_(False)
    depth = trunk(torch.zeros(1, 3, 32, 32)).shape[1]
    head = nn.Linear(depth, classes)
    facts = backbones.preprocessing("tiny")
    model = Classifier(trunk, head.weight.detach(), head.bias.detach(), names, facts)
    chosen = Inference.from_dict({**model.config.inference, "image_sizes": [32], **settings})
    return ClassifierLocalizer(model, chosen)
