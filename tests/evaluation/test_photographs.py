"""Photographs and annotations of one frame, of another, and those that cannot be looked at."""

import json

import numpy as np
import pytest
from PIL import Image

from phrase_loc.config import load_config
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.evaluation.evaluator import framed
from phrase_loc.evaluation.protocols import EvaluateConfig
from phrase_loc.evaluation.run import evaluate, report
from phrase_loc.images import load_image
from phrase_loc.structures import GroundingSample
from tests.datasets.trees import coco_tree, rectangle
from tests.evaluation.fakes import FakeLocalizer
from tests.evaluation.small_models import text_localizer


def sample(path, size):
    return GroundingSample("a", path, size, (), ())


def save(path, size, orientation=None, mode="RGB"):
    """A picture of `size` (W, H), red at its stored left end."""
    picture = Image.new(mode, size)
    picture.paste("red" if mode == "RGB" else 200, (0, 0, max(1, size[0] // 4), size[1]))
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="JPEG", quality=95, exif=exif)
    return path


@pytest.mark.parametrize("size", [(100, 200), (50, 100), (200, 400), (333, 667), (101, 200)])
def test_the_usual_frames_are_looked_at_as_they_are(tmp_path, size):
    path = save(tmp_path / "a.jpg", (200, 100))
    found = framed(sample(path, size))
    assert found == (path, "")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_annotation_of_the_stored_pixels_is_scored_in_their_frame(tmp_path, orientation):
    path = save(tmp_path / "a.jpg", (200, 100), orientation)
    upright = framed(sample(path, (200, 100)))
    assert upright == (path, "")
    stored, _ = framed(sample(path, (100, 200)))
    pixels = np.asarray(load_image(stored))  # what a localizer does with it
    assert pixels.shape == (100, 200, 3)
    assert pixels[50, 10, 0] > 200 > 50 > pixels[50, 150, 0]


@pytest.mark.parametrize("size", [(200, 100), (300, 200), (100, 100), (120, 400), (100, 220)])
def test_another_frame_is_refused(tmp_path, size):
    with pytest.raises(DataError, match=r"has 200 x 100 pixels, but its annotation is of"):
        framed(sample(save(tmp_path / "a.jpg", (200, 100)), size))


def test_small_squares_are_taken_for_squashed_frames_and_said_so(tmp_path):
    assert "squashed" in framed(sample(save(tmp_path / "a.jpg", (224, 224)), (333, 500)))[1]
    for side, size in ((1, (333, 500)), (512, (600, 800)), (224, (100, 200))):
        with pytest.raises(DataError, match="no copy at another scale"):
            framed(sample(save(tmp_path / "a.jpg", (side, side)), size))


def coco(root, photographs):
    """A person in each; photographs: (W, H) in the file, its EXIF orientation, (W, H) in the annotation."""
    things = []
    for number in range(1, len(photographs) + 1):
        box = [2, 2, 30, 40] if photographs[number - 1][2] != (1, 1) else [0, 0, 1, 1]
        things.append({"image_id": number, "category_id": 1, "bbox": box, "segmentation": rectangle(*box)})
    coco_tree(root, things, images=len(photographs))

    path = root / "annotations/instances_val2014.json"
    facts = json.loads(path.read_text())
    for image, (size, orientation, annotated) in zip(facts["images"], photographs, strict=True):
        save(root / "val2014" / image["file_name"], size, orientation)
        image["width"], image["height"] = annotated
    path.write_text(json.dumps(facts))
    return root


def evaluated(root, repository, localizer):
    arguments = [
        str(repository / "configs/coco.yaml"),
        f"data.root={root}",
        "method=contrastive_mwp",
        "bootstrap=5",
    ]
    config = load_config(
        EvaluateConfig, [*arguments, f"output={root / 'report.json'}", "protocols=[coco_pointing]"]
    )
    return report(evaluate(config, World(), localizer))


def test_an_evaluation_names_other_frames_and_scores_the_rest(tmp_path, root):
    shapes = [((200, 100), None, (200, 100)), ((200, 100), 6, (200, 100)), ((200, 100), None, (100, 200))]
    shapes += [((224, 224), None, (640, 480)), ((200, 100), None, (640, 480))]
    content = evaluated(coco(tmp_path, shapes), root, FakeLocalizer())
    assert content["skipped"]["images"]["count"] == 2
    assert [s[0] for s in content["skipped"]["images"]["sentences"]] == ["3", "5"]
    assert [s[0] for s in content["skipped"]["squashed photographs (kept)"]["sentences"]] == ["4"]
    assert content["rows"][0]["images"] == 3


def test_odd_photographs_never_end_a_run(tmp_path, root):
    same = [((200, 100), None, (200, 100))] * 6
    tree = coco(tmp_path, [*same, ((1, 1), None, (1, 1)), ((40, 900), None, (40, 900))])
    names = sorted((tree / "val2014").iterdir())
    names[0].write_bytes(b"")
    names[1].write_bytes(names[1].read_bytes()[:300])
    names[2].unlink()
    names[3].unlink()
    names[3].mkdir()
    save(names[4], (200, 100), mode="L")
    content = evaluated(tree, root, text_localizer())
    assert [s.split(":")[0] for s in content["skipped"]["images"]["sentences"]] == ["1", "2", "3", "4"]
    assert content["rows"][0]["images"] == 4
