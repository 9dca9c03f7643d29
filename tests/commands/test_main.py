"""What the command line prints reaches its reader, whatever the terminal, the pipe or the disk is like."""

import argparse
import errno
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from phrase_loc.cli import guarded, main, parsed
from phrase_loc.errors import DataError
from phrase_loc.files import lock, make_folder

EXAMPLE, LONG = "a.png", "x" * 300


class Failing(io.TextIOBase):
    """A stream that fails when it is flushed, or at once."""

    def __init__(self, number: int, buffered: bool):
        self.number, self.buffered = number, buffered
        self.null = os.open(os.devnull, os.O_WRONLY)

    def fileno(self) -> int:
        return self.null

    def write(self, text: str) -> int:
        return len(text) if self.buffered else self._fail()

    def flush(self) -> None:
        self._fail()

    def _fail(self) -> int:
        raise OSError(self.number, os.strerror(self.number))


def printing() -> None:
    print("an answer")


def helping() -> None:
    argparse.ArgumentParser().parse_args(["--help"])


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("action", [printing, helping])
@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 2), (errno.EIO, 2)])
def test_an_output_that_fails(action, number, code, buffered, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(number, buffered))
    assert guarded(action) == code
    said = capsys.readouterr().err
    assert said.count("\n") == (code == 2)
    assert ("cannot be printed" in said) == (code == 2)


def test_notes_that_nobody_reads_stop_nothing(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Failing(errno.EPIPE, False))

    def action() -> None:
        print("a note", file=sys.stderr)
        print("an answer")

    assert guarded(action) == 0
    assert capsys.readouterr().out == "an answer\n"


def test_another_failure_keeps_its_traceback():
    def action() -> None:
        raise OSError(errno.ENOSPC, "of a file")

    with pytest.raises(OSError, match="of a file"):
        guarded(action)


@pytest.mark.parametrize(
    "given",
    [
        ["query", EXAMPLE, "a cat", "--model", LONG],
        ["query", ".", "a cat", "--overlay", LONG],
        ["vocab", LONG, "--output", "vocabulary.txt"],
        ["leaks", "--train", ".", "--eval", LONG],
        ["export", LONG],
        ["calibrate", LONG, "--root", "."],
        ["evaluate", "data.name=voc", f"data.root={LONG}", "protocols=[voc_pointing]", "method=centre"],
        ["train", "data.shards=.", f"out={LONG}"],
    ],
)
def test_a_name_that_is_too_long_is_one_sentence(given, drawn_image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    drawn_image.save(EXAMPLE)
    assert main(given) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert len(said[0]) < 400
    assert "long" in said[0]


@pytest.mark.parametrize(
    "given",
    [
        ["calibrate", "m", "--root", "."],
        ["learn-ranker", "m", "--shards", "."],
        ["learn-classes", "m", "--shards", "."],
    ],
)
@pytest.mark.parametrize("seed", ["-1", "1.5", "9" * 30])
def test_a_seed_is_a_whole_number_from_0(given, seed, capsys):
    with pytest.raises(SystemExit):
        main([*given, f"--seed={seed}"])
    assert "--seed: expected a whole number of at least 0" in capsys.readouterr().err


def test_a_refusal_into_a_closed_pipe_keeps_its_code(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(errno.EPIPE, True))

    def action() -> None:
        print("half")
        raise DataError("no")

    assert guarded(action) == 2


@pytest.mark.parametrize("target", ["| true", "> /dev/full"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_python_ends_in_silence(target, unbuffered, root):
    """As a shell runs it: nothing is 'ignored' on the way out."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    command = f"{sys.executable} -m phrase_loc --help {target}; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.stdout == ""
    if target == "| true":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 2
        assert done.stderr.startswith("error: the output cannot be printed (No space left on device)")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8", "utf-16"])
def test_any_terminal_gets_the_answer(encoding, drawn_image, tiny_model, tmp_path, monkeypatch):
    photo = tmp_path / "cafe\u0301 \U0001f415.png"
    drawn_image.save(photo)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    asked = [
        str(photo),
        "a red hat",
        "a café dog 犬 \U0001f415",
        "--model",
        str(tiny_model),
        "--device",
        "cpu",
    ]
    assert main(["query", *asked, "--json"]) == 0
    answer = json.loads(out.buffer.getvalue().decode(encoding))
    assert answer["image"] == str(photo)
    assert answer["predictions"][-1]["phrase"] == asked[2]
    assert main(["query", *asked]) == 0
    assert "'a red hat': box [" in out.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("given", "names", "json"),
    [
        (["--json", "--", "-x.jpg", "cup"], ["-x.jpg", "cup"], True),
        (["--", "cup", "--json"], ["cup", "--json"], False),
        (["cup", "--json", "hat"], ["cup", "hat"], True),
    ],
)
def test_behind_two_dashes_all_are_names(given, names, json):
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("phrases", nargs="*")
    parser.add_argument("--json", action="store_true")
    found = parsed(parser, given)
    assert [found.image, *found.phrases] == names
    assert found.json is json


def test_a_command_that_fails_leaves_no_empty_folder(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("dog\n", encoding="utf-8")
    (tmp_path / "t.mp4").write_text("no video", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    for given in (
        ["label", "b.png", "--phrases", "t.txt", "--output", "new/out"],
        ["label", "t.mp4", "--phrases", "t.txt", "--threshold", "0", "--output", "new/out"],
        ["learn-ranker", str(tiny_model), "--shards", "none.tar", "--output", "new/out"],
        ["calibrate", str(tiny_model), "--root", "none", "--output", "new/out"],
    ):
        assert main(given) == 2
        assert sorted(tmp_path.rglob("*")) == before


def test_a_command_that_fails_keeps_the_folders_of_an_earlier_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert guarded(lambda: make_folder("kept")) == 0

    def failing():
        make_folder("new/out")
        (tmp_path / "own" / "new").mkdir(parents=True)
        os.chdir("own")
        raise DataError("no")

    assert guarded(failing) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["kept", "new", "own"]


@pytest.mark.parametrize("output", [True, False])
def test_one_process_changes_a_model_at_a_time(output, tiny_model, tmp_path, capsys):
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    given = [str(tiny_model), "--output", str(folder)] if output else [str(folder)]
    with lock(folder / ".change.lock", "held"):
        for command, source in (("calibrate", "--root"), ("learn-ranker", "--shards")):
            assert main([command, *given, source, "."]) == 2
            assert f"another process is changing the model in {folder}" in capsys.readouterr().err
