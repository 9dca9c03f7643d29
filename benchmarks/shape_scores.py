"""What a map is worth, on pictures whose right answer is known: the columns of `shapes.py`.

pointing    the map's maximum lies in the box of a thing that the words are true of
R@1         the box of the map's part around its maximum, above a share of it, has an IoU of 0.5 with such a box
insertion   mean probability of a word while cells are added to an empty picture, the map's highest first (up)
deletion    the same while they are taken from the picture (down) (Petsiuk et al., arXiv 1806.07421)
grid        share of the map in the one of 2 x 2 pictures that the word is true of (Boehle et al., arXiv 2104.00032)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from shape_methods import blank
from shape_networks import PATCH, as_input, scaled
from shape_pictures import COLOURS, SHAPES, SIDE, WORDS, Picture, grid, montage
from torch import Tensor, nn

from phrase_loc.boxes import iou
from phrase_loc.maps import peak, resize

QUERIES = [*((word,) for word in WORDS), *((colour, shape) for colour in COLOURS for shape in SHAPES)]
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # of the maximum, where a box may be cut
STEPS = 12  # of insertion and deletion, without the first
PART = 10  # pictures at once

Maps = Callable[[Tensor, Tensor], Tensor]  # images (N, 3, H, W), weights (P, V) -> (P, N, h, w)


@dataclass
class Score:
    """A column: what each picture gained (or the mean probability), and how many queries it asked."""

    gained: Tensor
    asked: Tensor

    def mean(self) -> float:
        """Over all queries."""
        return float(self.gained.sum() / self.asked.sum())

    def interval(self, draws: int = 2000) -> tuple[float, float]:
        """95 % of the bootstrap over pictures."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(self.gained), (draws, len(self.gained)), generator=generator)
        means = self.gained[drawn].sum(1) / self.asked[drawn].sum(1)
        low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
        return low, high


def mixed(queries: list[tuple[str, ...]]) -> Tensor:
    """Weights (P, V) of queries: the mean of their words."""
    rows = torch.tensor([[word in query for word in WORDS] for query in queries]).float()
    return rows / rows.sum(1, keepdim=True)


def answered(maps: Maps, pictures: list[Picture]) -> Tensor:
    """The maps of all QUERIES in all pictures: (P, N, h, w)."""
    parts = (as_input(pictures[i : i + PART]) for i in range(0, len(pictures), PART))
    return torch.cat([maps(part, mixed(QUERIES)) for part in parts], 1)


def localization(found: Tensor, pictures: list[Picture]) -> dict[str, Score]:
    """Pointing of words and of phrases (a colour and a shape), and R@1 of phrases at each share."""
    rows: dict[str, list[tuple[float, int]]] = {}
    for number, picture in enumerate(pictures):
        for name, score in _localized(found[:, number], picture).items():
            rows.setdefault(name, []).append(score)
    return {name: Score(*torch.tensor(pairs, dtype=torch.float64).T) for name, pairs in rows.items()}


def _localized(maps: Tensor, picture: Picture) -> dict[str, tuple[float, int]]:
    asked = [i for i, query in enumerate(QUERIES) if picture.named(query)]
    large = resize(maps[asked], (SIDE, SIDE))
    hits: dict[str, list[float]] = {"words": [], "phrases": [], **{f"R@1 {share}": [] for share in SHARES}}
    for heat, (x, y), query in zip(large, peak(large).tolist(), (QUERIES[i] for i in asked), strict=True):
        boxes = torch.tensor([thing.box for thing in picture.named(query)]).float()
        inside = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
        hits["words" if len(query) == 1 else "phrases"].append(float(inside.any()))
        if len(query) == 2:
            for share in SHARES:
                box = torch.tensor([around(heat.numpy(), int(x), int(y), share)]).float()
                hits[f"R@1 {share}"].append(float(iou(box, boxes).max() >= 0.5))
    return {name: (sum(values), len(values)) for name, values in hits.items()}


def around(heat: np.ndarray, x: int, y: int, share: float) -> tuple[int, int, int, int]:
    """The box of the connected part with the maximum, of what lies above a share of it."""
    labels, _ = ndimage.label(heat >= share * heat[y, x])
    rows, columns = ndimage.find_objects((labels == labels[y, x]).astype(int))[0]
    return columns.start, rows.start, columns.stop, rows.stop


def faithfulness(maps: Tensor, net: nn.Module, pictures: list[Picture]) -> dict[str, Score]:
    """Insertion and deletion for one word of each picture."""
    words = [WORDS.index(picture.things[-1].words[i % 2]) for i, picture in enumerate(pictures)]
    areas: dict[str, list[Tensor]] = {"insertion": [], "deletion": []}
    for start in range(0, len(pictures), PART):
        images, said = as_input(pictures[start : start + PART]), torch.tensor(words[start : start + PART])
        found = maps[said, start + torch.arange(len(said))]
        rank = found.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view(found.shape)
        empty = blank(images)
        total = {name: torch.zeros(len(images)) for name in areas}
        for step in range(STEPS + 1):
            first = (rank < step * rank[0].numel() / STEPS).float()[:, None]
            first = first.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
            for name, kept in (("insertion", first), ("deletion", 1 - first)):
                with torch.no_grad():
                    logits = net(kept * images + (1 - kept) * empty)
                weight = 0.5 if step in (0, STEPS) else 1.0  # trapezoids
                total[name] += weight / STEPS * logits[torch.arange(len(said)), said].sigmoid()
        for name, area in total.items():
            areas[name].append(area)
    return {name: Score(torch.cat(v).double(), torch.ones(len(pictures))) for name, v in areas.items()}


def grids(maps: Maps, seed: int, number: int) -> dict[str, Score]:
    """The grid game: both words of each of the four things."""
    gained, asked = [], []
    for start in range(0, number, PART):
        fours = [grid(seed, i) for i in range(start, min(start + PART, number))]
        pixels = torch.from_numpy(np.stack([montage(four) for four in fours])).permute(0, 3, 1, 2)
        found = maps(scaled(pixels), torch.eye(len(WORDS))).clamp(min=0)  # (V, N, h, w)
        half = found.shape[-1] // 2
        cells = found.unflatten(3, (2, half)).unflatten(2, (2, half)).sum((3, 5)).flatten(2)  # (V, N, 4)
        shares = cells / cells.sum(2, keepdim=True).clamp(min=1e-30)
        for n, four in enumerate(fours):
            right = [
                shares[WORDS.index(word), n, i] for i, one in enumerate(four) for word in one.things[0].words
            ]
            gained.append(float(sum(right)))
            asked.append(len(right))
    return {"grid": Score(torch.tensor(gained).double(), torch.tensor(asked))}
