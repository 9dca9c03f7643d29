import json
import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import phrase_loc
from phrase_loc.datasets.annotations import class_names, imagenet_classes
from phrase_loc.text import english
from phrase_loc.text.english import MAX_LETTERS
from phrase_loc.text.phrases import PhraseEncoder, one_edit_away
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.class_words import class_words, names_in_two

WORDS = [
    "man",
    "woman",
    "people",
    "dog",
    "hat",
    "red",
    "black",
    "white",
    "video",
    "camera",
    "firefighter",
    "t-shirt",
    "doorway",
    "gray",
    "hot",
    "skateboarder",
    "color",
    "table",
    "balloon",
]
VOCABULARY = Vocabulary((*WORDS, "hot dog", "rareword"), (*[100] * (len(WORDS) + 1), 3))
ENCODER = PhraseEncoder(VOCABULARY, extra=("zebra", "dog", "prison"))


def known(phrase: str) -> list[str]:
    return [word.text for word in ENCODER.encode(phrase).words if word.known]


@pytest.mark.parametrize(
    "phrase, expected",
    [
        ("two men", ["man"]),
        ("a T-shirt", ["t-shirt"]),
        ("hot dogs", ["hot dog"]),
        ("a hot day", ["hot"]),
        ("fire fighters", ["firefighter"]),
        ("a skate-boarder", ["skateboarder"]),
        ("videocameras", ["video", "camera"]),
        ("a black-and-white dog", ["black", "white", "dog"]),
        ("a grey colour", ["gray", "color"]),
        ("a dooorway", ["doorway"]),
        ("a ballon", ["balloon"]),
        ("a rarewrd", []),  # its neighbour is too rare to be guessed
        ("a dgo", []),  # too short to be guessed
        ("prisons", ["prison"]),
        ("he", ["man"]),
        ("the red red hat", ["red", "hat"]),
        ("", []),
        ("  ", []),
        ("🐶", []),
        ("犬", []),
        ("it", []),
    ],
)
def test_known_words(phrase: str, expected: list[str]):
    assert known(phrase) == expected


def test_a_word_of_the_extra_table_is_never_corrected():
    encoder = PhraseEncoder(VOCABULARY, extra=("ballon",))
    assert [w.text for w in encoder.encode("a ballon").words] == ["ballon"]


def test_rows_point_into_both_tables():
    encoded = ENCODER.encode("a dog and a zebra in prison")
    assert encoded.ids == (WORDS.index("dog"), len(VOCABULARY), len(VOCABULARY) + 2)


def test_the_head_weighs_more_than_modifiers_and_context():
    shares = {w.text: w.weight for w in ENCODER.encode("a red hat on a table").words}
    assert shares["hat"] > shares["red"] > shares["table"] > 0


def test_an_unknown_head_leaves_the_weight_to_the_rest():
    encoded = ENCODER.encode("a red zorgle")
    assert [(w.text, w.known, w.weight) for w in encoded.words] == [
        ("red", True, 1.0),
        ("zorgle", False, 0.0),
    ]


@pytest.mark.parametrize(
    "phrase, shown", [("🐶 ", ["🐶"]), ("it", ["it"]), ("\n", []), ("a zorgle", ["zorgle"])]
)
def test_a_phrase_without_known_word_has_none_and_says_which(phrase: str, shown: list[str]):
    encoded = ENCODER.encode(phrase)
    assert not encoded.known
    assert encoded.ids == encoded.weights == ()
    assert [w.text for w in encoded.words] == shown
    assert not any(w.known or w.weight for w in encoded.words)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(max_size=60), st.lists(st.sampled_from([*WORDS, "of", "and", "zorgle", "a"])).map(" ".join)
    )
)
def test_any_text_is_encoded_and_weights_sum_to_one(phrase: str):
    encoded = ENCODER.encode(phrase)
    assert len(encoded.ids) == len(encoded.weights) == sum(word.known for word in encoded.words)
    assert len(set(encoded.ids)) == len(encoded.ids)
    assert max(encoded.ids, default=0) < len(VOCABULARY) + 3
    if encoded.known:
        assert sum(encoded.weights) == pytest.approx(1, abs=1e-6)
        assert min(encoded.weights) > 0


def test_a_very_long_phrase_is_answered():
    assert known("dog " * 100_000) == ["dog"]


