"""Words that the user says how to read."""

import pytest

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.text.phrases import PhraseEncoder, read_synonyms
from phrase_loc.text.vocabulary import Vocabulary

WORDS = Vocabulary(
    ("man", "truck", "dog", "red", "boy", "fire truck", "bread", "pan"), (90, 80, 70, 60, 50, 40, 30, 20)
)
SYNONYMS = {
    "lorry": "truck", "perro": "dog", "rojo": "red", "un": "a", "Niño": "boy", "Feuerwehrauto": "fire truck",
    "pan": "bread",
}  # fmt: skip
ENCODER = PhraseEncoder(WORDS, synonyms=SYNONYMS)


@pytest.mark.parametrize(
    ("phrase", "read", "like"),
    [
        ("a lorry", {"truck": "lorry"}, "a truck"),
        ("two red lorries", {"truck": "lorries", "red": None}, "two red trucks"),
        ("un perro rojo", {"dog": "perro", "red": "rojo"}, "a dog red"),
        ("un niño", {"boy": "nino"}, "a boy"),
        ("ein Feuerwehrauto", {"fire truck": "feuerwehrauto", "ein": None}, "ein fire truck"),
        ("a pan", {"bread": "pan"}, "a bread"),
        ("a dog", {"dog": None}, "a dog"),
    ],
)
def test_they_are_read_and_said(phrase, read, like):
    found, plain = ENCODER.encode(phrase), PhraseEncoder(WORDS).encode(like)
    assert {word.text: word.misspelt for word in found.words} == read
    assert (found.ids, found.weights, found.head_known) == (plain.ids, plain.weights, plain.head_known)
    for word, written in read.items():
        assert written is None or f"'{written}' is read as '{word}'" in (found.note or "")


@pytest.mark.parametrize(
    ("synonyms", "sentence"),
    [
        ({"lorry": "zorglub"}, "'lorry' cannot be read as 'zorglub': the model does not know 'zorglub'"),
        ({"fire engine": "truck"}, "stands for one word, got 'fire engine'"),
        ({"lorry": 3}, "synonyms map words to words"),
        ([("lorry", "truck")], "synonyms map words to words"),
        ({"lorry": "!"}, "the model does not know an empty text"),
    ],
)
def test_what_cannot_be_read_is_refused(synonyms, sentence):
    with pytest.raises(ConfigError, match=sentence):
        PhraseEncoder(WORDS, synonyms=synonyms)


def test_the_file(tmp_path):
    (path := tmp_path / "s.txt").write_text(
        "\ufeff# ours\nlorry: truck; perro : dog\n\n perro: dog\n", "utf-8"
    )
    assert read_synonyms(path) == {"lorry": "truck", "perro": "dog"}
    for text, sentence in (
        ("lorry\n", "expected `word: known word`"),
        ("a: b\na: c\n", "two meanings"),
        ("#\n", "is empty"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=sentence):
            read_synonyms(path)


@pytest.mark.parametrize(
    ("british", "american"),
    [("fibre", "fiber"), ("favourite", "favorite"), ("grey", "gray"), ("jewellery", "jewelry")],
)
def test_british_spelling(british, american):
    model = PhraseEncoder(Vocabulary((american,), (9,)))
    assert model.encode(british).words[0].text == american
