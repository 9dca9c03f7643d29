import math

import pytest
import torch
from torch import Tensor

from phrase_loc.boxes import area, iou
from phrase_loc.ranking import (
    integral,
    mass_in,
    rank_phrases,
    score_boxes,
    suppress,
    vote,
)

SIZE = (60, 90)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    points = torch.rand(count, 2, 2, generator=rng(seed)) * torch.tensor([size[1], size[0]])
    return torch.cat([points.amin(1), points.amax(1)], 1)


def nms(boxes: Tensor, scores: Tensor, *rule) -> Tensor:
    return suppress(boxes, scores[None], *rule)[0]


def rank_boxes(attention: Tensor, boxes: Tensor, size: tuple[int, int], **rule) -> tuple[Tensor, Tensor]:
    return rank_phrases(attention[None], boxes, size, **rule)[0]


def slow_mass(grid: Tensor, box: Tensor, size: tuple[int, int]) -> float:
    """From the definition: every cell's value times the share of the cell that the box covers."""
    height, width = grid.shape
    x1, y1, x2, y2 = box.tolist()
    total = 0.0
    for i in range(height):
        for j in range(width):
            cell_w, cell_h = size[1] / width, size[0] / height
            w = min(x2, (j + 1) * cell_w) - max(x1, j * cell_w)
            h = min(y2, (i + 1) * cell_h) - max(y1, i * cell_h)
            total += grid[i, j].item() * max(w, 0) * max(h, 0) / (cell_w * cell_h)
    return total


def slow_nms(boxes: Tensor, scores: Tensor, overlap: float) -> list[int]:
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i))
    kept: list[int] = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if iou(boxes[best, None], boxes[i, None]).item() <= overlap]
    return kept


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (5, 11), (60, 90)])
def test_mass_equals_the_sum_over_cells(shape: tuple[int, int]):
    grid = torch.rand(*shape, generator=rng())
    boxes = random_boxes(12)
    expected = torch.tensor([slow_mass(grid, box, SIZE) for box in boxes])
    torch.testing.assert_close(mass_in(grid, boxes, SIZE), expected, rtol=1e-4, atol=1e-4)


def test_mass_of_whole_pixels_is_the_plain_sum():
    grid = torch.rand(60, 90, generator=rng())
    box = torch.tensor([[10.0, 20.0, 31.0, 44.0]])
    torch.testing.assert_close(mass_in(grid, box, SIZE)[0], grid[20:44, 10:31].sum())


def test_mass_outside_the_image_is_nothing():
    grid = torch.ones(4, 4)
    boxes = torch.tensor([[-50.0, -50.0, 500.0, 500.0], [-9.0, 0.0, -1.0, 60.0], [90.0, 60.0, 95.0, 70.0]])
    torch.testing.assert_close(mass_in(grid, boxes, SIZE), torch.tensor([16.0, 0.0, 0.0]))


def test_integral_has_a_border_of_zeros_and_the_total():
    grid = torch.rand(3, 4, 5, generator=rng())
    table = integral(grid)
    assert table.shape == (3, 5, 6)
    assert (table[:, 0] == 0).all()
    assert (table[:, :, 0] == 0).all()
    torch.testing.assert_close(table[:, -1, -1], grid.sum((1, 2)))


def test_integral_of_half_precision_is_float():
    assert integral(torch.ones(2, 2, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 1.0])
def test_nms_equals_the_plain_loop(overlap: float):
    boxes = random_boxes(60)
    scores = (torch.rand(60, generator=rng(3)) * 8).floor()  # many ties
    assert nms(boxes, scores, overlap).tolist() == slow_nms(boxes, scores, overlap)


