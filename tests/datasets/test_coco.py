import json

import pytest
from pycocotools import mask as rle

from phrase_loc.datasets.coco import COCO
from phrase_loc.errors import DataError
from phrase_loc.masks import decoded
from tests.datasets.trees import coco_tree, rectangle


def annotation(image: int, category: int, box: list[float], **more) -> dict:
    width, height = box[2:]
    facts = {"bbox": box, "segmentation": rectangle(*box), "area": width * height}
    return {"image_id": image, "category_id": category, **facts, **more}


def test_one_phrase_a_category_and_the_union_of_its_masks(tmp_path):
    things = [
        annotation(1, 18, [10, 20, 30, 40]),
        annotation(1, 18, [20, 20, 30, 40]),
        annotation(1, 72, [0, 0, 5, 5]),
    ]
    data = COCO(coco_tree(tmp_path, things))
    sample = data[0]
    assert [(p.text, p.labels) for p in sample.phrases] == [("dog", ("dog",)), ("television", ("tv",))]
    assert sample.boxes[0].tolist() == [[10, 20, 40, 60], [20, 20, 50, 60]]
    assert sample.size == (100, 200)
    assert rle.area(sample.facts["masks"][0]) == 40 * 40
    assert sample.facts["hard"] == (True, True)
    assert data.skipped.counts == {"images": 1}  # the second image has no annotation


def test_crowds_count(tmp_path):
    runs = {"size": [100, 200], "counts": [0, 100, 19900]}  # the first column
    things = [annotation(1, 1, [0, 0, 1, 100], segmentation=runs, iscrowd=1)]
    sample = COCO(coco_tree(tmp_path, things))[0]
    assert decoded(sample.facts["masks"][0])[:, 0].all()
    assert rle.area(sample.facts["masks"][0]) == 100


def test_says_nothing_on_the_terminal(tmp_path, capsys):
    COCO(coco_tree(tmp_path, [annotation(1, 1, [0, 0, 9, 9])]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text, said",
    [("{", "not JSON"), ("[]", "no COCO instances file"), ("{}", "lists no images")],
)
def test_broken_json(tmp_path, text, said):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(DataError, match=said):
        COCO(tmp_path, split="val2017")


def test_shares_of_the_sides_are_no_pixels(tmp_path):
    with pytest.raises(
        DataError, match=r"json has no number above 0\.7 in its boxes and points, .*; expected pixels"
    ):
        COCO(coco_tree(tmp_path, [annotation(1, 1, [0.1, 0.2, 0.5, 0.5])]))


def test_missing_file_and_strange_category(tmp_path):
    with pytest.raises(DataError, match="download COCO's annotations"):
        COCO(tmp_path)
    coco_tree(tmp_path, [annotation(1, 1, [0, 0, 9, 9])])
    path = tmp_path / "annotations" / "instances_val2014.json"
    facts = json.loads(path.read_text())
    facts["categories"].append({"id": 12, "name": "street sign"})
    path.write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"\[12\]"):
        COCO(tmp_path)
