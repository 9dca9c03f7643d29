"""What all readers of annotations share: one kind of fault at a time, in each of them."""

import json

import pytest
import torch

from phrase_loc.datasets import DATASETS
from phrase_loc.datasets.annotations import fit_box, number, read_xml, union_share
from phrase_loc.datasets.coco import mask
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.masks import decoded
from tests.datasets import flickr_tree
from tests.datasets.trees import coco_tree, photograph, rectangle, voc_tree, xml

BOX = (21, 21, 80, 90)
XML = xml([("dog", *BOX)])


def voc(root, text=XML, ids=b"1\n2\n"):
    voc_tree(root, {"1": text, "2": XML})
    (root / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").write_bytes(ids)
    return DATASETS["voc"](root=root, split="test")


def flickr(root, text, ids=b"1\n2\n"):
    captions = ["[/EN#1/people A man] ."]
    flickr_tree.tree(root, {name: (captions, text if name == "1" else named_one(XML)) for name in "12"})
    (root / "val.txt").write_bytes(ids)
    return DATASETS["flickr30k"](root=root, split="val")


def imagenet(root, text):
    for name, content in (("1", text), ("2", XML.replace("dog", "n01443537"))):
        photograph(root / f"val/{name}.JPEG")
        (root / f"val/{name}.xml").write_text(content)
    return DATASETS["imagenet"](root=root, split="val")


def yolo(root, text, good="16 .5 .5 .2 .2\n", **options):
    (root / "labels").mkdir(parents=True)
    for name, label in (("1", text), ("2", good)):
        photograph(root / f"images/{name}.jpg")
        (root / f"labels/{name}.txt").write_text(label, encoding="utf-8")
    return DATASETS["yolo"](root=root, split="", **options)


def coco(root, **changes):
    """Two images with a dog each; the first one's annotation, or the file, is changed."""
    things = [
        {
            "image_id": i,
            "category_id": 18,
            "bbox": [20, 20, 60, 70],
            "segmentation": rectangle(20, 20, 60, 70),
            "area": 4200,
        }
        for i in (1, 2)
    ]
    things[0] |= changes
    return coco_tree(root, things)


def named_one(text):
    return text.replace("<name>dog</name>", "<name>1</name>")


def ids_and_notes(data):
    return [s.image_id for s in data], [s for notes in data.skipped.notes.values() for s in notes]


BROKEN_XML = {
    "nan corner": XML.replace(">21<", ">nan<", 1),
    "infinite corner": XML.replace(">80<", ">inf<"),
    "outside": xml([("dog", 800, 21, 900, 90)]),
    "inverted": xml([("dog", 80, 21, 21, 90)]),
    "digits of another script": XML.replace(">21<", ">\u0662\u0661<", 1),
    "underscore": XML.replace(">21<", ">2_1<", 1),
    "size nan": XML.replace(">200<", ">nan<"),
    "size inf": XML.replace(">200<", ">inf<"),
    "size text": XML.replace(">200<", ">wide<"),
    "size of a fraction": XML.replace(">200<", ">200.5<"),
    "too large": XML.replace(">200<", ">20000<").replace(">100<", ">20000<"),
    "no size": XML.replace("size>", "sighs>"),
    "no bndbox": XML.replace("bndbox>", "box>"),
    "unknown encoding": f'<?xml version="1.0" encoding="foo"?>{XML}',
    "false encoding": f'<?xml version="1.0" encoding="utf-16"?>{XML}',
    "entity": f'<!DOCTYPE a [<!ENTITY x "dog">]>{XML}',
    "empty": "",
    "no XML": "\0\1\2",
}


@pytest.mark.parametrize("read", [voc, flickr, imagenet])
@pytest.mark.parametrize("fault", BROKEN_XML)
def test_an_xml_that_fails_is_named_and_the_rest_is_scored(tmp_path, read, fault):
    text = BROKEN_XML[fault]
    called = {voc: "dog", flickr: "1", imagenet: "n01443537"}[read]
    text = text.replace("<name>dog</name>", f"<name>{called}</name>")
    found = read(tmp_path, text)
    ids, notes = ids_and_notes(found)
    if read is flickr and fault in (
        "outside",
        "inverted",
        "no bndbox",
    ):  # its chain leaves, or has no box: the image stays
        assert ids == ["1", "2"]
        assert sum(len(b) for b in found[0].boxes) == 0
        assert fault == "no bndbox" or notes
    else:
        assert ids == ["2"]
        assert len(notes) == 1
        assert notes[0].startswith("1")
    assert all("\n" not in note for note in notes)


@pytest.mark.parametrize("read", [voc, imagenet])
def test_what_reaches_out_is_cut_and_named_beyond_a_pixel(tmp_path, read):
    name = "dog" if read is voc else "n01443537"
    far = read(tmp_path / "far", xml([(name, -9, 21, 230, 90)]))
    first = 1 if read is voc else 0  # VOC's corners are 1-based numbers of pixels; ImageNet's become edges
    assert far[0].boxes[0].tolist() == [[0, 21 - first, 200 - first, 91 - 2 * first]]
    assert "beyond the 200 x 100 image" in far.skipped.notes["boxes cut to the image (kept)"][0]
    near = read(tmp_path / "near", xml([(name, first, 21, 200, 90)]))
    assert not near.skipped.notes


def test_zero_area_is_no_truth(tmp_path):
    ids, notes = ids_and_notes(voc(tmp_path, xml([("dog", 21, 21, 21, 90)])))
    assert ids == ["2"]
    assert "inverted or empty" in notes[0]


@pytest.mark.parametrize("read", [voc, flickr])
def test_lists(tmp_path, read):
    def listed(case, content):
        return ids_and_notes(read(tmp_path / case, XML if read is voc else named_one(XML), content))

    assert listed("mark", b"\xef\xbb\xbf1\n2\n") == (["1", "2"], [])
    assert listed("windows", b"1\r\n\r\n2\r\n") == (["1", "2"], [])
    ids, notes = listed("twice", b"1\n1\n2\n")
    assert ids == ["1", "2"]
    assert "line 2: 1 was listed in line 1" in notes[0]
    ids, notes = listed("latin", b"1\n\xe9\n2\n")
    assert ids == ["1", "2"]
    assert len(notes) == 1
    assert listed("utf-16", "1\n2\n".encode("utf-16")) == (["1", "2"], [])
    with pytest.raises(DataError, match="is empty"):
        listed("empty", b"\n")


@pytest.mark.parametrize(
    "line",
    [
        *(
            "nan .5 .5 .2 .2",
            "inf .5 .5 .2 .2",
            "-1 .5 .5 .2 .2",
            "1.5 .5 .5 .2 .2",
            "99 .5 .5 .2 .2",
            "1e400 .5 .5 .2 .2",
        ),
        *(
            "dog .5 .5 .2 .2",
            "16 .5 .5 .2 nan",
            "16 .5 .5 .2 -.2",
            "16 .5 .5 .2",
            "16 .5 .5 .2 .2 .9",
            "16 .5 5 .2 .2",
        ),
        *("16 .1 .1 .4 .4 .7 .7 .9", "16 .1 .1 .1 .4 .1 .7", "1_6 .5 .5 .2 .2"),
    ],
)
def test_a_label_that_fails_is_named(tmp_path, line):
    ids, notes = ids_and_notes(yolo(tmp_path, line))
    assert ids == ["2"]
    assert "1.txt line 1" in notes[0]


@pytest.mark.parametrize(
    "line, box",
    [
        ("16 .5 .5 1.0000001 .2\n", [0, 40, 200, 60]),
        ("\ufeff16 .5 .5 .2 .2\r\n", [80, 40, 120, 60]),
        ("16.0 5e-1 .5 .2 .2\n", [80, 40, 120, 60]),
        ("16 .4 .4 .6 .4 .6 .6 .4 .6\n", [80, 40, 120, 60]),  # an outline
        ("16 0 .5 .5 .5\n", [0, 25, 50, 75]),
    ],
)
def test_labels_that_are_right(tmp_path, line, box):
    data = yolo(tmp_path, line)
    assert data[0].boxes[0][0].tolist() == pytest.approx(box, abs=1e-3)


def test_yolo_loses_nothing_silently(tmp_path):
    yolo(tmp_path, "16 .5 .5 .2 .2")
    (tmp_path / "labels/3.txt").write_text("16 .5 .5 .2 .2")
    photograph(tmp_path / "images/2.png")
    (tmp_path / "images/4.heic").write_bytes(b"")
    ids, notes = ids_and_notes(DATASETS["yolo"](root=tmp_path))
    assert ids == ["1", "2"]
    assert [note.split(":")[0] for note in notes] == ["2.png", "3.txt", "4.heic"]


BROKEN_COCO = {
    "bbox of three": {"bbox": [20, 20, 60]},
    "bbox null": {"bbox": None},
    "bbox of words": {"bbox": ["a", 20, 60, 70]},
    "bbox nan": {"bbox": [float("nan"), 20, 60, 70]},
    "bbox true": {"bbox": [True, 20, 60, 70]},
    "bbox outside": {"bbox": [900, 20, 60, 70]},
    "bbox without area": {"bbox": [20, 20, 0, 70]},
    "no segmentation": {"segmentation": None},
    "empty segmentation": {"segmentation": []},
    "odd polygon": {"segmentation": [[0, 0, 9, 0, 9, 9, 5]]},
    "polygon of two points": {"segmentation": [[0, 0, 9, 9]]},
    "polygon nan": {"segmentation": [[0, 0, 9, 0, 9, float("nan")]]},
    "giant polygon": {"segmentation": [[0, 0, 1e9, 0, 1e9, 1e9]]},
    "huge number": {"segmentation": [[0, 0, 9, 0, 9, 10**400]]},
    "endless polygon": {"segmentation": [[0, 0, 200, 100] * 5000]},
    "polygon outside": {"segmentation": [[-50, -50, -40, -50, -40, -40]]},
    "runs of another size": {"segmentation": {"size": [200, 100], "counts": [0, 20000]}},
    "runs too short": {"segmentation": {"size": [100, 200], "counts": [0, 5]}},
    "runs too long": {"segmentation": {"size": [100, 200], "counts": [0, 10**12]}},
    "negative runs": {"segmentation": {"size": [100, 200], "counts": [20005, -5]}},
    "compressed runs cut off": {"segmentation": {"size": [100, 200], "counts": "zzzz"}},
    "compressed runs of other letters": {"segmentation": {"size": [100, 200], "counts": "\u00e9\u00e9"}},
    "runs without a pixel": {"segmentation": {"size": [100, 200], "counts": [20000]}},
    "unknown category": {"category_id": 17},
    "category of another type": {"category_id": [18]},
    "unknown image": {"image_id": 77},
    "image of another type": {"image_id": None},
}


@pytest.mark.parametrize("fault", BROKEN_COCO)
def test_a_coco_annotation_that_fails_is_named_and_the_rest_is_scored(tmp_path, fault):
    data = DATASETS["coco"](root=coco(tmp_path, **BROKEN_COCO[fault]))
    ids, notes = ids_and_notes(data)
    assert ids == ["2"]
    assert notes
    assert all(len(note) < 300 and "\n" not in note for note in notes)


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"file_name": None},
            {"file_name": ""},
            {"width": None},
            {"width": "wide"},
            {"height": 0},
            {"height": float("inf")},
        ),
        *({"width": 20000, "height": 20000}, {"id": None}, {"id": True}, {"id": 2}, {"width": [200]}),
    ],
)
def test_a_coco_image_that_fails_is_named(tmp_path, change):
    path = coco(tmp_path) / "annotations/instances_val2014.json"
    facts = json.loads(path.read_text())
    facts["images"].append({"id": 3, "file_name": "3.jpg", "width": 200, "height": 100})
    facts["annotations"].append({**facts["annotations"][0], "id": 3, "image_id": 3})
    facts["images"][0] |= change
    path.write_text(json.dumps(facts))
    ids, notes = ids_and_notes(DATASETS["coco"](root=tmp_path))
    assert ids == (["3"] if change == {"id": 2} else ["2", "3"])  # two images of one id: neither can be told
    assert notes


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"[" * 100_000, b"\xff\xfe{\0", b'{"images": {}}', b"1" * 5000]
)
def test_a_coco_file_of_another_kind_is_one_sentence(tmp_path, content):
    (coco(tmp_path) / "annotations/instances_val2014.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        DATASETS["coco"](root=tmp_path)
    assert len(str(caught.value)) < 400


def test_what_is_listed_twice_counts_once_or_is_told(tmp_path):
    path = coco(tmp_path) / "annotations/instances_val2014.json"
    facts = json.loads(path.read_text())
    facts["images"].append(facts["images"][0])  # files that were merged
    facts["annotations"].append(facts["annotations"][0])
    path.write_text(json.dumps(facts))
    ids, notes = ids_and_notes(DATASETS["coco"](root=tmp_path))
    assert ids == ["1", "2"]
    assert notes == ["annotation 1 is there again"]


def renamed(root, names):
    """A COCO tree whose categories 1, 18 and 72 bear other names."""
    path = coco(root) / "annotations/instances_val2014.json"
    facts = json.loads(path.read_text())
    for category, name in zip(facts["categories"], names, strict=True):
        category["name"] = name
    path.write_text(json.dumps(facts))
    return root


def test_coco_categories_go_by_their_names(tmp_path):
    with pytest.raises(DataError, match="category 18 is called 'forklift' here and 'dog' in COCO") as caught:
        DATASETS["coco"](root=renamed(tmp_path / "own", ["person", "forklift", "tv"]))
    assert "own_categories=true" in str(caught.value)
    own = DATASETS["coco"](root=tmp_path / "own", own_categories=True)
    assert own[0].phrases[0].text == "forklift"
    turned = DATASETS["coco"](root=renamed(tmp_path / "turned", ["dog", "person", "aeroplane"]))
    assert turned[0].phrases[0].text == "person"  # 18 is a person here
    for number_, name in (("none", None), ("empty", "")):
        with pytest.raises(DataError, match="has no id or no name"):
            DATASETS["coco"](root=renamed(tmp_path / number_, ["person", name, "tv"]))


def test_a_list_of_classes_beside_yolo_labels_is_read_by_name(tmp_path):
    yolo(tmp_path, "0 .5 .5 .2 .2")
    (tmp_path / "classes.txt").write_text("dog\nperson\n")
    data = DATASETS["yolo"](root=tmp_path)
    assert [s.phrases[0].text for s in data] == ["dog"]  # class 16 of the other is none of the two
    (tmp_path / "classes.txt").write_text("hardhat\nperson\n")
    with pytest.raises(DataError, match=r"category 0 is called 'hardhat'.*data\.options\.names"):
        DATASETS["yolo"](root=tmp_path)
    assert DATASETS["yolo"](root=tmp_path, names=["hardhat"])[0].phrases[0].text == "hardhat"
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "data.yaml").write_text("names: {0: cat, 16: dog}\n")
    assert [s.phrases[0].text for s in DATASETS["yolo"](root=tmp_path)] == ["cat", "dog"]
    (tmp_path / "data.yaml").write_text("names: {0: cat, 16: dog, 0: bird}\n")
    with pytest.raises(ConfigError, match="has the key 0 twice"):
        DATASETS["yolo"](root=tmp_path)
    (tmp_path / "data.yaml").write_text("names: {0: cat, 00: dog}\n")
    with pytest.raises(DataError, match="gives one number to two names"):
        DATASETS["yolo"](root=tmp_path)
    (tmp_path / "data.yaml").write_text("names: {'0': cat, '16': dog}\n")
    assert [s.phrases[0].text for s in DATASETS["yolo"](root=tmp_path)] == ["cat", "dog"]
    (tmp_path / "dataset.yaml").write_text("train: images\n")  # names no classes
    assert [s.phrases[0].text for s in DATASETS["yolo"](root=tmp_path)] == ["cat", "dog"]
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match=r"classes\.txt and .*data\.yaml name other classes"):
        DATASETS["yolo"](root=tmp_path)


