"""How a stream of photographs grows: with phrases an image, with image size, with workers; and what memory does.

    python benchmarks/streaming.py grow                        # rates: 1 to 256 phrases, sizes, workers
    python benchmarks/streaming.py memory --images 10000       # resident memory at every 500th photograph

Photographs are the package's examples, resized and shifted so that each file is another picture, written as JPEG to a
scratch folder. What is measured is `phrase_loc.streaming.answer_many`, as `phrase-loc query FOLDER --phrases FILE`
runs it, into JSON Lines. `memory` asks a small input size (--side) unless told otherwise: the claim is that nothing
piles up with the number of photographs, not how much one of them takes. Prints Markdown tables.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from phrase_loc.images import load_image
from phrase_loc.localizer import Inference, PhraseLocalizer, Prepared
from phrase_loc.models.model import TextToRegion
from phrase_loc.streaming import Question, answer_many
from phrase_loc.structures import Scene

EXAMPLES = Path(__file__).resolve().parent.parent / "phrase_loc" / "examples"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["grow", "memory"])
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, help="photographs a measurement (default: 24; memory 10000)")
    parser.add_argument("--side", type=int, default=160, help="input size of `memory` (default: %(default)s)")
    parser.add_argument("--proposals", default="default", help="of `memory` (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of `memory` (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    localizer = PhraseLocalizer.from_pretrained(args.model, device=args.device)
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, batches of {args.batch_size}\n")
    with tempfile.TemporaryDirectory() as folder:
        if args.what == "grow":
            grow(localizer, Path(folder), args.images or 24, args.batch_size)
        else:
            small = localizer.with_settings(image_sizes=[args.side], proposals=args.proposals)
            memory(small, Path(folder), args.images or 10_000, args.workers, args.batch_size)


def grow(localizer: PhraseLocalizer, folder: Path, images: int, batch: int) -> None:
    """Rates with one thing changed at a time, around 500 x 375 photographs, 16 phrases and no worker."""
    words = list(localizer.vocabulary.words[:512])
    phrases = [f"a {words[2 * i]} {words[2 * i + 1]}" for i in range(256)]
    files = {size: photographs(folder, images, size) for size in ((320, 240), (500, 375), (1600, 1200))}
    usual = files[500, 375]
    rate(localizer, usual[:batch], phrases[:16], folder, 0, batch)  # warm up
    print("| photographs | phrases | workers | images/s | phrases/s |\n|---|---|---|---|---|")
    for count in (1, 4, 16, 64, 256):
        row("500 x 375", count, 0, rate(localizer, usual, phrases[:count], folder, 0, batch))
    for size in ((320, 240), (1600, 1200)):
        found = rate(localizer, files[size], phrases[:16], folder, 0, batch)
        row(f"{size[0]} x {size[1]}", 16, 0, found)
    for workers in (1, 2):
        row("500 x 375", 16, workers, rate(localizer, usual, phrases[:16], folder, workers, batch))


def row(size: str, phrases: int, workers: int, images_a_second: float) -> None:
    """A line of the table."""
    print(
        f"| {size} | {phrases} | {workers} | {images_a_second:.2f} | {images_a_second * phrases:.1f} |",
        flush=True,
    )


def rate(
    localizer: PhraseLocalizer,
    files: Sequence[Path],
    phrases: Sequence[str],
    folder: Path,
    workers: int,
    batch: int,
) -> float:
    """Photographs a second, starting the workers included."""
    output = folder / "answers.jsonl"
    questions = [Question(str(file), tuple(phrases)) for file in files]
    start = time.perf_counter()
    answer_many(localizer, questions, output, batch_size=batch, workers=workers)
    seconds = time.perf_counter() - start
    output.unlink()
    return len(files) / seconds


def photographs(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """`count` different JPEG files of (W, H) pixels."""
    shown = [load_image(path).resize(size) for path in sorted(EXAMPLES.glob("*.png"))]
    place = folder / f"{size[0]}x{size[1]}"
    place.mkdir()
    files = []
    for number in range(count):
        picture = np.roll(np.asarray(shown[number % len(shown)]), (7 * number, 11 * number), (0, 1))
        files.append(place / f"{number:06d}.jpg")
        Image.fromarray(picture).save(files[-1], quality=85)
    return files


def memory(localizer: PhraseLocalizer, folder: Path, images: int, workers: int, batch: int) -> None:
    """Resident MiB of this process at every 500th photograph, and its range after the first tenth."""
    files = photographs(folder, images, (240, 180))
    phrases = tuple(f"a {word}" for word in localizer.vocabulary.words[:4])
    watched = Watched(localizer.model, localizer.settings)
    questions = [Question(str(file), phrases) for file in files]
    print("| photographs | resident MiB |\n|---|---|")
    start = time.perf_counter()
    counts = answer_many(watched, questions, folder / "answers.jsonl", batch_size=batch, workers=workers)
    seconds = time.perf_counter() - start
    settled = [m for number, m in watched.resident if number >= images // 10]
    print(
        f"\n{counts}, {seconds:.0f} s; from {min(settled):.0f} to {max(settled):.0f} MiB after the first tenth"
    )


class Watched(PhraseLocalizer):
    """Notes the process' resident memory at every 500th photograph it looks at."""

    def __init__(self, model: TextToRegion, settings: Inference) -> None:
        super().__init__(model, settings)
        self.seen = 0
        self.resident: list[tuple[int, float]] = []  # photographs before, MiB

    def look_at(self, pictures: Sequence[Prepared]) -> list[Scene]:
        """As ever."""
        before, self.seen = self.seen, self.seen + len(pictures)
        if self.seen // 500 > before // 500 or before == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.append((before, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            print(f"| {before} | {self.resident[-1][1]:.0f} |", flush=True)
        return super().look_at(pictures)


if __name__ == "__main__":
    main()
