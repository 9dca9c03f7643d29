"""One pass over the images: all methods, all protocols, each image looked at once.

The pass knows no dataset and no protocol by name. Images are shared out among processes by their place,
without padding; each image's results are plain values, kept on disk as they come (progress.py) and put
together in the order of the dataset, so that the report is the same at any number of processes.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from tqdm import tqdm

from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.evaluation.answers import Answers, Method, Request
from phrase_loc.evaluation.counted import Batch, gather
from phrase_loc.evaluation.photographs import framed
from phrase_loc.evaluation.progress import Outcome, Progress
from phrase_loc.evaluation.protocol import Protocol
from phrase_loc.evaluation.scoring import SCORERS
from phrase_loc.structures import GroundingSample


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
        Per image {"image": id, "results": {method: {protocol: {column: values}}}}, or {"image": id,
        "skipped": sentence} for an image that no method could be asked about; with the key "note" where its
        photograph was taken for a squashed one (photographs.py).
    """
    done: dict[str, Outcome] = {}
    for part in world.gather(progress.read()):
        done.update(part)
    left = [sample for sample in plan.samples if sample.image_id not in done]
    mine = left[world.rank :: world.size]
    fresh: dict[str, Outcome] = {}
    silent = None if world.is_main else True  # None: silent where stderr is no terminal
    with progress, tqdm(total=len(mine), unit=" images", disable=silent) as bar:
        for sample in mine:
            outcome = examine(sample, plan)
            progress.add(outcome)
            fresh[sample.image_id] = outcome
            bar.update()
    for part in world.gather(fresh):
        done.update(part)
    return [done[sample.image_id] for sample in plan.samples]


def examine(sample: GroundingSample, plan: Plan) -> Outcome:
    """Results of one image, or the sentence that says why it is left out of every method's count."""
    results: dict[str, dict[str, Any]] = {method.name: {} for method in plan.methods}
    try:
        for unit in dict.fromkeys(p.unit for p in plan.protocols):
            tests = [p for p in plan.protocols if p.unit == unit]
            for name, scored in _examine_unit(sample, tests, plan.methods).items():
                results[name].update(scored)
        looked = any(results[method.name] for method in plan.methods if method.needs_image)
        note = framed(sample).note if looked else ""
    except DataError as error:
        return {"image": sample.image_id, "skipped": str(error)}
    return {"image": sample.image_id, "results": results} | ({"note": note} if note else {})


def _examine_unit(
    sample: GroundingSample, tests: list[Protocol], methods: Sequence[Method]
) -> dict[str, dict[str, Any]]:
    """Ask each method once for all tests that count the same things: method -> protocol -> columns."""
    batches = {test: gather(test, sample) for test in tests}
    queries = list(dict.fromkeys(query for batch in batches.values() for query in batch.queries))
    if not queries:
        return {}
    place = {query: row for row, query in enumerate(queries)}
    request = Request.of([test for test in tests if len(batches[test])])
    scored: dict[str, dict[str, Any]] = {}
    asked = {test: tuple(place[query] for query in batch.queries) for test, batch in batches.items()}
    for method in methods:
        answers = method.answer(sample, queries, request)
        taken = {rows: answers.take(rows) for rows in set(asked.values()) if rows}
        scored[method.name] = {
            test.name: _columns(test, batches[test], taken[rows]) for test, rows in asked.items() if rows
        }
    return scored


def _columns(test: Protocol, batch: Batch, answers: Answers) -> dict[str, Any]:
    """Plain columns of the P things counted: what scorers gave, and where the method pointed."""
    values = SCORERS[test.kind](test, batch, answers)
    boxes = answers.map_boxes[test.map_box] if test.map_box else answers.boxes[:, :1].flatten(1)
    columns: dict[str, Any] = {n: _plain(v, 6) if v.ndim == 1 else _packed(v) for n, v in values.items()}
    columns["known"] = answers.known.int().tolist()
    if "pointing" in test.kind:
        columns["peak"] = _plain(answers.peaks[test.border], 3)
    if (test.top_k or test.map_box) and boxes.shape[1]:
        columns["box"] = _plain(boxes, 3)
    if test.top_k and answers.scores.shape[1]:
        columns["score"] = _plain(answers.scores[:, 0], 12)
    if any(metric.startswith("mAP") for metric in test.metrics):
        columns["scores"] = _packed(answers.scores[:, : test.top_k].float())
    return columns


def _plain(values: Tensor, digits: int) -> list[Any]:
    """Rounded numbers; NaN becomes None, as JSON has no NaN."""
    rows = values.detach().cpu().double()
    if rows.ndim == 2:
        return [[None if x != x else round(x, digits) for x in row] for row in rows.tolist()]
    return [None if x != x else round(x, digits) for x in rows.tolist()]


def _packed(values: Tensor) -> dict[str, Any]:
    """Many numbers as base64 of little-endian floats of their own width: too many for decimal digits."""
    numbers = values.detach().cpu().contiguous().numpy()
    numbers = numbers.astype(numbers.dtype.newbyteorder("<"))
    coded = base64.b64encode(numbers.tobytes()).decode("ascii")
    return {"shape": list(numbers.shape), "dtype": numbers.dtype.str, "base64": coded}
