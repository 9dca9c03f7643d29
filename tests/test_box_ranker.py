"""The learned score of boxes: its numbers against a plain twin, what it learns, and where it is asked."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from phrase_loc.cli import main
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.pairs.sources import open_source
from phrase_loc.ranking import CELLS, FRAME, WIDTH, BoxRanker, hit_probability, vote
from phrase_loc.training.box_ranker import Example, learn, teach

SIZE = (63, 90)  # the frame of a plane of 21 x 30 cells


def ranker_of(channels: int = 5, units: int = 8) -> BoxRanker:
    torch.manual_seed(0)
    ranker = BoxRanker(channels, units).eval()
    ranker.mean.normal_()
    ranker.std.uniform_(0.5, 2)
    return ranker


def test_regions_are_described_as_a_plain_twin_does():
    ranker, plane = ranker_of(), torch.randn(5, 21, 30)
    boxes = torch.tensor([[9.0, 9, 36, 36], [0, 0, 90, 63], [27, 18, 54, 54]])
    with torch.no_grad():
        found = ranker.describe(plane, boxes, SIZE)
        values = ranker.lift((plane.permute(1, 2, 0) - ranker.mean) / ranker.std).permute(2, 0, 1)
    for row, box in zip(found, (boxes / 3).int().tolist(), strict=True):  # in cells
        x1, y1, x2, y2 = box
        width, height = x2 - x1, y2 - y1
        expected = []
        for j in range(CELLS):
            for i in range(CELLS):
                inside = values[
                    :,
                    y1 + i * height // CELLS : y1 + (i + 1) * height // CELLS,
                    x1 + j * width // CELLS : x1 + (j + 1) * width // CELLS,
                ]
                expected.append(inside.mean((1, 2)))
        assert torch.allclose(row[: WIDTH * CELLS**2], torch.cat(expected), atol=1e-4)
        weights = torch.zeros(21, 30)  # what of each cell lies on the frame
        for y in range(21):
            for x in range(30):
                over_x = min(x + 1, x2 + FRAME * width) - max(x, x1 - FRAME * width)
                over_y = min(y + 1, y2 + FRAME * height) - max(y, y1 - FRAME * height)
                inside = x1 <= x < x2 and y1 <= y < y2
                weights[y, x] = max(over_x, 0) * max(over_y, 0) - inside
        around = (values * weights).sum((1, 2)) / max(weights.sum(), 0.3)
        place = WIDTH * CELLS**2
        assert torch.allclose(row[place : place + WIDTH], around, atol=1e-3)
        assert torch.allclose(row[place + WIDTH : place + 2 * WIDTH], values.mean((1, 2)), atol=1e-4)
        share = width * height / 630
        assert torch.allclose(
            row[-3:], torch.tensor([np.log(share), np.log(width / height), share**0.5]).float()
        )


def test_the_probability_of_a_hit_is_that_of_the_vote():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]])
    scores = torch.tensor([[0.0, 0.05, 0.02]])
    trust = torch.softmax(scores / 0.1, -1)[0]
    expected = torch.stack([trust[0] + trust[1], trust[0] + trust[1], trust[2]])
    assert torch.allclose(hit_probability(boxes, scores, 0.1)[0], expected)
    assert len(vote(boxes, scores, 0.1)[0]) == 4


def test_it_learns_what_the_words_of_many_photographs_have_in_common():
    """Two words, each a channel that is high over a square; of each photograph's map one box in three is wrong."""
    draw, units = torch.Generator().manual_seed(0), torch.eye(2, 8)
    boxes = torch.tensor([[x, y, x + 30, y + 30] for y in (0.0, 30) for x in (0.0, 30, 60)])

    def photograph(spoilt: bool) -> tuple[Example, torch.Tensor]:
        plane, places = 0.1 * torch.randn(5, 21, 30, generator=draw), torch.randperm(6, generator=draw)[:2]
        for channel, place in enumerate(places.tolist()):
            x, y = (boxes[place, :2] / 3).int().tolist()
            plane[channel, y : y + 10, x : x + 10] += 1
        said = torch.randint(6, (2,), generator=draw) if spoilt else places
        return Example(plane.half(), boxes, SIZE, units, torch.nn.functional.one_hot(said, 6).float()), places

    ranker = learn([photograph(number % 3 == 0)[0] for number in range(240)], epochs=4)
    asked = [photograph(False) for _ in range(20)]
    with torch.no_grad():
        best = [ranker(e.plane.float(), e.boxes, e.size, e.units).argmax(1) for e, _ in asked]
    assert torch.equal(torch.stack(best), torch.stack([places for _, places in asked]))


