"""What a few photographs teach the shipped model: an invented tag, learned from photographs of dogs.

    python benchmarks/few.py SHARDS VAL FOLDER [--photographs 50 300 1000] [--seeds 0 1 2] [--full] [--scratch]

In the captions of N photographs drawn by the seed, "dog" is replaced by the invented "blicket", the run of
configs/default.yaml is given them, and its model is asked "a blicket" wherever an annotated val phrase ends in "dog",
without the centre prior. Beside it: "a dog" asked of the shipped model, and the centre of the image. `few.below` is
raised where N is more. `--full` also measures A (pointing_any, as shipped) of all val phrases with seed 0.
`--scratch` trains without the shipped model. Finished runs in FOLDER are kept.
"""

import argparse
import io
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from phrase_loc import PhraseLocalizer
from phrase_loc.datasets.flickr30k import Flickr30kEntities
from phrase_loc.evaluation.scoring import inside_any
from phrase_loc.pairs.sources import open_source
from phrase_loc.structures import Scene

TAG, KIND = "blicket", "dog"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("val", type=Path, help="folder of Flickr30k Entities")
    parser.add_argument("folder", type=Path, help="of photographs and runs")
    parser.add_argument("--photographs", type=int, nargs="+", default=[50, 300, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--scratch", action="store_true")
    args = parser.parse_args()
    shipped = PhraseLocalizer.from_pretrained("default")
    asked = scenes(shipped, args.val)
    centre = pointing(asked, lambda scene: (scene.size[1] / 2, scene.size[0] / 2))
    own = pointing(asked, peaks(shipped, KIND))
    print(
        f"{sum(len(boxes) for _, boxes in asked)} phrases: centre {centre:.1f}, 'a {KIND}' as shipped {own:.1f}\n"
    )
    print(
        "| photographs | seed | of the tag | pointing of the tag | old rows and trunk | A of val | seconds |"
    )
    print("|---|---|---|---|---|---|---|")
    for count in args.photographs:
        for seed in args.seeds:
            out = args.folder / f"{'scratch' if args.scratch else 'run'}-{count}-{seed}"
            photographs = args.folder / f"photographs-{count}-{seed}"
            seconds = learn(args.shards, photographs, out, count, seed, args.scratch)
            learned = PhraseLocalizer.from_pretrained(out / "model")
            same = unchanged(shipped, learned)  # so what was seen of a photograph serves both
            seen = asked if same else scenes(learned, args.val)
            hits = f"{pointing(seen, peaks(learned, TAG)):.1f}"
            said = learned.model.vocabulary.count(TAG)
            full = f"{accuracy(out, args.val):.1f}" if args.full and seed == 0 else ""
            kept = "the same bits" if same else "others"
            print(f"| {count} | {seed} | {said} | {hits} | {kept} | {full} | {seconds:.0f} |", flush=True)


def scenes(localizer: PhraseLocalizer, root: Path) -> list:
    """What is seen of each val photograph with a phrase that ends in the kind, and the boxes of each phrase."""
    found = []
    for sample in Flickr30kEntities(root, "val"):
        named = [re.search(rf"\b{KIND}s?$", phrase.text.lower()) for phrase in sample.phrases]
        boxes = [own for own, hit in zip(sample.boxes, named, strict=True) if hit and len(own)]
        if boxes:
            found.append((localizer.look(sample.path, sample.size), boxes))
    return found


def peaks(localizer: PhraseLocalizer, word: str) -> Callable[[Scene], tuple[float, float]]:
    """Where the localizer points when it is asked for the word."""

    def peak(scene: Scene) -> tuple[float, float]:
        found = localizer.locate(scene, [f"a {word}"])[0].peak
        return (-1.0, -1.0) if found is None else found  # an unknown word, a flat map: a miss

    return peak


def pointing(asked: list, peak: Callable[[Scene], tuple[float, float]]) -> float:
    """Percent of phrases of which some box holds the point."""
    hits = []
    for scene, boxes in asked:
        point = torch.as_tensor(peak(scene), dtype=torch.float32)[None]
        hits += [bool(inside_any(point, own[None], strict=True)) for own in boxes]
    return 100 * sum(hits) / len(hits)


def learn(shards: str, photographs: Path, out: Path, count: int, seed: int, scratch: bool) -> float:
    """Seconds of the run."""
    kept = out / "seconds.json"
    if kept.exists():
        return json.loads(kept.read_text())
    if not photographs.exists():
        write(shards, photographs, count, seed)
    begin = time.perf_counter()
    command = ["train.py", "configs/default.yaml", f"data.shards={photographs}", f"out={out}", f"seed={seed}"]
    command += (
        ["model.start=none", "vocabulary.min_count=5"] if scratch else [f"few.below={max(3000, count + 1)}"]
    )
    subprocess.run(
        [sys.executable, *command], check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    kept.write_text(json.dumps(time.perf_counter() - begin))
    return json.loads(kept.read_text())


def write(shards: str, folder: Path, count: int, seed: int) -> None:
    """Photographs with a text file beside each."""
    source = open_source(shards)
    folder.mkdir(parents=True)
    for number in sorted(random.Random(seed).sample(range(len(source)), count)):
        texts = [re.sub(rf"(?i)\b{KIND}(s?)\b", rf"{TAG}\1", text) for text in source.texts(number)]
        Image.open(io.BytesIO(source.image(number))).convert("RGB").save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text("\n".join(texts))


def unchanged(before: PhraseLocalizer, after: PhraseLocalizer) -> bool:
    """Whether the rows of the trained words, the head and the trunk are the same to the bit, and the calibration."""
    one, two = before.model.state_dict(), after.model.state_dict()
    rows = len(before.model.vocabulary)
    if len(two["words.vectors"]) < rows:
        return False
    two["words.vectors"] = two["words.vectors"][:rows]
    parts = [name for name in one if name.startswith(("trunk", "head", "words.vectors"))]
    same = all(torch.equal(one[name], two[name]) for name in parts)
    return same and before.model.config.calibration == after.model.config.calibration


def accuracy(out: Path, root: Path) -> float:
    """A of all val phrases, asked as shipped."""
    report = out / "report.json"
    if not report.exists():
        plan = ["configs/flickr30k.yaml", f"data.root={root}", "data.split=val", "protocols=[pointing_any]"]
        told = [f"model={out / 'model'}", f"output={report}", "bootstrap=1", "method=[contrastive_mwp]"]
        subprocess.run([sys.executable, "evaluate.py", *plan, *told], check=True, stdout=subprocess.DEVNULL)
    rows = json.loads(report.read_text())["rows"]
    found = [
        row["value"] for row in rows if row["protocol"] == "pointing_any" and row["metric"] == "accuracy"
    ]
    return float(found[0])


if __name__ == "__main__":
    main()
