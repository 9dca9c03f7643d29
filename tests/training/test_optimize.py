"""Groups, schedule and average; the cache of features; the figures on disk; the door."""

import json
import math
from pathlib import Path

import pytest
import torch

from phrase_loc.__main__ import main
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.model import last_frozen, run_stages, trainable_stages
from phrase_loc.training import features
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.features import kept_features
from phrase_loc.training.logger import Logger
from phrase_loc.training.phase import Average, Phase, parameter_groups, schedule
from phrase_loc.training.setup import open_data, prepare
from tests.training.pairs import add, draw, write_set
from tests.training.runs import losses, run, settings
from tests.training.test_objective import small_model


def test_groups_have_layer_wise_rates_and_decay_matrices_only():
    model = small_model(5)
    stages = trainable_stages(model.trunk, "stage2")
    assert stages == ["stage2", "stage3"]
    phase = PhaseConfig(train_from="stage2", lr=1.0, trunk_lr=0.1, layer_decay=0.5, weight_decay=0.01)
    groups = parameter_groups(model, phase)
    rate = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert rate[id(model.head.lift.weight)] == (1.0, 0.01)
    assert rate[id(model.head.log_scale)] == (1.0, 0.0)
    for stage, expected in (("stage3", 0.1), ("stage2", 0.05)):
        for p in model.trunk.get_submodule(stage).parameters():
            assert rate[id(p)] == (expected, 0.01 if p.ndim > 1 else 0.0)
    for stage in ("stem", "stage1"):
        assert not any(
            id(p) in rate or p.requires_grad for p in model.trunk.get_submodule(stage).parameters()
        )
    with pytest.raises(ConfigError, match="stage7"):
        trainable_stages(model.trunk, "stage7")
    with pytest.raises(ConfigError, match="frozen"):
        last_frozen(model.trunk, "all")


def test_the_schedule_warms_up_and_falls_to_zero():
    values = [schedule(PhaseConfig(warmup=10), step, 100) for step in range(101)]
    assert values[:10] == sorted(values[:10])
    assert values[10] == 1
    assert values[55] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0)


