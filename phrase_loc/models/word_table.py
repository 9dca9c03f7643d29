"""The vectors that a model has for words: own rows for trained words, compact rows for all others.

Words outside the training vocabulary keep eight-bit rows of a public embedding (50 numbers for GloVe 50d) and
share the space of the trained ones by one affine map: their vector is `rows[i] * scale[i] @ into + offset`. A
hundred thousand of them take 5 MB.
"""

import torch
from torch import Tensor, nn

from phrase_loc.errors import DataError
from phrase_loc.text.tables import Alignment, quantise


class WordTable(nn.Module):
    """Row numbers to vectors: rows below V are the vocabulary's, row V + i the i-th further word's.

    Args:
        vectors: (V,E) for the vocabulary.
        tuned: whether training may change them.
    """

    rows: Tensor
    scale: Tensor
    into: Tensor
    offset: Tensor

    def __init__(self, vectors: Tensor, tuned: bool = False):
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone().float(), requires_grad=tuned)
        self.reserve(0, 1)

    def reserve(self, words: int, numbers: int) -> None:
        """Makes room for M further words of F numbers each."""
        embedding, device = self.vectors.shape[1], self.vectors.device
        self.register_buffer("rows", torch.zeros(words, numbers, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.zeros(words, device=device))
        self.register_buffer("into", torch.zeros(numbers, embedding, device=device))
        self.register_buffer("offset", torch.zeros(embedding, device=device))

    @torch.no_grad()
    def set_extra(self, vectors: Tensor, alignment: Alignment) -> None:
        """Replaces the further words: (M,F) vectors, most frequent first, and their map into this space."""
        expected = (vectors.shape[1], self.vectors.shape[1])
        if alignment.matrix.shape != expected:
            raise DataError(
                f"the map of further words must be {expected}, got {tuple(alignment.matrix.shape)}; "
                "fit it from their embedding to the model's"
            )
        self.reserve(*vectors.shape)
        table = quantise(vectors.float())
        for own, new in (
            (self.rows, table.codes),
            (self.scale, table.scale),
            (self.into, alignment.matrix),
            (self.offset, alignment.bias),
        ):
            own.copy_(new)

    def __len__(self) -> int:
        return len(self.vectors) + len(self.rows)

    def forward(self, ids: Tensor) -> Tensor:
        """(K,) row numbers -> (K,E)."""
        trained = len(self.vectors)
        if not len(self.rows):
            return self.vectors[ids]
        own = self.vectors[ids.clamp(max=trained - 1)]
        place = (ids - trained).clamp(min=0)
        further = (self.rows[place].to(own.dtype) * self.scale[place, None]) @ self.into + self.offset
        return torch.where((ids < trained)[:, None], own, further)
