import pickle

import pytest
import torch

from phrase_loc.text.vectors import near_vectors
from phrase_loc.text.vocabulary import Vocabulary, WordLabeller
from phrase_loc.training.losses import balance

WORDS = ("dog", "man", "guy", "player", "hot", "hot dog", "football player", "ball", "terrier", "cat")
VOCABULARY = Vocabulary(WORDS, tuple(range(100, 90, -1)))


def named(labels) -> dict[str, float]:
    return {WORDS[i]: strength for i, strength in zip(labels.ids, labels.strengths)}


def test_strength_is_the_share_of_agreeing_texts():
    labels = WordLabeller(VOCABULARY, agree=2)(["a man and a dog", "A man, a man", "a ball"])
    assert named(labels) == {"man": 1.0, "dog": 0.5, "ball": 0.5}
    assert labels.captions == ((1, 0), (1, 1), (7,))


def test_one_text_agrees_with_itself():
    assert named(WordLabeller(VOCABULARY, agree=3)(["a dog"])) == {"dog": 1.0}


def test_no_text_and_no_known_word_give_no_labels():
    labeller = WordLabeller(VOCABULARY)
    assert labeller([]).ids == labeller(["zorgle", ""]).ids == ()


def test_a_pair_gives_its_last_word_half_and_spares_its_first():
    labels = WordLabeller(VOCABULARY)(["football players"])
    assert named(labels) == {"football player": 1.0, "player": 0.5}
    labels = WordLabeller(VOCABULARY, last_word=0.0)(["a hot dog"])
    assert named(labels) == {"hot dog": 1.0}
    assert [WORDS[i] for i in labels.ignored] == ["dog", "hot"]


def test_synonyms_are_ignored_unless_said():
    labeller = WordLabeller(VOCABULARY, ignored_negatives={1: (2, 3), 0: (8,)})
    assert labeller(["a man"]).ignored == (2, 3)
    assert labeller(["a man and a guy"]).ignored == (3,)
    copy = pickle.loads(pickle.dumps(labeller))
    assert copy(["a dog and a man"]) == labeller(["a dog and a man"])


def test_balance_lifts_rare_words_and_keeps_the_mean():
    counts = [1000, 100, 10, 0]
    weights = balance(counts, power=0.5, most=100)
    assert (weights.diff() > 0).all()
    assert weights[2] / weights[0] == pytest.approx(10)
    seen = torch.tensor([1000.0, 100, 10, 1])
    assert (weights * seen).sum() / seen.sum() == pytest.approx(1)
    assert torch.allclose(balance(counts, power=0), torch.ones(4))
    even = balance([1000, 100, 10], power=1, most=1e9) * torch.tensor([1000.0, 100, 10])
    assert torch.allclose(even, even[0].expand(3))
    capped = balance([10**9, 100, 1], power=1, most=5)
    assert capped.max() / capped.min() == pytest.approx(25)


def test_near_vectors_are_mutual_and_limited():
    vectors = torch.tensor([[1.0, 0], [0.99, 0.1], [0, 1], [0, 0], [1, 0.01]])
    near = near_vectors(vectors, least=0.9, most=1, chunk=2)
    assert near == {0: (4,), 1: (4,), 4: (0,)}
    assert near_vectors(vectors, least=0.9, chunk=3) == near_vectors(vectors, least=0.9)
