"""How word vectors and biases start: what all words share is taken out, and a word begins as seldom said."""

from pathlib import Path

import pytest
import torch

from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.config import VectorsConfig
from phrase_loc.training.setup import prepare, word_vectors
from tests.training.pairs import write_set
from tests.training.runs import run, settings

WORDS = ("man", "dog", "blorp", "red")


@pytest.fixture
def config(tmp_path: Path) -> VectorsConfig:
    """Vectors of a file in which all words lie far from 0, and one is missing."""
    rows = {"man": "11 10 10", "dog": "10 11 10", "red": "9 9 13", "cat": "50 50 50"}
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {row}\n" for word, row in rows.items()))
    return VectorsConfig(source="file", file=str(path))


def test_vectors_start_around_zero_with_length_one(config: VectorsConfig):
    found = word_vectors(config, Vocabulary(WORDS, (4, 3, 2, 1)), iter(()), 0)
    assert torch.allclose(found.sum(0), torch.zeros(3), atol=1e-6)
    assert found.square().sum(1).mean().item() == pytest.approx(1.0, rel=1e-6)
    assert found[2].tolist() == [0, 0, 0]  # a word without a vector stands where the mean is
    centred = torch.tensor([[1.0, 0, -1], [0, 1, -1], [-1, -1, 2]])
    assert torch.allclose(found[[0, 1, 3]], found[0, 0] * centred, atol=1e-5)


def test_vectors_that_are_all_alike_are_refused(config: VectorsConfig, tmp_path: Path):
    Path(config.file).write_text("man 0.1 0.7\ndog 0.1 0.7\nred 0.1 0.7\n")
    with pytest.raises(ConfigError, match=r"vectors\.source=file has no two different vectors"):
        word_vectors(config, Vocabulary(WORDS, (4, 3, 2, 1)), iter(()), 0)


@pytest.mark.parametrize("source", ["random", "free"])
def test_a_word_starts_as_seldom_said(source: str, tmp_path: Path):
    shards = write_set(tmp_path / "set", (30,))
    told = settings(tmp_path, shards, f"vectors={{source: {source}, size: 16, bias: -3.0}}")
    model = prepare(told, World()).model
    assert torch.allclose(
        model.word_bias(torch.arange(len(model.vocabulary))).mean(), torch.tensor(-3.0), atol=0.1
    )


def test_words_with_rows_of_their_own_have_no_near_words(tmp_path: Path):
    shards = write_set(tmp_path / "set", (30,))
    model = run(tmp_path / "a", shards, "vectors={source: free, size: 16}")
    with pytest.raises(ConfigError, match=r"words of model\.start have units of their own"):
        run(tmp_path / "b", shards, f"model.start={model}", "labels.unpunished=vectors")
