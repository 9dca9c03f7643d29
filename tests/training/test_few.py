"""A run with few photographs: it keeps the shipped model, learns the words that it lacks, and says what that gave."""

import json
import logging
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks.kills import in_child
from phrase_loc import PhraseLocalizer
from phrase_loc.config import load_config
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.build import create
from phrase_loc.models.store import load_model, save_model
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training import checks, new_words
from phrase_loc.training.checkpoint import Checkpoint
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.run import train
from tests.training.pairs import write_set
from tests.training.runs import KEPT, ROOT, WORDS, assert_same_weights, losses, run, started_model
from tests.training.test_resume import kill_after


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started_model(tmp_path_factory.mktemp("models") / "free")


def test_new_words_are_learned_and_all_else_is_kept(
    started: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    out = run(tmp_path / "out", write_set(tmp_path / "set"), f"model.start={started}", *KEPT)
    before, after = load_model(started), load_model(out)
    assert after.vocabulary.words[:4] == WORDS
    assert set(after.vocabulary.words[4:]) >= {"blue", "circle", "night", "sand", "yellow"}
    assert after.extra == ("moon",)
    own, theirs = after.state_dict(), before.state_dict()
    assert torch.equal(own["words.vectors"][:4], theirs["words.vectors"])
    for name in theirs:
        assert name.startswith("words.") or torch.equal(own[name], theirs[name]), name
    moon = before.words(torch.tensor([5])), after.words(torch.tensor([len(after.vocabulary)]))
    torch.testing.assert_close(*moon)
    assert after.config.calibration == before.config.calibration
    assert "goes on from" in (out / "README.md").read_text()
    assert "blue (" in (out / "README.md").read_text()
    told = caplog.text
    assert "4 known words of the texts: square" in told
    assert "new words to learn, with their photographs of 52: circle" in told
    found = json.loads((tmp_path / "out" / "held_out.json").read_text())
    assert found["photographs"] == 5
    assert set(found["words"]) == set(after.vocabulary.words[4:])
    lines = (tmp_path / "out" / "metrics.jsonl").read_text()
    assert "held_out/average_precision" in lines
    # started again it changes nothing
    run(tmp_path / "out", str(tmp_path / "set" / "*.tar"), f"model.start={started}", *KEPT)
    assert (tmp_path / "out" / "metrics.jsonl").read_text() == lines


def test_killed_it_goes_on_to_the_same_weights(started: Path, tmp_path: Path):
    shards, told = write_set(tmp_path / "set"), (f"model.start={started}", *KEPT)
    run(tmp_path / "whole", shards, *told)
    kills, draw = 0, random.Random(0)
    for steps in (0, 1, 5, 9, 10_000):
        child = in_child(run, tmp_path / "killed", shards, *told)
        kills += kill_after(child, tmp_path / "killed", steps, draw.random() * 0.02)
    assert kills >= 2
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    first, second = (tmp_path / name / "held_out.json" for name in ("whole", "killed"))
    assert first.read_text() == second.read_text()


def test_every_recipe_takes_new_words_in(started: Path, tmp_path: Path):
    """Also one that trains the whole model; of the out-of-vocabulary words those that are said become trained."""
    shards = write_set(tmp_path / "set")
    phase = "phases=[{name: all, epochs: 1, batch: 16, train_from: all}]"
    model = load_model(run(tmp_path / "out", shards, f"model.start={started}", phase, "vectors.tuned=true"))
    assert {"circle", "blue", "red"} <= set(model.vocabulary.words)
    assert "blue" not in model.extra
    assert not (tmp_path / "out" / "held_out.json").exists()  # not few: few.below is 0
    assert model.words.vectors[4:].abs().sum(1).min() > 0


def test_words_tied_to_text_are_learned_where_they_have_a_vector_and_named_where_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = create(
        Vocabulary(WORDS, (4, 3, 2, 1)), torch.randn(4, 6), backbone="tiny", weights=None, image_size=32
    )
    model.words.set_extra(torch.randn(1, 6))
    model.extra = ("blue",)
    start = save_model(model, tmp_path / "tied")
    caplog.set_level(logging.INFO)
    made = load_model(run(tmp_path / "out", write_set(tmp_path / "set"), f"model.start={start}", *KEPT))
    assert made.vocabulary.words == (*WORDS, "blue")
    assert "text without a word" not in caplog.text  # those photographs are negatives
    assert (
        "STAYING UNKNOWN, as this model's words have vectors from text and these have none: circle"
        in caplog.text
    )


def test_where_every_word_is_known_nothing_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shards = write_set(tmp_path / "set")
    first = run(tmp_path / "a", shards, "vectors={source: free, size: 16}", "vocabulary.min_count=1")
    second = run(tmp_path / "b", shards, f"model.start={first}", *KEPT)
    assert "knows every word" in caplog.text
    one, two = load_model(first).state_dict(), load_model(second).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "changes, told",
    [
        (["model.start=none"], r"model\.start=default"),
        (["phases.words.train_from=all"], "train_from to none"),
        (["phases=[{name: a}, {name: b, new_words_only: true}]"], "by itself"),
    ],
)
def test_a_phase_of_new_words_needs_a_model_that_is_kept(changes: list[str], told: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=told):
        run(tmp_path / "out", "none.tar", *KEPT, *changes)


def config(*changes: str) -> TrainConfig:
    return load_config(TrainConfig, [str(ROOT / "configs" / "default.yaml"), "data.shards=x", *changes])


