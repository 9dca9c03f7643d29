"""A small run that is killed in every window, before, while and after each file that it writes: the same weights.

python benchmarks/kills.py [--kills 100]        a row of docs/reliability.md (under two minutes on two cores)

The run has kept features, self-training, averaged weights, a best model and weights of phases. One is left alone and
tells its windows: (moment, file, lines of metrics.jsonl so far), from the hook of files.py. Another is killed with -9
at one window after the other, each time started again with the same command, and must end in the same files, bit for
bit.
"""

import argparse
import io
import json
import multiprocessing
import os
import re
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from phrase_loc import files
from phrase_loc.config import load_config
from phrase_loc.distributed import World
from phrase_loc.training.checkpoint import Checkpoint
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.run import train

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 24
SETTINGS = (
    *("log_every=1", "save_every=2", "data.workers=0", "threads=1", "ema=0.9", "average_of=[head,own]"),
    *("inference={image_sizes: [32], proposals: level_sets, grid: 16}", "validation.every=1"),
    "phases=[{name: head, epochs: 2, batch: 8, cache: true, lr: 0.01, warmup: 1, dropout: 0.2},"
    "{name: own, epochs: 2, batch: 8, cache: true, lr: 0.01, warmup: 1, train_from: stage2},"
    "{name: all, epochs: 1, batch: 8, accumulate: 2, train_from: all, lr: 0.003, warmup: 1, words: 4}]",
)
_TEMPORARY = re.compile(r"\.(?P<name>[^/]+)\.\d+-[0-9a-f]{8}\.part")

_CLEAN = multiprocessing.get_context("forkserver")
#: What its server imports, as far as it is there: of runs (an optimizer imports torch._dynamo), and of those who ask.
_IMPORTED = [
    *("torch._dynamo", "phrase_loc.training.run", "pytest"),
    *("benchmarks.kills", "tests.training.runs", "tests.test_streaming"),
]

#: (moment, file in the run's folder, lines of metrics.jsonl)
Window = tuple[str, str, int]


@dataclass(frozen=True)
class Outcome:
    """What came of a run that was killed.

    Attributes:
        windows: different (moment, file) in which the run left alone could have been killed.
        kills: how often the other was.
        different: files whose content differs at the end, and what else is wrong.
    """

    windows: int
    kills: int
    different: list[str]


def kill_everywhere(folder: Path, kills: int) -> Outcome:
    """Trains twice in a folder, once killed so many times in windows spread over the whole run."""
    shards = write_shard(folder / "pairs.tar")
    whole, killed = folder / "whole", folder / "killed"
    every: list[Window] = []
    run(whole, shards, every.append)
    done = sum(dies(killed, shards, window) for window in spread(every, kills))
    run(killed, shards, lambda window: None)
    return Outcome(len({window[:2] for window in every}), done, differences(whole, killed))


def spread(every: list[Window], count: int) -> list[Window]:
    """The first of each kind of window, and others evenly, in the order of the run; no more than `count`."""
    kinds: dict[tuple[str, str], int] = {}
    for place, window in enumerate(every):
        kinds.setdefault(window[:2], place)
    chosen = sorted(kinds.values())
    others = [place for place in range(len(every)) if place not in set(chosen)]
    chosen += _evenly(others, count - len(chosen))
    return [every[place] for place in _evenly(sorted(chosen), count)]


def _evenly(items: list[int], count: int) -> list[int]:
    count = max(0, min(count, len(items)))
    return [items[i * len(items) // count] for i in range(count)]


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs between the folders of two runs that have ended."""
    one, two = (Checkpoint.load(out / "checkpoint.pt") for out in (whole, killed))
    wrong = [name for name, value in one.model.items() if not torch.equal(value, two.model[name])]
    wrong += [] if one.best == two.best else ["best score"]
    for name in ("model/model.safetensors", "best/model.safetensors", "vocabulary.tsv"):
        wrong += [] if (whole / name).read_bytes() == (killed / name).read_bytes() else [name]
    wrong += [] if _losses(whole) == _losses(killed) else ["metrics.jsonl"]
    names = [sorted(path.name for path in out.iterdir()) for out in (whole, killed)]
    return wrong if names[0] == names[1] else [*wrong, f"files: {names[0]} and {names[1]}"]


def _losses(out: Path) -> list[tuple[int, float | None]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss")) for line in lines]


def run(out: Path, shards: Path, at: Callable[[Window], None]) -> None:
    """A run, or its continuation, that calls `at` at each of its windows."""
    changes = [f"out={out}", f"data.shards={shards}", *SETTINGS]
    config = load_config(TrainConfig, [str(ROOT / "configs" / "tiny.yaml"), *changes])
    unwatched, files.observer = (
        files.observer,
        lambda moment, path: at((moment, _name(path, out), _lines(out))),
    )
    try:
        train(config, World(), _measure)
    finally:
        files.observer = unwatched


def dies(out: Path, shards: Path, window: Window) -> bool:
    """Whether a run in a child process came to the window, and was killed there."""
    child = in_child(run, out, shards, partial(_kill_at, window))
    child.join()
    return child.exitcode == -signal.SIGKILL


def in_child(action: Callable[..., object], *arguments: Any) -> BaseProcess:
    """A child process that calls what it is given, all of which can be pickled; `exitcode` 0, 1 or that of a kill.

    It is forked from a server in which torch has not run: a child of this process would lack the threads that torch
    keeps here, and wait for them or refuse to train. The server imports once what takes seconds.
    """
    _CLEAN.set_forkserver_preload(_IMPORTED)
    child = _CLEAN.Process(target=action, args=arguments)
    child.start()
    return child


def _measure(model: torch.nn.Module, world: World) -> dict[str, float]:
    """A figure that rises and falls with the weights."""
    return {"pointing_any/accuracy": float(torch.sin(100 * model.head.lift.weight.detach().sum()))}


def _name(path: Path, out: Path) -> str:
    inside = path.relative_to(out) if path.is_relative_to(out) else path
    return _TEMPORARY.sub(r"\g<name>", inside.as_posix())


def _lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _kill_at(window: Window, found: Window) -> None:
    if found[:2] == window[:2] and found[2] >= window[2]:
        os.kill(os.getpid(), signal.SIGKILL)


def write_shard(path: Path) -> Path:
    """Coloured squares with captions, in WebDataset's form."""
    colours = {"red": (220, 30, 30), "green": (30, 170, 50), "blue": (40, 60, 220)}
    with tarfile.open(path, "w") as tar:
        for number in range(IMAGES):
            draw = np.random.default_rng(number)
            colour, ground = (str(draw.choice(list(colours))) for _ in range(2))
            picture, (x, y) = Image.new("RGB", (32, 32), colours[ground]), draw.integers(0, 16, 2)
            picture.paste(colours[colour], (int(x), int(y), int(x) + 16, int(y) + 16))
            content = io.BytesIO()
            picture.save(content, "PNG")
            told = f"A {colour} square on a {ground} table .\nThe square is {colour} .\n".encode()
            for suffix, data in (("png", content.getvalue()), ("txt", told)):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def main() -> int:
    """Prints a Markdown row; 1 when the two runs differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_everywhere(Path(folder), args.kills)
    print("| windows | kills | same weights | seconds |\n|---|---|---|---|")
    equal = "no" if outcome.different else "yes"
    print(f"| {outcome.windows} | {outcome.kills} | {equal} | {time.perf_counter() - begin:.0f} |")
    print("\n".join(outcome.different), file=sys.stderr)
    return 1 if outcome.different or outcome.kills < args.kills else 0


if __name__ == "__main__":
    sys.exit(main())
