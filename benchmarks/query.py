"""What a query costs, from the file to the box, once the model is loaded.

    python benchmarks/query.py [--model default] [--image FILE] [--rounds 20] [--default-malloc]

Prints medians in milliseconds of decoding, preparing (resizing, proposals), looking (the trunk) and locating 1, 8,
16 and 64 phrases on a 500 x 375 photograph, each also as a ratio to the trunk at the settings' input sizes. Memory is
kept between photographs as by `phrase-loc query`; with --default-malloc as in a program that says nothing of it.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from phrase_loc.cli.query import KEEP_MEMORY, set_malloc
from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer, prepare

EXAMPLE = Path(__file__).resolve().parent.parent / "phrase_loc" / "examples" / "coffee.png"


def median_ms(action: Callable[[], object], rounds: int) -> float:
    """Median wall-clock milliseconds of a call, after two to warm up."""
    times = []
    for number in range(rounds + 2):
        start = time.perf_counter()
        action()
        if number >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--default-malloc", action="store_true", help="glibc gives memory back as it likes")
    args = parser.parse_args()
    if not args.default_malloc:
        set_malloc(KEEP_MEMORY)
    localizer = PhraseLocalizer.from_pretrained(args.model)
    buffer = io.BytesIO()
    load_image(args.image).resize((500, 375)).save(buffer, "JPEG", quality=92)
    content = buffer.getvalue()
    picture = load_image(content)
    ready = prepare(picture, localizer.settings)
    scene = localizer.look_at([ready])[0]
    words = list(localizer.vocabulary.words[:200])
    look = median_ms(lambda: localizer.look_at([ready]), args.rounds)
    rows = [
        ("decode", median_ms(lambda: load_image(content), args.rounds)),
        ("resize and propose", median_ms(lambda: prepare(picture, localizer.settings), args.rounds)),
        ("look (trunk)", look),
    ]
    for count in (1, 8, 16, 64):
        phrases = [f"a {words[2 * i]} {words[2 * i + 1]}" for i in range(count)]
        rows.append(
            (f"maps of {count} phrases", median_ms(lambda p=phrases: localizer.attend(scene, p), args.rounds))
        )
        rows.append(
            (f"locate {count} phrases", median_ms(lambda p=phrases: localizer.locate(scene, p), args.rounds))
        )
    eight = [f"a {w}" for w in words[:8]]
    whole = median_ms(
        lambda: localizer.locate(localizer.look(Image.open(io.BytesIO(content))), eight), args.rounds
    )
    rows.append(("whole query, 8 phrases", whole))
    print(
        f"{torch.get_num_threads()} threads, input sizes {localizer.settings.image_sizes}, {args.rounds} rounds"
    )
    print("\n| step | ms | share of a forward pass |\n|---|---|---|")
    for name, ms in rows:
        print(f"| {name} | {ms:.1f} | {ms / look:.2f} |")


if __name__ == "__main__":
    main()