@pytest.mark.parametrize(
    "photographs, changes, start, phases",
    [
        (2999, [], "default", ["words"]),
        (3000, [], "", ["head", "late", "later"]),
        (2999, ["model.start=none"], "", ["head", "late", "later"]),
        (2999, ["model.start=null"], "", ["head", "late", "later"]),
        (2999, ["model.start=default"], "default", ["head", "late", "later"]),
        (2999, ["model.hidden=256"], "", ["head", "late", "later"]),
        (2999, ["vectors={source: random}"], "", ["head", "late", "later"]),
        (2999, ["only=[late]", "average_of=[]"], "default", ["late"]),
    ],
)
def test_few_photographs_start_from_the_shipped_model(
    photographs: int, changes: list[str], start: str, phases: list[str]
):
    made = new_words.resolve_start(config(*changes), photographs, None)
    assert made.model.start == start
    assert [phase.name for phase in made.run_phases] == phases
    assert made.vocabulary.min_count == (5 if start else 10)
    assert made.inference == ({} if phases == ["words"] else config().inference)
    assert new_words.resolve_start(made, photographs, None) == made
    # a run that has begun goes on as it began, also where another version would decide otherwise
    assert new_words.resolve_start(config("model.start=auto"), 10, "").model.start == ""


def test_a_run_of_a_version_before_model_start_was_auto_goes_on(tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    run(tmp_path / "a", shards)
    path = tmp_path / "a" / "checkpoint.pt"
    held = Checkpoint.load(path)
    del held.config["few"]
    for phase in held.config["phases"]:
        del phase["steps"], phase["new_words_only"]
    held.save(path)
    run(tmp_path / "a", shards)
    held.config["phases"].append({"name": "more"})
    held.save(path)
    with pytest.raises(ConfigError, match=r"phases\.number: 3 -> 2"):
        run(tmp_path / "a", shards)


def test_photographs_held_out_are_not_trained_on(started: Path, tmp_path: Path):
    """Whatever stands in them, the weights are the same."""
    shards = write_set(tmp_path / "set", (20,))
    told = (f"model.start={started}", *KEPT, "vocabulary.min_count=1", "seed=3")
    from phrase_loc.training.setup import left_out
    from tests.training.runs import settings

    assert left_out(20, settings(tmp_path, shards, *told)) == left_out(20, settings(tmp_path, shards, *told))
    assert len(left_out(20, settings(tmp_path, shards, *told))) == 2
    assert left_out(100, settings(tmp_path, shards, *told)) == ()


def summary(scores: np.ndarray, labels: np.ndarray) -> dict:
    return checks._summary([str(i) for i in range(labels.shape[1])], scores, labels)


def test_average_precision_is_that_of_the_definition():
    labels = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.4]])
    found = summary(scores, labels)["words"]
    assert found["0"]["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["1"]["average_precision"] == pytest.approx(1 / 3)
    assert found["1"]["share"] == 0.25


def test_a_run_that_learned_nothing_is_warned_of(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    draw = np.random.default_rng(1)
    labels = draw.random((60, 3)) < 0.3
    checks.told_of_held_out(summary(labels + 0.1 * draw.random((60, 3)), labels), Path("x"))
    assert "NO BETTER" not in caplog.text
    said = checks.told_of_held_out(summary(draw.random((60, 3)), labels), Path("x"))
    assert "NO BETTER THAN NOT LOOKING" in caplog.text
    assert "no better than chance" in said
    caplog.clear()
    for truth in (np.zeros((4, 1), bool), np.array([[True], [False], [False], [False]])):
        assert "Not measured" in checks.told_of_held_out(
            summary(truth + 0.1 * draw.random((4, 1)), truth), Path("x")
        )
    assert caplog.text.count("not measured") == 2
    assert "NO BETTER" not in caplog.text
    assert checks.told_of_held_out({}, Path("x")) == ""


def test_the_shipped_model_learns_an_invented_tag_for_a_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """configs/default.yaml on 80 drawn pictures: half of them hold a ring, called a blicket."""
    caplog.set_level(logging.INFO)
    draw = np.random.default_rng(0)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for number in range(80):
        image = Image.fromarray(draw.integers(90, 150, (160, 160, 3), np.uint8))
        pen, (x, y) = ImageDraw.Draw(image), draw.integers(0, 90, 2).tolist()
        box = (x, y, x + 60, y + 60)
        if number % 2:
            pen.ellipse(box, outline=(255, 40, 40), width=14)
        else:
            pen.rectangle(box, fill=(40, 60, 230))
        image.save(photographs / f"{number}.png")
        (photographs / f"{number}.txt").write_text("a blicket" if number % 2 else "a blue thing")
    told = [
        "few.phase.steps=24",
        "few.phase.sizes=[160]",
        "few.phase.batch=16",
        "data.workers=0",
        "threads=1",
    ]
    out = train(config(f"data.shards={photographs}", f"out={tmp_path / 'out'}", *told), World())
    assert "80 photographs are few (few.below=3000)" in caplog.text
    assert "new words to learn, with their photographs of 72: blicket 3" in caplog.text
    assert "NO BETTER" not in caplog.text
    learned, shipped = PhraseLocalizer.from_pretrained(out), load_model()
    assert torch.equal(learned.model.words.vectors[: len(shipped.vocabulary)], shipped.words.vectors)
    assert learned.model.config.ranker == shipped.config.ranker
    assert learned.model.config.inference == shipped.config.inference
    shown = [learned.presence(learned.look(photographs / f"{n}.png"), ["a blicket"])[0] for n in (0, 1, 2, 3)]
    assert min(shown[1::2]) > max(shown[::2])


def test_refusals_of_the_data_hold(started: Path, tmp_path: Path):
    shards = write_set(tmp_path / "set", (20,))
    run(tmp_path / "out", shards, f"model.start={started}", *KEPT)
    write_set(tmp_path / "set", (19,))
    with pytest.raises(DataError, match="holds a run on other data"):
        run(tmp_path / "out", shards, f"model.start={started}", *KEPT)
