"""What a run keeps on disk stands for what it is named by: other photographs, texts or bits make it anew."""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.pairs.sources import open_source
from phrase_loc.training.checkpoint import Checkpoint, identify
from phrase_loc.training.features import OPEN, missing_chunks, read_chunk, write_chunk
from tests.training.pairs import draw, write_set
from tests.training.runs import losses, run

NOTHING = torch.zeros(1, 1, 3), torch.ones(1) > 0
HEAD = "phases=[{name: head, epochs: 1, batch: 8, cache: true, mirror: 0, lr: 0.01, warmup: 0}]"


def write_folder(folder: Path, numbers: range) -> str:
    """Photographs, each with a .txt beside it."""
    folder.mkdir()
    for number in numbers:
        image, texts = draw(number)
        (folder / f"{number}.png").write_bytes(image)
        (folder / f"{number}.txt").write_text("\n".join(texts))
    return str(folder)


@pytest.mark.parametrize("kind", ["shards", "folder"])
@pytest.mark.parametrize("number", [0, 4, 15])
def test_features_of_a_replaced_photograph_are_made_anew(kind: str, number: int, tmp_path: Path):
    """Also of one in the middle, of the same name: count, first and last name are as before."""
    told = (HEAD, f"data.features={tmp_path / 'kept'}", "ema=0")
    place, other = tmp_path / "set", tmp_path / "other"
    data = write_folder(place, range(16)) if kind == "folder" else write_set(place, (16,))
    run(tmp_path / "before", data, *told)
    if kind == "folder":
        image, _ = draw(100 + number, 24)
        (place / f"{number}.png").write_bytes(image)
    else:
        content = (place / "00000.tar").read_bytes()
        (place / "00000.tar").write_bytes(content.replace(draw(number)[0], other_image(number)))
        os.utime(place / "00000.tar", (1, 1))
    run(tmp_path / "after", data, *told)
    run(other, data, *told[:1], "ema=0")
    assert losses(tmp_path / "after") == losses(other) != losses(tmp_path / "before")


def other_image(number: int) -> bytes:
    """A photograph of as many bytes as `draw` makes for this number, blanks of a comment behind its end."""
    image, length = draw(100 + number, 16)[0], len(draw(number)[0])
    assert len(image) <= length
    return image + b"\0" * (length - len(image))


def test_features_do_not_depend_on_the_words_of_the_run_that_made_them(tmp_path: Path):
    """A photograph without a word for one run is no broken one for the next."""
    shards = write_set(tmp_path / "set", (16,))
    words = tmp_path / "words.txt"
    told = (HEAD, f"vocabulary.file={words}", f"data.features={tmp_path / 'kept'}", "data.max_faults=0")
    words.write_text("red\ncircle\n")
    run(tmp_path / "few", shards, *told)
    kinds = {kind for kind, _ in Checkpoint.load(tmp_path / "few" / "checkpoint.pt").faults}
    assert kinds == {"words"}
    words.write_text("red\ncircle\nsquare\n")
    run(tmp_path / "all", shards, *told)
    assert Checkpoint.load(tmp_path / "all" / "checkpoint.pt").faults == []
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_chunk_with_a_changed_bit_is_made_anew_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    draw = np.random.default_rng(0)
    write_chunk(tmp_path, 0, torch.rand(5, 2, 3).half(), torch.arange(5) % 2 > 0)
    path = tmp_path / "000000.chunk"
    whole = path.read_bytes()
    assert missing_chunks(tmp_path, 5, World()) == []
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        assert missing_chunks(tmp_path, 5, World()) == [(0, range(5))], place
    path.write_bytes(whole[:-1])
    assert missing_chunks(tmp_path, 300, World()) == [(0, range(256)), (1, range(256, 300))]
    assert caplog.text.count("has changed since it was written; it is made anew") == len(whole) + 1


