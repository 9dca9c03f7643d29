"""What a dataset or an evaluation left out, by kind, in sentences: nothing is counted silently.

The policy, everywhere: what cannot be read is neither a hit nor a miss. It leaves the count, and it is named
here. `Skipped` is filled while annotations are read and travels into the report.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from phrase_loc.errors import DataError


@dataclass
class Skipped:
    """Sentences about what was left out, in the order met, under a short kind ('images', 'captions', ...)."""

    notes: dict[str, list[str]] = field(default_factory=dict)
    _seen: set[tuple[str, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._seen = {(kind, sentence) for kind, entries in self.notes.items() for sentence in entries}

    def note(self, kind: str, sentence: str) -> None:
        """Add one sentence; the same sentence is kept once."""
        if (kind, sentence) not in self._seen:
            self._seen.add((kind, sentence))
            self.notes.setdefault(kind, []).append(sentence)

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind."""
        return {kind: len(entries) for kind, entries in self.notes.items()}

    def to_dict(self) -> dict[str, dict[str, object]]:
        """{kind: {"count": n, "sentences": [...]}}, ready for JSON."""
        return {kind: {"count": len(entries), "sentences": entries} for kind, entries in self.notes.items()}

    def merged(self, others: Iterable["Skipped"]) -> "Skipped":
        """These notes and those of others, each sentence once."""
        total = Skipped({kind: list(entries) for kind, entries in self.notes.items()})
        for other in others:
            for kind, entries in other.notes.items():
                for sentence in entries:
                    total.note(kind, sentence)
        return total

    def summary(self) -> str:
        """One line: '2 images, 1 captions left out', or '' when there is nothing to tell."""
        return ", ".join(f"{n} {kind}" for kind, n in self.counts.items())

    def refuse_if_empty(self, kept: int, what: str) -> None:
        """Raise when nothing is left to evaluate, with the first reason."""
        if kept == 0:
            reasons = [sentence for entries in self.notes.values() for sentence in entries]
            why = f"; the first of {len(reasons)} problems: {reasons[0]}" if reasons else ""
            raise DataError(f"{what} holds nothing that can be evaluated{why}")
