"""English in closed lists: word classes, dictionary forms, and which words there are.

The lists stand in lists/classes.txt, each with what it is for. A few hundred words stand in for a part-of-speech
tagger, which would need a downloaded model and a hundred times the time; `parsing` says how often the head noun comes
out right with them.
"""

import html
import lzma
import re
import unicodedata
from functools import cache, lru_cache
from importlib.resources import files
from itertools import islice
from types import SimpleNamespace


def _lists() -> dict[str, list[str]]:
    text = (files("phrase_loc.text") / "lists" / "classes.txt").read_text(encoding="utf-8")
    parts = re.split(r"^(\w+): ", re.sub("(?m)^#.*", "", text), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], map(str.split, parts[1::2]), strict=True))


def _table(name: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in _LISTED[name])


_LISTED = _lists()
#: `LISTS.sides` and so on: each list of the file as a set.
LISTS = SimpleNamespace(**{name: frozenset(found) for name, found in _LISTED.items()})
NUMBERS = LISTS.counts | LISTS.other_numbers | LISTS.other_numbers_of_things
PERSONS = _table("persons")
PRONOUNS = frozenset(PERSONS) - {"who", "whom"} | LISTS.further_pronouns
_JOINING = LISTS.prepositions | LISTS.conjunctions | LISTS.auxiliaries
FUNCTION_WORDS = LISTS.determiners | NUMBERS | _JOINING | PRONOUNS | LISTS.adverbs
ADJECTIVES = LISTS.colours | LISTS.adjectives
_ADJECTIVE_ENDINGS = tuple(LISTS.adjective_endings)
PRESENT_PARTICIPLES = frozenset(
    (v + v[-1] if v in LISTS.doubled else re.sub("(?<=[^e])e$", "", re.sub("ie$", "y", v))) + "ing"
    for v in LISTS.verbs
)
THIRD_PERSON = frozenset(
    re.sub("([sxo]|[cs]h)$", r"\1e", re.sub("(?<=[^aeo])y$", "ie", v)) + "s" for v in LISTS.verbs
)
VERB_BASES = LISTS.verbs - LISTS.verbs_that_are_nouns
VERB_FORMS = VERB_BASES | PRESENT_PARTICIPLES | THIRD_PERSON | LISTS.past_participles | {"overlooking"}
"""What makes a pair of words a clause ('dog runs') and not a name ('dirt bike')."""
SINGULARS = _table("irregular") | {w + end: w for end in ("s", "es") for w in _LISTED[f"with_{end}"]}
"""Of plurals that the rules below would get wrong."""
VARIANTS = _table("variants")
_IRREGULAR_ENDINGS = ("children", "scarves", "shelves", "wives", "knives", "wolves", "men")

MAX_TOKENS = 256  # more of a text is not read: a phrase is a few words, and a whole caption is below this
MAX_LETTERS = 40  # a longer token is cut, ends in '…' and is no word


def is_function_word(token: str) -> bool:
    """Whether a token names nothing by itself: article, number, preposition, auxiliary, pronoun, digits."""
    return token in FUNCTION_WORDS or token.isdigit() or (len(token) < 2 and token.isascii())


def may_be_shown(token: str) -> bool:
    """Whether a token can be a word of the vocabulary: no function word, or a number of things."""
    return token in LISTS.counts or not is_function_word(token)


def is_modifier(token: str) -> bool:
    """Whether a token is an adjective by the list, or by its ending."""
    return token in ADJECTIVES or (len(token) > 5 and token.endswith(_ADJECTIVE_ENDINGS))


_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_LOOSE_CLITIC = re.compile(r"(?<!\s)\s+'(?=s\b)")  # Flickr30k Entities writes "a laptop 's keyboard"
_MARKS = str.maketrans(
    dict.fromkeys("’‘‛ʼʹʻʽ′`´＇｀", "'")
    | dict.fromkeys("‐‑‒−﹣－", "-")
    | dict.fromkeys("—―™℠", " ")
    | {"ſ": "s"}
)
_DASH = re.compile(r"(?<=\w)–(?=\w)")  # a hyphen inside a word, else a dash
_LETTERS = str.maketrans({"ı": "i", "ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ß": "ss"})
_WITH = re.compile(r"\bw/(o\b)?")
_SLASH = re.compile(r"(?<=[^\W\d_])\s*/\s*(?=[^\W\d_])")
_SPACED_SHIRT = re.compile(r"\bt(?:ee)?\s?-?\s?(shirts?)\b")


def normalise(text: str) -> str:
    """Lower case, one kind of quote and hyphen, no diacritics ('Café' -> 'cafe'), signs for words spelt out.

    >>> normalise("manʼs H&amp;M tee‑shirt, w/o man/woman")
    "man's h and m t-shirt, without man or woman"
    """
    if "&" in text:
        text = html.unescape(text).replace("&", " and ").replace("  ", " ")
    if text.isascii():  # most captions: five times faster
        text = text.lower().replace("`", "'")
    else:
        text = unicodedata.normalize("NFKD", _DASH.sub("-", text.translate(_MARKS))).lower()
        text = unicodedata.normalize("NFC", "".join(c for c in text if not _unseen(c))).translate(_LETTERS)
    if "/" in text:
        text = _WITH.sub(lambda m: "without" if m.group(1) else "with ", text)
        text = _SLASH.sub(" or ", text)
    text = text.replace("-and-", " and ")  # 'a black-and-white dog' has two colours
    return _SPACED_SHIRT.sub(r"t-\1", _LOOSE_CLITIC.sub("'", text))


