"""The methods that c-MWP is compared with, over the same activations and with the same signature.

    gradient          the scores' derivative by the activations; max over channels of its size (arXiv 1312.6034)
    guided_backprop   its positive part, where the ReLU was on (Springenberg et al., arXiv 1412.6806)
    deconvnet         its positive part, on or off (Zeiler and Fergus, arXiv 1311.2901)
    grad_cam          the derivative, averaged over the plane, weighs channels (Selvaraju et al., arXiv 1610.02391)
    cam               no derivative: the last features, weighed by the units (Zhou et al., arXiv 1512.04150)
    lrp               layer-wise relevance propagation (Bach et al., PLOS ONE 2015)
    attn_lrp          the same for transformers, gates held constant (Ali et al., arXiv 2202.07304); `class_token`
    occlusion         a window slides over the plane (Zeiler and Fergus): how far does the score fall?
    rise              random masks, each weighed by the score it leaves (Petsiuk et al., arXiv 1806.07421)

The score of a unit is the mean of its scores at all locations. Captum's and zennit's versions hook modules: they miss
`F.relu`, refuse a plain callable, and are not for threads that share a model. The tests hold ours against theirs.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from phrase_loc.attention.excitation import RULES, Net, reciprocal, seeded
from phrase_loc.attention.functions import POOLS, named
from phrase_loc.attention.tape import Move, Rule, Tape, activations, attended_pass, plain
from phrase_loc.attention.transposes import transpose
from phrase_loc.errors import ConfigError

EPSILON = 1e-6  # of the relevance rule of linear layers; zennit's default
BATCH = 32  # masked copies of all images that run at once
_RELUS = set(named("relu relu_ relu6 hardtanh hardtanh_"))  # a ReLU6 module calls hardtanh
_SMOOTH = set(named("silu gelu hardswish mish elu leaky_relu softplus"))
_ATTENDING = {F.scaled_dot_product_attention, F.multi_head_attention_forward}
_GATES = set(named("softmax sigmoid sqrt rsqrt"))  # those of attention, x sigmoid(1.702 x), norms by hand
_NORMS = {F.layer_norm, F.group_norm, F.rms_norm}
PRODUCTS = set(named("mul multiply __mul__ __rmul__ mul_"))
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def gradient(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Size of the scores' derivative at each location, largest channel: (K, N, h, w) >= 0. Arguments as for `mwp`."""
    return derivative(net, x, units, weights).abs().amax(2)


