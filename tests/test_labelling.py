"""Classes, thresholds, boxes without doubles, and every format read back by another reader, without a loss."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from phrase_loc.cli import main
from phrase_loc.datasets.annotations import read_xml
from phrase_loc.datasets.yolo import listed_names
from phrase_loc.errors import ConfigError, DataError, PhraseLocError
from phrase_loc.label_formats import FORMATS, Place, formats_of, labelling_interface
from phrase_loc.labelling import (
    LabelClass,
    Labels,
    Rules,
    check_classes,
    photographs,
    read_classes,
    summary,
    thresholds_of,
    write_sheet,
)
from phrase_loc.masks import decoded, encoded

CLASSES = (LabelClass("dog & <cat>", ("a dog", "a cat")), LabelClass("red: hat, café", ("a red hat",)))
ODD, TURNED, BARE, BROKEN = "deep/er/mi gato ñ & <b>'\".png", "turned.jpg", "bare.png", "broken.png"
NAMES = ("a.png", "a.jpg", "sub/a.png", ODD, TURNED, BARE, "new\nline.png")


def prediction(phrase: str, present: float | None, *boxes, mask: bool = False) -> dict:
    found = [{"xyxy": list(box), "score": score} for *box, score in boxes]
    for box in found if mask else ():
        x1, y1, x2, y2 = (round(v) for v in box["xyxy"])
        pixels = np.zeros((80, 120), bool)
        pixels[y1:y2, x1:x2] = True
        pixels[y1, x1] = False
        box["mask"] = encoded(pixels)
    return {"phrase": phrase, "present": present, "boxes": found}


@pytest.fixture(params=[False, True], ids=["boxes", "masks"])
def labelled(request, tmp_path, drawn_image):
    """A folder of photographs of odd names and the labels of a file of answers to them."""
    root = tmp_path / "photo graphs"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        drawn_image.save(root / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn_image.transpose(Image.Transpose.ROTATE_90).save(root / TURNED, exif=exif)
    lines = []
    for number, name in enumerate(NAMES):
        said = 0.0 if name == BARE else 0.9
        mask, shift = request.param, 2.5 * number
        dog = prediction("a dog", said, (10.25 + shift, 20, 50.5 + shift, 60, 2.0), mask=mask)
        cat = prediction("a cat", 0.6 * said, (11 + shift, 20, 50 + shift, 60, 1.0), mask=mask)
        hat = prediction("a red hat", said / 2, (70, 10, 110, 50.75, 0.5), mask=mask)
        lines.append({"image": str(root / name), "size": [120, 80], "predictions": [dog, cat, hat]})
    lines.append({"image": str(root / BROKEN), "error": "no picture"})
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    labels = Labels(answers, CLASSES, Rules(threshold=0.4), {})
    place = Place(root, [c.name for c in CLASSES], "/data/local-files/?d=photo%20graphs/")
    return labels, place, tmp_path / "out", request.param


def written(labelled, name: str) -> Path:
    labels, place, out, _ = labelled
    out.mkdir(exist_ok=True)
    path = out / FORMATS[name].name
    FORMATS[name].write(labels, place, path)
    return path


def truth(labelled) -> dict[str, list]:
    """Name -> class and box of each label, what every reader has to give."""
    labels, place, _, _ = labelled
    return {
        place.name(i.image): [(place.classes[x.category], np.array(x.box)) for x in i.labels]
        for i in labels
        if i.error is None
    }


def assert_same(found: dict[str, list], wanted: dict[str, list], pixels: float = 0.01) -> None:
    assert found.keys() == wanted.keys()
    for name, boxes in wanted.items():
        assert [kind for kind, _ in found[name]] == [kind for kind, _ in boxes], name
        for (_, a), (_, b) in zip(found[name], boxes, strict=True):
            np.testing.assert_allclose(a, b, atol=pixels)


def around(points) -> np.ndarray:
    points = np.asarray(points, float).reshape(-1, 2)
    return np.concatenate([points.min(0), points.max(0)])


def test_what_is_labelled(labelled):
    found = truth(labelled)
    assert set(found) == set(NAMES)
    assert found[BARE] == []
    for name in set(NAMES) - {BARE}:  # the cat's box is the dog's
        assert [kind for kind, _ in found[name]] == ["dog & <cat>", "red: hat, café"]


def test_coco_by_pycocotools(labelled, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(written(labelled, "coco")))
    names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
    found = {image["file_name"]: [] for image in coco.imgs.values()}
    for one in coco.anns.values():
        x, y, width, height = one["bbox"]
        box = np.array([x, y, x + width, y + height])
        found[coco.imgs[one["image_id"]]["file_name"]].append((names[one["category_id"]], box))
        if labelled[3]:
            assert decoded(coco.annToRLE(one)).sum() == one["area"]
    assert_same(found, truth(labelled))


def test_yolo_by_supervision_and_a_plain_reader(labelled):
    supervision = pytest.importorskip("supervision")
    folder = written(labelled, "yolo")
    read = supervision.DetectionDataset.from_yolo(
        str(folder / "images"), str(folder / "labels"), str(folder / "dataset.yaml")
    )
    assert read.classes == list(labelled[1].classes)
    flat = {"new\nline.png": "new_line.png", "sub/a.png": "sub__a.png", "a.jpg": "a-2.jpg"}
    flat[ODD] = ODD.replace("/", "__")
    boxes = {
        Path(path).name: [(read.classes[n], b) for n, b in zip(d.class_id, d.xyxy, strict=True)]
        for path, d in read.annotations.items()
    }
    near = 1.5 if labelled[3] else 0.01  # it makes pixels of an outline, and a box around them
    assert_same(boxes, {flat.get(name, name): found for name, found in truth(labelled).items()}, near)
    for path in (folder / "images").iterdir():
        with Image.open(path) as picture:
            assert picture.size == (120, 80)
            assert picture.getexif().get(0x0112, 1) == 1
    lines = [line for path in (folder / "labels").glob("*.txt") for line in path.read_text().splitlines()]
    assert {line.split()[0] for line in lines} == {"0", "1"}
    with pytest.raises(
        DataError, match="none of"
    ):  # our own reader takes COCO's names alone, and finds these
        listed_names(folder)


def test_voc_by_our_reader_and_by_torchvision(labelled):
    from torchvision.datasets import VOCDetection

    folder = written(labelled, "voc")
    stems = (folder / "ImageSets/Main/trainval.txt").read_text(encoding="utf-8").splitlines()
    assert len(stems) == len(set(stems)) == len(NAMES)
    found = {}
    for stem in stems:
        size, things = read_xml(folder / "Annotations" / f"{stem}.xml")
        assert size == (80, 120)
        root = ElementTree.parse(folder / "Annotations" / f"{stem}.xml").getroot()
        as_dict = VOCDetection.parse_voc_xml(root)["annotation"]
        assert len(as_dict.get("object", [])) == len(things)
        boxes = [(t.names[0], np.array(t.boxes[0]) - [1, 1, 0, 0]) for t in things]
        found[as_dict["path"]] = boxes
        assert (folder / "JPEGImages" / as_dict["filename"]).is_file()
    assert_same(found, truth(labelled), 1)


def test_cvat(labelled):
    root = ElementTree.parse(written(labelled, "cvat")).getroot()
    assert root.findtext("version") == "1.1"
    assert [e.text for e in root.findall("meta/task/labels/label/name")] == list(labelled[1].classes)
    found = {}
    for image in root.findall("image"):
        assert (image.get("width"), image.get("height")) == ("120", "80")
        boxes = []
        for shape in image:
            corners = [float(shape.get(side, "nan")) for side in ("xtl", "ytl", "xbr", "ybr")]
            if shape.tag == "polygon":
                corners = around([p.split(",") for p in shape.get("points").split(";")])
            boxes.append((shape.get("label"), corners))
        found[image.get("name")] = boxes
    assert_same(found, truth(labelled), 1 if labelled[3] else 0.01)


def test_labelstudio(labelled):
    found = {}
    for task in json.loads(written(labelled, "labelstudio").read_text(encoding="utf-8")):
        assert task["data"]["image"].startswith("/data/local-files/?d=photo%20graphs/")
        (one,) = task["predictions"]
        boxes = found.setdefault(task["data"]["name"], [])
        for region in one["result"]:
            value, size = region["value"], [region["original_width"], region["original_height"]]
            (kind,) = value[region["type"]]
            if region["type"] == "polygonlabels":
                boxes.append((kind, around(np.array(value["points"]) * size / 100)))
            else:
                x, y, width, height = (value[key] / 100 for key in ("x", "y", "width", "height"))
                boxes.append((kind, np.array([x, y, x + width, y + height]) * [*size, *size]))
    assert_same(found, truth(labelled), 1 if labelled[3] else 0.01)
    view = labelling_interface(labelled[1].classes)
    assert '<Label value="dog &amp; &lt;cat&gt;" />' in view


def test_fiftyone_jsonl_and_parquet(labelled):
    import pandas as pd

    folder = written(labelled, "fiftyone")
    content = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    where = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    found = {}
    for name, detections in content["labels"].items():
        assert Path({os.path.splitext(key)[0]: path for key, path in where.items()}[name]).is_file()
        boxes = [np.array(d["bounding_box"]) for d in detections]
        corners = [np.array([x, y, x + w, y + h]) * [120, 80, 120, 80] for x, y, w, h in boxes]
        found[name] = [(d["label"], box) for d, box in zip(detections, corners, strict=True)]
    assert content["classes"] == list(labelled[1].classes)
    assert_same(found, truth(labelled))

    lines = [json.loads(line) for line in written(labelled, "jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["error"] == "no picture"
    name = labelled[1].name
    rows = {name(x["image"]): [(b["label"], b["xyxy"]) for b in x["labels"]] for x in lines[:-1]}
    assert_same(rows, truth(labelled))
    table = pd.read_parquet(written(labelled, "parquet"))
    assert len(table) == 2 * (len(NAMES) - 1) + 1
    boxes = table.dropna(subset=["label"])
    assert bool(boxes["mask"].notna().all()) is labelled[3]
    grouped = {name(i): [] for i in table["image"]}
    for row in boxes.itertuples():
        grouped[name(row.image)].append((row.label, row.xyxy))
    assert_same(grouped, truth(labelled))


READERS = Path(os.environ.get("PHRASE_LOC_READERS", ".readers/bin/python"))
ASK = """
import json, os, sys
os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"
out, photographs = sys.argv[1:]
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
view = LabelInterface(open(out + "/labelstudio.xml", encoding="utf-8").read())
tasks = json.load(open(out + "/labelstudio.json", encoding="utf-8"))
said = [view.validate_prediction(p, return_errors=True) for t in tasks for p in t["predictions"]]
found = {"errors": sum(said, [])}
for number, task in enumerate(tasks):
    task["id"], task["annotations"] = number, [dict(one, id=number) for one in task.pop("predictions")]
