import pytest
import torch

from phrase_loc.datasets.voc import VOC
from phrase_loc.errors import DataError
from tests.datasets.trees import voc_tree, xml


def test_corners_lose_one_and_names_become_phrases(tmp_path):
    data = VOC(voc_tree(tmp_path, {"000001": xml([("tvmonitor", 11, 21, 30, 40, 0)])}))
    sample = data[0]
    assert len(data) == 1 == len(data.samples)
    assert sample.size == (100, 200)
    assert sample.phrases[0].text == "television"
    assert sample.phrases[0].labels == ("tvmonitor",)
    assert sample.boxes[0].tolist() == [[10, 20, 29, 39]]
    assert sample.path.is_file()


def test_all_difficult_class_is_left_out_but_difficult_truth_beside_easy_counts(tmp_path):
    objects = [("dog", 1, 1, 20, 20, 1), ("cat", 1, 1, 20, 20, 0), ("cat", 50, 50, 90, 90, 1)]
    data = VOC(voc_tree(tmp_path, {"a": xml(objects), "b": xml([("dog", 1, 1, 9, 9, 1)])}))
    assert [p.text for p in data[0].phrases] == ["cat"]
    assert len(data[0].boxes[0]) == 2
    assert len(data) == 1
    assert data.skipped.counts == {"classes": 2, "images": 1}


@pytest.mark.parametrize(
    "objects, hard",
    [
        ([("dog", 1, 1, 20, 20, 0)], [False]),  # small, but alone
        ([("dog", 1, 1, 20, 20, 0), ("cat", 1, 1, 200, 100, 0)], [True, False]),  # the cat fills the image
        ([("dog", 1, 1, 100, 50, 0), ("cat", 1, 1, 9, 9, 1)], [False]),  # exactly a quarter is not hard
        ([("dog", 1, 1, 99, 50, 0), ("cat", 1, 1, 9, 9, 1)], [True]),  # another class, though left out
        ([("dog", 1, 1, 60, 50, 0), ("dog", 1, 1, 60, 50, 0), ("cat", 1, 1, 9, 9, 0)], [True, True]),  # union
    ],
)
def test_difficult_subset(tmp_path, objects, hard):
    data = VOC(voc_tree(tmp_path, {"a": xml(objects)}))
    assert list(data[0].facts["hard"]) == hard


def test_the_root_may_be_the_year(tmp_path):
    voc_tree(tmp_path, {"a": xml([("dog", 1, 1, 20, 20, 0)])})
    for root in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        assert len(VOC(root)) == 1


ENTITIES = '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    "text, said",
    [
        ("<annotation><object>", "not well-formed"),
        (ENTITIES, "entities"),
        (xml([("unicorn", 1, 1, 20, 20, 0)]), "none of VOC's 20"),
        (xml([("dog", 1, 1, 20, 20, "perhaps")]), "'perhaps'; 0 or 1 was expected"),
        (xml([("dog", 20, 1, 1, 20, 0)]), "xmax < xmin"),
        (xml([("dog", "", 1, 1, 20, 0)]), "number"),
        (xml([("dog", 1, 1, 20, 20, 0)], size=(0, 0)), "size"),
    ],
)
def test_a_broken_annotation_leaves_the_count_and_is_named(tmp_path, text, said):
    data = VOC(voc_tree(tmp_path, {"good": xml([("dog", 1, 1, 20, 20, 0)]), "bad": text}))
    assert [s.image_id for s in data] == ["good"]
    (sentence,) = data.skipped.notes["images"]
    assert said in sentence
    assert "bad.xml" in sentence


def test_nothing_readable_and_nothing_there(tmp_path):
    with pytest.raises(DataError, match="expected"):
        VOC(tmp_path)
    voc_tree(tmp_path, {"bad": "<annotation>"})
    with pytest.raises(DataError, match="nothing that can be evaluated"):
        VOC(tmp_path)
    with pytest.raises(DataError, match="no list"):
        VOC(tmp_path, split="trainval")


def test_reads_as_torchvision_does(tmp_path):
    torchvision = pytest.importorskip("torchvision.datasets")
    objects = [("dog", 11, 21, 30, 40, 0), ("person", 5, 6, 70, 80, 0), ("dog", 100, 10, 150, 60, 0)]
    root = voc_tree(tmp_path, {"000007": xml(objects)})
    _, target = torchvision.VOCDetection(str(root), year="2007", image_set="test")[0]
    sample = VOC(root)[0]
    for thing in target["annotation"]["object"]:
        box = [float(thing["bndbox"][k]) - 1 for k in ("xmin", "ymin", "xmax", "ymax")]
        place = [p.labels[0] for p in sample.phrases].index(thing["name"])
        assert (sample.boxes[place] == torch.tensor(box)).all(1).any()
