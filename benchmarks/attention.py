"""What a map costs, in forward passes of the same network: ours beside the libraries that offer the same map.

    python benchmarks/attention.py --output docs/performance.md                        # everything installed
    python benchmarks/attention.py --nets resnet50 --tasks u1 c16 --against none       # a quick look
    python benchmarks/attention.py --measure none --output docs/performance.md         # tables and plot anew

Tasks: u1, u16, u64 MWP of 1, 16, 64 units of one image; c1, c16, c64 the contrastive ones; b8 one unit of each
of 8 images, against a batch of 8; g1, g16 Grad-CAM of 1 and 16 units. Every sample is divided by the mean of
two plain forward passes of the folded network, one just before and one just after it, in CPU time (time of
all threads, so a shared machine matters less) and wall time; the table gives medians over interleaved rounds.
Memory: see `attention_memory.py`. On a GPU: CUDA events, a trunk compiled or not, in bf16 or not.

Measurements of each network are kept beside the output as soon as they are made (`--results`), so networks may be
measured one by one, time on a quiet machine and memory on a busy one. TorchRay (`pip install --no-deps torchray`,
CC BY-NC 4.0) is installed for the comparison alone; nothing of it is in the project. Weights of the classifiers are
random: they change no time.
"""

import argparse
import gc
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from attention_methods import OURS, contestant
from attention_networks import NETWORKS, Network
from attention_peers import PEERS, Tasks
from attention_report import GOALS, Sample, write
from torch import Tensor

from phrase_loc.errors import choose

TASKS = ("u1", "c1", "u16", "c16", "u64", "c64", "b8", "g1", "g16")
WHOLE = [name for name in OURS if "trunk" not in name]
TRUNKS = [name.removeprefix("phrase_loc, trunk ") for name in OURS if "trunk" in name]
SLOW = 8.0  # a task that costs more forward passes than this runs in at most two rounds


def contestants(network: Network, images: Tensor, methods: list[str]) -> dict[str, Tasks]:
    """Every method at every task it can do; a library that is absent is left out with a line."""
    found = {}
    for name in methods:
        try:
            if tasks := contestant(network, images, name):
                found[name] = tasks
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def timed(run: Callable[[], object], cuda: bool) -> tuple[float, float]:
    """CPU and wall seconds of one call; on a GPU the time between two events, twice."""
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return (start.elapsed_time(end) / 1e3,) * 2
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure_time(network: Network, tasks: list[str], methods: list[str], rounds: int) -> dict[str, Any]:
    """Interleaved rounds of every method and task: {method: {task: sample}}."""
    images = torch.rand(8, 3, 224, 224, device=network.units.device)
    found = contestants(network, images, methods)
    table = {name: {t: Sample() for t in tasks if t in of} for name, of in found.items()}
    with torch.inference_mode():  # warm up
        network.whole(images[:1])
        network.whole(images)
    for number in range(rounds + 1):  # round 0 warms up
        for name, samples in table.items():
            for task, sample in samples.items():
                if wanted(name, task, sample, number):
                    one_round(
                        network, images[: 8 if task == "b8" else 1], found[name][task], sample, number > 0
                    )
        print(f"{network.name}: round {number} of {rounds}, {time.strftime('%H:%M:%S')}", file=sys.stderr)
    return {name: {t: s.kept() for t, s in samples.items()} for name, samples in table.items()}


def wanted(method: str, task: str, sample: Sample, number: int) -> bool:
    """Loops of a peer's call need no warming up of their own, and slow ones only two rounds."""
    if sample.error or (number == 0 and task.endswith("16") and method not in OURS):
        return False
    return number <= 2 or (sample.ratio or 0) <= SLOW


def one_round(
    network: Network, images: Tensor, run: Callable[[], object], sample: Sample, keep: bool
) -> None:
    """The ratio of one call to the forward passes around it."""

    def forward() -> None:
        with torch.inference_mode():
            network.whole(images)

    try:
        before, middle, after = (timed(f, images.is_cuda) for f in (forward, run, forward))
    except Exception as error:  # a peer that cannot do it is a cell of the table, not the end of the run
        sample.error = type(error).__name__
        return
    if keep:
        sample.cpu.append(2 * middle[0] / (before[0] + after[0]))
        sample.wall.append(2 * middle[1] / (before[1] + after[1]))
        sample.forward_ms.append(500 * (before[1] + after[1]))


def measure_memory(name: str, tasks: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of each method in a process of its own; a peer's loops need what their one call needs."""
    script, found = Path(__file__).with_name("attention_memory.py"), {}
    for method in [*args.ours, *args.against]:
        asked = [t for t in tasks if method in OURS or not t.endswith(("16", "64"))]
        command = [sys.executable, script, name, method, *asked]
        command += [f"--device={args.device}", f"--model={args.model}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no word"])[-1]
            print(f"memory of {method} on {name} is left out: {reason}", file=sys.stderr)
            continue
        if peaks := json.loads(done.stdout.splitlines()[-1]):
            found[method] = peaks
        print(f"{name}: memory of {method}, {time.strftime('%H:%M:%S')}", file=sys.stderr)
    return found


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """By what the times were taken, kept beside them."""
    return {
        "command": f"python benchmarks/attention.py {shlex.join(sys.argv[1:])}",
        "threads": args.threads,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else _processor(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--ours", nargs="+", default=WHOLE, choices=WHOLE)
    parser.add_argument("--against", nargs="*", default=list(PEERS), help=f"{', '.join(PEERS)}; or none")
    parser.add_argument(
        "--measure", nargs="+", default=["time", "memory"], choices=["time", "memory", "none"]
    )
    parser.add_argument("--trunks", nargs="*", choices=TRUNKS, help="default: all on a GPU, two on a CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="default", help="folder of the model behind the network 'default'")
    parser.add_argument("--output", type=Path, help="Markdown file whose table and plot are to be replaced")
    parser.add_argument("--results", type=Path, help="default: performance_attention.json beside the output")
    args = parser.parse_args()
    if args.trunks is None:
        args.trunks = TRUNKS if args.device.startswith("cuda") else ["channels last", "in bf16"]
    args.against = [name for name in args.against if name != "none"]
    if args.results is None and args.output is not None:
        args.results = args.output.with_name("performance_attention.json")
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    kept = args.results is not None and args.results.exists()
    results: dict[str, Any] = json.loads(args.results.read_text(encoding="utf-8")) if kept else {}
    methods = [*args.ours, *(f"phrase_loc, trunk {t}" for t in args.trunks), *args.against]
    for name in args.nets if args.measure != ["none"] else []:
        network = choose(NETWORKS, name, "network")(args.device, args.model)
        entry = results.setdefault(name, {}) | {"stage": network.stage}
        if "time" in args.measure:
            entry |= {"facts": facts(args)}
            entry |= {"time": measure_time(network, args.tasks, methods, args.rounds)}
        del network
        gc.collect()
        if "memory" in args.measure:
            entry |= {"memory": measure_memory(name, args.tasks, args)}
        results[name] = entry
        if args.results is not None:
            args.results.write_text(json.dumps(results, indent=1), encoding="utf-8")
    write({name: results[name] for name in GOALS if name in results}, args.output)


if __name__ == "__main__":
    main()
