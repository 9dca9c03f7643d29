"""Protocols of sets whose phrases are class names: the pointing game, and ImageNet localization.

The pointing game is that of Zhang et al. (ECCV 2016) as its public re-run plays it (TorchRay,
`benchmark/pointing_game.py`): a hit when a disc of radius 15 pixels around the peak touches the class,
distance strictly below 15, in pixels of the original image; accuracy per class, then the mean over the
classes that occur. Masks where the set has masks (COCO), boxes where it has boxes (VOC, YOLO labels).

ImageNet localization is one protocol for each rule, which tries a grid of thresholds in one pass;
`localization.py` keeps the one that was best on the held-out part. A threshold that is given, as one from a paper,
is a protocol of its own.
"""

from phrase_loc.evaluation.protocol import MapBox, Protocol

TOLERANCE = 15.0

#: Thresholds tried for ImageNet boxes, per rule; 'mean' is the grid of the paper's authors, 0 to 10 by 0.5.
GRIDS: dict[str, tuple[float, ...]] = {
    "mean": tuple(i * 0.5 for i in range(21)),
    "energy": tuple(round(0.30 + 0.05 * i, 2) for i in range(14)),
    "range": tuple(round(0.05 * i, 2) for i in range(1, 18)),
}


def _pointing(name: str, kind: str, truth: str) -> tuple[Protocol, Protocol]:
    """A set's pointing game: all pairs, and the Difficult subset."""
    about = f"pointing game on {truth}: peak within 15 px of the class, mean over classes"
    everything = Protocol(
        name=f"{name}_pointing",
        kind=kind,
        metrics=("accuracy",),
        margin=TOLERANCE,
        average="label",
        about=about,
    )
    difficult = Protocol(
        name=f"{name}_pointing_difficult",
        kind=kind,
        metrics=("accuracy",),
        margin=TOLERANCE,
        average="label",
        subset="hard",
        about=f"{about}; class covers < 1/4 of the image and another class is present",
    )
    return everything, difficult


def imagenet_protocol(rule: str, value: float, component: str = "all") -> Protocol:
    """ImageNet localization with one threshold: IoU >= 0.5 with any box of the class."""
    box = MapBox(rule, value, component)  # type: ignore[arg-type]
    suffix = "" if component == "all" else f"_{component}"
    return Protocol(
        name=f"imagenet_box_{rule}_{value:g}{suffix}",
        kind="map_box",
        metrics=("accuracy",),
        map_box=box,
        about=f"tight box of {_of(component)}, threshold by {rule} {value:g}; IoU >= 0.5",
    )


def _of(component: str) -> str:
    return "the map" if component == "all" else "the map's largest component"


def imagenet_grid(component: str = "all") -> tuple[Protocol, ...]:
    """Every threshold tried, as a protocol of its own."""
    return tuple(imagenet_protocol(rule, v, component) for rule, grid in GRIDS.items() for v in grid)


def imagenet_sweep(rule: str, component: str = "all") -> Protocol:
    """ImageNet localization with the threshold of a rule chosen on held-out images."""
    boxes = tuple(MapBox(rule, value, component) for value in GRIDS[rule])  # type: ignore[arg-type]
    suffix = "" if component == "all" else f"_{component}"
    return Protocol(
        name=f"imagenet_sweep_{rule}{suffix}",
        kind="map_box_sweep",
        metrics=("error", "top1_error", "top5_error"),
        sweep=boxes,
        about=f"tight box of {_of(component)}, threshold by {rule} chosen on held-out images; "
        "error where IoU < 0.5 with every box of the class",
    )


CLASS_PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        *_pointing("voc", "disc_pointing", "boxes"),
        *_pointing("coco", "mask_pointing", "masks"),
        *_pointing("yolo", "disc_pointing", "boxes that stand for masks"),
        *imagenet_grid(),
        *imagenet_grid("largest"),
        *(imagenet_sweep(rule, component) for component in ("all", "largest") for rule in GRIDS),
    )
}
