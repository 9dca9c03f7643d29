"""What a map costs, in forward passes of the same network: ours beside the libraries that offer the same map.

    python benchmarks/attention.py --output docs/performance.md                        # everything installed
    python benchmarks/attention.py --nets resnet50 --tasks u1 c16 --against none       # a quick look

Tasks: u1, u16, u64 MWP of 1, 16, 64 units of one image; c1, c16, c64 the contrastive ones; b8 one unit of each
of 8 images, against a batch of 8; g1, g16 Grad-CAM of 1 and 16 units. Every sample is divided by the mean of
two plain forward passes of the folded network, one just before and one just after it, in CPU time (time of
all threads, so a shared machine matters less) and wall time; the table gives medians over interleaved rounds.
Memory is the peak above the loaded process. On a GPU: CUDA events, a trunk compiled or not, in bf16 or not.

TorchRay (`pip install --no-deps torchray`, CC BY-NC 4.0) is installed for the comparison alone; nothing of it
is in the project. Weights are random: they change no time.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from attention_networks import NETWORKS, Network
from attention_peers import PEERS, Tasks
from attention_report import write
from torch import Tensor

from phrase_loc.attention import contrastive_mwp, grad_cam, keep_positive, mwp
from phrase_loc.errors import choose

TASKS = ("u1", "c1", "u16", "c16", "u64", "c64", "b8", "g1", "g16")
SLOW = 8.0  # a task that costs more forward passes than this runs in at most two rounds


@dataclass
class Sample:
    """Measurements of one method at one task."""

    cpu: list[float] = field(default_factory=list)  # ratios to a forward pass
    wall: list[float] = field(default_factory=list)
    mebibytes: float | None = None
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """Median CPU-time ratio, None before the first round."""
        return statistics.median(self.cpu) if self.cpu else None


def ours(
    network: Network, images: Tensor, dtype: torch.dtype = torch.float32, compiled: bool = False
) -> Tasks:
    """The whole call for each task, image to maps: the trunk below the map, then the top-down pass."""
    below = torch.compile(network.below) if compiled else network.below
    above = keep_positive(network.above) if network.above is not None else lambda x: x
    first = images[:1]

    def activations(x: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return below(x).float()

    def task(method: Callable[..., Tensor], units: int, x: Tensor = first) -> Callable[[], Tensor]:
        return lambda: method(above, activations(x), network.units[:units])

    return {
        "u1": task(mwp, 1), "c1": task(contrastive_mwp, 1), "u16": task(mwp, 16),
        "c16": task(contrastive_mwp, 16), "u64": task(mwp, 64), "c64": task(contrastive_mwp, 64),
        "b8": task(mwp, 1, images), "g1": task(grad_cam, 1), "g16": task(grad_cam, 16),
    }  # fmt: skip


def contestants(network: Network, images: Tensor, against: list[str]) -> dict[str, Tasks]:
    """Every method at every task it can do; a library that is absent is left out with a line."""
    found = {"phrase_loc": ours(network, images)}
    if images.is_cuda:
        found["phrase_loc, trunk in bf16"] = ours(network, images, torch.bfloat16)
        found["phrase_loc, trunk compiled"] = ours(network, images, compiled=True)
    for name in against:
        try:
            if tasks := choose(PEERS, name, "library")(network, images):
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


def peak_memory(run: Callable[[], object], cuda: bool) -> float | None:
    """MiB above what the loaded process holds, at the worst moment of one call; None where nobody tells."""
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def kib(key: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))

    reset.write_text("5")  # the high-water mark starts anew
    before = kib("VmRSS")
    run()
    return (kib("VmHWM") - before) / 2**10


def measure(
    network: Network, tasks: list[str], against: list[str], rounds: int
) -> dict[str, dict[str, Sample]]:
    """Interleaved rounds of every method and task: {method: {task: sample}}."""
    images = torch.rand(8, 3, 224, 224, device=network.units.device)
    found = contestants(network, images, against)
    table = {name: {t: Sample() for t in tasks if t in of} for name, of in found.items()}
    with torch.inference_mode():  # warm up
        network.whole(images[:1])
        network.whole(images)
    for number in range(rounds + 1):  # round 0 measures memory and warms up
        for name, samples in table.items():
            for task, sample in samples.items():
                slow = sample.ratio is not None and sample.ratio > SLOW and number > 2
                if not sample.error and not slow:
                    one_round(network, images[: 8 if task == "b8" else 1], found[name][task], sample, number)
                print(f"\r{network.name} round {number} {name} {task} {sample.ratio} {sample.error}"[:110].ljust(110),
                      end="", file=sys.stderr)  # fmt: skip
    print(file=sys.stderr)
    return table


def one_round(
    network: Network, images: Tensor, run: Callable[[], object], sample: Sample, number: int
) -> None:
    """Memory in round 0; afterwards the ratio of one call to the forward passes around it."""

    def forward() -> None:
        with torch.inference_mode():
            network.whole(images)

    try:
        if number == 0:
            sample.mebibytes = peak_memory(run, images.is_cuda)
            return
        before, middle, after = (timed(f, images.is_cuda) for f in (forward, run, forward))
    except Exception as error:  # a peer that cannot do it is a line in the table, not the end of the run
        sample.error = type(error).__name__
        return
    sample.cpu.append(2 * middle[0] / (before[0] + after[0]))
    sample.wall.append(2 * middle[1] / (before[1] + after[1]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--against", nargs="*", default=list(PEERS), help=f"{', '.join(PEERS)}; or none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="default", help="folder of the model behind the network 'default'")
    parser.add_argument("--output", type=Path, help="Markdown file whose table and plot are to be replaced")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    against = [name for name in args.against if name != "none"]
    results = {}
    for name in args.nets:
        network = choose(NETWORKS, name, "network")(args.device, args.model)
        results[name] = (network.stage, measure(network, args.tasks, against, args.rounds))
        write(results, args, sys.argv)
        gc.collect()


if __name__ == "__main__":
    main()
