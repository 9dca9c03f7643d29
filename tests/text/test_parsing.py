import re
from pathlib import Path

import pytest

from phrase_loc.text.parsing import Role, parse


def heads(phrase: str) -> list[str]:
    return [token.text for token in parse(phrase) if token.role is Role.HEAD]


HEADS = [
    ("a red hat", "hat"),
    ("two men", "men"),
    ("the man 's red hat on the table", "hat"),
    ("a group of young people", "people"),
    ("a pair of jeans", "jeans"),
    ("the side of a rocky hill", "hill"),
    ("a photo of a dog", "dog"),
    ("one of the dogs", "dogs"),
    ("a crowd of people", "crowd people"),
    ("a cup of coffee", "cup coffee"),
    ("a man wearing a blue shirt", "man"),
    ("a woman in a red dress", "woman"),
    ("a man is riding a horse", "man"),
    ("a dog jumps over a log", "dog"),
    ("a running man", "man"),
    ("a snow covered mountain", "mountain"),
    ("a boy dressed in green", "boy"),
    ("two dogs and a child", "dogs child"),
    ("a black and white dog", "dog"),
    ("tables and chairs", "tables chairs"),
    ("his mouth open", "mouth"),
    ("red and black", "red black"),
    ("all black", "black"),
    ("a toy", "toy"),
    ("an orange", "orange"),
    ("she", "woman"),
    ("others", "people"),
    ("a girl outside", "girl"),
    ("a black-and-tan dog", "dog"),
    ("the wheel of a vehicle", "wheel"),
    ("it", ""),
    ("the other one", "one"),
    ("the black one", "black"),
    ("two groups of people", "people"),
    ("rows of seats", "rows seats"),
    ("one in red", "one"),
    ("a dog toy", "toy"),
    ("a toy dog", "dog"),
    ("a multicolor toy", "toy"),
    ("25", ""),
    ("", ""),
]


@pytest.mark.parametrize("phrase, expected", HEADS)
def test_head_nouns(phrase: str, expected: str):
    assert heads(phrase) == expected.split()


def test_roles_fall_from_head_to_context():
    roles = {token.text: token.role for token in parse("a girl's red hat on the wooden table")}
    assert roles == {
        "girl": Role.MODIFIER,
        "red": Role.MODIFIER,
        "hat": Role.HEAD,
        "wooden": Role.CONTEXT,
        "table": Role.CONTEXT,
    }


def test_each_phrase_of_our_own_captions_has_a_head():
    text = (Path(__file__).parent / "captions.txt").read_text(encoding="utf-8")
    phrases = re.findall(r"\[/EN#\d+/\S+ ([^\]]*)\]", text)
    assert len(phrases) > 50
    assert all(heads(phrase) for phrase in phrases)


def test_a_phrase_with_content_words_has_a_head(shared_dir):
    """On every marked phrase of the val captions: no phrase loses its head to a cut."""
    texts = [
        p.read_text(encoding="utf-8")
        for p in (shared_dir / "data/flickr30k_entities_val/Sentences").glob("*.txt")
    ]
    phrases = [m for text in texts for m in re.findall(r"\[/EN#\d+/\S+ ([^\]]*)\]", text)]
    assert len(phrases) > 3000
    assert all(heads(phrase) for phrase in phrases if parse(phrase))
