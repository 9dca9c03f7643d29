"""The published scripts: what each does, what it does by mistake, and which of it a protocol reproduces.

Rules that define a protocol stand in protocols.py. Listed here are surprises in the code that
people quote, read at the commit named. `kept` says whether we reproduce it:

    always     it decides every published figure of this test, so it is part of the protocol
    faithful   only with `faithful=true` (`--faithful`): it is a bug, and it changes figures a little
    never      it is no part of the test (another network's input), or it ends the script
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from phrase_loc.evaluation.protocols import MapBox, Protocol


@dataclass(frozen=True)
class Surprise:
    """Something a published script does that its paper does not say.

    Attributes:
        protocols: where it matters.
        script: repository, commit, file.
        what: one sentence.
        kept: 'always', 'faithful' or 'never'.
        changes: fields of the protocol that `faithful` replaces.
    """

    protocols: tuple[str, ...]
    script: str
    what: str
    kept: Literal["always", "faithful", "never"]
    changes: tuple[tuple[str, Any], ...] = ()


OFFICIAL = "BryanPlummer/flickr30k_entities@68b3d6f flickr30k_entities_utils.py"
PL_CLC = "BryanPlummer/pl-clc@41ee493 utilities/getIOU.m"
AMC = "uvavision/AMC-grounding@e56d659 dataset/utils.py"
INFOGROUND = "BigRedT/info-ground@22ae6d6 utils/bbox_utils.py"
MG_DATA = "hassanhub/MultiGrounding@b7bdd35 data/data_utils.py"
MG = "hassanhub/MultiGrounding@b7bdd35 code/utils.py"
WWBL_DATA = "talshaharabany/what-is-where-by-looking@709c25c datasets/flicker.py"
WWBL = "talshaharabany/what-is-where-by-looking@709c25c utils_grounding.py"
POINTING_A = ("pointing_any", "pointing_any_small")
POINTING_F = ("pointing_area_filtered", "pointing_area_filtered_border")
ENTITY = ("entity_pointing", "entity_box")
RECALL = ("recall_union", "recall_union_small")
ALL = (*POINTING_A, *POINTING_F, *ENTITY, "box_centre", *RECALL, "recall_any")

SURPRISES = (
    Surprise(
        ALL,
        OFFICIAL,
        "UNRELATED_CAPTIONS is published, but no script reads it.",
        "always",
    ),
    Surprise(
        ALL,
        OFFICIAL,
        "A caption with an unclosed bracket loses its last phrase without a word (zip of unequal lists); "
        "here the caption is left out and named.",
        "never",
    ),
    Surprise(
        POINTING_A, AMC, "Of equal maxima the first in row order: `(mask == max).nonzero()[0]`.", "always"
    ),
    Surprise(
        POINTING_A,
        AMC,
        "A point on the border of a box is a miss: all four comparisons are strict.",
        "always",
    ),
    Surprise(
        POINTING_F,
        MG_DATA,
        "The XML's 1-based corners are used as they are, so truth lies one pixel to the lower right.",
        "faithful",
        (("shift", 1.0),),
    ),
    Surprise(
        POINTING_F,
        MG,
        "The 5 % filter reads the box around all boxes, not the area they cover; exactly 5 % is kept.",
        "always",
    ),
    Surprise(
        POINTING_F, MG, "A point on the border of a box is a hit: all four comparisons are closed.", "always"
    ),
    Surprise(
        POINTING_F,
        "hassanhub/MultiGrounding@b7bdd35 code/evaluators.py",
        "Phrases whose words all score 0 stay in the count as misses.",
        "always",
    ),
    Surprise(POINTING_F, MG, "Maps are resized with OpenCV's bilinear rule; ours as a query does.", "never"),
    Surprise(
        ENTITY,
        WWBL_DATA,
        "The 5 % filter reads the first box of the chain alone, while the box around all of them is scored; "
        "exactly 5 % is left out.",
        "always",
    ),
    Surprise(ENTITY, WWBL_DATA, "'image of ' is put before every phrase: input of their network.", "never"),
    Surprise(
        ("entity_box",),
        WWBL,
        "The map goes through the cubehelix colour map and back to 8-bit grey before it is thresholded at "
        "half its maximum; torchvision's NMS is given (x, y, w, h) as if it were (x1, y1, x2, y2); boxes of "
        "less than half the best mean are dropped; the box around the rest is scored, on 224 x 224 cells.",
        "faithful",
        (("map_box", MapBox("wwbl_script", 0.5, grid=224)),),
    ),
    Surprise(
        ENTITY,
        "talshaharabany/what-is-where-by-looking@709c25c train_grounding.py",
        "Of models trained on COCO and Visual Genome the checkpoint with the best score on the test split of "
        "Flickr30k is kept.",
        "never",
    ),
    Surprise(
        RECALL,
        PL_CLC,
        "Widths and heights count + 1, as in PASCAL VOC; IoU of exactly 0.5 is a hit.",
        "always",
    ),
    Surprise(
        ("recall_any",),
        INFOGROUND,
        "1e-6 is added to the union, so an IoU of exactly 0.5 is a miss.",
        "faithful",
        (("iou_closed", False),),
    ),
    Surprise(
        ("recall_any",),
        INFOGROUND,
        "A predicted box without width or height has area None, and the script ends with a TypeError.",
        "never",
    ),
    Surprise(
        ("box_centre",),
        INFOGROUND,
        "Only the first box is asked; its centre must lie strictly inside.",
        "always",
    ),
)


def faithful(protocol: Protocol) -> Protocol:
    """The protocol as its published script computes it, bugs included."""
    for surprise in SURPRISES:
        if protocol.name in surprise.protocols and surprise.kept == "faithful":
            protocol = replace(protocol, **dict(surprise.changes))
    return protocol


def table() -> str:
    """The surprises as a Markdown table, for docs/evaluation.md."""
    lines = ["| protocols | script | what it does | kept |", "| --- | --- | --- | --- |"]
    for s in SURPRISES:
        names = "all" if s.protocols == ALL else ", ".join(f"`{name}`" for name in s.protocols)
        lines.append(f"| {names} | {s.script} | {s.what.replace('|', chr(92) + '|')} | {s.kept} |")
    return "\n".join(lines) + "\n"
