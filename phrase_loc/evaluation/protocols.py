"""Every protocol as data. Six incompatible tests are published as "Flickr30k accuracy": never one column.

The evaluator and the scorers only read the fields of `Protocol`; a new test is a new entry here. The rules
were read in the published scripts at the commits that parity.py names.

Small instances are a subset of ours: phrases whose union box covers less than a quarter of the image, the area
at which the pointing game's Difficult subset parts small from large. No published number uses this rule on
Flickr30k Entities as far as we could read, so its rows stand beside their blind baselines alone.
"""

from dataclasses import replace

from phrase_loc.evaluation.class_protocols import CLASS_PROTOCOLS
from phrase_loc.evaluation.protocol import MapBox, Protocol

SMALL = 0.25  # share of the image below which an instance is small
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


def _small(protocol: Protocol, letter: str) -> Protocol:
    return replace(
        protocol,
        name=f"{protocol.name}_small",
        max_area=SMALL,
        small_of=protocol.name,
        about=f"{letter} on small instances: the union box covers less than a quarter of the image",
    )


_FLICKR30K = (
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
    _small(_ANY, "A"),
    _small(_UNION, "U"),
)

#: Protocols of Flickr30k Entities, in the order of a report.
FLICKR30K: dict[str, Protocol] = {protocol.name: protocol for protocol in _FLICKR30K}

#: All protocols by name.
PROTOCOLS: dict[str, Protocol] = FLICKR30K | CLASS_PROTOCOLS
