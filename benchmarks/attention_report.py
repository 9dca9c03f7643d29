"""The tables and the plot of `attention.py`, written between two marks of a Markdown file."""

import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- attention: begin (benchmarks/attention.py) -->", "<!-- attention: end -->"
#: network -> task -> ratio to a forward pass on a CPU that we set out to reach (issues 5 and 15)
GOALS: dict[str, dict[str, float]] = {
    "resnet50": {"c1": 1.6, "u16": 3.0, "c16": 3.0},
    "googlenet": {"u16": 6.0, "c16": 6.0},
    "vgg16": {"u16": 2.4, "c16": 2.4},
    "default": {"c16": 1.3, "c64": 1.8},
    "vit_b_16, 1 block": {"u16": 2.0, "c16": 2.0, "u64": 4.0, "c64": 4.0},
    "vit_b_16, 2 blocks": {"u16": 2.0, "c16": 2.0, "u64": 4.0, "c64": 4.0},
    "vit_b_16, 12 blocks": {"u16": 2.0, "c16": 2.0, "u64": 4.0, "c64": 4.0},
}
#: share of the multiply-adds above the stage; U units cost at least F (1 + k + U k) at the speed of a batch of one
SHARE = {"resnet50": 0.198, "googlenet": 0.681, "vgg16": 0.098}
MEMORY_GOAL = 1.5  # of ours for 16 units, in a peer's for one


@dataclass
class Sample:
    """Measurements of one method at one task, a value a round."""

    cpu: list[float] = field(default_factory=list)  # ratios to a forward pass
    wall: list[float] = field(default_factory=list)
    forward_ms: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """Median CPU-time ratio, None before the first round."""
        return statistics.median(self.cpu) if self.cpu else None

    def kept(self) -> dict[str, Any]:
        """Plain values, rounded."""
        return {k: [round(x, 3) for x in v] if isinstance(v, list) else v for k, v in asdict(self).items()}


def write(results: dict[str, Any], output: Path | None) -> None:
    """Print the tables; with an output file put them and a plot there, and leave the rest of it as it is."""
    parts = [table(name, found) for name, found in results.items()]
    parts += [memory(name, found) for name, found in results.items() if found.get("memory")]
    text = "\n".join(parts)
    print(text)
    if output is None:
        return
    picture = output.with_name("performance_attention.png")
    plot(results, picture)
    block = f"{BEGIN}\n{text}\n![16 units of one image]({picture.name})\n\n{END}"
    old = output.read_text(encoding="utf-8") if output.exists() else f"# Performance\n\n{BEGIN}{END}\n"
    head, _, rest = old.partition(BEGIN)
    _, _, tail = rest.partition(END)
    output.write_text(head + block + tail, encoding="utf-8")


def table(name: str, found: dict[str, Any]) -> str:
    """One network: a row for each method, a column for each task."""
    times = {m: {t: Sample(**s) for t, s in samples.items()} for m, samples in found.get("time", {}).items()}
    if not times:
        return f"### {name} at {found['stage']}: times were not measured\n"
    tasks = list(dict.fromkeys(task for samples in times.values() for task in samples))
    goals, k = GOALS.get(name, {}), SHARE.get(name)
    rows = [f"### {name} at {found['stage']}\n", facts(found, times), ""]
    rows += [f"| | {' | '.join(tasks)} |", f"|---|{'---|' * len(tasks)}"]
    for method, samples in times.items():
        rows.append(f"| {method} | {' | '.join(cell(samples.get(t)) for t in tasks)} |")
    rows.append(f"| goal | {' | '.join(f'<= {goals[t]}' if t in goals else '' for t in tasks)} |")
    if k:
        floor = {t: f"{1 + k + int(t[1:]) * k:.2f}" for t in tasks if t[0] in "uc"}
        rows.append(f"| multiply-adds | {' | '.join(floor.get(t, '') for t in tasks)} |")
    return "\n".join(rows) + "\n"


def facts(found: dict[str, Any], times: dict[str, dict[str, Sample]]) -> str:
    """Command, machine, versions, load, and what a forward pass took."""
    f = found["facts"]
    every = [ms for of in times.values() for t, s in of.items() if t != "b8" for ms in s.forward_ms]
    return (
        f"`{f['command']}`, {f['date']}: {f['device']}, {f['threads']} threads, load {f['load']} at the start, "
        f"torch {f['torch']}, {f['rounds']} rounds. Forward pass {statistics.median(every):.0f} ms. "
        "CPU time (wall time), in forward passes."
    )


def cell(sample: Sample | None) -> str:
    """'1.52 (1.50)'."""
    if sample is None:
        return ""
    if sample.ratio is None:
        return sample.error or "?"
    return f"{sample.ratio:.2f} ({statistics.median(sample.wall):.2f})"


def memory(name: str, found: dict[str, Any]) -> str:
    """Peak MiB of each method and task, the goal beside it, and how far the maps are from ours."""
    tasks = list(dict.fromkeys(t for of in found["memory"].values() for t in of))
    rows = [
        f"### Peak memory of one call, {name}\n",
        "Resident MiB above the loaded process (tensors alone).\n",
    ]
    rows += [f"| | {' | '.join(tasks)} | maps differ by |", f"|---|{'---|' * (len(tasks) + 1)}"]
    for method, of in found["memory"].items():
        apart = {t: s["difference"] for t, s in of.items() if s.get("difference") is not None}
        said = "" if method == "phrase_loc" else ", ".join(f"{t} {d:.0e}" for t, d in apart.items())
        rows.append(f"| {method} | {' | '.join(mebibytes(of.get(t)) for t in tasks)} | {said} |")
    return "\n".join(rows) + "\n" + against_one(found["memory"])


def mebibytes(peak: dict[str, float | None] | None) -> str:
    """'78 (33)'."""
    if peak is None:
        return ""
    resident, tensors = (
        ("?" if peak[key] is None else f"{peak[key]:.0f}") for key in ("resident", "tensors")
    )
    return f"{resident} ({tensors})"


def against_one(found: dict[str, Any]) -> str:
    """Ours for 16 units in a peer's pass for one: TorchRay's, a forward pass with gradients."""
    said = []
    for peer in ("torchray", "autograd"):
        ours, theirs = found.get("phrase_loc", {}).get("u16"), found.get(peer, {}).get("u1")
        if ours and theirs:
            ratios = {
                key: ours[key] / theirs[key] for key in ("resident", "tensors") if ours[key] and theirs[key]
            }
            told = ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items())
            said.append(f"\n16 units of ours in one unit of {peer} (goal {MEMORY_GOAL}): {told}.\n")
    return "".join(said)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of the 16-unit tasks, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {name: found for name, found in results.items() if found.get("time")}
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 3.4), squeeze=False)
    for ax, (name, found) in zip(axes[0], shown.items(), strict=True):
        bars = [
            (f"{method} {task}", Sample(**samples[task]).ratio)
            for method, samples in found["time"].items()
            for task in ("u16", "c16", "g16")
            if task in samples and samples[task]["cpu"] and "trunk" not in method
        ][::-1]
        colours = ["tab:blue" if label.startswith("phrase_loc") else "tab:grey" for label, _ in bars]
        drawn = ax.barh([label for label, _ in bars], [value for _, value in bars], color=colours)
        ax.bar_label(drawn, fmt="%.1f", fontsize=6, padding=2)
        ax.set_xscale("log")
        ax.set_xlim(0.8, 120)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_title(f"{name} at {found['stage']}", fontsize=9)
        ax.tick_params(labelsize=7)
        ax.set_xlabel("forward passes for 16 units of one image", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
