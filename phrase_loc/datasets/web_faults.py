"""What is wrong with the data: counted by kind, the first of each kind named in the log, up to a limit.

A set from the web always holds broken images and empty texts, so one of them must not end a run; but a run
on a wrong folder must not skip its way through millions either.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field

from phrase_loc.errors import DataError

log = logging.getLogger(__name__)

#: kind -> the words of the log.
KINDS = {
    "image": "broken image",
    "text": "empty or unreadable text",
    "words": "text without a word of the vocabulary",
    "lone": "sample without image or without text",
    "shard": "truncated or unreadable shard",
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

    def add(self, fault: Fault) -> None:
        """Counts a fault and names it in the log while it is among the first of its kind.

        Raises:
            DataError: there are more than the limit.
        """
        if (fault.kind, fault.name) in self.seen:
            return
        self.seen.add((fault.kind, fault.name))
        count = self.counts()[fault.kind]
        if count <= NAMED:
            more = "; further ones are only counted" if count == NAMED else ""
            log.warning("skipped: %s: %s %s%s", KINDS[fault.kind], fault.name, fault.detail, more)
        self.check(len(self.seen))

    def check(self, total: int) -> None:
        """Raises DataError when `total` faults, over all processes, are more than the limit."""
        if self.limit is not None and total > self.limit:
            raise DataError(
                f"more than {self.limit} samples are unusable ({self.report()}); mend the data or raise "
                "data.max_faults"
            )

    def counts(self) -> Counter[str]:
        """Faults by kind."""
        return Counter(kind for kind, _ in self.seen)

    def report(self) -> str:
        """Such as '3 x broken image, 1 x duplicate key'; 'none' without faults."""
        found = self.counts()
        return ", ".join(f"{found[kind]} x {KINDS[kind]}" for kind in KINDS if found[kind]) or "none"
