"""A stream that is killed goes on: two processes, one of them shot in the middle, no line lost or doubled."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch.multiprocessing as mp

from phrase_loc.distributed import World, session
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.streaming import answer_many, questions_of

PHRASES = ("dog", "red hat")
COUNT, BATCH = 11, 2


class Shot(PhraseLocalizer):
    """Kills its own process, as a machine that goes away does, after some batches."""

    batches = 2

    def look_at(self, pictures):
        """As ever, until the shot."""
        self.batches -= 1
        if self.batches < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().look_at(pictures)


def answered(folder: Path, output: Path, localizer: PhraseLocalizer, world=None) -> dict[str, int]:
    """The counts of one run over the folder."""
    more = {} if world is None else {"world": world}
    return answer_many(localizer, questions_of(folder, PHRASES), output, batch_size=BATCH, **more)


def one_of_two(rank: int, model: Path, folder: Path, output: Path, port: int) -> None:
    """What torchrun starts; rank 1 will be shot."""
    told = {
        "RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ |= {key: str(value) for key, value in told.items()}
    localizer = PhraseLocalizer.from_pretrained(model, device="cpu")
    with session("cpu") as world:
        answered(folder, output, Shot(localizer.model, localizer.settings) if rank else localizer, world)


class Alone(World):
    """A rank that goes on by itself: the other one has been here before, or comes later."""

    def barrier(self) -> None:
        """Nobody to wait for."""

    def sum(self, value):
        """Of this process only."""
        return value


def test_a_killed_run_of_two_processes_goes_on_without_a_lost_or_doubled_line(
    tiny_model, drawn_image, tmp_path
):
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(COUNT):
        drawn_image.rotate(30 * number).save(folder / f"{number:02d}.png")
    alone, output = tmp_path / "alone.jsonl", tmp_path / "two.jsonl"
    localizer = PhraseLocalizer.from_pretrained(tiny_model, device="cpu")
    answered(folder, alone, localizer)
    port = 29500 + hash(str(tmp_path)) % 2000
    with pytest.raises(mp.ProcessExitedException):
        mp.spawn(one_of_two, args=(tiny_model, folder, output, port), nprocs=2)
    parts = [tmp_path / f".two.jsonl.part{rank}of2" for rank in (0, 1)]
    assert len(parts[1].read_bytes().splitlines()) == Shot.batches * BATCH
    assert not output.exists()

    counts = [
        answered(folder, output, localizer, Alone(rank, 2)) for rank in (1, 0)
    ]  # rank 0 joins the parts
    lines = output.read_bytes().splitlines()
    assert [Path(json.loads(line)["image"]).name for line in lines] == [f"{n:02d}.png" for n in range(COUNT)]
    assert same(lines, alone.read_bytes().splitlines())
    assert counts[0] == {"answered": 1, "resumed": 4, "refused": 0}
    assert counts[1]["answered"] + counts[1]["resumed"] == 6
    assert not list(tmp_path.glob(".two.jsonl*"))


def same(some: list[bytes], others: list[bytes]) -> bool:
    """Equal answers; batches are cut elsewhere, so numbers may differ by rounding."""
    return all(near(json.loads(a), json.loads(b)) for a, b in zip(some, others, strict=True))


def near(a: object, b: object) -> bool:
    """Equal up to a pixel's thousandth or so."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(near, a, b))
    return a == pytest.approx(b, abs=1e-2) if isinstance(a, float) else a == b
