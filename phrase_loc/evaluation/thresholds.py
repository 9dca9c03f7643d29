"""ImageNet localization: one box from the map, its threshold chosen on images that are not reported.

The evaluator has scored every threshold of a rule (`class_protocols.GRIDS`) in one pass. Here the images are
parted by a hash of their name; for each method the threshold with the highest accuracy on the held-out part is
taken (the first of equal ones), and the tables of the other part alone go into the report.

Values are errors in percent, as the literature has them:

    error          the class is given; IoU < 0.5 with every box of it
    top1_error     the classifier's first class is wrong, or its box is
    top5_error     none of its first five classes is right with a right box. The box of the right class is
                   that of the class given, so both follow from the class's rank.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.evaluation.protocols import Protocol
from phrase_loc.evaluation.tables import Floats, Table
from phrase_loc.structures import GroundingSample

if TYPE_CHECKING:
    from phrase_loc.evaluation.run import Evaluation

BUCKETS = 10_000
NOTE_TINY = "64-pixel photographs, upsampled: never beside a figure of ImageNet"
Part = NDArray[np.bool_]


def check(protocols: Sequence[Protocol], held_out: float) -> None:
    """Refuse a sweep without held-out images, and held-out images for a test that chooses nothing.

    Raises:
        ConfigError: the two settings do not fit.
    """
    for protocol in protocols:
        if protocol.sweep and not held_out:
            raise ConfigError(
                f"{protocol.name} chooses its threshold on held-out images; set held_out=0.25, or ask for one "
                "threshold such as imagenet_box_mean_1.5"
            )
        if held_out and not protocol.sweep:
            raise ConfigError(
                f"held_out chooses thresholds and {protocol.name} has none to choose; ask for imagenet_sweep_*"
            )


def settle(evaluation: "Evaluation", held_out: float) -> "Evaluation":
    """The evaluation of the images that were not held out, each method with the threshold it chose.

    Args:
        evaluation: finished; its protocols have sweeps.
        held_out: share of images on which thresholds are chosen, above 0 and below 1.

    Raises:
        DataError: one of the two parts is empty.
    """
    held = held_out_part(evaluation.plan.samples, held_out)
    tiny = evaluation.plan.dataset == "tiny_imagenet"
    tables, notes = dict(evaluation.tables), {}
    for protocol in evaluation.plan.protocols:
        for method in evaluation.plan.methods:
            table = evaluation.tables[protocol.name, method.name]
            number = best_threshold(protocol, table, held)
            tables[protocol.name, method.name] = reported(protocol, table, number, ~held)
            rule = protocol.sweep[number]
            chosen = {"rule": rule.rule, "value": rule.value, "component": rule.component}
            notes[protocol.name, method.name] = {
                "threshold": chosen | {"held_out_images": int(held.sum())},
                "by_type": {},  # a thousand classes with a few images each say nothing
                **({"note": NOTE_TINY} if tiny else {}),
            }
    return replace(evaluation, rows=replace(evaluation.rows, tables=tables), notes=notes)


def held_out_part(samples: Sequence[GroundingSample], share: float) -> Part:
    """Which images are held out: (I,), some but not all."""
    held = np.array([is_held_out(sample.image_id, share) for sample in samples])
    if not held.any() or held.all():
        raise DataError(f"{len(held)} images are too few to hold out {share:g} of them; change held_out")
    return held


def is_held_out(image_id: str, share: float) -> bool:
    """Whether an image belongs to the part on which thresholds are chosen; the same on every machine."""
    digest = hashlib.sha256(image_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS < share * BUCKETS


def best_threshold(protocol: Protocol, table: Table, held: Part) -> int:
    """Place in the sweep of the highest accuracy on the held-out images (I,), the first of equal ones."""
    hits = _hits(protocol, table)[held[table.things.image]]
    return int(hits.mean(0).argmax()) if len(hits) else 0


def reported(protocol: Protocol, table: Table, number: int, part: Part) -> Table:
    """A method's table with one threshold of the sweep, on the images (I,) of one part."""
    hit = _hits(protocol, table)[:, number]
    values = {"accuracy": hit, "error": 1 - hit}
    if not np.isnan(table.rank).any():
        values |= {f"top{k}_error": 1 - hit * (table.rank < k) for k in (1, 5)}
    overlap, box = (tried[:, number] for tried in table.tried)
    return replace(table, values=values, iou=overlap, box=box).take(part[table.things.image])


def _hits(protocol: Protocol, table: Table) -> Floats:
    """(N, T) 1 where the box of a rule is right."""
    ious = table.tried[0]
    if not len(ious):
        return np.zeros((0, len(protocol.sweep)))
    return (ious >= protocol.iou if protocol.iou_closed else ious > protocol.iou).astype(np.float64)
