"""`phrase-loc calibrate MODEL --root DIR`: fit the probability that a phrase is shown, and save it with the model.

`--set KEY=VALUE` stores inference settings that were chosen on val in the same step.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from phrase_loc.errors import ConfigError


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
    from phrase_loc.datasets.flickr30k import Flickr30kEntities
    from phrase_loc.evaluation.calibration import calibrate
    from phrase_loc.localizer import Inference, PhraseLocalizer
    from phrase_loc.yaml_values import fields_of, value_of

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
