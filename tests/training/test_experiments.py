"""benchmarks/experiments.yaml: every row is a command that can be run."""

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from phrase_loc.config import load_config
from phrase_loc.evaluation.protocols import EvaluateConfig
from phrase_loc.training.config import TrainConfig


@pytest.fixture
def experiments(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiments", root / "benchmarks" / "experiments.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def told(tmp_path: Path) -> argparse.Namespace:
    where = {"out": tmp_path, "val": tmp_path / "val", "shards": "x.tar", "texts": "texts.gz"}
    return argparse.Namespace(**where, only=None, rows=None, seeds=[0, 1], workers=0)


def rows_of(experiments: ModuleType, told: argparse.Namespace) -> list:
    plan = yaml.safe_load((Path(experiments.__file__).parent / "experiments.yaml").read_text())
    return [row for rows in experiments.read_rows(plan, told).values() for row in rows]


def test_every_row_is_a_valid_command(experiments, told, root, monkeypatch):
    monkeypatch.chdir(root)
    rows = rows_of(experiments, told)
    assert {row.seed for row in rows} == {0, 1}
    for row in rows:
        train, evaluate = experiments.commands(row, told)
        config = load_config(TrainConfig, train[1:])
        assert config.seed == row.seed
        assert len(config.run_phases) == 1
        assert "{" not in config.model.start
        assert load_config(EvaluateConfig, evaluate[1:]).output == row.report(told.out)


def test_a_row_waits_for_the_model_that_it_starts_from(experiments, told):
    rows = {(row.name, row.seed): row for row in rows_of(experiments, told)}
    assert rows["late", 1].after == ("base",)
    assert f"model.start={told.out / 'base' / 'seed1' / 'model'}" in rows["late", 1].arguments
    assert rows["base", 0].after == ()
    plan = yaml.safe_load((Path(experiments.__file__).parent / "experiments.yaml").read_text())
    started = experiments.with_starts([rows["late", 1], rows["late", 1]], plan, told)
    assert [(row.name, row.seed) for row in started] == [("base", 1), ("late", 1)]


def test_the_table_gives_the_mean_and_the_range(experiments, told):
    rows = [row for row in rows_of(experiments, told) if row.name == "base"]
    for row, a in zip(rows[:2], (70.0, 72.0), strict=True):
        row.folder(told.out).mkdir(parents=True, exist_ok=True)
        values = {"accuracy": a, "R@1": 40.0, "R@5": 60.0, "R@10": 70.0}
        found = [
            {"method": m, "metric": k, "value": v} for m in experiments.METHODS for k, v in values.items()
        ]
        row.report(told.out).write_text(json.dumps({"rows": found}))
    line = experiments.table(rows[:2], told.out)[-1]
    assert line.startswith("| base |")
    assert "| 2 | 71.0 (70.0-72.0) | 40.0/60.0/70.0 | 71.0, 40.0 | 71.0, 40.0 |" in line
