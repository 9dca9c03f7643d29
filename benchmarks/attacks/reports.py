"""Reports, kept results and kept proposals.

What is right: a report is compared or refused, and never compared otherwise than it was written; kept results and
boxes are those that were kept, or made anew.
"""

import contextlib
import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.attacks.mutations import changed_bytes, changed_tree
from benchmarks.attacks.tally import Tally
from phrase_loc.evaluation.evaluator import Progress
from phrase_loc.evaluation.statistics import Sums, compare, seal, table
from phrase_loc.proposals import Cached

IMAGES = 12


def attack(count: int, seed: int, folder: Path) -> Tally:
    """Tries `count` changed files of the three kinds."""
    random, tally = Random(seed), Tally()
    report = _report()
    path = folder / "a.json"
    path.write_text(json.dumps(report))
    expected = compare(path, path)
    for number in range(count):
        if number % 2:
            _compared(tally, f"{number} report", random, path, report, expected)
        elif number % 4:
            _progress(tally, f"{number} kept results", random, folder)
        else:
            _proposals(tally, f"{number} kept boxes", random, folder)
    return tally


def _report() -> dict[str, Any]:
    """What `compare` reads of a report, of two methods under two tests."""
    generator = np.random.default_rng(0)
    image = np.sort(generator.integers(0, IMAGES, 40))
    labels = [("people",) if i % 3 else ("animals", "other") for i in range(40)]
    sums: dict[str, Any] = {"pointing_any": {}, "classes": {}}
    for method in ("mwp", "cam"):
        hits = generator.integers(0, 2, 40).astype(float)
        sums["pointing_any"][method] = {"accuracy": Sums.of(hits, image, IMAGES).to_dict()}
        sums["classes"][method] = {"accuracy": Sums.of(hits, image, IMAGES, labels).to_dict()}
    by_image = {"images": [f"im{i}" for i in range(IMAGES)], "sums": sums}
    rows = [{"method": method, "value": 1.0} for method in ("mwp", "cam")]
    config = {"bootstrap": 20, "data": {"name": "flickr30k", "split": "val"}}
    return {"config": config, "rows": rows, "by_image": by_image, "sha256": seal(by_image, 20)}


def _compared(
    tally: Tally,
    name: str,
    random: Random,
    whole: Path,
    report: dict[str, Any],
    expected: list[dict[str, Any]],
) -> None:
    path = whole.with_name("b.json")
    if random.random() < 0.6:
        changed = json.dumps(changed_tree(report, random)).encode("utf-8", "surrogatepass")
    else:
        changed = changed_bytes(json.dumps(report).encode(), random)
    path.write_bytes(changed)

    def asked() -> Any:
        found = compare(whole, path)
        table(found)
        return json.loads(json.dumps(found, allow_nan=False))

    found = tally.take(name, asked)
    if found is not None and any(row not in expected for row in found):
        tally.wrong.append(f"{name}: compared otherwise than it was written")


def _progress(tally: Tally, name: str, random: Random, folder: Path) -> None:
    """Lines of finished images; those that are read are those that were written."""
    outcomes = {
        f"im{i}": {"image": f"im{i}", "results": {"mwp": {"pointing_any": {"accuracy": [random.random()]}}}}
        for i in range(4)
    }
    progress = Progress(folder / "report.json", "key")
    for outcome in outcomes.values():
        progress.add(outcome)
    (path,) = progress.folder.iterdir()
    path.write_bytes(changed_bytes(path.read_bytes(), random))

    def read() -> dict[str, Any]:
        with contextlib.redirect_stderr(io.StringIO()):
            return progress.read()

    found = tally.take(name, read)
    if found is not None and any(outcomes.get(key) != value for key, value in found.items()):
        tally.wrong.append(f"{name}: a result was read that was never written")
    progress.clear()


class _Fixed:
    """A source of boxes that depend on the frame."""

    def __repr__(self) -> str:
        return "fixed"

    def of_image(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        return torch.arange(24, dtype=torch.float32).reshape(6, 4) * size[0] / 7

    def of_map(self, attention: Tensor, size: tuple[int, int]) -> None:
        return None


def _proposals(tally: Tally, name: str, random: Random, folder: Path) -> None:
    """A file of kept boxes with anything in it gives the boxes of the source."""
    cached, picture = Cached(_Fixed(), folder / "boxes"), Image.new("RGB", (30, 20))
    size = (random.randrange(10, 30), 30)
    expected = cached.of_image(picture, size)
    path = cached.folder / f"{cached.key(picture, size)}.npy"
    content = changed_bytes(path.read_bytes(), random)
    path.write_bytes(content if random.random() < 0.9 else b"")

    def asked() -> Tensor | None:
        with contextlib.redirect_stderr(io.StringIO()):
            return cached.of_image(picture, size)

    found = tally.take(name, asked)
    if found is not None and not torch.equal(found, expected):
        tally.wrong.append(f"{name}: other boxes than the source's")
