"""A run that is killed at any moment and started again ends in the same weights, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from benchmarks.kills import in_child
from phrase_loc import files
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.store import load_model, save_model
from phrase_loc.training import checkpoint as checkpoints
from phrase_loc.training.checkpoint import Checkpoint
from phrase_loc.training.class_words import LEARNED
from phrase_loc.training.logger import Logger
from phrase_loc.training.run import claimed
from tests.training.pairs import write_set, write_shard
from tests.training.runs import ROOT, assert_same_weights, losses, run

#: Everything that has a state: averaged weights, dropout, augmentation, sampled words.
FULL = (
    "ema=0.9",
    "save_every=2",
    "phases=[{name: head, epochs: 2, batch: 16, cache: true, lr: 0.01, warmup: 2, dropout: 0.2},"
    " {name: all, epochs: 2.5, batch: 16, accumulate: 2, train_from: stage2, lr: 0.003, crop: 0.6, jitter: 0.2,"
    " words: 8, losses: {sigmoid: 1.0}}]",
)


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def kill_after(child: BaseProcess, out: Path, steps: int, jitter: float) -> bool:
    """Kills a child with -9 when its run has logged `steps` steps and a moment more; whether it still lived."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if child.exitcode is not None:
            assert child.exitcode == 0
            return False
        if lines(out) >= steps:
            time.sleep(jitter)
            child.kill()
            child.join()
            return True
        time.sleep(0.002)
    raise AssertionError("the run neither went on nor ended")


def test_resume_after_kill_gives_the_same_weights_bit_for_bit(tmp_path: Path):
    shards = write_set(tmp_path / "set")
    run(tmp_path / "whole", shards, *FULL)
    total = len(losses(tmp_path / "whole"))
    out, kills, draw = tmp_path / "killed", 0, random.Random(3)
    for steps in (0, 1, 3, 7, 8, 11, 15, 10_000):
        child = in_child(run, out, shards, *FULL)
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
    before, config = losses(tmp_path / "a"), tmp_path / "a" / "model" / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"calibration": {"slope": 1.0, "offset": 0.5}}))  # by `calibrate`
    run(tmp_path / "a", shards)
    assert losses(tmp_path / "a") == before
    assert json.loads(config.read_text())["calibration"]
    model = load_model(tmp_path / "a" / "model")
    model.words.vectors.data += 1  # by `learn-classes`
    model.config = replace(model.config, card={**model.config.card, "words": f"Words {LEARNED}."})
    save_model(model, tmp_path / "a" / "model")
    learned = (tmp_path / "a" / "model" / "model.safetensors").read_bytes()
    run(tmp_path / "a", shards)
    assert (tmp_path / "a" / "model" / "model.safetensors").read_bytes() == learned
    run(tmp_path / "a", shards, "inference.gamma=0.9")  # which makes another model
    assert json.loads(config.read_text())["inference"]["gamma"] == 0.9
    (tmp_path / "a" / "model" / "model.safetensors").write_bytes(b"")
    run(tmp_path / "a", shards, "inference.gamma=0.9")
    load_model(tmp_path / "a" / "model")


def test_a_run_begun_anew_leaves_no_model_of_the_former_one(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    run(tmp_path / "a", shards)
    (tmp_path / "a" / "checkpoint.pt").unlink()
    run(tmp_path / "a", shards, "seed=7")
    run(tmp_path / "b", shards, "seed=7")
    models = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert models[0] == models[1]


@pytest.mark.parametrize("mine", ["model/mine.txt", "metrics.jsonl", "vocabulary.tsv"])
def test_files_of_no_run_stay(mine: str, tmp_path: Path):
    path = tmp_path / "a" / mine
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ConfigError, match=f"holds a {mine.split('/')[0]} and no run it would be of"):
        run(tmp_path / "a", write_set(tmp_path / "set", (20,)))
    assert path.read_text() == "mine"


