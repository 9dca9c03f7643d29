"""Positive weights made once, for a network that is asked many times.

`mwp(above, ...)` makes max(w, 0) of every weight above the map anew on each call: nothing beside a forward
pass for ResNet-50's last stage (15 million weights), as much as the pass itself for VGG16 (124 million).
`keep_positive(above)` holds them, at the price of that much memory, and is used in its place:

    above = keep_positive(above)
    maps = contrastive_mwp(above, activations, units)
"""

from typing import Any

import torch
from torch import Tensor, nn

from phrase_loc.attention.chain import positive_part


class KeptPositive:
    """A network with the positive parts of its weights beside it; call it like the network.

    A weight that was changed in place (an optimizer's step, `load_state_dict`) or moved is noticed by its
    version and its part made again. Only writing through `weight.data` goes unnoticed: make a new one then.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self._parts: dict[int, tuple[Tensor, tuple[Any, ...], Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """What the network gives."""
        return self.net(x)

    def get(self, weight: Tensor) -> Tensor:
        """max(weight, 0), kept or made now; safe to call from many threads."""
        # The weight itself is held, so its id is not given away to another tensor.
        stamp = (weight.data_ptr(), weight.dtype, None if weight.is_inference() else weight._version)
        held = self._parts.get(id(weight))
        if held is None or held[1] != stamp:
            held = (weight, stamp, positive_part(weight))
            if isinstance(weight, nn.Parameter):  # not a tensor computed on the way
                self._parts[id(weight)] = held
        return held[2]


def keep_positive(net: nn.Module) -> KeptPositive:
    """Make the positive part of every weight matrix and kernel of `net` now, and hold them."""
    kept = KeptPositive(net)
    with torch.inference_mode(False):
        for weight in net.parameters():
            if weight.dim() > 1:
                kept.get(weight)
    return kept
