"""ImageNet localization: one box from the map, its threshold chosen on images that are not reported.

The evaluator has scored every threshold of every rule (`class_protocols.GRIDS`) in one pass. Here the images
are parted by a hash of their name; per method and per rule the threshold with the highest accuracy on the
held-out part is taken (the lowest of equal ones), and the row is made from the other part alone.

Rows are errors in percent, as the literature has them:

    error          the class is given; IoU < 0.5 with every box of it
    top1_error     the classifier's first class is wrong, or its box is
    top5_error     none of its first five classes is right with a right box. The box of the right class is
                   that of the class given, so both follow from the class's rank.
"""

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from phrase_loc.errors import DataError
from phrase_loc.evaluation.protocol import Protocol
from phrase_loc.evaluation.results import Table
from phrase_loc.evaluation.rows import Rows

if TYPE_CHECKING:
    from phrase_loc.evaluation.procedure import Evaluation

BUCKETS = 10_000
NOTE_TINY = "64-pixel photographs, upsampled: never beside a figure of ImageNet"


def chosen_rows(evaluation: "Evaluation", held_out: float) -> list[dict[str, Any]]:
    """The rows of the images that were not held out, one choice per method, rule and component.

    Args:
        evaluation: finished; its protocols of kind 'map_box' are the thresholds tried.
        held_out: share of images on which thresholds are chosen, above 0 and below 1.

    Raises:
        DataError: one of the two parts is empty.
    """
    families = threshold_families(evaluation.plan.protocols)
    ids = [sample.image_id for sample in evaluation.plan.samples]
    held = np.array([is_held_out(i, held_out) for i in ids])
    if not held.any() or held.all():
        raise DataError(f"{len(ids)} images are too few to hold out {held_out:g} of them; change held_out")
    ranks = class_ranks(evaluation)
    note = NOTE_TINY if getattr(evaluation.plan.samples, "name", "") == "tiny_imagenet" else ""
    rows = []
    for family in families.values():
        for method in evaluation.asked:
            protocol = choose_threshold(evaluation.rows, family, method, held)
            for row in reported_rows(evaluation.rows, protocol, method, held, ranks):
                row["threshold"]["held_out_images"] = int(held.sum())
                rows.append(row | ({"note": note} if note else {}))
    return rows


def threshold_families(protocols: tuple[Protocol, ...]) -> dict[tuple[str, str], list[Protocol]]:
    """Protocols of kind 'map_box' by rule and component, each in the order given."""
    families: dict[tuple[str, str], list[Protocol]] = {}
    for protocol in protocols:
        if protocol.map_box is not None:
            families.setdefault((protocol.map_box.rule, protocol.map_box.component), []).append(protocol)
    if not families:
        raise DataError("held_out chooses thresholds, but no protocol has one; ask for imagenet_box_*")
    return families


def is_held_out(image_id: str, share: float) -> bool:
    """Whether an image belongs to the part on which thresholds are chosen; the same on every machine."""
    digest = hashlib.sha256(image_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS < share * BUCKETS


def choose_threshold(rows: Rows, family: list[Protocol], method: str, held: NDArray[np.bool_]) -> Protocol:
    """The protocol of a family with the highest accuracy on the held-out images, the first of equal ones."""

    def accuracy(protocol: Protocol) -> float:
        table = rows.tables[protocol.name, method]
        return float(table.values["accuracy"][held[table.things.image]].mean())

    return max(family, key=accuracy)


def reported_rows(
    rows: Rows, protocol: Protocol, method: str, held: NDArray[np.bool_], ranks: NDArray[np.intp] | None
) -> list[dict[str, Any]]:
    """Errors of one method with its threshold on the reported images; ranks (I,) of the true classes."""
    table = rows.tables[protocol.name, method]
    keep = ~held[table.things.image]
    box = protocol.map_box
    assert box is not None  # threshold_families kept no other
    threshold = {"rule": box.rule, "value": box.value, "component": box.component}
    found = []
    for metric, needed in (("error", None), ("top1_error", 1), ("top5_error", 5)):
        if needed is None:
            right = None
        elif ranks is None:
            continue
        else:
            right = ranks[table.things.image] < needed
        row = _error_row(rows, protocol, method, keep, right)
        found.append(row | {"metric": metric, "threshold": dict(threshold)})
    return found


def class_ranks(evaluation: "Evaluation") -> NDArray[np.intp] | None:
    """How many classes score above the true one, per image (I,); None when the localizer classifies nothing.

    An image that was left out keeps rank 0: none of its things is counted.
    """
    localizer = evaluation.localizer
    if not hasattr(localizer, "classify"):
        return None
    ranks = np.zeros(len(evaluation.plan.samples), dtype=np.intp)
    for i, sample in enumerate(tqdm(evaluation.plan.samples, desc="classify", unit=" images", disable=None)):
        try:
            scores = localizer.classify(localizer.look(sample.path, size=sample.size))
        except DataError:
            continue
        own = localizer.names[sample.phrases[0].text]
        ranks[i] = int((scores > scores[list(own)].max()).sum())
    return ranks


def _error_row(
    rows: Rows, protocol: Protocol, method: str, keep: NDArray[np.bool_], right: NDArray[np.bool_] | None
) -> dict[str, Any]:
    """A row of 100 - accuracy, where a thing also needs `right` (N,), when given, to count as found."""
    key = (protocol.name, method)
    tables = rows.tables if right is None else {**rows.tables, key: _also(rows.tables[key], right)}
    row = Rows(tables, rows.images, rows.bootstrap).row(protocol, method, "accuracy", keep)
    beside = row["baselines"] if right is None else {}  # a blind box knows no class
    return {
        **row,
        "value": _turned(row["value"]),
        "ci95": [_turned(x) for x in reversed(row["ci95"])],
        "baselines": {name: _turned(x) for name, x in beside.items()},
        "by_type": {},  # a thousand classes with a few images each say nothing
    }


def _also(table: Table, right: NDArray[np.bool_]) -> Table:
    return replace(table, values={"accuracy": table.values["accuracy"] * right})


def _turned(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(100 - accuracy, 2)
