"""A run that is killed, or whose disk is full, at any file that it writes goes on to the same weights, bit by bit."""

from pathlib import Path

import pytest
import torch

from benchmarks.kills import Window, differences, in_child, kill_everywhere, run, write_shard
from phrase_loc.errors import DataError
from phrase_loc.training import checkpoint
from tests.training.runs import run as train


def test_killed_in_every_window_a_run_ends_in_the_same_files(tmp_path: Path):
    outcome = kill_everywhere(tmp_path, 38)
    assert outcome.different == []
    assert outcome.kills == min(38, outcome.windows)
    assert outcome.windows >= 38


RAN: list[str] = []  # in this process


def nothing_was_run() -> None:
    """For a child process: whether it begins without what has happened in the one that asked for it."""
    assert not RAN


def test_a_child_is_no_fork_of_the_process_in_which_torch_ran():
    """After torch.export autograd has threads, and a forked child may not train."""
    RAN.append("torch")
    child = in_child(nothing_was_run)
    child.join()
    assert child.exitcode == 0


def test_a_full_disk_at_any_file_is_one_sentence_and_the_run_goes_on(tmp_path: Path):
    shards = write_shard(tmp_path / "pairs.tar")
    every: list[Window] = []
    run(tmp_path / "whole", shards, every.append)
    names = list(dict.fromkeys(name for _, name, _ in every))
    for name in names:

        def full(window: Window, name: str = name) -> None:
            if window[1] == name and window[0] in ("before", "written"):
                raise OSError(28, "No space left on device")

        with pytest.raises(DataError, match=r"cannot be written.*No space left on device"):
            run(tmp_path / "full", shards, full)
        # what a later start would remove is not there either
        assert not list((tmp_path / "full").rglob("*.part*"))
    run(tmp_path / "full", shards, lambda window: None)
    assert differences(tmp_path / "whole", tmp_path / "full") == []


def test_a_full_disk_that_torch_tells_of_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shards = str(write_shard(tmp_path / "pairs.tar"))
    with monkeypatch.context() as patch:

        def full(values: object, file: object) -> None:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nmore")

        patch.setattr(checkpoint.torch, "save", full)
        with pytest.raises(DataError, match=r"checkpoint.pt cannot be written \(\[enforce fail"):
            train(tmp_path / "out", shards)
    assert not (tmp_path / "out" / "checkpoint.pt").exists()
    train(tmp_path / "out", shards)
    assert torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)["done"] == 8


@pytest.mark.parametrize("name", [".checkpoint.pt.9-0123abcd.part", ".best.9-0123abcd.part"])
@pytest.mark.parametrize("folder", [True, False])
def test_what_a_killed_run_left_behind_is_cleared(name: str, folder: bool, tmp_path: Path):
    shards = str(write_shard(tmp_path / "pairs.tar"))
    left = tmp_path / "out" / name
    (left if folder else left.parent).mkdir(parents=True)
    (left / "config.json" if folder else left).write_text("half")
    train(tmp_path / "out", shards)
    assert not left.exists()
