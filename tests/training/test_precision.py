"""Half precision and torch.compile, as far as a CPU can show them: they follow the run in full precision."""

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from phrase_loc.distributed import World
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models.build import folded
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import load_model
from phrase_loc.training.checkpoint import Checkpoint
from phrase_loc.training.logger import Logger
from phrase_loc.training.run import train
from tests.training.pairs import draw, write_set
from tests.training.runs import assert_same_weights, losses, run, settings

PHASES = (
    "phases=[{epochs: 2, batch: 16, train_from: all, lr: 0.003, warmup: 2, clip: 1, losses: {sigmoid: 1.0}}]"
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(tmp_path_factory.mktemp("set"), (48, 16))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, shards: str) -> list[float]:
    """The loss curve in float32."""
    folder = tmp_path_factory.mktemp("full")
    run(folder, shards, PHASES)
    return losses(folder)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows_float32(precision: str, full: list[float], shards: str, tmp_path: Path):
    run(tmp_path, shards, f"precision={precision}", PHASES)
    found = losses(tmp_path)
    assert found == pytest.approx(full, rel=0.02)
    assert found != full  # it was another arithmetic
    state = Checkpoint.load(tmp_path / "checkpoint.pt").model
    assert all(value.dtype == torch.float32 for value in state.values() if value.is_floating_point())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_goes_on_to_the_same_weights(
    precision: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = (f"precision={precision}", "save_every=3", PHASES)
    run(tmp_path / "whole", shards, *told)
    with monkeypatch.context() as patch:
        patch.setattr(Logger, "write", stop_at(5))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", shards, *told)
    held = Checkpoint.load(tmp_path / "stopped" / "checkpoint.pt")
    assert held.step == 3
    assert bool(held.scaler) == (precision == "fp16")
    run(tmp_path / "stopped", shards, *told)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def stop_at(step: int) -> Callable:
    """A Logger.write that is interrupted as step `step` is told."""

    def write(logger: Logger, number: int, values: dict) -> None:
        if number == step:
            raise KeyboardInterrupt

    return write


def test_a_gradient_beyond_half_precision_is_a_step_left_out_not_a_broken_line(shards: str, tmp_path: Path):
    """The scaler begins at 65,536: with a large loss the first gradients overflow, and it halves until they fit."""
    run(tmp_path, shards, "precision=fp16", PHASES.replace("sigmoid: 1.0", "sigmoid: 300"))
    told = (tmp_path / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in told]
    assert any(line["gradient"] is None for line in lines)
    assert all(math.isfinite(line["loss"]) for line in lines)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_trunk_trains_the_same_model_and_can_be_asked(
    full: list[float], shards: str, tmp_path: Path
):
    """Excitation backprop looks inside the stages, so what is measured during training must be the plain network."""
    maps = []

    def measure(model: TextToRegion, world: World) -> dict[str, float]:
        maps.append(heat(model))
        return {"pointing_any/accuracy": 1.0}

    changes = ("compile=true", "validation.every=10", PHASES)
    train(settings(tmp_path, shards, *changes), World(), measure)
    assert losses(tmp_path) == pytest.approx(full, rel=1e-3)
    plain = heat(load_model(tmp_path / "model"))  # its weights were rounded to half precision
    assert len(maps) == 1
    assert torch.allclose(maps[0], plain, atol=0.01 * plain.max().item())


def heat(model: TextToRegion) -> torch.Tensor:
    """The model's c-MWP map of a word in a drawn picture."""
    image = Image.open(io.BytesIO(draw(5, 64)[0])).convert("RGB")
    localizer = PhraseLocalizer(folded(model), Inference(image_sizes=(64,), proposals="level_sets"))
    return localizer.attend(localizer.look(image), [model.vocabulary.words[0]])
