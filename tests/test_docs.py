"""The documentation: links lead somewhere, Python runs, commands parse with what their page installs, CI runs one."""

import argparse
import ast
import json
import re
import shlex
import shutil
import sys
import tomllib
import types
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest

from phrase_loc.cli import COMMANDS, main
from phrase_loc.config import load_config
from phrase_loc.datasets import DATASETS
from phrase_loc.errors import ConfigError, PhraseLocError
from phrase_loc.evaluation.protocols import EvaluateConfig
from phrase_loc.images import load_image
from phrase_loc.streaming import questions_of
from phrase_loc.text.phrases import PhraseEncoder
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
REGISTRIES = {
    "phrase_loc.attention": "METHODS",
    "phrase_loc.models.backbones": "BACKBONES",
    "phrase_loc.proposals": "PROPOSALS",
    "phrase_loc.evaluation.protocols": "PROTOCOLS",
}
SKIPPED = re.compile(r"<!-- not run: .+ -->\s*\Z")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list:
    """(line, code) of each fenced block of a language that has no skip comment right above it."""
    text = page.read_text(encoding="utf-8")
    found = [(text.count("\n", 0, m.start()) + 2, m[2], text[: m.start()]) for m in FENCE.finditer(text)
             if m[1] == language]  # fmt: skip
    return [(line, code) for line, code, above in found if not SKIPPED.search(above)]


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(text: str) -> list[list[str]]:
    """The calls of ours in shell text: `phrase-loc` or a script's path, and the words after it."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if not re.search(r"phrase-loc|\.py\b", line):
            continue
        for call in re.split(r"&&|\|\||\s\|\s", line):
            words = shlex.split(call, comments=True)
            for i, word in enumerate(words):
                if Path(word).name == "phrase-loc" or (word.endswith(".py") and i):
                    given = [w for w in words[i + 1 :] if w != "..."]
                    found.append([Path(word).name if "phrase" in word else word, *given])
                    break
    return found


def shell(page: Path) -> list[list[str]]:
    """The commands of a page, in fences or indented."""
    plain = FENCE.sub("", page.read_text(encoding="utf-8"))
    indented = "\n".join(re.findall(r"^    (\S(?:.*\\\n)*.*)", plain, re.M))
    fenced = [code for kind in ("bash", "") for _, code in blocks(page, kind)]
    return [words for code in (*fenced, indented) for words in commands(code)]


PYTHON = [
    pytest.param(p, line, code, id=f"{name(p)}:{line}") for p in PAGES for line, code in blocks(p, "python")
]
NOTEBOOKS = {page: json.loads(page.read_text("utf-8"))["cells"] for page in (ROOT / "docs").glob("*.ipynb")}
for page, cells in NOTEBOOKS.items():
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    PYTHON.append(pytest.param(page, 1, code, id=name(page)))
SHELL = [pytest.param(p, words, id=f"{name(p)}: {' '.join(words)[:60]}") for p in PAGES for words in shell(p)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{name(page)}: {link} names no heading"


def test_pages_are_not_lost():
    """Every page of docs can be reached from the README."""
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or not page.is_file():
            continue
        seen.add(page)
        links = LINK.findall(page.read_text(encoding="utf-8"))
        waiting += [
            (page.parent / x.partition("#")[0]).resolve() for x in links if ".md" in x and ":" not in x
        ]
    assert [name(p) for p in PAGES if p not in seen] == []


@pytest.fixture
def registries():
    """What a page's code adds to the dictionaries is gone afterwards."""
    tables = [getattr(import_module(module), table) for module, table in REGISTRIES.items()]
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize(("page", "line", "code"), PYTHON)
def test_python_runs(page, line, code, tmp_path, monkeypatch, registries):
    shutil.copytree(ROOT / "phrase_loc" / "examples", tmp_path / "phrase_loc" / "examples")
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(compile("\n" * (line - 1) + code, name(page), "exec"), module.__dict__)