def test_nms_of_nothing_of_equal_boxes_and_of_empty_ones():
    assert nms(torch.zeros(0, 4), torch.zeros(0)).tolist() == []
    same = torch.tensor([[1.0, 2, 3, 4]]).repeat(3, 1)
    assert nms(same, torch.tensor([0.1, 0.3, 0.2])).tolist() == [1]
    points = torch.tensor([[5.0, 5, 5, 5]]).repeat(2, 1)  # IoU 0 with themselves: both stay, each once
    assert nms(points, torch.tensor([0.1, 0.3])).tolist() == [1, 0]


def test_nms_limit_is_a_prefix():
    boxes, scores = random_boxes(40), torch.rand(40, generator=rng(2))
    assert nms(boxes, scores, 0.5, 4).tolist() == nms(boxes, scores).tolist()[:4]


@pytest.mark.parametrize("overlap, limit", [(0.3, None), (0.5, 4), (0.0, 9), (1.0, None)])
def test_suppression_of_many_equals_one_by_one(overlap: float, limit: int | None):
    boxes, scores = random_boxes(50), torch.rand(6, 50, generator=rng(4))
    boxes[:4] = boxes[4]  # equal boxes, points, equal scores, boxes that are no candidates
    boxes[7:9, 2:] = boxes[7:9, :2]
    scores[3:] = (8 * scores[3:]).floor()
    scores[5, ::2] = -torch.inf
    together = suppress(boxes, scores, overlap, limit)
    for row, alone in zip(together, scores, strict=True):
        assert row.tolist() == nms(boxes, alone, overlap, limit).tolist()


def test_scores_ignore_the_scale_of_map_and_image():
    grid, boxes = torch.rand(2, 6, 6, generator=rng()), random_boxes(20)
    plain = score_boxes(grid, boxes, SIZE)
    torch.testing.assert_close(score_boxes(grid * 1000, boxes, SIZE), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score_boxes(grid + 7, boxes, SIZE), plain, rtol=1e-3, atol=1e-3)
    doubled = score_boxes(grid, boxes * 2, (SIZE[0] * 2, SIZE[1] * 2))
    torch.testing.assert_close(doubled, plain, rtol=1e-4, atol=1e-4)


def test_gamma_zero_takes_the_whole_image_and_gamma_one_the_brightest_cell():
    grid = torch.rand(4, 4, generator=rng()) + 0.1
    grid[1, 2] = 9
    cell = torch.tensor([2 / 4 * 90, 1 / 4 * 60, 3 / 4 * 90, 2 / 4 * 60])
    boxes = torch.stack([torch.tensor([0.0, 0, 90, 60]), cell, torch.tensor([30.0, 10, 80, 50])])
    assert score_boxes(grid, boxes, SIZE, gamma=0.0).argmax() == 0
    assert score_boxes(grid, boxes, SIZE, gamma=1.0).argmax() == 1


def test_spread_is_a_square_around_the_expected_area():
    grid, boxes = torch.rand(3, 6, 6, generator=rng()) ** 4, random_boxes(20)
    plain, held = (score_boxes(grid, boxes, SIZE, 0.4, spread) for spread in (0.0, 0.3))
    for map_, before, after in zip(grid, plain, held, strict=True):
        mean = ((map_ - map_.min()) / (map_.max() - map_.min())).mean().item()
        expected = min(1.0, math.exp(3.54) * mean**3)
        for box, low, high in zip(boxes, after.tolist(), before.tolist(), strict=True):
            share = ((box[2] - box[0]) * (box[3] - box[1])).item() / (SIZE[0] * SIZE[1])
            assert high - low == pytest.approx(0.15 * math.log(max(share, 1e-6) / expected) ** 2, abs=1e-4)


def test_spread_gives_a_narrow_map_a_small_box_and_a_flat_one_the_whole_image():
    narrow = torch.full((1, 8, 8), 0.05)
    narrow[0, 3, 4] = 1
    boxes = torch.tensor([[0.0, 0, 90, 60], [40, 20, 60, 32], [20, 10, 80, 50]])
    assert score_boxes(narrow, boxes, SIZE, 0.3, spread=0.5).argmax() == 1
    assert score_boxes(torch.ones(1, 8, 8), boxes, SIZE, 0.3, spread=0.5).argmax() == 0


