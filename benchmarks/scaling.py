"""What more photographs give: the recipe of configs/default.yaml on 1, 2, 4 and 8 eighths of the shards, three seeds.

    python benchmarks/scaling.py 'DIR/*.tar' VAL FOLDER [--seeds 3] [--sizes 1 2 4 8] [--at-once 1] [KEY=VALUE ...]

Each seed has other shards while there are any. A and U@1 are of all val phrases with a box, asked as shipped. The
law is limit - scale / photographs ** power, by least squares over the runs; its 95 % interval is of 2,000 resamples
of the seeds of each size. KEY=VALUE changes the training (`only=[head]`: on CPU cores). Finished runs in FOLDER are
kept.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import glob
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit

from phrase_loc.pairs.sources import open_source

METRICS = {"A": ("pointing_any", "accuracy"), "U@1": ("recall_union", "R@1")}
TRAIN = ["model.start=none", "few.below=0"]
METHOD = "contrastive_mwp"
ASK = [f"method=[{METHOD}]", "protocols=[pointing_any,recall_union]", "bootstrap=1"]
FURTHER = (30_000, 1_000_000)  # photographs of the prediction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("val", type=Path, help="folder of Flickr30k Entities")
    parser.add_argument("folder", type=Path, help="of runs")
    parser.add_argument("changes", nargs="*", help="KEY=VALUE of the training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8], help="shards")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side, on a GPU")
    args = parser.parse_args()
    shards = sorted(glob(args.shards))

    def row(asked: tuple[int, int]) -> dict[str, float]:
        size, seed = asked
        own = [shards[(seed * size + i) % len(shards)] for i in range(size)]
        found = run(own, args.val, args.folder / f"{size}-{seed}", seed, args.changes)
        print(json.dumps(found), flush=True)
        return found

    wanted = [(size, seed) for size in sorted(args.sizes, reverse=True) for seed in range(args.seeds)]
    with ThreadPoolExecutor(args.at_once) as pool:
        rows = list(pool.map(row, wanted))
    for metric in METRICS:
        print(metric, told(law(rows, metric)))


def run(shards: list[str], val: Path, out: Path, seed: int, changes: list[str]) -> dict[str, float]:
    """The photographs of a run and its figures in percent."""
    report = out / "report.json"
    if not report.exists():
        settings = [f"data.shards=[{','.join(shards)}]", f"out={out}", f"seed={seed}", *TRAIN, *changes]
        call("train.py", "configs/default.yaml", *settings)
        asked = ["configs/flickr30k.yaml", f"data.root={val}", "data.split=val", f"model={out / 'model'}"]
        call("evaluate.py", *asked, *ASK, f"output={report}")
    rows = [row for row in json.loads(report.read_text())["rows"] if row["method"] == METHOD]
    found = {(row["protocol"], row["metric"]): row["value"] for row in rows}
    count = len(open_source(shards, out / "index"))
    facts = {"shards": len(shards), "photographs": count, "seed": seed}
    return {**facts, **{name: found[key] for name, key in METRICS.items()}}


def call(*command: str) -> None:
    """Runs a command of the project; what it said goes to stderr where it fails."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        done.check_returncode()


def law(rows: list[dict[str, float]], metric: str, draws: int = 2000) -> np.ndarray:
    """(1 + draws, 3) limit, scale and power: of all runs, then of resampled seeds; a fit that fails is left out."""
    random = np.random.default_rng(0)
    x = np.array([row["photographs"] for row in rows], dtype=float)
    y = np.array([row[metric] for row in rows])
    sizes = np.array([row["shards"] for row in rows])
    places = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    chosen = [np.arange(len(x))]
    chosen += [np.concatenate([random.choice(own, len(own)) for own in places]) for _ in range(draws)]
    found = []
    for one in chosen:
        with suppress(RuntimeError):
            bounds = ([0, 0, 0.05], [100, 1e5, 2])
            found.append(curve_fit(curve, x[one], y[one], (80, 500, 0.5), bounds=bounds)[0])
    return np.stack(found)


def curve(photographs: np.ndarray | float, limit: float, scale: float, power: float) -> np.ndarray | float:
    """The figure after so many photographs, in percent."""
    return limit - scale / photographs**power


def told(found: np.ndarray) -> str:
    """The law and what it predicts, with intervals."""
    parts = dict(zip(("limit", "scale", "power"), found.T, strict=True))
    parts |= {f"at {n:,}": np.array([curve(n, *one) for one in found]) for n in FURTHER}
    shown = (
        f"{k} {v[0]:.4g} ({np.percentile(v, 2.5):.4g} to {np.percentile(v, 97.5):.4g})"
        for k, v in parts.items()
    )
    return "; ".join(shown)


if __name__ == "__main__":
    main()