@pytest.mark.parametrize(("page", "words"), SHELL)
def test_commands_parse(page, words, monkeypatch):
    """With the parser of the command or script itself, and settings with their config."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    program, *given = words
    if program.startswith("benchmarks/"):
        assert needed_packages(ROOT / program) <= environment(page)
        script = program.removesuffix(".py").replace("/", ".")
        parsed = given_to(lambda: import_module(script).main(), given, monkeypatch)
    else:
        command, given = (
            (given[0], given[1:]) if program == "phrase-loc" else (program.removesuffix(".py"), given)
        )
        assert command in COMMANDS, words
        parsed = given_to(lambda: main([command, *given]), given, monkeypatch)
        if command == "export" and parsed.format == "onnx":
            assert "onnx" in environment(page), f"{name(page)} exports to ONNX and installs no onnx"
        if kind := {"train": TrainConfig, "evaluate": EvaluateConfig}.get(command):
            load_config(kind, parsed.settings)


def parse(parser, given):
    try:
        parsed, rest = parser.parse_known_args(given)
    except (argparse.ArgumentError, SystemExit) as error:
        pytest.fail(f"{shlex.join(given)} does not parse: {error}")
    assert rest == [], f"{shlex.join(given)}: no {rest}"
    return parsed


def given_to(action, given, monkeypatch):
    """What the parser of a command or a script makes of these words; it does no more."""

    class Parsed(Exception):
        pass

    def stop(parser, *_):
        raise Parsed(parse(parser, given))

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop)
    with pytest.raises(Parsed) as parsed:
        action()
    return parsed.value.args[0]


@cache
def environment(page: Path) -> frozenset[str]:
    """The packages that a page's lines of `pip install` bring, beside those of the plain `pip install .`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = list(project["dependencies"])
    for line in re.findall(r"pip install ([^\n#&|`]*)", page.read_text(encoding="utf-8")):
        for asked in shlex.split(line):
            extras = re.fullmatch(r"\.\[([\w,]+)\]", asked)
            for extra in extras[1].split(",") if extras else ():
                waiting += project["optional-dependencies"][extra]
            waiting += [asked] if asked[0].isalpha() else []
    found: set[str] = set()
    while waiting:
        asked = waiting.pop()
        package = re.match(r"[\w.-]+", asked)[0].lower().replace("_", "-")
        if package not in found and "extra ==" not in asked:
            found.add(package)
            try:
                waiting += metadata.requires(package) or []
            except metadata.PackageNotFoundError:  # of another system
                continue
    return frozenset(found)


@cache
def packages_of_modules() -> dict:
    return metadata.packages_distributions()


def needed_packages(script: Path) -> set[str]:
    """The installed packages that a script imports, at its head or later."""
    names = set()
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    beside = {n: script.with_name(f"{n}.py") for n in names if script.with_name(f"{n}.py").is_file()}
    ours = {"phrase_loc", "benchmarks", "tests", *sys.stdlib_module_names, *beside}
    further = (needed_packages(path) for path in beside.values() if script.parent.name == "benchmarks")
    names = {"grad-cam" if n == "pytorch_grad_cam" else n for n in names}  # which CI has not
    return set().union(*further) | {
        packages_of_modules().get(n, [n])[0].lower().replace("_", "-") for n in names - ours
    }


OPTIONAL = {"export.py": {"onnx"}, "runtime.py": {"onnxruntime"}}
OPTIONAL |= {name: {"open-clip-torch", "timm"} for name in ("towers.py", "backbones.py")}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "phrase_loc").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_the_plain_install_has_what_the_package_imports(path):
    plain = environment(ROOT / "docs" / "first_query.md")
    assert "pyarrow" in plain
    assert "onnx" not in plain
    assert needed_packages(path) - plain <= OPTIONAL.get(path.name, set())


NAMED_FILE = re.compile(
    r"(?<![\w/.*{}-])(?:phrase_loc|tests|benchmarks|docs|configs)/[\w./-]*\w\.(?:py|md|yaml|j2|json)\b"
)
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", *ROOT.glob("configs/*.yaml"), *ROOT.glob("benchmarks/**/*.py")]
TEXTS += [*ROOT.glob("tests/**/*.py"), *ROOT.glob("phrase_loc/**/*.py")]


