"""A localizer as a method: attention maps -> peaks, ranked boxes and map boxes, exactly as a query does.

All phrases of an image share one look and one attend, and methods of one localizer share the look.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phrase_loc.boxes import rescale
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.map_boxes import map_boxes
from phrase_loc.evaluation.protocols import MapBox
from phrase_loc.evaluation.targets import Answers, Query, Request, padded
from phrase_loc.maps import peak
from phrase_loc.structures import GroundingSample, Scene

CHUNK = 16  # full-size maps held at once,
HELD_PIXELS = 2**25  # or fewer, of so many pixels together


class Looker:
    """Looks at each image once for all methods: keeps the last scene."""

    def __init__(self, localizer: Any):
        self.localizer = localizer
        self._last: tuple[GroundingSample, Scene] | None = None

    def __call__(self, sample: GroundingSample) -> Scene:
        """The scene of an image in the frame of its annotation; DataError where the file is unreadable."""
        if self._last is None or self._last[0] is not sample:
            self._last = (sample, self.localizer.look(framed(sample).picture, size=sample.size))
        return self._last[1]


class MapMethod:
    """A method that gives attention maps; peaks and boxes follow from the localizer's own rules.

    Subclasses override `attention` for other maps over the same look and ranker.

    Args:
        name: its name in reports.
        localizer: has encode, attend, heat and rank (localizer.py).
        looker: shared by all methods over the same network.
    """

    needs_image = True

    def __init__(self, name: str, localizer: Any, looker: Looker):
        self.name, self.localizer, self.looker = name, localizer, looker
        self._last: tuple[GroundingSample | None, dict[str, Tensor]] = (None, {})

    def attention(self, scene: Scene, sample: GroundingSample, phrases: Sequence[str]) -> Tensor:
        """Maps of distinct phrases, >= 0, zeros for a phrase without a known word: (P, h, w)."""
        return self.localizer.attend(scene, phrases)

    def knows(self, phrases: Sequence[str]) -> list[bool]:
        """Whether each phrase has a word with a vector."""
        return [encoded.known for encoded in self.localizer.encode(phrases)]

    def answer(self, sample: GroundingSample, queries: Sequence[Query], request: Request) -> Answers:
        """Answer distinct queries about one image (answers.py)."""
        scene = self.looker(sample)
        maps = self._maps(scene, sample, queries)
        known = self._known(queries)
        peaks, found = self._from_heat(maps, sample.size, request)
        boxes, scores = _side_by_side(self._ranked(scene, maps, known, request.top_k))
        for values in [*peaks.values(), *found.values()]:
            values[~known] = float("nan")
        return Answers(known, peaks, boxes, scores, found, self._class_ranks(scene, queries, request))

    def _maps(self, scene: Scene, sample: GroundingSample, queries: Sequence[Query]) -> Tensor:
        """(P, h, w): the mean over each query's phrases; a phrase's map is computed once an image."""
        if self._last[0] is not sample:
            self._last = (sample, {})
        cache = self._last[1]
        new = [p for p in dict.fromkeys(p for query in queries for p in query) if p not in cache]
        if new:
            cache.update(zip(new, self.attention(scene, sample, new)))
        return torch.stack([torch.stack([cache[p] for p in query]).mean(0) for query in queries])

    def _known(self, queries: Sequence[Query]) -> Tensor:
        phrases = list(dict.fromkeys(p for query in queries for p in query))
        knows = dict(zip(phrases, self.knows(phrases)))
        return torch.tensor([any(knows[p] for p in query) for query in queries])

    def _class_ranks(self, scene: Scene, queries: Sequence[Query], request: Request) -> Tensor | None:
        """(P,) ranks of the queries among a classifier's classes, where they are wanted and it is one."""
        ranks = getattr(self.localizer, "class_ranks", None)
        return ranks(scene, [query[0] for query in queries]) if request.ranks and ranks else None

    def _from_heat(
        self, maps: Tensor, size: tuple[int, int], request: Request
    ) -> tuple[dict[int, Tensor], dict[Any, Tensor]]:
        """Peaks for each border and boxes for each rule, from full-size maps, a chunk at a time."""
        peaks: dict[int, list[Tensor]] = {border: [] for border in sorted(request.borders)}
        found: dict[Any, list[Tensor]] = {rule: [] for rule in request.map_boxes}
        if not peaks and not found:
            return {}, {}
        for chunk in maps.split(max(1, min(CHUNK, HELD_PIXELS // (size[0] * size[1])))):
            heat = self.localizer.heat(chunk, size)
            for border, parts in peaks.items():
                parts.append(peak(_framed(heat, border)).cpu())
            for rule, boxes in self._map_boxes(chunk, heat, size, list(found)).items():
                found[rule].append(boxes)
        return {b: torch.cat(p) for b, p in peaks.items()}, {r: torch.cat(p) for r, p in found.items()}

    def _map_boxes(
        self, maps: Tensor, heat: Tensor, size: tuple[int, int], rules: Sequence[MapBox]
    ) -> dict[MapBox, Tensor]:
        """Per rule the (P, 4) boxes of maps, from `heat`, or from the rule's own grid and then rescaled."""
        found: dict[MapBox, Tensor] = {}
        for grid in {rule.grid for rule in rules}:
            frame = (grid, grid) if grid else size
            own = [rule for rule in rules if rule.grid == grid]
            full = self.localizer.heat(maps, frame) if grid else heat
            boxes = torch.stack([map_boxes(one, own) for one in full])  # (P, R, 4)
            found |= dict(zip(own, rescale(boxes, frame, size).unbind(1), strict=True))
        return found

    def _ranked(self, scene: Scene, maps: Tensor, known: Tensor, top_k: int) -> list[tuple[Tensor, Tensor]]:
        """Per map its boxes (k, 4), best first, and scores (k,); none where no word is known."""
        nothing = (torch.zeros(0, 4), torch.zeros(0))
        if top_k == 0 or not known.any():
            return [nothing] * len(maps)
        found = iter(self.localizer.rank_all(scene, maps[known.to(maps.device)], top_k))
        ranked = [next(found) if k else nothing for k in known.tolist()]
        return [(boxes.detach().cpu().float(), scores.detach().cpu().float()) for boxes, scores in ranked]


def _framed(heat: Tensor, border: int) -> Tensor:
    """Maps with a frame of `border` pixels set to zero: (P, H, W)."""
    if border == 0:
        return heat
    inner = torch.zeros_like(heat)
    inner[:, border:-border, border:-border] = heat[:, border:-border, border:-border]
    return inner


def _side_by_side(ranked: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """P ragged rankings -> (P, k, 4) and (P, k), NaN where a ranking is shorter."""
    boxes = padded([b for b, _ in ranked])
    scores = torch.full(boxes.shape[:2], float("nan"))
    for row, (_, score) in zip(scores, ranked):
        row[: len(score)] = score
    return boxes, scores
