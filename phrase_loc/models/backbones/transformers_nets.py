"""Convolutional networks of transformers (ResNet, ConvNeXt, ...) as chains of named stages: stem, stage1, ...

The source is a folder with config.json and model.safetensors, or a hub id. transformers is imported when one
of these is built and never before. The architecture travels as the plain dictionary of config.json, so that a
model saved by us needs neither the folder nor the hub again.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError

#: `model_type` of a config -> (attribute of the stem, attribute path of the list of stages).
FAMILIES = {
    "resnet": ("embedder", "encoder.stages"),
    "convnext": ("embeddings", "encoder.stages"),
    "convnextv2": ("embeddings", "encoder.stages"),
    "regnet": ("embedder", "encoder.stages"),
}
DEEPEST = 1000


class Plain(nn.Module):
    """A part of a transformers network that takes and gives one tensor."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,H,W) -> (N,C',h,w)."""
        out = self.part(x)
        return out[0] if isinstance(out, tuple) else out


def architecture(source: str) -> dict[str, Any]:
    """The config.json of a folder or hub id as a dictionary; it names a family of FAMILIES.

    Raises:
        DataError: no such folder, no config in it, or no network to reach the hub.
        ConfigError: a network that is no convolutional one known here.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except Exception as error:  # of a broken config.json, transformers raises anything
        raise DataError(_unreadable(source, error)) from None
    found: dict[str, Any] = config.to_dict()
    _family(found)
    return found


def from_architecture(config: dict[str, Any]) -> nn.Module:
    """The network that a config.json describes, with random weights."""
    from transformers import AutoConfig, AutoModel

    _family(config)
    depths = config.get("depths")
    if isinstance(depths, list) and not all(isinstance(n, int) and 0 <= n <= DEEPEST for n in depths):
        raise DataError(f"the architecture has stages of at most {DEEPEST} blocks, got depths {depths!r:.80}")
    options = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **options))
    except Exception as error:  # of settings that are anything, transformers raises anything
        raise DataError(
            f"the architecture is none that transformers can build ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]}); copy the model again"
        ) from None


def pretrained(source: str) -> nn.Module:
    """The network of a folder or hub id with its own weights."""
    from transformers import AutoModel

    architecture(source)
    try:
        return AutoModel.from_pretrained(source)
    except Exception as error:  # of a broken folder, transformers and safetensors raise anything
        raise DataError(_unreadable(source, error)) from None


def stages(net: nn.Module) -> nn.Sequential:
    """Stem and stages of such a network; they share its weights. The last stage comes without its pooler."""
    config: Any = net.config
    stem, chain = _family(config.to_dict())
    parts = [("stem", Plain(net.get_submodule(stem)))]
    parts += [(f"stage{i}", Plain(stage)) for i, stage in enumerate(net.get_submodule(chain).children(), 1)]
    return nn.Sequential(OrderedDict(parts))


def _family(config: dict[str, Any]) -> tuple[str, str]:
    kind = config.get("model_type", "none")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ConfigError(
            f"a transformers backbone must be one of {', '.join(FAMILIES)}, got model_type {kind!r:.80}; "
            "take a convolutional network"
        )
    return FAMILIES[kind]


def _unreadable(source: str, error: Exception) -> str:
    what = "the folder" if Path(source).is_dir() else "neither a folder here nor a hub id within reach:"
    return (
        f"transformers backbone {source!r}: {what} cannot be loaded ({' '.join(str(error).split())[:160]}); "
        "give a folder with config.json and model.safetensors"
    )
