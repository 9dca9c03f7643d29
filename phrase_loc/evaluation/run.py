"""The whole evaluation: read the annotations, ask the methods, make the report."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from phrase_loc import __version__
from phrase_loc.config import to_dict
from phrase_loc.datasets import DATASETS
from phrase_loc.datasets.annotations import Annotated
from phrase_loc.distributed import World, pick_device
from phrase_loc.errors import choose
from phrase_loc.evaluation import external, methods, thresholds
from phrase_loc.evaluation.evaluator import Plan, Progress, run
from phrase_loc.evaluation.protocols import EvaluateConfig, Protocol, faithful
from phrase_loc.evaluation.rows import Rows, by_seen, by_word, is_map, tables
from phrase_loc.evaluation.scoring import BASELINES, Baseline
from phrase_loc.evaluation.statistics import Sums, paired
from phrase_loc.files import digest, fingerprint
from phrase_loc.skipped import Skipped
from phrase_loc.structures import GroundingSample

if TYPE_CHECKING:
    from phrase_loc.localizer import PhraseLocalizer

POLICY = (
    "An image, caption or chain that cannot be read is neither a hit nor a miss: it leaves the count of "
    "every method and is named here. A phrase without a known word stays in the count, as a miss."
)
TIES = (
    "Of equal maxima of a map the first in row order; of equal scores the box ranked first, and across "
    "images the order of the dataset."
)
COLUMNS = 2  # how an image's results are written: those written otherwise are computed again


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation."""

    config: EvaluateConfig
    plan: Plan  # the blind baselines are among its methods; those of the config get rows of their own
    rows: Rows
    skipped: Skipped
    localizer: "PhraseLocalizer | None"  # None when no method looked at images
    progress: Progress  # finished images on disk, to be cleared when the report is written
    #: (protocol, method) -> what is written beside its rows
    notes: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


def evaluate(config: EvaluateConfig, world: World, localizer: "PhraseLocalizer | None" = None) -> Evaluation:
    """Evaluate, on each process with the same result; a localizer takes the place of the one the config names.

    Raises:
        ConfigError: an unknown name, or no dataset where the config says.
        DataError: nothing that can be evaluated.
    """
    samples, chosen, protocols = read_data(config)
    asked, localizer = methods.build(config, samples, protocols, world.device, localizer)
    blind = [Baseline(name, guess) for name, guess in BASELINES.items() if name not in config.methods]
    plan = Plan(chosen, tuple(protocols), (*asked, *blind), samples.name)
    progress = Progress(config.output, _key(config, plan, localizer), world.rank)
    if not config.resume and world.is_main:
        progress.clear()
    world.barrier()
    outcomes = run(plan, world, progress)
    skipped = Skipped()
    skipped.restore(samples.skipped.seen)
    for method in (m for m in asked if isinstance(m, external.Predictions)):
        skipped.restore(method.skipped(plan).seen)
    kinds = {"skipped": "images", "note": "squashed photographs (kept)"}
    for outcome, key in product(outcomes, kinds):
        if key in outcome:
            skipped.note(kinds[key], f"{outcome['image']}: {outcome[key]}")
    rows = Rows(tables(plan, outcomes), len(chosen), config.bootstrap)
    counted = max(map(len, rows.tables.values()))
    skipped.refuse_if_empty(counted, f"split {config.data.split!r} of {config.data.root}")
    evaluation = Evaluation(config, plan, rows, skipped, localizer, progress)
    return thresholds.select_thresholds(evaluation, config.held_out) if config.held_out else evaluation


def read_data(config: EvaluateConfig) -> tuple[Annotated, Sequence[GroundingSample], list[Protocol]]:
    """The dataset of a config, its images that are evaluated, and the protocols."""
    methods.check(config.methods, config.inference)
    kind = choose(DATASETS, config.data.name, "dataset")
    samples = kind(root=config.data.root, split=config.data.split, **config.data.options)
    chosen: Sequence[GroundingSample] = samples[: config.limit] if config.limit else samples
    if config.sample:  # those whose names hash lowest
        names = sorted((sample.image_id for sample in chosen), key=lambda name: digest(name.encode()))
        drawn = set(names[: config.sample])
        chosen = [sample for sample in chosen if sample.image_id in drawn]
    return samples, chosen, [faithful(p) if config.faithful else p for p in config.chosen_protocols()]


