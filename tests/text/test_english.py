import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phrase_loc.text.english import MAX_LETTERS, MAX_TOKENS, canonical, normalise, runs, spellings, tokens

PLURALS = """
 men:man women:woman firemen:fireman children:child grandchildren:grandchild feet:foot teeth:tooth
geese:goose leaves:leaf knives:knife wolves:wolf headscarves:headscarf people:people dogs:dog buses:bus
boxes:box dresses:dress glasses:glasses sunglasses:sunglasses jeans:jeans pants:pants
sweatpants:sweatpants shorts:shorts benches:bench brushes:brush horses:horse houses:house noses:nose
vases:vase blouses:blouse cactuses:cactus circuses:circus potatoes:potato shoes:shoe horseshoes:horseshoe
toes:toe canoes:canoe babies:baby cookies:cookie movies:movie ties:tie puppies:puppy skies:sky boys:boy
monkeys:monkey grass:grass bus:bus tennis:tennis canvas:canvas gas:gas specimen:specimen photos:photo
tattoos:tattoo prizes:prize axes:axe mustaches:mustache gymnastics:gymnastics red:red running:running
grey:gray greys:gray colour:color doughnuts:donut blonde:blond
"""


@pytest.mark.parametrize("pair", PLURALS.split())
def test_dictionary_form(pair: str):
    word, form = pair.split(":")
    assert canonical(word) == form


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("   \n", []),
        ("🐶 !!", []),
        ("A Dog", ["a", "dog"]),
        ("a laptop 's keyboard", ["a", "laptop", "keyboard"]),
        ("the man’s hat", ["the", "man", "hat"]),
        ("Café crème", ["cafe", "creme"]),
        ("a T-shirt, tee shirts, TSHIRT", ["a", "t-shirt", "t-shirts", "t-shirt"]),
        ("a black-and-white dog", ["a", "black", "and", "white", "dog"]),
        ("dark‑haired", ["dark-haired"]),
        ("# 25", ["25"]),
        ("犬 と 猫", ["犬", "と", "猫"]),
        ("한국", ["한국"]),
    ],
)
def test_tokens(text: str, expected: list[str]):
    assert tokens(text) == expected


def test_tokens_end_at_the_limit():
    assert len(tokens("dog " * (MAX_TOKENS + 50))) == MAX_TOKENS


def test_runs_break_at_punctuation():
    assert runs("A man, hot dog; ice-cream (cone)") == [["a", "man"], ["hot", "dog"], ["ice-cream"], ["cone"]]


def test_spellings_try_the_whole_word_first():
    assert spellings("roller-blades") == (
        ("roller-blade",),
        ("roller-blades",),
        ("rollerblade",),
        ("roller", "blade"),
    )
    assert spellings("dog") == (("dog",),)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_gives_lower_case_tokens_and_stable_forms(text: str):
    for token in tokens(text):
        assert token
        assert token == normalise(token)
        assert canonical(token)
        assert all(part for way in spellings(token) for part in way)


@pytest.mark.parametrize("mark", "'’‘‛ʼʹ′`´＇")
def test_any_apostrophe_is_one(mark: str):
    assert tokens(f"the man{mark}s hat") == ["the", "man", "hat"]


@pytest.mark.parametrize("mark", "-‐‑‒–−－﹣")
def test_any_hyphen_within_a_word_is_one(mark: str):
    assert tokens(f"a long{mark}haired cat") == ["a", "long-haired", "cat"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("cafe\u0301", ["cafe"]),  # a combining accent
        ("ＲＥＤ ｈａｔ", ["red", "hat"]),
        ("a ﬁsh", ["a", "fish"]),
        ("um\u00adbrel\u00adla", ["umbrella"]),  # soft hyphens
        ("\ufeffa do\u200bg\u200e", ["a", "dog"]),
        ("a dog\ufe0f 🐕\u200d🦺", ["a", "dog"]),
        ("KITCHEN kıtchen İSTANBUL", ["kitchen", "kitchen", "istanbul"]),
        ("smørrebrød", ["smorrebrod"]),
        ("red_hat", ["red", "hat"]),
        ("a cat – a dog—a cow", ["a", "cat", "a", "dog", "a", "cow"]),
        ("a man/woman", ["a", "man", "or", "woman"]),
        ("a man w/ a hat w/o hair", ["a", "man", "with", "a", "hat", "without", "hair"]),
        ("salt & pepper", ["salt", "and", "pepper"]),
        ("a man&#39;s &quot;hat&quot; &amp; shoe", ["a", "man", "hat", "and", "shoe"]),
        ("«a dog»?!", ["a", "dog"]),
    ],
)
def test_signs_and_letters_of_other_kinds(text: str, expected: list[str]):
    assert tokens(text) == expected


def test_a_long_token_is_cut_and_no_word():
    assert tokens("x" * 5000 + " dog") == ["x" * MAX_LETTERS + "…", "dog"]
    assert tokens("y" * MAX_LETTERS) == ["y" * MAX_LETTERS]


def test_white_space_costs_no_time_of_its_square():
    assert tokens(" " * 300_000 + "dog") == ["dog"]
