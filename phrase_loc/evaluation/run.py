"""The whole evaluation: read the annotations, ask the methods, make the report."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from phrase_loc import __version__
from phrase_loc.config import to_dict
from phrase_loc.datasets import DATASETS
from phrase_loc.distributed import World
from phrase_loc.errors import choose
from phrase_loc.evaluation import methods, thresholds
from phrase_loc.evaluation.config import EvaluateConfig
from phrase_loc.evaluation.evaluator import Plan, Progress, key_of, run
from phrase_loc.evaluation.parity import faithful
from phrase_loc.evaluation.rows import Rows, by_seen, by_word
from phrase_loc.evaluation.statistics import paired
from phrase_loc.evaluation.tables import Table, tables
from phrase_loc.files import fingerprint
from phrase_loc.skipped import Skipped
from phrase_loc.structures import GroundingSample

POLICY = (
    "An image, caption or chain that cannot be read is neither a hit nor a miss: it leaves the count of "
    "every method and is named here. A phrase without a known word stays in the count, as a miss."
)
TIES = (
    "Of equal maxima of a map the first in row order; of equal scores the box ranked first, and across "
    "images the order of the dataset."
)
#: Settings that change nothing in the results of an image.
WITHOUT_EFFECT = {"output", "bootstrap", "csv", "html", "resume", "limit", "sample", "device"}
WITHOUT_EFFECT |= {"held_out", "proposal_cache"}


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        config: as it was run.
        plan: samples, protocols and methods; the baselines are among the methods.
        asked: names of the methods that get rows of their own.
        rows: makes rows from `tables`.
        skipped: what was left out.
        localizer: None when no method looked at images.
        progress: finished images on disk, to be cleared when the report is written.
        notes: (protocol, method) -> what its rows say beside, such as the threshold that was chosen.
    """

    config: EvaluateConfig
    plan: Plan
    asked: tuple[str, ...]
    rows: Rows
    skipped: Skipped
    localizer: Any
    progress: Progress
    notes: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def tables(self) -> dict[tuple[str, str], Table]:
        """Columns of every (protocol, method)."""
        return self.rows.tables


def evaluate(config: EvaluateConfig, world: World, localizer: Any = None) -> Evaluation:
    """Evaluate on every process; the result is the same on each.

    Args:
        config: what to evaluate.
        world: this process among its fellows.
        localizer: used in place of the one the config names.

    Raises:
        ConfigError: an unknown name, or no dataset where the config says.
        DataError: nothing that can be evaluated.
    """
    kind = choose(DATASETS, config.data.name, "dataset")
    if methods.needs_model(config.methods):
        methods.check(config.methods, config.inference)
    samples = kind(root=config.data.root, split=config.data.split, **config.data.options)
    chosen = sampled(samples[: config.limit] if config.limit else samples, config.sample)
    protocols = [faithful(p) if config.faithful else p for p in config.chosen_protocols()]
    thresholds.check(protocols, config.held_out)
    if localizer is None and methods.needs_model(config.methods):
        localizer = methods.load_localizer(config, str(world.device))
    asked = methods.build(config.methods, localizer)
    blind = [b for b in methods.baselines() if b.name not in {m.name for m in asked}]
    plan = Plan(chosen, tuple(protocols), (*asked, *blind), samples.name)
    progress = Progress(config.output, _key(config, plan, localizer), world.rank)
    if not config.resume and world.is_main:
        progress.clear()
    world.barrier()
    outcomes = run(plan, world, progress)
    skipped = Skipped()
    skipped.restore(samples.skipped.seen)
    for outcome in outcomes:
        if "skipped" in outcome:
            skipped.note("images", f"{outcome['image']}: {outcome['skipped']}")
        if "note" in outcome:
            skipped.note("squashed photographs (kept)", f"{outcome['image']}: {outcome['note']}")
    rows = Rows(tables(plan, outcomes), len(chosen), config.bootstrap)
    counted = max(len(table.known) for table in rows.tables.values())
    skipped.refuse_if_empty(counted, f"split {config.data.split!r} of {config.data.root}")
    names = tuple(method.name for method in asked)
    evaluation = Evaluation(config, plan, names, rows, skipped, localizer, progress)
    return thresholds.settle(evaluation, config.held_out) if config.held_out else evaluation


