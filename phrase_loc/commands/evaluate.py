"""`phrase-loc evaluate CONFIG [key=value ...] [--faithful]`: what evaluate.py does."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from phrase_loc.config import load_config


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """CONFIG.yaml and key=value pairs, read by `load_config`."""
    parser.add_argument(
        "settings", nargs="*", metavar="CONFIG.yaml | key=value", help="see configs/flickr30k.yaml"
    )
    parser.add_argument(
        "--faithful",
        action="store_true",
        help="reproduce the known bugs of the published scripts (phrase_loc/evaluation/parity.py)",
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
    from phrase_loc.evaluation.procedure import evaluate
    from phrase_loc.evaluation.report import markdown, reserved, write

    with session(config.device) as world, reserved(config) if world.is_main else nullcontext():
        evaluation = evaluate(config, world)
        if world.is_main:
            content, files = write(evaluation)
            print(markdown(content))
            print("written:", *files, file=sys.stderr)
        world.barrier()
    return 0
