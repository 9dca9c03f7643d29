"""The tables and the plot of `attention.py`, written between two marks of a Markdown file."""

import argparse
import os
import platform
import shlex
from pathlib import Path
from typing import Any

import torch

BEGIN, END = "<!-- attention: begin (benchmarks/attention.py) -->", "<!-- attention: end -->"
#: network -> task -> ratio to a forward pass on a CPU that we set out to reach (issue 5, item 2)
GOALS = {
    "resnet50": {"c1": 1.6, "u16": 3.0, "c16": 3.0},
    "googlenet": {"u16": 6.0, "c16": 6.0},
    "vgg16": {"u16": 2.4, "c16": 2.4},
    "default": {"c16": 1.3, "c64": 1.8},
}
#: share of the multiply-adds above the stage; U units cost at least F (1 + k + U k) at the speed of a batch of one
SHARE = {"resnet50": 0.198, "googlenet": 0.681, "vgg16": 0.098}


def write(results: dict[str, Any], args: argparse.Namespace, argv: list[str]) -> None:
    """Print the tables; with an output file put them and a plot there, and leave the rest of it as it is."""
    text = "\n".join([facts(args, argv), *(table(name, *found) for name, found in results.items())])
    print(text)
    if args.output is None:
        return
    picture = args.output.with_name("performance_attention.png")
    plot(results, picture)
    block = f"{BEGIN}\n{text}\n![16 units of one image]({picture.name})\n\n{END}"
    old = (
        args.output.read_text(encoding="utf-8")
        if args.output.exists()
        else f"# Performance\n\n{BEGIN}{END}\n"
    )
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    args.output.write_text(head + block + tail, encoding="utf-8")


def facts(args: argparse.Namespace, argv: list[str]) -> str:
    """Command, machine, versions, load."""
    name = (
        torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    )
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"`python benchmarks/attention.py {shlex.join(argv[1:])}`: {name}, {args.threads} threads{load}, "
        f"torch {torch.__version__}, {args.rounds} rounds. Ratios to one forward pass, CPU time (wall time); MiB.\n"
    )


def table(name: str, stage: str, found: dict[str, dict[str, Any]]) -> str:
    """One network: a row for each method, a column for each task."""
    tasks = list(dict.fromkeys(task for samples in found.values() for task in samples))
    goals, k = GOALS.get(name, {}), SHARE.get(name)
    rows = [f"### {name} at {stage}\n", f"| | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for method, samples in found.items():
        rows.append(f"| {method} | {' | '.join(cell(samples.get(t)) for t in tasks)} |")
    if goals:
        rows.append(f"| goal | {' | '.join(f'<= {goals[t]}' if t in goals else '' for t in tasks)} |")
    if k:
        floor = {t: f"{1 + k + int(t[1:]) * k:.2f}" for t in tasks if t[0] in "uc"}
        rows.append(f"| multiply-adds | {' | '.join(floor.get(t, '') for t in tasks)} |")
    return "\n".join(rows) + "\n"


def cell(sample: Any) -> str:
    """'1.52 (1.50), 64 MiB'."""
    if sample is None:
        return ""
    if sample.ratio is None:
        return sample.error or "?"
    wall = sorted(sample.wall)[len(sample.wall) // 2]
    memory = "" if sample.mebibytes is None else f", {sample.mebibytes:.0f} MiB"
    return f"{sample.ratio:.2f} ({wall:.2f}){memory}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of the 16-unit tasks, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [t for t in ("u16", "c16", "g16") if any(t in s for _, f in results.values() for s in f.values())]
    if not shown:
        return
    figure, axes = plt.subplots(1, len(results), figsize=(3.4 * len(results), 3.2), squeeze=False)
    for ax, (name, (stage, found)) in zip(axes[0], results.items(), strict=True):
        labels, values, colours = [], [], []
        for method, samples in found.items():
            for task in shown:
                if task in samples and samples[task].ratio:
                    labels.append(f"{method} {task}")
                    values.append(samples[task].ratio)
                    colours.append("tab:blue" if method.startswith("phrase_loc") else "tab:grey")
        ax.barh(labels[::-1], values[::-1], color=colours[::-1])
        ax.set_xscale("log")
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_title(f"{name} at {stage}", fontsize=9)
        ax.tick_params(labelsize=7)
        ax.set_xlabel("forward passes for 16 units", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
