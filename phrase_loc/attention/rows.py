"""Mass as a few rows of a tensor whose other rows have none."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Mass that is 0 but at some places of one axis of a tensor: of a class token, of the values among q, k and v.

    `values` (K, ...) with those places alone along the `axis` (counted without K), which has `size` places in all.
    """

    values: Tensor
    axis: int
    places: tuple[int, ...]
    size: int

    def dense(self) -> Tensor:
        """The mass (K, *shape) with its zeros."""
        shape, axis = list(self.values.shape), self.axis + 1
        shape[axis] = self.size
        return self.values.new_zeros(shape).index_copy_(axis, self.where(), self.values)

    def where(self) -> Tensor:
        """The places as a tensor."""
        return torch.tensor(self.places, device=self.values.device)

    def of(self, tensor: Tensor) -> Tensor:
        """Those places of a tensor that has the whole axis (and no K)."""
        return tensor.index_select(self.axis, self.where())


def summed(p: Any, channels: int | None) -> Any:
    """The sum of p (K, ...) over its axis of channels, which is left with length 1."""
    if isinstance(p, Rows) and p.axis != channels:
        return p._replace(values=summed(p.values, channels))
    p = dense(p)
    return p if channels is None or p.shape[channels + 1] == 1 else p.sum(channels + 1, keepdim=True)


def dense(p: Any) -> Any:
    """The mass with its zeros."""
    return p.dense() if isinstance(p, Rows) else p


def alike(a: Rows, b: Any) -> bool:
    """Whether the values of both stand at the same places."""
    return isinstance(b, Rows) and a[1:] == b[1:] and a.values.shape == b.values.shape
