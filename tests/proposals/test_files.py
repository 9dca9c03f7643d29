"""Boxes that come from disk: the cache, and files of other programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.proposals import PROPOSALS, Cached, Precomputed
from phrase_loc.proposals.levels import LevelSets
from phrase_loc.proposals.windows import Windows

SIZE = (80, 120)


class Counting:
    """A source that says how often it was asked."""

    supervision = "none"

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
    torch.testing.assert_close(cached.of_image(drawn_image, (160, 240)), first * 2)
    torch.testing.assert_close(first, source.of_image(drawn_image, SIZE))
    assert source.asked == 2  # once by the cache, once in the line above


def test_another_picture_or_constant_is_another_file(tmp_path: Path, drawn_image: Image.Image):
    pictures = [
        drawn_image,
        drawn_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        drawn_image.resize((60, 40)),
    ]
    keys = {Cached(Counting(c), tmp_path).key(p) for c in (0, 1) for p in pictures}
    assert len(keys) == 6


@pytest.mark.parametrize("name", ["default", "selective_search", "edge_boxes"])
def test_cached_boxes_are_those_of_the_source(name: str, tmp_path: Path, drawn_image: Image.Image):
    cached = Cached(PROPOSALS[name], tmp_path)
    plain = PROPOSALS[name].of_image(drawn_image, SIZE)
    for _ in range(2):
        torch.testing.assert_close(cached.of_image(drawn_image, SIZE), plain)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]  # nothing half written is left


def test_a_source_of_maps_is_passed_through(tmp_path: Path, drawn_image: Image.Image):
    cached = Cached(LevelSets(), tmp_path)
    assert cached.of_image(drawn_image, SIZE) is None
    assert cached.of_map(torch.eye(4), SIZE).tolist() == LevelSets().of_map(torch.eye(4), SIZE).tolist()
    assert list(tmp_path.iterdir()) == []


def test_a_broken_cache_is_named(tmp_path: Path, drawn_image: Image.Image):
    cached = Cached(Windows(), tmp_path)
    (tmp_path / f"{cached.key(drawn_image)}.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(DataError, match="delete the file"):
        cached.of_image(drawn_image, SIZE)
    np.save(tmp_path / f"{cached.key(drawn_image)}.npy", np.zeros(3))
    with pytest.raises(DataError, match="delete the file"):
        cached.of_image(drawn_image, SIZE)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, drawn_image: Image.Image):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="writable folder"):
        Cached(Windows(), tmp_path / "file").of_image(drawn_image, SIZE)


BOXES = [[1.0, 2.0, 30.0, 40.0], [0.0, 0.0, 120.0, 80.0]]


def write(path: Path) -> Path:
    """The same two boxes of image '7' in the form that the ending asks for."""
    if path.suffix == ".npz":
        np.savez(path, **{"7": np.array(BOXES)})
    elif path.suffix == ".json":
        path.write_text(json.dumps({"7": BOXES, "empty": []}))
    elif path.suffix == ".csv":
        rows = [f"7,{','.join(map(str, box))},0.5" for box in BOXES]
        path.write_text("\n".join(["image_id,x1,y1,x2,y2,score", *rows]))
    else:
        from scipy.io import savemat

        names, cells = np.empty(1, object), np.empty(1, object)
        names[0], cells[0] = "7", np.array([[*box, 0.5] for box in BOXES])
        savemat(path, {"images": names, "boxes": cells})
    return path


@pytest.mark.parametrize("suffix", [".npz", ".json", ".csv", ".mat"])
def test_files_are_read(suffix: str, tmp_path: Path, drawn_image: Image.Image):
    source = Precomputed.from_file(write(tmp_path / f"boxes{suffix}"), supervision="boxes").of("7")
    assert source.supervision == "boxes"
    assert source.of_map(torch.eye(3), SIZE) is None
    assert source.of_image(drawn_image, SIZE).tolist() == BOXES
    assert source.of_image(drawn_image, (160, 120))[0].tolist() == [1, 4, 30, 80]


def test_origin_and_order(tmp_path: Path, drawn_image: Image.Image):
    path = write(tmp_path / "boxes.json")
    source = Precomputed.from_file(path, origin=1, order="yxyx")
    assert source.of("7").of_image(drawn_image, SIZE)[0].tolist() == [1, 0, 39, 29]
    assert source.of("empty").of_image(drawn_image, SIZE).shape == (0, 4)


def test_an_image_without_boxes_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="'8'"):
        Precomputed.from_file(write(tmp_path / "boxes.json")).of("8")


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", '{"7": [[1, 2, 3]]}'),
        ("a.json", '{"7": [[1, 2, 3], [1]]}'),
        ("a.json", '{"7": "boxes"}'),
        ("a.json", '{"7": [[5, 5, 3, 9]]}'),
        ("a.json", '{"7": [[NaN, 5, 3, 9]]}'),
        ("a.csv", "name,x1\n7,1"),
        ("a.npz", "no archive"),
        ("a.mat", "no matrix"),
        ("a.txt", "1 2 3 4"),
    ],
)
def test_broken_files_are_named(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"a\."):
        Precomputed.from_file(tmp_path / name)


def test_wrong_options_and_missing_files(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        Precomputed.from_file(tmp_path / "none.json")
    path = write(tmp_path / "boxes.json")
    for options in ({"order": "xywh"}, {"origin": 2}, {"supervision": "some"}):
        with pytest.raises(ConfigError):
            Precomputed.from_file(path, **options)
