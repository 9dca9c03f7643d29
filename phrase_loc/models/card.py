"""The model card, made from what the model is and what was measured of it.

`config.card` may hold, all optional: `summary`, `data`, `recipe`, `command`, `limits`, `license_note`
(texts), and `figures`: a list of {"protocol", "method", "metric", "value", "ci95", "count", "baselines"} as
reports have them, with `figures_of`, the set they were measured on.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from phrase_loc.models.model_config import ModelConfig

TASK = "zero-shot-object-detection"  # the hub's name that comes nearest
SECTIONS = {
    "data": "Data",
    "recipe": "Recipe",
    "command": "Command",
    "limits": "Limits",
    "license_note": "Licence",
}


def model_card(config: ModelConfig, words: int, extra_words: int, size: int) -> str:
    """Markdown with the front matter of a hub.

    Args:
        config: of the model.
        words: V, trained words.
        extra_words: M, further words.
        size: of the weights, bytes.
    """
    card = config.card
    parts = [
        f"---\n{yaml.safe_dump(front_matter(config), sort_keys=False, allow_unicode=True)}---",
        "# phrase_loc model",
        str(card.get("summary", "Type a phrase, get the region of the photograph it names.")),
        "\n".join(f"- {fact}" for fact in _facts(config, words, extra_words, size)),
        "```python\nfrom phrase_loc import PhraseLocalizer\n\n"
        'localizer = PhraseLocalizer.from_pretrained("FOLDER_OR_HUB_ID")\n'
        'localizer.locate(localizer.look("photo.jpg"), ["a red hat"])\n```',
    ]
    if card.get("figures"):
        parts += ["## Figures", str(card.get("figures_of", "")), _table(card["figures"])]
    if config.calibration:
        measured = {k: v for k, v in config.calibration.items() if isinstance(v, (int, float))}
        parts += [
            "## Is it there? (calibration)",
            "\n".join(f"- {k}: {_number(v)}" for k, v in measured.items()),
        ]
    for key, title in SECTIONS.items():
        if card.get(key):
            text = str(card[key])
            parts += [f"## {title}", f"```\n{text}\n```" if key == "command" else text]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(config: ModelConfig) -> dict[str, Any]:
    """What a hub reads of a card: licence, library, tags, and the figures of the method the model is asked by.

    The figures of other methods stand in the table of the card alone. One is named with all that it depends
    on: method, protocol, metric and, where it has one, its interval.
    """
    values: dict[str, Any] = {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "phrase_loc",
        "pipeline_tag": TASK,
        "tags": ["phrase-grounding", "weakly-supervised", "excitation-backprop", config.backbone],
    }
    figures = config.card.get("figures") or []
    own = str(config.inference.get("method", ""))
    chosen = [row for row in figures if own and str(row.get("method", "")).startswith(own)] or figures
    if chosen:
        dataset = {"type": "flickr30k_entities", "name": str(config.card.get("figures_of") or "not stated")}
        metrics = [
            {"type": str(r.get("metric", "")), "value": r.get("value"), "name": _name(r)} for r in chosen
        ]
        result = {"task": {"type": TASK}, "dataset": dataset, "metrics": metrics}
        values["model-index"] = [{"name": "phrase_loc", "results": [result]}]
    return values


def _name(row: dict[str, Any]) -> str:
    interval = " to ".join(_number(v) for v in row.get("ci95") or ())
    parts = (str(row.get(key, "")) for key in ("method", "protocol", "metric"))
    return ", ".join(parts) + (f" (95 % interval {interval})" if interval else "")


def _facts(config: ModelConfig, words: int, extra_words: int, size: int) -> list[str]:
    hidden = f"1x1 convolution to {config.hidden} channels" if config.hidden else "no hidden layer"
    return [
        f"backbone: {config.backbone}, batch norms folded",
        f"head: reads the last stage, {hidden}, pool {config.pool}",
        f"words: {words:,} trained, {extra_words:,} further ones; {config.embedding} numbers a vector",
        f"images: {config.image_size} pixels; weights: {size / 1e6:.1f} MB",
    ]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    baselines = sorted({name for row in rows for name in row.get("baselines") or {}})
    head = ["protocol", "method", "metric", "value", "95 % interval", *baselines, "count"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        low_high = row.get("ci95") or ()
        lines.append(
            [
                *(str(row.get(key, "")) for key in head[:3]),
                _number(row.get("value", "")),
                " to ".join(_number(v) for v in low_high),
                *(_number((row.get("baselines") or {}).get(name, "")) for name in baselines),
                str(row.get("count", "")),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
