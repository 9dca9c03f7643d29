"""Words that a model was never trained on: their vectors by ridge regression from embeddings learned without images.

    x(w) = [3 * co-occurrence vector, GloVe / 6]     for words of the texts; only GloVe for all others
    v(w) = W x(w) + b,  W of least squares with a penalty, fitted on the trained words

The weights 3 and 1/6 and the penalty were chosen on val (docs/experiments.md). A word keeps its finished vector in 8
bits a number, since the two kinds of words have different maps.
"""

from functools import lru_cache

import torch
from torch import Tensor

from phrase_loc.models.model import TextToRegion
from phrase_loc.text import vectors as text_vectors
from phrase_loc.text.vectors import Alignment, align
from phrase_loc.text.vocabulary import build_vocabulary
from phrase_loc.training.setup import read_texts

TEXT_SCALE, GLOVE_SCALE = 3.0, 1 / 6
TEXT_SIZE = 300


def add_further_words(
    model: TextToRegion, count: int, paths: tuple[str, ...], penalty: float, seed: int
) -> None:
    """Gives a model `count` words beyond its vocabulary: those of the texts first, then GloVe's, by frequency.

    Args:
        model: with a trained vocabulary; changed in place.
        count: of words that are added, fewer if there are not so many.
        paths: files of captions, for the co-occurrence vectors; GloVe alone where there are none.
        penalty: of the ridge regression, lambda of min |XW - Y|^2 + lambda |W|^2.
        seed: of the co-occurrence vectors.
    """
    glove = text_vectors.glove_package()
    by_glove = {word: glove.vectors[i] * GLOVE_SCALE for i, word in enumerate(glove.words)}
    by_text = _text_vectors(paths, seed)
    by_both = {w: torch.cat([v, by_glove[w]]) for w, v in by_text.items() if w in by_glove}
    found = {**_mapped(model, by_both, penalty)}
    wanted = [w for w in by_glove if w.isalpha() and w not in found and w not in model.vocabulary]
    rest = {w: by_glove[w] for w in wanted[: max(0, count - len(found))]}
    trained = {w: by_glove[w] for w in model.vocabulary.words if w in by_glove}
    found |= _mapped(model, {**trained, **rest}, penalty)
    chosen = list(found)[:count]
    if not chosen:
        return
    size = model.words.vectors.shape[1]
    model.words.set_extra(
        torch.stack([found[w] for w in chosen]), Alignment(torch.eye(size), torch.zeros(size))
    )
    model.extra = tuple(chosen)


@lru_cache(maxsize=1)
def _text_vectors(paths: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    """Word -> its co-occurrence vector; kept, since each best model of a run is written with it."""
    texts = list(read_texts(paths))
    if not texts:
        return {}
    vocabulary = build_vocabulary(texts, size=30_000, min_count=5, pair_share=0.0)
    size = min(TEXT_SIZE, len(vocabulary) - 1)
    vectors = text_vectors.cooccurrence_vectors(texts, vocabulary, size, seed) * TEXT_SCALE
    return dict(zip(vocabulary.words, vectors, strict=True))


def _mapped(model: TextToRegion, source: dict[str, Tensor], penalty: float) -> dict[str, Tensor]:
    """Vectors in the model's space of the words of `source` that it was not trained on."""
    known = [i for i, word in enumerate(model.vocabulary.words) if word in source]
    others = [word for word in source if word not in model.vocabulary]
    if not known or not others:
        return {}
    words = model.vocabulary.words
    x = torch.stack([source[words[i]] for i in known]).double()
    spread = x.var(0, unbiased=False).mean().item()  # `align` counts its penalty in this unit
    bridge = align(x, model.words.vectors.detach()[known], ridge=penalty / max(spread, 1e-12))
    return dict(zip(others, bridge(torch.stack([source[word] for word in others])), strict=True))
