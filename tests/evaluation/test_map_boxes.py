"""Boxes of maps: every rule against a slow twin that draws the mask and walks over it."""

import pytest
import torch

from phrase_loc.evaluation.protocols import GRIDS, MapBox
from phrase_loc.evaluation.thresholds import map_boxes

RULES = [
    MapBox(rule, value, component)
    for component in ("all", "largest")
    for rule, grid in (*GRIDS.items(), ("max", (0.0, 0.3, 0.5, 1.0)))
    for value in grid
]


def slow_threshold(heat: torch.Tensor, rule: MapBox) -> torch.Tensor:
    """The definitions, one cell after the other where it is the energy."""
    if rule.rule == "energy":
        values = heat.flatten().sort(descending=True).values
        total, reached = values.double().sum(), 0.0
        for value in values:
            reached += float(value)
            if reached >= rule.value * total:
                return value
        return values[-1]
    low, high = heat.amin(), heat.amax()
    return {
        "max": rule.value * high,
        "mean": rule.value * heat.mean(),
        "range": low + rule.value * (high - low),
    }[rule.rule]


def slow_box(heat: torch.Tensor, rule: MapBox) -> list[float]:
    """The box of the cells at or above the threshold, by a flood over eight neighbours for a component."""
    height, width = heat.shape
    alive = {(y, x) for y, x in (heat >= slow_threshold(heat, rule)).nonzero().tolist()}
    if not alive:
        return [0, 0, width, height]
    if rule.component == "largest":
        alive = max(components(alive), key=len)  # the first of equal ones, in row order
    rows, columns = zip(*alive)
    return [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def components(alive: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    found, left = [], set(alive)
    for start in sorted(alive):
        if start not in left:
            continue
        part, front = set(), [start]
        left.discard(start)
        while front:
            y, x = front.pop()
            part.add((y, x))
            near = {(y + j, x + i) for j in (-1, 0, 1) for i in (-1, 0, 1)} & left
            left -= near
            front += near
        found.append(part)
    return found


def maps() -> list[torch.Tensor]:
    """Drawn maps, sparse ones, one with ties, a flat one and one of zeros."""
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.rand(9, 13, generator=generator) ** power for power in (1, 4)]
    sparse = (drawn[0] > 0.9) * drawn[1]
    ties = (4 * drawn[0]).round() / 4
    return [*drawn, sparse, ties, torch.full((5, 6), 0.3), torch.zeros(6, 5), torch.ones(1, 1)]


@pytest.mark.parametrize("number", range(7))
def test_all_rules_at_once_equal_the_slow_twin(number):
    heat = maps()[number]
    found = map_boxes(heat, RULES).tolist()
    assert found == [slow_box(heat, rule) for rule in RULES]
    assert found[::17] == map_boxes(heat, RULES[::17]).tolist()


def test_a_threshold_above_the_maximum_leaves_the_whole_map():
    heat = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    assert map_boxes(heat, [MapBox("mean", 2.0)]).tolist() == [[0, 0, 2, 2]]


def test_components_touch_by_corners():
    heat = torch.zeros(5, 6)
    heat[0, 0] = heat[1, 1] = heat[2, 0] = 1.0
    heat[4, 4:] = 1.0
    rules = [MapBox("max", 0.5, "largest"), MapBox("max", 0.5)]
    assert map_boxes(heat, rules).tolist() == [[0, 0, 2, 3], [0, 0, 6, 5]]
