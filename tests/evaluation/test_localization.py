"""ImageNet localization: thresholds chosen on one part, errors reported on the other."""

from dataclasses import replace

import numpy as np
import pytest

from phrase_loc.config import load_config
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.evaluation import thresholds
from phrase_loc.evaluation.protocols import CLASS_PROTOCOLS, GRIDS, DataConfig, EvaluateConfig
from phrase_loc.evaluation.report import write
from phrase_loc.evaluation.rows import Table, Thing
from phrase_loc.evaluation.run import evaluate, report
from phrase_loc.evaluation.statistics import compare
from tests.datasets.trees import photograph, xml
from tests.evaluation.small_models import classifier

IMAGES = 40
CLASSES = ("n01443537", "n02123045")  # goldfish, tabby
NAMES = {"goldfish": (1,), "tabby": (2,)}


MEAN = CLASS_PROTOCOLS["imagenet_sweep_mean"]
SWEEP = replace(MEAN, sweep=MEAN.sweep[2:4])  # thresholds 1 and 1.5


def table(*hits: list[int], rank: list[float] | None = None) -> Table:
    """One thing an image; hits of each threshold in turn."""
    n = len(hits[0])
    things = [Thing(i, None, None, "x", ("x",), None) for i in range(n)]
    overlap = np.stack([np.where(h, 0.5, 0.4999) for h in hits], 1)
    boxes = np.arange(n * len(hits) * 4, dtype=float).reshape(n, len(hits), 4)
    columns = {"known": np.ones(n), "ious": overlap, "boxes": boxes}
    return Table(things, columns if rank is None else columns | {"rank": np.array(rank)})


def test_the_choice_reads_only_the_held_out_part():
    """The second threshold is better on the reported part, worse on the held-out one."""
    found = table([1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 1, 1])
    held = np.array([True, True, False, False, False, False])
    assert thresholds.best_threshold(SWEEP, found, held) == 0
    assert thresholds.best_threshold(SWEEP, found, ~held) == 1
    rest = thresholds.reported(SWEEP, found, 0, ~held)
    assert rest.columns["error"].tolist() == [1, 1, 1, 1]
    assert rest.image.tolist() == [2, 3, 4, 5]
    assert rest.columns["iou"].tolist() == [0.4999] * 4
    assert rest.columns["box"][0].tolist() == [16, 17, 18, 19]  # third image, first threshold
    assert set(rest.columns) == {"known", "iou", "box", "accuracy", "error"}  # nothing was classified


def test_of_equal_thresholds_the_first():
    both = np.array([True, True])
    assert thresholds.best_threshold(SWEEP, table([1, 0], [0, 1]), both) == 0
    assert thresholds.best_threshold(SWEEP, table([1, 0], [1, 1]), both) == 1


def test_top_k_needs_the_class_and_the_box():
    found = table([1, 1, 1, 0], [0, 0, 0, 0], rank=[0, 3, 7, 0])
    values = thresholds.reported(SWEEP, found, 0, np.ones(4, bool)).columns
    assert values["error"].tolist() == [0, 0, 0, 1]
    assert values["top1_error"].tolist() == [0, 1, 1, 1]
    assert values["top5_error"].tolist() == [0, 0, 1, 1]


def test_the_parts_are_fixed_by_the_name_of_the_image():
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(4000)]
    held = [thresholds.is_held_out(n, 0.25) for n in names]
    assert held == [thresholds.is_held_out(n, 0.25) for n in names]
    assert 0.22 < np.mean(held) < 0.28
    assert not any(thresholds.is_held_out(n, 0.0) for n in names)


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


def config_of(tree, tmp_path, **settings):
    asked = {
        "method": ["cam", "mwp", "whole_image"],
        "protocols": ["imagenet_sweep_mean", "imagenet_sweep_energy_largest"],
        "held_out": 0.3,
        "bootstrap": 50,
        "output": tmp_path / "out" / "report.json",
    }
    return EvaluateConfig(data=DataConfig(name="imagenet", root=tree, split="val"), **(asked | settings))


def test_from_tree_to_rows(tree, tmp_path):
    content = write(evaluate(config_of(tree, tmp_path), World(), classifier(NAMES)))[0]
    rows = {(r["protocol"], r["method"], r["metric"]): r for r in content["rows"]}
    errors = ("error", "top1_error", "top5_error")
    assert {k[2] for k in rows if k[1] == "cam"} == set(errors)
    assert {k[2] for k in rows if k[1] == "whole_image"} == {"error"}  # a blind box knows no class
    first = rows["imagenet_sweep_mean", "cam", "error"]
    held = first["threshold"]["held_out_images"]
    assert 0 < held < IMAGES
    assert all(r["count"] == IMAGES - held for r in content["rows"])
    assert first["threshold"]["rule"] == "mean"
    assert set(first["baselines"]) == {"centre", "random", "whole_image", "fixed_boxes"}
    assert rows["imagenet_sweep_mean", "cam", "top1_error"]["baselines"] == {}
    given, top1, top5 = (rows["imagenet_sweep_mean", "cam", m]["value"] for m in errors)
    assert top1 >= top5 >= given
    # the grey photographs show one thing alone, and its box covers more than half of the image
    assert rows["imagenet_sweep_mean", "whole_image", "error"]["value"] == 0.0
    lines = (tmp_path / "out/report.csv").read_text().splitlines()
    assert len(lines) == 1 + 6 * (IMAGES - held)
    assert "| threshold |" in (tmp_path / "out/report.md").read_text().replace("method | ", "| ")


