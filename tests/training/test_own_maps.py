"""Self-training: what the teacher says, how it is kept, and that the student is drawn to it."""

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError
from phrase_loc.losses.at_locations import at_locations
from phrase_loc.structures import Scene
from phrase_loc.training.checkpoint import Checkpoint
from phrase_loc.training.own_maps import GRID, OwnMaps, map_targets
from phrase_loc.training.run import Run, train
from tests.training.pairs import add, draw, write_set
from tests.training.runs import assert_same_weights, losses, run, settings

PHASES = (
    "phases=[{name: a, epochs: 1, batch: 8, cache: true, lr: 0.01, warmup: 0},"
    "{name: b, epochs: 4, batch: 8, cache: true, lr: 0.01, warmup: 0, train_from: stage2, own_maps: 20, own_map: %s}]"
)


def test_the_loss_is_the_divergence_from_the_map_and_none_where_it_is_reached():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 5, 4, generator=draw, dtype=torch.float64)
    maps = torch.rand(3, 10, 8, generator=draw, dtype=torch.float64)
    maps[2] = 0
    coarse = maps.unflatten(1, (5, 2)).unflatten(3, (4, 2)).mean((2, 4))
    for t in range(2):
        q = (coarse[t] / coarse[t].sum()).flatten().numpy()
        p = np.exp(scores[t].flatten().numpy())
        expected = float((q * np.log(q / (p / p.sum()))).sum())
        assert at_locations(scores, maps)[t].item() == pytest.approx(expected, rel=1e-12)
    assert at_locations(scores, maps)[2].item() == 0
    assert at_locations(coarse[:2].log() + 3, maps[:2]).abs().max() < 1e-12


class Teacher:
    """A localizer whose map is bright in one place."""

    class settings:
        grid, score, gamma, temperature = 64, "mass", 0.4, 0.1

    def attend(self, scene: Scene, words: list[str]) -> torch.Tensor:
        heat = torch.zeros(len(words), 64, 64)
        heat[:, 32:48, 16:32] = 1
        return heat

    def heat(self, attention: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return attention


def test_inside_is_the_share_of_likely_boxes_over_a_cell():
    near, far = [50.0, 100.0, 105.0, 155.0], [150.0, 0.0, 200.0, 50.0]
    scene = Scene((torch.zeros(1, 1, 2, 2),), (200, 200), torch.tensor([near, far]))
    inside = map_targets(Teacher(), scene, ["dog", "cat"], "inside")
    assert inside.shape == (2, GRID, GRID)
    rows, columns = (slice(10, 15), slice(5, 10))
    assert inside[:, rows, columns].min() > 0.99
    assert inside.sum((1, 2)).tolist() == pytest.approx([25 + 1, 25 + 1], abs=12)
    heat = map_targets(Teacher(), scene, ["dog"], "heat")[0]
    assert heat.max() == 1
    assert heat[:9].max() == 0
    without_boxes = Scene(scene.activations, scene.size, torch.zeros(0, 4))
    assert torch.equal(map_targets(Teacher(), without_boxes, ["dog"], "inside")[0], heat)


@pytest.mark.parametrize("kind", ["inside", "heat"])
def test_the_student_is_drawn_to_the_maps(kind: str, tmp_path: Path):
    shards = write_set(tmp_path / "set", (24,))
    longer = (PHASES % kind).replace("epochs: 4", "epochs: 16")
    run(tmp_path / "own", shards, longer, "ema=0")
    run(tmp_path / "plain", shards, PHASES.replace("own_maps: 20, own_map: %s", "own_maps: 0"), "ema=0")
    own, plain = losses(tmp_path / "own"), losses(tmp_path / "plain")
    assert own[:3] == plain[:3]
    assert own[3] > plain[3]  # by the divergence
    assert sum(own[-6:]) < 0.8 * sum(own[3:9])
    folder = next((tmp_path / "own").glob("maps-*"))
    maps = OwnMaps(folder)
    assert maps(0, False).shape[1:] == (GRID, GRID)
    assert torch.equal(maps(0, True), maps(0, False).flip(-1))


def test_a_stopped_self_training_goes_on_to_the_same_weights(tmp_path: Path):
    shards = write_set(tmp_path / "set", (24,))
    told = [PHASES % "inside", "ema=0", "save_every=1"]
    run(tmp_path / "whole", shards, *told)

    class Stop(Exception):
        pass

    def stop_after(count: int):
        def after(self: Run, *rest: object) -> None:
            keep(self, *rest)
            if self.state.done == count:
                raise Stop

        return after

    keep = Run._after
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_after", stop_after(7))
        with pytest.raises(Stop):
            train(settings(tmp_path / "halved", shards, *told), World())
    assert Checkpoint.load(tmp_path / "halved" / "checkpoint.pt").done == 7
    run(tmp_path / "halved", shards, *told)
    assert_same_weights(tmp_path / "whole", tmp_path / "halved")


def test_a_broken_photograph_has_no_maps_and_stops_nothing(tmp_path: Path):
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "0.tar", "w") as tar:
        for number in range(20):
            image, texts = draw(number)
            add(tar, f"{number:06d}.png", b"no image" if number == 3 else image)
            add(tar, f"{number:06d}.json", json.dumps({"captions": texts}).encode())
    told = [PHASES % "inside", "ema=0", "data.max_faults=0.2"]
    run(tmp_path / "out", str(tmp_path / "set" / "*.tar"), *told)
    maps = OwnMaps(next((tmp_path / "out").glob("maps-*")))
    assert maps(3, False).sum() == 0
    assert len(maps(3, False)) > 0
    assert maps(2, False).sum() > 0
    assert math.isfinite(losses(tmp_path / "out")[-1])


def test_maps_without_kept_features_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="own_maps needs cache: true in phase a"):
        settings(tmp_path, "x", "phases=[{name: a, own_maps: 0.5}]")
