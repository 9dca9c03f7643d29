"""Other people's predictions under our protocols: what a file says is what is scored, and what it lacks is said."""

import csv
import json
import random
from functools import partial
from itertools import pairwise

import pandas as pd
import pytest

from phrase_loc.__main__ import main
from phrase_loc.datasets.table import Row
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.evaluation import methods
from phrase_loc.evaluation.external import _checked, write_template
from phrase_loc.evaluation.protocols import FLICKR30K, DataConfig, EvaluateConfig
from phrase_loc.evaluation.report import markdown, write
from phrase_loc.evaluation.run import evaluate, read_data, template
from tests.datasets.flickr_tree import annotation, thing, tree
from tests.evaluation.fakes import FakeLocalizer

WORDS = ("a man", "A man", "the dog", "two hats", "zzz", "a tree")


@pytest.fixture
def data(tmp_path):
    """Eight images of two captions, with chains said twice, of several boxes, without a box, and a chain left out."""
    drawn, images = random.Random(3), {}
    for i in range(8):
        width, height = drawn.choice([(100, 80), (60, 120)])
        things = [thing("5"), thing("6", (90, 90, 5, 5))]
        for chain in range(1, 4):
            sides = [width, height] * (chain % 2 + 1)
            corners = [sorted(drawn.sample(range(1, side), 2)) for side in sides]
            boxes = [(x1, y1, x2 + 3, y2 + 3) for (x1, x2), (y1, y2) in list(pairwise(corners))[::2]]
            things.append(thing(str(chain), *boxes))
        captions = []
        for _ in range(2):
            said = [(c, drawn.choice(WORDS)) for c in drawn.sample(["1", "2", "3", "5", "6"], 4)]
            types = [drawn.choice(["people", "other"]) for _ in said]
            captions.append(" and ".join(f"[/EN#{c}/{t} {w}]" for (c, w), t in zip(said, types, strict=True)))
        images[f"{100 + i}"] = (captions, annotation(width, height, *things))
    return tree(tmp_path / "tree", images)


def config_of(root, method, **settings):
    settings = {"bootstrap": 40, "output": root / "out/report.json"} | settings
    return EvaluateConfig(data=DataConfig(root=root, split="val"), method=method, **settings)


def run(root, method, localizer=None, **settings):
    return write(evaluate(config_of(root, method, **settings), World(), localizer))[0]


def comparable(report):
    names = ("protocol", "metric", "value", "count", "images", "ci95", "baselines", "by_type")
    return [{name: row[name] for name in names} for row in report["rows"]]


def values(report):
    return {(row["protocol"], row["metric"]): row["value"] for row in report["rows"]}


def written(path, rows):
    """Rows as the file that the ending asks for."""
    if path.suffix == ".csv":
        pd.DataFrame(rows, dtype=object).to_csv(path, index=False)  # lists as JSON
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pd.DataFrame(rows).to_parquet(path)
    return f"predictions:{path}"


def mentions(root):
    """(sample, place, phrase, true boxes) of every mention with a box."""
    return [
        (sample, place, phrase, boxes)
        for sample in read_data(config_of(root, "centre"))[0]
        for place, phrase, boxes in zip(sample.facts["places"], sample.phrases, sample.boxes, strict=True)
        if len(boxes)
    ]


def perfect(root):
    """Rows that hold the truth: the union box for all, the first of the separate boxes where that is asked."""
    rows = []
    for sample, (sentence, index), phrase, boxes in mentions(root):
        union = [*boxes[:, :2].amin(0).tolist(), *boxes[:, 2:].amax(0).tolist()]
        x, y = ((boxes[0, :2] + boxes[0, 2:]) / 2).tolist()
        row = {"image": sample.image_id, "sentence": sentence, "phrase_index": index, "phrase": phrase.text}
        rows.append(row | {"point": [x, y], "boxes": [union], "scores": [0.9], "protocol": None})
        for protocol in ("recall_any", "box_centre"):
            own = {"boxes": [boxes[0].tolist()], "protocol": protocol}
            rows.append(row | {"point": None, "scores": [0.9]} | own)
    return rows


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".json"])
def test_the_truth_scores_100(data, tmp_path, ending):
    report = run(data, written(tmp_path / f"perfect{ending}", perfect(data)))
    assert set(values(report).values()) == {100.0}
    assert {row["protocol"] for row in report["rows"]} == set(FLICKR30K)
    named = " ".join(report["skipped"])
    assert not any(word in named for word in ("miss", "prediction", "rows"))


