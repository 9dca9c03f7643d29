"""ImageNet localization: thresholds chosen on one part, errors reported on the other."""

import numpy as np
import pytest

from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.evaluation import localization
from phrase_loc.evaluation.class_protocols import CLASS_PROTOCOLS, GRIDS, imagenet_protocol
from phrase_loc.evaluation.config import DataConfig, EvaluateConfig
from phrase_loc.evaluation.procedure import evaluate, report
from phrase_loc.evaluation.results import Table, Things
from phrase_loc.evaluation.rows import Rows
from tests.datasets.trees import photograph, xml
from tests.evaluation.small_models import classifier

IMAGES = 40
CLASSES = ("n01443537", "n02123045")  # goldfish, tabby


def table(accuracy: list[float]) -> Table:
    n = len(accuracy)
    things = Things([], np.arange(n), ["x"] * n, [("x",)] * n, [(0,)] * n, [np.zeros((1, 4))] * n)
    empty = np.full(n, np.nan)
    four = np.full((n, 4), np.nan)
    return Table(
        things, np.ones(n, bool), {"accuracy": np.array(accuracy)}, empty, empty, four[:, :2], four, empty
    )


def test_the_choice_reads_only_the_held_out_part():
    low, high = imagenet_protocol("mean", 1.0), imagenet_protocol("mean", 2.0)
    tables = {
        (low.name, "cam"): table([1, 1, 0, 0, 0, 0]),
        (high.name, "cam"): table(
            [1, 0, 1, 1, 1, 1]
        ),  # better on the reported part, worse on the held-out one
    }
    held = np.array([True, True, False, False, False, False])
    assert localization.choose_threshold(Rows(tables, 6, 50), [low, high], "cam", held) is low
    assert localization.choose_threshold(Rows(tables, 6, 50), [low, high], "cam", ~held) is high
    (row,) = localization.reported_rows(Rows(tables, 6, 50), low, "cam", held, None)
    assert row["value"] == 100.0
    assert row["count"] == 4
    assert row["threshold"] == {"rule": "mean", "value": 1.0, "component": "all"}


def test_of_equal_thresholds_the_first():
    low, high = imagenet_protocol("mean", 1.0), imagenet_protocol("mean", 2.0)
    tables = {(p.name, "cam"): table([1, 0]) for p in (low, high)}
    assert (
        localization.choose_threshold(Rows(tables, 2, 9), [low, high], "cam", np.array([True, True])) is low
    )


def test_top_k_needs_the_class_and_the_box():
    protocol = imagenet_protocol("mean", 1.0)
    rows = Rows({(protocol.name, "cam"): table([1, 1, 1, 0])}, 4, 200)
    ranks = np.array([0, 3, 7, 0])
    found = localization.reported_rows(rows, protocol, "cam", np.zeros(4, bool), ranks)
    assert {r["metric"]: r["value"] for r in found} == {"error": 25.0, "top1_error": 75.0, "top5_error": 50.0}
    for row in found:
        assert row["ci95"][0] <= row["value"] <= row["ci95"][1]


def test_the_parts_are_fixed_by_the_name_of_the_image():
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(4000)]
    held = [localization.is_held_out(n, 0.25) for n in names]
    assert held == [localization.is_held_out(n, 0.25) for n in names]
    assert 0.22 < np.mean(held) < 0.28
    assert not any(localization.is_held_out(n, 0.0) for n in names)


def test_grids_hold_the_published_thresholds():
    assert 1.5 in GRIDS["mean"]
    assert GRIDS["mean"][0] == 0
    assert GRIDS["mean"][-1] == 10
    assert 0.6 in GRIDS["energy"]
    assert sum(name.startswith("imagenet_box_mean") for name in CLASS_PROTOCOLS) == 42


@pytest.fixture
def tree(tmp_path):
    for i in range(IMAGES):
        name = f"ILSVRC2012_val_{i:08d}"
        photograph(tmp_path / "val" / f"{name}.JPEG", (60, 40))
        (tmp_path / "val" / f"{name}.xml").write_text(xml([(CLASSES[i % 2], 5, 5, 50, 35)], (60, 40)))
    return tmp_path


def test_from_tree_to_rows(tree, tmp_path):
    config = EvaluateConfig(
        data=DataConfig(name="imagenet", root=tree, split="val"),
        method=["cam", "whole_image"],
        protocols=["imagenet_box_mean_1", "imagenet_box_mean_2", "imagenet_box_energy_0.6_largest"],
        held_out=0.3,
        output=tmp_path / "out" / "report.json",
        bootstrap=50,
    )
    localizer = classifier({"goldfish": (1,), "tabby": (2,)})
    content = report(evaluate(config, World(), localizer))
    rows = [r for r in content["rows"] if r["method"] == "cam"]
    assert {r["metric"] for r in rows} == {"error", "top1_error", "top5_error"}
    assert {r["threshold"]["rule"] for r in rows} == {"mean", "energy"}
    held = rows[0]["threshold"]["held_out_images"]
    assert 0 < held < IMAGES
    assert all(r["count"] == IMAGES - held for r in rows)
    by_metric = {r["metric"]: r["value"] for r in rows if r["threshold"]["rule"] == "mean"}
    assert by_metric["top1_error"] >= by_metric["top5_error"] >= by_metric["error"]
    # the grey photographs show one thing alone, and its box covers more than half of the image
    whole = next(r for r in content["rows"] if r["method"] == "whole_image" and r["metric"] == "error")
    assert whole["value"] == 0.0


def test_too_few_images(tree, tmp_path):
    config = EvaluateConfig(
        data=DataConfig(name="imagenet", root=tree, split="val", options={"limit": 1}),
        method="whole_image",
        protocols=["imagenet_box_mean_1"],
        held_out=0.01,
        output=tmp_path / "report.json",
        bootstrap=50,
    )
    with pytest.raises(DataError, match="too few"):
        report(evaluate(config, World()))
