import pickle

import pytest
import torch

from phrase_loc.errors import ConfigError
from phrase_loc.text.labels import WordLabeller, balance, hypernyms, near_vectors, paraphrases, union
from phrase_loc.text.vocabulary import Vocabulary

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
    labeller = WordLabeller(VOCABULARY, unpunished={1: (2, 3), 0: (8,)})
    assert labeller(["a man"]).ignored == (2, 3)
    assert labeller(["a man and a guy"]).ignored == (3,)
    copy = pickle.loads(pickle.dumps(labeller))
    assert copy(["a dog and a man"]) == labeller(["a dog and a man"])


@pytest.mark.parametrize("options", [{"agree": 0}, {"last_word": 1.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        WordLabeller(VOCABULARY, **options)


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
    with pytest.raises(ConfigError):
        balance([], power=0.5)
    with pytest.raises(ConfigError):
        balance([1], power=2)


def test_paraphrases_are_found_and_companions_are_not():
    """'terrier' and 'dog' name one thing in two texts; 'ball' stands beside both in one text."""
    dogs = [["a terrier with a ball", "a dog with a ball", "the dog"]] * 30
    plain = [["a man", "the guy"], ["a man with a ball", "a man"], ["a cat", "the cat"]] * 30
    found = paraphrases(dogs + plain, VOCABULARY)
    names = {WORDS[i]: {WORDS[j] for j in others} for i, others in found.items()}
    assert "terrier" in names["dog"]
    assert "dog" in names["terrier"]
    assert "guy" in names["man"]
    assert "ball" not in names.get("dog", set()) | names.get("terrier", set())
    assert "cat" not in names
    assert paraphrases([["a dog"], ["a terrier"]] * 50, VOCABULARY) == {}
    assert paraphrases([], VOCABULARY) == {}


def test_near_vectors_are_mutual_and_limited():
    vectors = torch.tensor([[1.0, 0], [0.99, 0.1], [0, 1], [0, 0], [1, 0.01]])
    near = near_vectors(vectors, least=0.9, most=1, chunk=2)
    assert near == {0: (4,), 1: (4,), 4: (0,)}
    assert near_vectors(vectors, least=0.9, chunk=3) == near_vectors(vectors, least=0.9)


def test_union_merges():
    assert union({0: (1,)}, {0: (2, 1), 3: (0,)}) == {0: (1, 2), 3: (0,)}


class Sense:
    """A WordNet sense: its words, and the sense above it."""

    def __init__(self, words: str, above: "Sense | None" = None):
        self.words, self.above = words.split(), above

    def lemma_names(self) -> list[str]:
        return self.words

    def hypernyms(self) -> list["Sense"]:
        return [self.above] if self.above else []


class WordNet:
    """Stands for NLTK's reader: terrier < hunting_dog < dog < animal, hot_dog < food."""

    def __init__(self) -> None:
        dog = Sense("dog domestic_dog", Sense("animal cat"))
        terrier = Sense("terrier", Sense("hunting_dog", dog))
        self.senses = {"dog": dog, "terrier": terrier, "hot_dog": Sense("Hot_Dog")}

    def ensure_loaded(self) -> None:
        """It is there."""

    def synsets(self, word: str, pos: str) -> list[Sense]:
        assert pos == "n"
        return [self.senses[word]] if word in self.senses else []


def test_hypernyms_are_words_above_and_below(monkeypatch):
    monkeypatch.setattr("nltk.corpus.wordnet", WordNet())
    dog, terrier, cat = (WORDS.index(word) for word in ("dog", "terrier", "cat"))
    assert hypernyms(VOCABULARY) == {dog: (terrier, cat), terrier: (dog, cat), cat: (dog, terrier)}
    assert hypernyms(VOCABULARY, levels=1) == {dog: (cat,), cat: (dog,)}


def test_hypernyms_without_wordnet_are_refused(monkeypatch):
    def missing(self) -> None:
        raise LookupError

    monkeypatch.setattr(WordNet, "ensure_loaded", missing)
    monkeypatch.setattr("nltk.corpus.wordnet", WordNet())
    with pytest.raises(ConfigError, match=r"nltk\.downloader wordnet`"):
        hypernyms(VOCABULARY)
