"""YAML and key=value to a checked config; every mistake is one sentence that names it."""

from dataclasses import field
from pathlib import Path
from typing import Any

import pytest

from phrase_loc.config import config_dataclass, load_config, to_dict
from phrase_loc.errors import ConfigError, DataError


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
    source: str | tuple[str, ...] = ""
    options: dict[str, Any] = field(default_factory=dict)


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
        (["name=x", "parts=[{"], "value of parts is not YAML"),
        (["name=x", "optimizer.steps=true"], "optimizer.steps takes a number, got true"),
        (["name=x", "optimizer.lr=.nan"], "optimizer.lr: input should be a valid number.*got '.nan'"),
        (["name=x", "optimizer.lr=1e999"], "optimizer.lr.*finite"),
        (["name=x", "optimizer.lr=2023-01-01"], "optimizer.lr.*got '2023-01-01'"),
        (["name=x", f"optimizer.steps={'many' * 1000}"], r"optimizer.steps.*manymany.*\.\.\.$"),
        (["name=x", "=3"], "unknown config key"),
    ],
)
def test_mistakes_are_named(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        load_config(Config, arguments)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "must hold"),
        ("a: [b\n", "is not YAML"),
        ("name: x\nnmae: y\n", "nmae"),
        ("name: x\nname: y\n", "key name twice, again in line 2"),
        ("name: x\noptimizer: {lr: 1, lr: 2}\n", "key lr twice"),
        ("name: x\n\toptimizer: y\n", "is not YAML"),
        ("name: !!python/name:os.system\n", "tag"),
        ("[a]: x\n", "key that is no word"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: " + "[" * 5000 + "\n", "too deeply nested"),
        (
            "a: &a [x, x, x, x]\n"
            + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk")),
            "anchors",
        ),
        ("<<: x\n", "no mapping"),
        ("".join(f"k{i}: 1\n" for i in range(99)), "and 97 more"),
    ],
)
def test_broken_files_are_named(text, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        load_config(Config, [written(tmp_path, text)])


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(DataError, match=r"config file .*not UTF-8"):
        load_config(Config, [str(tmp_path / "config.yaml")])


AS_WRITTEN = [
    "runs/1 #2",
    "*.tar",
    "@list",
    "{00000..00003}.tar",
    "photos [2023]",
    "a: b",
    "123",
    "null",
    "~/x",
    "~",
]
AS_WRITTEN += [
    "1e5",
    "yes",
    " blanks ",
    "- x",
    "%a",
    "[x",
    "{a: b}",
    "!x",
    "&a",
    "|",
    "2023-01-01",
    "1:30",
    "a=b",
    "#",
    "",
]


@pytest.mark.parametrize("text", AS_WRITTEN)
def test_text_stays_as_it_is_written(text, tmp_path):
    assert load_config(Config, [f"name={text}"]).name == text
    assert load_config(Config, ["name=x", f"source={text}"]).source == text
    if text not in ("", "null"):  # no path, and one that is absent
        assert load_config(Config, ["name=x", f"root={text}"]).root == Path(text)


def test_a_type_says_what_a_word_means(tmp_path):
    assert load_config(Config, ["name=x", "root=null"]).root is None
    assert load_config(Config, ["name=x", "source=[a, *b]"]).source == "[a, *b]"  # no YAML, so a path
    assert load_config(Config, ["name=x", "source=[1e5, yes]"]).source == ("1e5", "yes")
    assert load_config(Config, ["name='quoted #1'"]).name == "quoted #1"
    options = load_config(
        Config, ["name=x", "options.a=1 #2", "options.b=1e-4", "options.c=[no, 010]"]
    ).options
    assert options == {"a": "1 #2", "b": 1e-4, "c": [False, "010"]}
    path = written(
        tmp_path, "name: 2023-01-01\nmethods: [1e5, no, 007]\noptimizer: {steps: '3', lr: 1_0.5}\n"
    )
    config = load_config(Config, [path])
    assert (config.name, config.methods) == ("2023-01-01", ("1e5", "no", "007"))
    assert config.optimizer == Optimizer(lr=10.5, steps=3)


def test_anchors_and_merges_are_read(tmp_path):
    path = written(tmp_path, "name: x\nparts: [&a {name: p, lr: 2}, {<<: *a, name: q}]\n")
    assert [(p.name, p.lr) for p in load_config(Config, [path]).parts] == [("p", 2), ("q", 2)]


def test_a_file_may_have_an_equals_sign(tmp_path):
    path = tmp_path / "lr=1.yaml"
    path.write_text("name: y\n")
    assert load_config(Config, [str(path)]).name == "y"


def test_no_path_is_not_the_folder_one_stands_in(tmp_path):
    for arguments in (["name=x", "root="], [written(tmp_path, "name: x\nroot: ''\n")]):
        with pytest.raises(ConfigError, match="config key root is empty"):
            load_config(Config, arguments)
