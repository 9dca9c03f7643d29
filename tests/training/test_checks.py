"""A wrong setting is told in one sentence before anything of a run is written, whenever it would have been read."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from phrase_loc.config import build, read_yaml
from phrase_loc.distributed import World, session
from phrase_loc.errors import ConfigError, PhraseLocError
from phrase_loc.models.store import load_model
from phrase_loc.training.checks import check
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.run import train
from tests.training.pairs import write_set

ROOT = Path(__file__).resolve().parents[2]
NAN, INFINITE = float("nan"), float("inf")


def changed(key: str, value: Any) -> dict[str, Any]:
    """configs/tiny.yaml with one leaf changed; `phases.KEY` is of the second phase."""
    tree = read_yaml(ROOT / "configs" / "tiny.yaml")
    *above, last = key.split(".")
    place = tree
    for part in above:
        place = place["phases"][1] if part == "phases" else place.setdefault(part, {})
    place[last] = value
    return tree


#: setting -> (values that cannot be, words of the message)
WRONG: dict[str, tuple[list[Any], str]] = {
    "inference": ([{"gama": 0.4}, {1: 2}, "fast", [1]], "inf|gamma|string"),
    "inference.image_sizes": (
        [384, "384", [], [0], [1.5], [True], [10**9]],
        "'image_sizes.*: (input should be|value error|tuple should have)",
    ),
    "inference.nms": (["0.5", NAN, -1, 2, None], "'nms': input should be"),
    "inference.gamma": (["x", INFINITE, None, [0.4]], "'gamma': input should be a (valid|finite) number"),
    "inference.stage": (["stage9", "", 4], "stage"),
    "inference.method": (["gradcam++", None], "method"),
    "inference.proposals": (["levels", 1], "propos"),
    "inference.score": (["surplus"], "score=.* is no longer there"),
    "inference.mirrored": (["yes", 1], "mirrored=.* is no longer there"),
    "inference.grid": ([0, 64.0, "64"], "'grid': input should be"),
    "phases.losses": ([{"sigmoit": 1}, {}, {"sigmoid": 0}], "did you mean 'sigmoid'|has no loss"),
    "phases.losses.sigmoid": ([-1, NAN, INFINITE, "much"], "losses.sigmoid"),
    "phases.lr": ([0, -0.1, NAN, INFINITE, "fast", None], r"phases\.1\.lr"),
    "phases.trunk_lr": ([-1, NAN], "trunk_lr"),
    "phases.layer_decay": ([0, -1, INFINITE], "layer_decay"),
    "phases.weight_decay": ([-1e-9, NAN], "weight_decay"),
    "phases.batch": ([0, -1, 1.5, "many"], "batch"),
    "phases.accumulate": ([0, -2, 17], "accumulate|micro-batches"),
    "phases.epochs": ([0, -1, NAN, INFINITE], "epochs"),
    "phases.steps": ([-1, 2.5], "steps"),
    "phases.new_words_only": (["yes!"], "new_words_only"),
    "few.below": ([-1, 0.5], "below"),
    "few.min_count": ([0], "min_count"),
    "few": ([{"below": 9, "phase": {"train_from": "stage9"}}], "stage9"),
    "phases.optimizer": (["adam", "sgd", 3], "optimizer"),
    "phases.momentum": ([-1, 1.5], "momentum"),
    "phases.warmup": ([-1, 2.5], "warmup"),
    "phases.clip": ([-1, NAN], "clip"),
    "phases.crop": ([0, 1.1, NAN], "crop"),
    "phases.mirror": ([-0.1, 1.1], "mirror"),
    "phases.jitter": ([-0.1, 1.5], "jitter"),
    "phases.dropout": ([1, -0.1, NAN], "dropout"),
    "phases.sizes": ([[0], [-32], [32.5], 32, [10**6]], "sizes"),
    "phases.train_from": (["stage9", ""], "train_from must be none, all or a stage"),
    "phases.cache": ([True], "needs frozen stages"),
    "phases.own_map": (["heat"], "unknown config key .*own_map"),
    "phases.paraphrases": ([0, 10], "unknown config key .*paraphrases"),
    "phases.name": (["", "a/b", "..", "../x", "a\0b", "x" * 300, "head"], "name"),
    "model.backbone": (["tyni", "transformers:/nowhere"], "tiny|nowhere"),
    "model.weights": (["imagenet", "/nowhere/weights.pth"], "weights"),
    "model.output_stride": ([16, 32], "unknown config key model.output_stride"),
    "model.pool": (["log_sum", "top"], "did you mean 'log_sum_exp'|choose from average, log_sum_exp"),
    "model.learn_sharpness": ([True, False], "unknown config key model.learn_sharpness"),
    "model.sharpness": ([0, -1, NAN], "sharpness"),
    "model.hidden": ([0, -1, 3.5], "hidden"),
    "model.image_size": ([0, -1, "big"], "image_size"),
    "model.fuse": ([None, "stage2"], "unknown config key model.fuse"),
    "model.start": (["/nowhere", str(ROOT / "configs")], "nowhere|holds no model"),
    "vectors.source": (["gloves", "ppmi2"], "source"),
    "vectors.size": ([0, -1], "size"),
    "vectors.bias": ([NAN, INFINITE], "bias"),
    "vectors": (
        [{"source": "file", "file": "/nowhere.txt"}, {"source": "encoder"}],
        "vectors.file: input should be|source: input should be",
    ),
    "vocabulary.file": (["/nowhere/words.txt", str(ROOT)], "vocabulary"),
    "vocabulary.extra_texts": ([["/nowhere/*.txt"], ["/nowhere/a.txt.gz"]], "nowhere"),
    "vocabulary.size": ([0, -5], "size"),
    "vocabulary.min_count": ([0], "min_count"),
    "vocabulary.pair_share": ([1.5, NAN], "pair_share"),
    "labels.last_word": ([2, -1], "last_word"),
    "labels.agree": ([0, 2], "agree=.*no longer there"),
    "labels.balance": ([-1, 0.5, NAN], "balance"),
    "labels.unpunished": (["vectors", "hypernyms"], "unpunished=.*set it to 'none'"),
    "further.words": ([-1, "all"], "words"),
    "further": ([{"words": 5, "texts": ["/nowhere.txt"]}, {"words": 5, "penalty": 0}], "nowhere|penalty"),
    "validation": ([{"root": "/nowhere"}], "nowhere"),
    "validation.every": ([-1, NAN], "every"),
    "validation.limit": ([-1], "limit"),
    "data.text_fields": ([[], "caption", [1]], "text_fields"),
    "data.max_faults": ([-1, 2, NAN], "max_faults"),
    "data.workers": ([-1, 10**6], "workers"),
    "data.window": ([-1], "window"),
    "card": ([{"a": [1]}, {"a": None}, "mine"], "card"),
    "threads": ([-1, 10**6], "threads"),
    "seed": ([-1, 2**64, "one"], "seed"),
    "ema": ([1, -0.1, NAN], "ema"),
    "save_every": ([0, -1], "save_every"),
    "log_every": ([0], "log_every"),
    "memory_mb": ([0], "memory_mb"),
    "precision": (["half"], "precision"),
    "only": ([["tail"]], "only names phases"),
    "average_of": ([["tail"]], "average_of names phases"),
}


@pytest.mark.parametrize(
    "key, value, told",
    [(key, value, told) for key, (values, told) in WRONG.items() for value in values],
    ids=lambda value: str(value)[:30].replace("/", ":"),
)
def test_a_wrong_setting_is_told_before_the_run(key: str, value: Any, told: str, tmp_path: Path):
    tree = changed(key, value)
    tree["out"], tree["data"]["shards"] = str(tmp_path / "out"), str(tmp_path / "none.tar")
    with pytest.raises(PhraseLocError, match=told) as error:
        train(build(TrainConfig, tree), World())
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1500
    assert "none.tar" not in str(error.value)  # the data come later
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "validation, told",
    [
        ({"metric": "pointing_any/accurasy"}, "did you mean 'pointing_any/accuracy'"),
        ({"metric": "recall_union/r@1"}, "figure in validation.metric"),
        ({"protocols": ["pointing"]}, "protocol"),
        ({"protocols": []}, "protocols is empty"),
        ({"protocols": ["imagenet_sweep_mean"]}, "imagenet_sweep_mean|protocol"),
        ({"split": "train2"}, "train2"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_told_before_the_run(
    validation: dict, told: str, tmp_path: Path, entities: Path
):
    tree = changed("validation", {"root": str(entities), "split": "val", **validation})
    tree["out"] = str(tmp_path / "out")
    with pytest.raises(PhraseLocError, match=told):
        check(build(TrainConfig, tree), World())


def test_a_right_measurement_passes(tmp_path: Path, entities: Path):
    tree = changed("validation", {"root": str(entities), "split": "val"})
    tree["out"] = str(tmp_path / "out")
    check(build(TrainConfig, tree), World())


@pytest.fixture(scope="module")
def entities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Flickr30k Entities tree of one image."""
    root = tmp_path_factory.mktemp("entities")
    for name in ("Annotations", "Sentences", "flickr30k-images"):
        (root / name).mkdir()
    (root / "val.txt").write_text("1\n")
    (root / "Sentences" / "1.txt").write_text("[/EN#7/animals A dog] runs .\n")
    (root / "Annotations" / "1.xml").write_text(
        "<annotation><size><width>40</width><height>30</height><depth>3</depth></size><object><name>7</name><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object></annotation>"
    )
    return root


