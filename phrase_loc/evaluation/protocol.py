"""What a protocol is: a frozen record of facts. The protocols themselves stand in protocols.py."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MapBox:
    """How a map becomes one tight box (map_boxes.py).

    Attributes:
        rule: threshold as a share of the maximum ('max'), a multiple of the mean ('mean'), a place between
            minimum and maximum ('range'), the smallest set of cells that holds a share of the sum
            ('energy'), or what one published script does ('wwbl_script', see parity.py).
        value: that share, multiple or place.
        component: the box around 'all' cells at or above the threshold, or around the 'largest' component.
        grid: side of the square grid on which the map is thresholded; 0 is the frame of the boxes.
    """

    rule: Literal["max", "mean", "range", "energy", "wwbl_script"]
    value: float
    component: Literal["all", "largest"] = "all"
    grid: int = 0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The facts of one test.

    Attributes:
        name: its name in reports and configs.
        kind: which scorer reads it (SCORERS in scoring.py).
        unit: counts each 'mention' (a phrase of a caption), or each 'entity' (chain): its mentions' maps are
            averaged. Only what has a true box counts.
        truth: a hit on 'any' box, or on the 'union' box, min / max over all boxes of the chain.
        strict: whether a point on the border of a box is outside.
        margin: pixels by which boxes are widened for pointing.
        offset: what is added to widths and heights (1 where pixels count inclusively).
        iou: overlap that makes a box correct.
        iou_closed: whether exactly that overlap is enough.
        ks: ranks at which recall is taken.
        top_k: boxes asked of a method; more than max(ks) only feeds mAP.
        min_area: smallest share of the image the truth must cover (kept when equal, unless area_strict).
        max_area: share of the image the truth must stay below.
        area_of: whose area the two filters read: the 'union' box or the 'first' box of the XML.
        area_strict: whether a truth of exactly min_area is left out.
        border: width of the frame of map pixels that is set to zero before the peak is taken.
        map_box: how a map becomes the one box that is scored (kind 'map_box').
        sweep: rules tried in one pass, of which localization.py chooses one (kind 'map_box_sweep').
        average: mean over 'item's, or over 'label's (classes) of their means.
        subset: key of GroundingSample.facts with one bool per phrase: only these count.
        shift: added to the true boxes; 1 for scripts that leave the XML's 1-based corners as they are.
        metrics: names of the values a scorer gives, in the order reported.
        small_of: the protocol of which this one is the small-instance subset, or ''.
        about: one sentence for tables.
    """

    name: str
    kind: str
    metrics: tuple[str, ...]
    unit: Literal["mention", "entity"] = "mention"
    truth: Literal["any", "union"] = "any"
    strict: bool = False
    margin: float = 0.0
    offset: float = 0.0
    iou: float = 0.5
    iou_closed: bool = True
    ks: tuple[int, ...] = ()
    top_k: int = 0
    min_area: float | None = None
    max_area: float | None = None
    area_of: Literal["union", "first"] = "union"
    area_strict: bool = False
    border: int = 0
    map_box: MapBox | None = None
    sweep: tuple[MapBox, ...] = ()
    average: Literal["item", "label"] = "item"
    subset: str | None = None
    shift: float = 0.0
    small_of: str = ""
    about: str = ""