@pytest.mark.parametrize(
    ("method", "ending", "faithful"),
    [
        ("contrastive_mwp", ".csv", False),
        ("contrastive_mwp", ".parquet", True),
        ("random", ".jsonl", False),
        ("fixed_boxes", ".csv", True),
    ],
)
def test_our_own_answers_read_again_give_our_rows(data, tmp_path, method, ending, faithful, monkeypatch):
    """Every protocol, exactly: captions, chains, borders, boxes of maps, unknown words, mean precision."""
    fake = FakeLocalizer()
    monkeypatch.setattr(methods, "load_localizer", lambda config, device: fake)
    own = run(data, method, fake, faithful=faithful)
    path = tmp_path / f"own{ending}"
    assert write_template(path, template(config_of(data, method, faithful=faithful), True)) > 100
    again = run(data, f"predictions:{path}", faithful=faithful)
    assert comparable(again) == comparable(own)
    assert len(values(own)) == 20


def test_a_template_is_filled_under_the_protocols_as_published_scripts_have_them(data, monkeypatch):
    monkeypatch.setattr(methods, "load_localizer", lambda config, device: FakeLocalizer())
    asked = {"protocols": ["entity_box"], "method": "contrastive_mwp"}
    plain, faithful = (list(template(config_of(data, faithful=f, **asked), True)) for f in (False, True))
    assert [row["boxes"] for row in plain] != [row["boxes"] for row in faithful]


def test_a_template_is_filled_with_as_many_boxes_as_its_protocol_asks_for(data):
    rows = list(template(config_of(data, "random", protocols=["box_centre", "recall_any"]), True))
    assert {(row["protocol"], len(row["boxes"])) for row in rows} == {("box_centre", 1), ("recall_any", 10)}


def simple(root):
    """One row a phrase of the image: its text, the first true box, no point."""
    rows = {}
    for sample, _, phrase, boxes in mentions(root):
        corners = dict(zip(("x1", "y1", "x2", "y2"), boxes[0].tolist()))
        place = {"image": sample.image_id, "phrase": phrase.text}
        rows.setdefault(tuple(place.values()), place | corners)
    return list(rows.values())


def kinds(report):
    return {kind: held["sentences"] for kind, held in report["skipped"].items() if isinstance(held, dict)}


def test_a_file_without_points_has_no_pointing_values(data, tmp_path):
    file = written(tmp_path / "boxes.csv", simple(data))
    run(data, [file, "centre"], html=True)
    # the gallery is of the first method
    assert f"recall_union · {file}. " in (data / "out/report.html").read_text()
    report = run(data, file, html=True)
    for row in report["rows"]:
        pointing = "pointing" in row["protocol"]
        assert (row["value"] is None) == pointing == (row.get("note") == "boxes.csv has no point")
        assert row["count"] > 0
    assert {d["protocol"] for d in report["differences"]} == set()
    text = (data / "out/report.md").read_text()
    assert "| pointing_any | predictions:" in text
    assert "Note: boxes.csv has no point." in text
    lines = csv.DictReader((data / "out/report.csv").read_text().splitlines())
    assert {line["protocol"] for line in lines} == {p for p in FLICKR30K if "pointing" not in p}
    assert "Note: boxes.csv has no point." in (data / "out/report.html").read_text()
    with pytest.raises(ConfigError, match="has no point, and no protocol asks for anything else"):
        run(data, f"predictions:{tmp_path / 'boxes.csv'}", protocols=["pointing_any", "entity_pointing"])


