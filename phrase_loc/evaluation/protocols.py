"""What `evaluate.py` can be told: every protocol as data, and the settings, filled by a YAML file and `key=value`.

Six incompatible tests are published as "Flickr30k accuracy": never one column. The evaluator and the scorers only
read the fields of `Protocol`; a new test is a new entry here. The rules were read in the published scripts at the
commits that docs/evaluation.md names.

Small instances are a subset of ours: phrases whose union box covers less than a quarter of the image, the area
at which the pointing game's Difficult subset parts small from large. No published number uses this rule on
Flickr30k Entities as far as we could read, so its rows stand beside their blind baselines alone.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from phrase_loc.config import config_dataclass
from phrase_loc.errors import ConfigError, choose


@dataclass(frozen=True)
class MapBox:
    """How a map becomes one tight box (thresholds.py).

    The threshold is a share of the maximum ('max'), a multiple of the mean ('mean'), a place between minimum and
    maximum ('range'), the smallest set of cells that holds a share of the sum ('energy'), or what one published
    script does ('wwbl_script').
    """

    rule: Literal["max", "mean", "range", "energy", "wwbl_script"]
    value: float
    component: Literal["all", "largest"] = "all"  # which of the surviving cells the box is around
    grid: int = 0  # side of the square grid on which the map is thresholded; 0 is the frame of the boxes


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The facts of one test; an 'entity' is a chain of mentions, whose maps are averaged."""

    name: str
    kind: str  # which of the SCORERS reads it (scoring.py)
    metrics: tuple[str, ...] = ("accuracy",)  # values that scorer gives, in the order reported
    unit: Literal["mention", "entity"] = "mention"  # what counts, if it has a true box
    truth: Literal["any", "union"] = "any"  # a hit on any box of the chain, or on the box around all of them
    strict: bool = False  # a point on the border of a box is outside
    margin: float = 0.0  # pixels by which boxes are widened for pointing
    offset: float = 0.0  # added to widths and heights: 1 where pixels count inclusively
    iou: float = 0.5  # overlap that makes a box correct
    iou_closed: bool = True  # exactly that overlap is enough
    ks: tuple[int, ...] = ()  # ranks at which recall is taken
    top_k: int = 0  # boxes asked of a method; more than max(ks) only feeds mAP
    min_area: float | None = None  # smallest share of the image the truth must cover
    max_area: float | None = None  # share of the image the truth must stay below
    area_of: Literal["union", "first"] = "union"  # whose area is meant: 'first' is the first box of the XML
    area_strict: bool = False  # a truth of exactly min_area is left out
    border: int = 0  # width of the frame of map pixels that is set to zero before the peak is taken
    map_box: MapBox | None = None  # how a map becomes the one box that is scored
    sweep: tuple[MapBox, ...] = ()  # rules tried in one pass, of which thresholds.py chooses one
    average: Literal["item", "label"] = "item"  # mean over items, or over classes of their means
    subset: str | None = None  # key of GroundingSample.facts with one bool per phrase: only these count
    shift: float = 0.0  # added to true boxes: 1 for scripts that leave the XML's 1-based corners as they are
    about: str = ""  # one sentence for tables

    @property
    def rules(self) -> tuple[MapBox, ...]:
        """The rules by which it makes boxes of maps."""
        return self.sweep or (() if self.map_box is None else (self.map_box,))

    def correct(self, overlaps: Any) -> Any:
        """Whether each overlap makes a box correct, of a tensor or an array."""
        return overlaps >= self.iou if self.iou_closed else overlaps > self.iou

    def but(self, name: str, about: str, **facts: Any) -> "Protocol":
        """Another protocol, which differs in these facts."""
        return replace(self, name=name, about=about, **facts)


