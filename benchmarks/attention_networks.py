"""The networks of `attention.py`: whole, cut at the stage where the paper reads its map, and with their units."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phrase_loc.models.build import fold_batch_norm


@dataclass(frozen=True)
class Network:
    """A folded network in eval mode.

    Attributes:
        name: key of NETWORKS.
        stage: name of the module whose output is attended, as peers are told it.
        whole: images (N,3,224,224) -> scores.
        below: images -> activations at the stage.
        above: activations -> features under the units; None when the map is read at the features.
        units: (K, D) rows of the layer over those features.
        contrast: name of the module whose output the units weigh, for TorchRay.
        tokens: whether activations are tokens (N, C, L), the class token first.
    """

    name: str
    stage: str
    whole: nn.Module
    below: Callable[[Tensor], Tensor]
    above: nn.Module | None
    units: Tensor
    contrast: str = ""
    tokens: bool = False

    def copy(self) -> nn.Module:
        """The whole network for a peer that may change it."""
        return copy.deepcopy(self.whole)

    def copy_below(self) -> nn.Module:
        """The trunk below the stage, for another memory format."""
        return copy.deepcopy(self.below)


def _classifier(name: str, stage: str, contrast: str) -> Callable[[str, str], Network]:
    def make(device: str, _model: str) -> Network:
        from torchvision import models

        more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        torch.manual_seed(0)
        whole = fold_batch_norm(getattr(models, name)(weights=None, **more)).to(device)
        whole.requires_grad_(False)
        steps = _steps(whole, name)
        at = [n for n, _ in steps].index(stage) + 1
        below = nn.Sequential(*(m for _, m in steps[:at]))
        above = nn.Sequential(*(m for _, m in steps[at:-1]))
        return Network(name, stage, whole, below, above, steps[-1][1].weight, contrast)

    return make


def _steps(net: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """The network as a chain of named modules; the last is the layer whose rows are the units."""
    flatten = ("flatten", nn.Flatten())
    if name == "vgg16":
        features = [(f"features.{i}", m) for i, m in enumerate(net.features)]
        hidden = [(f"classifier.{i}", m) for i, m in enumerate(net.classifier)]
        return [*features, ("avgpool", net.avgpool), flatten, *hidden]
    steps = [(n, m) for n, m in net.named_children() if n not in ("fc", "aux1", "aux2", "dropout")]
    return [*steps, flatten, ("fc", net.fc)]


def _shipped(device: str, model: str) -> Network:
    """The model of the package, or of a folder, at the stage where a query reads its maps."""
    from phrase_loc.localizer import PhraseLocalizer

    localizer = PhraseLocalizer.from_pretrained(model, device=device)
    stage = localizer.settings.stages[-1]
    shipped = localizer.model.requires_grad_(False).eval()
    units = shipped.units(torch.arange(64, device=localizer.device)).detach()

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = shipped

        def forward(self, images: Tensor) -> Tensor:
            return self.model.features(255 * images)

    below = shipped.below(stage)
    above = None if stage == "features" else shipped.above(stage)
    return Network("default", stage, Scores(), lambda x: below(255 * x), above, units)


def _vit(below: int) -> Callable[[str, str], Network]:
    """Torchvision's ViT-B/16, read where `below` of its twelve blocks lie below the map."""

    def make(device: str, _model: str) -> Network:
        from torchvision import models

        torch.manual_seed(0)
        whole = models.vit_b_16(weights=None).eval().requires_grad_(False)
        nn.init.normal_(whole.heads.head.weight)  # they start at 0
        whole.to(device)
        blocks = list(whole.encoder.layers)

        class Below(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = whole

            def forward(self, images: Tensor) -> Tensor:
                x = self.net._process_input(images)
                x = (
                    torch.cat([self.net.class_token.expand(len(x), -1, -1), x], 1)
                    + self.net.encoder.pos_embedding
                )
                return nn.Sequential(*blocks[:below])(x).mT

        class Above(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.blocks, self.norm = nn.Sequential(*blocks[below:]), whole.encoder.ln

            def forward(self, tokens: Tensor) -> Tensor:
                return self.norm(self.blocks(tokens.mT))[:, 0]

        stage = f"encoder.layers.encoder_layer_{below - 1}" if below else "encoder.dropout"
        units = whole.heads.head.weight
        return Network(
            f"vit_b_16, {12 - below} block{'s' if below < 11 else ''}",
            stage,
            whole,
            Below(),
            Above(),
            units,
            tokens=True,
        )

    return make


NETWORKS: dict[str, Callable[[str, str], Network]] = {
    "resnet50": _classifier("resnet50", "layer3", "avgpool"),
    "googlenet": _classifier("googlenet", "maxpool2", "avgpool"),
    "vgg16": _classifier("vgg16", "features.23", "classifier.4"),
    "default": _shipped,
    "vit_b_16, 1 block": _vit(11),
    "vit_b_16, 2 blocks": _vit(10),
    "vit_b_16, 12 blocks": _vit(0),
}
