"""The vectors that a model has for words: own rows for trained words, compact rows for all others.

Words outside the training vocabulary share the space of the trained ones by a linear map: their vector is
`rows[i] * scale[i] @ into`, with 8-bit rows of a public word embedding (50 numbers for GloVe 50d). A hundred
thousand of them take 5 MB.
"""

import torch
from torch import Tensor, nn

from phrase_loc.errors import DataError


class WordTable(nn.Module):
    """Row numbers to vectors: rows below V are the vocabulary's, row V + i the i-th extra word's.

    Args:
        vectors: (V,E) for the vocabulary.
        tuned: whether training may change them.
        extra: (M,F) vectors of further words in an embedding of their own, most frequent first.
        into: (F,E) map from that embedding to this one.
    """

    def __init__(
        self, vectors: Tensor, tuned: bool = False, extra: Tensor | None = None, into: Tensor | None = None
    ):
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone().float(), requires_grad=tuned)
        self.register_buffer("rows", torch.zeros(0, 1, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(0))
        self.register_buffer("into", torch.zeros(1, vectors.shape[1]))
        if extra is not None and into is not None:
            self.set_extra(extra, into)

    @torch.no_grad()
    def set_extra(self, extra: Tensor, into: Tensor) -> None:
        """Replaces the further words: (M,F) vectors, kept in 8 bits a number, and their (F,E) map."""
        if into.shape != (extra.shape[1], self.vectors.shape[1]):
            raise DataError(
                f"the map of further words must be ({extra.shape[1]}, {self.vectors.shape[1]}), got "
                f"{tuple(into.shape)}; fit it from their embedding to the model's"
            )
        device = self.vectors.device
        self.rows, self.scale = (t.to(device) for t in quantize(extra.float()))
        self.into = into.detach().clone().float().to(device)

    def __len__(self) -> int:
        return len(self.vectors) + len(self.rows)

    def forward(self, ids: Tensor) -> Tensor:
        """(K,) row numbers -> (K,E)."""
        trained = len(self.vectors)
        if not len(self.rows):
            return self.vectors[ids]
        own = self.vectors[ids.clamp(max=trained - 1)]
        place = (ids - trained).clamp(min=0)
        further = (self.rows[place].to(own.dtype) * self.scale[place, None]) @ self.into
        return torch.where((ids < trained)[:, None], own, further)


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(M,F) floats -> (M,F) int8 and (M,) scales, row = int8 * scale; the error is at most half a scale."""
    scale = rows.abs().amax(1).clamp_min(torch.finfo(torch.float16).tiny) / 127
    scale = scale.half().float()  # as it is stored
    return (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def fit_map(source: Tensor, target: Tensor, weights: Tensor | None = None, ridge: float = 1e-3) -> Tensor:
    """The (F,E) map of least squares from embedding `source` (W,F) to `target` (W,E) of the same W words.

    Args:
        source: vectors of words in the embedding of the further words.
        target: vectors of the same words in the model's.
        weights: (W,) >= 0, how much each word counts; frequent words are known best.
        ridge: strength of the pull to zero, relative to the mean variance of `source`.
    """
    source, target = source.double(), target.double()
    weighted = source if weights is None else source * weights.double()[:, None]
    gram = weighted.T @ source
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, weighted.T @ target).float()
