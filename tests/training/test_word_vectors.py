"""How word vectors and biases start: what all words share is taken out, and a word begins as seldom said."""

from pathlib import Path

import pytest
import torch

from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training import setup
from phrase_loc.training.config import VectorsConfig
from phrase_loc.training.setup import open_data, prepare, word_vectors
from tests.training.pairs import write_set
from tests.training.runs import settings

WORDS = ("man", "dog", "blorp", "red")


def started(monkeypatch: pytest.MonkeyPatch, rows: dict[str, list[float]]) -> torch.Tensor:
    """The start of WORDS by GloVe vectors that are these."""
    table = {word: torch.tensor(row) for word, row in rows.items()}
    monkeypatch.setattr(setup.text_vectors, "glove_package", lambda words: table)
    return word_vectors(VectorsConfig(source="glove"), Vocabulary(WORDS, (4, 3, 2, 1)), iter(()), 0)


def test_vectors_start_around_zero_with_length_one(monkeypatch: pytest.MonkeyPatch):
    """All words lie far from 0, and one is missing."""
    rows = {"man": [11.0, 10, 10], "dog": [10.0, 11, 10], "red": [9.0, 9, 13], "cat": [50.0, 50, 50]}
    found = started(monkeypatch, rows)
    assert torch.allclose(found.sum(0), torch.zeros(3), atol=1e-6)
    assert found.square().sum(1).mean().item() == pytest.approx(1.0, rel=1e-6)
    assert found[2].tolist() == [0, 0, 0]  # a word without a vector stands where the mean is
    centred = torch.tensor([[1.0, 0, -1], [0, 1, -1], [-1, -1, 2]])
    assert torch.allclose(found[[0, 1, 3]], found[0, 0] * centred, atol=1e-5)


def test_vectors_that_are_all_alike_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"vectors\.source=glove has no two different vectors"):
        started(monkeypatch, {word: [0.1, 0.7] for word in ("man", "dog", "red")})


@pytest.mark.parametrize("source", ["random", "free"])
def test_a_word_starts_as_seldom_said(source: str, tmp_path: Path):
    shards = write_set(tmp_path / "set", (30,))
    vectors = f"vectors={{source: {source}, size: 16, bias: -3.0}}"
    told = settings(tmp_path, shards, vectors, "model.start=none")
    model = prepare(told, World(), open_data(told, World())).model
    assert torch.allclose(
        model.word_bias(torch.arange(len(model.vocabulary))).mean(), torch.tensor(-3.0), atol=0.1
    )