def test_imagenet_refuses_what_is_no_class_of_it(tmp_path):
    ids, notes = ids_and_notes(imagenet(tmp_path, XML.replace("dog", "hardhat")))
    assert ids == ["2"]
    assert "none of ImageNet's 1,000 WordNet ids" in notes[0]
    photograph(tmp_path / "val/3.JPEG")
    assert any("without an annotation" in note for note in ids_and_notes(imagenet(tmp_path, XML))[1])


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("coco", {"only_unit": True}, "did you mean 'only_units'"),
        ("coco", {"only_units": "yes"}, "true or false"),
        ("voc", {"year": -1}, "a whole number from 0"),
        ("voc", {"year": True}, "a whole number from 0"),
        ("flickr30k", {"year": 2007}, "has no option"),
        ("yolo", {"names": "hardhat"}, "a list of class names"),
    ],
)
def test_options_are_checked(tmp_path, name, options, said):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(ConfigError, match=said):
        DATASETS[name](root=tmp_path, **options)


def test_every_dataset_can_be_cut(tmp_path):
    made = {
        "coco": DATASETS["coco"](root=coco(tmp_path / "coco")),
        "voc": voc(tmp_path / "voc"),
        "yolo": yolo(tmp_path / "yolo", "16 .5 .5 .2 .2"),
        "imagenet": imagenet(tmp_path / "imagenet", XML.replace("dog", "n01443537")),
        "flickr30k": flickr(tmp_path / "flickr", named_one(XML)),
    }
    for name, data in made.items():
        assert [s.image_id for s in data[:1]] == [data[0].image_id], name
        assert len(data[5:]) == 0


