"""Makes phrase_loc/text/lists/words.txt.xz, the words of English that are never taken for misspellings.

    apt-get download wamerican wbritish wordnet-base    # SCOWL 2020.12.07 up to size 60, WordNet 3.0
    for package in *.deb; do dpkg-deb -x $package lists; done
    python benchmarks/word_list.py lists/usr/share

SCOWL's larger lists hold rare words that are common misspellings ('ballon'). One dictionary form a line, five to
fourteen letters without marks; adjectives of any length end in '+': what WordNet has as an adjective alone, or has
seen more often as one than as a noun. Compounds end in '=' where WordNet says that the whole is a kind of its
second half ('goldfish', but not 'ladybird'). Proper names, of two letters or more, end in '^': both write them with a
capital alone, and for WordNet they are no kind of thing but one thing, or a trademark ('Toyota', but not 'Muslim').
Words that are names where they are written with a capital end in '*' ('Ford', 'Coca-Cola' as one word): WordNet's
tagged texts have no common use of them.
"""

import itertools
import lzma
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

from phrase_loc.text.english import canonical

OUT = Path(__file__).parents[1] / "phrase_loc/text/lists/words.txt.xz"


def main(share: Path) -> None:
    nouns, adjectives, others = (set(lemmas(share, *parts)) for parts in (["noun"], ["adj"], ["verb", "adv"]))
    written = {
        word
        for name in ("american-english", "british-english")
        for word in (share / "dict" / name).read_text(encoding="utf-8").split()
        if "'" not in word
    }
    small, capital = ({plain(w) for w in written if w.islower() is state} for state in (True, False))
    spelt = small | capital
    proper = proper_names(share, capital) - adjectives - others
    joined, names = {re.sub("[_-]", "", name) for name in proper if re.search("[_-]", name)}, proper - small
    seen = senses(share)
    mainly = {w for w in adjectives if w not in nouns or seen[w, "a"] > seen[w, "n"]}
    parts = {
        part for lemma in nouns | adjectives | others | names | joined for part in re.split("[_-]", lemma)
    }
    words = {w for w in spelt | parts if re.fullmatch("[a-z]{5,14}", w)}
    words = {w for w in words if canonical(w) == w or canonical(w) not in words}
    words |= {w for w in mainly & spelt | names | capital if re.fullmatch("[a-z]{2,4}", w)}
    marks = {
        "*": (set(map(plain, filter(str.istitle, written))) & small | joined) - seen.keys(),
        "^": names,
        "=": compounds(share),
        "+": mainly,
    }  # the last one holds
    mark = {word: mark for mark, marked in marks.items() for word in marked}
    lines = sorted(word + mark.get(word, "") for word in words)
    text = "\n".join(["", *lines, ""])
    OUT.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    counts = {mark: sum(word.endswith(mark) for word in lines) for mark in marks}
    print(f"{len(lines)} words, {counts}, {OUT.stat().st_size} bytes")


def lemmas(share: Path, *parts: str) -> list[str]:
    """The words and compounds of WordNet's indices."""
    rows = [
        row for part in parts for row in (share / "wordnet" / f"index.{part}").read_text("utf-8").splitlines()
    ]
    return [plain(row.split()[0]) for row in rows if not row.startswith(" ")]


def proper_names(share: Path, capital: set[str]) -> set[str]:
    """Words that WordNet takes first for one thing or a trademark, and never for an animal or a food.

    Of WordNet those that it writes with a capital alone, and those of `capital` that it lacks.
    """
    rows = (share / "wordnet" / "data.noun").read_text("utf-8").splitlines()
    synsets = {row[:8]: row for row in rows if not row.startswith(" ")}
    small = {field for row in synsets.values() for field in row.split("|")[0].split() if field.islower()}
    found = capital - set(lemmas(share, "noun"))
    for row in (share / "wordnet" / "index.noun").read_text("utf-8").splitlines():
        fields = row.split()
        if not row.startswith(" ") and fields[0] not in small:
            first, *more = (synsets[offset] for offset in fields[-int(fields[2]) :])
            eaten = any(row[9:11] in ("05", "13") and " @i " not in row for row in more)  # or an animal
            named = (" @i " in first and not eaten) or "trademark" in first
            found |= {plain(fields[0])} if named else set()
    return found


def senses(share: Path) -> Counter[tuple[str, str] | str]:
    """How often WordNet's tagged texts use a word, and how often as a noun ('n') or an adjective ('a')."""
    counts: Counter[tuple[str, str] | str] = Counter()
    for row in (share / "wordnet" / "cntlist.rev").read_text("utf-8").splitlines():
        key, _, count = row.split()
        lemma, _, place = key.partition("%")
        counts[plain(lemma)] += int(count)
        counts[plain(lemma), {"1": "n", "3": "a", "5": "a"}.get(place[0], "")] += int(count)
    return counts


def compounds(share: Path) -> set[str]:
    """Nouns whose second half, of three letters or more, is among the names of what they are kinds of."""
    names: dict[str, list[str]] = {}
    above: dict[str, list[str]] = {}
    for row in (share / "wordnet" / "data.noun").read_text("utf-8").splitlines():
        if not row.startswith(" "):
            fields = row.split("|")[0].split()
            count = int(fields[3], 16)
            names[fields[0]] = [plain(name) for name in fields[4 : 4 + 2 * count : 2]]
            above[fields[0]] = [b for a, b in itertools.pairwise(fields) if a in ("@", "@i")]
    found = set()
    for synset, own in names.items():
        kinds, waiting = set(), list(above[synset])
        while waiting:
            kind = waiting.pop()
            kinds.update(names[kind])
            waiting.extend(above[kind])
        found.update(w for w in own if any(w[place:] in kinds for place in range(3, len(w) - 2)))
    return found


def plain(word: str) -> str:
    marked = unicodedata.normalize("NFKD", word.lower())
    return "".join(c for c in marked if not unicodedata.combining(c))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