#: Thresholds tried for ImageNet boxes, per rule; 'mean' is the grid of the paper's authors, 0 to 10 by 0.5.
GRIDS: dict[str, tuple[float, ...]] = {
    "mean": tuple(i * 0.5 for i in range(21)),
    "energy": tuple(round(0.30 + 0.05 * i, 2) for i in range(14)),
    "range": tuple(round(0.05 * i, 2) for i in range(1, 18)),
}


def _pointing(name: str, kind: str, truth: str) -> tuple[Protocol, Protocol]:
    """A set's pointing game: all pairs, and the Difficult subset."""
    about = f"pointing game on {truth}: peak within 15 px of the class, mean over classes"
    facts: Any = {"kind": kind, "margin": 15.0, "average": "label"}
    hard = f"{about}; class covers < 1/4 of the image and another class is present"
    return (
        Protocol(name=f"{name}_pointing", about=about, **facts),
        Protocol(name=f"{name}_pointing_difficult", about=hard, subset="hard", **facts),
    )


def _imagenet() -> Iterator[Protocol]:
    """Localization by the map's box: with each threshold tried, then with each rule's chosen on held-out images."""
    single = Protocol(name="", kind="map_box")
    swept = replace(single, kind="map_box_sweep", metrics=("error", "top1_error", "top5_error"))
    sweeps = []
    parts: Any = (("all", "", "the map"), ("largest", "_largest", "the map's largest component"))
    for (component, suffix, of), rule in product(parts, GRIDS):
        boxes = tuple(MapBox(rule, value, component) for value in GRIDS[rule])  # type: ignore[arg-type]
        about = f"tight box of {of}, threshold by {rule}"
        for box in boxes:
            name, value = f"imagenet_box_{rule}_{box.value:g}{suffix}", f"{box.value:g}; IoU >= 0.5"
            yield single.but(name, f"{about} {value}", map_box=box)
        about += " chosen on held-out images; error where IoU < 0.5 with every box of the class"
        sweeps.append(swept.but(f"imagenet_sweep_{rule}{suffix}", about, sweep=boxes))
    yield from sweeps


