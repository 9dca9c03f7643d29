import pytest

from phrase_loc.datasets.annotations import (
    AMBIGUOUS,
    class_names,
    imagenet_classes,
    imagenet_phrases,
    imagenet_units,
)
from phrase_loc.datasets.imagenet import ImageNet
from phrase_loc.errors import DataError
from tests.datasets.trees import photograph, xml


def ilsvrc(root, photographs, annotations, objects):
    for i, things in enumerate(objects, start=1):
        name = f"ILSVRC2012_val_{i:08d}"
        photograph(root / photographs.format(wnid=things[0][0]) / f"{name}.JPEG")
        path = root / annotations / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml(things))
    return root


@pytest.mark.parametrize(
    "photographs, annotations",
    [
        ("Data/CLS-LOC/val", "Annotations/CLS-LOC/val"),
        ("val/{wnid}", "bbox/val"),
        ("val", "val"),
        ("val", "annotations/val"),
    ],
)
def test_ilsvrc_trees(tmp_path, photographs, annotations):
    things = [[("n01443537", 0, 5, 99, 49), ("n01443537", 100, 5, 150, 49)], [("n03126707", 1, 2, 3, 4)]]
    data = ImageNet(ilsvrc(tmp_path, photographs, annotations, things))
    assert data.name == "imagenet"
    assert [s.phrases[0].text for s in data] == ["goldfish", "construction crane"]
    assert data[0].phrases[0].labels == ("n01443537",)
    assert data[0].boxes[0].tolist() == [[0, 5, 100, 50], [100, 5, 151, 50]]  # far edges
    assert data[0].size == (100, 200)
    assert all(s.path.is_file() for s in data)


def test_what_is_broken_is_named(tmp_path):
    things = [[("n01443537", 0, 5, 99, 49)], [("n01443537", 0, 5, 99, 49), ("n03126707", 1, 2, 3, 4)]]
    root = ilsvrc(tmp_path, "val", "val", things)
    (root / "val" / "ILSVRC2012_val_00000003.xml").write_text("<annotation>")
    photograph(root / "val" / "ILSVRC2012_val_00000003.JPEG")
    (root / "val" / "ILSVRC2012_val_00000004.xml").write_text(xml(things[0]))
    data = ImageNet(root)
    assert len(data) == 1
    assert data.skipped.counts == {"images": 3}


def test_two_photographs_of_one_name_are_named(tmp_path):
    root = ilsvrc(tmp_path, "val/{wnid}", "bbox/val", [[("n01443537", 0, 5, 99, 49)]] * 2)
    photograph(root / "val" / "n03126707" / "ILSVRC2012_val_00000002.JPEG")
    data = ImageNet(root)
    assert [sample.image_id for sample in data] == ["ILSVRC2012_val_00000001"]
    assert "bear its name" in data.skipped.notes["images"][0]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match=r"data/README\.md"):
        ImageNet(tmp_path)
    with pytest.raises(DataError, match="split val only"):
        ImageNet(tmp_path, split="train")


def test_tiny_tree(tmp_path):
    photograph(tmp_path / "val" / "images" / "val_0.JPEG", (64, 64))
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01443537\t1\t2\t30\t40\n")
    data = ImageNet(tmp_path)
    assert data.name == "tiny_imagenet"
    assert data[0].boxes[0].tolist() == [[1, 2, 31, 41]]
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG n01443537 1 2 30\n")
    with pytest.raises(DataError, match="line 1"):
        ImageNet(tmp_path)


def test_real_tiny_imagenet(shared_dir):
    data = ImageNet(shared_dir / "data" / "tiny_imagenet")
    known = {wnid for wnid, _ in imagenet_classes()}
    assert len(data) == 2000
    assert {s.phrases[0].labels[0] for s in data} <= known
    named = dict(
        line.split("\t")
        for line in (shared_dir / "data" / "tiny_imagenet" / "words.txt").read_text().splitlines()
        if line
    )
    for sample in data:
        wnid = sample.phrases[0].labels[0]
        assert sample.phrases[0].text in named[wnid] or wnid in AMBIGUOUS


def test_the_thousand_classes_are_sorted_and_equal_timms():
    wnids = [wnid for wnid, _ in imagenet_classes()]
    assert len(wnids) == 1000
    assert wnids == sorted(wnids)
    info = pytest.importorskip("timm.data").ImageNetInfo()
    assert [(w, info.index_to_description(i).split(",")[0]) for i, w in enumerate(info.label_names())] == [
        (w, lemmas.split(",")[0]) for w, lemmas in imagenet_classes()
    ]


def test_every_class_has_a_phrase_of_its_own():
    assert len(set(imagenet_phrases().values())) == 1000


def test_units_are_kinds_of_their_class():
    names = {c.phrase for dataset in ("voc", "coco") for c in class_names(dataset)}
    units = imagenet_units()
    assert units.keys() <= names
    assert "person" not in units
    lemmas = [words for _, words in imagenet_classes()]
    owners = {}
    for phrase, numbers in units.items():
        for number in numbers:
            assert 0 <= number < 1000
            assert owners.setdefault(number, phrase) == phrase, "a unit is a kind of one class only"
    assert len(units["dog"]) == 118
    for phrase, word in {
        "zebra": "zebra",
        "cat": "cat",
        "ball": "ball",
        "bottle": "bottle",
        "bear": "bear",
    }.items():
        assert all(word in lemmas[n] for n in units[phrase]), phrase
