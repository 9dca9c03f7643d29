"""The documentation: links lead somewhere, Python runs, commands parse, the second command is what CI runs."""

import argparse
import ast
import re
import shlex
import shutil
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest

from phrase_loc.cli import COMMANDS

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
    """The `phrase-loc ...` calls in shell text: the words after the program's name."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for call in re.split(r"&&|\|\||;|\|", line):
            words = shlex.split(call, comments=True)
            if words and Path(words[0]).name == "phrase-loc":
                found.append(words[1:])
    return found


PYTHON = [
    pytest.param(p, line, code, id=f"{name(p)}:{line}") for p in PAGES for line, code in blocks(p, "python")
]
SHELL = [
    pytest.param(words, id=f"{name(p)}: {' '.join(words)[:60]}")
    for p in PAGES
    for _, code in blocks(p, "bash")
    for words in commands(code)
]


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


@pytest.mark.parametrize("words", SHELL)
def test_commands_parse(words):
    assert words[0] in COMMANDS
    parser = argparse.ArgumentParser()
    getattr(import_module(COMMANDS[words[0]][0]), f"{words[0]}_arguments")(parser)
    parser.exit_on_error = False
    try:
        rest = parser.parse_known_args(words[1:])[1]
    except (argparse.ArgumentError, SystemExit) as error:
        pytest.fail(f"phrase-loc {shlex.join(words)} does not parse: {error}")
    assert rest == [], f"phrase-loc {shlex.join(words)} has no {rest}"


def test_something_is_tested():
    assert len(PYTHON) >= 8
    assert len(SHELL) >= 10


def test_a_wrong_option_would_be_found():
    assert commands(".venv/bin/phrase-loc query a.png 'a hat' --nothing # why") == [
        ["query", "a.png", "a hat", "--nothing"]
    ]
    with pytest.raises(AssertionError):
        test_commands_parse(["query", "a.png", "a hat", "--nothing"])


def test_ci_runs_the_second_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    second = blocks(ROOT / "README.md", "bash")[1][1].strip()
    assert "\n" not in second
    assert second in script.splitlines()


def test_extensions_are_short():
    for line, code in blocks(ROOT / "docs" / "extending.md", "python"):
        assert len(code.splitlines()) < 30, f"docs/extending.md:{line}"


def texts_of_the_code() -> list[str]:
    """Every string of the package; what is filled in stands as a zero byte."""
    found = []
    for path in (ROOT / "phrase_loc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_sentences_of_the_faq_are_those_of_the_code():
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^- `(.+?)`<br>$", page, re.M)
    code = texts_of_the_code()
    for sentence in sentences:
        pattern = re.compile(".*".join(re.escape(part) for part in sentence.split("...")), re.S)
        assert any(pattern.search(text) for text in code), f"no error of the code says: {sentence}"
    assert len(sentences) > 10
