"""YAML and key=value to a checked config; every mistake is one sentence that names it."""

from pathlib import Path

import pytest

from phrase_loc.config import config_dataclass, load_config, to_dict
from phrase_loc.errors import ConfigError


@config_dataclass
class Optimizer:
    """A part."""

    lr: float = 0.1
    steps: int = 3


@config_dataclass
class Part:
    """One of several."""

    name: str = ""
    lr: float = 0.1


@config_dataclass
class Config:
    """A whole."""

    name: str
    optimizer: Optimizer = Optimizer()
    parts: tuple[Part, ...] = ()
    methods: tuple[str, ...] = ("a",)
    root: Path | None = None


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_file_then_overrides(tmp_path):
    path = written(tmp_path, "name: run\noptimizer:\n  lr: 1e-4\n")
    config = load_config(Config, [path, "optimizer.steps=7", "methods=[x, y]", "root=some/where"])
    assert config.optimizer.lr == 1e-4  # YAML alone reads 1e-4 as a string
    assert config.optimizer.steps == 7
    assert config.methods == ("x", "y")
    assert to_dict(config)["root"] == str(Path("some/where"))


def test_no_file_is_fine():
    assert load_config(Config, ["name=x"]) == Config(name="x")


def test_an_element_of_a_list_is_named_or_numbered(tmp_path):
    path = written(tmp_path, "name: run\nparts: [{name: first}, {name: second}]\nmethods: [x, y]\n")
    config = load_config(Config, [path, "parts.second.lr=2", "parts.0.lr=3", "methods.1=z"])
    assert [part.lr for part in config.parts] == [3, 2]
    assert config.methods == ("x", "z")
    for pair, sentence in [
        ("parts.third.lr=1", "parts has no element 'third'; it holds first, second"),
        ("parts.2.lr=1", "parts has no element '2'"),
        ("methods.0.lr=1", "methods.0 is 'x' and has no 'lr'"),
    ]:
        with pytest.raises(ConfigError, match=sentence):
            load_config(Config, [path, pair])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["name=x", "optimizer.lrr=1"], "unknown config key optimizer.lrr.*did you mean 'lr'"),
        (["name=x", "optimiser.lr=1"], "unknown config key optimiser.*did you mean 'optimizer'"),
        ([], "config key name is required"),
        (["name=x", "optimizer.steps=many"], "config key optimizer.steps.*got 'many'"),
        (["missing.yaml"], "missing.yaml does not exist"),
        (["a.yaml", "b.yaml"], "one config file"),
        (["name=[x"], "value of name is not YAML"),
    ],
)
def test_mistakes_are_named(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        load_config(Config, arguments)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("- a\n- b\n", "must hold"), ("a: [b\n", "is not YAML"), ("name: x\nnmae: y\n", "nmae")],
)
def test_broken_files_are_named(text, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        load_config(Config, [written(tmp_path, text)])
