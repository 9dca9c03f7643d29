"""The page ranks boxes itself when a slider moves: its JavaScript against ranking.py, in a real browser."""

import base64

import pytest
import torch

from phrase_loc.boxes import iou
from phrase_loc.ranking import rank_phrases, score_boxes
from phrase_loc.web.answers import encoded_map

#: What a case asks of the page; the maps come as the server sends them.
RANK = """
const [cases, done] = arguments;
import("./ranking.js").then(({ decodeMap, rank }) => done(cases.map((c) =>
  rank(decodeMap(c.map), c.map.side, Float64Array.from(c.boxes), c.size, c.options)
)), (error) => done(String(error)));
"""
SIZES = [(120, 80), (500, 333), (64, 300)]  # W, H


def case(seed: int) -> dict:
    """A smooth map, boxes of all kinds (tiny, without area, twice, over the edge), and a rule."""
    g = torch.Generator().manual_seed(seed)
    side, size = (8, 16, 33)[seed % 3], SIZES[seed % len(SIZES)]
    coarse = torch.rand(1, 1, 4, 4, generator=g)
    heat = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")[0, 0]
    scale = torch.tensor([*size, *size])
    corners = torch.rand(60, 4, generator=g).mul(1.2).sub(0.1) * scale
    boxes = torch.cat([corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])], 1)
    crowd = boxes[:1] + torch.randn(20, 4, generator=g) * 3
    crowd[:, 2:] = crowd[:, 2:].maximum(crowd[:, :2])
    boxes = torch.cat(
        [boxes, crowd, boxes[3:5], boxes[:1, [0, 1, 0, 1]], scale[None] * torch.tensor([0, 0, 1, 1])]
    )
    options = {"gamma": round(0.1 + 0.8 * torch.rand((), generator=g).item(), 2)}
    options |= {
        "spread": (0.0, 0.05, 0.3, 0.1)[seed % 4],
        "temperature": (0.1, 0.0, 0.02)[seed % 3],
        "nms": (0.5, 0.3)[seed % 2],
        "top_k": (1, 5, 100)[seed % 3],
        "added": [[], torch.randn(len(boxes), generator=g).div(5).tolist()][seed % 2],
    }
    return {"map": encoded_map(heat), "boxes": boxes.double(), "size": size, "options": options}


def flat_case() -> dict:
    return case(0) | {"map": encoded_map(torch.ones(8, 8))}


def boxes_without_area() -> dict:
    points = torch.tensor([[3.0, 4, 3, 4], [10, 10, 10, 40], [50, 60, 90, 60]], dtype=torch.double)
    return case(0) | {"boxes": points, "options": case(0)["options"] | {"top_k": 3}}


def in_python(asked: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The same question to ranking.py in 64 bits, of the same 16-bit map."""
    levels = torch.frombuffer(bytearray(base64.b64decode(asked["map"]["data"])), dtype=torch.uint16)
    heat = (levels.double() / 65535).view(1, asked["map"]["side"], -1)
    options = dict(asked["options"])
    options["overlap"] = options.pop("nms")
    options["added"] = torch.tensor([options["added"]]) if options["added"] else None
    width, height = asked["size"]
    return rank_phrases(heat, asked["boxes"], (height, width), **options)[0]


def share(asked: dict) -> float:
    """The part of the probability of all boxes that lies on those which overlap the winner of the vote by half."""
    levels = torch.frombuffer(bytearray(base64.b64decode(asked["map"]["data"])), dtype=torch.uint16)
    heat = (levels.double() / 65535).view(1, asked["map"]["side"], -1)
    options, (width, height) = asked["options"], asked["size"]
    scores = score_boxes(heat, asked["boxes"], (height, width), options["gamma"], options["spread"])[0]
    scores += torch.tensor(options["added"] or 0)
    near = iou(asked["boxes"], asked["boxes"]) >= 0.5
    consensus = near.double() @ torch.softmax(scores / options["temperature"], -1)
    return consensus[(scores + 0.5 * consensus.clamp(min=1e-38).log()).argmax()].item()


def test_the_page_ranks_as_python_does(page_browser):
    cases = [case(seed) for seed in range(120)] + [flat_case(), boxes_without_area()]
    sent = [c | {"boxes": c["boxes"].flatten().tolist()} for c in cases]
    answers = page_browser.execute_async_script(RANK, sent)
    assert not isinstance(answers, str), answers
    voted = 0
    for asked, answer in zip(cases, answers, strict=True):
        boxes, scores = in_python(asked)
        assert [a["score"] for a in answer] == pytest.approx(scores.tolist(), abs=1e-6)
        for mine, theirs in zip((a["xyxy"] for a in answer), boxes.tolist(), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
        if asked["options"]["temperature"]:
            assert answer[0]["share"] == pytest.approx(share(asked), abs=1e-6)
        voted += boxes[0].tolist() not in asked["boxes"].tolist()
    assert voted > 40  # a mean of proposals stood first, so the vote was compared too


def test_no_boxes(page_browser):
    asked = case(0) | {"boxes": []}
    assert page_browser.execute_async_script(RANK, [asked]) == [[]]
