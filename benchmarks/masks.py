"""How good outlines are where the truth is exact: the box, the level set of the map, and what GrabCut makes of it.

    python benchmarks/masks.py                     # 300 things, about ten seconds a set of things

Shapes are those of `shape_pictures` at 320 pixels. They are painted in one noisy colour, or cut out of one of the
package's photographs and laid on another, which is harder: colours mix. The boxes are the true ones, so that the
outline alone is measured. The map is what a grid says of a thing, the share of each of 10 x 10 cells that it
covers, with noise of a tenth of its maximum. Prints mean IoU with the exact mask and the 95 % interval over pictures.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import shape_pictures
from PIL import Image
from shape_pictures import Bools, Picture

from phrase_loc.masks import thing_mask

EXAMPLES = Path(__file__).resolve().parent.parent / "phrase_loc" / "examples"
SIDE, CELLS = 320, 10


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="0 chose the level and the rounds (default: 1)")
    args = parser.parse_args()
    shape_pictures.RADIUS = (30.0, 75.0)
    photographs = [
        np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE)))
        for path in sorted(EXAMPLES.glob("*.png"))
    ]
    print(
        "| things | pictures | things | box | level set | GrabCut | ms a thing |\n|---|---|---|---|---|---|---|"
    )
    for name in ("one colour", "cut out of photographs"):
        rows, spent = [], 0.0
        for index in range(args.pictures):
            rng = np.random.default_rng((args.seed, index, 9))
            picture = shape_pictures.draw(args.seed, index, (1, 4), SIDE)
            pixels = picture.pixels if name == "one colour" else pasted(picture, photographs, rng)
            found = []
            for thing in picture.things:
                heat = seen(thing.mask, rng)
                started = time.process_time()
                grown = thing_mask(heat, thing.box, (SIDE, SIDE), pixels)
                spent += time.process_time() - started
                level = thing_mask(heat, thing.box, (SIDE, SIDE))
                found.append([iou(one, thing.mask) for one in (boxed(thing.box), level, grown)])
            rows.append(found)
        cells = " | ".join(figure(rows, column) for column in range(3))
        count = sum(map(len, rows))
        print(f"| {name} | {len(rows)} | {count} | {cells} | {1000 * spent / count:.0f} |", flush=True)


def seen(mask: Bools, rng: np.random.Generator) -> np.ndarray:
    """A map of CELLS x CELLS."""
    step = SIDE // CELLS
    share = mask.reshape(CELLS, step, CELLS, step).mean((1, 3))
    return np.maximum(share + rng.normal(0, 0.1 * share.max(), share.shape), 0)


def pasted(picture: Picture, photographs: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The things of a picture cut out of photographs, on another photograph."""
    first, *others = rng.permutation(len(photographs))
    pixels = photographs[first].copy()
    for thing in picture.things:
        shift = rng.integers(0, SIDE, 2)
        source = np.roll(photographs[rng.choice(others)], tuple(shift), (0, 1))
        pixels[thing.mask] = source[thing.mask]
    return pixels


def boxed(box: tuple[int, int, int, int]) -> Bools:
    """The whole box."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def iou(one: Bools, other: Bools) -> float:
    """Of two masks."""
    return float((one & other).sum() / (one | other).sum())


def figure(rows: list[list[list[float]]], column: int) -> str:
    """Mean over things, and its interval by resampling pictures."""
    sums = np.array([[sum(thing[column] for thing in row), len(row)] for row in rows])
    drawn = np.random.default_rng(0).integers(0, len(rows), (2000, len(rows)))
    low, high = np.percentile(sums[drawn, 0].sum(1) / sums[drawn, 1].sum(1), [2.5, 97.5])
    return f"{sums[:, 0].sum() / sums[:, 1].sum():.2f} ({low:.2f} - {high:.2f})"


if __name__ == "__main__":
    main()
