"""What the tests share: where real photographs may lie, and a picture drawn on the spot."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # the workers share the cores, and so do the processes that they start
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """A picture as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """What is kept between evaluations lies in a folder of this run, not in the user's."""
    os.environ["PHRASE_LOC_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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


@pytest.fixture
def photographs(drawn_image: Image.Image, tmp_path: Path) -> Path:
    """A folder of five photographs, 0.png to 4.png: the drawn picture, turned by 30 degrees each."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(5):
        drawn_image.rotate(30 * number).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_localizer():
    """A localizer with a few random convolutions, four trained words and two further ones; works on 32 pixels."""
    from phrase_loc.localizer import Inference, PhraseLocalizer
    from phrase_loc.models.build import create, folded
    from phrase_loc.text.vocabulary import Vocabulary

    torch.manual_seed(0)
    vocabulary = Vocabulary(("man", "red", "hat", "dog"), (90, 50, 30, 20))
    model = folded(create(vocabulary, torch.randn(4, 16), backbone="tiny", weights=None, hidden=32))
    model.config = replace(model.config, calibration={"slope": 1.0, "offset": 0.0})
    return PhraseLocalizer(model, Inference(image_sizes=(32, 48), grid=16, proposals="level_sets"))


@pytest.fixture(scope="session")
def tiny_model(tiny_localizer, tmp_path_factory) -> Path:
    """The folder of that model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_localizer.save_pretrained(folder)
    return folder
