"""Slow twins, written from the definitions, that the fast code must equal.

`MarkovChain` spells a network out as one matrix per layer over flattened neurons and multiplies the
transition probabilities of equation 5 of the paper entry by entry, in Python: no autograd, no convolution
routine, no batching.
"""

import torch
from torch import Tensor


def transition(weight: Tensor, x: Tensor) -> Tensor:
    """P(j | i) = x_j w+_ij / sum_k x_k w+_ik: (I, J), (J,) -> (I, J); zeros where nothing excites i."""
    rows = []
    for w in weight:
        excitation = [
            float(max(x_j, 0.0)) * float(max(w_j, 0.0))
            for x_j, w_j in zip(x.tolist(), w.tolist(), strict=True)
        ]
        whole = sum(excitation)
        rows.append([e / whole if whole > 0 else 0.0 for e in excitation])
    return torch.tensor(rows, dtype=torch.float64)


def dense_of(op, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear operation on tensors (1, *shape), a column for each input: (outputs, inputs)."""
    size = int(torch.tensor(shape).prod())
    return op(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


def seed_of(h: Tensor, unit: Tensor) -> Tensor:
    """Winners over the top features: (D,), (D,) -> (D,)."""
    return transition(unit[None], h)[0]


def hand_down(p: Tensor, *transitions: Tensor) -> Tensor:
    """p (I,) through the matrices (I, J), (J, L), ... from the top down."""
    for matrix in transitions:
        p = p.double() @ matrix
    return p
