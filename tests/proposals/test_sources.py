"""Every source: boxes of one format inside the frame, the same in every process."""

import hashlib
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from phrase_loc.boxes import iou
from phrase_loc.errors import ConfigError
from phrase_loc.proposals import PROPOSALS, LevelSets, Windows, ximgproc

SIZE = (80, 120)
SQUARE = torch.tensor([[10.0, 20, 50, 60]])  # the red square of `drawn_image`

PRINT_DIGESTS = """
import hashlib, sys
import torch
from PIL import Image
from phrase_loc.proposals import PROPOSALS
picture = Image.open(sys.argv[1]).convert("RGB")
grid = torch.arange(49.0).reshape(7, 7).sin().abs()
for name, source in PROPOSALS.items():
    for boxes in (source.of_image(picture, (80, 120)), source.of_map(grid, (80, 120))):
        print(name, boxes is not None and hashlib.sha256(boxes.numpy().tobytes()).hexdigest())
"""


def attention_at_square() -> torch.Tensor:
    grid = torch.zeros(16, 24)
    grid[4:12, 2:10] = 1
    return grid


@pytest.fixture
def noisy_image(drawn_image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 12, (80, 120, 3))
    return Image.fromarray((np.asarray(drawn_image) + noise).clip(0, 255).astype(np.uint8))


def boxes_of(source, picture: Image.Image, attention: Tensor, size: tuple[int, int]) -> Tensor:
    """From the picture and from the map."""
    parts = [source.of_image(picture, size), source.of_map(attention, size)]
    return torch.cat([part for part in parts if part is not None])


@pytest.mark.parametrize("name", PROPOSALS)
def test_boxes_are_float_xyxy_within_the_frame(name: str, noisy_image: Image.Image):
    source = PROPOSALS[name]
    boxes = boxes_of(source, noisy_image, attention_at_square(), SIZE)
    assert boxes.dtype == torch.float32
    assert len(boxes) > 3
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([120.0, 80.0]) + 1e-4).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(boxes.unique(dim=0)) == len(boxes)


@pytest.mark.parametrize("name", PROPOSALS)
def test_the_frame_scales_the_boxes(name: str, noisy_image: Image.Image):
    source, grid = PROPOSALS[name], attention_at_square()
    small = boxes_of(source, noisy_image, grid, SIZE)
    large = boxes_of(source, noisy_image, grid, (160, 360))
    torch.testing.assert_close(small * torch.tensor([3.0, 2.0, 3.0, 2.0]), large)


@pytest.mark.parametrize("name", PROPOSALS)
def test_the_drawn_square_is_found(name: str, drawn_image: Image.Image):
    source = PROPOSALS[name]
    boxes = boxes_of(source, drawn_image, attention_at_square(), SIZE)
    assert iou(boxes, SQUARE).max() > 0.7


def test_two_processes_give_identical_boxes(noisy_image: Image.Image, tmp_path):
    noisy_image.save(tmp_path / "noisy.png")
    command = [sys.executable, "-c", PRINT_DIGESTS, str(tmp_path / "noisy.png")]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    grid = torch.arange(49.0).reshape(7, 7).sin().abs()
    here = []
    for name, source in PROPOSALS.items():
        source.of_image(noisy_image, SIZE)  # a first call must not change the second
        for boxes in (source.of_image(noisy_image, SIZE), source.of_map(grid, SIZE)):
            digest = boxes is not None and hashlib.sha256(boxes.numpy().tobytes()).hexdigest()
            here.append(f"{name} {digest}")
    assert other == here


def test_windows_are_all_boxes_of_the_grid():
    found = Windows(cells=3, aspect=2.0).of_image(None, (30, 60))
    expected = {
        (x1 * 20.0, y1 * 10.0, x2 * 20.0, y2 * 10.0)
        for x1 in range(4)
        for x2 in range(x1 + 1, 4)
        for y1 in range(4)
        for y2 in range(y1 + 1, 4)
        if max(x2 - x1, y2 - y1) <= 2 * min(x2 - x1, y2 - y1)
    }
    assert {tuple(box) for box in found.tolist()} == expected
    assert len(found) == len(expected)
    assert len(Windows().of_image(None, SIZE)) == 1248


def test_level_sets_of_two_hills():
    grid = torch.zeros(20, 20)
    grid[2:6, 2:8] = 1.0
    grid[12:18, 10:14] = 0.6
    found = {tuple(b) for b in LevelSets(steps=9, grid=20).of_map(grid, (20, 20)).tolist()}
    assert found == {(0, 0, 20, 20), (2, 2, 8, 6), (10, 12, 14, 18), (2, 2, 14, 18)}


def test_level_sets_of_a_flat_map_are_the_image():
    assert LevelSets().of_map(torch.ones(7, 7), SIZE).tolist() == [[0, 0, 120, 80]]


def test_phrases_of_one_image_have_their_own_level_sets():
    source = PROPOSALS["level_sets"]
    one, other = attention_at_square(), attention_at_square().flip(1)
    assert source.of_map(one, SIZE).tolist() != source.of_map(other, SIZE).tolist()


def test_an_opencv_without_contributed_modules_is_named(monkeypatch: pytest.MonkeyPatch, drawn_image):
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    with pytest.raises(ConfigError, match="opencv-contrib-python-headless"):
        ximgproc()
    for name in ("default", "selective_search"):
        with pytest.raises(ConfigError, match="opencv-contrib-python-headless"):
            PROPOSALS[name].of_image(drawn_image, SIZE)


@pytest.mark.parametrize("pixels", [(1, 1), (1, 200), (3000, 20)])
@pytest.mark.parametrize("name", PROPOSALS)
def test_odd_pictures_do_not_break(name: str, pixels: tuple[int, int]):
    boxes = PROPOSALS[name].of_image(Image.new("RGB", pixels, "green"), pixels[::-1])
    assert boxes is None or boxes.shape[1:] == (4,)
