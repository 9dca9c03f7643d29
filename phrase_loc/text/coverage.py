"""How much of a list of phrases a vocabulary can answer, and which words it lacks."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from phrase_loc.text.parsing import Role, parse
from phrase_loc.text.phrases import PhraseEncoder


@dataclass(frozen=True)
class Coverage:
    """Counts over phrases, each mention once.

    Attributes:
        phrases: how many there were.
        answerable: those with a known word, head or not.
        headed: those whose head noun (one of them, if there are several) is known.
        complete: those all of whose content words are known, and that have one.
        wordless: those without any content word ('it', 'another').
        unknown: words no table holds, with the number of phrases they stand in.
    """

    phrases: int
    answerable: int
    headed: int
    complete: int
    wordless: int
    unknown: Counter[str]

    def report(self, rows: int = 60) -> str:
        """The figures and the most frequent unknown words as text for a terminal."""
        lines = [
            f"phrases {self.phrases}",
            f"with a known word {_share(self.answerable, self.phrases)}",
            f"with a known head {_share(self.headed, self.phrases)}",
            f"with all words known {_share(self.complete, self.phrases)}",
            f"without a content word {_share(self.wordless, self.phrases)}",
        ]
        missing = [f"{word} {count}" for word, count in self.unknown.most_common(rows)]
        return "\n".join(lines + ([f"unknown: {', '.join(missing)}"] if missing else []))


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / max(1, whole):.1f} %)"


def cover(encoder: PhraseEncoder, phrases: Iterable[str]) -> Coverage:
    """Ask the encoder for every phrase and count."""
    total = answerable = headed = complete = wordless = 0
    unknown: Counter[str] = Counter()
    for phrase in phrases:
        total += 1
        found = parse(phrase)
        words = encoder.encode(phrase).words
        known = [word.known for word in words]
        answerable += any(known)
        complete += bool(known) and all(known)
        wordless += not found
        headed += any(encoder.knows(token.text) for token in found if token.role is Role.HEAD)
        unknown.update(word.text for word in words if not word.known and found)
    return Coverage(total, answerable, headed, complete, wordless, unknown)
