"""Generated pictures whose right answer is known: coloured shapes on textured grounds, their captions, boxes, masks.

    picture = draw(seed=0, index=7)
    picture.pixels                      (72, 72, 3) uint8
    picture.caption                     "a red star and a blue ring": some of the things, not all
    picture.things[0].mask, .box        visible pixels (72, 72), and the box around them, xyxy, half-open

A picture is a function of `seed` and `index` alone. Captions name things and say no places, so what is trained on
them has seen no box.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

SIDE = 72
COLOURS = {
    "red": (214, 40, 40), "green": (50, 160, 60), "blue": (45, 85, 210),
    "yellow": (235, 205, 40), "purple": (150, 55, 170), "cyan": (60, 195, 205),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
WORDS = (*COLOURS, *SHAPES)
RADIUS = (7.0, 15.0)  # of the circle around a thing, in pixels
TURN = 0.35  # most that a thing leans, in radians
NAMED = 0.7  # chance that the caption names a thing
BARE = 0.15  # chance that it says the shape without the colour


@dataclass(frozen=True)
class Thing:
    """One shape of a picture: its two words and the pixels of it that can be seen, (H, W) bool."""

    colour: str
    shape: str
    mask: Bools

    @property
    def words(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """The smallest box around the mask: x1, y1, x2, y2, of which the last two lie outside."""
        rows, columns = (np.flatnonzero(self.mask.any(axis)) for axis in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class Picture:
    """`pixels` (H, W, 3) uint8, the things in them from the back to the front, and a caption of some."""

    pixels: NDArray[np.uint8]
    things: tuple[Thing, ...]
    caption: str

    def named(self, words: tuple[str, ...]) -> list[Thing]:
        """The things that all the words are true of."""
        return [thing for thing in self.things if set(words) <= set(thing.words)]


def draw(seed: int, index: int, things: tuple[int, int] = (2, 6), side: int = SIDE) -> Picture:
    """The picture number `index` of a seed, square, with as many things as a number between the two of `things`."""
    rng = np.random.default_rng((seed, index))
    pixels = _ground(rng, side)
    places = _places(rng, int(rng.integers(things[0], things[1] + 1)), side)
    masks: list[Bools] = []
    words = []
    for x, y, radius in places:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        mask = _inside(shape, *_turned(side, x, y, radius, rng.uniform(-TURN, TURN) - np.pi / 2))
        paint = np.array(COLOURS[colour]) + rng.normal(0, 12, 3) + rng.normal(0, 8, (side, side, 1))
        pixels = np.where(mask[..., None], paint, pixels)
        masks = [*(other & ~mask for other in masks), mask]
        words.append((colour, shape))
    seen = tuple(Thing(*pair, mask) for pair, mask in zip(words, masks, strict=True))
    noisy = pixels + rng.normal(0, 4, pixels.shape)
    return Picture(noisy.clip(0, 255).astype(np.uint8), seen, _caption(rng, seen))


def grid(seed: int, index: int) -> tuple[Picture, ...]:
    """Four pictures of half the side with one thing each, all words different, for a 2 x 2 montage in row order.

    The things have the sizes of `draw`, so that a network sees nothing new but the seams.
    """
    rng = np.random.default_rng((seed, index, 4))
    found: list[Picture] = []
    while len(found) < 4:
        one = draw(seed, int(rng.integers(1 << 30)), (1, 1), SIDE // 2)
        taken = {word for picture in found for word in picture.things[0].words}
        if not taken & set(one.things[0].words):
            found.append(one)
    return tuple(found)


def montage(four: tuple[Picture, ...]) -> NDArray[np.uint8]:
    """Four pictures as one, (2 H, 2 W, 3)."""
    a, b, c, d = (picture.pixels for picture in four)
    return np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])


def _places(rng: np.random.Generator, number: int, side: int) -> list[tuple[float, float, float]]:
    """Centres and radii, x, y, r, of things that overlap a little at most; fewer where there is no room."""
    found: list[tuple[float, float, float]] = []
    for _ in range(20 * number):
        radius = rng.uniform(*RADIUS)
        x, y = rng.uniform(radius, side - radius, 2)
        if all(np.hypot(x - a, y - b) > 0.85 * (radius + r) for a, b, r in found):
            found.append((x, y, radius))
        if len(found) == number:
            break
    return found


def _turned(side: int, x: float, y: float, radius: float, angle: float) -> tuple[Floats, Floats]:
    """Coordinates of all pixels in the frame of a thing: its centre is 0, its radius 1."""
    down, right = np.mgrid[:side, :side] + 0.5
    u, v = (right - x) / radius, (down - y) / radius
    return u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)


def _inside(shape: str, u: Floats, v: Floats) -> Bools:
    """Which places a shape within the unit circle covers."""
    far = np.hypot(u, v)
    if shape == "circle":
        return far < 0.9
    if shape == "ring":
        return (far < 1) & (far > 0.55)
    if shape == "square":
        return np.maximum(abs(u), abs(v)) < 0.75
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 0.95)
    corners, inner = (3, 0.5) if shape == "triangle" else (5, 0.42)
    step = np.pi / corners  # between a corner and the next notch (of a triangle, the middle of a side)
    turn = np.abs((np.arctan2(v, u) + step) % (2 * step) - step)  # angle from the nearest corner
    # the straight line from the corner at radius 1 to the notch at radius `inner`
    edge = inner * np.sin(step) / (inner * np.sin(step - turn) + np.sin(turn))
    return far < edge


def _ground(rng: np.random.Generator, side: int) -> Floats:
    """A pale or dark texture without a clear colour: stripes, checks, blots or a slope, (side, side, 3)."""
    first, second = rng.uniform(40, 215, (2, 1)) + rng.uniform(-22, 22, (2, 3))
    down, right = np.mgrid[:side, :side] / side
    angle, pitch, phase = rng.uniform(0, np.pi), rng.uniform(3, 12), rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * right + np.sin(angle) * down
    across = np.cos(angle) * down - np.sin(angle) * right
    kind = rng.integers(4)
    if kind == 0:
        share = (np.sin(2 * np.pi * pitch * along + phase) > 0) * 1.0
    elif kind == 1:
        share = (np.sin(2 * np.pi * pitch * along + phase) * np.sin(2 * np.pi * pitch * across) > 0) * 1.0
    elif kind == 2:
        coarse = rng.uniform(0, 1, (9, 9))
        share = np.kron(coarse, np.ones((-(-side // 9),) * 2))[:side, :side]
    else:
        share = (along - along.min()) / np.ptp(along)
    mixed = 0.5 + rng.uniform(0.2, 1) * (share - 0.5)
    return first + mixed[..., None] * (second - first) + rng.normal(0, 6, (side, side, 1))


def _caption(rng: np.random.Generator, things: tuple[Thing, ...]) -> str:
    """Names one thing at least, the others by chance, in any order."""
    order = rng.permutation(len(things))
    told = [things[i] for k, i in enumerate(order) if k == 0 or rng.random() < NAMED]
    said = [t.shape if rng.random() < BARE else f"{t.colour} {t.shape}" for t in told]
    return " and ".join(f"a {name}" for name in said)
