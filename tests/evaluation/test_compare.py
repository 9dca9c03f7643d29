"""`phrase-loc compare a.json b.json`: pairs, refusals, and agreement with a run of both methods."""

import json
import shutil

import pytest

from phrase_loc.__main__ import main
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.evaluation.protocols import DataConfig, EvaluateConfig
from phrase_loc.evaluation.report import write
from phrase_loc.evaluation.run import evaluate
from phrase_loc.evaluation.statistics import compare, seal, table
from tests.datasets.flickr_tree import tree
from tests.evaluation.fakes import FakeLocalizer, drawn
from tests.evaluation.test_evaluator import images


@pytest.mark.parametrize(
    ("p", "said"), [(0.0, "< 0.0005"), (0.0004, "< 0.0005"), (0.0005, "0.001"), (1.0, "1.000")]
)
def test_no_probability_is_said_to_be_nought(p, said):
    row = {
        "protocol": "x",
        "metric": "y",
        "method_a": "a",
        "method_b": "b",
        "a": 1.0,
        "b": 2.0,
        "value": -1.0,
    }
    assert table([row | {"ci95": [-2, 0], "p_value": p}]).endswith(f"| {said} |")


@pytest.fixture
def reports(written, tmp_path):
    """A copy of the reports that may be changed."""
    return shutil.copytree(written, tmp_path / "reports")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Reports a, b of one method, both of two; `few` counts other images."""
    folder = tree(tmp_path_factory.mktemp("reports"), images(9))
    better = {f"a {name}": drawn(name) for name in ("man", "dog", "hat", "tree")}
    made = {
        "a": (["contrastive_mwp"], FakeLocalizer()),
        "b": (["contrastive_mwp"], FakeLocalizer(better)),
        "both": (["contrastive_mwp", "centre"], FakeLocalizer()),
        "centre": (["centre"], FakeLocalizer()),
        "few": (["contrastive_mwp"], FakeLocalizer()),
    }
    for name, (method, localizer) in made.items():
        config = EvaluateConfig(
            data=DataConfig(root=folder, split="val"),
            method=method,
            protocols=["pointing_any", "recall_union"],
            output=folder / f"{name}.json",
            bootstrap=60,
            limit=5 if name == "few" else 0,
        )
        write(evaluate(config, World(), localizer))
    return folder


def test_a_report_does_not_differ_from_itself(reports):
    found = compare(reports / "a.json", reports / "a.json")
    assert [row["metric"] for row in found] == ["accuracy", "R@1", "R@5", "R@10"]
    assert all(row["value"] == 0 and row["ci95"] == [0, 0] for row in found)


def test_reports_of_other_rules_are_not_compared(reports):
    content = json.loads((reports / "b.json").read_text())
    content["config"]["faithful"] = True
    (reports / "b.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="one reproduces published bugs"):
        compare(reports / "a.json", reports / "b.json")


def test_a_difference_is_that_of_the_values(reports):
    found = compare(reports / "a.json", reports / "b.json")
    assert any(row["value"] != 0 for row in found)
    for row in found:
        assert row["value"] == pytest.approx(row["a"] - row["b"], abs=0.011)
        assert row["ci95"][0] <= row["value"] <= row["ci95"][1]


def test_two_reports_agree_with_one_run_of_both(reports):
    inside = json.loads((reports / "both.json").read_text())["differences"]
    across = compare(reports / "centre.json", reports / "a.json")
    assert [(r["value"], r["ci95"], r["p_value"]) for r in across] == [
        (r["value"], r["ci95"], r["p_value"]) for r in inside
    ]


def test_a_pair_can_be_named(reports):
    found = compare(reports / "both.json", reports / "both.json", "centre", "contrastive_mwp")
    assert {(row["method_a"], row["method_b"]) for row in found} == {("centre", "contrastive_mwp")}
    with pytest.raises(ConfigError, match="did you mean 'centre'"):
        compare(reports / "both.json", reports / "both.json", "center", "contrastive_mwp")


def test_other_images_and_other_files_are_refused(reports):
    with pytest.raises(DataError, match="not on the same images"):
        compare(reports / "a.json", reports / "few.json")
    with pytest.raises(DataError, match="does not exist"):
        compare(reports / "a.json", reports / "none.json")
    (reports / "odd.json").write_text("[]")
    with pytest.raises(DataError, match="is no report"):
        compare(reports / "odd.json", reports / "a.json")


def changed(path, keys, value):
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


CELLS = ("by_image", "sums", "pointing_any", "contrastive_mwp", "accuracy")


@pytest.mark.parametrize(
    ("keys", "value", "sentence"),
    [
        (("config", "bootstrap"), 61, "was changed after it was written"),
        (("config", "bootstrap"), True, "was changed after it was written"),
        (("config",), None, "is no report"),
        (("by_image", "images"), {}, "was changed after it was written"),
        (("by_image", "images", 0), "other", "was changed after it was written"),
        ((*CELLS, "sum", 0), 0.25, "was changed after it was written"),
        ((*CELLS, "sum", 0), float("nan"), "was changed after it was written"),
        (("sha256",), "", "was changed after it was written"),
    ],
)
def test_changed_reports_are_one_sentence(reports, keys, value, sentence):
    changed(reports / "a.json", keys, value)
    with pytest.raises(DataError, match=sentence) as caught:
        compare(reports / "a.json", reports / "b.json")
    assert len(str(caught.value)) < 600


def test_a_report_of_old_has_no_digest(reports):
    content = json.loads((reports / "a.json").read_text())
    del content["sha256"]
    (reports / "old.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"is no report of evaluate.py .*evaluate again"):
        compare(reports / "old.json", reports / "b.json")


def test_what_was_never_counted_differs_by_nothing(reports, capsys):
    """NaN is no JSON."""
    for name in ("a", "b"):
        path = reports / f"{name}.json"
        for key in ("image", "label", "sum", "count"):
            changed(path, (*CELLS, key), [])
        content = json.loads(path.read_text())
        changed(path, ("sha256",), seal(content["by_image"], content["config"]["bootstrap"]))
    assert main(["compare", str(reports / "a.json"), str(reports / "b.json"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["a"], row["b"], row["value"], row["ci95"]) == (None, None, None, [])
    assert main(["compare", str(reports / "a.json"), str(reports / "b.json")]) == 0


def test_the_command(reports, capsys):
    names = [str(reports / "a.json"), str(reports / "b.json")]
    assert main(["compare", *names]) == 0
    assert capsys.readouterr().out.strip() == table(compare(reports / "a.json", reports / "b.json"))
    assert main(["compare", *names, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare(reports / "a.json", reports / "b.json")
    assert main(["compare", *names, "--method", "centre,centre,centre"]) == 2
    assert "takes one name, or two" in capsys.readouterr().err
