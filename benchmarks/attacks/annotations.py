"""Mutated annotation trees of Flickr30k Entities, VOC, COCO, YOLO and ImageNet.

Each try takes a sound tree of three images, spoils the annotation of one, or a list, in one to three places, and
reads it. Right is: a sentence for the whole tree, or a dataset whose boxes are finite, have an area and lie in their
frames, that names what it left out, and that has every untouched image exactly as before.
"""

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.attacks.annotation_trees import HEIGHT, LISTS, PHOTOGRAPHS, SPLITTERS, TREES, WIDTH
from benchmarks.attacks.tally import Tally
from phrase_loc.datasets import DATASETS
from phrase_loc.datasets.annotations import Annotated

ODD_TEXTS = (
    *("", " ", "nan", "inf", "-inf", "-5", "0", "1e2", "1e400", "0x10", "1_0", "20000", "99999999999", "3.7"),
    *(
        "dog",
        "\u0661\u0662",
        "\u00e9",
        "1 2",
        "&#0;",
        "<a>",
        "]]>",
        "[/EN#",
        "]",
        "../1",
        "\ufeff1",
        "None",
        "true",
    ),
)
ODD_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        1.5,
        10**400,
        -(10**9),
        20_000,
        float("nan"),
        float("inf"),
        "",
        "20",
        "x",
        "\0",
    ),
    *(
        [],
        {},
        [1],
        [[]],
        [None],
        {"counts": [1]},
        {"counts": "0", "size": [HEIGHT, WIDTH]},
        "\ud800",
        [[[[[]]]]],
    ),
    *(
        {"counts": "zzz~\u007f", "size": [HEIGHT, WIDTH]},
        {"counts": [HEIGHT * WIDTH], "size": [HEIGHT, WIDTH]},
    ),
    *(
        [[0, 0, 9]],
        [[0, 0, 9, 0]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[-5, -5, 500, -5, 500, 300, -5, 300]],
        [0, 0, 9],
    ),
)


def attack(count: int, seed: int, folder: Path) -> Tally:
    """Reads `count` spoilt trees, of each kind in turn."""
    rng, tally = random.Random(seed), Tally()
    kinds = [Kind(name, folder / name) for name in TREES]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        kind.attempt(rng, f"{kind.name} {number} of seed {seed}", tally)
    return tally


class Kind:
    """One dataset: a sound tree, what its images are, and where each file belongs.

    Args:
        name: key of DATASETS, or 'tiny' for tiny-imagenet.
        root: folder for its tree.
    """

    def __init__(self, name: str, root: Path):
        self.name, self.root = name, root
        #: file -> (content, number of the one image that it is about, or None)
        self.files: dict[str, tuple[bytes, int | None]] = TREES[name]()
        for path in self.files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
        for photograph in PHOTOGRAPHS[name]:
            path = root / photograph
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT)).save(path, format="JPEG")
        self.write()
        self.sound = [_plain(sample) for sample in self.read()]
        assert len(self.sound) == 3

    def read(self) -> Annotated:
        """The dataset."""
        name, split = {"tiny": ("imagenet", "val"), "yolo": ("yolo", "")}.get(self.name, (self.name, "val"))
        return DATASETS[name](root=self.root, split=split)

    def write(self) -> None:
        """The sound files."""
        for path, (content, _) in self.files.items():
            (self.root / path).write_bytes(content)

    def attempt(self, rng: random.Random, name: str, tally: Tally) -> None:
        """One spoilt tree."""
        path = rng.choice(list(self.files))
        content, own = self.files[path]
        spoilt, untouched = self.spoil(rng, path, content, own)
        target = self.root / path
        if spoilt is None:
            target.unlink()
        else:
            target.write_bytes(spoilt)
        found: list[Annotated] = []
        tally.take(name, lambda: found.append(self.read()))
        target.unlink(missing_ok=True)
        target.write_bytes(content)
        # a line break of UTF-32 ends in nulls
        lines = sum(bool(line.strip(b"\0").strip()) for line in (spoilt or b"").splitlines())
        expected = lines if path in LISTS else 3
        if found and (wrong := self.wrong(found[0], untouched, expected)):
            tally.answered -= 1
            tally.wrong.append(f"{name}: {path}: {wrong}: {spoilt!r:.300}")
        elif found and found[0].skipped.notes:
            tally.answered, tally.refused = tally.answered - 1, tally.refused + 1

    def spoil(
        self, rng: random.Random, path: str, content: bytes, own: int | None
    ) -> tuple[bytes | None, set[int]]:
        """The mutated file (None: none) and the images that must come out as before."""
        others = set(range(3)) - {own} if own is not None else set[int]()
        if rng.random() < 0.25:
            return _bytes(rng, content), others
        if path.endswith(".json"):
            return _json(rng, content)
        return _fields(rng, content, SPLITTERS[path.rsplit(".", 1)[-1]]), others

    def wrong(self, data: Annotated, untouched: set[int], expected: int) -> str:
        """What is wrong with a dataset that was read from a spoilt tree of so many images, or ''."""
        read = [_plain(sample) for sample in data]
        for number in untouched:
            if self.sound[number] not in read:
                return f"image {number} was not touched, and is not as before"
        named = sum(len(notes) for kind, notes in data.skipped.notes.items() if "kept" not in kind)
        if len(read) + named < expected:
            return f"of {expected} images {len(read)} were read and {named} named"
        if len({sample[0] for sample in read}) != len(read):
            return "two samples of one name"
        for sample in data:
            if trouble := _frame_trouble(sample, loose=self.name == "flickr30k"):
                return trouble
        return ""