def test_the_voted_box_is_the_mean_of_those_that_agree():
    crowd = torch.tensor([[0.0, 0, 40, 40], [1, 0, 40, 40], [0, 2, 40, 40]])
    outlier = torch.tensor([[60.0, 30, 90, 60]])
    boxes, scores = torch.cat([crowd, outlier]), torch.tensor([[1.0, 1.02, 0.5, 1.05]])
    found, lifted = vote(boxes, scores, temperature=0.1)
    weights = torch.softmax(scores[0] / 0.1, 0)[:3]
    torch.testing.assert_close(found[4], (weights[:, None] * crowd).sum(0) / weights.sum())
    assert lifted.argsort(descending=True).tolist() == [[4, 3, 1, 0, 2]]
    torch.testing.assert_close(lifted[:, :4], scores, rtol=0, atol=0)


def test_phrases_do_not_see_the_boxes_voted_by_others():
    boxes, scores = random_boxes(30), torch.randn(3, 30, generator=rng(6))
    found, lifted = vote(boxes, scores, temperature=0.3)
    assert found.shape == (33, 4)
    assert torch.isinf(lifted).sum() == 6
    picked = suppress(found, lifted, 0.9)
    for p, row in enumerate(picked):
        assert row[0] == 30 + p
        assert not set(row.tolist()) & ({30, 31, 32} - {30 + p})
        alone = vote(boxes, scores[p, None], temperature=0.3)[0][-1]
        torch.testing.assert_close(found[30 + p], alone)


def test_the_coldest_vote_takes_the_best_box():
    boxes = torch.tensor([[0.0, 0, 40, 40], [1, 0, 40, 40], [60, 30, 90, 60]])
    found, _ = vote(boxes, torch.tensor([[1.0, 1.1, 0.5]]), temperature=1e-300)
    torch.testing.assert_close(found[3], boxes[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_without_area_can_win_the_vote(dtype: torch.dtype):
    boxes = torch.tensor([[5.0, 5, 5, 5], [7, 7, 7, 7]], dtype=dtype)
    found, _ = vote(boxes, torch.tensor([[3.0, 1.0]], dtype=dtype), temperature=0.1)
    torch.testing.assert_close(found[2], boxes[0])


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_rank_gives_separate_boxes_best_first(temperature: float):
    grid, boxes = torch.rand(3, 7, 7, generator=rng()), random_boxes(80)
    answers = rank_phrases(grid, boxes, SIZE, temperature=temperature, top_k=5)
    assert len(answers) == 3
    for attention, (found, scores) in zip(grid, answers, strict=True):
        assert found.shape == (len(scores), 4)
        assert 1 <= len(scores) <= 5
        assert (scores.diff() <= 0).all()
        assert (iou(found, found) - torch.eye(len(found))).max() <= 0.5
        alone = rank_boxes(attention, boxes, SIZE, temperature=temperature, top_k=5)
        torch.testing.assert_close(alone[0], found)
    assert answers[0][0].tolist() != answers[1][0].tolist()  # the map decides


def test_rank_finds_the_bright_square():
    grid = torch.zeros(12, 18)
    grid[4:8, 6:12] = 1
    truth = torch.tensor([[30.0, 20, 60, 40]])
    boxes = torch.cat([random_boxes(50), truth])
    assert rank_boxes(grid, boxes, SIZE, top_k=1)[0].tolist() == truth.tolist()


def test_rank_without_boxes_and_of_a_zero_map():
    boxes, scores = rank_boxes(torch.ones(3, 3), torch.zeros(0, 4), SIZE)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)
    boxes = random_boxes(5)
    found, scores = rank_boxes(torch.zeros(3, 3), boxes, SIZE)
    assert torch.isfinite(scores).all()
    assert found[0].tolist() == boxes[area(boxes).argmax()].tolist()  # nothing speaks against the largest