def test_one_edit_is_nltks_edit_distance_of_one():
    """The oracle: every generated string is one edit away, and each neighbour in a list is generated."""
    from nltk.metrics.distance import edit_distance

    near = one_edit_away("hat")
    assert all(edit_distance("hat", other, transpositions=True) == 1 for other in near)
    for other in ["hats", "hta", "at", "ha", "hot", "chat", "cat", "bath", "what", "heat"]:
        assert (other in near) == (edit_distance("hat", other, transpositions=True) == 1)


def test_an_encoder_can_be_sent_to_another_process():
    copy = pickle.loads(pickle.dumps(ENCODER))
    assert copy.encode("a red hat").words == ENCODER.encode("a red hat").words


@pytest.mark.parametrize(
    "phrase, named",
    [
        ("a Toyota", "toyota"),
        ("a toyota and nike shoes", "toyota nike"),
        ("a Ford truck", "ford"),
        ("a ford", ""),  # where a river is crossed
        ("A Red Ford", "ford"),
        ("Red Ford Truck", ""),  # each word has a capital
        ("a Coca-Cola can", "coca-cola"),
        ("a coca-cola can", ""),
        ("a SpongeBob toy", "spongebob"),  # no list has it
        ("SpongeBob", ""),
        ("a DJ in a CAB", ""),
        ("a Giraffe, a Chihuahua and a Cab", ""),
        ("a Muslim in a Canadian town at Easter", ""),
        ("a Dog near a DOG", ""),
        ("a Gnu", ""),
        ("a Brand-New toy", ""),
        ("Nike's shoe", "nike"),
        ("Starbucks", "starbucks"),
    ],
)
def test_names_and_brands_are_named_and_not_sought(phrase: str, named: str):
    further = "toyota nike ford coca-cola spongebob dj cab giraffe chihuahua muslim gnu toy starbuck"
    encoded = PhraseEncoder(VOCABULARY, extra=tuple(further.split())).encode(phrase)
    said = encoded.note or ""
    assert [name for name in named.split() if repr(name) not in said] == []
    assert ("read as a name" in said or "read as names" in said) == bool(named)
    assert {w.text: w.weight for w in encoded.words if w.text in named.split()} == dict.fromkeys(
        named.split(), 0.0
    )


@pytest.mark.parametrize(
    ("phrase", "named"),
    [
        ("a big Dalmatian", ""),
        ("two Dalmatians", ""),
        ("an iPod", ""),
        ("an I-Pod", ""),
        ("a Jaguar", "jaguar"),  # a car
        ("a jaguar", ""),
        ("a boy called Robin", "robin"),
        ("two Jaguars", "jaguars"),
        ("an American Robin", ""),
        ("a Schnauzer", "schnauzer"),  # placed by text alone
    ],
)
def test_what_was_learned_from_a_class_is_a_name_only_where_that_comes_first(phrase: str, named: str):
    words = ("dalmatian", "ipod", "jaguar", "robin")
    encoder = PhraseEncoder(VOCABULARY, (*words, "schnauzer"), class_words=words)
    read = encoder.encode(phrase)
    assert ("read as a name" in (read.note or "")) == bool(named)
    assert read.known == (not named)


@pytest.mark.parametrize(
    ("phrase", "words"),
    [
        ("a hot dog", ["hotdog"]),
        ("hot-dogs on a table", ["hotdog", "table"]),
        ("a tree frog", ["tree-frog"]),
        ("an ice cream", ["ice", "cream"]),  # placed by text alone
        ("a green house", ["green", "house"]),  # the class has no such name
        ("a greenhouse", ["greenhouse"]),
        ("a hot, red dog", ["hot", "red", "dog"]),
    ],
)
def test_two_words_are_read_by_a_class_that_has_them_as_a_name(phrase: str, words: list[str]):
    learned = ("hotdog", "tree-frog", "greenhouse")
    vocabulary = Vocabulary(("table", "red", "dog"), (9, 9, 9))
    parts = ("hot", "tree", "frog", "ice", "cream", "green", "house")
    encoder = PhraseEncoder(
        vocabulary, (*learned, "icecream", *parts), class_words=(*learned, "hot dog", "tree frog")
    )
    assert [w.text for w in encoder.encode(phrase).words if w.known] == words


