"""Images per second of the loader against images per second of the training step.

    python benchmarks/loader.py 'DIR/*.tar' [--workers 0 2] [--batch 32] [--backbone efficientnet_lite0]
    torchrun --standalone --nproc_per_node=2 benchmarks/loader.py 'DIR/*.tar' --step-only

Prints a JSON line per measurement, by the clock and by CPU time (of all threads; on a shared machine the clock says
little): reading alone, reading and decoding, the whole loader at each number of workers, the step (forward, backward,
update) with a frozen trunk, with its last stages, and with all of it. With torchrun the rate is that of all processes
together; divide by (processes * the rate of one) for the efficiency.
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
from phrase_loc.distributed import World, session
from phrase_loc.images import load_tensor
from phrase_loc.pairs.sources import open_source
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.phase import Phase
from phrase_loc.training.setup import open_data, prepare

SECONDS = 5.0


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
    with session() as world, tempfile.TemporaryDirectory() as own:
        folder = world.gather(own)[0]
        if not args.step_only:
            reading(args.shards, folder)
            for workers in args.workers:
                loading(args, world, folder, workers)
        for name, train_from in (("frozen", "none"), ("last stages", args.last), ("all", "all")):
            stepping(args, world, folder, name, train_from)
        world.barrier()


def reading(shards: str, folder: str) -> None:
    clock = Clock()
    source = open_source(shards, Path(folder) / "index")
    clock.tell("index", len(source), size=len(source))
    load_tensor(source.image(0))  # the import of torchvision
    repeat("read", lambda i: source.image(i % len(source)))
    repeat("read and decode", lambda i: load_tensor(source.image(i % len(source))))
    repeat("texts", lambda i: source.texts(i % len(source)))


def loading(args: argparse.Namespace, world: World, folder: str, workers: int) -> None:
    phase = a_phase(args, world, folder, "none", workers)
    batches = iter(phase._loader(0))
    next(batches)
    repeat("loader", lambda i: next(batches), args.batch, workers=workers)


def stepping(args: argparse.Namespace, world: World, folder: str, name: str, train_from: str) -> None:
    phase = a_phase(args, world, folder, train_from, 0)
    parts = [next(iter(phase._loader(0)))]
    phase.set_mode()
    phase._step(0, parts)
    world.barrier()
    clock, steps = Clock(), 6
    for step in range(steps):
        float(phase._step(step, parts).loss)
    if world.is_main:
        clock.tell("step", steps * args.batch, trunk=name, batch=args.batch, processes=world.size)


def a_phase(args: argparse.Namespace, world: World, folder: str, train_from: str, workers: int) -> Phase:
    changes = [
        f"out={folder}/run",
        f"data.shards={args.shards}",
        f"data.workers={workers}",
        "model.start=none",
        f"model.backbone={args.backbone}",
        f"precision={args.precision}",
        "vectors={source: free}",
        "vocabulary.min_count=20",
        f"phases=[{{epochs: 1000, batch: {args.batch}, train_from: {train_from}, crop: 0.8, jitter: 0.2}}]",
    ]
    Path(folder, "run").mkdir(exist_ok=True)
    config = load_config(TrainConfig, changes)
    return Phase(config, 0, prepare(config, world, open_data(config, world)), world, lambda fault: None)


def repeat(what: str, action: Callable[[int], object], images: int = 1, **facts: object) -> None:
    """Calls an action for some seconds and tells its rate."""
    clock, count = Clock(), 0
    while clock.seconds() < SECONDS:
        action(count)
        count += 1
    clock.tell(what, count * images, **facts)


class Clock:
    """Wall and CPU time from now on."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.wall

    def tell(self, what: str, images: int, **facts: object) -> None:
        """Prints a line."""
        facts |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
        rates = {
            "images_per_s": round(images / self.seconds(), 1),
            "images_per_cpu_s": round(images / (time.process_time() - self.cpu), 1),
        }
        print(json.dumps({"what": what, **rates, **facts}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
