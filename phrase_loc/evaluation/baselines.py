"""Answers that never look at the image: printed beside every score, since a blind guess scores them.

centre       points at (W/2, H/2); its box has half the sides of the image, around the centre
random       points anywhere; ten boxes between random corners: drawn by image and phrase, not by run
whole_image  the box [0, 0, W, H]; points at its centre
fixed_boxes  ten boxes in relative coordinates (blind_boxes.json), chosen on val by benchmarks/blind_boxes.py
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phrase_loc.evaluation.scoring import Answers, Method, Query, Request
from phrase_loc.structures import GroundingSample

Guess = Callable[[GroundingSample, Query], tuple[Tensor, Tensor]]  # -> (2,) point, (k, 4) boxes best first


class Baseline(Method):
    """A blind guess as a method: point and boxes from nothing but the size of the image and the words."""

    needs_image = False

    def __init__(self, name: str, guess: Guess):
        self.name, self.guess = name, guess

    def answer(self, sample: GroundingSample, queries: Sequence[Query], request: Request) -> Answers:
        """Answer distinct queries about one image; every phrase counts as known."""
        points, ranked = map(torch.stack, zip(*(self.guess(sample, query) for query in queries), strict=True))
        scores = torch.linspace(1, 0.5, ranked.shape[1]).expand(len(queries), -1)
        return Answers(
            torch.ones(len(queries), dtype=torch.bool),
            dict.fromkeys(request.borders, points),
            ranked[:, : request.top_k],
            scores[:, : request.top_k],
            dict.fromkeys(request.map_boxes, ranked[:, 0]),
        )


def _middle(*shares: float) -> Guess:
    """A box in shares of the sides, with the point in the middle of the image."""

    def guess(sample: GroundingSample, query: Query) -> tuple[Tensor, Tensor]:
        sides = _sides(sample.size)
        return sides[:2] / 2, (sides * torch.tensor(shares))[None]

    return guess


def _random(sample: GroundingSample, query: Query) -> tuple[Tensor, Tensor]:
    seed = hashlib.sha256("\n".join([sample.image_id, *query]).encode()).digest()[:8]
    draws = np.random.default_rng(int.from_bytes(seed, "big")).random((21, 2))
    corners = np.sort(draws[1:].reshape(10, 2, 2), axis=1).reshape(10, 4)
    sides = _sides(sample.size)
    return torch.from_numpy(draws[0]).float() * sides[:2], torch.from_numpy(corners).float() * sides


def _fixed_boxes(sample: GroundingSample, query: Query) -> tuple[Tensor, Tensor]:
    boxes = blind_boxes(torch.tensor(_chosen()), sample.size)
    return (boxes[0, :2] + boxes[0, 2:]) / 2, boxes


def _sides(size: tuple[int, int]) -> Tensor:
    return torch.tensor([size[1], size[0]] * 2)


def blind_boxes(relative: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes in shares of the sides -> pixels of an image (H, W): (R, 4) -> (R, 4).

    The last pixel belongs to the box, as where widths count + 1: the right half of 8 pixels is 4 to 7.
    """
    return relative * _sides(size) - torch.tensor([0.0, 0.0, 1.0, 1.0])


@cache
def _chosen() -> list[list[float]]:
    return json.loads(Path(__file__).with_name("blind_boxes.json").read_text(encoding="utf-8"))["boxes"]


#: Baselines by name.
BASELINES: dict[str, Guess] = {
    "centre": _middle(0.25, 0.25, 0.75, 0.75),
    "random": _random,
    "whole_image": _middle(0.0, 0.0, 1.0, 1.0),
    "fixed_boxes": _fixed_boxes,
}