def test_a_run_over_damaged_features_is_that_over_whole_ones(tmp_path: Path):
    shards = write_set(tmp_path / "set", (16,))
    told = (HEAD, f"data.features={tmp_path / 'kept'}", "ema=0")
    run(tmp_path / "a", shards, *told)
    for path in (tmp_path / "kept").rglob("*.chunk"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 64
        path.write_bytes(content)
    run(tmp_path / "b", shards, *told)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_few_chunks_stay_open_and_all_can_be_read(tmp_path: Path):
    count = OPEN + 3
    for i in range(count):
        write_chunk(tmp_path, i, torch.full((2, 1, 3), i).half(), torch.tensor([True, i > 0]))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for i in [*range(count), 0, 8, 1, 1, 0, 5]:
        outputs, usable = read_chunk(tmp_path, i)
        assert outputs.tolist() == [[[i] * 3]] * 2
        assert usable.tolist() == [True, i > 0]
    assert not before or len(os.listdir("/proc/self/fd")) <= before + OPEN
    (tmp_path / "000004.chunk").unlink()
    with pytest.raises(DataError, match="start again"):
        read_chunk(tmp_path, 4)


def test_processes_share_out_one_list_whatever_each_finds_later(tmp_path: Path):
    """A process that looks when another has already begun to write must not shift the shares."""
    write_chunk(tmp_path, 2, *NOTHING)
    written = threading.Event()

    def work(world: World) -> list[int]:
        if not world.is_main:
            written.wait(0.3)  # long enough for a main process that waits for nobody
        share = [chunk for chunk, _ in missing_chunks(tmp_path, 5 * 256, world)]
        for chunk in share:
            write_chunk(tmp_path, chunk, *NOTHING)
        written.set()
        return share

    one, two = together(work)
    assert sorted(one + two) == [0, 1, 3, 4]
    assert missing_chunks(tmp_path, 5 * 256, World()) == []


class Threads(World):
    """Two threads as the processes of a world."""

    slots: dict
    meeting: threading.Barrier

    def gather(self, value: object) -> list:
        self.slots[self.rank] = value
        self.meeting.wait(20)
        values = [self.slots[rank] for rank in range(self.size)]
        self.meeting.wait(20)
        return values

    def barrier(self) -> None:
        self.gather(None)


def together(action: Callable[[World], object]) -> list:
    """What two processes make of an action."""
    slots: dict = {}
    meeting = threading.Barrier(2)

    def work(rank: int) -> object:
        world = Threads(rank, 2)
        object.__setattr__(world, "slots", slots)
        object.__setattr__(world, "meeting", meeting)
        return action(world)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2)))


def test_the_texts_have_one_digest_at_any_number_of_processes(tmp_path: Path):
    shards = write_set(tmp_path / "set", (7, 5))
    one = identify(open_source(shards), tmp_path / "one", World())
    two = together(lambda world: identify(open_source(shards), tmp_path / "two", world))
    assert two == [one, one]
    assert one.facts["images"] == 12


@pytest.mark.parametrize("change", ["settings", "texts", "edited", "key", "swapped"])
def test_words_that_were_counted_otherwise_are_counted_anew(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    folder = write_folder(tmp_path / "set", range(16))
    out, kept = tmp_path / "out", tmp_path / "out" / "vocabulary.tsv"
    run(out, folder, HEAD)
    before = kept.read_text()
    (out / "checkpoint.pt").unlink()
    told = [HEAD]
    if change == "settings":
        told += ["vocabulary.size=3"]
    elif change == "texts":
        for number in range(3):
            (tmp_path / "set" / f"{number}.txt").write_text("A purple triangle .")
    elif change == "edited":
        kept.write_text(before.replace("square", "sqvare"))
    elif change == "swapped":
        lines = before.splitlines(keepends=True)
        kept.write_text("".join([lines[1], lines[0], *lines[2:]]))
    else:
        (out / "vocabulary.key").write_bytes(b"\0" * 100)
    run(out, folder, *told)
    run(tmp_path / "fresh", folder, *told)
    assert kept.read_text() == (tmp_path / "fresh" / "vocabulary.tsv").read_text()
    assert (kept.read_text() != before) == (change in ("settings", "texts"))
    assert "the words are counted anew" in caplog.text


def test_a_copied_cache_folder_can_be_shared_and_leftovers_of_old_go(tmp_path: Path):
    shards = write_set(tmp_path / "set", (16,))
    told = (HEAD, f"data.features={tmp_path / 'kept'}")
    run(tmp_path / "a", shards, *told)
    folder = next((tmp_path / "kept").iterdir())
    old, fresh = (
        folder / ".000000.chunk.1-0123abcd.part.chunk",
        folder / ".000000.chunk.2-0123abcd.part.chunk",
    )
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    shutil.rmtree(tmp_path / "a")
    run(tmp_path / "a", shards, *told)
    assert not old.exists()
    assert fresh.exists()  # another run may be writing it
