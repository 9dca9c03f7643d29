"""The rows of docs/experiments.md: trainings that differ in a few settings, asked on Flickr30k Entities val.

    python benchmarks/experiments.py --shards 'DIR/*.tar' --val DIR --texts captions.txt.gz [--out runs/experiments]
        [--only pool words ...] [--rows base ...] [--seeds 0 1 2] [--jobs 2] [--dry]

Rows stand in experiments.yaml. What is finished is not repeated, and an interrupted row goes on; `--dry` prints the
commands. At the end OUT/experiments.md holds the tables: A (pointing_any) and U (recall_union at 1, 5, 10) in percent
of excitation backprop (c-MWP), CAM and Grad-CAM; over several seeds the mean and the range.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
METHODS = ("contrastive_mwp", "cam", "grad_cam")
ASKED = ("protocols=[pointing_any,recall_union]", "bootstrap=200", "csv=false")


@dataclass(frozen=True)
class Row:
    """One training with one seed, and how its model is asked.

    Attributes:
        name: of the row.
        seed: of the training.
        changes: what it changes in its recipe, as experiments.yaml has it.
        arguments: of train.py.
        after: names of the rows whose models it starts from.
    """

    name: str
    seed: int
    changes: tuple[str, ...]
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()

    def folder(self, out: Path) -> Path:
        """Where its run and its report lie."""
        return out / self.name / f"seed{self.seed}"

    def report(self, out: Path) -> Path:
        """The evaluation's report."""
        return self.folder(out) / "report.json"


def read_rows(plan: dict, args: argparse.Namespace) -> dict[str, list[Row]]:
    """Study -> its rows for all seeds asked for; a row that several studies name is the same run."""
    names = {name for study in plan["studies"].values() for name in study["rows"]}
    found: dict[str, list[Row]] = {}
    for title, study in plan["studies"].items():
        if args.only and title not in args.only:
            continue
        found[title] = [
            make_row(name, changes, study["recipe"], plan, names, args, seed)
            for name, changes in study["rows"].items()
            if not args.rows or name in args.rows
            for seed in args.seeds
        ]
    return found


def make_row(
    name: str, changes: list, recipe: str, plan: dict, names: set[str], args: argparse.Namespace, seed: int
) -> Row:
    """Fills {texts} and the models of other rows in."""
    told = [*plan["recipes"][recipe], *changes]
    after = tuple(other for other in names if any(f"{{{other}}}" in part for part in told))
    filled = {other: str(args.out / other / f"seed{seed}" / "model") for other in after}
    filled |= {"texts": str(args.texts)}
    for key, value in filled.items():
        told = [part.replace(f"{{{key}}}", value) for part in told]
    return Row(name, seed, tuple(changes), tuple(told), after)


def with_starts(rows: list[Row], plan: dict, args: argparse.Namespace) -> list[Row]:
    """Each row once, and before it those whose models it starts from, asked for or not."""
    told = argparse.Namespace(**{**vars(args), "only": None, "rows": None})
    known = {(row.name, row.seed): row for every in read_rows(plan, told).values() for row in every}
    found: dict[tuple[str, int], Row] = {}

    def add(row: Row) -> None:
        for name in row.after:
            add(known[name, row.seed])
        found.setdefault((row.name, row.seed), row)

    for row in rows:
        add(row)
    return list(found.values())


def commands(row: Row, args: argparse.Namespace) -> list[list[str]]:
    """What makes the row: train.py and evaluate.py with their arguments."""
    folder = row.folder(args.out)
    kept = [f"data.shards={args.shards}", f"data.features={args.out / 'features'}"]
    kept += [f"data.index={args.out / 'index'}", f"data.workers={args.workers}"]
    asked = [f"data.root={args.val}", "data.split=val", f"model={folder / 'model'}"]
    asked += [f"output={row.report(args.out)}", f"method=[{','.join(METHODS)}]"]
    return [
        ["train.py", *row.arguments, *kept, f"seed={row.seed}", f"out={folder}"],
        ["evaluate.py", "configs/flickr30k.yaml", *asked, *ASKED],
    ]


