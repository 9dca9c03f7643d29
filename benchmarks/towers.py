"""Pretrained image-text pairs under the Flickr30k Entities protocols: a table with intervals, sizes and time.

    python benchmarks/towers.py openai/clip-vit-base-patch16 timm/resnet50_clip.openai \
        google/siglip-base-patch16-224 --root data/flickr30k_entities --split val \
        --duals negative mean --signed clamp contributions

Each model is asked as it comes (docs/towers.md), once for every rule asked for; `--set stage=block9` changes a
setting. Choose rules, stages and prompts on val and run the chosen one on test, once. A model that cannot be loaded
is named in the table and the others go on. The baselines of the protocols stand below.
"""

import argparse
import gc
import itertools
import json
import time
from pathlib import Path
from typing import Any

from phrase_loc.config import fields_of, value_of
from phrase_loc.datasets.flickr30k import Flickr30kEntities
from phrase_loc.distributed import World, pick_device
from phrase_loc.errors import PhraseLocError
from phrase_loc.evaluation.protocols import DataConfig, EvaluateConfig
from phrase_loc.evaluation.run import evaluate, report
from phrase_loc.files import write_text
from phrase_loc.images import load_image
from phrase_loc.localizer import Inference, PhraseLocalizer

#: (protocol, metric) -> head of its column
METRICS = {
    ("pointing_any", "accuracy"): "pointing (A)",
    ("recall_union", "R@1"): "R@1 (U)",
    ("recall_union", "R@5"): "R@5",
    ("recall_union", "R@10"): "R@10",
}
TIMED = 20  # photographs


def main() -> None:
    add = (parser := argparse.ArgumentParser(description=__doc__.splitlines()[0])).add_argument
    add("models", nargs="+", metavar="MODEL", help="hub ids, folders, open_clip:NAME/TAG")
    add("--root", type=Path, required=True, help="tree of Flickr30k Entities")
    add("--split", default="val")
    add("--duals", nargs="+", default=["negative"], choices=["negative", "mean"])
    add("--signed", nargs="+", default=["contributions"], choices=["clamp", "contributions"])
    add("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="inference setting")
    add("--limit", type=int, default=0, help="only the first so many images: a look, not a result")
    add("--device", default="auto")
    add(
        "--out",
        type=Path,
        default=Path("towers.md"),
        help="the table; all figures in the same name with .json",
    )
    args = parser.parse_args()
    pairs = (pair.split("=", 1) for pair in args.changes)
    settings = {key: value_of(value, key, fields_of(Inference).get(key, Any)) for key, value in pairs}
    rows: list[dict[str, Any]] = []
    for name, dual, signed in itertools.product(args.models, args.duals, args.signed):
        try:
            rows.append(measured(name, {**settings, "dual": dual, "signed": signed}, args))
        except PhraseLocError as error:
            rows.append({"model": name, "error": str(error)})
        gc.collect()
        write_text(args.out, table(rows, args))
        write_text(args.out.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    print(table(rows, args))


def measured(name: str, settings: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A model's figures under METRICS, with the baselines', its sizes, and its time per photograph."""
    localizer = PhraseLocalizer.from_pretrained(name, device=args.device).with_settings(**settings)
    data = DataConfig(root=args.root, split=args.split)
    output = args.out.with_suffix(".partial.json")
    options = {"device": args.device, "limit": args.limit, "csv": False, "resume": False, "output": output}
    config = EvaluateConfig(data=data, protocols=["pointing_any", "recall_union"], **options)
    found = report(evaluate(config, World(device=pick_device(args.device)), localizer))
    keys = ("protocol", "metric", "value", "ci95", "baselines", "count")
    text = sum(p.numel() for p in localizer.model.texts.parameters())
    return {
        "model": name,
        "settings": settings | {"stage": localizer.settings.stage, "image_sizes": localizer.settings.image_sizes},
        "rows": [{key: row.get(key) for key in keys} for row in found["rows"]],
        "image_parameters": sum(p.numel() for p in localizer.model.parameters()) - text,
        "text_parameters": text,
        "milliseconds": milliseconds(localizer, Flickr30kEntities(args.root, args.split)),
    }  # fmt: skip


def milliseconds(localizer: PhraseLocalizer, samples: Any) -> float:
    """Wall-clock time of a photograph with all its phrases, boxes proposed anew, files read before."""
    chosen = [sample for sample in itertools.islice(samples, TIMED + 1) if sample.path.is_file()]
    asked = [(load_image(sample.path), [phrase.text for phrase in sample.phrases]) for sample in chosen]
    for number, (picture, phrases) in enumerate(asked):
        if number == 1:  # the first is for warming up
            start = time.perf_counter()
        localizer(picture, phrases)
    return 1000 * (time.perf_counter() - start) / (len(asked) - 1) if len(asked) > 1 else float("nan")


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Markdown: percent with 95 % intervals over photographs."""
    heads = ["model", "dual, signed", "stage", "input", *METRICS.values(), "parameters", "ms"]
    lines, baselines = [heads, ["---"] * len(heads)], dict[str, list[str]]()
    for row in rows:
        if "error" in row:
            lines.append([row["model"], row["error"], *[""] * (len(heads) - 2)])
            continue
        own = {(r["protocol"], r["metric"]): r for r in row["rows"]}
        figures = [own[key] for key in METRICS]
        for name in figures[-1]["baselines"]:
            values = [f["baselines"].get(name) for f in figures]
            baselines[name] = ["" if value is None else f"{value:.1f}" for value in values]
        shown = [f"{f['value']:.1f} ({f['ci95'][0]:.1f} - {f['ci95'][1]:.1f})" for f in figures]
        s = row["settings"]
        sizes = f"{row['image_parameters'] / 1e6:.0f} + {row['text_parameters'] / 1e6:.0f} M"
        asked = [f"{s['dual']}, {s['signed']}", str(s["stage"]), str(s["image_sizes"][-1])]
        lines.append([row["model"], *asked, *shown, sizes, f"{row['milliseconds']:.0f}"])
    lines += [[name, "", "", "", *values, "", ""] for name, values in baselines.items()]
    limit = f", the first {args.limit} images: a look" if args.limit else ""
    said = f"Flickr30k Entities, {args.split}{limit}"
    return "\n".join([said, "", *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


if __name__ == "__main__":
    main()
