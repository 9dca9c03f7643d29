"""Atomic writing, locks, digests and readers: a file is whole or not there, and every refusal is one sentence."""

import os
import subprocess
import sys

import pytest

from phrase_loc import files
from phrase_loc.errors import DataError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_text(tmp_path / "a.txt", "old")

    def write():
        with files.writing(tmp_path / "a.txt") as part:
            part.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert files.read_text(tmp_path / "a.txt") == "old"


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"cannot be written \(No such file"):
        files.write_bytes(tmp_path / "absent" / "a", b"")


@pytest.mark.parametrize("moment", ["before", "written", "renamed", "after"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_at_any_moment_the_old_or_the_new_is_there(tmp_path, kind, moment):
    code = f"""
import os, pathlib
from phrase_loc import files
place = pathlib.Path({str(tmp_path)!r})
def write(text):
    with files.writing(place / "x") as part:
        part.mkdir() if {kind!r} == "folder" else None
        (part / "y" if {kind!r} == "folder" else part).write_text(text)
write("old")
files.observer = lambda at, path: os._exit(9) if at == {moment!r} else None
write("new")
"""
    killed = subprocess.run([sys.executable, "-c", code]).returncode
    files.remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    held = tmp_path / "x" / "y" if kind == "folder" else tmp_path / "x"
    done = moment == "after" or (kind, moment) == ("file", "renamed")
    assert (killed, held.read_text()) == (
        0 if (kind, moment) == ("file", "renamed") else 9,
        "new" if done else "old",
    )


def test_a_lock_is_held_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_GRACE", 0.01)

    def take():
        with files.lock(tmp_path / ".lock", "held by another process"):
            return True

    with files.lock(tmp_path / ".lock", ""), pytest.raises(DataError, match="another process"):
        take()
    assert take()
    assert not list(tmp_path.iterdir())


def test_every_changed_bit_breaks_the_seal():
    whole = files.sealed(b"boxes")
    assert files.unsealed(whole) == b"boxes"
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        assert files.unsealed(bytes(changed)) is None
    assert files.unsealed(b"") is None


@pytest.mark.parametrize(
    "content, said",
    [(b"\xff", "not UTF-8"), (b"{", "not JSON"), (b"[" * 100_000, "not JSON"), (b"1" * 10_000, "not JSON")],
)
def test_what_is_no_json_is_one_sentence(tmp_path, content, said):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=said):
        files.read_json(tmp_path / "a", "the report")
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a").write_bytes('{"é": 1}'.encode(encoding))
        assert files.read_json(tmp_path / "a") == {"é": 1}


def test_paths_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "absent", "a\0b"):
        with pytest.raises(DataError, match="check the path"):
            files.read_bytes(path)


def test_a_link_stays_a_link_and_a_pipe_is_not_replaced(tmp_path):
    (tmp_path / "link.txt").symlink_to("real.txt")
    files.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a device or a pipe"):
        files.write_text(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo()


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        files.write_text(tmp_path / ("a" * 300), "new")
    with pytest.raises(DataError, match=r"the list .* cannot be read \(File name too long\); name another"):
        files.refuse_foreign(tmp_path / ("a" * 300), "mark", "list", "name another")


def test_a_file_that_cannot_be_read_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text("mark")
    files.refuse_foreign(tmp_path / "list.txt", "mark", "list", "name another")

    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "open", refused)
    with pytest.raises(DataError, match=r"the list .* cannot be read \(Permission denied\); name another"):
        files.refuse_foreign(tmp_path / "list.txt", "mark", "list", "name another")