def test_missing_doubled_and_unknown_rows_are_named(data, tmp_path):
    rows = [row for row in perfect(data) if not row["protocol"]]
    whole = run(data, written(tmp_path / "whole.jsonl", rows), protocols=["pointing_any"])
    assert values(whole) == {("pointing_any", "accuracy"): 100.0}
    gone, twice = rows.pop(3), dict(rows[0], point=[0, 0], scores=None)
    odd = [
        dict(rows[1], image="999"),
        dict(rows[1], sentence=None, phrase_index=None, phrase="a cow"),
        dict(rows[1], phrase_index=40),
    ]
    file = written(tmp_path / "odd.jsonl", [*rows, twice, *odd, {"image": "100", "phrase": ""}])
    report = run(data, file, protocols=["pointing_any"])
    said, number = kinds(report), len(rows)
    count = report["rows"][0]["count"]
    assert count == whole["rows"][0]["count"]
    assert report["rows"][0]["value"] == pytest.approx(100 * (count - 1) / count, abs=0.01)
    place = f"'{gone['phrase']}' (sentence {gone['sentence']}, phrase {gone['phrase_index']})"
    assert said["phrases without a point (misses)"] == [f"{gone['image']}, {place}"]
    (doubled,) = said["doubled predictions (the first counts)"]
    assert doubled.startswith(f"line {number + 1}: {twice['image']}, '{twice['phrase']}'")
    assert doubled.endswith("stands in line 1 already")
    unknown = said["predictions of nothing that is asked"]
    assert [line.partition(": ")[0] for line in unknown] == [f"line {number + n}" for n in (2, 3, 4, 5)]
    assert "no image '999'" in unknown[0]
    assert "has no phrase 'a cow'" in unknown[1]


def test_a_chain_has_its_own_row_or_what_is_said_of_its_mentions(data, tmp_path):
    """The point of the surest mention, of all the boxes the best; a row of the chain goes before both."""
    true = [row for row in perfect(data) if not row["protocol"]]
    entity = {(s.image_id, *place): phrase.entity for s, place, phrase, _ in mentions(data)}
    last = {(r["image"], entity[r["image"], r["sentence"], r["phrase_index"]]): r for r in true}
    wrong = {"point": [0, 0], "boxes": [[0, 0, 1, 1]]}
    kept = [any(row is other for other in last.values()) for row in true]
    mixed = [row if keep else row | wrong | {"scores": [0.2]} for row, keep in zip(true, kept, strict=True)]

    def found(name, rows):
        file = written(tmp_path / name, rows)
        return [*values(run(data, file, protocols=["entity_pointing", "entity_box"])).values()]

    assert found("a.jsonl", mixed) == [100.0, 100.0]
    chains = [{"image": image, "entity": chain} | wrong for image, chain in last]
    assert found("b.jsonl", mixed + chains) == [0.0, 0.0]
    half = [{"image": image, "entity": chain, "point": [0, 0]} for image, chain in last]
    assert found("c.jsonl", mixed + half) == [0.0, 100.0]  # the boxes are those of the mentions


def test_rows_with_scores_are_the_boxes_of_a_phrase_best_first(data, tmp_path):
    rows = [dict(row, score=0.5) for row in simple(data)]
    wrong = [dict(row, x1=0, y1=0, x2=1, y2=1, score=score) for row in rows for score in (0.9, 0.6)]
    report = run(data, written(tmp_path / "many.csv", wrong + rows), protocols=["recall_any"])
    found = values(report)
    assert found["recall_any", "R@1"] == 0.0
    alone = values(run(data, written(tmp_path / "one.csv", rows), protocols=["recall_any"]))
    assert found["recall_any", "R@5"] == alone["recall_any", "R@1"] > 50
    assert "doubled" not in str(report["skipped"])
    unscored = [{k: v for k, v in row.items() if k != "score"} for row in wrong[:2] + rows]
    report = run(data, written(tmp_path / "unscored.csv", unscored), protocols=["recall_any"])
    assert len(kinds(report)["doubled predictions (the first counts)"]) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x1": 50.0, "x2": 10.0}, "row 2: its box (50, "),
        ({"x1": "nan"}, "row 2: there is no finite number in its box, got 'nan'"),
        ({"x1": 900, "x2": 950}, "lies outside the"),
        ({"y2": ""}, "row 2: there is no number in its box, got None"),
        ({"y2": "ten"}, "row 2: there is no number in its box, got 'ten'"),
        ({"score": "inf"}, "row 2: there is no finite number in its scores"),
        ({"point_x": 500, "point_y": 3}, "row 2: its point (500, 3) lies outside the"),
        (dict.fromkeys(("x1", "y1", "x2", "y2"), "") | {"x": 5, "y": 5, "w": 9, "h": 9}, "as of a box"),
        (
            dict.fromkeys(("x1", "y1", "x2", "y2"), "") | {"x": 5, "y": 5, "width": 9, "height": 9},
            "as of a box",
        ),
        ({"point_x": 5}, "row 2: there is no number in its point, got None"),
        ({"protocol": "pointing_ani"}, "unknown protocol 'pointing_ani' (did you mean 'pointing_any'?)"),
        ({"sentence": 0.5}, "row 2: its sentence is 0.5; a whole number was expected"),
    ],
)
def test_a_row_that_can_be_no_answer_is_one_sentence(data, tmp_path, change, said, capsys):
    rows = simple(data)
    rows[1] |= change
    file = written(tmp_path / "bad.csv", rows)
    settings = [f"data.root={data}", "data.split=val", f"output={tmp_path}/r.json", f"method={file}"]
    assert main(["evaluate", *settings]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("r.*"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "image,phrase,x1,y1,x2,y2\n7,a,1,2,3,4\n",
            "evaluated; the first of 1 problems: predictions of nothing that is asked: row 1: no image '7'",
        ),
        ("a.csv", "picture,words\n1,2\n", "row 1: it names no image"),
        ("a.csv", "", "is empty"),
        ("a.txt", "x", "ends in none of"),
        ("a.json", "{}", "neither a list of COCO results nor"),
        ("a.json", "[1]", "neither a list of COCO results nor"),
        ("a.json", "[", "is not JSON"),
        ("a.jsonl", "nothing\n", "no line that is a JSON object"),
        ("a.parquet", "no parquet", "cannot be read"),
        (None, "", "does not exist"),
    ],
)
def test_a_file_that_holds_no_predictions(data, tmp_path, name, content, said):
    path = tmp_path / (name or "none.csv")
    if name:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        run(data, f"predictions:{path}")
    assert said in str(caught.value)


