"""Runs of configs/tiny.yaml for tests, in this process or, by `benchmarks.kills.in_child`, in another one."""

import json
from pathlib import Path

import torch

from phrase_loc.config import load_config
from phrase_loc.distributed import World
from phrase_loc.models.build import create
from phrase_loc.models.store import save_model
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.checkpoint import Checkpoint
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.run import train

ROOT = Path(__file__).resolve().parents[2]
#: Settings of a run that keeps the model it goes on from and learns new words.
KEPT = (
    "phases=[{name: words, steps: 12, batch: 8, cache: true, sizes: [32], mirror: 0, lr: 0.05, weight_decay: 0.5, "
    "new_words_only: true}]",
    *("few={below: 100, min_count: 3}", "save_every=2"),
)
WORDS = ("red", "green", "square", "snow")  # of `pairs.draw`, whose blue, yellow, circle, night, sand are new


def settings(out: Path, shards: str, *changes: str) -> TrainConfig:
    """The tiny config with every step logged."""
    fixed = [f"out={out}", f"data.shards={shards}", "log_every=1", "data.workers=0", "threads=1"]
    return load_config(TrainConfig, [str(ROOT / "configs" / "tiny.yaml"), *fixed, *changes])


def run(out: Path, shards: str, *changes: str) -> Path:
    """A run in this process."""
    return train(settings(out, shards, *changes), World())


def losses(out: Path) -> list[float]:
    """The loss of each step, in order."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the last checkpoint."""
    return Checkpoint.load(out / "checkpoint.pt").model


def assert_same_weights(a: Path, b: Path) -> None:
    """Bit for bit."""
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def started_model(folder: Path) -> Path:
    """A tiny model with rows of its own, four words, and 'blue' and 'moon' out of its vocabulary."""
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "weights": None, "image_size": 32, "hidden": 16}
    model = create(Vocabulary(WORDS, (4, 3, 2, 1)), torch.randn(4, 17), free=True, **settings)
    model.words.set_extra(torch.randn(2, 17))
    model.extra = ("blue", "moon")
    model.config.calibration.update(slope=2.0, offset=1.0)
    return save_model(model, folder)
