"""Maps of any classifier: the network is cut at a named layer while it runs, and left as it was.

    maps = explain(torchvision.models.resnet50(weights="DEFAULT").eval(), images, [281, 207], layer="layer3")

What lies over the layer is the part that a method of METHODS asks, and the last linear layer has the units:
the answer is that of the network cut by hand.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phrase_loc.attention import METHODS
from phrase_loc.errors import ConfigError, choose


class _Reached(Exception):
    """The input of the head is known: the rest of the network need not run."""


def explain(
    model: nn.Module,
    images: Tensor,
    classes: int | Sequence[int] | Tensor,
    layer: str,
    *,
    method: str = "contrastive_mwp",
    head: str | None = None,
    **options: Any,
) -> Tensor:
    """Which places of a layer's activations are the evidence for classes: (K, N, h, w) >= 0, on the layer's grid.

    Args:
        model: in eval mode, from `images` to the scores of classes; of torchvision, timm, transformers or your own.
        images: (N, 3, H, W) as the model takes them, or one (3, H, W).
        classes: one or K numbers of rows of the head, or rows (K, D) over its input.
        layer: name of the module (of `model.named_modules()`) at whose output maps are read, such as "layer3". Tokens
            (N, L, D) give maps (K, N, L).
        method: a key of METHODS.
        head: name of the linear layer, or 1x1 convolution, whose rows are the classes; None is the last one.
        **options: of the method, such as signed="contributions".

    Raises:
        ConfigError: no such layer, class or method, a layer that runs more than once or not at all, or images
            that the model does not take.
        NotImplementedError: an operation between layer and head without a rule.

    Warns:
        RuntimeWarning: a map is zero everywhere: nothing excites the class there.
    """
    attention = choose(METHODS, method, "attention method")
    images = _checked(model, images)
    cut, top = _module(model, layer, "layer"), _head(model, head)
    units = _units(top, classes)
    x = _output(model, images, cut, layer)
    tokens = x.dim() == 3

    def above(value: Tensor) -> Tensor:
        copies = len(value) // len(images)  # of methods that ask many masked copies at once
        return _between(model, images.repeat(copies, 1, 1, 1), cut, value.mT if tokens else value, top)

    maps: Tensor = attention(above, x.mT if tokens else x, units, **options)
    if empty := (maps.flatten(2).amax(2) <= 0).nonzero().tolist():
        one = f"{len(empty)} of {maps.shape[:2].numel()} maps are zero everywhere, the first of class "
        warnings.warn(
            f"{one}{empty[0][0]} in image {empty[0][1]} (places from 0)", RuntimeWarning, stacklevel=2
        )
    return maps


def _checked(model: nn.Module, images: Tensor) -> Tensor:
    """(N, 3, H, W) of one picture or several, for a network in eval mode."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"expected a network, a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ConfigError(
            "the model is in training mode, where its answers are random; call model.eval() first"
        )
    if not isinstance(images, Tensor):
        raise ConfigError(
            "images must be a tensor (3, H, W) or (N, 3, H, W), resized and normalised as the model wants it, "
            f"got a {type(images).__name__}; torchvision.transforms makes one"
        )
    images = images[None] if images.dim() == 3 else images
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise ConfigError(
            f"images must be floating (N, 3, H, W), one at least, got {images.dtype} {tuple(images.shape)}"
        )
    if not images.isfinite().all():
        raise ConfigError("images hold NaN or infinite numbers, which would be spread over every map")
    return images


def _module(model: nn.Module, name: str, what: str) -> nn.Module:
    found = dict(model.named_modules())
    if not isinstance(name, str):
        raise ConfigError(f"a {what} is the name of one module, such as 'layer3', got {name!r:.60}")
    if not name or name not in found:
        start = max((n for n in found if name.startswith(f"{n}.") and n), key=len, default="")
        below = [f"{start}.{child}".lstrip(".") for child, _ in found[start].named_children()]
        raise ConfigError(f"the model has no {what} {name!r}; choose from {', '.join(below)}, or one within")
    return found[name]


def _head(model: nn.Module, name: str | None) -> nn.Linear | nn.Conv2d:
    """The module whose rows are the classes."""
    modules = [*model.modules()] if name is None else [_module(model, name, "head")]
    for module in reversed(modules):
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
            return module
    raise ConfigError(
        "expected a linear layer or a 1x1 convolution whose rows are the classes; name it as head="
    )


def _units(top: nn.Linear | nn.Conv2d, classes: int | Sequence[int] | Tensor) -> Tensor:
    rows = top.weight.detach().flatten(1)
    if isinstance(classes, Tensor) and classes.is_floating_point():
        return classes
    numbers = np.ravel(classes.cpu() if isinstance(classes, Tensor) else classes).tolist()
    if wrong := [n for n in numbers if type(n) is not int or not 0 <= n < len(rows)]:
        raise ConfigError(
            f"classes are numbers from 0 to {len(rows) - 1}, rows of the head, got {wrong[0]!r}"
        )
    return rows[numbers]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any], before: bool = False) -> Iterator[None]:
    """A hook for this thread, gone afterwards: others may share the model."""
    thread = threading.get_ident()

    def own(*given: Any) -> Any:
        return hook(*given) if threading.get_ident() == thread else None

    handle = module.register_forward_pre_hook(own) if before else module.register_forward_hook(own)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _output(model: nn.Module, images: Tensor, cut: nn.Module, name: str) -> Tensor:
    """What the layer gives for the images."""
    seen: list[Any] = []
    with _hooked(cut, lambda module, given, out: seen.append(out)):
        try:
            model(images)
        except RuntimeError as error:
            asked = f"images {tuple(images.shape)} of {images.dtype}"
            raise ConfigError(
                f"the model does not take {asked}: {str(error).splitlines()[0]:.200}"
            ) from error
    if len(seen) != 1:
        raise ConfigError(f"the layer {name!r} runs {len(seen)} times for an image; name one that runs once")
    if not isinstance(seen[0], Tensor) or seen[0].dim() not in (3, 4):
        raise ConfigError(f"the layer {name!r} gives no (N, C, h, w) or (N, L, D) tensor; name one that does")
    high, wide, last = (*seen[0].shape[1:], 0)[:3]
    h, w = images.shape[2:]
    if high * w == wide * h and last > max(high, wide) and wide * w != last * h:  # as Swin's are
        told = f"gives {tuple(seen[0].shape)}, which look like channels last"
        raise ConfigError(
            f"the layer {name!r} {told}; name one that gives (N, C, h, w), such as a permutation"
        )
    return seen[0].detach().clone()


def _between(model: nn.Module, images: Tensor, cut: nn.Module, value: Tensor, top: nn.Module) -> Tensor:
    """The input of the head where the layer gives `value`."""
    reached: list[Tensor] = []

    def stop(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        reached.append(given[0])
        raise _Reached

    with _hooked(cut, lambda module, given, out: value), _hooked(top, stop, before=True):
        try:
            model(images)
        except _Reached:
            return reached[0]
    raise ConfigError("the head does not run after the layer; name another head=")
