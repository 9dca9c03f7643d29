"""Proposal sources: candidate boxes for the ranking, float32 xyxy in pixels of the frame in which they are wanted.

The same picture gives the same boxes in every process. A new source is a frozen dataclass with the two methods of
`Source` and one entry below; `Cached` keeps the boxes of a source on disk.
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