def test_the_shipped_model_says_which_words_were_learned_from_classes(shipped, extra):
    learned = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))["class_words"]
    rows = [word for word in learned if " " not in word]
    assert len(rows) == 267 + 605  # as its card says
    assert set(rows) <= set(extra) & class_words().keys()
    named = names_in_two(rows).keys()
    assert named - set(learned) == {"ice cream", "walking stick"}  # which captions say of other photographs
    encoder = PhraseEncoder(shipped.vocabulary, extra, class_words=learned)
    assert [w.text for w in encoder.encode("a hot dog beside a big Dalmatian").words] == [
        "hotdog",
        "big",
        "dalmatian",
    ]
    assert [w.text for w in shipped.encode("a hot dog").words] == ["hot", "dog"]


def test_a_name_that_the_model_learned_is_sought():
    encoded = PhraseEncoder(Vocabulary(("toyota",), (9,))).encode("a Toyota")
    assert encoded.known
    assert encoded.note is None


def test_the_verb_is_not_sought():
    encoder = PhraseEncoder(Vocabulary(("bike", "left", "rain", "turn"), (9, 9, 9, 9)))
    assert [w.text for w in encoder.encode("a bike left in the rain").words] == ["bike", "rain"]
    assert [w.text for w in encoder.encode("a left turn").words] == ["left", "turn"]


def test_a_number_counts_where_it_is_known():
    encoder = PhraseEncoder(Vocabulary(("man", "two"), (100, 100)))
    two, three = encoder.encode("two men").words, encoder.encode("three men").words
    assert [(w.text, w.weight) for w in three] == [("man", 1.0)]
    assert [w.text for w in two] == ["two", "man"]
    assert 0 < two[0].weight < two[1].weight
    assert [w.known for w in encoder.encode("three").words] == [False]


