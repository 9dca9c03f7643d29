"""A table of photographs, phrases and boxes is a dataset: CSV, JSON lines, Parquet and COCO's annotations."""

import json

import pytest
import torch
from PIL import Image

from phrase_loc.__main__ import main
from phrase_loc.datasets import DATASETS
from phrase_loc.datasets.table import Places
from phrase_loc.datasets.table import Row as TableRow
from phrase_loc.errors import ConfigError, DataError
from tests.evaluation.test_predictions import written

ROWS = [
    {"image": "a.jpg", "phrase": "a red hat", "x1": 10, "y1": 20, "x2": 50, "y2": 60},
    {"image": "a.jpg", "phrase": "a red hat", "x1": 60, "y1": 20, "x2": 62, "y2": 60},
    {"image": "a.jpg", "phrase": "the dog", "x1": 0, "y1": 0, "x2": 99, "y2": 50},
    {"image": "sub/b.png", "phrase": "the dog", "x1": 5, "y1": 5, "x2": 30, "y2": 30},
]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (100, 80), "grey").save(tmp_path / "a.jpg")
    Image.new("RGB", (40, 60), "grey").save(tmp_path / "sub/b.png")
    return tmp_path


def coco(path, rows=ROWS):
    """The rows as COCO's instances without masks, numbered oddly."""
    images, names = sorted({row["image"] for row in rows}), sorted({row["phrase"] for row in rows})
    sizes = {"a.jpg": (100, 80), "sub/b.png": (40, 60)}
    content = {
        "images": [
            {"id": 70 + i, "file_name": name, "width": sizes[name][0], "height": sizes[name][1]}
            for i, name in enumerate(images)
        ],
        "categories": [{"id": 5 + 2 * i, "name": name} for i, name in enumerate(names)],
        "annotations": [
            {
                "id": n,
                "image_id": 70 + images.index(row["image"]),
                "category_id": 5 + 2 * names.index(row["phrase"]),
                "bbox": [row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]],
            }
            for n, row in enumerate(rows)
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet", ".json"])
def test_every_form_gives_the_same_samples(photos, ending):
    path = photos / f"boxes{ending}"
    if ending == ".json":
        coco(path)
    elif ending == ".tsv":
        lines = ["\t".join(ROWS[0]), *("\t".join(map(str, row.values())) for row in ROWS)]
        path.write_text("\n".join(lines))
    else:
        written(path, ROWS)
    for found in (DATASETS["table"](root=path), DATASETS["table"](root=photos, table=path.name)):
        assert [(s.image_id, s.size, s.path.is_file()) for s in found] == [
            ("a.jpg", (80, 100), True),
            ("sub/b.png", (60, 40), True),
        ]
        first, second = found
        assert [p.text for p in first.phrases] == ["a red hat", "the dog"]
        assert torch.equal(first.boxes[0], torch.tensor([[10.0, 20, 50, 60], [60, 20, 62, 60]]))
        assert torch.equal(second.boxes[0], torch.tensor([[5.0, 5, 30, 30]]))
        assert first.facts["hard"] == (True, False)
        assert not found.skipped.seen


def test_boxes_may_be_lists_and_photographs_absent_where_sizes_are_given(tmp_path):
    rows = [
        {
            "image": "a.jpg",
            "phrase": "hat",
            "boxes": [[1, 2, 30, 40], [5, 6, 7, 8]],
            "width": 50,
            "height": 50,
        },
        {"image": "b.jpg", "phrase": "hat", "boxes": [[1, 2, 3, 4]]},
    ]
    written(tmp_path / "t.csv", rows)
    found = DATASETS["table"](root=tmp_path / "t.csv")
    assert [len(boxes) for boxes in found[0].boxes] == [2]
    assert found.skipped.notes["images"] == [f"b.jpg: file b.jpg is missing in {tmp_path.name}"]


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"phrase": ""}, "rows", "row 2: it has no phrase, but image, x1, y1, x2, y2"),
        ({"x1": "", "y1": "", "x2": "", "y2": ""}, "rows without a box", "a.jpg, row 2: 'a red hat'"),
        ({"x1": 90, "x2": 60}, "images", "a.jpg: row 2: its box (90, 20)-(60, 60) is inverted"),
        ({"x1": "nan"}, "images", "a.jpg: row 2: there is no finite number in its box"),
        ({"width": 200, "height": 160}, "images", "a.jpg: its rows give different sizes"),
        ({"x2": 300}, "boxes cut to the image (kept)", "a.jpg, row 2: has a box"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(photos, change, kind, said):
    sizes = {"width": 100, "height": 80} if "width" in change else {}
    written(photos / "t.csv", [ROWS[0] | sizes, ROWS[1] | sizes | change, *ROWS[2:]])
    found = DATASETS["table"](root=photos / "t.csv")
    assert list(found.skipped.notes) == [kind]
    assert found.skipped.notes[kind][0].startswith(said)


def test_half_a_character_of_json_is_no_text(photos):
    written(photos / "t.jsonl", [ROWS[0] | {"phrase": "\ud800 hat"}])
    assert DATASETS["table"](root=photos / "t.jsonl")[0].phrases[0].text == "? hat"


@pytest.mark.parametrize("corners", [(0.1, 0.1, 0.9, 0.5), (0.1, 0.1, 1.02, 0.5), (0, 0, 1, 1)])
def test_shares_of_the_sides_are_no_pixels_and_boxes_of_the_first_pixel_no_set(photos, corners):
    box = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
    said = rf"t\.csv has no number above {max(corners)} in its boxes .*: multiply x by the width .* leave out boxes"
    written(photos / "t.csv", [ROWS[0] | box])
    with pytest.raises(DataError, match=said):
        DATASETS["table"](root=photos / "t.csv")
    written(photos / "t.csv", [ROWS[0] | box, *ROWS[1:]])
    assert (
        sum(len(boxes) for sample in DATASETS["table"](root=photos / "t.csv") for boxes in sample.boxes) == 4
    )


def test_what_is_no_table_is_one_sentence(photos):
    with pytest.raises(ConfigError, match="name the table, data"):
        DATASETS["table"](root=photos)
    with pytest.raises(DataError, match="does not exist"):
        DATASETS["table"](root=photos / "none.csv")
    (photos / "t.csv").write_text("picture,words\na.jpg,hat\n")
    with pytest.raises(DataError, match="row 1: it has no image and phrase, but nothing"):
        DATASETS["table"](root=photos / "t.csv")
    (photos / "t.csv").write_text("image,phrase\na.jpg,hat\n")
    with pytest.raises(DataError, match=r"the first of 2 problems: rows without a box: a\.jpg, row 1"):
        DATASETS["table"](root=photos / "t.csv")
    with pytest.raises(ConfigError, match="no option 'tabel'"):
        DATASETS["table"](root=photos, tabel="t.csv")


def test_ones_own_photographs_are_scored_by_the_shipped_config(photos, root, tiny_model):
    written(photos / "t.csv", ROWS)
    settings = [
        str(root / "configs/table.yaml"),
        f"data.root={photos / 't.csv'}",
        f"output={photos / 'r.json'}",
    ]
    assert main(["evaluate", *settings, f"model={tiny_model}", "bootstrap=20", "html=true"]) == 0
    report = json.loads((photos / "r.json").read_text())
    assert {row["protocol"]: row["count"] for row in report["rows"]} == {
        "pointing_any": 3,
        "box_centre": 3,
        "recall_union": 3,
        "recall_any": 3,
    }


def test_results_by_the_numbers_of_ones_own_coco_file(photos):
    """Image and category go by the numbers of the file that holds the truth, as pycocotools has them."""
    truth = coco(photos / "truth.json")
    results = [
        {k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1 - a["id"] / 10}
        for a in json.loads(truth.read_text())["annotations"]
    ]
    (photos / "results.json").write_text(json.dumps(results))
    settings = [
        "data.name=table",
        f"data.root={truth}",
        "protocols=[recall_any]",
        f"output={photos / 'r.json'}",
    ]
    assert main(["evaluate", *settings, f"method=predictions:{photos / 'results.json'}"]) == 0
    report = json.loads((photos / "r.json").read_text())
    assert [row["value"] for row in report["rows"]] == [100.0] * 3
    assert set(report["skipped"]) == {"policy"}
    # the file of annotations, which names its images and categories, is one of predictions too
    assert main(["evaluate", *settings, f"method=predictions:{truth}"]) == 0


@pytest.mark.parametrize(("part", "name"), [("images", "file_name"), ("categories", "name")])
def test_an_id_of_two_things_in_coco_json_is_refused(part, name, photos):
    """The last would win without a word, and boxes of one photograph be held against another."""
    path = coco(photos / "boxes.json")
    content = json.loads(path.read_text())
    content[part].append(content[part][0] | {name: "sub/b.png"})
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"'sub/b.png' of its {part} one id, .*; give each its own"):
        DATASETS["table"](root=path)