def guided_backprop(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """The gradient with only positive signals let back through a ReLU."""
    return derivative(net, x, units, weights, ReluRule(gated=True)).abs().amax(2)


def deconvnet(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Positive signals go back through a ReLU whether it was on or off."""
    return derivative(net, x, units, weights, ReluRule(gated=False)).abs().amax(2)


def grad_cam(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Channels weighed by their mean derivative, summed, clamped at 0."""
    alpha = derivative(net, x, units, weights).flatten(3).mean(3)
    return torch.einsum("knc,nc...->kn...", alpha, x.detach().to(alpha)).clamp(min=0)


@torch.inference_mode(False)
@torch.no_grad()
def cam(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Class activation map, the weighted sum of the last features, clamped at 0.

    Below the last convolution it is the same map, resized. A net that ends in something else than an average over
    locations has none, and is refused (ConfigError).
    """
    h = _last_features(net, activations(x).clone())
    h = h.to(wide(h))
    maps = seeded(partial(torch.einsum, "nd...,kd->kn..."), h, units, weights).clamp(min=0)
    if maps.shape[2:] != x.shape[2:]:
        maps = F.interpolate(maps, x.shape[2:], mode=_MODES[x.dim() - 2], align_corners=False)
    return maps.to(wide(x))


def lrp(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Relevance of each location for the units' scores, opposition taken off, clamped at 0.

    The usual composite for convolutional networks (Montavon et al. 2019, zennit's EpsilonPlus): the score is split
    over the features, sign and all; linear layers propagate it by the epsilon rule, convolutions by the z+ rule,
    which is excitation backprop's. An operation without a rule raises NotImplementedError.
    """
    with attended_pass([net], x, {**RULES, F.linear: epsilon}) as (tape, top):
        relevance = seeded(lambda h, u: score_signal(h, u) * h, plain(top), units, weights)
        return tape.propagate(top, relevance, channels=False)[0].clamp_(min=0)


def attn_lrp(net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Relevance of each location by the rules for transformers, opposition taken off, clamped at 0.

    Derivative times activation of the network in which attention weights, the spread of a normalisation and the
    ratio f(u) / u of an activation are constants (AH- and LN-rule of Ali et al., ICML 2022): at every linear map
    R_j = x_j sum_i w_ij R_i / y_i, with biases taking their share. A product of two activations shares by halves.
    """
    slope = derivative(net, x, units, weights, Gates())
    return (slope * x.detach().to(slope)).sum(2).clamp(min=0)


@torch.inference_mode(False)
@torch.no_grad()
def occlusion(
    net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None, window: int = 3
) -> Tensor:
    """Mean fall of the score over the windows that cover a location, clamped at 0.

    `window` is the side of the covered square in cells, odd (else ConfigError). Every square that meets the plane is
    covered, so each cell lies in equally many.
    """
    if window % 2 == 0 or window < 1:
        raise ConfigError(f"the side of an occluding window must be odd and positive, got {window}")
    _refuse_tokens(x, "occlusion")
    reach = window // 2
    rows, columns = (
        (torch.arange(-reach, s + reach)[:, None] - torch.arange(s)).abs() <= reach for s in x.shape[2:]
    )
    covered = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1).to(x.device, wide(x))
    whole, left = _masked_scores(net, x, units, weights, 1 - covered)
    return _spread(whole - left, covered)


@torch.inference_mode(False)
@torch.no_grad()
def rise(
    net: Net, x: Tensor, units: Tensor, *, weights: Tensor | None = None,
    masks: int = 512, cells: int = 4, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Mean score, above the mean of all, that masks keeping a location leave, clamped at 0.

    The `masks` are grids of `cells` x `cells` fair coins, resized smoothly to the plane at a random offset.
    """
    _refuse_tokens(x, "rise")
    size = x.shape[2:]
    generator = torch.Generator().manual_seed(seed)
    coins = torch.randint(0, 2, (masks, 1, cells + 1, cells + 1), generator=generator).float()
    step = [-(-s // cells) for s in size]  # a cell more than the plane, to shift within
    fine = F.interpolate(coins, [(cells + 1) * s for s in step], mode="bilinear", align_corners=False)
    offset = [torch.randint(0, s, (masks,), generator=generator).tolist() for s in step]
    shifted = [m[0, i : i + size[0], j : j + size[1]] for m, i, j in zip(fine, *offset, strict=True)]
    kept = torch.stack(shifted).to(x.device, wide(x))
    _, left = _masked_scores(net, x, units, weights, kept)
    return _spread(left - left.mean(0), kept)


def derivative(
    net: Net, x: Tensor, units: Tensor, weights: Tensor | None = None,
    mode: AbstractContextManager[Any] | None = None,
) -> Tensor:  # fmt: skip
    """Derivative of each unit's score: (K, N, C, h, w), from one forward and one batched backward pass.

    The network runs in its own dtype and autocast; the result is float32 (float64 for float64 activations).
    """
    modules = net.modules() if isinstance(net, nn.Module) else ()
    if mode and any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        raise ConfigError("the operations of TorchScript are not seen; give the network before torch.jit")
    with torch.inference_mode(False), torch.enable_grad():
        leaf = activations(x).clone().requires_grad_()
        with mode or nullcontext():
            h = net(leaf)
        if not getattr(h, "requires_grad", False):
            told = f"a tensor that depends on the activations, made with gradients, got a {type(h).__name__}"
            raise ConfigError(f"a network must give {told} that does not")
        with torch.no_grad():
            signal = seeded(score_signal, h.detach().to(wide(h)), units, weights).to(h.dtype)
        if len(signal) == 0:
            slope = signal.new_zeros(0, *x.shape)
        elif h is leaf:  # nothing between the map and the score
            slope = signal
        else:
            (slope,) = torch.autograd.grad(h, leaf, signal, is_grads_batched=True)
    return slope.detach().to(wide(x))


def score_signal(h: Tensor, units: Tensor) -> Tensor:
    """The signal whose product with h is each unit's score, meaned over locations: (K, N, D, ...)."""
    places = h.shape[2:].numel()
    return (units / places).view(len(units), 1, units.shape[1], *(1,) * (h.dim() - 2)).expand(-1, *h.shape)


def epsilon(
    tape: Tape, func: Rule, input: Tensor, weight: Tensor, bias: Tensor | None = None, **_: Any
) -> Tensor:
    """Inputs inherit in proportion to x_j w_ij of either sign; the bias takes its share and a little is lost."""
    value = func(input, weight, bias)
    seen = input.clone()
    per_unit = (value + EPSILON * value.sign() + EPSILON * (value == 0)).reciprocal()
    move = Move(input, lambda p: seen * transpose(func, seen, weight)(p * per_unit))
    return tape.record(value, move, gate=0)


class ReluRule(TorchFunctionMode):
    """Within it a ReLU hands back the positive part of what comes: only where it was on (gated), or everywhere.

    Smooth activations keep their own derivative, after the same clamp. An in-place ReLU must be used by its
    result, as every module does.
    """

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RELUS and not self.gated:
            x = kwargs.pop("input", None) if "input" in kwargs else args[0]
            out = x + (func(x.detach().clone(), *args[1:], **kwargs) - x).detach()  # exactly the ReLU's value
        else:
            out = func(*args, **kwargs)
        if (func in _RELUS or func in _SMOOTH) and out.requires_grad:
            out.register_hook(lambda g: g.clamp(min=0))
        return out


class Gates(TorchFunctionMode):
    """Within it what only modulates is constant to a derivative: attention weights, spreads, gates. Values stay.

    An activation in place must be used by its result, as every module does.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Without the parameters, what requires a gradient is an activation.
        args, kwargs = tree_map_only(nn.Parameter, Tensor.detach, (args, kwargs or {}))
        if func in _ATTENDING:
            held = {k: v.detach() if k in ("query", "key") else v for k, v in kwargs.items()}
            return func(*(a.detach() for a in args[:2]), *args[2:], **held)
        if func in _SMOOTH:
            x = args[0] if args else kwargs.pop("input")
            out = func(x.detach().clone(), *args[1:], **kwargs)
            ratio = (out / torch.where(x == 0, 1, x.detach())).masked_fill(x == 0, 0)
            return _with_derivative_of(x * ratio, out)
        out = func(*args, **kwargs)
        if func in _GATES:
            return out.detach()
        if func in _NORMS:
            return _with_derivative_of(_with_constant_spread(func, args, kwargs), out)
        both = len(args) > 1 and all(torch.is_tensor(a) and a.requires_grad for a in args[:2])
        return out / 2 + out.detach() / 2 if func in PRODUCTS and both else out


def _with_derivative_of(linear: Tensor, out: Tensor) -> Tensor:
    """The very values of `out`."""
    return out.detach() + (linear - linear.detach())


def _with_constant_spread(func: Any, args: Any, kwargs: Any) -> Tensor:
    """A normalisation without its bias, linear in its input."""
    bound = signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    x, weight, eps = given["input"], given["weight"], given["eps"]
    if func is F.group_norm:
        x = x.unflatten(1, (given["num_groups"], -1))
        over = tuple(range(2, x.dim()))
    else:
        over = tuple(range(-len(given["normalized_shape"]), 0))
    x = x if func is F.rms_norm else x - x.mean(over, keepdim=True)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    scaled = x * (x.detach().square().mean(over, keepdim=True) + eps).rsqrt()
    if func is F.group_norm:
        scaled = scaled.flatten(1, 2)
        weight = None if weight is None else weight.view(-1, *(1,) * (scaled.dim() - 2))
    return scaled if weight is None else scaled * weight


class _Pooled(TorchFunctionMode):
    """Remembers what was averaged over the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.features: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in POOLS:
            self.features.append(args[0] if args else kwargs["input"])
        return func(*args, **(kwargs or {}))


def _last_features(net: Net, x: Tensor) -> Tensor:
    with _Pooled() as seen:
        h = net(x)
    if h.dim() > 2:
        return h
    for features in reversed(seen.features):
        if features.dim() > 2 and features.shape[:2] == h.shape:
            mean = features.mean(tuple(range(2, features.dim())))
            if torch.allclose(mean, h, rtol=1e-2, atol=1e-6):
                return features
    raise ConfigError(
        "class activation maps need a network that ends in an average over locations; this one does not: "
        "use grad_cam, or cut the network above the pool"
    )


def _refuse_tokens(x: Tensor, method: str) -> None:
    if activations(x).dim() != 4:
        raise ConfigError(
            f"{method} covers parts of a plane: activations must be (N, C, h, w), got {tuple(x.shape)}"
        )


def _masked_scores(
    net: Net, x: Tensor, units: Tensor, weights: Tensor | None, masks: Tensor
) -> tuple[Tensor, Tensor]:
    """The score (K, N), and those that masks (M, h, w) on the activations leave (M, K, N)."""
    x = x.detach().clone()
    h = net(x)
    h = h.to(wide(h))
    signal = seeded(score_signal, h, units, weights)

    def score(h: Tensor) -> Tensor:  # (M * N, D, ...) -> (M, K, N)
        return torch.einsum("kn...,mn...->mkn", signal, h.to(signal).unflatten(0, (-1, len(x))))

    parts = (m[:, None, None].to(x) * x for m in masks.split(BATCH))  # (M, N, C, h, w)
    return score(h)[0], torch.cat([score(net(part.flatten(0, 1))) for part in parts])


def _spread(gain: Tensor, masks: Tensor) -> Tensor:
    """Mean gain (M, K, N) of the masks (M, h, w) at each location, clamped at 0: (K, N, h, w)."""
    maps = torch.einsum("mkn,mhw->knhw", gain.to(masks), masks) * reciprocal(masks.sum(0))
    return maps.clamp(min=0)


def wide(x: Tensor) -> torch.dtype:
    """The dtype of maps: float32, float64 of float64."""
    return torch.promote_types(x.dtype, torch.float32)
