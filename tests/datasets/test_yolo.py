import pytest
from PIL import Image

from phrase_loc.datasets.yolo import YOLO
from phrase_loc.errors import ConfigError, DataError
from tests.datasets.trees import photograph


def tree(root, labels):
    (root / "labels").mkdir()
    for name, text in labels.items():
        photograph(root / "images" / f"{name}.jpg")
        if text is not None:
            (root / "labels" / f"{name}.txt").write_text(text)
    return root


def test_shares_become_pixels_and_are_cut_to_the_image(tmp_path):
    data = YOLO(tree(tmp_path, {"a": "16 0.5 0.5 0.1 0.2\n16 0.0 0.5 0.5 0.5\n62 0.9 0.9 0.1 0.1\n"}))
    sample = data[0]
    assert [(p.text, p.labels) for p in sample.phrases] == [("dog", ("dog",)), ("television", ("tv",))]
    assert sample.boxes[0].tolist() == [[90, 40, 110, 60], [0, 25, 50, 75]]
    assert sample.size == (100, 200)
    assert sample.facts["hard"] == (True, True)


@pytest.mark.parametrize(
    "line", ["1 0.5 0.5 0.1", "80 0.5 0.5 0.1 0.1", "1 5 5 1 1", "1 .5 .5 0 .1", "x", "1 nan 0 .1 .1"]
)
def test_a_broken_label_leaves_the_count_and_is_named(tmp_path, line):
    data = YOLO(tree(tmp_path, {"good": "0 0.5 0.5 0.1 0.1", "bad": line, "none": None}))
    assert [s.image_id for s in data] == ["good"]
    assert data.skipped.counts == {"images": 2}
    assert any("bad.txt line 1" in sentence for sentence in data.skipped.notes["images"])


def test_other_names(tmp_path):
    data = YOLO(tree(tmp_path, {"a": "1 0.5 0.5 0.1 0.2"}), names=["cup", "diningtable"])
    assert data[0].phrases[0].text == "dining table"


def test_a_turned_photograph_has_its_upright_size(tmp_path):
    root = tree(tmp_path, {"a": "0 0.5 0.5 1 1"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100)).save(root / "images" / "a.jpg", exif=exif)
    assert YOLO(root)[0].size == (200, 100)


def test_a_folder_among_the_photographs_is_named_as_a_split(tmp_path):
    root = tree(tmp_path, {"a": "0 0.5 0.5 1 1"})
    (root / "images" / "train").mkdir()
    assert YOLO(root).skipped.notes["files"] == ["train: a folder; data.split names it"]


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="images and labels"):
        YOLO(tmp_path)


def test_coco128(shared_dir):
    data = YOLO(shared_dir / "data" / "coco128")
    samples = [data[i] for i in range(len(data))]
    assert len(data) == 126
    assert sum(len(s.phrases) for s in samples) == 362
    assert sum(sum(s.facts["hard"]) for s in samples) == 256
    assert {p.labels[0] for s in samples for p in s.phrases} >= {"person", "dog", "tv"}


def test_classes_of_roboflow_lie_beside_the_split(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    root = tree(tmp_path / "train", {"a": "0 0.5 0.5 0.1 0.2"})
    (tmp_path / "classes.txt").write_text("cat")  # of another set
    assert YOLO(root)[0].phrases[0].text == "person"
    assert "class numbers are COCO's 80 in order" in caplog.text
    (tmp_path / "data.yaml").write_text("names: [hardhat, forklift]")
    with pytest.raises(DataError, match="'hardhat', which is none of COCO's 80"):
        YOLO(root)
    (root / "classes.txt").write_text("cat")
    assert YOLO(root)[0].phrases[0].text == "cat"


def test_labels_of_poses_are_refused(tmp_path):
    root = tree(tmp_path, {"a": "0 0.5 0.5 0.2 0.2 0.5 0.4 0.5 0.9"})  # a box and two keypoints
    (root / "data.yaml").write_text("names: [person]\nkpt_shape: [2, 2]\n")
    with pytest.raises(ConfigError, match="labels of poses"):
        YOLO(root)