def test_the_average_follows_its_definition_and_can_be_swapped():
    model = torch.nn.Linear(1, 1, bias=False).double()
    model.weight.data.fill_(1.0)
    average, expected = Average(model, 0.9), 1.0
    for t, value in enumerate((2.0, 5.0, -1.0), 1):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        decay = min(0.9, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
    average.swap(model)
    assert model.weight.item() == pytest.approx(expected, rel=1e-12)
    other = Average(model, 0.9)
    other.load(average.state_dict())
    average.swap(model)
    assert model.weight.item() == -1.0
    other.swap(model)
    assert model.weight.item() == -1.0
    other.load({"updates": 3, "value.weight": torch.tensor([[4.0]])})  # of an older checkpoint
    other.update_parameters(model)
    other.swap(model)
    assert model.weight.item() == pytest.approx(4 + 9 / 14 * -5)


@pytest.mark.parametrize("until", ["stem", "stage1", "stage2", "stage3"])
def test_stages_in_two_parts_are_the_whole(until: str):
    from phrase_loc.models.build import create
    from phrase_loc.text.vocabulary import Vocabulary

    vocabulary = Vocabulary(("a", "b"), (1, 1))
    model = create(vocabulary, torch.randn(2, 4), backbone="tiny", weights=None, hidden=8)
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = model.trunk(model.normalize(image))
    halves = run_stages(model, run_stages(model, image, None, until), until, None)
    assert torch.allclose(whole, halves, atol=1e-5)


def test_a_cached_phase_learns_what_an_uncached_one_learns(tmp_path: Path):
    shards = write_set(tmp_path / "set", (24,))
    phase = "name: a, epochs: 2, batch: 8, train_from: stage2, mirror: 0.5, sizes: [32, 40]"
    for name, cache in (("plain", "false"), ("cached", "true")):
        run(tmp_path / name, shards, f"phases=[{{{phase}, cache: {cache}}}]", "ema=0")
    assert len(list((tmp_path / "cached").glob("features-*"))) == 2
    # fp16 features, and other draws for mirroring than the uncached transform's: near, not equal
    first = losses(tmp_path / "plain")[0], losses(tmp_path / "cached")[0]
    assert first[1] == pytest.approx(first[0], rel=0.02)


def test_one_phase_alone_goes_on_from_a_model_and_shares_the_kept_features(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    from phrase_loc.models.store import load_model

    caplog.set_level("INFO")
    shards = write_set(tmp_path / "set", (24,))
    phase = "epochs: 1, batch: 8, cache: true, sizes: [32], mirror: 0"
    told = [f"phases=[{{name: a, {phase}}}, {{name: b, {phase}, train_from: stage3}}]", "ema=0"]
    told += [f"data.features={tmp_path / 'kept'}"]
    first = run(tmp_path / "first", shards, *told, "only=[a]")
    run(tmp_path / "second", shards, *told, "only=[b]", f"model.start={first}")
    run(tmp_path / "both", shards, *told)
    counts = [len(losses(tmp_path / name)) for name in ("first", "second", "both")]
    assert counts == [3, 3, 6]
    assert losses(tmp_path / "both")[:3] == losses(tmp_path / "first")
    # a's and b's of one run, and b's from the saved model, whose weights are in half precision
    assert len(list((tmp_path / "kept").glob("features-*"))) == 3
    assert not list((tmp_path / "both").glob("features-*"))
    last = run(tmp_path / "part", shards, *told, "only=[b]", "average_of=[a, b]", f"model.start={first}")
    assert "average_of: of its phases b is run" in caplog.text
    assert load_model(last).vocabulary == load_model(tmp_path / "second" / "model").vocabulary
    assert losses(tmp_path / "part") == losses(tmp_path / "second")
    run(tmp_path / "part", shards, *told, "only=[b]", "average_of=[a, b]", f"model.start={first}")
    with pytest.raises(ConfigError, match="only names phases"):
        settings(tmp_path / "x", shards, *told, "only=[c]")


def test_a_full_disk_stops_the_cache_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes = (f"data.features={tmp_path / 'kept'}", "model.start=none")
    config = settings(tmp_path / "out", write_set(tmp_path / "set", (5,)), *changes)
    (tmp_path / "out").mkdir()
    setup = prepare(config, World(), open_data(config, World()))
    Phase(config, 0, setup, World(), print)

    def full(tensors: object, told: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "save", full)
    with pytest.raises(DataError, match="No space left"):
        kept_features(config, config.phases[0], setup, World(), 32)
    assert [list(folder.iterdir()) for folder in (tmp_path / "kept").iterdir()] == [[]]


def test_the_logger_drops_what_will_be_done_again(tmp_path: Path):
    logger = Logger(tmp_path)
    for step in (1, 2, 3):
        logger.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    logger.close()
    Logger(tmp_path, done=2).close()
    kept = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [1, 2]


def test_tensorboard_files_are_written_when_asked(tmp_path: Path):
    pytest.importorskip("tensorboard")
    logger = Logger(tmp_path, tensorboard=True)
    logger.write(1, {"loss": 0.5, "phase": "a"})
    logger.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_the_mean_of_two_phases_is_released(tmp_path: Path):
    from phrase_loc.models.store import load_model
    from phrase_loc.training.checkpoint import Checkpoint

    out = tmp_path / "out"
    run(out, write_set(tmp_path / "set", (24,)), "average_of=[head, all]")
    one, two = (Checkpoint.load(out / f"after-{name}.pt").model for name in ("head", "all"))
    name = "head.lift.weight"
    assert not torch.equal(one[name], two[name])
    released = load_model(out / "model").state_dict()[name]
    assert torch.allclose(released, (one[name] + two[name]) / 2, atol=1e-3)  # stored in half precision
    with pytest.raises(ConfigError, match="average_of"):
        settings(out, "x", "average_of=[tail]")


def test_too_many_faults_stop_the_run(tmp_path: Path):
    import tarfile

    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "0.tar", "w") as tar:
        for i in range(20):
            image, texts = draw(i)
            add(tar, f"{i}.jpg", image if i % 2 else image[: len(image) // 2])
            add(tar, f"{i}.txt", texts[0].encode())
    shards = str(tmp_path / "set" / "0.tar")
    with pytest.raises(DataError, match=r"more than 2 samples are unusable .* broken image"):
        run(tmp_path / "strict", shards, "data.max_faults=0.1", "vocabulary.min_count=1")
    run(tmp_path / "patient", shards, "data.max_faults=0.6", "vocabulary.min_count=1")
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "patient"))


def test_validation_keeps_the_best_model(tmp_path: Path):
    from phrase_loc.training.run import train

    scores = iter([0.3, 0.7, 0.5, 0.4])
    asked: list[int] = []

    def measure(model: torch.nn.Module, world: World) -> dict[str, float]:
        asked.append(int(model.training))
        return {"pointing_any/accuracy": next(scores)}

    config = settings(tmp_path / "out", write_set(tmp_path / "set", (32,)))
    train(config, World(), measure)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["pointing_any/accuracy"] for line in lines if "pointing_any/accuracy" in line] == [
        0.3,
        0.7,
        0.5,
        0.4,
    ]
    assert asked == [0, 0, 0, 0]
    card = json.loads((tmp_path / "out" / "best" / "config.json").read_text())["card"]
    assert card["measured"] == {"pointing_any/accuracy": 0.7}


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["data.shards=nowhere.tar"], "out is required"),
        (["out={tmp}/o", "data.shards={tmp}/nowhere.tar"], "does not exist"),
        (["out={tmp}/o", "data.shard=x"], "did you mean 'shards'"),
        (["out={tmp}/o", "data.shards=x", "phases=[{lr: fast}]"], "phases.0.lr"),
        (["out={tmp}/o", "data.shards=x", "vectors.source=encoder"], "'free', got 'encoder'"),
        (["{tmp}/missing.yaml"], "does not exist"),
    ],
)
def test_the_door_tells_in_one_sentence(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", *(a.replace("{tmp}", str(tmp_path)) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_every_shipped_config_is_valid(root: Path):
    from phrase_loc.config import load_config

    for name in ("tiny", "train_web", "default"):
        config = load_config(TrainConfig, [str(root / "configs" / f"{name}.yaml")])
        assert all(isinstance(phase, PhaseConfig) for phase in config.phases)


def test_settings_that_are_gone_are_read_at_the_values_at_which_they_did_nothing():
    from phrase_loc.config import load_config

    fixed = ["out=x", "data.shards=y"]
    told = [
        "labels={agree: 1, unpunished: none, balance: 0, most: 10}",
        "vectors.file=",
        "phases=[{schedule: cosine}]",
    ]
    assert load_config(TrainConfig, [*fixed, *told]) == load_config(TrainConfig, fixed)
    for gone in (
        "labels.agree=2",
        "labels.unpunished=vectors",
        "labels.balance=0.5",
        "vectors.file=glove.txt",
    ):
        with pytest.raises(ConfigError, match=gone.split("=")[0].split(".")[1]):
            load_config(TrainConfig, [*fixed, gone])


def test_further_words_land_where_their_neighbours_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from phrase_loc.models.build import create
    from phrase_loc.text.vocabulary import Vocabulary
    from phrase_loc.training import setup
    from phrase_loc.training.config import FurtherConfig

    draw = torch.Generator().manual_seed(0)
    words = tuple(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(120))
    glove = torch.randn(120, 6, generator=draw)
    space = glove @ torch.randn(6, 9, generator=draw) + torch.randn(9, generator=draw)
    monkeypatch.setattr(setup.text_vectors, "glove_package", lambda: dict(zip(words, glove)))
    vocabulary = Vocabulary(words[:100], (5,) * 100)
    model = create(vocabulary, space[:100], backbone="tiny", weights=None, hidden=8, free=True)
    setup.add_further_words(model, FurtherConfig(words=15, penalty=1e-6), 0)
    assert model.extra == words[100:115]
    found = model.words(torch.arange(100, 115))
    assert (found - space[100:115]).abs().max() < 0.02 * space.abs().max()  # eight bits a number
    (tmp_path / "texts.txt").write_text("".join(f"1\t{a} near {b}\n" for a in words for b in words[:9]) * 2)
    texts = (str(tmp_path / "texts.txt"),)
    setup.add_further_words(model, FurtherConfig(words=15, texts=texts, penalty=1e-6), 0)
    assert set(model.extra) <= set(words[100:])
    assert model.words(torch.arange(100, 115)).isfinite().all()


def test_the_time_left_is_that_of_the_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    clock = iter([0, 0, 10, 100, 104])
    monkeypatch.setattr("phrase_loc.training.logger.time.perf_counter", lambda: next(clock))
    logger = Logger(tmp_path)
    with caplog.at_level("INFO"):
        for name, done, step in (("slow", 0, 5), ("quick", 10, 14)):
            logger.phase(name, done, 10)
            logger.write(step, {"loss": 0.5})
    logger.close()
    assert [line.rpartition("left of the phase ")[2] for line in caplog.messages] == ["00:10", "00:06"]


def test_texts_without_a_word_of_the_vocabulary_are_told_from_nothing_to_learn(tmp_path: Path):
    (tmp_path / "words.txt").write_text("zebra\nlion\n")
    with pytest.raises(DataError, match="no photograph's text has a word of the vocabulary"):
        run(tmp_path / "out", write_set(tmp_path / "set", (9,)), f"vocabulary.file={tmp_path / 'words.txt'}")