RECALLS = ("R@1", "R@5", "R@10")
_ANY = Protocol(
    name="pointing_any",
    kind="pointing",
    strict=True,
    about="A: first maximum of the map strictly inside any box (InfoGround data; AMC, SelfEQ)",
)
_FILTERED = _ANY.but(
    "pointing_area_filtered",
    "F: peak in any box, border included; union box of at least 5 % of the image (MG, GbS)",
    strict=False,
    min_area=0.05,
)
_ENTITY = _FILTERED.but(
    "entity_pointing",
    "W: one score a chain, mentions averaged, peak in the union box (WWbL, g++)",
    **{"unit": "entity", "truth": "union", "area_of": "first", "area_strict": True},
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
    about = f"{protocol.about[0]} on small instances: the union box covers less than a quarter of the image"
    return protocol.but(f"{protocol.name}_small", about, max_area=0.25)


_FLICKR30K = (
    _ANY,
    _FILTERED,
    _FILTERED.but(
        "pointing_area_filtered_border",
        "F with the outer 4 pixels of the map set to zero first (GbS)",
        border=4,
    ),
    _ENTITY,
    _ENTITY.but(
        "entity_box",
        "W: tight box of the map above half its maximum, IoU >= 0.5 with the union box (WWbL, g++)",
        kind="map_box",
        map_box=MapBox("max", 0.5),
    ),
    _ANY.but(
        "box_centre",
        "C: centre of the top box strictly inside any box (InfoGround)",
        kind="box_centre",
        top_k=1,
    ),
    _UNION,
    _UNION.but(
        "recall_any",
        "N: as U against the best of the separate boxes (MDETR AnyBox, GLIP, Grounding DINO)",
        **{"metrics": RECALLS, "truth": "any", "top_k": 10},
    ),
    _small(_ANY),
    _small(_UNION),
)
_CLASSES = (
    *_pointing("voc", "disc_pointing", "boxes"),
    *_pointing("coco", "mask_pointing", "masks"),
    *_pointing("yolo", "disc_pointing", "boxes that stand for masks"),
    *_imagenet(),
)
#: Protocols by name, in the order of a report: of Flickr30k Entities, of classes, and all.
FLICKR30K, CLASS_PROTOCOLS = ({p.name: p for p in found} for found in (_FLICKR30K, _CLASSES))
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


Count = Annotated[int, Field(ge=0)]
Draws = Annotated[int, Field(ge=1, le=100_000)]


@config_dataclass
class DataConfig:
    """Which images."""

    root: Path  # folder of the dataset's official tree
    name: str = "flickr30k"  # a key of DATASETS
    split: str = "test"
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of that dataset


@config_dataclass
class EvaluateConfig:
    """One evaluation.

    `proposal_cache` keeps proposals by the hash of each picture: 'auto' in the user's cache folder, which
    $PHRASE_LOC_CACHE or the system names, 'none', or in the folder named. CSV, Markdown and HTML are written
    beside the `output` under the same stem.
    """

    data: DataConfig
    method: str | list[str] = "contrastive_mwp"  # one attention method, control or baseline, or a list
    protocols: list[str] = field(default_factory=lambda: list(FLICKR30K))  # or patterns: 'imagenet_box_*'
    model: str = "default"  # or a directory, a hub id, or what methods.load knows beside
    inference: dict[str, Any] = field(default_factory=dict)  # settings to change, such as {gamma: 0.5}
    output: Path = Path("report.json")
    device: str = "auto"  # or 'cpu', 'cuda', 'cuda:1', 'mps'
    proposal_cache: str = "auto"
    faithful: bool = False  # reproduce the known bugs of the published scripts (KNOWN_DEVIATIONS)
    bootstrap: Draws = 2000  # draws of images behind each 95 % interval
    #: share of images on which thresholds are chosen, for protocols that choose one
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    limit: Count = 0  # only the first so many images; 0 is all. A look, not a result
    sample: Count = 0  # only so many images, drawn by a hash of their names (the same everywhere); 0 is all
    resume: bool = True  # go on from an interrupted run with the same settings
    csv: bool = True  # write one line for each thing counted
    html: bool = False  # write the page

    def __post_init__(self) -> None:
        if os.path.isdir(self.output):
            raise ConfigError(f"output {self.output} is a folder; name a file such as report.json")
        if self.output.suffix != ".json" or "\0" in str(self.output):
            raise ConfigError(
                f"output is the JSON report and ends in .json, got {self.output}; its table is written beside it"
            )
        for protocol in self.chosen_protocols():
            if protocol.sweep and not self.held_out:
                raise ConfigError(
                    f"{protocol.name} chooses its threshold on held-out images; set held_out=0.25, or ask for one "
                    "threshold such as imagenet_box_mean_1.5"
                )
            if self.held_out and not protocol.sweep:
                raise ConfigError(
                    f"held_out chooses thresholds and {protocol.name} has none to choose; ask for imagenet_sweep_*"
                )

    @property
    def methods(self) -> list[str]:
        """The methods asked for, each once; 'a,b' is a list too."""
        names = self.method.split(",") if isinstance(self.method, str) else self.method
        names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
        if not names:
            raise ConfigError("method is empty; name an attention method or a baseline such as centre")
        return names

    def chosen_protocols(self) -> list[Protocol]:
        """The protocols asked for, in the order asked, patterns in the order of PROTOCOLS."""
        # messages do without the hundred thresholds of imagenet_box_<rule>_<value>
        listed = {name: name for name in PROTOCOLS if not name.startswith("imagenet_box_")}
        names: list[str] = []
        for asked in self.protocols:
            matching = [name for name in PROTOCOLS if fnmatchcase(name, asked)]
            names += matching or [choose(listed, asked, "protocol")]
        if not names:
            raise ConfigError(f"protocols is empty; choose from {', '.join(listed)}")
        return [PROTOCOLS[name] for name in dict.fromkeys(names)]