def test_a_sweep_agrees_with_its_thresholds_asked_one_by_one(tree, tmp_path):
    """The report of the chosen threshold, from its own protocol and the images that were not held out."""
    swept = report(evaluate(config_of(tree, tmp_path), World(), classifier(NAMES)))
    row = next(r for r in swept["rows"] if r["method"] == "mwp" and r["metric"] == "error")
    name = f"imagenet_box_mean_{row['threshold']['value']:g}"
    single = evaluate(
        config_of(tree, tmp_path, protocols=[name], method="mwp", held_out=0.0), World(), classifier(NAMES)
    )
    found = single.rows.tables[name, "mwp"]
    keep = [not thresholds.is_held_out(single.plan.samples[i].image_id, 0.3) for i in found.image]
    assert row["value"] == round(100 * (1 - found.columns["accuracy"][keep].mean()), 2)


def test_reports_of_held_out_runs_are_compared(tree, tmp_path):
    both = write(evaluate(config_of(tree, tmp_path), World(), classifier(NAMES)))[0]
    inside = [d for d in both["differences"] if d["method"] == "mwp"]
    assert {d["metric"] for d in inside} == {"error", "top1_error", "top5_error"}
    for name in ("cam", "mwp"):
        config = config_of(tree, tmp_path, method=name, output=tmp_path / f"{name}.json")
        write(evaluate(config, World(), classifier(NAMES)))
    across = compare(tmp_path / "mwp.json", tmp_path / "cam.json")
    assert [(d["metric"], d["value"], d["ci95"]) for d in across] == [
        (d["metric"], d["value"], d["ci95"]) for d in inside
    ]
    other = config_of(tree, tmp_path, method="cam", held_out=0.6, output=tmp_path / "other.json")
    write(evaluate(other, World(), classifier(NAMES)))
    with pytest.raises(DataError, match="count imagenet_sweep_mean differently"):
        compare(tmp_path / "cam.json", tmp_path / "other.json")


def test_the_rank_of_the_class_is_read_once_for_all_methods_alike(tree, tmp_path):
    """The units are drawn at random, so goldfish and tabby lie anywhere among the ten classes."""
    localizer = classifier(NAMES)
    found = evaluate(config_of(tree, tmp_path, held_out=0.3), World(), localizer)
    sample = found.plan.samples[0]
    scene = localizer.look(sample.path, size=sample.size)
    scores = localizer.classify(scene).tolist()
    own = scores[NAMES[sample.phrases[0].text][0]]
    (rank,) = localizer.class_ranks(scene, [sample.phrases[0].text]).tolist()
    assert rank == sum(score > own for score in scores)
    assert np.isnan(localizer.class_ranks(scene, ["a unicorn"]).numpy()).all()


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"held_out": 0.0}, "set held_out=0.25"),
        ({"protocols": ["pointing_any"]}, "has none to choose"),
        ({"protocols": ["imagenet_sweep_mean", "imagenet_box_mean_1"]}, "imagenet_box_mean_1 has none"),
    ],
)
def test_held_out_images_and_sweeps_go_together(tree, tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):  # of a file or a command line it is a ConfigError
        config_of(tree, tmp_path, method="whole_image", **settings)


def test_too_few_images(tree, tmp_path):
    config = config_of(tree, tmp_path, method="whole_image", held_out=0.01, limit=1)
    with pytest.raises(DataError, match="too few"):
        evaluate(config, World())


def test_the_shipped_config_on_a_tree_in_the_real_format(tree, tmp_path, root):
    """Every map box of a blind baseline is the same, so all six rules agree with it."""
    arguments = [f"data.root={tree}", "method=whole_image", "bootstrap=20", f"output={tmp_path / 'r.json'}"]
    config = load_config(EvaluateConfig, [str(root / "configs/imagenet.yaml"), *arguments])
    content = write(evaluate(config, World()))[0]
    names = [f"imagenet_sweep_{rule}{part}" for part in ("", "_largest") for rule in GRIDS]
    assert [row["protocol"] for row in content["rows"]] == names
    assert {(row["metric"], row["value"]) for row in content["rows"]} == {("error", 0.0)}
