"""Mutated and odd inputs of every kind, with counts of tried, refused and wrong: the table of docs/reliability.md.

python benchmarks/robustness.py                       all kinds at full counts (under ten minutes on two cores)
python benchmarks/robustness.py --only pictures --seed 3
python benchmarks/robustness.py --share 0.1           a tenth, as the tests run it
"""

import argparse
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

#: kind -> how many inputs are tried
KINDS = {
    "pictures": 10_000,
    "shards": 2_000,
    "annotations": 2_000,
    "models": 2_000,
    "reports": 2_000,
    "requests": 2_000,
}


def main() -> int:
    """Runs the kinds asked for and prints a Markdown table; 1 when anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("| inputs | tried | answered | refused or named | wrong | seconds |\n|---|---|---|---|---|---|")
    wrong: list[str] = []
    for kind in args.only:
        count, begin = max(1, round(KINDS[kind] * args.share)), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            tally = import_module(f"benchmarks.attacks.{kind}").attack(count, args.seed, Path(folder))
        row = [kind, tally.tried, tally.answered, tally.refused, len(tally.wrong)]
        print(f"| {' | '.join(map(str, row))} | {time.perf_counter() - begin:.0f} |", flush=True)
        wrong += [f"{kind}: {sentence}" for sentence in tally.wrong]
    print("\n".join(wrong[:50]), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
