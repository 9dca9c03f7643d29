"""`phrase-loc train CONFIG [key=value ...]`: what train.py does."""

import argparse
from collections.abc import Sequence

from phrase_loc.config import load_config


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
