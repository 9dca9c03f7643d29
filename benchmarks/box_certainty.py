"""Is a box with a large share of the vote (`ranking.vote`) more often right? On Flickr30k Entities.

    python benchmarks/box_certainty.py --root data/flickr30k_entities [--limit 247]

For each phrase with a box: the share of the probability of all proposals that lies on those which overlap the winner
by half, and whether the first box has IoU >= 0.5 with the union of the phrase's boxes or with one of them
(recall_any). Prints how well the share, `present` and the box's area tell right boxes from wrong ones (area under the
ROC curve, 50 % is chance) and the part that is right in fifths of the phrases by share.
"""

import argparse
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from phrase_loc.boxes import area, iou
from phrase_loc.datasets.flickr30k import Flickr30kEntities
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.ranking import score_boxes
from phrase_loc.structures import GroundingSample


def rows(localizer: PhraseLocalizer, sample: GroundingSample) -> list[tuple[float, float, float, bool]]:
    """Share, `present`, the box's share of the photograph, right or not, for each phrase with a box and an answer."""
    asked = [(p.text, boxes) for p, boxes in zip(sample.phrases, sample.boxes, strict=True) if len(boxes)]
    if not asked:
        return []
    texts = [text for text, _ in asked]
    s, scene = localizer.settings, localizer.look(sample.path, sample.size)
    heats = localizer.heat(localizer.attend(scene, texts).cpu(), (s.grid, s.grid))
    scores = score_boxes(heats, scene.proposals, scene.size, s.gamma, s.spread)
    added = localizer.box_scores(scene, scene.proposals, localizer.phrase_units(localizer.encode(texts)))
    scores = scores if added is None else scores + added
    near = (iou(scene.proposals, scene.proposals) >= 0.5).float()
    consensus = torch.softmax(scores / s.temperature, -1) @ near
    winner = (scores + 0.5 * consensus.clamp(min=1e-38).log()).argmax(-1)
    found = []
    for i, p in enumerate(localizer.locate(scene, texts, top_k=1)):
        true = asked[i][1].float()
        true = torch.cat([true, torch.cat([true[:, :2].amin(0), true[:, 2:].amax(0)])[None]])
        if len(p.boxes) and p.present is not None:
            right = float(iou(p.boxes[:1], true).max()) >= 0.5
            covered = float(area(p.boxes)[0]) / (scene.size[0] * scene.size[1])
            found.append((float(consensus[i, winner[i]]), p.present, covered, right))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=None)
    args = parser.parse_args()
    localizer = PhraseLocalizer.from_pretrained("default", device="cpu")
    samples = islice(Flickr30kEntities(args.root, "val"), args.limit)
    table = np.array([row for sample in samples for row in rows(localizer, sample)])
    share, present, covered, right = table.T
    print(f"{len(table)} phrases, {right.mean():.1%} right")
    for name, value in {"share of the vote": share, "present": present, "area of the box": covered}.items():
        print(f"AUC of {name}: {roc_auc_score(right, value):.1%}")
    edges = np.quantile(share, np.linspace(0, 1, 6))
    for low, high in pairwise(edges):
        part = right[(share >= low) & (share <= high)]
        print(f"share {low:.0%} to {high:.0%}: {len(part)} phrases, {part.mean():.1%} right")


if __name__ == "__main__":
    main()