def test_what_is_named_is_there():
    """Files by their paths from the root, and what of the package is named with its module."""
    lost, modules = [], set()
    for path in TEXTS:
        text = path.read_text(encoding="utf-8").partition("\n## [0")[0]
        lost += [(name(path), found) for found in NAMED_FILE.findall(text) if not (ROOT / found).exists()]
        modules.update(re.findall(r"\bphrase_loc(?:\.[a-z]\w*)+", text))
    for found in modules - {"phrase_loc.nothing_here", "phrase_loc.json"}:  # of tests
        module, attribute = found, ""
        while not any(
            (ROOT / f"{module.replace('.', '/')}{end}").exists() for end in (".py", "/__init__.py")
        ):
            module, _, attribute = module.rpartition(".")
        lost += [] if not attribute or hasattr(import_module(module), attribute) else [found]
    assert lost == []
    assert len(modules) > 50


def test_notebooks_show_what_came_out():
    for cells in NOTEBOOKS.values():
        shown = [output["output_type"] for cell in cells for output in cell.get("outputs", ())]
        assert len(shown) > 5
        assert "error" not in shown
    assert NOTEBOOKS


def test_something_is_tested():
    assert len(PYTHON) >= 8
    assert len(SHELL) >= 50


@pytest.mark.parametrize(
    "wrong",
    ["phrase-loc query a.png 'a hat' --nothing # why", "python train.py configs/tiny.yaml nothing=1",
     "python benchmarks/query.py --nothing", "phrase-loc export out"],
)  # fmt: skip
def test_a_wrong_command_would_be_found(wrong, monkeypatch):
    page = ROOT / "docs" / "first_query.md"
    with pytest.raises((AssertionError, ConfigError, pytest.fail.Exception)):
        test_commands_parse(page, *commands(wrong), monkeypatch)


ROWS = re.compile(r"^\| (\w+) \| (\w+) \| ([^|]+) \| ([\d.]+) \| ([^|]*) \|", re.M)


def test_a_row_of_the_results_has_one_value():
    found: dict[tuple, set] = {}
    for protocol, method, metric, *value in ROWS.findall((ROOT / "docs" / "results.md").read_text("utf-8")):
        found.setdefault((protocol, method, metric), set()).add(tuple(value))
    assert len(found) > 30
    assert [row for row, values in found.items() if len(values) > 1] == []


def test_ci_runs_the_second_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    second = blocks(ROOT / "README.md", "bash")[1][1].strip()
    assert "\n" not in second
    assert second in script.splitlines()


def test_extensions_are_short():
    for line, code in blocks(ROOT / "docs" / "extending.md", "python"):
        assert len(code.splitlines()) < 30, f"docs/extending.md:{line}"


def texts_of_the_code() -> set[str]:
    """Every string of the package, with its module's own strings filled in; what else is filled in is a zero byte."""
    found = set()
    for path in (ROOT / "phrase_loc").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        own: dict[str, list[str]] = {}
        for node in nodes:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                own.setdefault(node.targets[0].id, []).append(text_of(node.value, {}))
        found |= {text_of(node, own) for node in nodes}
    return found


def text_of(node: ast.AST, own: dict[str, list[str]]) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part, own) for part in parts)
        case ast.FormattedValue(value=ast.Name(id=known)) if len(own.get(known, ())) == 1:
            return own[known][0]
    return "\0"


def said_by_the_code(folder: Path) -> list[str]:
    """Sentences that are put together of several strings, as they come out."""
    encoder = PhraseEncoder(Vocabulary(("dog",), (9,)))
    said = [str(encoder.encode(phrase).note) for phrase in ("a red dog", "a dog on the left")]
    (folder / "a.heic").touch()
    shutil.copy(ROOT / "phrase_loc" / "examples" / "coffee.png", folder)
    questions_of(folder, ["a dog"], said.append)
    for wrong in (
        lambda: load_image(b"no picture"),
        lambda: load_config(TrainConfig, ["no.yaml"]),
        lambda: DATASETS["flickr30k"](folder, "val"),
    ):
        with pytest.raises(PhraseLocError) as error:
            wrong()
        said.append(str(error.value))
    return said


def test_the_sentences_of_the_faq_are_those_of_the_code(tmp_path):
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^- `(.+?)`<br>$", page, re.M)
    code = texts_of_the_code() | set(said_by_the_code(tmp_path))
    patterns = {s: re.compile(".*".join(map(re.escape, s.split("..."))), re.DOTALL) for s in sentences}
    assert [s for s, pattern in patterns.items() if not any(map(pattern.fullmatch, code))] == []
    assert len(sentences) > 10
