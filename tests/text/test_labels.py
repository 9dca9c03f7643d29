import pickle

from phrase_loc.text.vocabulary import Vocabulary, WordLabeller

WORDS = ("dog", "man", "guy", "player", "hot", "hot dog", "football player", "ball", "terrier", "cat")
VOCABULARY = Vocabulary(WORDS, tuple(range(100, 90, -1)))


def named(labels) -> dict[str, float]:
    return {WORDS[i]: strength for i, strength in zip(labels.ids, labels.strengths)}


def test_what_a_text_says_has_strength_one():
    labeller = WordLabeller(VOCABULARY)
    assert named(labeller(["a man and a dog", "A man, a man", "a ball"])) == {"dog": 1, "man": 1, "ball": 1}
    assert pickle.loads(pickle.dumps(labeller))(["a dog"]) == labeller(["a dog"])


def test_no_text_and_no_known_word_give_no_labels():
    labeller = WordLabeller(VOCABULARY)
    assert labeller([]).ids == labeller(["zorgle", ""]).ids == ()


def test_a_pair_gives_its_last_word_half_and_spares_its_first():
    labels = WordLabeller(VOCABULARY)(["football players"])
    assert named(labels) == {"football player": 1.0, "player": 0.5}
    labels = WordLabeller(VOCABULARY, last_word=0.0)(["a hot dog"])
    assert named(labels) == {"hot dog": 1.0}
    assert [WORDS[i] for i in labels.ignored] == ["dog", "hot"]
