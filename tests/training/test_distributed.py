"""Two processes with torchrun on the CPU: the loss curve of one, and going on after a rank was lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.pairs import write_set
from tests.training.runs import KEPT, losses, run, started_model, weights

ROOT = Path(__file__).resolve().parents[2]
#: 57 images in shards of 30, 7 and 20, a batch of 15: the last batch of an epoch has 12, and 15 is odd.
CASES = {
    "sigmoid": (
        "phases=[{name: head, epochs: 1, batch: 15, cache: true, lr: 0.01, warmup: 2},"
        " {name: all, epochs: 1.5, batch: 15, train_from: all, lr: 0.003, warmup: 2, clip: 0.5, sizes: [32, 24]}]",
    ),
    "sampled": (
        "ema=0.9",
        "phases=[{epochs: 2, batch: 15, train_from: stage2, lr: 0.003, words: 8, accumulate: 2,"
        " losses: {sigmoid: 1.0}}]",
    ),
}
RUNS = [(case, precision) for case in CASES for precision in ("float64", "float32")]
LOST = "|".join(["lost", "save_every=4", "precision=float64", *CASES["sigmoid"]])


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of two processes, the last of which lost a rank and was restarted."""
    folder = tmp_path_factory.mktemp("two")
    shards = write_set(folder / "set")
    cases = ["|".join([f"{case}-{p}", f"precision={p}", *CASES[case]]) for case, p in RUNS]
    start = started_model(folder / "start")
    cases.append("|".join(["few", "precision=float64", f"model.start={start}", *KEPT]))
    command = [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "--max-restarts=1",
        ),
        *(str(ROOT / "tests/training/two_processes.py"), str(folder / "out"), shards, *cases, LOST),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    told = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert told.returncode == 0, told.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case, precision", RUNS)
def test_distributed_loss_curve_is_that_of_one_process(ran: Path, case: str, precision: str, tmp_path: Path):
    run(tmp_path, str(ran / "set" / "*.tar"), f"precision={precision}", *CASES[case])
    one, two = losses(tmp_path), losses(ran / "out" / f"{case}-{precision}")
    assert len(one) == len(two) >= 8
    tolerance = 1e-9 if precision == "float64" else 1e-4
    assert two == pytest.approx(one, rel=tolerance)
    if precision == "float64":
        a, b = weights(tmp_path), weights(ran / "out" / f"{case}-{precision}")
        assert all(
            torch.allclose(a[name], b[name], rtol=1e-9, atol=1e-9)
            for name in a
            if a[name].is_floating_point()
        )


def test_two_processes_learn_the_new_words_of_one(ran: Path, tmp_path: Path):
    run(tmp_path, str(ran / "set" / "*.tar"), "precision=float64", f"model.start={ran / 'start'}", *KEPT)
    assert losses(ran / "out" / "few") == pytest.approx(losses(tmp_path), rel=1e-9)
    assert torch.allclose(weights(tmp_path)["words.vectors"], weights(ran / "out" / "few")["words.vectors"])
    found, other = ((out / "held_out.json").read_text() for out in (tmp_path, ran / "out" / "few"))
    assert found == other


def test_distributed_run_goes_on_after_a_rank_was_lost(ran: Path):
    assert (ran / "out" / "died").exists()
    assert losses(ran / "out" / "lost") == pytest.approx(losses(ran / "out" / "sigmoid-float64"), rel=1e-12)
    assert (ran / "out" / "lost" / "model" / "config.json").is_file()