def test_a_run_reads_its_words_from_its_own_folder(tmp_path: Path):
    """`phrase-loc vocab --output OUT/vocabulary.tsv` before the run: it writes no file of that name then."""
    words = tmp_path / "a" / "vocabulary.tsv"
    words.parent.mkdir()
    words.write_text("red\t9\nsquare\t5\n")
    run(words.parent, write_set(tmp_path / "set", (20,)), f"vocabulary.file={words}")
    assert words.read_text() == "red\t9\nsquare\t5\n"


def test_resume_does_not_depend_on_workers_or_when_checkpoints_are_written(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20, 13))
    run(tmp_path / "a", shards)
    run(tmp_path / "b", shards, "data.workers=2", "save_every=1")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_resume_under_other_settings_is_refused(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    run(tmp_path / "a", shards, "data.workers=0")
    for change, told in {
        "seed=1": "seed: 0 -> 1",
        "phases=[{batch: 16, cache: true, lr: 0.01, warmup: 2}]": "phases.number: 2 -> 1",
        "phases.head.losses={sigmoid: 2}": r"phases.0.losses: {'sigmoid': 1.0} -> {'sigmoid': 2.0}",
    }.items():
        with pytest.raises(ConfigError, match=told):
            run(tmp_path / "a", shards, change)
    run(tmp_path / "a", shards, "data.workers=1", "card={a: b}")


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "checkpoint.pt"
    Checkpoint(config={"a": 1}, step=1, model={"w": torch.ones(3)}).save(path)

    def half_written(state: object, file: Path) -> None:
        file.write_bytes(b"half")
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


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["checkpoint.pt", "after-head.pt"])
def test_a_checkpoint_with_a_changed_bit_is_refused(name: str, share: float, finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "out" / name
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name} .*copy it again, or delete the folder"):
        run(tmp_path / "run" / "out", str(tmp_path / "run" / "set" / "*.tar"), *AVERAGED)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended in out/, over the shards of set/."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder / "out", write_set(folder / "set", (20, 13)), *AVERAGED)
    return folder


AVERAGED = ("average_of=[head, all]",)


