"""`phrase-loc compare a.json b.json`: paired differences of two evaluation reports."""

import argparse
import json
from pathlib import Path


def compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Two reports of evaluate.py."""
    parser.add_argument("a", type=Path, help="report.json")
    parser.add_argument("b", type=Path, help="report.json on the same images; differences are a - b")
    parser.add_argument("--method", metavar="A[,B]", help="the method of each report, where it holds several")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run_compare(args: argparse.Namespace) -> int:
    """The command."""
    from phrase_loc.evaluation.compare import compare, table

    names = (args.method or "").split(",")
    found = compare(args.a, args.b, names[0] or None, names[-1] or None)
    print(json.dumps(found, indent=1) if args.json else table(found))
    return 0