def make(row: Row, args: argparse.Namespace) -> str:
    """Runs the row's commands unless it is finished; what went wrong, or ''."""
    folder = row.folder(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(args.threads or max(1, (os.cpu_count() or 1) // args.jobs)),
    }
    with (folder / "log").open("a") as log:
        for command in commands(row, args):
            done = folder / "model" / "config.json" if command[0] == "train.py" else row.report(args.out)
            if done.is_file():
                continue
            ran = subprocess.run(
                [sys.executable, *command], cwd=HERE.parent, stdout=log, stderr=log, env=environment
            )
            if ran.returncode:
                return f"{row.name}, seed {row.seed}: {command[0]} ended with {ran.returncode}, see {folder / 'log'}"
    return ""


def figures(report: Path) -> dict[str, list[float]]:
    """Method -> A, U@1, U@5, U@10 in percent."""
    rows = json.loads(report.read_text(encoding="utf-8"))["rows"]
    wanted = ("accuracy", "R@1", "R@5", "R@10")
    by = {(r["method"], r["metric"]): r["value"] for r in rows}
    return {method: [by[method, metric] for metric in wanted] for method in METHODS}


def table(rows: list[Row], out: Path) -> list[str]:
    """A line a row: mean over the seeds that are there, and the range of A."""
    lines = [
        "| row | changes | runs | A | U | CAM: A, U@1 | Grad-CAM: A, U@1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.name for row in rows):
        same = [row for row in rows if row.name == name and row.report(out).is_file()]
        if not same:
            continue
        found = [figures(row.report(out)) for row in same]
        own, cam, grad = ([f[m] for f in found] for m in METHODS)
        span = f" ({min(v[0] for v in own):.1f}-{max(v[0] for v in own):.1f})" if len(own) > 1 else ""
        recall = "/".join(f"{mean(v[i] for v in own):.1f}" for i in (1, 2, 3))
        others = [f"{mean(v[0] for v in part):.1f}, {mean(v[1] for v in part):.1f}" for part in (cam, grad)]
        told = " ".join(f"`{change}`" for change in same[0].changes)
        cells = [name, told, len(own), f"{mean(v[0] for v in own):.1f}{span}", recall, *others]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def mean(numbers: Iterable[float]) -> float:
    """Of any numbers that are there."""
    values = list(numbers)
    return sum(values) / len(values)


def main() -> None:
    """Parse, run what is missing, write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", required=True)
    parser.add_argument(
        "--val", type=Path, required=True, help="Flickr30k Entities, the folder of its val split"
    )
    parser.add_argument("--texts", default="", help="caption texts, for the rows with co-occurrence vectors")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--only", nargs="*", help="studies")
    parser.add_argument("--rows", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time; the cores are shared out")
    parser.add_argument("--threads", type=int, default=0, help="of each row; 0 shares the cores out")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes of each training")
    parser.add_argument("--dry", action="store_true", help="print the commands")
    args = parser.parse_args()
    args.out = args.out.resolve()
    plan = yaml.safe_load((HERE / "experiments.yaml").read_text(encoding="utf-8"))
    studies = read_rows(plan, args)
    every = with_starts([row for rows in studies.values() for row in rows], plan, args)
    if args.dry:
        for row in every:
            print(*(shlex.join(["python", *command]) for command in commands(row, args)), sep="\n")
        return
    run_all(every, args)
    lines = [
        line for title, rows in studies.items() for line in (f"## {title}", "", *table(rows, args.out), "")
    ]
    (args.out / "experiments.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def run_all(rows: list[Row], args: argparse.Namespace) -> None:
    """Rows that start from others after those; the first alone, since it fills what all share."""
    bar = tqdm(total=len(rows), desc="rows", unit="row")
    waiting, done = list(rows), set[tuple[str, int]]()
    with ThreadPoolExecutor(args.jobs) as pool:
        while waiting:
            names = {(row.name, row.seed) for row in waiting}
            ready = [row for row in waiting if not any((name, row.seed) in names for name in row.after)]
            ready = ready if done else ready[:1]
            for row, problem in zip(ready, pool.map(lambda row: make(row, args), ready), strict=True):
                bar.update()
                if problem:
                    bar.write(problem)
                done.add((row.name, row.seed))
            waiting = [row for row in waiting if (row.name, row.seed) not in done]
    bar.close()


if __name__ == "__main__":
    main()