def _frame_trouble(sample: Any, loose: bool) -> str:
    """What is wrong with the boxes of a sample; Flickr30k keeps those that reach out, or are a pixel wide."""
    height, width = sample.size
    if not 1 <= height * width <= 80_000_000:
        return f"a frame of {sample.size}"
    for boxes in sample.boxes:
        for x1, y1, x2, y2 in boxes.tolist():
            if not all(abs(v) < 1e30 for v in (x1, y1, x2, y2)):
                return "a box that is not finite"
            inside = 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            touching = x1 <= x2 and y1 <= y2 and x1 < width and y1 < height and x2 >= 0 and y2 >= 0
            if not (touching if loose else inside):
                return f"a box {x1, y1, x2, y2} in a frame of {sample.size}"
    return ""


def _plain(sample: Any) -> tuple[Any, ...]:
    phrases = tuple((p.text, p.labels, p.entity) for p in sample.phrases)
    facts = json.dumps(sample.facts, default=str)
    return sample.image_id, sample.size, phrases, tuple(str(b.tolist()) for b in sample.boxes), facts


# mutations


def _bytes(rng: random.Random, content: bytes) -> bytes | None:
    """Bits flipped, cut, doubled, in another encoding, emptied or gone."""
    way = rng.randrange(8)
    if way == 0:
        return None
    if way == 1:
        return content[: rng.randrange(len(content))]
    if way == 2:
        return rng.choice([b"", b"\0", b"\xff\xfe", content * 2, b"\xef\xbb\xbf" + content, content.upper()])
    if way == 3:
        return content.decode().encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7", "cp500"]))
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 30])):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _fields(rng: random.Random, content: bytes, marks: str) -> bytes:
    """One to three fields, words between the marks, replaced, doubled, left out or exchanged."""
    parts = re.split(f"([{re.escape(marks)}]+)", content.decode())  # words at even places, marks between
    words = [place for place in range(0, len(parts), 2) if parts[place]]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(words) if rng.random() < 0.8 else rng.randrange(len(parts))
        way = rng.randrange(5)
        if way < 3:
            parts[place] = rng.choice(ODD_TEXTS)
        elif way == 3:
            parts[place] *= rng.choice([0, 2, 40])
        else:
            other = rng.choice(words)
            parts[place], parts[other] = parts[other], parts[place]
    return "".join(parts).encode("utf-8", "surrogatepass")


def _json(rng: random.Random, content: bytes) -> tuple[bytes, set[int]]:
    """Values of one image's entry, of its annotations or of a category replaced, left out or doubled."""
    facts = json.loads(content)
    own, categories = rng.randrange(3), list(facts["categories"])
    entries = [facts["images"][own], *(a for a in facts["annotations"] if a["image_id"] == own + 1)]
    untouched = set(range(3)) - {own}
    for _ in range(rng.randint(1, 3)):
        entry = rng.choice(entries)
        way = rng.randrange(12)
        if way == 0:
            listed = facts["images"] if entry is entries[0] else facts["annotations"]
            listed.insert(
                rng.randrange(len(listed) + 1), copy.deepcopy(entry) if rng.random() < 0.5 else _odd(rng)
            )
        elif way == 1:
            spoilt, key = rng.choice(
                [(facts, "categories"), *((c, k) for c in categories for k in ("id", "name"))]
            )
            spoilt[key] = _odd(rng)
            untouched = set()
        elif entry:
            key = rng.choice(list(entry))
            if way == 2:
                del entry[key]
            elif way < 6 and isinstance(entry[key], list) and entry[key]:
                entry[key][rng.randrange(len(entry[key]))] = _odd(rng)
            else:
                entry[key] = _odd(rng)
    for entry in entries:  # another image's, or one that now claims to be another image, touches that too
        for key in ("id", "image_id"):
            if type(entry.get(key)) in (int, float, bool) and entry[key] in (1, 2, 3):
                untouched -= {int(entry[key]) - 1}
    return json.dumps(facts).encode(), untouched


def _odd(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD_VALUES))
