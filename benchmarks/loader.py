"""Images per second of the loader against images per second of the training step.

    python benchmarks/loader.py 'DIR/*.tar' [--workers 0 2] [--batch 32] [--backbone efficientnet_lite0]
    torchrun --standalone --nproc_per_node=2 benchmarks/loader.py 'DIR/*.tar' --step-only

Prints a JSON line per measurement: reading alone, reading and decoding, the whole loader at each number of workers,
the step (forward, backward, update) with a frozen trunk, with its last stages, and with all of it. With torchrun the
rate is that of all processes together; divide by (processes * the rate of one) for the efficiency.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from phrase_loc.config import load_config
from phrase_loc.datasets.web_sources import open_source
from phrase_loc.datasets.web_transforms import decode
from phrase_loc.distributed import World, session
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.materials import prepare
from phrase_loc.training.phase import Phase

SECONDS = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--last", default="stage5", help="lowest stage of the run with the last stages")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--step-only", action="store_true")
    args = parser.parse_args()
    with session() as world, tempfile.TemporaryDirectory() as folder:
        if not args.step_only:
            reading(args.shards, folder)
            for workers in args.workers:
                loading(args, world, folder, workers)
        for name, train_from in (("frozen", "none"), ("last stages", args.last), ("all", "all")):
            stepping(args, world, folder, name, train_from)


def reading(shards: str, folder: str) -> None:
    begin = time.perf_counter()
    source = open_source(shards, Path(folder) / "index")
    tell("index", len(source) / (time.perf_counter() - begin), images=len(source))
    tell("read", rate(lambda i: source.image(i % len(source))))
    tell("read and decode", rate(lambda i: decode(source.image(i % len(source)))))
    tell("texts", rate(lambda i: source.texts(i % len(source))))


def loading(args: argparse.Namespace, world: World, folder: str, workers: int) -> None:
    phase = a_phase(args, world, folder, "none", workers)
    batches = iter(phase._loader(0))
    next(batches)
    tell("loader", args.batch * rate(lambda i: next(batches)), workers=workers)


def stepping(args: argparse.Namespace, world: World, folder: str, name: str, train_from: str) -> None:
    phase = a_phase(args, world, folder, train_from, 0)
    parts = [next(iter(phase._loader(0)))]
    phase.set_mode()
    phase._step(0, 1, parts)
    world.barrier()
    begin, steps = time.perf_counter(), 0
    while steps < 3 or (steps < 20 and time.perf_counter() - begin < SECONDS and world.size == 1):
        float(phase._step(steps, 1, parts).loss)
        steps += 1
    if world.is_main:
        speed = steps * args.batch / (time.perf_counter() - begin)
        tell("step", speed, trunk=name, batch=args.batch, processes=world.size)


def a_phase(args: argparse.Namespace, world: World, folder: str, train_from: str, workers: int) -> Phase:
    changes = [
        f"out={folder}/run",
        f"data.shards={args.shards}",
        f"data.workers={workers}",
        f"model.backbone={args.backbone}",
        f"precision={args.precision}",
        "vectors={source: free}",
        "vocabulary.min_count=20",
        f"phases=[{{epochs: 1000, batch: {args.batch}, train_from: {train_from}, crop: 0.8, jitter: 0.2}}]",
    ]
    Path(folder, "run").mkdir(exist_ok=True)
    config = load_config(TrainConfig, changes)
    return Phase(config, 0, prepare(config, world), world, lambda fault: None)


def rate(action: Callable[[int], object]) -> float:
    """Calls per second, over some seconds."""
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS / 3:
        action(count)
        count += 1
    return count / (time.perf_counter() - begin)


def tell(what: str, speed: float, **facts: object) -> None:
    facts |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    print(json.dumps({"what": what, "images_per_s": round(speed, 1), **facts}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
