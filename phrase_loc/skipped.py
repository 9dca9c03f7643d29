"""What a dataset or an evaluation left out, by kind, in sentences: nothing is counted silently.

The policy, everywhere: what cannot be read is neither a hit nor a miss. It leaves the count, and it is named
here. `Skipped` is filled while annotations are read and travels into the report.
"""

import logging
from collections import Counter
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


log = logging.getLogger(__name__)

#: kind -> the words of the log.
KINDS = {
    "image": "broken image",
    "text": "empty or unreadable text",
    "words": "text without a word of the vocabulary",
    "lone": "sample without image or without text",
    "row": "unreadable row of a table",
    "shard": "damaged, truncated or unreadable part of a shard",
    "duplicate": "duplicate key",
}
NAMED = 10


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that was skipped."""

    kind: str
    name: str
    detail: str = ""


@dataclass
class Faults:
    """The tally of a run; the same sample counts once, however many epochs meet it.

    Attributes:
        limit: faults that are accepted; None accepts all.
        seen: (kind, name) of each fault so far.
    """

    limit: int | None = None
    seen: set[tuple[str, str]] = field(default_factory=set)
    _counts: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = Counter(kind for kind, _ in self.seen)

    def add(self, fault: Fault) -> None:
        """Counts a fault and names it in the log while it is among the first of its kind.

        Raises:
            DataError: there are more than the limit.
        """
        if not self._take(fault.kind, fault.name):
            return
        count = self._counts[fault.kind]
        if count <= NAMED:
            more = "; further ones are only counted" if count == NAMED else ""
            log.warning("skipped: %s: %s %s%s", KINDS[fault.kind], fault.name, fault.detail, more)
        self.check(len(self.seen))

    def restore(self, seen: Iterable[tuple[str, str]]) -> None:
        """Takes over what an earlier part of the run counted, unnamed and unchecked."""
        for kind, name in seen:
            self._take(kind, name)

    def _take(self, kind: str, name: str) -> bool:
        fresh = (kind, name) not in self.seen
        if fresh:
            self.seen.add((kind, name))
            self._counts[kind] += 1  # counting the set anew for each fault would be quadratic
        return fresh

    def check(self, total: int) -> None:
        """Raises DataError when `total` faults, over all processes, are more than the limit."""
        if self.limit is not None and total > self.limit:
            raise DataError(
                f"more than {self.limit} samples are unusable ({self.report()}); mend the data or raise "
                "data.max_faults"
            )

    def counts(self) -> Counter[str]:
        """Faults by kind."""
        return Counter(self._counts)

    def report(self) -> str:
        """Such as '3 x broken image, 1 x duplicate key'; 'none' without faults."""
        found = self.counts()
        return ", ".join(f"{found[kind]} x {KINDS[kind]}" for kind in KINDS if found[kind]) or "none"