@pytest.mark.parametrize("odd", [True, ["a dog"], {"text": "a dog"}])
def test_a_phrase_that_is_no_text_is_named(odd, photos):
    rows = [*ROWS, ROWS[0] | {"phrase": odd}]
    path = photos / "boxes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DATASETS["table"](root=path)
    assert {phrase.text for sample in data for phrase in sample.phrases} == {"a red hat", "the dog"}
    assert [text.split(" is ")[0] for text in data.skipped.notes["rows"]] == ["line 5: its phrase"]


def test_predictions_of_another_folders_photograph_are_none_of_this_one(photos):
    places = Places(DATASETS["table"](root=coco(photos / "boxes.json")))
    for name in ("sub/b.png", "b.png", "b", "sub/b", "/elsewhere/sub/b.png", "C:\\mine\\sub\\b.png"):
        assert places.of(TableRow("", {"image": name, "phrase": "the dog"}), False)[0].image_id == "sub/b.png"
    with pytest.raises(LookupError, match=r"no image 'other/b\.png'"):
        places.of(TableRow("", {"image": "other/b.png", "phrase": "the dog"}), False)


def test_predictions_of_a_photograph_above_the_table_are_found_by_its_place(photos):
    (photos / "tables").mkdir()
    written(photos / "tables" / "t.csv", [ROWS[0] | {"image": "../sub/b.png"}])
    (photo,) = DATASETS["table"](root=photos / "tables" / "t.csv")
    row = {"phrase": photo.phrases[0].text}
    places = Places([photo])
    for name in (str(photos / "sub" / "b.png"), "sub/b.png", "tables/../sub/b.png"):
        assert places.of(TableRow("", row | {"image": name}), False)[0] is photo
    with pytest.raises(LookupError, match=r"no image '/elsewhere/other/b\.png'"):
        places.of(TableRow("", row | {"image": "/elsewhere/other/b.png"}), False)


def test_of_a_table_with_splits_one_is_read(photos):
    written(photos / "boxes.csv", [row | {"split": row["image"][:1]} for row in ROWS])
    data = DATASETS["table"](photos, "s", table="boxes.csv")
    assert [sample.image_id for sample in data] == ["sub/b.png"]
    assert data.skipped.notes == {
        "other splits": ["'a'; data.split=s is read, an empty data.split= reads all rows"]
    }
    with pytest.raises(DataError, match=r"'a'; data\.split=test is read"):
        DATASETS["table"](photos, "test", table="boxes.csv")
    assert len(DATASETS["table"](photos, table="boxes.csv")) == 2