def test_a_query_imports_neither_nltk_nor_sklearn():
    import subprocess
    import sys

    code = (
        "import sys, phrase_loc.text.vectors; from phrase_loc.text.phrases import PhraseEncoder\n"
        "from phrase_loc.text.vocabulary import Vocabulary\n"
        "PhraseEncoder(Vocabulary(('doorway',), (99,))).encode('a dooorway')\n"
        "print([m for m in ('nltk', 'sklearn', 'pandas', 'transformers', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SHIPPED = Path(phrase_loc.__file__).parent / "models" / "default"


@pytest.fixture(scope="module")
def extra() -> list[str]:
    """The out-of-vocabulary words of the shipped model."""
    return (SHIPPED / "extra_words.txt").read_text(encoding="utf-8").split()


@pytest.fixture(scope="module")
def shipped(extra) -> PhraseEncoder:
    """The encoder of the shipped model, without its weights."""
    return PhraseEncoder(Vocabulary.load(SHIPPED / "vocabulary.txt"), extra)


def test_no_class_name_is_corrected_into_another_word(shipped, extra):
    """The shipped model reads each as it is; without words of classes some compounds are read in two.

    Only what is a kind of its second half is: a goldfish is a fish, a ladybird no bird.
    """
    known = class_words()
    without = PhraseEncoder(shipped.vocabulary, [word for word in extra if word not in known])
    names = [text for name in ("voc", "coco") for c in class_names(name) for text in (c.name, c.phrase)]
    names += [lemma for _, lemmas in imagenet_classes() for lemma in lemmas.split(",")]
    read: dict[str, list[str]] = {}
    assert not [name for name in names for word in shipped.encode(name).words if word.misspelt]
    for word in (word for name in names for word in without.encode(name).words if word.misspelt):
        read.setdefault(word.misspelt, []).append(word.text)
    assert not {text: parts for text, parts in read.items() if len(parts) == 1}
    assert "goldfish" in read
    assert not {"toaster", "snail", "sloth", "ladybird", "leatherback", "carpet"} & set(read)


@pytest.mark.parametrize(
    "text, word",
    [
        ("womann", "woman"),
        ("umbrela", "umbrella"),
        ("bicylce", "bicycle"),
        ("gitar", "guitar"),
        ("astronuat", "astronaut"),  # a further word
    ],
)
def test_a_misspelling_is_corrected_and_said(shipped, text: str, word: str):
    encoded = shipped.encode(f"the {text}")
    assert [(w.text, w.read_as, w.written) for w in encoded.words] == [(word, word, text)]
    assert encoded.note == f"{text!r} is read as {word!r}"


@pytest.mark.parametrize("word", ["barge", "bleach", "cider", "cress", "pliers", "barges", "perro"])
def test_another_word_is_unknown(shipped, word: str):
    encoded = shipped.encode(f"a {word}")
    assert [(w.text, w.known, w.read_as) for w in encoded.words] == [(word, False, None)]


def test_what_is_read_as_it_is_written_has_no_note(shipped):
    for phrase in (
        "two dogs",
        "a grey T-shirt",
        "a woman in a red hat",
        "she",
        "hot dogs",
        "the man's long-haired dog",
    ):
        encoded = shipped.encode(phrase)
        assert encoded.note is None
        assert encoded.head_known
        assert all(word.read_as is None for word in encoded.words)


@pytest.mark.parametrize(
    "phrase, sought",
    [
        ("the man on the left", "man"),
        ("the dog left of the tree", "dog tree"),
        ("the upper right window", "window"),
        ("the fourth dog", "dog"),
        ("a red top", "red top"),
        ("the center of the street", "street"),
        ("bottom right", ""),
    ],
)
def test_a_relation_is_not_sought(shipped, phrase: str, sought: str):
    encoded = shipped.encode(phrase)
    assert " ".join(word.text for word in encoded.words if word.known) == sought
    assert (encoded.note is None) is (phrase == "a red top")


@pytest.mark.parametrize(
    "phrase, head_known",
    [
        ("a red lorry", False),
        ("un perro", False),
        ("a shiny zorg", False),
        ("a man's zorg", False),
        ("a zorg with a red hat", False),
        ("a pair of zorgs", False),
        ("zorg", False),
        ("a dog and a zorg", False),
        ("a herd of zorgs", False),
        ("the zorg on the left", False),
        ("a zorg next to a dog", False),
        ("the left", False),
        ("it", False),
        ("", False),
        ("a zorgy dog", True),
        ("a dog with a zorg", True),
        ("the back of a chair", True),
        ("a woman in a red hat", True),
        ("a dog's tail", True),
        ("something red", True),
        ("two dogs", True),
        ("nobody", True),
    ],
)
def test_whether_the_noun_is_known(shipped, phrase: str, head_known: bool):
    encoded = shipped.encode(phrase)
    assert encoded.head_known is head_known
    assert head_known or encoded.note or not phrase


def test_compounds_with_little_words(shipped):
    assert [w.text for w in shipped.encode("her mother-in-law").words] == ["mother"]
    assert [(w.text, w.known) for w in shipped.encode("a man-of-war").words] == [("man-of-war", False)]
    assert [w.text for w in shipped.encode("no one").words] == ["person"]
    assert [w.text for w in shipped.encode("no one dog").words] == ["one", "dog"]


def test_a_hyphenated_unit_is_the_unit():
    assert known("a hot-dog") == ["hot dog"]


@pytest.mark.parametrize(
    ("phrase", "words", "head_known"),
    [
        ("a red-lorry", [("red", True), ("lorry", False)], False),
        ("a zorg-hat", [("zorg", False), ("hat", True)], True),
        ("a hat-on", [("hat", True)], True),
    ],
)
def test_a_part_of_a_hyphenated_word_that_is_unknown_is_said(phrase, words, head_known):
    encoded = ENCODER.encode(phrase)
    assert [(w.text, w.known) for w in encoded.words] == words
    assert encoded.head_known is head_known
    assert ("is not known" in (encoded.note or "")) is (len(words) > 1)


def test_a_word_of_thousands_of_letters_is_unknown_and_takes_nothing():
    tracemalloc.start()
    encoded = ENCODER.encode("a dog " + "abcdefghij" * 4000 + " " + "dog-" * 4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [w.known for w in encoded.words] == [True, False, False]
    assert all(len(w.text) <= MAX_LETTERS + 1 for w in encoded.words)
    assert peak < 4 * 2**20


def test_the_word_list_is_opened_for_unknown_words_alone():
    for remembered in (english.canonical, english._mark, english._word_list):
        remembered.cache_clear()
    encoder = PhraseEncoder(Vocabulary(("doorway", "dog"), (99, 99)))
    encoder.encode("two dogs in a doorway")
    encoder.encode("it")
    assert english._word_list.cache_info().misses == 0
    encoder.encode("a dooorway")
    assert english._word_list.cache_info().misses == 1