def test_a_truncated_checkpoint_and_one_of_other_parts_are_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    Checkpoint(config={"a": 1}, model={"w": torch.ones(3)}).save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[: len(whole) // 2], whole[:-32], whole[:-1], whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="delete the folder"):
            Checkpoint.load(path)
    torch.save({"version": 1, "config": {}, "colour": "red"}, path)
    with pytest.raises(DataError, match="other parts than a checkpoint"):
        Checkpoint.load(path)


def test_a_checkpoint_of_the_first_version_has_no_digest_and_goes_on(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    run(tmp_path / "a", shards)
    path = tmp_path / "a" / "checkpoint.pt"
    held = torch.load(path, weights_only=True)
    torch.save({**{k: v for k, v in held.items() if k != "data"}, "version": 1}, path)
    before = losses(tmp_path / "a")
    run(tmp_path / "a", shards)
    assert losses(tmp_path / "a") == before


def change_caption(folder: Path) -> None:
    path = folder / "00000.tar"
    path.write_bytes(
        path.read_bytes().replace(b"One square", b"Two square").replace(b"One circle", b"Two circle")
    )


@pytest.mark.parametrize(
    "change, told",
    [
        (change_caption, "other texts"),
        (lambda folder: (folder / "00001.tar").unlink(), "images: 33 -> 20"),
        (lambda folder: write_shard(folder / "00002.tar", range(50, 53)), "images: 33 -> 36"),
        (lambda folder: write_shard(folder / "00001.tar", range(60, 73)), "other texts"),
        (lambda folder: (folder / "00000.tar").rename(folder / "9.tar"), "other files"),
    ],
)
def test_a_run_goes_on_with_the_data_it_began_with(
    change: Callable, told: str, finished: Path, tmp_path: Path
):
    shutil.copytree(finished, tmp_path / "run")
    change(tmp_path / "run" / "set")
    out, shards = tmp_path / "run" / "out", str(tmp_path / "run" / "set" / "*.tar")
    before = (out / "vocabulary.tsv").read_bytes(), (out / "checkpoint.pt").read_bytes()
    with pytest.raises(DataError, match=rf"holds a run on other data \(.*{told}"):
        run(out, shards, *AVERAGED)
    assert ((out / "vocabulary.tsv").read_bytes(), (out / "checkpoint.pt").read_bytes()) == before


def test_a_copied_and_touched_data_folder_is_the_same_data(finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "run", copy_function=shutil.copyfile)
    before = losses(finished / "out")
    run(tmp_path / "run" / "out", str(tmp_path / "run" / "set" / "*.tar"), *AVERAGED)
    assert losses(tmp_path / "run" / "out") == before
    assert_same_weights(tmp_path / "run" / "out", finished / "out")


def test_other_words_in_the_vocabulary_file_are_refused(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    words = tmp_path / "words.txt"
    words.write_text("red\nsquare\n")
    run(tmp_path / "a", shards, f"vocabulary.file={words}", "data.max_faults=1")
    words.write_text("square\nred\n")
    with pytest.raises(DataError, match=r"other vocabulary"):
        run(tmp_path / "a", shards, f"vocabulary.file={words}", "data.max_faults=1")


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    with files.lock(tmp_path / "lock-of-another-folder", ""), claimed(tmp_path / "a"):
        (tmp_path / "a" / ".metrics.jsonl.1-0123abcd.part.jsonl").write_text("half")
        with pytest.raises(
            DataError, match=r"another training is at work in .*/a; wait for it, or give another"
        ):
            run(tmp_path / "a", shards)
        run(tmp_path / "b", shards)
        assert len(list((tmp_path / "a").iterdir())) == 2  # nothing of the first was touched
    run(tmp_path / "a", shards)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert not (tmp_path / "a" / ".lock").exists()


def test_ctrl_c_says_where_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    shards = write_set(tmp_path / "set", (20, 13))

    def interrupt(logger: Logger, step: int, values: dict) -> None:
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Logger, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", shards, "save_every=4")
    assert "the same command goes on after step 4" in caplog.text
    assert Checkpoint.load(tmp_path / "a" / "checkpoint.pt").done == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_ends_the_step_saves_and_goes_on_to_the_same_weights(tmp_path: Path, workers: int):
    """As in a terminal, where the workers get the signal too."""
    shards = write_set(tmp_path / "set", (20, 13))
    told = (f"data.workers={workers}", "save_every=1000", "phases.all.epochs=40")
    command = [sys.executable, str(ROOT / "train.py"), "configs/tiny.yaml", f"data.shards={shards}", *told]
    command += [f"out={tmp_path / 'a'}", "log_every=1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": env, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as stopped:
        said = ""
        while "phase all  loss" not in said:
            said = stopped.stderr.readline()
            assert said, "the run ended"
        os.killpg(stopped.pid, signal.SIGINT)
        rest = stopped.stderr.read()
    assert stopped.returncode == 130, rest
    done = Checkpoint.load(tmp_path / "a" / "checkpoint.pt").done
    assert f"the same command goes on after step {done}\n" in rest
    assert "Traceback" not in rest
    assert done > 6
    run(tmp_path / "a", shards, *told)
    run(tmp_path / "b", shards, *told[1:])
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_workers_that_outlive_a_killed_run_do_not_hold_its_folder(tmp_path: Path):
    """DataLoader's notice after seconds that their parent is gone; torchrun starts again at once."""
    code = f"""
import os, signal, time
from phrase_loc import files
with files.lock({str(tmp_path / ".lock")!r}, "held"):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, b"alive")
        time.sleep(5)
        os._exit(0)
    os.read(read, 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    assert killed.returncode == -signal.SIGKILL
    with files.lock(tmp_path / ".lock", "held"):
        pass
