"""Text to tokens, tokens to dictionary forms: the small rules of English that everything else stands on.

No corpus, no model, no import beyond the standard library: this is on the path of every query, and `import
nltk` alone costs 3 to 5 s there. Words that are only a plural (`glasses`, `shorts`, `woods`) stay as they
are, unlike in most lemmatizers: a person's glasses are not a glass.
"""

import html
import re
import unicodedata
from functools import lru_cache
from itertools import islice

MAX_TOKENS = 256  # more of a text is not read: a phrase is a few words, and a whole caption is below this
MAX_LETTERS = 40  # a longer token is cut, ends in '…' and is no word

_TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
_LOOSE_CLITIC = re.compile(r"(?<!\s)\s+'(?=s\b)")  # Flickr30k Entities writes "a laptop 's keyboard"
_MARKS = str.maketrans(
    dict.fromkeys("’‘‛ʼʹʻʽ′`´＇｀", "'")
    | dict.fromkeys("‐‑‒−﹣－", "-")
    | dict.fromkeys("—―", " ")
    | {"ſ": "s"}
)
_DASH = re.compile(r"(?<=\w)–(?=\w)")  # a hyphen inside a word, else a dash
_LETTERS = str.maketrans({"ı": "i", "ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ß": "ss"})
_WITH = re.compile(r"\bw/(o\b)?")
_SLASH = re.compile(r"(?<=[^\W\d_])\s*/\s*(?=[^\W\d_])")
_SPACED_SHIRT = re.compile(r"\bt(?:ee)?\s?-?\s?(shirts?)\b")



def _table(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


IRREGULAR = _table(
    "men:man women:woman children:child feet:foot teeth:tooth mice:mouse geese:goose oxen:ox leaves:leaf "
    "knives:knife wives:wife wolves:wolf shelves:shelf scarves:scarf loaves:loaf halves:half calves:calf "
    "hooves:hoof thieves:thief elves:elf selves:self bookshelves:bookshelf dice:die lice:louse "
    "cacti:cactus fungi:fungus alumni:alumnus octopi:octopus hippopotami:hippopotamus bacteria:bacterium "
    "buses:bus gases:gas lenses:lens minibuses:minibus canvases:canvas atlases:atlas quizzes:quiz axes:axe "
    "movies:movie cookies:cookie brownies:brownie hoodies:hoodie selfies:selfie zombies:zombie pies:pie "
    "ties:tie lies:lie dies:die bowties:bowtie neckties:necktie smoothies:smoothie rookies:rookie "
    "collies:collie beanies:beanie hippies:hippie prairies:prairie goalies:goalie talkies:talkie "
    "walkie-talkies:walkie-talkie veggies:veggie doggies:doggie birdies:birdie foodies:foodie "
    "calories:calorie genies:genie magpies:magpie onesies:onesie toddies:toddy headaches:headache "
    "mustaches:mustache moustaches:mustache quiches:quiche caches:cache avalanches:avalanche fuses:fuse "
    "muses:muse excuses:excuse cds:cd tvs:tv dvds:dvd suvs:suv atvs:atv mechanics:mechanic medics:medic "
    "paramedics:paramedic fabrics:fabric mosaics:mosaic picnics:picnic clinics:clinic topics:topic "
    "comics:comic critics:critic relics:relic attics:attic passersby:passerby sons-in-law:son-in-law"
)
"""Plurals that the rules below would get wrong."""

VARIANTS = _table(
    "grey:gray greyish:grayish colour:color coloured:colored colourful:colorful multicoloured:multicolored "
    "multi-coloured:multicolored multi-colored:multicolored moustache:mustache pyjamas:pajamas "
    "doughnut:donut tshirt:t-shirt tee-shirt:t-shirt teeshirt:t-shirt armour:armor harbour:harbor "
    "neighbour:neighbor theatre:theater centre:center jewellery:jewelry kerb:curb aeroplane:airplane "
    "blonde:blond blonde-haired:blond-haired grey-haired:gray-haired barbeque:barbecue bbq:barbecue "
    "tyre:tire mum:mom yoghurt:yogurt chequered:checkered plough:plow sceptre:scepter vapour:vapor "
    "parlour:parlor savoury:savory catalogue:catalog cheque:check"
)
"""Spellings of one word: the one on the right stands for all."""

INVARIANT = _word_set(
    "glasses sunglasses eyeglasses pants jeans shorts trousers tights leggings overalls goggles scissors "
    "clothes woods trunks binoculars pajamas sports news gas lens canvas christmas atlas texas bias chaos "
    "cosmos thermos rhinoceros series species means barracks headquarters always perhaps as is was has "
    "does this its his hers ours theirs yes us plus across towards afterwards outdoors indoors backwards "
    "forwards upwards downwards sideways upstairs downstairs besides overseas whereas ladies-in-waiting "
    "gas-mask james paris las los vegas angeles hollandaise swiss molasses kudos asbestos specimen yemen "
    "omen abdomen regimen acumen ramen amen khakis slacks suspenders fatigues sweatpants squarepants "
    "adidas mercedes"
)
"""Words that end like a plural and are not, or that mean something else without the s."""

_KEEP_S_ONLY = _word_set("toes canoes hoes oboes tiptoes foes woes floes aloes")
_IRREGULAR_ENDINGS = ("children", "scarves", "shelves", "wives", "knives", "wolves")


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
    return [_without_possessive(_bounded(match.group())) for match in found]


def runs(text: str) -> list[list[str]]:
    """The tokens in stretches that no punctuation breaks: a two-word unit never spans a comma."""
    pieces = re.split(r"[^\w\s'-]+", normalise(text))
    return [found for piece in pieces if (found := tokens(piece))]


def _bounded(token: str) -> str:
    return token if len(token) <= MAX_LETTERS else token[:MAX_LETTERS] + "…"


def _without_possessive(token: str) -> str:
    return token[:-2] if token.endswith("'s") and len(token) > 3 else token


@lru_cache(maxsize=1 << 16)
def canonical(token: str) -> str:
    """The dictionary form: singular, one spelling for all variants; verbs and adjectives stay as they are.

    >>> [canonical(w) for w in "men buses dresses horses glasses Firefighters".lower().split()]
    ['man', 'bus', 'dress', 'horse', 'glasses', 'firefighter']
    """
    singular = _singular(VARIANTS.get(token, token))
    return VARIANTS.get(singular, singular)


def _singular(word: str) -> str:
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word in INVARIANT or len(word) < 4:
        return word
    for ending in _IRREGULAR_ENDINGS:
        if word.endswith(ending):
            return word.removesuffix(ending) + IRREGULAR[ending]
    if word.endswith("men"):
        return word[:-2] + "an"
    if not word.endswith("s") or word.endswith(("ss", "us", "is", "ics")):
        return word
    return _strip_plural(word)


def _strip_plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 4 else word[:-1]
    if word.endswith(("sses", "xes", "ches", "shes", "zzes")):
        return word[:-2]
    if word.endswith("uses") and word[-5:-4] not in "aeo":  # cactus-es, but house-s, pause-s
        return word[:-2]
    if word.endswith("oes") and word not in _KEEP_S_ONLY and not word.endswith("shoes"):
        return word[:-2]
    return word[:-1]


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
