"""How often does the peak stay where it was when the word is another one? Rows for the controls.

For each control `<method>@<control>` whose method was asked too, and each protocol that points, a row with the
metric `same_peak`: the share of phrases whose peak lies within 5 % of the image's longer side of the method's
own. Near 100 the map does not listen to the word; the accuracy of such a method is a bias of photographs.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from phrase_loc.evaluation.protocol import Protocol
from phrase_loc.evaluation.results import Floats, Table
from phrase_loc.evaluation.rows import Rows

METRIC = "same_peak"
NEAR = 0.05  # of the longer side


def same_peak_rows(
    rows: Rows, protocols: tuple[Protocol, ...], asked: tuple[str, ...]
) -> list[dict[str, Any]]:
    """One row for each pointing protocol and control whose own method is among `asked`."""
    found = []
    for protocol in protocols:
        for name in asked:
            method, _, control = name.partition("@")
            if control and method in asked and "pointing" in protocol.kind:
                found.append(_row(rows, protocol, method, name))
    return found


def same_peak(own: Table, other: Table) -> Floats:
    """(N,) 1 where the two peaks are near each other; 0 where one of them is missing."""
    sizes = np.array([max(own.things.samples[i].size) for i in own.things.image.tolist()], dtype=np.float64)
    distance = np.linalg.norm(own.peak - other.peak, axis=1)
    return (np.nan_to_num(distance, nan=np.inf) <= NEAR * sizes).astype(np.float64)


def _row(rows: Rows, protocol: Protocol, method: str, control: str) -> dict[str, Any]:
    own, other = rows.tables[protocol.name, method], rows.tables[protocol.name, control]
    compared = {(protocol.name, control): replace(other, values={METRIC: same_peak(own, other)})}
    row = Rows(compared, rows.images, rows.bootstrap).row(protocol, control, METRIC, own.known)
    return row | {"baselines": {}, "by_type": {}, "compared_with": method}