def test_few_photographs_are_refused():
    with pytest.raises(DataError, match="learns from 8 photographs or more, got 0"):
        learn([])


@pytest.fixture
def photographs(tmp_path):
    """Twelve photographs of noise with a caption each, one of them broken, one that names nothing known."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        text = "a zorglub" if number == 3 else "a man in a red hat, and a dog"
        (folder / f"{number}.txt").write_text(text)
    (folder / "7.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def taught(tiny_localizer, photographs):
    asked = tiny_localizer.with_settings(proposals="windows", stage=("features", "stage2"))
    taught, said = teach(asked, open_source(str(photographs)), 100)
    assert said == {"photographs": 10, "left_out": 2, "phrases": 30}
    return taught


def test_a_taught_model_is_saved_whole_and_asked_only_where_its_weight_says_so(taught, tmp_path, drawn_image):
    with_ranker = taught.with_settings(ranker=0.5)
    folder = with_ranker.save_pretrained(tmp_path / "model")
    loaded = PhraseLocalizer.from_pretrained(folder, device="cpu")
    assert loaded.model.config.ranker == ("stage2", taught.model.head.ranker.mean.shape[0])
    without, own, again = (x(drawn_image, ["the dog", "zorglub"]) for x in (taught, with_ranker, loaded))
    assert own[0].scores[0] < without[0].scores[0]
    assert torch.equal(own[0].attention, without[0].attention)
    assert torch.allclose(own[0].scores, again[0].scores, atol=0.01)
    assert not len(own[1].boxes)


@pytest.mark.parametrize("stage", ["features", ("features", "stage1"), "stage2"])
def test_it_reads_its_own_stage_wherever_maps_are_read(taught, stage, drawn_image):
    asked = taught.with_settings(ranker=0.5, stage=stage)
    scene, boxes = asked.look(drawn_image), torch.tensor([[0.0, 0, 60, 40], [10, 10, 100, 70]])
    units = asked.phrase_units(asked.encode(["the dog"]))
    own = taught.with_settings(ranker=0.5)
    expected = own.box_scores(own.look(drawn_image), boxes, units)
    assert torch.allclose(asked.box_scores(scene, boxes, units), expected, atol=1e-5)
    without = taught.with_settings(stage=stage)
    maps = asked.attend(scene, ["the dog"])
    assert torch.equal(maps, without.attend(without.look(drawn_image), ["the dog"]))


def test_a_model_without_one_is_not_asked(tiny_localizer):
    with pytest.raises(ConfigError, match="no box ranker; set ranker=0, or teach it one"):
        tiny_localizer.with_settings(ranker=0.1)


def test_the_command_teaches_a_folder_in_place(tiny_model, photographs, tmp_path, capsys):
    out, asked = tmp_path / "taught", ["--set", "proposals=windows", "--set", "ranker=0.3"]
    assert (
        main(["learn-ranker", str(tiny_model), "--shards", str(photographs), "--output", str(out), *asked])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["photographs"] == 10
    assert PhraseLocalizer.from_pretrained(out, device="cpu").settings.ranker == 0.3
    assert main(["learn-ranker", str(tmp_path / "none"), "--shards", str(photographs)]) == 2
    assert "name an --output folder" in capsys.readouterr().err
