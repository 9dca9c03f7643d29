"""Boxes that come from disk: with a cache and without they are the same."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phrase_loc.proposals import PROPOSALS, Cached, LevelSets, Windows, tidy

SIZE = (80, 120)


class Counting:
    """A source that says how often it was asked."""

    def __init__(self, constant: int = 0):
        self.asked, self.constant = 0, constant

    def __repr__(self) -> str:
        return f"Counting({self.constant})"

    def of_image(self, picture, size):
        self.asked += 1
        return torch.tensor([[0.0, 0.0, size[1] / 3, size[0] / 7]])

    def of_map(self, attention, size):
        return None


def test_the_cache_answers_the_second_time(tmp_path: Path, drawn_image: Image.Image):
    source = Counting()
    cached = Cached(source, tmp_path / "deep" / "folder")
    first = cached.of_image(drawn_image, SIZE)
    torch.testing.assert_close(cached.of_image(drawn_image, SIZE), first, rtol=0, atol=0)
    assert source.asked == 1
    torch.testing.assert_close(first, source.of_image(drawn_image, SIZE), rtol=0, atol=0)
    torch.testing.assert_close(cached.of_image(drawn_image, (160, 240)), first * 2)  # another frame
    assert source.asked == 3


def test_another_picture_or_constant_is_another_file(tmp_path: Path, drawn_image: Image.Image):
    pictures = [
        drawn_image,
        drawn_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        drawn_image.resize((60, 40)),
    ]
    keys = {Cached(Counting(c), tmp_path).key(p, SIZE) for c in (0, 1) for p in pictures}
    assert len(keys) == 6


@pytest.mark.parametrize("name", ["default", "selective_search"])
def test_cached_boxes_are_those_of_the_source(name: str, tmp_path: Path, drawn_image: Image.Image):
    cached = Cached(PROPOSALS[name], tmp_path)
    plain = PROPOSALS[name].of_image(drawn_image, SIZE)
    for _ in range(2):
        torch.testing.assert_close(cached.of_image(drawn_image, SIZE), plain, rtol=0, atol=0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]  # nothing half written is left


def test_a_source_of_maps_is_passed_through(tmp_path: Path, drawn_image: Image.Image):
    cached = Cached(LevelSets(), tmp_path)
    assert cached.of_image(drawn_image, SIZE) is None
    assert cached.of_map(torch.eye(4), SIZE).tolist() == LevelSets().of_map(torch.eye(4), SIZE).tolist()
    assert list(tmp_path.iterdir()) == []


def broken(path: Path, how: str) -> None:
    if how == "torn":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "shape":
        np.save(path, np.zeros(3, np.float32))
    elif how == "type":
        np.save(path, np.zeros((2, 4)))
    else:
        path.write_bytes(how.encode())


@pytest.mark.parametrize("how", ["torn", "shape", "type", "\x93NUMPY broken", ""])
def test_a_broken_file_is_made_again(how: str, tmp_path: Path, drawn_image: Image.Image):
    source = Counting()
    cached = Cached(source, tmp_path)
    boxes = cached.of_image(drawn_image, SIZE)
    (path,) = tmp_path.iterdir()
    broken(path, how)
    for _ in range(2):
        assert torch.equal(cached.of_image(drawn_image, SIZE), boxes)
    assert source.asked == 2


def test_every_flipped_bit_is_noticed_and_named(tmp_path: Path, drawn_image: Image.Image, capsys):
    source = Counting()
    cached = Cached(source, tmp_path)
    boxes = cached.of_image(drawn_image, SIZE)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    assert np.load(path).tolist() == boxes.tolist()
    for bit in range(0, 8 * len(whole), 37):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        asked = source.asked
        assert torch.equal(cached.of_image(drawn_image, SIZE), boxes)
        assert source.asked == asked + 1
        assert "damaged and are made anew" in capsys.readouterr().err
        assert path.read_bytes() == whole


def test_boxes_of_another_picture_are_noticed(tmp_path: Path, drawn_image: Image.Image):
    cached = Cached(Counting(), tmp_path)
    turned = drawn_image.transpose(Image.Transpose.ROTATE_90)
    first, second = cached.of_image(drawn_image, SIZE), cached.of_image(turned, (120, 80))
    places = [tmp_path / f"{cached.key(*asked)}.npy" for asked in ((drawn_image, SIZE), (turned, (120, 80)))]
    places[0].write_bytes(places[1].read_bytes())
    assert torch.equal(cached.of_image(drawn_image, SIZE), first)
    assert not torch.equal(first, second)


def test_a_folder_that_cannot_be_written_costs_a_warning_and_no_answer(
    tmp_path: Path, drawn_image: Image.Image
):
    (tmp_path / "file").write_text("")
    cached = Cached(Windows(), tmp_path / "file")
    with pytest.warns(RuntimeWarning, match="not kept"):
        boxes = cached.of_image(drawn_image, SIZE)
    assert torch.equal(boxes, Windows().of_image(drawn_image, SIZE))


def test_two_processes_may_write_the_same_file(tmp_path: Path, drawn_image: Image.Image):
    """The second finds the first's file in its way, and a reader sees whole files alone."""
    slow, fast = Cached(Counting(), tmp_path), Cached(Counting(), tmp_path)
    plain = slow.source.of_image
    slow.source.of_image = lambda *asked: (fast.of_image(*asked), plain(*asked))[1]
    assert torch.equal(slow.of_image(drawn_image, SIZE), fast.of_image(drawn_image, SIZE))
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, drawn_image: Image.Image):
    sources = [Counting(c) for c in range(3)]
    for age, source in zip((300, 200, 100), sources, strict=True):
        cached = Cached(source, tmp_path)
        cached.of_image(drawn_image, SIZE)
        path = tmp_path / f"{cached.key(drawn_image, SIZE)}.npy"
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    Cached(sources[0], tmp_path).of_image(drawn_image, SIZE)  # used just now
    (tmp_path / "other.txt").write_text("stays")
    tidy(tmp_path, 2 * path.stat().st_size)
    for source in sources:
        Cached(source, tmp_path).of_image(drawn_image, SIZE)
    assert [source.asked for source in sources] == [1, 2, 1]
    assert (tmp_path / "other.txt").exists()
    tidy(tmp_path / "nowhere")