def test_a_batch_must_suffice_for_all_processes_of_every_phase(tmp_path: Path):
    tree = {**changed("phases.batch", 3), "out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="phase all: a batch of 3 cannot be split over 4 processes"):
        check(build(TrainConfig, tree), World(1, 4))


def test_double_precision_on_an_apple_gpu_is_refused(tmp_path: Path):
    tree = {**changed("precision", "float64"), "out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match="precision=float64"):
        check(build(TrainConfig, tree), World(device=torch.device("mps")))


def test_a_compiler_that_is_missing_is_told_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Failed to find C++ compiler.\nPlease set CXX")

    monkeypatch.setattr(torch, "compile", broken)
    tree = {**changed("compile", True), "out": str(tmp_path / "out")}
    with pytest.raises(ConfigError, match=r"compile=true cannot work here .*; install a C\+\+ compiler"):
        check(build(TrainConfig, tree), World())


@pytest.mark.parametrize(
    "variables, told",
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is a whole number from 1"),
        ({"WORLD_SIZE": "2"}, "RANK is a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is a whole number"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "PHRASE_LOC_TIMEOUT": "soon"},
            "PHRASE_LOC_TIMEOUT is a whole number",
        ),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "could not meet .*; start them with torchrun"),
    ],
)
def test_an_environment_that_torchrun_did_not_make_is_told(
    variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PHRASE_LOC_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=told), session("cpu"):
        pass