def template(config: EvaluateConfig, fill: bool) -> Iterator[dict[str, Any]]:
    """The rows of a file of predictions (external.template), filled in by the method of a config or not."""
    samples, chosen, protocols = read_data(config)
    device = pick_device(config.device)
    method = methods.build(config, samples, protocols, device)[0][0] if fill else None
    return external.template(samples, chosen, protocols, method)


def report(evaluation: Evaluation) -> dict[str, Any]:
    """What goes into report.json."""
    config, plan, made = evaluation.config, evaluation.plan, evaluation.rows
    vocabulary = (evaluation.localizer.vocabulary or None) if evaluation.localizer else None
    rows: list[dict[str, Any]] = []
    sums: dict[str, dict[str, dict[str, Sums]]] = {}  # protocol -> method -> metric
    by_name = {method.name: method for method in plan.methods}
    for p, method in product(plan.protocols, config.methods):
        table, facts = made.tables[p.name, method], by_name[method].marks
        if why := by_name[method].lacks(p):
            rows += [made.blank(p, method, metric) | {"note": why} | facts for metric in p.metrics]
            continue
        for metric in (m for m in p.metrics if made.has(p, method, m)):
            row = made.row(p, method, metric)
            if vocabulary is not None and metric in table.columns:
                row["by_seen"] = by_seen(table, metric, vocabulary)
            rows.append(row | facts | evaluation.notes.get((p.name, method), {}))
            if not is_map(metric):
                sums.setdefault(p.name, {}).setdefault(method, {})[metric] = made.sums(p, method, metric)
    differences = []  # every method against the first, paired by image
    for protocol, by_method in sums.items():
        (first, base), *others = by_method.items()
        for metric, (method, own) in product(base, others):
            if metric in own:
                names = {"protocol": protocol, "metric": metric, "method": method, "minus": first}
                differences.append(names | paired(own[metric], base[metric], config.bootstrap))
    cells = {
        protocol: {method: {m: own.to_dict() for m, own in of.items()} for method, of in by_method.items()}
        for protocol, by_method in sums.items()
    }
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
        "rows": rows + methods.same_peak_rows(made, plan.protocols, config.methods),
        "protocols": {protocol.name: to_dict(protocol) for protocol in plan.protocols},
        "ties": TIES,
        "skipped": {"policy": POLICY, **evaluation.skipped.to_dict()},
        "differences": differences,
        "by_word": by_word(made, plan.protocols, config.methods, vocabulary),
        "by_image": {"images": [sample.image_id for sample in plan.samples], "sums": cells},
    }


def _key(config: EvaluateConfig, plan: Plan, localizer: "PhraseLocalizer | None") -> str:
    """Hash of all that the results of an image depend on; equal in every process."""
    looks = any(method.needs_image for method in plan.methods)
    facts = (
        *(COLUMNS, __version__, to_dict(config.data), config.model, config.inference),
        [_annotated(sample, looks) for sample in plan.samples],
        [(method.name, method.fingerprint) for method in plan.methods],
        [to_dict(protocol) for protocol in plan.protocols],
        methods.fingerprint(localizer),
    )
    return digest(json.dumps(facts, sort_keys=True, default=str).encode())[:16]


def _annotated(s: GroundingSample, looks: bool) -> str:
    """Hash of an image's annotations, and of which photograph stands there."""
    phrases = [[p.text, p.labels, p.entity] for p in s.phrases]
    photograph = fingerprint(s.path) if looks and os.path.isfile(s.path) else None
    facts = [s.image_id, s.size, phrases, [b.tolist() for b in s.boxes], s.facts, photograph]
    return digest(json.dumps(facts, default=str).encode())
