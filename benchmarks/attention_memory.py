"""Peak memory of the tasks of `attention.py`, and whether the maps are the same ones; a process of its own.

    python benchmarks/attention_memory.py resnet50 torchray u1 c1

Started by `attention.py --measure memory` for each network and method, so that no other library's leftovers count.
Each task runs once to warm up, freed memory goes back to the system (`malloc_trim`), and the next call is watched:

    resident  growth of the process at its worst moment (VmHWM less VmRSS), MiB
    tensors   the most that tensors made by the call occupied at once, by the profiler's ledger, MiB

On a GPU both are the allocator's peak. Kept positive weights are part of the loaded process, not of the call.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from attention_methods import CHECKS, contestant
from attention_networks import NETWORKS, Network
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(name: str, method: str, *tasks: str, device: str = "cpu", model: str = "default") -> None:
    """Print {task: {"resident": MiB, "tensors": MiB, "difference": share of the maximum or null}}."""
    torch.set_num_threads(1)
    network = NETWORKS[name](device, model)
    images = torch.rand(8, 3, 224, 224, device=device)
    runs = contestant(network, images, method)
    with torch.inference_mode():
        network.whole(images[:1])
    found = {}
    for task in tasks:
        if task in runs:
            found[task] = watched(runs[task], device) | {
                "difference": difference(network, images, runs, task)
            }
    print(json.dumps(found))


def watched(run: Callable[[], object], device: str) -> dict[str, float | None]:
    """Peak MiB of one call after one that warms up."""
    run()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        return {"resident": peak, "tensors": peak}
    return {"resident": resident(run), "tensors": tensors(run)}


def resident(run: Callable[[], object]) -> float | None:
    """Growth of the process in MiB; None where the system does not tell (not Linux)."""
    if not RESET.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")  # the high-water mark starts anew
    before = _kib("VmRSS")
    run()
    return (_kib("VmHWM") - before) / 2**10


def _kib(key: str) -> int:
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key))


def tensors(run: Callable[[], object]) -> float:
    """Most MiB that tensors made by the call occupied at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as ledger:
        run()
    held = peak = 0
    events = (e for e in ledger.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def difference(
    network: Network, images: Tensor, runs: dict[str, Callable[[], object]], task: str
) -> float | None:
    """Largest difference from our own map of the same unit, both of sum 1, as a share of ours' maximum."""
    if task not in CHECKS:
        return None
    found = runs[task]()
    theirs = torch.as_tensor(found[0] if isinstance(found, list) else found).squeeze().clamp(min=0)
    ours = CHECKS[task](network, images[:1]).squeeze()
    if theirs.shape != ours.shape:
        return None  # scaled and resized for the eye
    theirs, ours = theirs / theirs.sum(), ours / ours.sum()
    return float((theirs - ours).abs().max() / ours.max())


if __name__ == "__main__":
    options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
    main(*(a for a in sys.argv[1:] if not a.startswith("--")), **options)
