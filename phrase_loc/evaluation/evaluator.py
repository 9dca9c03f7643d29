"""One pass over the images: all methods, all protocols, each image looked at once.

The pass knows no dataset and no protocol by name. Images are shared out among processes by their place,
without padding; each image's results are columns, kept on disk as they come (`Progress`) and put together in the
order of the dataset, so that the report is the same at any number of processes.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.evaluation.protocols import Protocol
from phrase_loc.evaluation.scoring import SCORERS, Answers, Batch, Method, gather
from phrase_loc.files import append_text, line_in, make_folder, sealed_line
from phrase_loc.images import load_image, picture_size
from phrase_loc.structures import GroundingSample

Outcome = dict[str, Any]
ADVICE = "choose another output"


class Progress:
    """The finished images of one evaluation, in a folder beside its report: `key` is what they depend on.

    Each process writes a file of its own, a line an image behind its digest.
    """

    def __init__(self, output: Path, key: str, rank: int = 0):
        self.folder = output.with_name(output.stem + ".progress")
        self.key, self.rank = key, rank

    def read(self) -> dict[str, Outcome]:
        """Finished images of all processes of earlier runs, by image id."""
        parts = sorted(self.folder.glob(f"{self.key}-*.jsonl"))
        lines = [line for part in parts for line in part.read_bytes().splitlines() if line]
        whole = [json.loads(content) for content in map(line_in, lines) if content is not None]
        damaged = len(lines) - len(whole)
        if damaged and self.rank == 0:
            print(f"{self.folder}: {damaged} damaged lines are computed again", file=sys.stderr)
        return {outcome["image"]: outcome for outcome in whole}

    def add(self, outcome: Outcome) -> None:
        """Keep one image's results; they are in the file when this returns, or a DataError says why not."""
        content = json.dumps(outcome, default=np.ndarray.tolist)
        make_folder(self.folder, ADVICE)
        append_text(self.folder / f"{self.key}-{self.rank}.jsonl", sealed_line(content), ADVICE)

    def clear(self) -> None:
        """Remove this evaluation's files, and the folder when nothing else is in it.

        One process does it, when the others are past reading and writing: before `run` or after it.
        """
        for path in self.folder.glob(f"{self.key}-*.jsonl"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or not empty
            self.folder.rmdir()


#: Sides of the squares that are taken for squashed copies: inputs of common networks.
SQUASHED = range(32, 385)


class Framed(NamedTuple):
    """What to look at, and what must be said of it ('' for nothing)."""

    picture: Path | Image.Image
    note: str = ""


def framed(sample: GroundingSample) -> Framed:
    """The photograph of a sample such that it fills the sample's frame.

    Raises DataError: the file is no image, or shows another frame; a missing file is left to whoever opens it.
    """
    if not os.path.isfile(sample.path):  # Path.is_file raises for a long name
        return Framed(sample.path)
    upright, stored = picture_size(sample.path)
    if same_shape(upright, sample.size):
        return Framed(sample.path)
    if same_shape(stored, sample.size):
        stored_so = load_image(sample.path, upright=False)
        return Framed(Image.fromarray(np.asarray(stored_so)))  # without EXIF, so that nobody turns it
    shown, frame = (f"{width} x {height}" for height, width in (upright, sample.size))
    if upright[0] == upright[1] and upright[0] in SQUASHED and upright[0] < max(sample.size):
        return Framed(sample.path, f"{shown} pixels are taken for the whole {frame} frame, squashed")
    raise DataError(
        f"{sample.path.name} has {shown} pixels, but its annotation is of {frame}: no copy at another scale; "
        "give the photograph that was annotated"
    )


def same_shape(picture: tuple[int, int], frame: tuple[int, int]) -> bool:
    """Whether one (H, W) is the other at another scale: its sides are those it would have, rounded up or down.

    >>> same_shape((224, 336), (333, 500)), same_shape((336, 224), (333, 500))
    (True, False)
    """
    small, large = sorted((picture, frame), key=lambda size: size[0] * size[1])
    scales = [((side - 1) / whole, (side + 1) / whole) for side, whole in zip(small, large, strict=True)]
    first, second = small[0] * large[1], small[1] * large[0]
    near = abs(first - second) <= 0.05 * first  # of tiny ones all would do
    return near and max(low for low, _ in scales) < min(high for _, high in scales)


@dataclass(frozen=True)
class Plan:
    """What is evaluated on what; `dataset` is its own name for itself, such as 'tiny_imagenet'."""

    samples: Sequence[GroundingSample]
    protocols: tuple[Protocol, ...]
    methods: tuple[Method, ...]
    dataset: str = ""


def run(plan: Plan, world: World, progress: Progress) -> list[Outcome]:
    """Results of every image in the order of the dataset, on every process.

    Returns:
        Per image {"image": id, "results": {method: {protocol: {column: array or list}}}}, or {"image": id,
        "skipped": sentence} for an image that no method could be asked about; with the key "note" where its
        photograph was taken for a squashed one (`framed`).
    """
    done = {image: outcome for part in world.gather(progress.read()) for image, outcome in part.items()}
    mine = [sample for sample in plan.samples if sample.image_id not in done][world.rank :: world.size]
    fresh: dict[str, Outcome] = {}
    for sample in tqdm(mine, unit=" images", disable=None if world.is_main else True):  # None: no terminal
        fresh[sample.image_id] = examine(sample, plan)
        progress.add(fresh[sample.image_id])
    for part in world.gather(fresh):
        done.update(part)
    return [done[sample.image_id] for sample in plan.samples]


def examine(sample: GroundingSample, plan: Plan) -> Outcome:
    """Results of one image, or the sentence that says why it is left out of every method's count."""
    results: dict[str, dict[str, Any]] = {method.name: {} for method in plan.methods}
    try:
        for unit in dict.fromkeys(p.unit for p in plan.protocols):
            gathered = ((p, gather(p, sample)) for p in plan.protocols if p.unit == unit)
            batches = [(protocol, batch) for protocol, batch in gathered if len(batch)]
            for method in plan.methods:
                asked = [pair for pair in batches if not method.lacks(pair[0])]
                for (protocol, batch), found in zip(asked, method.answer_all(asked) if asked else ()):
                    results[method.name][protocol.name] = _columns(protocol, batch, found)
        looked = any(results[method.name] for method in plan.methods if method.needs_image)
        note = framed(sample).note if looked else ""
    except DataError as error:
        return {"image": sample.image_id, "skipped": str(error)}
    return {"image": sample.image_id, "results": results} | ({"note": note} if note else {})


def _columns(test: Protocol, batch: Batch, answers: Answers) -> dict[str, NDArray[Any]]:
    """(P, ...) columns of the things counted: what scorers gave, and where the method pointed. NaN is no answer."""
    values = SCORERS[test.kind](test, batch, answers)
    boxes = answers.map_boxes[test.map_box] if test.map_box else answers.boxes[:, :1].flatten(1)
    columns = {name: _rounded(v, 6) if v.ndim == 1 else v.cpu().numpy() for name, v in values.items()}
    columns["known"] = answers.known.cpu().numpy()
    if "pointing" in test.kind:
        columns["peak"] = _rounded(answers.peaks[test.border], 3)
    if (test.top_k or test.map_box) and boxes.shape[1]:
        columns["box"] = _rounded(boxes, 3)
    scores = answers.ranked[..., 4]
    if test.top_k and scores.shape[1]:
        columns["score"] = _rounded(scores[:, 0], 12)
    if any(metric.startswith("mAP") for metric in test.metrics):
        columns["scores"] = scores[:, : test.top_k].float().cpu().numpy()
    return columns


def _rounded(values: Tensor, digits: int) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy().round(digits)
