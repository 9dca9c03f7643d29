"""Every protocol as data. Six incompatible tests are published as "Flickr30k accuracy": never one column.

The evaluator and the scorers only read the fields of `Protocol`; a new test is a new entry here. The rules were
read in the published scripts at the commits that docs/evaluation.md names.

Small instances are a subset of ours: phrases whose union box covers less than a quarter of the image, the area
at which the pointing game's Difficult subset parts small from large. No published number uses this rule on
Flickr30k Entities as far as we could read, so its rows stand beside their blind baselines alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class MapBox:
    """How a map becomes one tight box (thresholds.py).

    Attributes:
        rule: threshold as a share of the maximum ('max'), a multiple of the mean ('mean'), a place between
            minimum and maximum ('range'), the smallest set of cells that holds a share of the sum
            ('energy'), or what one published script does ('wwbl_script').
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
        metrics: names of the values a scorer gives, in the order reported.
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
        sweep: rules tried in one pass, of which thresholds.py chooses one (kind 'map_box_sweep').
        average: mean over 'item's, or over 'label's (classes) of their means.
        subset: key of GroundingSample.facts with one bool per phrase: only these count.
        shift: added to the true boxes; 1 for scripts that leave the XML's 1-based corners as they are.
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

    @property
    def rules(self) -> tuple[MapBox, ...]:
        """The rules by which it makes boxes of maps."""
        return self.sweep or (() if self.map_box is None else (self.map_box,))

    def correct(self, overlaps: Any) -> Any:
        """Whether each overlap makes a box correct, of a tensor or an array."""
        return overlaps >= self.iou if self.iou_closed else overlaps > self.iou


#: Thresholds tried for ImageNet boxes, per rule; 'mean' is the grid of the paper's authors, 0 to 10 by 0.5.
GRIDS: dict[str, tuple[float, ...]] = {
    "mean": tuple(i * 0.5 for i in range(21)),
    "energy": tuple(round(0.30 + 0.05 * i, 2) for i in range(14)),
    "range": tuple(round(0.05 * i, 2) for i in range(1, 18)),
}


def _pointing(name: str, kind: str, truth: str) -> tuple[Protocol, Protocol]:
    """A set's pointing game: all pairs, and the Difficult subset."""
    everything = Protocol(
        name=f"{name}_pointing",
        kind=kind,
        metrics=("accuracy",),
        margin=15.0,
        average="label",
        about=f"pointing game on {truth}: peak within 15 px of the class, mean over classes",
    )
    about = f"{everything.about}; class covers < 1/4 of the image and another class is present"
    return everything, replace(everything, name=f"{everything.name}_difficult", subset="hard", about=about)


def _imagenet() -> Iterator[Protocol]:
    """Localization by the map's box: with each threshold tried, then with each rule's chosen on held-out images."""
    sweeps = []
    parts: Any = (("all", "", "the map"), ("largest", "_largest", "the map's largest component"))
    for component, suffix, of in parts:
        for rule, grid in GRIDS.items():
            boxes = tuple(MapBox(rule, value, component) for value in grid)  # type: ignore[arg-type]
            about = f"tight box of {of}, threshold by {rule}"
            for box in boxes:
                yield Protocol(
                    name=f"imagenet_box_{rule}_{box.value:g}{suffix}",
                    kind="map_box",
                    metrics=("accuracy",),
                    map_box=box,
                    about=f"{about} {box.value:g}; IoU >= 0.5",
                )
            swept = Protocol(
                name=f"imagenet_sweep_{rule}{suffix}",
                kind="map_box_sweep",
                metrics=("error", "top1_error", "top5_error"),
                sweep=boxes,
                about=f"{about} chosen on held-out images; error where IoU < 0.5 with every box of the class",
            )
            sweeps.append(swept)
    yield from sweeps


CLASS_PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *_pointing("voc", "disc_pointing", "boxes"),
        *_pointing("coco", "mask_pointing", "masks"),
        *_pointing("yolo", "disc_pointing", "boxes that stand for masks"),
        *_imagenet(),
    )
}

RECALLS = ("R@1", "R@5", "R@10")
_ANY = Protocol(
    name="pointing_any",
    kind="pointing",
    metrics=("accuracy",),
    strict=True,
    about="A: first maximum of the map strictly inside any box (InfoGround data; AMC, SelfEQ)",
)
_FILTERED = replace(
    _ANY,
    name="pointing_area_filtered",
    strict=False,
    min_area=0.05,
    about="F: peak in any box, border included; union box of at least 5 % of the image (MG, GbS)",
)
_ENTITY = replace(
    _FILTERED,
    name="entity_pointing",
    unit="entity",
    truth="union",
    area_of="first",
    area_strict=True,
    about="W: one score a chain, mentions averaged, peak in the union box (WWbL, g++)",
)
_UNION = Protocol(
    name="recall_union",
    kind="recall",
    metrics=(*RECALLS, "mAP(Group)", "mAP(Phrase)"),
    truth="union",
    offset=1.0,
    ks=(1, 5, 10),
    top_k=200,
    about="U: IoU >= 0.5 with the union box, widths + 1 (Plummer et al. and most weakly supervised work)",
)


def _small(protocol: Protocol) -> Protocol:
    return replace(
        protocol,
        name=f"{protocol.name}_small",
        max_area=0.25,
        small_of=protocol.name,
        about=f"{protocol.about[0]} on small instances: the union box covers less than a quarter of the image",
    )


#: Protocols of Flickr30k Entities, in the order of a report.
FLICKR30K: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _ANY,
        _FILTERED,
        replace(
            _FILTERED,
            name="pointing_area_filtered_border",
            border=4,
            about="F with the outer 4 pixels of the map set to zero first (GbS)",
        ),
        _ENTITY,
        replace(
            _ENTITY,
            name="entity_box",
            kind="map_box",
            map_box=MapBox("max", 0.5),
            about="W: tight box of the map above half its maximum, IoU >= 0.5 with the union box (WWbL, g++)",
        ),
        replace(
            _ANY,
            name="box_centre",
            kind="box_centre",
            top_k=1,
            about="C: centre of the top box strictly inside any box (InfoGround)",
        ),
        _UNION,
        replace(
            _UNION,
            name="recall_any",
            metrics=RECALLS,
            truth="any",
            top_k=10,
            about="N: as U against the best of the separate boxes (MDETR AnyBox, GLIP, Grounding DINO)",
        ),
        _small(_ANY),
        _small(_UNION),
    )
}

PROTOCOLS: dict[str, Protocol] = FLICKR30K | CLASS_PROTOCOLS

_ONE_BASED = {"shift": 1.0}  # MultiGrounding@b7bdd35 data/data_utils.py uses the XML's corners as they are
#: Bugs of published scripts that change a figure a little: fields replaced by `--faithful` (docs/evaluation.md).
KNOWN_DEVIATIONS: dict[str, dict[str, Any]] = {
    "pointing_area_filtered": _ONE_BASED,
    "pointing_area_filtered_border": _ONE_BASED,
    "entity_box": {"map_box": MapBox("wwbl_script", 0.5, grid=224)},
    "recall_any": {"iou_closed": False},  # info-ground@22ae6d6 utils/bbox_utils.py adds 1e-6 to the union
}


def faithful(protocol: Protocol) -> Protocol:
    """The protocol as its published script computes it, bugs included."""
    return replace(protocol, **KNOWN_DEVIATIONS.get(protocol.name, {}))
