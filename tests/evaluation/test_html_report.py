"""The page: self-contained, safe with any phrase, and it says what the report says."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from phrase_loc.distributed import World
from phrase_loc.evaluation.calibration import binned, reliability
from phrase_loc.evaluation.protocols import DataConfig, EvaluateConfig
from phrase_loc.evaluation.report import bars, choose_cases, page, write
from phrase_loc.evaluation.rows import records
from phrase_loc.evaluation.run import evaluate, report
from tests.datasets.trees import photograph
from tests.evaluation.small_models import text_localizer


class Reader(HTMLParser):
    """Collects tags, what they load, and whether all are closed."""

    VOID = frozenset({"meta", "img", "input", "br", "rect", "line", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.cases, self.scripts = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.loaded += [facts[k] for k in ("src", "href") if k in facts]
        self.scripts += tag == "script"
        if tag == "article":
            self.cases.append(facts)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def evaluation(tmp_path):
    (tmp_path / "labels").mkdir()
    for i in range(6):
        photograph(tmp_path / "images" / f"{i}.jpg", (90, 60))
        lines = ["16 0.5 0.5 0.9 0.9", f"{15 if i % 2 else 0} 0.2 0.2 0.1 0.1"]
        (tmp_path / "labels" / f"{i}.txt").write_text("\n".join(lines))
    config = EvaluateConfig(
        data=DataConfig(name="yolo", root=tmp_path, split=""),
        method=["contrastive_mwp", "centre"],
        protocols=["yolo_pointing", "yolo_pointing_difficult", "recall_any"],
        output=tmp_path / "out" / "report.json",
        bootstrap=50,
        html=True,
    )
    return evaluate(config, World(), text_localizer(calibrated=True))


def test_the_page_is_whole_and_loads_nothing(evaluation):
    _, files = write(evaluation)
    text = next(f for f in files if f.suffix == ".html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert reader.scripts == 1
    assert all(link.startswith(("data:", "#")) for link in reader.loaded)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:[^\"']*", "", text))
    assert {c["data-group"] for c in reader.cases} > {"random"}
    assert any(link.startswith("data:image/png") for link in reader.loaded), "no map"
    assert "reliability diagram" in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_says_what_the_report_says(evaluation):
    content, files = write(evaluation)
    text = next(f for f in files if f.suffix == ".html").read_text(encoding="utf-8")
    for row in content["rows"]:
        assert f"<b>{row['value']:.2f}</b>" in text
        assert f"{row['ci95'][0]:.2f} – {row['ci95'][1]:.2f}" in text


def test_a_phrase_cannot_break_out(evaluation):
    protocol = evaluation.plan.protocols[0]
    found = records(evaluation.rows.tables, protocol, "centre")
    found[0] = found[0] | {"phrase": "<script>alert(1)</script>\" onload='x'", "labels": ("<b>",)}
    text = page(report(evaluation), found, evaluation.plan.samples)
    reader = Reader()
    reader.feed(text)
    assert reader.scripts == 1
    assert "<script>alert" not in text


def test_without_photographs_and_localizer(evaluation):
    for sample in evaluation.plan.samples:
        sample.path.unlink()
    found = records(evaluation.rows.tables, evaluation.plan.protocols[0], "centre")
    text = page(report(evaluation), found, evaluation.plan.samples)
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert len(reader.cases) > 0
    assert "data:image" not in text


def test_bars_are_ordered_by_count(evaluation):
    found = [r for p in evaluation.plan.protocols for r in records(evaluation.rows.tables, p, "centre")]
    figure = next(f for f in bars(report(evaluation), found) if "yolo_pointing · centre" in f["title"])
    assert [(label, count) for label, _, count in figure["lines"]] == [("dog", 6), ("cat", 3), ("person", 3)]


def record(image, hit, iou=float("nan"), score=float("nan"), known=True):
    return {
        "image_id": image,
        "hit": hit,
        "iou": iou,
        "score": score,
        "known": known,
        "name": (image, iou, score),
    }


def test_which_cases_are_shown():
    rows = [
        record("a", 1.0, iou=0.6),
        record("b", 1.0, iou=0.9),
        record("b", 1.0, iou=0.8),  # one an image
        record("c", 0.0, score=3.0),
        record("d", 0.0, score=5.0),
        record("e", 0.0, score=9.0, known=False),  # unknown is no sure miss
    ]
    chosen = choose_cases(rows, count=2)
    assert [r["image_id"] for g, r in chosen if g == "best"] == ["b", "a"]
    assert [r["image_id"] for g, r in chosen if g == "worst"] == ["d", "c"]
    assert len([r for g, r in chosen if g == "random"]) == 2
    assert chosen == choose_cases(rows, count=2)


def test_bins_by_hand():
    found = binned(np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True]), 2)
    assert found.bins == [(0.05, 0.5, 2), (0.975, 1.0, 2)]
    assert found.error == pytest.approx((0.45 * 2 + 0.025 * 2) / 4)
    assert found.brier == pytest.approx((0.05**2 + 0.95**2 + 0.05**2) / 4)


def test_no_diagram_without_calibration(evaluation):
    assert reliability(text_localizer(), evaluation.plan.samples) is None
    found = reliability(text_localizer(calibrated=True), evaluation.plan.samples)
    assert found is not None
    assert found.images == 6
    assert found.pairs >= 6
