"""A run that is killed at any moment and started again ends in the same weights, bit for bit."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.training import checkpoint as checkpoints
from phrase_loc.training.checkpoint import Checkpoint
from tests.training.pairs import write_set
from tests.training.runs import assert_same_weights, forked, losses, run, settings

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
#: Everything that has a state: averaged weights, dropout, augmentation, sampled words, a coupled loss.
FULL = (
    "ema=0.9",
    "save_every=2",
    "phases=[{name: head, epochs: 2, batch: 16, cache: true, lr: 0.01, warmup: 2, dropout: 0.2},"
    " {name: all, epochs: 2.5, batch: 16, accumulate: 2, train_from: stage2, lr: 0.003, crop: 0.6, jitter: 0.2,"
    " words: 8, hard_negatives: 1, losses: {softmax: 1.0, image_caption: 0.5}}]",
)


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def kill_after(child: int, out: Path, steps: int, jitter: float) -> bool:
    """Kills a child with -9 when its run has logged `steps` steps and a moment more; whether it still lived."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        if lines(out) >= steps:
            time.sleep(jitter)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.002)
    raise AssertionError("the run neither went on nor ended")


def test_resume_after_kill_gives_the_same_weights_bit_for_bit(tmp_path: Path):
    shards = write_set(tmp_path / "set")
    run(tmp_path / "whole", shards, *FULL)
    total = len(losses(tmp_path / "whole"))
    out, kills, draw = tmp_path / "killed", 0, random.Random(3)
    for steps in (0, 1, 3, 7, 8, 11, 15, 10_000):
        child = forked(lambda: run(out, shards, *FULL))
        kills += kill_after(child, out, steps, draw.random() * 0.05)
    assert kills >= 5
    assert losses(out) == losses(tmp_path / "whole")
    assert len(losses(out)) == total
    assert_same_weights(out, tmp_path / "whole")
    assert sorted(p.name for p in (out / "model").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole" / "model").iterdir()
    )


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    run(tmp_path / "a", shards)
    before = losses(tmp_path / "a")
    run(tmp_path / "a", shards)
    assert losses(tmp_path / "a") == before


def test_resume_does_not_depend_on_workers_or_when_checkpoints_are_written(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20, 13))
    run(tmp_path / "a", shards)
    run(tmp_path / "b", shards, "data.workers=2", "save_every=1")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_resume_under_other_settings_is_refused(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    run(tmp_path / "a", shards)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1"):
        run(tmp_path / "a", shards, "seed=1")


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "checkpoint.pt"
    Checkpoint(config={"a": 1}, step=1, model={"w": torch.ones(3)}).save(path)

    def half_written(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", half_written)
    with pytest.raises(DataError, match="No space left"):
        Checkpoint(config={"a": 1}, step=2).save(path)
    assert Checkpoint.load(path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_that_could_run_code_is_refused(tmp_path: Path):
    class Harm:
        def __reduce__(self) -> tuple:
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"version": 1, "model": Harm()}, tmp_path / "checkpoint.pt")
    with pytest.raises(DataError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "harm").exists()
    (tmp_path / "checkpoint.pt").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_full_disk_is_told_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from phrase_loc.training import run as runs

    shards = write_set(tmp_path / "set", (20,))
    free = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(DataError, match="MB free"):
        run(tmp_path / "out", shards)
    assert lines(tmp_path / "out") == 0


def test_an_unwritable_folder_is_told_before_anything_is_read(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        run(tmp_path / "file" / "out", "nowhere/*.tar")


def test_what_a_killed_run_left_behind_is_cleared(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    config = settings(tmp_path / "a", shards)
    config.out.mkdir()
    (config.out / "checkpoint.pt.123.part").write_bytes(b"half")
    run(tmp_path / "a", shards)
    assert not list(config.out.glob("*.part"))
