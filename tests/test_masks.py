"""Outlines: within their box, of one piece, better than the level set on shapes, and back from run lengths."""

import json
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from phrase_loc.display import to_dict
from phrase_loc.drawing import overlay, small_jpeg
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.masks import brush, checked, decoded, encoded, polygons, thing_mask
from phrase_loc.structures import Prediction
from tests.test_labelling import READERS


def disc(side: int = 160, radius: int = 40) -> np.ndarray:
    down, right = np.mgrid[:side, :side]
    return np.hypot(down - 90, right - 70) < radius


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def blurred(mask: np.ndarray, cells: int = 10) -> np.ndarray:
    """What a map of that many cells says of a mask."""
    side = len(mask) // cells
    return mask.reshape(cells, side, cells, side).mean((1, 3))


@pytest.mark.parametrize(
    ("heat", "box", "size"),
    [
        (np.eye(4), (np.nan, 0, 5, 5), (20, 30)),
        (np.eye(4), (0, 0, np.inf, 5), (20, 30)),
        (np.eye(4), (5, 0, 1, 5), (20, 30)),
        (np.eye(4), (40, 0, 50, 5), (20, 30)),
        (np.eye(4), (0, 0, 5), (20, 30)),
        (np.eye(4), None, (20, 30)),
        (np.eye(4)[None], (0, 0, 5, 5), (20, 30)),
        (np.zeros((0, 4)), (0, 0, 5, 5), (20, 30)),
        (np.full((4, 4), np.nan), (0, 0, 5, 5), (20, 30)),
        (np.eye(4), (0, 0, 5, 5), (0, 30)),
        ([[1], [1, 2]], (0, 0, 5, 5), (20, 30)),
    ],
)
def test_what_has_no_mask_is_one_sentence(heat, box, size):
    with pytest.raises(ConfigError, match=r"expected a box|size is"):
        thing_mask(heat, box, size)


def test_boxes_may_be_tensors():
    assert thing_mask(np.eye(4), torch.tensor([1.0, 1, 5, 5]), (20, 30)).any()


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


def some_masks() -> list[np.ndarray]:
    """Nothing, everything, one pixel, noise, and a disc with runs of more than 2**16 values around it."""
    noise, one = np.random.default_rng(0).random((13, 7)) < 0.5, np.zeros((5, 9), bool)
    one[0, 0] = True
    return [np.zeros((4, 3), bool), np.ones((300, 400), bool), one, noise, disc(400, 150)]


def test_run_lengths_from_elsewhere_are_those_of_their_size():
    for mask in some_masks():
        runs = encoded(mask)
        assert checked(**runs) == runs
    for counts in ("", "~", runs["counts"][:-1], runs["counts"] + "1", "0" * 40, "ü", "P"):
        with pytest.raises(DataError, match="run lengths of 400 x 400"):
            checked((400, 400), counts)


def unpacked(content: list[int]) -> np.ndarray:
    """The values of Label Studio's run lengths, bit by bit."""
    bits, place = "".join(f"{byte:08b}" for byte in content), 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, width, lengths = read(32), read(5) + 1, [read(4) + 1 for _ in range(4)]
    values = np.zeros(0, int)
    while len(values) < count:
        assert read(1) == 1, "four values a pixel are a run"
        length = read(lengths[read(2)]) + 1
        values = np.concatenate([values, np.full(length, read(width))])
    assert len(bits) - place <= 8, "nothing but zeros to the end of a byte"
    return values


def test_a_brush_holds_four_values_a_pixel():
    for mask in some_masks():
        values = unpacked(brush(mask)).reshape(*mask.shape, 4)
        assert (values == np.where(mask, 255, 0)[..., None]).all()


SDK = """
import json, sys
import numpy as np
from label_studio_sdk.converter.brush import decode_rle, mask2rle
for mask, rle in json.load(sys.stdin):
    mask = np.array(mask, np.uint8) * 255
    assert mask2rle(mask) == rle, "its own encoder"
    assert (decode_rle(rle).reshape(*mask.shape, 4) == mask[..., None]).all(), "its own reader"
"""


@pytest.mark.skipif(not READERS.is_file(), reason=f"no {READERS} with label-studio-sdk (see .ci)")
def test_a_brush_has_the_bytes_of_label_studios_own_encoder():
    pairs = [(mask.tolist(), brush(mask)) for mask in some_masks()]
    said = subprocess.run([READERS, "-c", SDK], input=json.dumps(pairs), capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


def test_run_lengths_without_end_or_of_too_many_pixels_are_refused_at_once():
    with pytest.raises(DataError, match="run lengths of 400 x 400"):
        checked((400, 400), "o" * (1 << 20))
    whole = encoded(np.ones((9000, 8000), dtype=bool))
    assert checked(**whole) == whole
    # one run of 2**32, in groups of five bits from the lowest: as long as the mask, which is too large
    with pytest.raises(DataError, match="run lengths of 65536 x 65536"):
        checked((1 << 16, 1 << 16), "PPPPPP4")
