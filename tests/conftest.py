"""What the tests share: where real photographs may lie, and a picture drawn on the spot."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real photographs and reference maps; the test is skipped where there is none."""
    folder = Path(os.environ.get("PHRASE_LOC_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set PHRASE_LOC_SHARED)")
    return folder


@pytest.fixture
def drawn_image() -> Image.Image:
    """A 120 x 80 (W x H) picture: a red square at (10, 20)-(50, 60), a blue disc at (70, 10)-(110, 50)."""
    image = Image.new("RGB", (120, 80), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 20, 49, 59), fill="red")
    draw.ellipse((70, 10, 109, 49), fill="blue")
    return image