def test_names_of_files_that_are_not_utf8_do_not_stop_the_release(tmp_path: Path):
    words = tmp_path / os.fsdecode(b"caf\xe9.txt")
    try:
        words.write_text("red\nsquare\n")
    except OSError:
        pytest.skip("this file system holds only UTF-8 names")
    tree = {**changed("vocabulary.file", str(words)), "out": str(tmp_path / "out")}
    tree["data"] = {"shards": write_set(tmp_path / "set", (16,)), "workers": 0, "max_faults": 1}
    train(build(TrainConfig, tree), World())
    assert "caf?" in load_model(tmp_path / "out" / "model").config.card["training"]["vocabulary"]["file"]


@pytest.mark.parametrize(
    ("word", "told"), [("Cat", "write 'cat'"), ("# words", "write 'words'"), ("!", "leave it out")]
)
def test_words_that_no_text_is_read_as(tmp_path: Path, word: str, told: str):
    (tmp_path / "words.txt").write_text(f"dog\n{word}\n")
    tree = {**changed("vocabulary.file", str(tmp_path / "words.txt")), "out": str(tmp_path / "out")}
    tree["data"] = {"shards": write_set(tmp_path / "set", (16,)), "workers": 0, "max_faults": 1}
    with pytest.raises(ConfigError, match=f"which no text is read as; {told}"):
        train(build(TrainConfig, tree), World())
