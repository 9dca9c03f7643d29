"""The pointing game against hand-made cases and a slow twin of the published rule."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from phrase_loc.evaluation.protocols import CLASS_PROTOCOLS
from phrase_loc.evaluation.scoring import SCORERS, disc_pointing, distance_to_boxes, touches

NAN = float("nan")


def slow_hit(mask: np.ndarray, point: tuple[float, float], tolerance: float) -> bool:
    """The rule of TorchRay's PointingGame.evaluate, pixel by pixel."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
    return bool((mask & ((rows - point[1]) ** 2 + (columns - point[0]) ** 2 < tolerance**2)).any())


@pytest.mark.parametrize(
    "point, hit",
    [
        ((10, 10), True),
        ((5, 25), True),
        ((44, 10), True),
        ((45, 10), False),
        ((41, 41), False),
        ((39, 39), True),
    ],
)
def test_tolerance_is_a_disc_strictly_below_15_pixels(point, hit):
    truth = torch.tensor([[[0.0, 0, 30, 30], [NAN] * 4]])  # (39, 39) is 12.7 away, (41, 41) is 15.6
    answers = SimpleNamespace(peaks={0: torch.tensor([point], dtype=torch.float32)})
    value = disc_pointing(CLASS_PROTOCOLS["voc_pointing"], SimpleNamespace(truth=truth), answers)
    assert bool(value["accuracy"][0]) == hit


def test_box_rule_is_the_pixel_rule():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        corners = torch.randint(0, 60, (2, 2), generator=generator)
        x1, y1 = corners.amin(0).tolist()
        x2, y2 = corners.amax(0).tolist()
        point = torch.randint(0, 80, (1, 2), generator=generator).float()
        mask = np.zeros((80, 80), dtype=bool)
        mask[y1 : y2 + 1, x1 : x2 + 1] = True  # both corner pixels belong to the box, as in VOC
        distance = distance_to_boxes(point, torch.tensor([[[x1, y1, x2, y2]]], dtype=torch.float32))
        assert bool(distance[0] < 15) == slow_hit(mask, tuple(point[0].tolist()), 15)


def test_masks_equal_the_slow_twin_at_the_borders_too():
    generator = np.random.default_rng(0)
    for _ in range(50):
        mask = np.zeros((60, 90), dtype=bool)
        y, x = generator.integers(0, 50), generator.integers(0, 80)
        mask[y : y + 5, x : x + 3] = True
        code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
        point = (float(generator.integers(0, 90)), float(generator.integers(0, 60)))
        assert touches(code, list(point), 15) == slow_hit(mask, point, 15)


def test_no_answer_is_a_miss():
    boxes = torch.tensor([[[0.0, 0, 9, 9]]])
    assert distance_to_boxes(torch.tensor([[NAN, NAN]]), boxes).isinf().all()
    assert distance_to_boxes(torch.zeros(1, 2), torch.zeros(1, 0, 4)).isinf().all()
    code = rle.encode(np.ones((9, 9), dtype=np.uint8, order="F"))
    assert not touches(code, [NAN, NAN], 15)


def test_mask_pointing_reads_the_mask_of_each_item():
    empty, full = (rle.encode(np.full((40, 40), v, dtype=np.uint8, order="F")) for v in (0, 1))
    batch = SimpleNamespace(sample=SimpleNamespace(facts={"masks": (empty, full)}), members=((1,), (0,)))
    answers = SimpleNamespace(peaks={0: torch.full((2, 2), 20.0)})
    value = SCORERS["mask_pointing"](CLASS_PROTOCOLS["coco_pointing"], batch, answers)
    assert value["accuracy"].tolist() == [1, 0]


def test_every_class_protocol_has_a_difficult_twin_and_a_scorer():
    kinds = {protocol.kind for protocol in CLASS_PROTOCOLS.values()}
    assert kinds <= set(SCORERS)
    for name in ("voc", "coco", "yolo"):
        twin = CLASS_PROTOCOLS[f"{name}_pointing_difficult"]
        assert twin.subset == "hard"
        assert twin.average == CLASS_PROTOCOLS[f"{name}_pointing"].average == "label"
