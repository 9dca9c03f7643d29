"""Choose the ten boxes of the `fixed_boxes` baseline: greedily, on val, never looking at an image.

    python benchmarks/blind_boxes.py DIR val phrase_loc/evaluation/blind_boxes.json

Candidates are all boxes with corners on a grid of eighths. Each step takes the box that makes most phrases
correct under recall_union (IoU >= 0.5 with the union box, widths + 1) that no earlier box made correct; of
equal ones the first in order of x1, y1, x2, y2.
"""

import json
import sys
from pathlib import Path

import torch

from phrase_loc.boxes import iou
from phrase_loc.datasets.flickr30k import Flickr30kEntities
from phrase_loc.evaluation.protocols import PROTOCOLS
from phrase_loc.evaluation.scoring import blind_boxes, gather

STEPS, NUMBER = 8, 10


def main() -> None:
    root, split, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    protocol = PROTOCOLS["recall_union"]
    spans = [(i, j) for i in range(STEPS) for j in range(i + 1, STEPS + 1)]
    grid = torch.tensor(sorted((x1, y1, x2, y2) for x1, x2 in spans for y1, y2 in spans)) / STEPS
    correct = []
    for sample in Flickr30kEntities(root, split):
        batch = gather(protocol, sample)
        boxes = blind_boxes(grid, sample.size).expand(len(batch), -1, 4)
        correct.append(iou(boxes.double(), batch.truth.double(), protocol.offset)[..., 0] >= protocol.iou)
    hits = torch.cat(correct)  # (phrases, candidates)
    left, chosen, recall = torch.ones(len(hits), dtype=torch.bool), [], []
    for _ in range(NUMBER):
        best = int(hits[left].sum(0).argmax())
        left &= ~hits[:, best]
        chosen.append(grid[best].tolist())
        recall.append(round(100 * float((~left).double().mean()), 2))
    command = f"python benchmarks/blind_boxes.py DIR {split} phrase_loc/evaluation/blind_boxes.json"
    facts = {"command": command, "phrases": len(hits), "recall": recall, "boxes": chosen}
    output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"R@1/5/10 on {len(hits)} phrases: {recall[0]} / {recall[4]} / {recall[9]}")


if __name__ == "__main__":
    main()
