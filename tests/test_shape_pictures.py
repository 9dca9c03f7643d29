"""The generated pictures of benchmarks/shapes.py: same numbers, same picture; boxes around masks; true captions."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("benchmarks/ is not part of a source distribution", allow_module_level=True)


@pytest.fixture
def pictures(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import shape_pictures

    return shape_pictures


def test_a_picture_is_a_function_of_its_numbers(pictures):
    one, again, other = pictures.draw(3, 5), pictures.draw(3, 5), pictures.draw(3, 6)
    assert np.array_equal(one.pixels, again.pixels)
    assert one.caption == again.caption
    assert not np.array_equal(one.pixels, other.pixels)


def test_boxes_masks_and_captions_are_true(pictures):
    for index in range(30):
        picture = pictures.draw(0, index)
        assert 1 <= len(picture.things) <= 6
        assert not np.sum([thing.mask for thing in picture.things], 0).max() > 1  # who lies behind is cut
        for thing in picture.things:
            x1, y1, x2, y2 = thing.box
            inside = np.zeros_like(thing.mask)
            inside[y1:y2, x1:x2] = True
            assert (thing.mask <= inside).all()
            assert thing.mask[y1].any()
            assert thing.mask[:, x2 - 1].any()
        for name in picture.caption.split(" and "):
            assert picture.named(tuple(name.split()[1:]))


def test_the_four_of_a_grid_share_no_word(pictures):
    four = pictures.grid(0, 1)
    words = [word for picture in four for word in picture.things[0].words]
    assert len(set(words)) == 8
    assert pictures.montage(four).shape == (pictures.SIDE, pictures.SIDE, 3)


def test_the_benchmark_trains_both_networks_and_scores_every_method(pictures, monkeypatch, tmp_path, capsys):
    import shapes

    monkeypatch.setattr(shapes, "TRAINED_ON", 64)
    monkeypatch.setattr(
        "sys.argv", ["shapes.py", "--seeds", "0", "--pictures", "2", "--folder", str(tmp_path)]
    )
    shapes.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 * (1 + len(shapes.METHODS))
    assert "nan" not in "".join(rows)
    assert {file.name for file in tmp_path.iterdir()} >= {"vit0.pt", "conv0.pt", "vit.json", "conv.json"}
