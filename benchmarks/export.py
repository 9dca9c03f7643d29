"""How fast the exported graphs are beside the torch path, and how far their maps are from it.

    python benchmarks/export.py [--model default] [--words 1 16 64] [--rounds 15] [--threads 2]

One image at the model's sizes, each word a phrase of its own, image to maps. Medians of interleaved rounds in CPU
time (of all threads), which a busy machine stretches less than the clock; "forward" is the network below the map at
all input sizes. The last column is the largest difference from the torch path, relative to the maps' maximum.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phrase_loc.export import GRAPHS, ManyPhrases, export
from phrase_loc.localizer import PhraseLocalizer

Run = Callable[..., tuple[Tensor, ...]]


def main() -> None:
    """Export, run, print a Markdown table."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    localizer = PhraseLocalizer.from_pretrained(args.model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        runs = _runs(args.model, localizer, Path(folder), args.threads)
        print(
            f"\ntorch {torch.__version__}, {args.threads} threads, images of {localizer.settings.image_sizes}\n"
        )
        print("| words | " + " | ".join(f"{name}, CPU ms" for name in runs) + " | greatest difference |")
        print("|---" * (len(runs) + 2) + "|")
        for words in args.words:
            inputs = _inputs(localizer, words)
            times, difference = _measure(runs, inputs, args.rounds)
            print(f"| {words} | " + " | ".join(f"{t:.1f}" for t in times.values()) + f" | {difference:.1e} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--words", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def _runs(model: str, localizer: PhraseLocalizer, folder: Path, threads: int) -> dict[str, Run]:
    """Name -> image to maps. "forward" is the network below the map alone, at every size."""
    eager = ManyPhrases(localizer.model, localizer.settings).eval()
    below = localizer.model.below()
    runs: dict[str, Run] = {
        "forward": lambda images, *words: tuple(below(image) for image in images),
        "torch": eager,
        "torch.export": torch.export.load(
            export(model, folder / "torch", "torch") / GRAPHS["torch"]
        ).module(),
    }
    runs["onnxruntime"] = _onnx(export(model, folder / "onnx", "onnx") / GRAPHS["onnx"], threads)
    return runs


def _onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or it bills its neighbours
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(images: list[Tensor], *words: Tensor) -> tuple[Tensor, Tensor]:
        maps, scores = session.run(
            None, dict(zip(names, (t.numpy() for t in (*images, *words)), strict=True))
        )
        return torch.from_numpy(maps), torch.from_numpy(scores)

    return run


def _inputs(localizer: PhraseLocalizer, words: int) -> tuple[Any, ...]:
    ids, generator = torch.arange(words) % len(localizer.model.words), torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=generator)
        for side in localizer.settings.image_sizes
    ]
    return images, ids, torch.eye(words)


@torch.inference_mode()
def _measure(runs: dict[str, Run], inputs: tuple[Any, ...], rounds: int) -> tuple[dict[str, float], float]:
    expected = runs["torch"](*inputs)[0]
    others = [run(*inputs)[0] for name, run in runs.items() if name != "forward"]  # and warms up
    difference = max(float((found - expected).abs().max()) for found in others) / float(expected.max())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run(*inputs)
            times[name].append((time.process_time() - start) * 1000)
    return {name: statistics.median(found) for name, found in times.items()}, difference


if __name__ == "__main__":
    main()
