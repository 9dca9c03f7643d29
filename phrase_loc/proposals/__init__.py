"""Proposal sources: candidate boxes for the ranking.

Every source has two methods, one for each thing that it may look at, and answers None for the other:

    source.of_image(picture, size) -> (R, 4) | None     once an image: `Scene.proposals`
    source.of_map(attention, size) -> (R, 4) | None     once a phrase

`picture` is an 8-bit RGB Pillow image, `attention` one (h, w) map, `size` the (H, W) of the frame in which
boxes are wanted. Boxes are float32 xyxy in pixels of that frame. The same picture gives the same boxes in
every process.

A new source is a frozen dataclass with these two methods and one entry below. `Cached` keeps the boxes of a
source on disk.
"""

from phrase_loc.proposals.source import Cached, LevelSets, Regions, SelectiveSearch, Source, Windows

PROPOSALS: dict[str, Source] = {
    "default": Regions(),
    "regions": Regions(),
    "windows": Windows(),
    "level_sets": LevelSets(),
    "selective_search": SelectiveSearch(),
}

__all__ = ["PROPOSALS", "Cached", "Source"]
