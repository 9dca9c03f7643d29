"""Pictures: the box and the glow are where they belong, and a file is whole or absent."""

import pytest
import torch
from PIL import Image

from phrase_loc.drawing import COLOURS, glow, overlay, picture_format, save_picture
from phrase_loc.errors import DataError
from phrase_loc.structures import Prediction, Word


def prediction(
    phrase: str = "a dog", box: tuple[float, ...] = (10, 20, 50, 60), present: float | None = 0.9
) -> Prediction:
    attention = torch.zeros(8, 12)
    attention[2:6, 1:5] = 1.0
    words = (Word("dog", True, 1.0),)
    return Prediction(
        phrase,
        words,
        present,
        torch.tensor([30.0, 40.0]),
        torch.tensor([box]),
        torch.tensor([1.0]),
        attention,
    )


def test_the_box_is_drawn_where_it_is(drawn_image):
    picture = overlay(drawn_image, [prediction()])
    edge = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    assert picture.getpixel((11, 40)) == edge
    assert picture.getpixel((49, 40)) == edge
    assert picture.size == (120, 80 + 26)


@pytest.mark.parametrize(
    ("present", "least", "most", "full"),
    [(0.9, 1, 1, True), (None, 1, 1, True), (0.2, 0.4, 0.8, True), (0.01, 0, 0, False)],
)
def test_the_frame_is_whole_dashed_or_absent(drawn_image, present, least, most, full):
    picture = overlay(drawn_image, [prediction(present=present)])
    colour = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    drawn = [picture.getpixel((11, y)) == colour for y in range(22, 58)]
    assert least <= sum(drawn) / len(drawn) <= most
    assert (picture.getpixel((30, 40)) == colour) is full  # the peak's inside


def test_the_glow_is_bright_where_the_map_is_high():
    heat = torch.zeros(10, 10)
    heat[:, :5] = 1.0
    picture = glow(Image.new("RGB", (100, 100), "gray"), heat)
    assert sum(picture.getpixel((20, 50))) > sum(picture.getpixel((80, 50))) + 150


def test_phrases_stand_three_in_a_row(drawn_image):
    assert overlay(drawn_image, [prediction(str(i)) for i in range(4)]).size == (360, 2 * 106)
    assert overlay(drawn_image, []).size == drawn_image.size


def test_an_unknown_phrase_and_a_box_over_the_border_are_drawn(drawn_image):
    nothing = Prediction("zorg" * 40, (), None, None, torch.zeros(0, 4), torch.zeros(0), torch.zeros(3, 3))
    assert overlay(drawn_image, [nothing, prediction(box=(-5, -5, 500, 500))]).size == (240, 106)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, drawn_image):
    save_picture(drawn_image, tmp_path / "a.png")
    with pytest.raises(DataError, match="must end like an image"):
        save_picture(drawn_image, tmp_path / "a.doc")
    with pytest.raises(DataError, match="cannot write"):
        save_picture(drawn_image, tmp_path / "none" / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("ending", [".psd", ".fits", ".blp", ".xbm", ".msp", ".h5", ".mpg", ".doc", ""])
def test_an_ending_that_cannot_be_written_is_refused_before_there_is_a_picture(tmp_path, ending):
    with pytest.raises(DataError, match="must end like an image that can be written"):
        picture_format(tmp_path / f"o{ending}")


@pytest.mark.parametrize("ending", [".png", ".JPG", ".webp", ".tiff", ".gif", ".bmp"])
def test_usual_endings_are_written(tmp_path, drawn_image, ending):
    save_picture(drawn_image, tmp_path / f"o{ending}")
    with Image.open(tmp_path / f"o{ending}") as picture:
        assert picture.size == drawn_image.size


def test_a_folder_is_no_picture(tmp_path):
    (tmp_path / "o.png").mkdir()
    with pytest.raises(DataError, match="it is a folder or a device"):
        picture_format(tmp_path / "o.png")


@pytest.mark.parametrize(("ending", "height"), [(".jpg", 65_600), (".webp", 16_400)])
def test_a_picture_too_long_for_its_format_is_one_sentence(tmp_path, ending, height):
    with pytest.raises(DataError, match=rf"of 2 x {height} pixels .*name a .png"):
        save_picture(Image.new("RGB", (2, height)), tmp_path / f"o{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("phrase", ["a\ndog", "caf\udce9", "dog " * 100_000, "\0"])
def test_any_phrase_can_be_a_caption(drawn_image, phrase):
    assert overlay(drawn_image, [prediction(phrase)]).size == (120, 106)