def test_a_bare_file_as_a_method_is_told_its_prefix(data):
    with pytest.raises(ConfigError, match=r"unknown method 'a.csv' \(did you mean 'predictions:a.csv'\?\)"):
        run(data, "a.csv")


def test_shares_of_the_sides_are_no_pixels(data, tmp_path):
    rows = [dict(row, x1=0.1, y1=0.2, x2=0.3, y2=1.04) for row in simple(data)]
    said = r"shares\.csv has no number above 1\.04 in its boxes and points, like shares .*: multiply x by the width"
    with pytest.raises(DataError, match=said):
        run(data, written(tmp_path / "shares.csv", rows))


def test_names_of_images_and_phrases_are_found_as_people_write_them(data, tmp_path):
    rows = simple(data)
    for row in rows:
        row |= {"image": f"photos\\{row['image']}.jpg", "phrase": f" {row['phrase'].upper()}  "}
    renamed = run(data, written(tmp_path / "renamed.csv", rows), protocols=["recall_any"])
    # 'a man' and 'A man' differ in case alone: in capitals the first row answers both, and the second is doubled
    doubled = "doubled predictions (the first counts)"
    assert set(kinds(renamed)) <= {doubled, "chains", "boxes partly outside (kept)"}
    assert renamed["rows"][0]["value"] > 60


def template_command(path, root):
    return main(["predictions-template", str(path), f"data.root={root}", "data.split=val"])


def test_results_of_coco_by_the_numbers_of_the_template(data, tmp_path):
    assert template_command(tmp_path / "asked.jsonl", data) == 0
    asked = [json.loads(line) for line in (tmp_path / "asked.jsonl").read_text().splitlines()]
    truth = {(s.image_id, *place): boxes[0].tolist() for s, place, _, boxes in mentions(data)}
    results = {}
    for row in asked:
        x1, y1, x2, y2 = truth[row["image"], row["sentence"], row["phrase_index"]]
        named = {"image_id": row["image_id"], "category_id": row["category_id"]}
        results.setdefault(tuple(named.values()), named | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.5})
    by_number = run(data, written(tmp_path / "results.json", list(results.values())), protocols=["recall_*"])
    by_text = run(data, written(tmp_path / "plain.csv", simple(data)), protocols=["recall_*"])
    recalls = [[v for (_, m), v in values(r).items() if "R@" in m] for r in (by_number, by_text)]
    assert recalls[0] == recalls[1]
    assert not any("prediction" in kind for kind in by_number["skipped"])


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_template_filled_in_by_another_tool(data, tmp_path, ending):
    path = tmp_path / f"template{ending}"
    assert template_command(path, data) == 0
    lines = partial(pd.read_json, lines=True)
    frame = {".csv": pd.read_csv, ".jsonl": lines, ".parquet": pd.read_parquet}[ending](path)
    assert len(frame) == len(mentions(data))
    with pytest.raises(DataError, match="nothing that can be evaluated"):
        run(data, f"predictions:{path}")  # as it is, empty
    frame[["x1", "y1"]] = 0.0
    frame["x2"], frame["y2"] = frame["width"].astype(float), frame["height"].astype(float)
    lines = partial(frame.to_json, orient="records", lines=True)
    csv_file, parquet = partial(frame.to_csv, index=False), frame.to_parquet
    {".csv": csv_file, ".jsonl": lines, ".parquet": parquet}[ending](path)
    filled = run(data, f"predictions:{path}", protocols=["recall_any", "entity_box"])
    blind = run(data, "whole_image", protocols=["recall_any", "entity_box"])
    assert [row["value"] for row in filled["rows"]] == [row["value"] for row in blind["rows"]]


