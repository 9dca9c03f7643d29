"""`phrase-loc leaks --train SHARDS ... --eval ROOT`: are evaluation images among the training images?"""

import argparse
import json

from phrase_loc.files import write_text


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
