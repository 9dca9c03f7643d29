"""Does it pay? A small detector learns from the boxes of `phrase-loc label`, and beside it from the true ones.

    python benchmarks/student.py FOLDER                     generated shapes (shape_pictures.py), written to FOLDER
    python benchmarks/student.py FOLDER --tree ROOT         photographs with YOLO labels (ROOT/images, ROOT/labels)
                                                            or Flickr30k Entities (val), class = last word of a phrase

Photographs are halved by a hash of their names. The training half is labelled by the model, which sees no box of
them; a student learns from these labels and another from the true boxes, with the same seed, steps and network, and
all are asked for the other half. A third learns from the labels of tagged photographs: somebody said which classes
each shows, and each of them is labelled, whatever its probability. AP50 is that of pycocotools, the mean over the
classes. The student is torchvision's FCOS with one level of 32 channels: of pixels, over four convolutions, for
shapes; over the frozen EfficientNet-Lite0 (stage 5, stride 16, squares of 320 pixels, each also mirrored) for
photographs, of the `--classes` most frequent classes. Finished students in FOLDER are kept.

The shipped model has never seen such shapes, so another labels them, `train.py` from scratch (the head alone, over
the ImageNet trunk) on `--captions` other pictures, whose captions name some of their things and no places. It is not
calibrated, so there are tagged labels alone.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shape_pictures import SHAPES, draw
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from phrase_loc.boxes import rescale
from phrase_loc.datasets import DATASETS
from phrase_loc.models import backbones
from phrase_loc.structures import GroundingSample, Phrase

PICTURES, SCALE = 400, 3  # generated, and how many times their size they are written
WIDTH, BATCH, RATE = 32, 16, 2e-3
SIDE, STRIDE, STAGE = 320, 16, "stage5"  # of photographs

Boxes = dict[str, Tensor]  # name of a class -> (M, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of pictures, labels and finished students")
    parser.add_argument("--tree", type=Path, metavar="ROOT", help="photographs with YOLO labels")
    parser.add_argument("--classes", type=int, default=5, help="how many classes, the most frequent")
    parser.add_argument(
        "--instances", type=int, default=1, help="boxes of a class that are labelled in a photograph"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--model", default="default")
    parser.add_argument("--captions", type=int, default=400, help="pictures that teach the model shapes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    root = args.tree or shapes(args.folder / "shapes")
    samples = list(read(root, list(SHAPES) if args.tree is None else None))
    seen = Counter(p.text for s in samples for p in s.phrases)
    names = [name for name, _ in seen.most_common(args.classes)] if args.tree else list(SHAPES)
    truth = {s.image_id: of_classes(s, names) for s in samples}
    halves = [[s for s in samples if half(s.image_id) == part] for part in (0, 1)]
    known = {s.image_id: truth[s.image_id] for s in halves[0]}
    model = args.model if args.tree else taught(args.folder, args.captions)
    options = ["--instances", str(args.instances), "--model", model]
    # first the answers that hold all boxes
    everything = labels(args.folder, halves[0], names, ["--threshold", "0", *options])
    by_word = labels(args.folder, halves[0], names, options) if args.tree else {}
    tagged = {i: {n: b for n, b in of.items() if n in known[i]} for i, of in everything.items()}
    teachers = {"our labels": by_word, "our labels of tagged photographs": tagged, "true boxes": truth}
    if not args.tree:
        del teachers["our labels"]
    inputs = pixels if args.tree is None else features()
    test = [(s, inputs(s)) for s in halves[1]]
    train = [(s, inputs(s)) for s in halves[0]]
    print(f"{len(train)} to learn from, {len(test)} tested; {', '.join(names)}")
    for kind in list(teachers)[:-1]:
        print(f"{kind}: {agreement(teachers[kind], known)}", flush=True)
    results: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for number, (kind, boxes) in enumerate(teachers.items()):
            kept = args.folder / f"student-{number}-of-{len(teachers)}-{seed}-{args.steps}.json"
            if not kept.exists():
                start = time.process_time()
                student = learn(train, boxes, names, seed, args.steps, args.tree is not None)
                found = {"ap50": ap50(student, test, truth, names), "seconds": time.process_time() - start}
                kept.write_text(json.dumps(found))
            found = json.loads(kept.read_text())
            results.setdefault(kind, []).append(found["ap50"])
            print(f"seed {seed}, {kind}: AP50 {found['ap50']:.1f} ({found['seconds']:.0f} s)", flush=True)
    print(f"\n| the student learnt from | AP50, {args.seeds} seeds | mean |\n|---|---|---|")
    for kind, values in results.items():
        print(f"| {kind} | {', '.join(f'{v:.1f}' for v in values)} | {np.mean(values):.1f} |")


def read(root: Path, names: list[str] | None) -> Sequence[GroundingSample]:
    """Photographs and the boxes of each class; of Flickr30k Entities each chain counts once, by its last words."""
    if not (root / "Sentences").is_dir():
        return DATASETS["yolo"](root=root, **({"names": names} if names else {}))
    samples = []
    for s in DATASETS["flickr30k"](root=root, split="val"):
        chains = {
            (phrase.text.lower().split()[-1], phrase.entity): boxes
            for phrase, boxes in zip(s.phrases, s.boxes, strict=True)
            if len(boxes)
        }
        words = dict.fromkeys(word for word, _ in chains)
        boxes = tuple(torch.cat([b for (w, _), b in chains.items() if w == word]) for word in words)
        samples.append(replace(s, phrases=tuple(map(Phrase, words)), boxes=boxes, facts={}))
    return samples


def half(name: str) -> int:
    """0 for training, 1 for the test, by the name."""
    return hashlib.sha256(name.encode()).digest()[0] % 2


def shapes(folder: Path) -> Path:
    """Generated pictures of one to three shapes as a tree with YOLO labels, class = shape."""
    if (
        folder / f"labels/{PICTURES - 1:04}.txt"
    ).exists():  # another time of change would be another photograph
        return folder
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    for index in range(PICTURES):
        picture = draw(0, index, (1, 3))
        image = Image.fromarray(picture.pixels)
        width, height = image.size
        lines = []
        for thing in picture.things:
            x1, y1, x2, y2 = (v / side for v, side in zip(thing.box, (width, height) * 2, strict=True))
            place = f"{(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}"
            lines.append(f"{SHAPES.index(thing.shape)} {place}\n")
        image.resize((width * SCALE, height * SCALE), Image.Resampling.BICUBIC).save(
            folder / f"images/{index:04}.png"
        )
        (folder / f"labels/{index:04}.txt").write_text("".join(lines))
    return folder


def taught(folder: Path, count: int) -> str:
    """A model that learnt its words from the captions of generated pictures: its folder."""
    pictures, out = folder / "captioned", folder / "taught"
    if (out / "model").exists():
        return str(out / "model")
    pictures.mkdir(exist_ok=True)
    for index in range(count):
        picture = draw(1, index, (1, 3))
        image = Image.fromarray(picture.pixels)
        image = image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC)
        image.save(pictures / f"{index:04}.png")
        (pictures / f"{index:04}.txt").write_text(picture.caption)
    settings = "model.start=none vocabulary.min_count=5 only=[head] average_of=[head] phases.head.epochs=40"
    command = ["train.py", "configs/default.yaml", f"data.shards={pictures}", f"out={out}", *settings.split()]
    subprocess.run([sys.executable, *command, "inference.stage=features"], check=True)
    return str(out / "model")


def of_classes(sample: GroundingSample, names: Sequence[str]) -> Boxes:
    """The boxes of the classes asked for."""
    return {p.text: boxes for p, boxes in zip(sample.phrases, sample.boxes, strict=True) if p.text in names}


def labels(
    folder: Path, samples: Sequence[GroundingSample], names: Sequence[str], options: list[str]
) -> dict[str, Boxes]:
    """What `phrase-loc label` says of the training half: image id -> boxes. Its answers are kept in the folder."""
    classes, out = folder / "classes.txt", folder / "labels"
    classes.write_text("".join(f"{name}: {name}\n" for name in names))
    command = [sys.executable, "-m", "phrase_loc", "label", *(str(s.path) for s in samples)]
    command += ["--phrases", str(classes), "--output", str(out), "--format", "coco", "--workers", "0"]
    subprocess.run([*command, *options], check=True)
    if not json.loads((out / "coco.json").read_text())["annotations"]:
        return {}
    found = DATASETS["table"](root=samples[0].path.parent, table=str(out / "coco.json"))
    frames = {s.image_id: s.size for s in samples}  # of an annotation, where the photograph is a smaller copy
    named = ((Path(s.image_id).stem, s) for s in found)
    return {i: {n: rescale(b, s.size, frames[i]) for n, b in of_classes(s, names).items()} for i, s in named}


def agreement(own: dict[str, Boxes], truth: dict[str, Boxes]) -> str:
    """How many labels there are, and how many overlap a true box of their class by half."""
    from phrase_loc.boxes import iou

    pairs = [(boxes, truth[i].get(name)) for i, of in own.items() for name, boxes in of.items()]
    right = sum(int((iou(b, t).amax(1) >= 0.5).sum()) for b, t in pairs if t is not None)
    count, true = sum(len(b) for b, _ in pairs), sum(len(b) for of in truth.values() for b in of.values())
    return f"{count} boxes for {true} true ones, {right} overlap one of their class by half"


def pixels(sample: GroundingSample) -> list[Tensor]:
    """The picture at its own size, (3, H, W), once."""
    image = Image.open(sample.path).convert("RGB")
    small = image.resize((image.width // SCALE, image.height // SCALE), Image.Resampling.BOX)
    return [torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1]


def features() -> Callable[[GroundingSample], list[Tensor]]:
    """The frozen network's features of a photograph and of its mirror image, (C, h, w) each."""
    trunk = backbones.build("efficientnet_lite0", backbones.IMAGENET)
    stages = trunk[: [name for name, _ in trunk.named_children()].index(STAGE) + 1]

    @torch.inference_mode()
    def of(sample: GroundingSample) -> list[Tensor]:
        image = Image.open(sample.path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        x = (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127) / 128
        return [*stages(torch.stack([x, x.flip(2)]))]

    return of


class Plain(nn.Module):
    """In place of the detector's own resizing: inputs of one size stay as they are."""

    def forward(self, images: list[Tensor], targets: Any) -> tuple[ImageList, Any]:
        """A batch of them, and their sizes."""
        return ImageList(torch.stack(images), [(i.shape[-2], i.shape[-1]) for i in images]), targets

    def postprocess(self, found: Any, *sizes: Any) -> Any:
        """The boxes as they are found."""
        return found


class Stem(nn.Module):
    """A convolution over frozen features, in whose cells all is measured, or four over pixels, of stride 8."""

    out_channels = WIDTH

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        sizes = [(112, 1, 1)] if frozen else [(3, 3, 2), (WIDTH, 3, 2), (WIDTH, 3, 2), (WIDTH, 3, 1)]
        layers = [
            nn.Sequential(nn.Conv2d(c, WIDTH, k, s, k // 2), nn.GroupNorm(8, WIDTH), nn.ReLU())
            for c, k, s in sizes
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, h, w) to the one level of the detector."""
        return {"0": self.layers(x)}


def detector(classes: int, frozen: bool) -> FCOS:
    """The student, untrained."""
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    if frozen:  # lengths are in cells, and a size of 1 would be rounded to none
        anchors.cell_anchors = [torch.tensor([[-0.5, -0.5, 0.5, 0.5]])]
    settings = {"score_thresh": 0.01, "nms_thresh": 0.5, "topk_candidates": 200, "detections_per_img": 50}
    student = FCOS(Stem(frozen), classes, anchor_generator=anchors, **settings)
    student.transform = Plain()
    return student


def learn(
    train: Sequence[tuple[GroundingSample, list[Tensor]]],
    boxes: dict[str, Boxes],
    names: Sequence[str],
    seed: int,
    steps: int,
    frozen: bool,
) -> FCOS:
    """A student of these boxes; the seed draws its weights and its batches, whosever the boxes are."""
    torch.manual_seed(seed)
    student = detector(len(names), frozen).train()
    pairs = [
        (x, target(s, boxes.get(s.image_id, {}), names, x, bool(turn)))
        for s, views in train
        for turn, x in enumerate(views)
    ]
    optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        chosen = [pairs[i] for i in torch.randint(len(pairs), (BATCH,)).tolist()]
        losses = student([x for x, _ in chosen], [t for _, t in chosen])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return student.eval()


def target(
    sample: GroundingSample, boxes: Boxes, names: Sequence[str], x: Tensor, mirrored: bool
) -> dict[str, Tensor]:
    """Boxes and numbers of classes in the frame of an input."""
    frame = (x.shape[-2], x.shape[-1])
    found = torch.cat([torch.zeros(0, 4), *boxes.values()])
    found = rescale(found, sample.size, frame)
    if mirrored:
        found = torch.stack([frame[1] - found[:, 2], found[:, 1], frame[1] - found[:, 0], found[:, 3]], 1)
    numbers = [names.index(name) for name, of in boxes.items() for _ in of]
    return {"boxes": found, "labels": torch.tensor(numbers, dtype=torch.long)}


@torch.inference_mode()
def ap50(
    student: FCOS,
    test: Sequence[tuple[GroundingSample, list[Tensor]]],
    truth: dict[str, Boxes],
    names: Sequence[str],
) -> float:
    """Average precision at IoU 0.5 by pycocotools, the mean over the classes, in percent."""
    images, true, found = [], list[dict[str, Any]](), list[dict[str, Any]]()
    for number, (sample, (x, *_)) in enumerate(test, start=1):
        images.append({"id": number, "width": sample.size[1], "height": sample.size[0]})
        for name, boxes in truth[sample.image_id].items():
            kind = {"image_id": number, "category_id": names.index(name), "iscrowd": 0}
            for box in map(xywh, boxes.tolist()):
                true.append(kind | {"id": len(true) + 1, "bbox": box, "area": box[2] * box[3]})
        answer = student([x])[0]
        boxes = rescale(answer["boxes"], (x.shape[-2], x.shape[-1]), sample.size)
        for box, score, label in zip(
            boxes.tolist(), answer["scores"].tolist(), answer["labels"].tolist(), strict=True
        ):
            found.append({"image_id": number, "category_id": label, "bbox": xywh(box), "score": score})
    if not found:
        return 0.0
    with redirect_stdout(io.StringIO()):
        reference = COCO()
        categories = [{"id": i, "name": name} for i, name in enumerate(names)]
        reference.dataset = {"images": images, "annotations": true, "categories": categories, "info": {}}
        reference.createIndex()
        counted = COCOeval(reference, reference.loadRes(found), "bbox")
        counted.evaluate()
        counted.accumulate()
        counted.summarize()
    return 100 * float(counted.stats[1])


def xywh(box: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2 as x, y, width, height."""
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


if __name__ == "__main__":
    main()
