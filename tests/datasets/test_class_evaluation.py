"""VOC, COCO and ImageNet trees in their real format through the whole evaluation, counted by hand."""

from pathlib import Path

import pytest

from phrase_loc.config import load_config
from phrase_loc.distributed import World
from phrase_loc.evaluation.protocols import EvaluateConfig
from phrase_loc.evaluation.run import evaluate, report
from tests.datasets.trees import coco_tree, rectangle, voc_tree, xml

CENTRE, CORNER = (90, 40, 110, 60), (1, 1, 20, 20)  # in images of 200 x 100, whose centre is (100, 50)


def rows(config_file: Path, root: Path, *changes: str) -> dict[str, dict]:
    """Rows of the centre baseline by protocol."""
    arguments = [str(config_file), f"data.root={root}", "method=centre", "bootstrap=20", *changes]
    config = load_config(EvaluateConfig, [*arguments, f"output={root / 'report.json'}"])
    content = report(evaluate(config, World()))
    return {row["protocol"]: row for row in content["rows"]}


def test_voc_counts_pairs_and_averages_classes(tmp_path, root):
    annotations = {
        "1": xml([("dog", *CENTRE, 0), ("cat", *CORNER, 0)]),
        "2": xml([("dog", *CORNER, 0), ("dog", *CORNER, 1)]),
        "3": xml([("cat", *CORNER, 0), ("dog", *CENTRE, 1)]),  # the dog is only difficult: not played
        "4": xml([("bus", 76, 1, 85, 100, 0)]),  # its last pixel is 84, 16 from the centre; see below
    }
    found = rows(root / "configs" / "voc07.yaml", voc_tree(tmp_path, annotations))
    everything, hard = found["voc_pointing"], found["voc_pointing_difficult"]
    assert (everything["count"], everything["images"]) == (5, 4)
    assert everything["by_type"] == {"bus": 0.0, "cat": 0.0, "dog": 50.0}
    assert everything["value"] == pytest.approx(16.67)
    assert (hard["count"], hard["images"]) == (3, 2)  # 1: dog, cat; 3: cat beside a difficult dog
    assert hard["by_type"] == {"cat": 0.0, "dog": 100.0}
    assert hard["value"] == 50.0


def test_a_box_within_fifteen_pixels_is_hit(tmp_path, root):
    annotations = {"near": xml([("bus", 1, 1, 87, 100, 0)]), "far": xml([("cat", 1, 1, 86, 100, 0)])}
    found = rows(root / "configs" / "voc07.yaml", voc_tree(tmp_path, annotations))
    assert found["voc_pointing"]["by_type"] == {"bus": 100.0, "cat": 0.0}  # 14 and 15 from the centre


def test_coco_points_at_masks_and_not_at_boxes(tmp_path, root):
    frame = rectangle(0, 0, 200, 10) + rectangle(0, 90, 200, 10)  # a box around all, a mask at two borders
    things = [
        {"image_id": 1, "category_id": 18, "bbox": [0, 0, 200, 100], "segmentation": frame, "area": 4000},
        {
            "image_id": 2,
            "category_id": 1,
            "bbox": [90, 40, 20, 20],
            "segmentation": rectangle(90, 40, 20, 20),
            "area": 400,
        },
    ]
    found = rows(root / "configs" / "coco.yaml", coco_tree(tmp_path, things))
    assert found["coco_pointing"]["by_type"] == {"dog": 0.0, "person": 100.0}
    assert found["coco_pointing"]["value"] == 50.0
    assert found["coco_pointing_difficult"]["count"] == 0


def test_only_units_leaves_out_what_a_classifier_cannot_play(tmp_path, root):
    annotations = {"1": xml([("dog", *CENTRE, 0), ("person", *CORNER, 0)])}
    tree = voc_tree(tmp_path, annotations)
    found = rows(root / "configs" / "voc07.yaml", tree, "data.options.only_units=true")
    assert found["voc_pointing"]["by_type"] == {"dog": 100.0}
    assert found["voc_pointing_difficult"]["count"] == 1  # the person still makes the dog hard
