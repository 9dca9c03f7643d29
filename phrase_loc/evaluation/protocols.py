"""Every protocol as data. Six incompatible tests are published as "Flickr30k accuracy": never one column.

The evaluator and the scorers only read the fields of `Protocol`; a new test is a new entry here. The rules
were read in the published scripts at the commits that parity.py names.
"""

from dataclasses import replace

from phrase_loc.evaluation.class_protocols import CLASS_PROTOCOLS
from phrase_loc.evaluation.protocol import MapBox, Protocol

SMALL = (
    0.25  # share of the image below which an instance is small, as in the pointing game's Difficult subset
)
RECALLS = ("R@1", "R@5", "R@10")

_POINTING_ANY = Protocol(
    name="pointing_any",
    kind="pointing",
    metrics=("accuracy",),
    strict=True,
    about="A: first maximum of the map strictly inside any box (InfoGround data; AMC, SelfEQ)",
)
_RECALL_UNION = Protocol(
    name="recall_union",
    kind="recall",
    metrics=(*RECALLS, "mAP(Group)", "mAP(Phrase)"),
    truth="union",
    offset=1.0,
    ks=(1, 5, 10),
    top_k=200,
    about="U: IoU >= 0.5 with the union box, widths + 1 (Plummer et al. and most weakly supervised work)",
)

_FLICKR30K = (
    _POINTING_ANY,
    Protocol(
        name="pointing_area_filtered",
        kind="pointing",
        metrics=("accuracy",),
        min_area=0.05,
        about="F: peak in any box, border included; union box of at least 5 % of the image (MG, GbS)",
    ),
    Protocol(
        name="pointing_area_filtered_border",
        kind="pointing",
        metrics=("accuracy",),
        min_area=0.05,
        border=4,
        about="F with the outer 4 pixels of the map set to zero first (GbS)",
    ),
    Protocol(
        name="entity_pointing",
        kind="pointing",
        metrics=("accuracy",),
        unit="entity",
        truth="union",
        min_area=0.05,
        area_of="first",
        area_strict=True,
        about="W: one score a chain, mentions averaged, peak in the union box (WWbL, g++)",
    ),
    Protocol(
        name="entity_box",
        kind="map_box",
        metrics=("accuracy",),
        unit="entity",
        truth="union",
        min_area=0.05,
        area_of="first",
        area_strict=True,
        map_box=MapBox("max", 0.5),
        about="W: tight box of the map above half its maximum, IoU >= 0.5 with the union box (WWbL, g++)",
    ),
    Protocol(
        name="box_centre",
        kind="box_centre",
        metrics=("accuracy",),
        strict=True,
        top_k=1,
        about="C: centre of the top box strictly inside any box (InfoGround)",
    ),
    _RECALL_UNION,
    Protocol(
        name="recall_any",
        kind="recall",
        metrics=RECALLS,
        offset=1.0,
        ks=(1, 5, 10),
        top_k=10,
        about="N: as U against the best of the separate boxes (MDETR AnyBox, GLIP, Grounding DINO)",
    ),
    replace(
        _POINTING_ANY,
        name="pointing_any_small",
        max_area=SMALL,
        small_of="pointing_any",
        about="A on small instances: the union box covers less than a quarter of the image",
    ),
    replace(
        _RECALL_UNION,
        name="recall_union_small",
        max_area=SMALL,
        metrics=RECALLS,
        top_k=10,
        small_of="recall_union",
        about="U on small instances: the union box covers less than a quarter of the image",
    ),
)

#: Protocols of Flickr30k Entities, in the order of a report.
FLICKR30K: dict[str, Protocol] = {protocol.name: protocol for protocol in _FLICKR30K}

#: All protocols by name.
PROTOCOLS: dict[str, Protocol] = FLICKR30K | CLASS_PROTOCOLS