def test_a_template_is_never_written_over(data, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("filled in")
    wrong = {"mine.csv": "is there already", "mine.txt": "OUT ends in .csv, .jsonl or .parquet"}
    for name, said in wrong.items():
        assert template_command(tmp_path / name, data) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_text() == "filled in"


def test_theirs_and_ours_in_one_table_and_compared(data, tmp_path, capsys):
    file = written(tmp_path / "theirs.csv", simple(data))
    both = run(data, [file, "whole_image"], protocols=["recall_any"])
    assert {(d["method"], d["minus"]) for d in both["differences"]} == {("whole_image", file)}
    run(data, file, protocols=["recall_any"], output=tmp_path / "theirs.json")
    run(data, "whole_image", protocols=["recall_any"], output=tmp_path / "ours.json")
    assert main(["compare", str(tmp_path / "theirs.json"), str(tmp_path / "ours.json")]) == 0
    assert "| recall_any | R@1 |" in capsys.readouterr().out


def test_a_changed_file_is_read_again(data, tmp_path, monkeypatch):
    """What is kept of an interrupted run is of the file as it was."""
    from phrase_loc.evaluation import run as module

    path = tmp_path / "theirs.csv"
    keys, real = [], module.Progress
    monkeypatch.setattr(module, "Progress", lambda *given: keys.append(given[1]) or real(*given))
    for move in (0, 0, 1):
        run(data, written(path, [dict(row, x2=row["x2"] + move) for row in simple(data)]))
    assert keys[0] == keys[1] != keys[2]


def test_answers_of_query_are_scored(data, tmp_path):
    """The lines, the table and the Parquet file of `phrase-loc query FOLDER` are predictions as they are."""
    from phrase_loc.display import write_csv, write_parquet

    by_image = {}
    for sample, _, phrase, boxes in mentions(data):
        answer = {"phrase": phrase.text, "present": 0.5, "peak": [1.5, 2.5], "state": "found", "note": None}
        boxes = [{"xyxy": boxes[0].tolist(), "score": 0.9}, {"xyxy": [1, 1, 9, 9], "score": 0.1}]
        size, name = [sample.size[1], sample.size[0]], f"{sample.image_id}.jpg"
        held = by_image.setdefault(name, {"image": name, "size": size, "predictions": []})
        if answer["phrase"] not in {p["phrase"] for p in held["predictions"]}:
            held["predictions"].append(answer | {"boxes": boxes})
    lines = list(by_image.values())
    write_csv(lines, tmp_path / "a.csv")
    write_parquet(lines, tmp_path / "a.parquet")
    written(tmp_path / "a.jsonl", lines)
    reports = [run(data, f"predictions:{tmp_path / name}") for name in ("a.csv", "a.parquet", "a.jsonl")]
    assert comparable(reports[0]) == comparable(reports[1]) == comparable(reports[2])
    assert not any("prediction" in kind for report in reports for kind in report["skipped"])
    assert markdown(reports[0]).count("| predictions:") == 20


def test_sides_of_an_image_before_it_was_turned_are_not_those_of_a_box():
    row = Row("row 1", {"x": "5", "y": "6", "width": "48", "height": "64"})
    assert _checked(row, (48, 64)).point == [5.0, 6.0]
