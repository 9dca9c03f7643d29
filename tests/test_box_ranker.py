"""The box ranker: what it reads against a plain twin, what it learns, where it is asked, and its command."""

import json
from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from phrase_loc.cli import main
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.evaluation.methods import build
from phrase_loc.evaluation.protocols import PROTOCOLS, DataConfig, EvaluateConfig
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.store import load_model, save_model
from phrase_loc.pairs.sources import open_source
from phrase_loc.ranking import CELLS, FRAME, WIDTH, BoxRanker, rank_phrases
from phrase_loc.structures import GroundingSample
from phrase_loc.training.box_ranker import WITH, Example, learn, teach
from phrase_loc.web.app import create_app
from tests.training.pairs import write_set
from tests.training.runs import KEPT, run, started_model
from tests.web.conftest import LIMITS

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


@pytest.fixture
def captioned(tmp_path):
    """Twelve pictures of noise with a caption each, one of them broken, one that names nothing known."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        text = "a zorglub" if number == 3 else "a man in a red hat, and a dog"
        (folder / f"{number}.txt").write_text(text)
    (folder / "7.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def taught(tiny_localizer, captioned):
    asked = tiny_localizer.with_settings(proposals="windows", stage=("features", "stage2"), ranker=0.5)
    found, said = teach(asked, open_source(str(captioned)), 100)
    assert said == {"photographs": 10, "phrases": 30, "left_out": {"image": 1, "words": 1}}
    assert tiny_localizer.model.config.ranker is None
    return found


PHRASES = ["the dog", "zorglub", "a red hat"]


def test_its_log_probability_is_added_to_the_scores(taught, drawn_image):
    without, scene = taught.with_settings(ranker=0.0), taught.look(drawn_image)
    units = taught.phrase_units(taught.encode(PHRASES))
    assert not units[1].any()
    heats = taught.heat(taught.attend(scene, PHRASES), (16, 16))
    added = taught.box_scores(scene, scene.proposals, units)
    assert added.shape == (3, len(scene.proposals))
    assert (added < 0).all()
    assert added[0].std() > 0
    own, plain = (x.rank_all(scene, x.attend(scene, PHRASES), 5, units) for x in (taught, without))
    for heat, row, (boxes, scores), (_, unlike) in zip(heats, added, own, plain, strict=True):
        rule = {"gamma": 0.4, "temperature": 0.1, "top_k": 5}
        (expected,) = rank_phrases(heat[None], scene.proposals, scene.size, added=row[None], **rule)
        torch.testing.assert_close(boxes, expected[0])  # one phrase and several differ in rounding
        torch.testing.assert_close(scores, expected[1])
        assert not torch.equal(scores, unlike)
    found = taught.locate(scene, PHRASES)
    torch.testing.assert_close(found[0].boxes, own[0][0])
    torch.testing.assert_close(found[2].scores, own[2][1])
    assert not len(found[1].boxes)


def test_evaluation_and_page_rank_as_a_query_does(taught, drawn_image, tmp_path):
    drawn_image.save(tmp_path / "photo.png")
    sample = GroundingSample("1", tmp_path / "photo.png", (80, 120), (), (), ())
    (method,), _ = build(EvaluateConfig(data=DataConfig(root=".")), [], [], taught.device, taught)
    test = PROTOCOLS["recall_any"].but("first three", "", top_k=3)
    answers = method.answer(sample, [(phrase,) for phrase in PHRASES], [test])
    found = taught(drawn_image, PHRASES, 3)
    for at in (0, 2):
        assert torch.allclose(answers.boxes[at], found[at].boxes, atol=1e-4)
    with TestClient(create_app(taught, LIMITS)) as client:
        files = {"image": (tmp_path / "photo.png").read_bytes()}
        asked = {"phrases": json.dumps(PHRASES), "maps": "true", "top_k": "3"}
        answer = client.post("/api/localize", files=files, data=asked).json()
    scene = taught.look(drawn_image)
    expected = taught.box_scores(scene, scene.proposals, taught.phrase_units(taught.encode(PHRASES)))
    for shown, row in zip(answer["predictions"], expected, strict=True):
        assert shown["added"] == pytest.approx(row.tolist(), abs=1e-4)


def test_one_learned_anew_does_not_score_boxes_as_with_the_old_one(taught, captioned):
    asked = (taught.with_settings(**kept) for kept in ({"gamma": 0.4, "spread": 0.05}, {"gamma": 0.9}))
    one, two = (teach(each, open_source(str(captioned)), 100)[0] for each in asked)
    assert two.settings.gamma == 0.9
    assert torch.equal(one.model.head.ranker.lift.weight, two.model.head.ranker.lift.weight)


def test_it_is_saved_with_the_model(taught, tmp_path, drawn_image):
    loaded = PhraseLocalizer.from_pretrained(taught.save_pretrained(tmp_path / "model"), device="cpu")
    assert loaded.model.config.ranker == ("stage2", len(taught.model.head.ranker.mean))
    assert loaded.settings == taught.settings
    scene, units = taught.look(drawn_image), taught.phrase_units(taught.encode(["the dog"]))
    own, again = (x.box_scores(scene, scene.proposals, units) for x in (taught, loaded))
    assert torch.allclose(own, again, atol=0.01)  # weights are kept in half precision


def test_a_model_without_one_ignores_the_weight(tiny_localizer, tmp_path, drawn_image):
    folder = tiny_localizer.save_pretrained(tmp_path / "model")
    facts = json.loads((folder / "config.json").read_text())
    assert facts.pop("ranker") is None
    assert facts["inference"].pop("ranker") == 0
    (folder / "config.json").write_text(json.dumps(facts))  # of a model that is older than the ranker
    loaded = PhraseLocalizer.from_pretrained(folder, device="cpu")
    own, asked = (x(drawn_image, ["the dog"])[0] for x in (loaded, loaded.with_settings(ranker=0.5)))
    assert torch.equal(own.boxes, asked.boxes)
    assert torch.equal(own.scores, asked.scores)


@pytest.mark.parametrize("stage", ["features", ("features", "stage1"), "stage2"])
def test_it_reads_its_own_stage_wherever_maps_are_read(taught, stage, drawn_image):
    asked = taught.with_settings(stage=stage)
    scene, boxes = asked.look(drawn_image), torch.tensor([[0.0, 0, 60, 40], [10, 10, 100, 70]])
    units = asked.phrase_units(asked.encode(["the dog"]))
    expected = taught.box_scores(taught.look(drawn_image), boxes, units)
    assert torch.allclose(asked.box_scores(scene, boxes, units), expected, atol=1e-5)
    without = taught.with_settings(stage=stage, ranker=0.0)
    maps = asked.attend(scene, ["the dog"])
    assert torch.equal(maps, without.attend(without.look(drawn_image), ["the dog"]))
    assert asked.presence(scene, ["dog"]) == without.presence(without.look(drawn_image), ["dog"])


def test_a_model_in_half_precision_has_it_too(taught, drawn_image):
    half = PhraseLocalizer(deepcopy(taught.model).half(), taught.settings)
    own, other = taught(drawn_image, ["the dog"])[0], half(drawn_image, ["the dog"])[0]
    assert other.scores[0] == pytest.approx(own.scores[0].item(), abs=0.05)


def test_a_model_that_is_trained_further_has_none(tmp_path):
    """Where new words alone are learned the network stays as it was, and the ranker with it."""
    model = load_model(started_model(tmp_path / "start"))
    model.head.ranker = BoxRanker(8, 16)
    asked = {"gamma": 0.6, "spread": 0.07, "ranker": 0.3, "grid": 32}
    model.config = replace(model.config, ranker=("stage1", 8), inference=asked)
    start, shards = save_model(model, tmp_path / "ranked"), write_set(tmp_path / "set")
    kept = load_model(run(tmp_path / "kept", shards, f"model.start={start}", *KEPT))
    assert kept.config.ranker == ("stage1", 8)
    assert kept.head.ranker is not None
    assert kept.config.inference.items() >= asked.items()
    phase = "phases=[{name: head, steps: 4, batch: 8, sizes: [32], lr: 0.01}]"
    made = load_model(run(tmp_path / "made", shards, f"model.start={start}", phase))
    assert made.config.ranker is None
    assert made.head.ranker is None
    assert made.config.inference.keys().isdisjoint({"gamma", "spread", "ranker"})  # chosen with the ranker
    assert made.config.inference["grid"] == 32


def test_the_command_teaches_a_folder(tiny_model, captioned, tmp_path, capsys):
    out = tmp_path / "taught"
    asked = ["learn-ranker", str(tiny_model), "--shards", str(captioned), "--set", "proposals=windows"]
    assert main([*asked, "--output", str(out), "--set", "ranker=0.3"]) == 0
    assert json.loads(capsys.readouterr().out)["photographs"] == 10
    assert PhraseLocalizer.from_pretrained(out, device="cpu").settings.ranker == 0.3
    asked[1] = str(out)
    assert main([*asked, "--photographs", "11"]) == 0  # in place, once more
    settings = asdict(PhraseLocalizer.from_pretrained(out, device="cpu").settings)
    assert WITH.items() <= settings.items()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--photographs", "7"], "8 photographs or more whose captions name something known, got 7 of 7"),
        (["--set", "proposals=level_sets"], "level_sets proposes no boxes of a picture alone"),
        (["--set", "ranker=-1"], "ranker"),
        (["--set", "ranker"], "--set takes KEY=VALUE, got 'ranker'"),
        (["--shards", "nowhere"], "nowhere does not exist"),
    ],
)
def test_the_command_refuses_in_a_sentence(tiny_model, captioned, tmp_path, capsys, changes, expected):
    asked = ["learn-ranker", str(tiny_model), "--shards", str(captioned), "--output", str(tmp_path / "out")]
    assert main([*asked, "--set", "proposals=windows", *changes]) == 2
    assert expected in capsys.readouterr().err
    assert not [*tmp_path.glob("out/*")]


def test_an_image_text_pair_is_refused(tiny_localizer, captioned, monkeypatch):
    monkeypatch.setattr(tiny_localizer.model, "reads_phrases", True)
    with pytest.raises(ConfigError, match="for models that read words, this is an image-text pair"):
        teach(tiny_localizer, open_source(str(captioned)), 10)


def test_a_folder_to_be_changed_must_be_one(captioned, tmp_path, capsys):
    assert main(["learn-ranker", str(tmp_path / "none"), "--shards", str(captioned)]) == 2
    assert "name an --output folder" in capsys.readouterr().err


def test_a_ranker_of_another_stage_is_refused_in_a_sentence(taught, tmp_path, drawn_image):
    model = deepcopy(taught.model)
    own = model.config.ranker[0]
    other = next(stage for stage in model.stages[::-1] if stage not in (own, "features"))
    model.config = replace(model.config, ranker=(other, model.config.ranker[1]))
    localizer = PhraseLocalizer(model, taught.settings)
    with pytest.raises(DataError, match=r"box ranker expects .* learn-ranker"):
        localizer(drawn_image, PHRASES)
