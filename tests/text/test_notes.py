import pytest

from phrase_loc.structures import Word
from phrase_loc.text.english import tokens
from phrase_loc.text.parsing import negation, relations
from phrase_loc.text.phrases import note

DOG, HAT, ZORG, LORRY = (
    Word("dog", True, 0.5),
    Word("hat", True, 0.5),
    Word("zorg", False, 0.0),
    Word("lorry", False, 0.0),
)


@pytest.mark.parametrize(
    "phrase, words, said",
    [
        ("a dog", [DOG], None),
        ("a dog lorry", [DOG, LORRY], "'lorry' is not known; only 'dog' was looked for"),
        (
            "x",
            [DOG, HAT, ZORG, LORRY],
            "'zorg' and 'lorry' are not known; only 'dog' and 'hat' were looked for",
        ),
        ("a zorg", [ZORG], "no word of it is known to the model (zorg); try another word"),
        ("umbrela", [Word("umbrella", True, 1.0, "umbrela")], "'umbrela' is read as 'umbrella'"),
        (
            "a goldfish",
            [Word("gold", True, 0.5, "goldfish"), Word("fish", True, 0.5, "goldfish")],
            "'goldfish' is read as 'gold fish'",
        ),
    ],
)
def test_note(phrase: str, words: list[Word], said: str | None):
    assert note(tokens(phrase), words) == said


@pytest.mark.parametrize(
    "phrase, told",
    [
        ("the man on the left", "left"),
        ("a dog left of the sofa", "left"),
        ("a man who is left of a tree", "left"),
        ("his left hand", "left"),
        ("the left hand side of the road", "left hand side"),
        ("the left-hand man", "left-hand"),
        ("top left dog", "top left"),
        ("a woman in the upper right corner", "upper right corner"),
        ("the top shelf", "top"),
        ("the top of the wall", "top"),
        ("the girl in front", "front"),
        ("a man at the back", "back"),
        ("people in the background", "background"),
        ("the closest dog", "closest"),
        ("a dog behind a fence", "behind"),
        ("a dog next to a man", "next to"),
        ("the second man", "second"),
        ("the 3rd man", "3rd"),
        ("twelve men", "twelve"),
        ("number 7", "7"),
        ("twenty-one men", "twenty-one"),
        ("dozens of eggs", "dozens"),
        ("a one-eyed man", ""),
        ("a man who left", ""),
        ("a man left the room", ""),
        ("a bike left in the rain", ""),
        ("a dog left alone", ""),
        ("a man far left in the photo", "far left"),
        ("the front wheel", ""),
        ("the back door", ""),
        ("a right turn", ""),
        ("his upper body", ""),
        ("a red top", ""),
        ("a woman in a black top and jeans", ""),
        ("a girl in the top", ""),
        ("a child on her back", ""),
        ("the front yard", ""),
        ("the background", ""),
        ("the other man", ""),
    ],
)
def test_what_tells_where_or_which_is_named(phrase: str, told: str):
    assert " ".join(relations(tokens(phrase))) == told


def test_a_relation_is_said_in_one_sentence():
    said = "'second' tells which or how many and 'left' tells where, which the model does not read"
    phrase = tokens("the second dog from the left")
    assert note(phrase, [DOG]) == f"{said}; 'dog' was looked for anywhere"
    assert note(phrase, [DOG, ZORG]) == f"'zorg' is not known; only 'dog' was looked for. {said}"


def test_many_words_are_not_all_listed():
    said = note(["x"], [DOG, *(Word(f"zorg{n}", False, 0.0) for n in range(200))])
    assert said is not None
    assert said.startswith("'zorg0', 'zorg1', 'zorg2', 'zorg3', 'zorg4' and 195 more are not known")
    assert len(said) < 120


def test_what_is_cut_off_is_said():
    assert note(["dog"] * 256, [DOG]) == "no more than the first 256 words were read"


@pytest.mark.parametrize(
    "phrase, word",
    [
        ("no cat", "no"),
        ("not a dog", "not"),
        ("a man without a hat", "without"),
        ("nobody", "nobody"),
        ("everything but the dog", "everything but"),
        ("no one", "no"),
        ("no-one", "no-one"),
        ("a man who isn't tall", "isn't"),
        ("a man who isn’t tall", "isn't"),
        ("a cat-free room", "cat-free"),
        ("a room free of cats", "free"),
        ("a man w/o shoes", "without"),
        ("never", "never"),
        ("neither cat nor dog", "neither"),
        ("a knot", None),
        ("a notebook", None),
        ("a free chair", None),
        ("a freestanding wall", None),
        ("a snowman", None),
    ],
)
def test_negation_is_recognised_and_said(phrase: str, word: str | None):
    assert negation(tokens(phrase)) == word
    said = note(tokens(phrase), [DOG])
    assert (
        (said is None)
        if word is None
        else said is not None and said.startswith(f"{word!r} is read as a negation")
    )
