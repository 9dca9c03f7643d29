"""The top row of docs/leaderboard.md from nothing: nine models, one student of them, what it learns from captions.

    python benchmarks/top_row.py 'DIR/*.tar' VAL FOLDER --texts captions_train.txt.gz [KEY=VALUE ...]

Nine runs of configs/default.yaml (six of EfficientNet-Lite0 and three of Lite1, each with a seed of its own), a
student of them by benchmarks/distil.py that starts from the first, then `learn-ranker`, `learn-classes` and
`calibrate`, and evaluate.py on val. No true box is seen but by `calibrate`, which fits probabilities. Finished steps
in FOLDER are kept, so the same command goes on. KEY=VALUE changes the nine runs.

The weights of the package were made by research code of the same steps (docs/experiments.md).
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TEACHERS = ["efficientnet_lite0"] * 6 + ["efficientnet_lite1"] * 3
Step = tuple[Path, list[str]]  # a file that stands when the step is done, and its command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("val", type=Path, help="folder of Flickr30k Entities")
    parser.add_argument("folder", type=Path, help="of runs and models")
    parser.add_argument("changes", nargs="*", help="KEY=VALUE of the nine runs")
    parser.add_argument("--texts", type=Path, required=True, help="captions for out-of-vocabulary words")
    parser.add_argument("--teachers", type=int, default=len(TEACHERS), help="the first of the nine")
    parser.add_argument(
        "--limit", type=int, default=1_000_000, help="photographs of each step after the nine"
    )
    args = parser.parse_args()
    for done, command in steps(args):
        if not done.exists():
            print(*command, flush=True)
            subprocess.run([sys.executable, *command], check=True)
    print((args.folder / "report.md").read_text())


def steps(args: argparse.Namespace) -> Iterator[Step]:
    """All steps in order."""
    runs = [args.folder / f"run{seed}" for seed in range(args.teachers)]
    for seed, (run, backbone) in enumerate(zip(runs, TEACHERS)):
        settings = [f"data.shards={args.shards}", f"out={run}", f"seed={seed}", f"model.backbone={backbone}"]
        settings += ["model.start=none", "few.below=0", f"data.features={args.folder / 'features'}"]
        settings += [f"further.texts=[{args.texts}]", *args.changes]
        yield run / "model" / "config.json", ["train.py", "configs/default.yaml", *settings]
    student, limit = args.folder / "student", str(args.limit)
    teachers = [str(run / "model") for run in runs]
    asked = ["--teachers", *teachers, "--start", teachers[0], "--texts", str(args.texts), "--limit", limit]
    yield student / "config.json", ["benchmarks/distil.py", args.shards, str(student), *asked]
    own = ["--shards", args.shards, "--photographs", limit]
    for command, options in (
        ("learn-ranker", own),
        ("learn-classes", own),
        ("calibrate", ["--root", str(args.val)]),
    ):
        made = args.folder / command
        asked = [command, str(student), *options, "--output", str(made)]
        yield made / "config.json", ["-m", "phrase_loc", *asked]
        student = made
    report = args.folder / "report.json"
    asked = [f"data.root={args.val}", "data.split=val", "method=[contrastive_mwp]", f"model={student}"]
    yield report, ["evaluate.py", "configs/flickr30k.yaml", *asked, f"output={report}"]


if __name__ == "__main__":
    main()
