"""`phrase-loc calibrate MODEL --root DIR`: fit the probability that a phrase is shown, and save it with the model.

`--set KEY=VALUE` stores inference settings that were chosen on val in the same step.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from phrase_loc.config import load_config
from phrase_loc.errors import ConfigError
from phrase_loc.files import write_text


def calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", metavar="MODEL", type=Path, help="a model folder, changed in place")
    parser.add_argument("--root", type=Path, required=True, help="tree of Flickr30k Entities")
    parser.add_argument("--split", default="val", help="split to fit on, never test (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the negative pairs (default: %(default)s)")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="inference setting to store",
    )


def run_calibrate(args: argparse.Namespace) -> int:
    """Fit, save, print the figures."""
    from phrase_loc.config import fields_of, value_of
    from phrase_loc.datasets.flickr30k import Flickr30kEntities
    from phrase_loc.evaluation.calibration import calibrate
    from phrase_loc.localizer import Inference, PhraseLocalizer

    if not args.model.is_dir():
        raise ConfigError(f"calibrate changes a model folder in place, and {args.model} is none")
    if not os.access(args.model, os.W_OK):
        raise ConfigError(f"calibrate changes {args.model} in place, which cannot be written; copy it first")
    if wrong := [pair for pair in args.changes if "=" not in pair]:
        raise ConfigError(f"--set takes KEY=VALUE, got {wrong[0]!r}")
    pairs = (pair.split("=", 1) for pair in args.changes)
    changes = {key: value_of(value, key, fields_of(Inference).get(key, Any)) for key, value in pairs}
    localizer = PhraseLocalizer.from_pretrained(args.model, device="cpu").with_settings(**changes)
    fit = calibrate(localizer, Flickr30kEntities(args.root, args.split), args.seed)
    localizer.model.config = replace(localizer.model.config, calibration=fit)
    localizer.save_pretrained(args.model)
    print(json.dumps(fit, indent=1))
    return 0


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Two reports of evaluate.py."""
    parser.add_argument("a", type=Path, help="report.json")
    parser.add_argument("b", type=Path, help="report.json on the same images; differences are a - b")
    parser.add_argument("--method", metavar="A[,B]", help="the method of each report, where it holds several")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run_compare(args: argparse.Namespace) -> int:
    """The command."""
    from phrase_loc.evaluation.statistics import compare, table

    names = (args.method or "").split(",")
    found = compare(args.a, args.b, names[0] or None, names[-1] or None)
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG.yaml and key=value pairs, read by `load_config`."""
    parser.add_argument(
        "settings", nargs="*", metavar="CONFIG.yaml | key=value", help="see configs/flickr30k.yaml"
    )
    parser.add_argument(
        "--faithful",
        action="store_true",
        help="reproduce the known bugs of the published scripts (docs/evaluation.md)",
    )
    parser.add_argument("--profile", action="store_true", help="print on stderr where the time went")


def run_evaluate(args: argparse.Namespace) -> int:
    """The command."""
    from phrase_loc.profiling import watching

    with watching() as watch:
        code = evaluate_from([*args.settings, *(["faithful=true"] if args.faithful else [])])
        if args.profile:
            print(watch.table(), file=sys.stderr)
    return code


def evaluate_from(settings: Sequence[str]) -> int:
    """Check the config, join the other processes, evaluate, write the report, print its table."""
    from phrase_loc.evaluation.config import EvaluateConfig

    config = load_config(EvaluateConfig, settings)
    from phrase_loc.distributed import session
    from phrase_loc.evaluation.report import markdown, reserved, write
    from phrase_loc.evaluation.run import evaluate

    with session(config.device) as world, reserved(config) if world.is_main else nullcontext():
        evaluation = evaluate(config, world)
        if world.is_main:
            content, files = write(evaluation)
            print(markdown(content))
            print("written:", *files, file=sys.stderr)
        world.barrier()
    return 0


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--model", default="default", help="'default', a folder or a hub id")
    parser.add_argument(
        "--format", default="onnx", help="onnx (needs pip install 'phrase_loc[onnx]') or torch (torch.export)"
    )


def run_export(args: argparse.Namespace) -> int:
    """The command."""
    from phrase_loc.export import GRAPHS, export

    folder = export(args.model, args.out, args.format)
    size = (folder / GRAPHS[args.format]).stat().st_size
    print(f"{folder / GRAPHS[args.format]} ({size / 1e6:.1f} MB) with its words; see phrase_loc/runtime.py")
    return 0


def leaks_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--train",
        nargs="+",
        required=True,
        metavar="SHARDS",
        help="training shards (.tar; {000..009} and * are expanded) or folders of images",
    )
    parser.add_argument(
        "--eval", required=True, dest="evaluation", metavar="ROOT", help="folder with the evaluation images"
    )
    parser.add_argument(
        "--distance",
        type=int,
        default=6,
        metavar="BITS",
        help="bits of 64 in which perceptual hashes may differ, 0 to 7 (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="OUT.json", help="write every pair found as JSON")


def run_leaks(args: argparse.Namespace) -> int:
    """Print the summary; exit 1 when there is a leak, so that a script can stop on it."""
    from phrase_loc.evaluation.leaks import audit

    found = audit(args.train, args.evaluation, args.distance)
    if args.output:
        write_text(args.output, json.dumps(found, indent=1) + "\n", "choose another --output")
    print(found["summary"])
    return 1 if found["shared_ids"] or found["near_duplicates"] else 0


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG.yaml and key=value pairs, read by `load_config`."""
    parser.add_argument(
        "arguments", nargs="*", metavar="CONFIG.yaml | key=value", help="see configs/train_web.yaml"
    )


def run_train(args: argparse.Namespace) -> int:
    """The command."""
    return train_from(args.arguments)


def train_from(arguments: Sequence[str]) -> int:
    """Check the config, then import torch, join the other processes and train; prints the model's folder."""
    from phrase_loc.training.config import TrainConfig

    config = load_config(TrainConfig, arguments)
    from phrase_loc.distributed import session
    from phrase_loc.training.run import log_to_stderr, train

    with session(config.device) as world:
        log_to_stderr(world)
        folder = train(config, world)
        if world.is_main:
            print(folder)
    return 0
