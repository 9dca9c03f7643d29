"""An image-text pair: an image network and a text tower over one embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.errors import ConfigError
from phrase_loc.models.library_nets import Vision

_AT_ONCE = 64  # prompts


class Texts(nn.Module):
    """A text tower with its own tokenizer, which cuts what is too long: prompts to embeddings of length 1."""

    def __init__(
        self, net: nn.Module, tokenize: Callable[[list[str]], Any], embed: Callable[[Any, Any], Tensor]
    ):
        super().__init__()
        self.net, self.tokenize, self.embed = net, tokenize, embed

    def ids(self, prompt: str) -> list[int]:
        """The tokens of a prompt."""
        given = self.tokenize([prompt])
        return (given if isinstance(given, Tensor) else given["input_ids"])[0].tolist()

    @torch.inference_mode()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """P prompts -> (P,E) on the device of the weights."""
        device, parts = next(self.parameters()).device, range(0, len(prompts), _AT_ONCE)
        tokens = (self.tokenize(list(prompts[i : i + _AT_ONCE])).to(device) for i in parts)
        return F.normalize(torch.cat([self.embed(self.net, given) for given in tokens]), dim=-1)


@dataclass(frozen=True)
class Pair:
    """An image network and a text tower over one embedding of E numbers."""

    vision: Vision
    project: Tensor | None  # (E,D) from what is pooled to the embedding; None where that is the embedding
    texts: Texts
    scale: float  # of the cosine, and what is added to it, in the logit that the two belong together
    bias: float
    images: dict[str, Any]  # mean and std of RGB in 0..1, size


def logit(net: Any) -> tuple[float, float]:
    """The scale and bias of a pair of transformers or open_clip."""
    bias = getattr(net, "logit_bias", None)
    return net.logit_scale.exp().item(), 0.0 if bias is None else bias.item()


def no_texts(name: str, why: str) -> ConfigError:
    """What is said of a network that sees images alone."""
    return ConfigError(
        f"{name} has no text tower to be asked phrases ({why}); name an image-text model such as "
        f"hf:openai/clip-vit-base-patch16, or train a word head over this one: model.backbone={name}"
    )
