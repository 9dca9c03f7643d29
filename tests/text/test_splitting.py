import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phrase_loc.text.splitting import split_phrases

ONE = [
    "a big, brown dog",
    "a weird, lumpy chair",
    "an old, tall tree",
    "big, brown dog",
    "a small, fluffy, white dog",
    "a long, winding road",
    "a dirty, cotton shirt",
    "a red, white and blue flag",
    "a red, white, and blue flag",
    "a man in a red, white and blue shirt",
    "a woman with long, curly hair",
    "a tired, long-haired, wide-eyed cat",
    "a man, in the street",
    "a man, wearing a hat",
    "1,000 people",
    "two tall, slender women",
    "a St. Bernard",
    "Mr. Bean",
    "a 3.5 inch screen",
    "a red hat",
    "犬",
]
SEVERAL = [
    ("a dog, a cat", ["a dog", "a cat"]),
    ("dog,cat", ["dog", "cat"]),
    ("a dog, cat", ["a dog", "cat"]),
    ("the man, red hat", ["the man", "red hat"]),
    ("a dog, two cats", ["a dog", "two cats"]),
    ("a dog, 2 cats", ["a dog", "2 cats"]),
    ("a dog, a cat, and a bird", ["a dog", "a cat", "a bird"]),
    ("dogs, cats and birds", ["dogs", "cats and birds"]),
    ("dogs, cats, and birds", ["dogs", "cats", "birds"]),
    ("a big, brown dog, a cat", ["a big, brown dog", "a cat"]),
    ("a cat, a big, brown dog", ["a cat", "a big, brown dog"]),
    ("red, green, blue", ["red", "green", "blue"]),
    ("red, dog", ["red", "dog"]),
    ("a dog. a cat.", ["a dog", "a cat"]),
    ("A man in a hat. Two dogs!", ["A man in a hat", "Two dogs"]),
    ("a dog; a cat\na bird", ["a dog", "a cat", "a bird"]),
    ("a dog，a cat。a bird", ["a dog", "a cat", "a bird"]),
    ("  a dog ,, a cat , ", ["a dog", "a cat"]),
    ("a dog.", ["a dog"]),
    ('"a dog"', ["a dog"]),
    ("...", ["..."]),
    ("  ", []),
    ("", []),
]


@pytest.mark.parametrize("text", ONE)
def test_one_phrase_stays_whole(text: str):
    assert split_phrases(text) == [text]


@pytest.mark.parametrize("text, phrases", SEVERAL)
def test_commas_and_full_stops_separate_phrases(text: str, phrases: list[str]):
    assert split_phrases(text) == phrases


@given(st.text(alphabet="ab ,.;\n—'and", max_size=60) | st.text(max_size=40))
@example("\x1f")
@example("a dog\x1f.\u2003")
def test_phrases_are_stretches_of_the_text(text: str):
    phrases = split_phrases(text)
    assert bool(phrases) == bool(text.strip())
    assert all(phrase and phrase in text for phrase in phrases)


def test_a_long_text_takes_no_time_of_its_square():
    assert len(split_phrases("a dog, a cat. " * 20_000)) == 40_000
    assert split_phrases("big, " * 20_000 + "brown dog")[0].endswith("big, brown dog")
    assert len(split_phrases(" ," * 100_000)) == 1