def test_numbers():
    assert [number(v, "it") for v in ("1e2", " .5 ", "-3", 7, 2.5)] == [100, 0.5, -3, 7, 2.5]
    for odd in ("", "1_0", "0x1", "nan", "1e999", None, True, [], 10**400, float("inf")):
        with pytest.raises(DataError, match="in it"):
            number(odd, "it")


def test_the_rule_for_boxes():
    assert fit_box([-5, 2, 30, 8], (10, 20)) == ([-5, 2, 30, 8], [0, 2, 20, 8])
    assert fit_box([1, 1, 20, 10], (10, 20), one_based=True)[1] == [0, 0, 19, 9]
    for box in ([20, 0, 25, 5], [0, 0, 0, 5], [5, 5, 1, 9], [float("nan"), 0, 5, 5], [-9, 0, 0, 5]):
        with pytest.raises(DataError, match="its box"):
            fit_box(box, (10, 20))


def test_union_share_counts_pixels():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        corners = torch.rand(6, 2, 2, generator=generator) * torch.tensor([40.0, 30.0]) - 3
        boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
        painted = torch.zeros(25, 33, dtype=torch.bool)
        for x1, y1, x2, y2 in boxes.round().int().tolist():
            painted[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
        assert union_share(boxes.tolist(), (25, 33)) == float(painted.double().mean())
    assert union_share([[0.0, 0, 5e8, 1e9]], (10**9, 10**9)) == 0.5  # nothing is painted


def test_compressed_runs_are_read_as_pycocotools_does():
    from pycocotools import mask as rle

    generator = torch.Generator().manual_seed(0)
    for share in (0.02, 0.5, 0.98):
        painted = (torch.rand(70, 90, generator=generator) < share).byte().numpy()
        coded = rle.encode(painted.T.copy().T)
        given = {"size": [70, 90], "counts": coded["counts"].decode()}
        assert (decoded(mask(given, (70, 90))) == painted).all()


def test_one_reader_of_xml(tmp_path):
    with pytest.raises(DataError, match=r"file no\.xml is missing in"):
        read_xml(tmp_path / "no.xml")
    (tmp_path / "folder.xml").mkdir()
    with pytest.raises(DataError, match="is no file"):
        read_xml(tmp_path / "folder.xml")


@pytest.mark.parametrize("given", [{"root": None}, {"root": 5}, {"root": ".", "split": 5}])
@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_root_that_is_no_path_is_one_sentence(name, given):
    with pytest.raises(ConfigError, match="the root of a set is a path"):
        DATASETS[name](**given)