json.dump(tasks, open(out + "/done.json", "w"))
converter = Converter(out + "/labelstudio.xml", photographs, download_resources=False)
converter.convert_to_coco(out + "/done.json", out + "/exported", is_dir=False)
exported = json.load(open(out + "/exported/result.json"))
found["labelstudio"] = len(exported["images"]), len(exported["annotations"])
from fiftyone.utils.cvat import CVATImageDatasetImporter
from fiftyone.utils.data.importers import FiftyOneImageDetectionDatasetImporter
with FiftyOneImageDetectionDatasetImporter(out + "/fiftyone", data_path="data.json") as read:
    rows = [(os.path.isfile(path), len(label.detections)) for path, _, label in read]
found["fiftyone"] = all(is_there for is_there, _ in rows), len(rows), sum(count for _, count in rows)
with CVATImageDatasetImporter(data_path=photographs, labels_path=out + "/cvat.xml") as read:
    shapes = [v for _, _, labels in read for v in (labels or {}).values()]
found["cvat"] = sum(len(getattr(v, "detections", None) or v.polylines) for v in shapes)
print(json.dumps(found))
"""


@pytest.mark.skipif(not READERS.is_file(), reason=f"no {READERS} with label-studio-sdk, fiftyone (see .ci)")
def test_label_studio_and_fiftyone_read_what_is_written_for_them(labelled):
    for name in ("labelstudio", "fiftyone", "cvat"):
        written(labelled, name)
    _, place, out, _ = labelled
    (out / "labelstudio.xml").write_text(labelling_interface(place.classes), encoding="utf-8")
    told = [READERS, "-c", ASK, str(out), str(place.root)]
    asked = subprocess.run(told, capture_output=True, text=True, env={"HOME": str(out)})
    assert asked.returncode == 0, asked.stderr
    labels = 2 * (len(NAMES) - 1)
    assert json.loads(asked.stdout.splitlines()[-1]) == {
        "errors": [],
        "labelstudio": [len(NAMES), labels],
        "fiftyone": [True, len(NAMES), labels],
        "cvat": labels,
    }


def test_summary_and_sheet(labelled):
    labels, _, out, _ = labelled
    out.mkdir()
    found = summary(labels)
    assert found["photographs"] == len(NAMES) + 1
    assert found["without a label"] == 1
    assert found["classes"]["dog & <cat>"] == {"boxes": len(NAMES) - 1, "threshold": 0.4}
    assert [entry["why"] for entry in found["left_out"]] == ["no picture"]
    write_sheet(labels, out / "sheet.html")
    page = (out / "sheet.html").read_text(encoding="utf-8")
    assert "http" not in page.split("<main>")[1].replace("http://www.w3.org", "")
    first, last = (page.index(f'alt="{labelled[1].root}/{name}"') for name in ("a.png", BARE))
    assert first < last, "0.45 is nearer to the threshold 0.4 than 0 is"
    assert page.count("<rect") == 2 * (len(NAMES) - 1)
    assert "dog &amp; &lt;cat&gt;" in page


DOG, HAT = ("dog", ("a dog", "a puppy")), ("red hat", ("red hat",))


@pytest.mark.parametrize(
    ("name", "text", "classes"),
    [
        ("c.txt", "\ufeff# c\n\ndog: a dog, a puppy\nred hat\ncup:\n", [DOG, HAT, ("cup", ("cup",))]),
        (
            "c.yaml",
            "dog: [a dog, a puppy]\ncup: {phrases: a mug, threshold: 0.5}\nred hat:\n",
            [DOG, ("cup", ("a mug",), 0.5), HAT],
        ),
        ("c.yml", "- dog\n- red hat\n", [("dog", ("dog",)), HAT]),
        ("c.json", '["dog", "red hat"]', [("dog", ("dog",)), HAT]),
        ("c.yml", "7: no\nyes: 1.0\n", [("7", ("no",)), ("yes", ("1.0",))]),
    ],
)
def test_files_of_classes(name, text, classes, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_classes(tmp_path / name) == [LabelClass(*c) for c in classes]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("c.txt", "# nothing\n", "names no class"),
        ("c.txt", "dog: a dog\ndog: a puppy\n", "names 'dog' twice"),
        ("c.txt", ": a dog\n", "a class has a name"),
        ("c.csv", "class,phrase\ndog,a dog\n", "is a table; write a text"),
        ("c.yaml", "names: [dog, man]\nnc: 2\n", "write the names alone"),
        ("c.yaml", "dog: [\n", "is not YAML"),
        ("c.yaml", "dog: a dog\ndog: a puppy\n", "has the key dog twice"),
        ("c.yaml", "dog: {phrase: a dog}\n", "'dog' has 'phrase'"),
        ("c.yaml", "dog: {phrases: a dog, threshold: 1.5}\n", "a number from 0 to 1, got 1.5"),
        ("c.yaml", "dog: [[a]]\n", "are texts"),
        ("c.yaml", "just text\n", "names no class"),
    ],
)
def test_files_that_are_none(name, text, sentence, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(PhraseLocError, match=sentence):
        read_classes(tmp_path / name)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_the_wanted_precision_is_kept_at_the_share(share):
    """Against a world whose probabilities are exact: scores of two normals, calibrated for an even bet."""
    rng = np.random.default_rng(5)
    true = rng.random(20_000) < share
    score = rng.normal(np.where(true, 1.0, -1.0), 1.0)
    said = 1 / (1 + np.exp(-2 * score))  # Bayes at one half
    classes = [LabelClass(*c) for c in [("1", ("1",)), ("2", ("2",), 0.25), ("3", ("3",), None, 0.5)]]
    table = np.stack([said] * 3, 1)
    level, own, even = thresholds_of(table, classes, Rules(precision=0.9, share=share), {"found_at": 0.6})
    assert own == 0.25
    assert true[said >= level].mean() == pytest.approx(0.9, abs=0.02)
    assert np.mean(said[said >= even]) == pytest.approx(0.9, abs=1e-3), "its share is the calibration's"
    assert thresholds_of(table, classes, Rules(), {"found_at": 0.6}) == [0.6, 0.25, 0.6]
    assert thresholds_of(table[:0], classes, Rules(precision=0.9), {})[0] > 1


@pytest.mark.parametrize(("share", "level"), [(0, 2), (1, 0.05)])
def test_shares_of_nothing_and_of_all(share, level):
    said = np.array([[1.0], [0.5], [0.0]])
    assert thresholds_of(said, CLASSES[:1], Rules(precision=0.5, share=share), {})[0] == pytest.approx(level)


def test_several_instances_stand_apart(tmp_path):
    boxes = [(0, 0, 40, 40, 0.0), (5, 5, 20, 20, -0.1), (60, 0, 100, 40, -0.2), (200, 0, 240, 40, -3.0)]
    answer = {"image": "a.png", "size": [240, 80], "predictions": [prediction("a dog", 0.8, *boxes)]}
    (path := tmp_path / "a.jsonl").write_text(json.dumps(answer) + "\n")
    labels = Labels(path, CLASSES, Rules(threshold=0.5, instances=5), {})
    (image,) = labels
    assert [(x.box[0], x.score) for x in image.labels] == [(0, 0.8), (60, round(0.8 * np.exp(-0.2), 4))]
    assert len(next(iter(Labels(path, CLASSES, Rules(threshold=0.5), {}))).labels) == 1


def test_formats_by_name():
    assert formats_of("coco, YOLO,coco") == ["coco", "yolo"]
    with pytest.raises(ConfigError, match=r"unknown format 'cocoo' \(did you mean 'coco'\?\)"):
        formats_of("cocoo")
    with pytest.raises(ConfigError, match="unknown format ''"):
        formats_of(" ,")


def test_what_the_model_does_not_know_is_said(tiny_localizer):
    one, none = LabelClass("d", ("a dog", "a zorglub")), LabelClass("z", ("a zorglub",))
    notes = check_classes(tiny_localizer, [one, none], Rules())
    assert notes[0].startswith("class 'z' gets no label")
    assert notes[1].startswith("'a zorglub' is not labelled")
    with pytest.raises(ConfigError, match="knows no noun"):
        check_classes(tiny_localizer, [none], Rules())


def test_what_is_not_asked_as_it_is_written_is_said(tiny_localizer):
    notes = check_classes(tiny_localizer, [LabelClass("d", ("a zorglubby dog", "the third dog"))], Rules())
    assert [note.split(":")[0] for note in notes] == ["'a zorglubby dog'", "'the third dog'"]
    assert "zorglubby" in notes[0]


def test_a_photograph_that_is_named_twice_is_labelled_once(drawn_image, tmp_path, monkeypatch):
    for name in "ab":
        drawn_image.save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    found = photographs([str(tmp_path / "b.png"), ".", "./b.png"], CLASSES, tmp_path / "out", None, print)
    assert found == [str(tmp_path / "b.png"), "a.png"]
    with pytest.raises(ConfigError, match="--every takes frames of videos, and none is named"):
        photographs(["."], CLASSES, tmp_path / "out", 5, print)


def asked_of(*arguments, model) -> list[str]:
    return list(map(str, ["label", *arguments, "--model", model, "--device", "cpu", "--workers", 0]))


def command(*arguments, model) -> int:
    return main(asked_of(*arguments, model=model))


@pytest.fixture
def folder(photographs, tmp_path):
    """Five photographs, and a file of classes beside them."""
    (tmp_path / "classes.txt").write_text("dog: a dog\nhat: a red hat, a hat\n", encoding="utf-8")
    return photographs


def test_the_command(folder, tiny_model, tmp_path, capsys):
    (folder / "broken.jpg").write_bytes(b"no picture")
    out, classes = tmp_path / "out", tmp_path / "classes.txt"
    usual = (folder, "--phrases", classes, "--output", out)
    asked = [*usual, "--format", "coco,yolo", "--format", "voc", "--masks", "--threshold", 0.04]
    assert command(*asked, model=tiny_model) == 0
    said = capsys.readouterr().out
    assert said.startswith("6 photographs, ")
    assert "broken.jpg is not an image" in said
    made = {
        "answers.jsonl",
        "answers.jsonl.run.json",
        "coco.json",
        "yolo",
        "voc",
        "sheet.html",
        "summary.json",
    }
    assert {path.name for path in out.iterdir()} == made
    coco = json.loads((out / "coco.json").read_text())
    assert len(coco["images"]) == 5
    assert coco["annotations"]
    for one in coco["annotations"]:
        mask, (x, y, width, height) = decoded(one["segmentation"]), one["bbox"]
        assert mask.shape == (80, 120)
        mask[max(0, int(y) - 1) : int(y + height + 2), max(0, int(x) - 1) : int(x + width + 2)] = False
        assert not mask.any(), "it is within its box, up to a pixel"
    # other thresholds and formats: the answers are kept
    before = (out / "answers.jsonl").stat().st_mtime_ns
    assert command(*usual, "--format", "cvat", "--masks", "--precision", 0.9, model=tiny_model) == 0
    assert (out / "answers.jsonl").stat().st_mtime_ns == before
    assert (out / "cvat.xml").is_file()
    # below what was looked for there are no boxes
    answers = map(json.loads, (out / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    said = [p for answer in answers for p in answer.get("predictions", ())]
    assert [bool(p["boxes"]) for p in said] == [p["present"] >= 0.04 for p in said]
    capsys.readouterr()
    assert command(*usual, "--masks", "--threshold", 0.01, model=tiny_model) == 2
    assert "other settings (threshold 0.04); give another --output, or --overwrite" in capsys.readouterr().err
    # an output within the photographs is none of them
    assert command(tmp_path, *usual[1:3], "--output", out, model=tiny_model) == 2
    assert f"left out 10 photographs in {out}, the output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--format", "coco,pascal"], "unknown format 'pascal'; choose from coco, cvat"),
        (["--phrases", "none.txt"], "the file of classes none.txt does not exist"),
        (["--synonyms", "none.txt"], "the file of synonyms none.txt does not exist"),
        (["--output", "{file}"], "cannot be written"),
        (["--format", ","], "unknown format ''"),
    ],
)
def test_what_it_refuses(more, sentence, folder, tiny_model, tmp_path, capsys):
    usual = [folder, "--phrases", tmp_path / "classes.txt", "--output", tmp_path / "out"]
    more = [str(x).format(file=tmp_path / "classes.txt") for x in more]
    assert command(*usual, *more, model=tiny_model) == 2
    assert sentence in capsys.readouterr().err


SHOT = """
import os, signal, sys
from phrase_loc import files
from phrase_loc.cli import main
left = iter(range(int(sys.argv[1]), -1, -1))
files.observer = lambda *_: next(left) or os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[2:])
"""


def test_a_killed_run_goes_on(folder, tiny_model, tmp_path):
    """Shot at each moment of its files, one after the other, it ends with the labels of a run that was not."""
    usual = [folder, "--phrases", tmp_path / "classes.txt", "--threshold", 0.1, "--format", "coco,yolo"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert command(*usual, "--output", whole, "--batch-size", 1, model=tiny_model) == 0
    told = asked_of(*usual, "--output", out, "--batch-size", 1, model=tiny_model)
    for moment in (2, 7):  # of the writing of files
        asked = [sys.executable, "-c", SHOT, str(moment), *told]
        shot = subprocess.run(asked, capture_output=True, timeout=120)
        assert shot.returncode == -signal.SIGKILL, shot.stderr
    assert command(*usual, "--output", out, "--batch-size", 1, model=tiny_model) == 0
    for name in ("answers.jsonl", "coco.json", "yolo/labels/3.txt", "summary.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


def test_photographs_in_a_folder_whose_name_is_not_utf8(drawn_image, tiny_model, tmp_path):
    folder, classes = tmp_path / "caf\udce9", tmp_path / "classes.txt"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system knows UTF-8 alone")
    drawn_image.save(folder / "a.png")
    classes.write_text("dog: a dog\n")
    told = (folder, "--phrases", classes, "--output", tmp_path / "out", "--format", ",".join(FORMATS))
    assert command(*told, "--threshold", 0, model=tiny_model) == 0
    [task] = json.loads((tmp_path / "out" / "labelstudio.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=caf%E9/a.png"


def test_somebody_elses_labels_stay(folder, tiny_model, tmp_path, capsys):
    (tmp_path / "out" / "yolo").mkdir(parents=True)
    (tmp_path / "out" / "yolo" / "mine.txt").write_text("corrected")
    told = (folder, "--phrases", tmp_path / "classes.txt", "--output", tmp_path / "out", "--threshold", 0)
    assert command(*told, "--format", "coco,yolo", "--overwrite", model=tiny_model) == 2
    assert "holds a yolo that was not labelled there" in capsys.readouterr().err
    assert (tmp_path / "out" / "yolo" / "mine.txt").read_text() == "corrected"


def test_a_video_by_frames(drawn_image, tiny_model, tmp_path, capsys, caplog):
    import cv2

    clip = tmp_path / "my clip.avi"
    video = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (120, 80))
    for number in range(25):
        video.write(np.array(drawn_image.rotate(number))[..., ::-1].copy())
    video.release()
    (other := tmp_path / "b" / clip.name).parent.mkdir()
    other.write_bytes(clip.read_bytes())
    (tmp_path / "classes.txt").write_text("dog\n")
    usual = (
        clip,
        other,
        "--phrases",
        tmp_path / "classes.txt",
        "--output",
        tmp_path / "out",
        "--threshold",
        0,
    )
    assert command(*usual, "--every", 8, "--format", "jsonl", model=tiny_model) == 0
    assert "4 frames are labelled, each alone" in capsys.readouterr().err
    lines = (tmp_path / "out/labels.jsonl").read_text().splitlines()
    frames = [Path(json.loads(line)["image"]) for line in lines]
    assert [path.name for path in frames] == [f"my clip_{n:06d}.jpg" for n in (0, 8, 16, 24)] * 2
    assert len(set(frames)) == 8, "two videos of one name"
    with Image.open(frames[2]) as seen:
        assert np.abs(np.array(seen, float) - np.array(drawn_image.rotate(16))).mean() < 8
    assert command(*usual, model=tiny_model) == 2  # other photographs: one a second
    assert "holds frames of another video or of another --every" in capsys.readouterr().err
    assert all(path.is_file() for path in frames)  # as the labels name them
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert command(*usual, "--overwrite", model=tiny_model) == 0
    assert re.search(r"my clip\.avi says 25 frames and gives \d+; perhaps it is cut off", caplog.text)
    clip.write_bytes(b"no video")
    assert command(*usual, "--overwrite", model=tiny_model) == 2
    assert "is no video that OpenCV can read" in capsys.readouterr().err
