"""Values by word, and for phrases whose words the model saw in training against those it did not."""

from functools import lru_cache
from typing import Any

import numpy as np

from phrase_loc.evaluation.protocol import Protocol
from phrase_loc.evaluation.rows import Rows, percent
from phrase_loc.text.parsing import parse
from phrase_loc.text.words import canonical

ENOUGH = 5  # a word gets a line when so many of the things counted name it


def by_word(
    rows: Rows, protocols: tuple[Protocol, ...], methods: tuple[str, ...], localizer: Any
) -> list[dict[str, Any]]:
    """The first metric of each protocol for each frequent content word, most frequent first."""
    vocabulary = getattr(localizer, "vocabulary", None)
    lines = []
    for protocol in protocols:
        for method in methods:
            table, metric = rows.tables[protocol.name, method], protocol.metrics[0]
            if metric not in table.values:
                continue
            owners: dict[str, list[int]] = {}
            for thing, text in enumerate(table.things.texts):
                for word in content_words(text):
                    owners.setdefault(word, []).append(thing)
            for word, things in sorted(owners.items(), key=lambda item: (-len(item[1]), item[0])):
                if len(things) >= ENOUGH:
                    seen = None if vocabulary is None else word in vocabulary
                    value = percent(table.values[metric][things].mean())
                    names = {"protocol": protocol.name, "method": method, "metric": metric, "word": word}
                    lines.append(names | {"seen": seen, "count": len(things), "value": value})
    return lines


def by_seen(rows: Rows, protocol: Protocol, row: dict[str, Any], localizer: Any) -> dict[str, Any]:
    """{"by_seen": {group: {"value", "count"}}} of a row; empty where there is no training vocabulary.

    Groups: every content word is in the training vocabulary, some are, none is.
    """
    vocabulary = getattr(localizer, "vocabulary", None)
    table = rows.tables[protocol.name, row["method"]]
    if vocabulary is None or row["metric"] not in table.values:
        return {}
    groups = np.array([_group(text, vocabulary) for text in table.things.texts])
    found = {}
    for name in ("seen", "partly seen", "unseen"):
        values = table.values[row["metric"]][groups == name]
        if len(values):
            found[name] = {"value": percent(values.mean()), "count": len(values)}
    return {"by_seen": found}


def _group(phrase: str, vocabulary: Any) -> str:
    inside = [word in vocabulary for word in content_words(phrase)]
    if inside and all(inside):
        return "seen"
    return "partly seen" if any(inside) else "unseen"


@lru_cache(maxsize=1 << 16)
def content_words(phrase: str) -> tuple[str, ...]:
    """Dictionary forms of the content words of a phrase, each once."""
    return tuple(dict.fromkeys(canonical(token.text) for token in parse(phrase)))
