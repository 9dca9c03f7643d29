"""`phrase-loc export OUT [--model M] [--format onnx|torch]`: the model as a fixed graph with its words."""

import argparse
from pathlib import Path


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
    print(f"{folder / GRAPHS[args.format]} ({size / 1e6:.1f} MB) with its words; see phrase_loc/exported.py")
    return 0
