"""Choose a model's inference settings on Flickr30k Entities val, never on test.

    python benchmarks/choose_settings.py --model MODEL --root DIR [--split val] [--set KEY=VALUE] "KEY=V1;V2" ...

Every photograph is looked at once for all settings that see it alike; then each KEY is swept by itself around the
settings (`--set` changes them) and a line tells A (pointing_any) and U (recall_union at 1, 5, 10) in percent.
"""

import argparse
import itertools
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from phrase_loc.boxes import enclosing, iou
from phrase_loc.datasets.flickr30k import Flickr30kEntities
from phrase_loc.evaluation.scoring import inside_any
from phrase_loc.images import load_image
from phrase_loc.localizer import Inference, PhraseLocalizer, prepare
from phrase_loc.structures import GroundingSample, Scene


def figures(localizer: PhraseLocalizer, samples: list[GroundingSample], scenes: list[Scene]) -> list[float]:
    """A and U@1, U@5, U@10 in percent over all phrases with a box."""
    hits = torch.zeros(4)
    count = 0
    for sample, scene in zip(samples, scenes, strict=True):
        boxed = [i for i, boxes in enumerate(sample.boxes) if len(boxes)]
        texts = sorted({sample.phrases[i].text for i in boxed})
        answers = dict(zip(texts, localizer.locate(scene, texts, top_k=10), strict=True))
        count += len(boxed)
        for i in boxed:
            answer = answers[sample.phrases[i].text]
            if answer.peak is None:
                continue
            hits[0] += inside_any(answer.peak[None], sample.boxes[i][None], strict=True)[0]
            good = iou(answer.boxes, enclosing(sample.boxes[i])[None], offset=1.0)[:, 0] >= 0.5
            hits[1:] += torch.stack([good[:k].any() for k in (1, 5, 10)])
    return (100 * hits / count).tolist()


def look(localizer: PhraseLocalizer, samples: list[GroundingSample], settings: Inference) -> list[Scene]:
    """Each photograph seen with `settings`."""
    asked = localizer.with_settings(**asdict(settings))
    return [
        asked.look_at([prepare(load_image(s.path), settings, s.size)])[0] for s in tqdm(samples, disable=None)
    ]


def main() -> None:
    """Parse, look, sweep, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--joint", action="store_true", help="sweep all combinations instead of one key at a time"
    )
    parser.add_argument("sweep", nargs="*", metavar="KEY=V1;V2")
    args = parser.parse_args()
    localizer = PhraseLocalizer.from_pretrained(args.model)
    changes = {k: yaml.safe_load(v) for k, v in (pair.split("=", 1) for pair in args.set)}
    localizer = localizer.with_settings(**changes)
    swept = {k: [yaml.safe_load(v) for v in vs.split(";")] for k, vs in (p.split("=", 1) for p in args.sweep)}
    trials = [{}] + [{key: value} for key, values in swept.items() for value in values]
    if args.joint:
        trials = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
    samples = list(Flickr30kEntities(args.root, args.split))
    seen: dict[str, list[Scene]] = {}
    for trial in trials:
        asked = localizer.with_settings(**trial)
        s = asked.settings
        key = f"{s.image_sizes} {s.stage} {s.proposals} {s.ranker > 0}"
        if key not in seen:
            seen[key] = look(localizer, samples, s)
        values = " / ".join(f"{v:.2f}" for v in figures(asked, samples, seen[key]))
        print(f"{trial or 'as set'}: A / U@1 / U@5 / U@10 = {values}", flush=True)


if __name__ == "__main__":
    main()
