"""The one record of what was left out: what cannot be read is neither a hit nor a miss, it is named here."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from phrase_loc.errors import DataError

log = logging.getLogger(__name__)

#: Kinds of faults of image-text pairs -> their words in the log.
KINDS = {
    "image": "broken image",
    "text": "empty or unreadable text",
    "words": "text without a word of the vocabulary",
    "lone": "sample without image or without text",
    "row": "unreadable row of a table",
    "shard": "damaged, truncated or unreadable part of a shard",
    "duplicate": "duplicate key",
}
NAMED = 10  # faults of a kind that the log names


class Fault(NamedTuple):
    """One thing that is wrong with image-text pairs: its kind (see KINDS), the name of the sample, and why."""

    kind: str
    name: str
    detail: str = ""


@dataclass
class Skipped:
    """What was left out of a set, an evaluation or a run, each thing once however often it is met."""

    limit: int | None = None  # things that are accepted; None accepts all
    #: (kind, sentence) as they were met
    seen: dict[tuple[str, str], None] = field(default_factory=dict, init=False)
    counts: Counter[str] = field(default_factory=Counter, init=False)  # of each kind

    def note(self, kind: str, sentence: str) -> bool:
        """Takes up one thing, neither named in the log nor checked; whether it is new."""
        fresh = (kind, sentence) not in self.seen
        if fresh:
            self.seen[kind, sentence] = None
            self.counts[kind] += 1
        return fresh

    def restore(self, seen: Iterable[tuple[str, str]]) -> None:
        """Takes up what another record, or an earlier part of the run, has seen."""
        for kind, sentence in seen:
            self.note(kind, sentence)

    def add(self, fault: Fault) -> None:
        """Counts a fault and names it in the log while it is among the first of its kind; checks the limit."""
        if self.note(fault.kind, fault.name):
            count = self.counts[fault.kind]
            if count <= NAMED:
                more = "; further ones are only counted" if count == NAMED else ""
                log.warning("skipped: %s: %s %s%s", KINDS[fault.kind], fault.name, fault.detail, more)
            self.check(self.seen)

    def check(self, seen: Iterable[Sequence[str]]) -> None:
        """Raises DataError when faults (kind, name), over all processes, are more than the limit.

        A photograph of which only other words are said is no fault of the data.
        """
        if self.limit is not None and sum(kind != "words" for kind, _ in seen) > self.limit:
            raise DataError(
                f"more than {self.limit} samples are unusable ({self.summary()}); mend the data or raise "
                "data.max_faults"
            )

    def refuse_if_empty(self, kept: int, what: str) -> None:
        """Raises DataError, with the first reason, when nothing is left to evaluate."""
        if kept == 0:
            reasons = [text if kind == "images" else f"{kind}: {text}" for kind, text in self.seen]
            why = f"; the first of {len(reasons)} problems: {reasons[0]}" if reasons else ""
            raise DataError(f"{what} holds nothing that can be evaluated{why}")

    @property
    def notes(self) -> dict[str, list[str]]:
        """Kind -> sentences."""
        return {kind: [sentence for k, sentence in self.seen if k == kind] for kind in self.counts}

    def to_dict(self) -> dict[str, dict[str, object]]:
        """{kind: {"count": n, "sentences": [...]}}, ready for JSON."""
        return {kind: {"count": len(entries), "sentences": entries} for kind, entries in self.notes.items()}

    def summary(self) -> str:
        """Such as '3 x broken image, 1 x duplicate key' or '2 images, 1 captions'; '' where nothing was left out."""
        counts = self.counts.items()
        return ", ".join(f"{n} x {KINDS[kind]}" if kind in KINDS else f"{n} {kind}" for kind, n in counts)
