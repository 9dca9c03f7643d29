"""Outlines: within their box, of one piece, better than the level set on shapes, and back from run lengths."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from phrase_loc.display import to_dict
from phrase_loc.drawing import overlay, small_jpeg
from phrase_loc.masks import decoded, encoded, polygons, rle_area, thing_mask
from phrase_loc.structures import Prediction


def disc(side: int = 160, radius: int = 40) -> np.ndarray:
    down, right = np.mgrid[:side, :side]
    return np.hypot(down - 90, right - 70) < radius


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def blurred(mask: np.ndarray, cells: int = 10) -> np.ndarray:
    """What a map of that many cells says of a mask."""
    side = len(mask) // cells
    return mask.reshape(cells, side, cells, side).mean((1, 3))


def test_a_disc_on_a_noisy_ground():
    truth, rng = disc(), np.random.default_rng(0)
    pixels = np.where(truth[..., None], [200, 40, 40], [90, 120, 90]) + rng.normal(0, 12, (160, 160, 3))
    box = (30, 50, 110, 130)
    level = thing_mask(blurred(truth), box, truth.shape)
    grown = thing_mask(blurred(truth), box, truth.shape, pixels.clip(0, 255).astype(np.uint8))
    filled = np.zeros_like(truth)
    filled[50:130, 30:110] = True
    assert overlap(grown, truth) > 0.95 > overlap(level, truth)
    assert overlap(grown, truth) > overlap(filled, truth)
    assert not (grown & ~filled).any()
    for found in (grown, level):
        assert found[90, 70], "the map is highest there"
    again = thing_mask(blurred(truth), box, truth.shape, pixels.clip(0, 255).astype(np.uint8))
    assert (again == grown).all()


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (3.2, 5.9, 3.3, 6.0), (119, 79, 120, 80), (0, 0, 120, 80), (-5, -5, 500, 9)]
)
@pytest.mark.parametrize("colour", ["white", None])
def test_odd_boxes_and_pictures_of_one_colour(box, colour):
    picture = None if colour is None else np.full((8, 12, 3), 255, np.uint8)
    mask = thing_mask(np.zeros((3, 3)), box, (80, 120), picture)
    assert mask.shape == (80, 120)
    assert mask.any()


def test_of_two_pieces_that_of_the_highest_place_and_of_a_large_photograph_its_own_size():
    heat = np.zeros((8, 16))
    heat[2:6, 1:7], heat[3:5, 12:14] = 1, 0.8
    mask = thing_mask(heat, (0, 0, 1600, 800), (800, 1600))
    assert mask.shape == (800, 1600)
    assert mask[400, 400]
    assert not mask[400, 1300]


def test_run_lengths_and_outlines():
    mask = disc()
    runs = encoded(mask)
    assert (decoded(runs) == mask).all()
    assert rle_area(runs) == mask.sum()
    (outline,) = polygons(runs)
    drawn = Image.new("1", (160 * 8, 160 * 8))
    ImageDraw.Draw(drawn).polygon([(8 * x, 8 * y) for x, y in outline], fill=1)
    assert np.array(drawn.resize((160, 160), Image.Resampling.BOX).convert("1")).sum() == pytest.approx(
        mask.sum(), rel=0.05
    )
    square = np.zeros((20, 30), bool)
    square[5:10, 10:25] = True
    corners = np.array(polygons(encoded(square))[0])
    assert [*corners.min(0), *corners.max(0)] == pytest.approx([10, 5, 25, 10], abs=0.26)
    two = square.copy()
    two[15:18, 0:3] = True
    assert len(polygons(encoded(two))) == 2
    assert polygons(encoded(two))[0] == polygons(encoded(square))[0]


def test_a_prediction_has_one_and_json_says_it(drawn_image):
    boxes = torch.tensor([[8.0, 18, 52, 62], [60, 0, 120, 60]])
    heat = torch.zeros(4, 6)
    heat[1:3, 1:2] = 1
    shared = ("a hat", (), 0.9, torch.tensor([20.0, 30]), boxes, torch.tensor([1.0, 0.5]), heat, (80, 120))
    found = Prediction(*shared, small_jpeg(drawn_image))
    truth = np.zeros((80, 120), bool)
    truth[20:60, 10:50] = True
    assert overlap(found.mask.numpy(), truth) > 0.85
    assert found.mask_in(1).shape == (80, 120)
    assert found.mask_in(2) is None
    assert "mask" not in to_dict(found)["boxes"][0]
    said = to_dict(found, masks=True)["boxes"]
    assert (decoded(said[0]["mask"]) == found.mask.numpy()).all()
    absent = Prediction("a hat", (), 0.01, *shared[3:])
    assert "mask" not in to_dict(absent, masks=True)["boxes"][0]
    tinted = np.array(overlay(drawn_image, [found], masks=True))[:80]
    plain = np.array(drawn_image)
    assert (tinted[40, 30] != plain[40, 30]).any()
    assert (tinted[70, 60] == plain[70, 60]).all()
