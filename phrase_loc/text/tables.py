"""Tables of word vectors: one space brought into another, and eight-bit storage for the words of a released
model.

A model learns vectors for its own V words only. A ridge map from GloVe into the learned space, fitted on
the words both know, gives every other GloVe word a place there; the table of those ships with the model as
int8.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from phrase_loc.errors import DataError


@dataclass(frozen=True)
class Alignment:
    """An affine map between vector spaces, `x @ matrix + bias`.

    Attributes:
        matrix: (S, E).
        bias: (E,).
    """

    matrix: Tensor
    bias: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """(..., S) -> (..., E)."""
        return vectors @ self.matrix + self.bias


def align(source: Tensor, target: Tensor, ridge: float = 1.0, weights: Tensor | None = None) -> Alignment:
    """The ridge regression of `target` on `source`, row by row.

    Args:
        source: (A, S) vectors of the words both spaces know.
        target: (A, E) their vectors in the other space.
        ridge: penalty on the map, in units of the mean squared length of a source feature; larger is
        flatter.
        weights: (A,) importance of the words, such as the square root of their counts; equal when None.

    Raises:
        DataError: the tables differ in length, or are empty.
    """
    if len(source) != len(target) or not len(source):
        raise DataError(
            f"an alignment needs the same words on both sides, got {len(source)} and {len(target)}"
        )
    x, y = source.double(), target.double()
    w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
    w = w[:, None] / w.sum()
    mean_x, mean_y = (w * x).sum(0), (w * y).sum(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ (w * x)
    penalty = ridge * gram.diagonal().mean().clamp_min(1e-12) / max(1, len(source))
    matrix = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=torch.float64), x.T @ (w * y))
    return Alignment(matrix.float(), (mean_y - mean_x @ matrix).float())


@dataclass(frozen=True)
class QuantisedVectors:
    """Vectors as eight-bit integers with a scale a row: a quarter of float32, error below 0.4 % of a row's
    peak.

    Attributes:
        codes: (A, E) int8.
        scale: (A,) float16.
    """

    codes: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(K,) rows -> (K, E) float32; only these are decoded."""
        return self.codes[rows].float() * self.scale[rows].float()[..., None]


def quantise(vectors: Tensor) -> QuantisedVectors:
    """(A, E) float -> int8 codes and scales; a row of zeros stays zeros.

    Raises:
        DataError: a vector is not finite.
    """
    if not torch.isfinite(vectors).all():
        raise DataError("cannot store word vectors that are not finite; training has diverged")
    scale = (vectors.abs().amax(1) / 127).clamp(1e-7, 65_000).half()
    codes = (vectors / scale.float()[:, None]).round().clamp(-127, 127)
    return QuantisedVectors(codes.to(torch.int8), scale)
