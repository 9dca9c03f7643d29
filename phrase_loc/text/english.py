"""English in closed lists: word classes, dictionary forms, and which words there are.

A few hundred words stand in for a part-of-speech tagger, which would need a downloaded model and a hundred
times the time; `parsing` says how often the head noun comes out right with them.
"""

import html
import lzma
import re
import unicodedata
from functools import cache, lru_cache
from importlib.resources import files
from itertools import islice


def words(text: str) -> frozenset[str]:
    """Words that white space separates, as a set."""
    return frozenset(text.split())


def _table(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


DETERMINERS = words(
    "a an the this that these those my your his her its our their some any no each every either neither both "
    "all another other several many few various different same own such certain more most less much enough "
    "what whose"
)
OPENING_DETERMINERS = words("a an the my your his her its our their some")
COUNTS = words("one two three four five six seven eight nine ten")
"""Numbers that captions use of things in view: a model that has learnt 'two' finds pairs with it."""
_OTHER_NUMBERS = words(
    "zero eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty "
    "fifty hundred thousand million dozen first second third"
)
NUMBERS = COUNTS | _OTHER_NUMBERS | words("dozens hundreds thousands single double multiple numerous half")
ORDINALS = words("fourth fifth sixth seventh eighth ninth tenth last")
NUMBERING = (COUNTS - {"one"}) | _OTHER_NUMBERS | ORDINALS
"""What tells which one or how many."""
RELATIONS = words(
    "behind beside besides near nearby next above below under underneath beneath between opposite outside"
)
"""Prepositions that tell one thing from others of its kind."""
SIDES = words(
    "left right upper lower far leftmost rightmost topmost uppermost lowest highest closest nearest furthest "
    "farthest"
)
PLACES = words("top bottom front back rear middle center centre side corner end edge background foreground")
"""What tells where as `SIDES` do, but also names a thing or a part of one ('a red top', 'his back')."""
TOLD_BY_PLACE = words(
    "man woman person people boy girl child kid baby guy lady player runner dog cat horse car one row shelf "
    "step seat window drawer bunk"
)
"""What 'front' or 'top' before it tells from others of its kind: 'the front row', but 'the front yard'."""
NAMED_BY_PLACE = words(
    "upper-body lower-body upper-leg lower-leg upper-arm lower-arm upper-lip lower-lip left-turn right-turn "
    "in-top on-back"
)
"""Neighbours that make a name; 'in the top' and 'on the back' are of clothes and of a body."""
PREPOSITIONS = words(
    "of in on at by with without near nearby beside besides behind under underneath over above below beneath "
    "from to into onto through throughout across along alongside around for against between among amongst "
    "inside outside toward towards during upon off down up out about next past within beyond atop amid "
    "amidst like via per after before until since except despite opposite aboard who whom which where when "
    "while as because if than then so but there here away together"
)
CONJUNCTIONS = words("and or nor")
AUXILIARIES = words(
    "is are was were be been being am has have had having does do did can could will would may might must "
    "shall should not isn't aren't doesn't don't can't isnt arent"
)
PERSONS = _table(
    "he:man him:man himself:man she:woman her:woman herself:woman hers:woman they:people them:people "
    "themselves:people others:people everyone:people everybody:people we:people us:people ourselves:people "
    "theirs:people someone:person somebody:person anyone:person anybody:person i:person me:person "
    "myself:person you:person yourself:person who:person whom:person nobody:person no-one:person"
)
"""A pronoun that can only mean people, standing where a noun should, is read as that noun."""
PRONOUNS = frozenset(PERSONS) - {"who", "whom"} | words(
    "it itself something anything nothing everything mine yours"
)
NEGATIONS = words(
    "no not never none nobody nothing nowhere neither nor without cannot except excluding lacking isnt arent "
    "wasnt werent dont doesnt didnt cant wont"
)
"""What denies the words behind it; `parsing.negation` knows "n't", 'cat-free' and 'free of' as well."""
ADVERBS = words(
    "very too also just only really quite almost apparently fully partially partly heavily highly brightly "
    "slightly newly well still now again ever never already perhaps maybe etc even midair mid-air apart "
    "alone backwards downhill uphill"
)
FUNCTION_WORDS = DETERMINERS | NUMBERS | PREPOSITIONS | CONJUNCTIONS | AUXILIARIES | PRONOUNS | ADVERBS
COLOURS = words(
    "red orange yellow green blue purple violet pink brown black white gray tan beige gold golden silver "
    "turquoise teal maroon navy lavender cream magenta cyan bronze khaki burgundy"
)
ADJECTIVES = COLOURS | words(
    "big small large little tiny huge tall short long wide narrow thick thin high low deep shallow old young "
    "new elderly older younger middle-aged adult teenage open closed empty full busy crowded quiet dark "
    "light bright pale multicolor multicolored striped plaid checkered floral patterned plain wet dry dirty "
    "clean muddy dusty snowy icy grassy sandy rocky wooden metal stone concrete plastic rusty shiny happy "
    "sad angry pretty cute handsome ugly fat skinny heavy strong bald blond brunette bearded barefoot naked "
    "nude smiling laughing male female asian african american african-american indian chinese japanese "
    "european oriental hispanic caucasian middle-eastern mexican arab fluffy furry shaggy hairy curly hot "
    "cold warm cool frozen sunny cloudy rainy foggy urban rural public outdoor indoor left right front back "
    "upper lower top middle nearby distant far local modern ancient traditional military colored hooded "
    "long-sleeved short-sleeved matching similar identical professional formal casual nice good great fancy "
    "loose tight soft hard flat steep round square rectangular circular curved straight broken torn worn "
    "ragged stuffed toy uniformed soapy leafy bushy foamy gravelly printed teen aged fenced paved graffitied "
    "smiley elder giant mini miniature large-sized medium bigger smaller larger taller"
)
"""Words that are modifiers even where they stand last ('his mouth open', 'all black')."""
NOUNS_WHEN_LAST = words(
    "toy metal stone concrete plastic top back front square adult male female blond brunette military"
)
"""Modifiers that name the thing where they end the noun phrase: 'a dog toy', but 'a toy dog'."""
_ADJECTIVE_ENDINGS = tuple(words("ish ful less ous ible able -colored -haired -dressed -skinned"))
EMPTY_BEFORE_OF = words(
    "group pair couple bunch set lot number bit piece kind type sort variety series part side top bottom edge "
    "end middle center centre rear back front rest half majority plenty handful dozen collection array "
    "assortment trio duo foursome view picture photo photograph image shot closeup close-up close sight scene "
    "one two three some many most all both each several few any none member inside outside base corner section "
    "portion"
)
"""'a group of people', 'the side of a house', 'a photo of a dog': the noun after 'of' is what is meant."""
SHARED_BEFORE_OF = words(
    "crowd herd flock team row pile stack line pool bowl glass cup bottle can plate body pack band class "
    "bouquet bunch basket bucket bag box family gathering army school sea patch field puddle stream cloud "
    "blanket layer slice loaf tray rack string train troupe gang squad mob swarm litter deck"
)
"""'a herd of sheep', 'a cup of tea': both nouns name the region, and weigh the same."""
_VERBS = words(
    "wear hold carry play sit stand walk run ride jump look eat drink talk sleep smile laugh dance sing work "
    "perform climb swim ski surf skate skateboard snowboard fish race fly throw catch kick hit push pull "
    "lean lie lay kneel crouch squat bend reach point watch read write cook prepare sell buy wait pose drive "
    "cross leap chase bite lick swing slide paddle row sail cut clean wash paint draw build dig touch grab "
    "hug kiss gather face show use do get put take make try enjoy give pass follow lead dive splash wrestle "
    "fight box march pedal bike cycle hike stare gaze speak listen wave rest relax hang balance float fall "
    "roll step stretch exercise practice train compete attempt participate celebrate cheer clap display "
    "contain feature surround attach hand smoke sweep shovel shop juggle sniff shake tackle toss bat pitch "
    "dribble shoot score land approach enter exit leave travel head"
)
_DOUBLED = words("sit run swim get put hit hug cut dig grab clap bat step shop")
PRESENT_PARTICIPLES = frozenset(
    (verb + verb[-1] if verb in _DOUBLED else re.sub("(?<=[^e])e$", "", re.sub("ie$", "y", verb))) + "ing"
    for verb in _VERBS
)
PAST_PARTICIPLES = words(
    "dressed covered seated surrounded filled made named called shown used located followed attached tied "
    "wrapped piled parked decorated lined pulled pushed ridden held carried worn played"
)
THIRD_PERSON = frozenset(
    re.sub("([sxo]|[cs]h)$", r"\1e", re.sub("(?<=[^aeo])y$", "ie", v)) + "s" for v in _VERBS
)
VERB_BASES = _VERBS - words(
    "bike cycle fish fight box race land head hand paint dive slide swing bat pitch shop smoke cook drink "
    "face show skate ski surf skateboard snowboard touch march bite shake"
)
VERB_FORMS = VERB_BASES | PRESENT_PARTICIPLES | THIRD_PERSON | PAST_PARTICIPLES | {"overlooking"}
"""What makes a pair of words a clause ('dog runs') and not a name ('dirt bike')."""

_IRREGULAR = _table(
    "men:man children:child feet:foot teeth:tooth mice:mouse geese:goose oxen:ox leaves:leaf knives:knife "
    "wives:wife wolves:wolf shelves:shelf scarves:scarf loaves:loaf halves:half calves:calf hooves:hoof "
    "thieves:thief elves:elf selves:self dice:die lice:louse cacti:cactus fungi:fungus alumni:alumnus "
    "octopi:octopus hippopotami:hippopotamus bacteria:bacterium quizzes:quiz "
    "moustaches:mustache passersby:passerby sons-in-law:son-in-law"
)
_WITH_S = words(
    "axe movie cookie brownie hoodie selfie zombie bowtie necktie smoothie rookie collie beanie hippie "
    "prairie goalie talkie walkie-talkie veggie doggie birdie foodie calorie genie magpie onesie headache "
    "mustache quiche cache avalanche fuse muse excuse cd tv mechanic medic paramedic fabric mosaic picnic "
    "clinic topic comic critic relic attic toe canoe hoe oboe tiptoe foe woe floe aloe"
)
_WITH_ES = words("gas lens canvas atlas")
SINGULARS = _IRREGULAR | {word + "s": word for word in _WITH_S} | {word + "es": word for word in _WITH_ES}
"""Of plurals that the rules below would get wrong."""
VARIANTS = _table(
    "grey:gray greyish:grayish colour:color coloured:colored colourful:colorful multicoloured:multicolored "
    "multi-coloured:multicolored multi-colored:multicolored moustache:mustache pyjamas:pajamas "
    "doughnut:donut tshirt:t-shirt tee-shirt:t-shirt teeshirt:t-shirt armour:armor harbour:harbor "
    "neighbour:neighbor theatre:theater centre:center jewellery:jewelry kerb:curb aeroplane:airplane "
    "blonde:blond blonde-haired:blond-haired grey-haired:gray-haired barbeque:barbecue bbq:barbecue "
    "tyre:tire mum:mom yoghurt:yogurt chequered:checkered plough:plow sceptre:scepter vapour:vapor "
    "parlour:parlor savoury:savory catalogue:catalog cheque:check fibre:fiber "
    "sombre:somber lustre:luster mould:mold moulding:molding aluminium:aluminum woollen:woolen cosy:cozy "
    "mouldy:moldy skilful:skillful draught:draft sulphur:sulfur favourite:favorite "
    "flavour:flavor honour:honor humour:humor labour:labor labourer:laborer odour:odor rumour:rumor "
    "behaviour:behavior candour:candor clamour:clamor fervour:fervor glamour:glamor splendour:splendor tumour:tumor "
    "valour:valor vigour:vigor ardour:ardor traveller:traveler jeweller:jeweler counsellor:counselor "
    "marvellous:marvelous dishevelled:disheveled panelled:paneled jewelled:jeweled enamelled:enameled "
    "travelling:traveling licence:license defence:defense offence:offense pretence:pretense "
    "moisturiser:moisturizer fertiliser:fertilizer sanitiser:sanitizer tranquilliser:tranquilizer "
    "organiser:organizer equaliser:equalizer vaporiser:vaporizer atomiser:atomizer "
    "paediatrician:pediatrician anaesthetist:anesthetist gynaecologist:gynecologist "
    "encyclopaedia:encyclopedia manoeuvre:maneuver sceptic:skeptic grandad:granddad "
    "pedlar:peddler waggon:wagon caviare:caviar yoghourt:yogurt"
)
"""Spellings of one word: the one on the right stands for all."""
INVARIANT = words(
    "glasses sunglasses eyeglasses pants jeans shorts trousers tights leggings overalls goggles scissors "
    "clothes woods trunks binoculars pajamas sports news lens canvas christmas atlas texas bias chaos cosmos "
    "thermos rhinoceros series species means barracks headquarters always perhaps does hers ours theirs "
    "towards afterwards outdoors indoors backwards forwards upwards downwards sideways upstairs downstairs "
    "besides overseas whereas james vegas angeles molasses kudos asbestos specimen yemen omen abdomen "
    "regimen acumen ramen amen slacks suspenders fatigues sweatpants squarepants adidas mercedes"
)
"""Words that end like a plural and are not, or that mean something else without the s."""
_IRREGULAR_ENDINGS = ("children", "scarves", "shelves", "wives", "knives", "wolves")

MAX_TOKENS = 256  # more of a text is not read: a phrase is a few words, and a whole caption is below this
MAX_LETTERS = 40  # a longer token is cut, ends in '…' and is no word


def is_function_word(token: str) -> bool:
    """Whether a token names nothing by itself: article, number, preposition, auxiliary, pronoun, digits."""
    return token in FUNCTION_WORDS or token.isdigit() or (len(token) < 2 and token.isascii())


def may_be_shown(token: str) -> bool:
    """Whether a token can be a word of the vocabulary: no function word, or a number of things."""
    return token in COUNTS or not is_function_word(token)


def is_modifier(token: str) -> bool:
    """Whether a token is an adjective by the list, or by its ending."""
    return token in ADJECTIVES or (len(token) > 5 and token.endswith(_ADJECTIVE_ENDINGS))


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
    if word in INVARIANT or len(word) < 4:
        return word
    for ending in _IRREGULAR_ENDINGS:
        if word.endswith(ending):
            return word.removesuffix(ending) + SINGULARS[ending]
    if word.endswith("men"):
        return word[:-2] + "an"
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