def sampled(samples: Sequence[GroundingSample], number: int) -> Sequence[GroundingSample]:
    """So many images, those whose names hash lowest, in the order of the dataset; all of them for 0."""
    if not 0 < number < len(samples):
        return samples
    images = [samples[i] for i in range(len(samples))]
    lowest = sorted(images, key=lambda s: hashlib.sha256(s.image_id.encode()).digest())[:number]
    kept = {sample.image_id for sample in lowest}
    return [sample for sample in images if sample.image_id in kept]


def report(evaluation: Evaluation) -> dict[str, Any]:
    """What goes into report.json."""
    config, plan = evaluation.config, evaluation.plan
    rows = _rows(evaluation)
    return {
        "config": to_dict(config),
        "version": __version__,
        "dataset": {
            "name": config.data.name,
            "split": config.data.split,
            "images": len(plan.samples),
            "phrases": sum(len(sample.phrases) for sample in plan.samples),
            "phrases_with_boxes": sum(len(boxes) > 0 for s in plan.samples for boxes in s.boxes),
        },
        "rows": rows,
        "protocols": {protocol.name: to_dict(protocol) for protocol in plan.protocols},
        "ties": TIES,
        "skipped": {"policy": POLICY, **evaluation.skipped.to_dict()},
        "differences": _differences(evaluation),
        "by_word": by_word(evaluation.rows, plan.protocols, evaluation.asked, evaluation.localizer),
        "by_image": _by_image(evaluation),
    }


def _rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows = evaluation.rows
    own = [
        row
        | by_seen(rows, protocol, row, evaluation.localizer)
        | evaluation.notes.get((protocol.name, method), {})
        for protocol in evaluation.plan.protocols
        for method in evaluation.asked
        for row in (rows.row(protocol, method, m) for m in protocol.metrics if rows.has(protocol, method, m))
    ]
    return own + methods.same_peak_rows(evaluation.rows, evaluation.plan.protocols, evaluation.asked)


def _differences(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Every method against the first, paired by image."""
    first, *others = evaluation.asked
    found = []
    for protocol in evaluation.plan.protocols:
        for metric in protocol.metrics:
            base = evaluation.rows.sums(protocol, first, metric)
            for method in others:
                other = evaluation.rows.sums(protocol, method, metric)
                if base is not None and other is not None:
                    change = paired(other, base, evaluation.config.bootstrap)
                    names = {"protocol": protocol.name, "metric": metric, "method": method, "minus": first}
                    found.append(names | to_dict(change))
    return found


def _by_image(evaluation: Evaluation) -> dict[str, Any]:
    """Sums by image behind each row, from which two reports are compared."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for protocol in evaluation.plan.protocols:
        for method in evaluation.asked:
            for metric in protocol.metrics:
                sums = evaluation.rows.sums(protocol, method, metric)
                if sums is not None:
                    cells.setdefault(protocol.name, {}).setdefault(method, {})[metric] = sums.to_dict()
    return {"images": [sample.image_id for sample in evaluation.plan.samples], "sums": cells}


def _key(config: EvaluateConfig, plan: Plan, localizer: Any) -> str:
    """Hash of all that the results of an image depend on."""
    settings = {name: value for name, value in to_dict(config).items() if name not in WITHOUT_EFFECT}
    looks = any(method.needs_image for method in plan.methods)
    names = [method.name for method in plan.methods]
    tests = [to_dict(test) for test in plan.protocols]
    return key_of(
        __version__, settings, _truth(plan.samples, looks), names, tests, methods.fingerprint(localizer)
    )


def _truth(samples: Sequence[GroundingSample], looks: bool) -> str:
    """Hash of annotations, and of which photographs stand there, one after the other: there may be 50,000."""
    hashed = hashlib.sha256()
    for s in samples:
        phrases = [[p.text, p.labels, p.entity] for p in s.phrases]
        photograph = fingerprint(s.path) if looks and s.path.is_file() else None
        facts = [s.image_id, s.size, phrases, [b.tolist() for b in s.boxes], s.facts, photograph]
        hashed.update(json.dumps(facts, default=str).encode())
    return hashed.hexdigest()