def _unseen(character: str) -> bool:
    """Accents, and what pasted text carries without showing it: soft hyphens, zero-width and direction marks."""
    hidden = unicodedata.category(character) == "Cf" or "\ufe00" <= character <= "\ufe0f"
    return hidden or unicodedata.combining(character) > 0


def tokens(text: str) -> list[str]:
    """The tokens of a text in order, lower case, possessive endings off; at most MAX_TOKENS.

    A hyphenated word is one token. Punctuation and symbols (emoji too) give none. A token of more than
    MAX_LETTERS is cut and ends in '…', so that it can be no word.

    >>> tokens("The man’s Tee-Shirt, and a skate-boarder")
    ['the', 'man', 't-shirt', 'and', 'a', 'skate-boarder']
    """
    found = islice(_TOKEN.finditer(normalise(text)), MAX_TOKENS)
    bounded = (t if len(t := match.group()) <= MAX_LETTERS else t[:MAX_LETTERS] + "…" for match in found)
    return [t[:-2] if t.endswith("'s") and len(t) > 3 else t for t in bounded]


def runs(text: str) -> list[list[str]]:
    """The tokens in stretches that no punctuation breaks: a two-word unit never spans a comma."""
    pieces = re.split(r"[^\w\s'-]+", normalise(text))
    return [found for piece in pieces if (found := tokens(piece))]


@lru_cache(maxsize=1 << 16)
def canonical(token: str) -> str:
    """The dictionary form: singular, one spelling for all variants; verbs and adjectives stay as they are.

    >>> [canonical(w) for w in "men buses dresses horses glasses Firefighters".lower().split()]
    ['man', 'bus', 'dress', 'horse', 'glasses', 'firefighter']
    """
    singular = _singular(VARIANTS.get(token, token))
    return VARIANTS.get(singular, singular)


def _singular(word: str) -> str:
    if word in SINGULARS:
        return SINGULARS[word]
    if word in LISTS.invariant or len(word) < 4:
        return word
    for ending in _IRREGULAR_ENDINGS:
        if word.endswith(ending):
            return word.removesuffix(ending) + SINGULARS[ending]
    if not word.endswith("s") or word.endswith(("ss", "us", "is", "ics")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    es = word.endswith(("sses", "xes", "ches", "shes", "zzes"))
    es = es or (word.endswith("uses") and word[-5:-4] not in "aeo")  # cactus-es, but house-s, pause-s
    es = es or (word.endswith("oes") and not word.endswith("shoes"))
    return word[:-2] if es else word[:-1]


def spellings(token: str) -> tuple[tuple[str, ...], ...]:
    """Ways to read one token, best first; each is one word or the parts of a hyphenated one.

    >>> spellings("skate-boarders")
    (('skate-boarder',), ('skate-boarders',), ('skateboarder',), ('skate', 'boarder'))
    >>> spellings("mother-in-law")[-1]
    ('mother',)
    """
    ways: list[tuple[str, ...]] = [(canonical(token),), (token,)]
    if "-" in token:
        ways.append((canonical(token.replace("-", "")),))
        parts = token.removesuffix("-in-law").split("-")
        ways.append(tuple(canonical(part) for part in parts if part))
    return tuple(dict.fromkeys(ways))


def is_word(token: str) -> bool:
    """Whether a lower-case token of five letters or more is a word of English, in any of its forms.

    >>> [is_word(w) for w in ("toaster", "toasters", "sloth", "umbrela")]
    [True, True, True, False]
    """
    return any(_mark(word) is not None for word in {token, canonical(token)})


def is_adjective(token: str) -> bool:
    """Whether a lower-case token is an adjective more often than a noun ('odd', no 'puppy')."""
    return _mark(token) == "+"


def is_compound(token: str) -> bool:
    """Whether a lower-case word of English is a kind of what its second half names ('goldfish', no 'carpet')."""
    return _mark(canonical(token)) == "="


def is_name(token: str, capital: bool) -> bool:
    """Whether a lower-case token is a proper name or a brand; `capital`: within a phrase it was written with one.

    >>> is_name("toyota", False), is_name("ford", False), is_name("ford", True), is_name("giraffe", True)
    (True, False, True, False)
    """
    marks = set(map(_mark, (token, canonical(token), token.replace("-", "")))) - {None}
    if not marks:  # shorter words than those of five letters are not listed
        return capital and token.isalpha() and len(token) > 4
    return marks <= {"^", "*"} and (capital or "^" in marks)


@lru_cache(maxsize=1 << 12)
def _mark(word: str) -> str | None:
    """What the list of words says of one: "+", "=", "^", "*" or nothing; None where it is not listed."""
    entry, every = f"\n{word}".encode(), _word_list()
    place = every.find(entry)  # of all that begin so it comes first
    mark = every[place + len(entry) : place + len(entry) + 1].decode() if place >= 0 and word else "?"
    return mark.strip() if mark in "+=^*\n" else None


@cache
def _word_list() -> bytes:
    """102,641 words of SCOWL and WordNet, one a line, with marks for adjectives, compounds and names.

    Opened when a word must be told from a misspelling or a name or a comma be understood, never for a phrase of
    trained words: 25 ms once, half a millisecond a question. It is searched as it is: a set would take 10 MB. Other
    words are listed from five letters on, since shorter ones are never corrected. See benchmarks/word_list.py.
    """
    return lzma.decompress((files("phrase_loc.text") / "lists" / "words.txt.xz").read_bytes())
