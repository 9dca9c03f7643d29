"""A stream that is killed goes on: two processes, one of them shot in the middle, no line lost or doubled."""

import json
import os
import pickle
import signal
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from benchmarks.kills import in_child
from phrase_loc import files
from phrase_loc.cli.query import read_phrases
from phrase_loc.distributed import World, session
from phrase_loc.errors import DataError
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.streaming import answer_many, questions_of
from phrase_loc.structures import Prediction, Scene

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
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {key: str(value) for key, value in told.items()}
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

    def gather(self, value):
        """Of this process only."""
        return [value]


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
    lines = (tmp_path / ".two.jsonl.part1").read_bytes().split(b"\n")
    assert sum(files.line_in(line) is not None for line in lines) == Shot.batches * BATCH
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


class Quick(PhraseLocalizer):
    """Answers at once, so that a run can be killed often."""

    def look_at(self, pictures):
        """Sizes alone."""
        return [Scene((), p.size, None) for p in pictures]

    def locate(self, scene, phrases, top_k=5, method=None, threshold=None):
        """One box, the whole photograph."""
        height, width = scene.size
        box, score = torch.tensor([[0.0, 0.0, width, height]]), torch.tensor([1.0])
        return [Prediction(p, (), 0.5, box[0, :2], box, score, torch.zeros(1, 1)) for p in phrases]


@pytest.fixture
def quick(tiny_localizer):
    return Quick(tiny_localizer.model, tiny_localizer.settings)


def shot_at(moment: int, folder: Path, output: Path, localizer: bytes) -> None:
    """A run that kills its own process at the n-th moment of its files."""
    left = iter(range(moment, -1, -1))
    files.observer = lambda *_: next(left) or os.kill(os.getpid(), signal.SIGKILL)
    answered(folder, output, pickle.loads(localizer))


def killed_at(moment: int, folder: Path, output: Path, localizer: PhraseLocalizer) -> bool:
    """A run in a process of its own that is shot at the n-th moment of its files; whether it came so far."""
    child = in_child(shot_at, moment, folder, output, pickle.dumps(localizer))
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_run_that_is_killed_in_any_window_ends_in_the_same_file(quick, photographs, tmp_path, ending):
    whole = tmp_path / f"whole{ending}"
    answered(photographs, whole, quick)
    for moment in range(100):
        output = tmp_path / f"killed{moment}{ending}"
        killed = killed_at(moment, photographs, output, quick)
        if ending == ".jsonl":  # a line torn by the kill
            for part in tmp_path.glob(f".{output.name}.part0"):
                with part.open("ab") as lines:
                    lines.write(b'{"image": "')
        counts = answered(photographs, output, quick)
        assert counts["answered"] + counts["resumed"] == 5
        assert output.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob(f".{output.name}*")), "nothing half written stays"
        assert answered(photographs, output, quick) == {"answered": 0, "resumed": 5, "refused": 0}
        if not killed:
            break
    assert moment > 10


OTHERS = {
    "top-k 1": lambda q: (q, {"top_k": 1}, PHRASES),
    "method mwp": lambda q: (Quick(q.model, replace(q.settings, method="mwp")), {}, PHRASES),
    "gamma 0.1": lambda q: (Quick(q.model, replace(q.settings, gamma=0.1)), {}, PHRASES),
    "model ": lambda q: (Quick(other_calibration(q.model), q.settings), {}, PHRASES),
}


def other_calibration(model):
    """The same weights, other probabilities."""
    model = copy(model)
    model.config = replace(model.config, calibration={"slope": 2.0, "offset": 0.0})
    return model


def interrupted(localizer, folder, output, phrases=PHRASES, **options) -> None:
    """A run that ends after its first batch."""
    look, calls = localizer.look_at, []

    def stopped(pictures):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return look(pictures)

    localizer.look_at = stopped
    with pytest.raises(KeyboardInterrupt):
        answer_many(localizer, questions_of(folder, phrases), output, batch_size=BATCH, **options)
    del localizer.look_at


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("told", OTHERS)
def test_answers_of_other_settings_are_never_mixed_nor_lost(quick, photographs, tmp_path, told, finished):
    output = tmp_path / "o.jsonl"
    other, options, phrases = OTHERS[told](quick)
    questions = questions_of(photographs, phrases)
    if finished:
        answer_many(other, questions, output, **options)
    else:
        interrupted(other, photographs, output, phrases, **options)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(DataError, match=rf"o.jsonl holds answers of other settings \({told}.*--output"):
        answered(photographs, output, quick)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert answer_many(quick, questions, output, overwrite=True)["answered"] == 5


def test_what_was_replaced_since_is_asked_anew(quick, photographs, drawn_image, tmp_path):
    output = tmp_path / "o.jsonl"
    interrupted(quick, photographs, output)
    drawn_image.resize((60, 40)).save(photographs / "1.png")
    assert answered(photographs, output, quick) == {"answered": 4, "resumed": 1, "refused": 0}
    sizes = [json.loads(line)["size"] for line in output.read_text().splitlines()]
    assert sizes == [[120, 80], [60, 40], *[[120, 80]] * 3]
    drawn_image.save(photographs / "1.png")
    with pytest.raises(DataError, match="about other photographs or phrases"):
        answered(photographs, output, quick)


def test_other_phrases_never_erase_the_answers_of_an_interrupted_run(quick, photographs, tmp_path):
    output = tmp_path / "o.jsonl"
    interrupted(quick, photographs, output, ("a man",))
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl*")}
    with pytest.raises(
        DataError, match="about other photographs or phrases; give another --output, or --over"
    ):
        answered(photographs, output, quick)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.jsonl*")} == before
    assert answer_many(quick, questions_of(photographs, PHRASES), output, overwrite=True)["resumed"] == 0
    assert all("red hat" in line for line in output.read_text().splitlines())


def test_a_run_goes_on_with_another_number_of_processes(quick, photographs, tmp_path):
    output, whole = tmp_path / "o.jsonl", tmp_path / "whole.jsonl"
    answered(photographs, whole, quick)
    interrupted(quick, photographs, output)
    assert answered(photographs, output, quick, Alone(1, 2)) == {"answered": 1, "resumed": 1, "refused": 0}
    assert answered(photographs, output, quick, Alone(0, 2)) == {"answered": 2, "resumed": 1, "refused": 0}
    assert output.read_bytes() == whole.read_bytes()
    assert answered(photographs, output, quick)["resumed"] == 5


@pytest.mark.parametrize(
    "record", [None, "", "{}", '{"settings": 1, "questions": 2, "output": 3}', "[" * 10_000]
)
def test_a_part_that_does_not_say_what_it_belongs_to_is_refused(quick, photographs, tmp_path, record):
    output = tmp_path / "o.jsonl"
    interrupted(quick, photographs, output)
    path = tmp_path / "o.jsonl.run.json"
    path.unlink() if record is None else path.write_text(record)
    with pytest.raises(DataError, match="does not say what"):
        answered(photographs, output, quick)
    assert answer_many(quick, questions_of(photographs, PHRASES), output, overwrite=True)["answered"] == 5


def test_a_foreign_file_is_not_overwritten(quick, photographs, tmp_path):
    output = tmp_path / "o.jsonl"
    output.write_text("mine\n")
    for _ in range(2):
        with pytest.raises(DataError, match="was not written by this command"):
            answered(photographs, output, quick)
        assert output.read_text() == "mine\n"
        output.unlink()
        answered(photographs, output, quick)
        output.write_text("mine\n")  # in the place of a finished file


def test_two_runs_into_one_output(quick, photographs, tmp_path):
    output = tmp_path / "o.jsonl"
    with (
        files.lock(tmp_path / ".o.jsonl.lock", "held"),
        pytest.raises(DataError, match=r"another process is writing .*o.jsonl; wait for it, or give another"),
    ):
        answered(photographs, output, quick)
    assert [p.name for p in tmp_path.iterdir()] == ["photographs"]
    assert answered(photographs, output, quick)["answered"] == 5


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_name_that_is_not_utf8_is_answered_and_written_with_an_escape(quick, photographs, tmp_path, ending):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        (photographs / "0.png").rename(photographs / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    (photographs / "4.png").unlink()
    output = tmp_path / f"o{ending}"
    assert answered(photographs, output, quick) == {"answered": 4, "resumed": 0, "refused": 0}
    assert answered(photographs, output, quick)["resumed"] == 4
    if ending == ".jsonl":
        text = output.read_text(encoding="utf-8")
        assert "caf\\udce9.png" in text
        assert os.path.exists(json.loads(text.splitlines()[-1])["image"])
    else:
        assert pytest.importorskip("pandas").read_parquet(output)["image"].iloc[-1].endswith("caf\\udce9.png")


def test_a_photograph_that_goes_while_it_is_asked_is_a_line(quick, photographs, tmp_path):
    questions = questions_of(photographs, PHRASES)
    (photographs / "2.png").unlink()
    output = tmp_path / "o.jsonl"
    assert answer_many(quick, questions, output) == {"answered": 4, "resumed": 0, "refused": 1}
    assert "does not exist" in json.loads(output.read_text().splitlines()[2])["error"]


def test_a_decoding_process_that_dies_is_one_sentence(quick, photographs, tmp_path):
    class Fatal:
        """A source whose library crashes."""

        def of_image(self, picture, size):
            """Ends the process."""
            os.kill(os.getpid(), signal.SIGKILL)

    quick.source = Fatal()
    with pytest.raises(DataError, match=r"a decoding process was killed.*--workers"):
        answer_many(quick, questions_of(photographs, PHRASES), tmp_path / "o.jsonl", workers=1)


def test_the_localizers_own_source_proposes(tiny_localizer, photographs, tmp_path):
    cached = tiny_localizer.with_settings(proposals="windows").with_cache(tmp_path / "boxes")
    answered(photographs, tmp_path / "o.jsonl", cached)
    assert len(list((tmp_path / "boxes").iterdir())) == 5


def test_a_folder_names_what_it_leaves_out(photographs, tmp_path):
    below = photographs / "b" / "c"
    below.mkdir(parents=True)
    for name in ("5.AVIF", "6.Jfif", "7.jp2", ".hidden.png", "raw.HEIC", "raw.heic", "notes", ".DS_Store"):
        (below / name).write_bytes(b"")
    (photographs / "loop").symlink_to(photographs)
    (photographs / "gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photographs / "pipe.jpg")
    notes = []
    questions = questions_of(photographs, PHRASES, notes.append)
    names = [os.path.relpath(q.image, photographs) for q in questions]
    assert names == [
        *(f"{n}.png" for n in range(5)),
        *(f"b/c/{name}" for name in (".hidden.png", "5.AVIF", "6.Jfif", "7.jp2")),
        "gone.jpg",
        "pipe.jpg",
    ]
    assert notes == [
        "left out 3 files of endings that are not read (.heic, no ending)",
        f"did not enter 1 linked folder ({photographs / 'loop'})",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xef\xbb\xbfdog\r\n\r\n red hat \n", ["dog", "red hat"]),
        (b"a dog, a cat\n# not a comment", ["a dog, a cat", "# not a comment"]),
        (b"", "is empty"),
        (b"\n \r\n", "is empty"),
        (b' ["a dog", "a man"]', "is JSON; write a text"),
        (b'{"phrase": "a dog"}\n{"phrase": "a man"}\n', "is JSON; write a text"),
        (b'[\n"a dog"\n]', "is JSON; write a text"),
        (b"[a dog]\n12 dogs\n", ["[a dog]", "12 dogs"]),
        (b"[1] a dog\n{} braces\n", ["[1] a dog", "{} braces"]),
        (b"[ ] a dog\n[x] a man\n", ["[ ] a dog", "[x] a man"]),
        (b'"a dog"\n"a man"\n', ['"a dog"', '"a man"']),
        (b"dog\0\n", "null characters"),
        ("dog".encode("utf-16"), ["dog"]),
        ("dog\nred hat".encode("utf-32"), ["dog", "red hat"]),
        ("dog".encode("utf-16-le"), "has nulls as UTF-16"),
        ("dog".encode("utf-32-be"), "has nulls as UTF-32"),
        ("dog".encode("utf-16")[:-1], r"phrases\.txt is not UTF-16 text \(byte 6\); save it as UTF-8"),
        ("café".encode("latin-1"), "not UTF-8"),
    ],
)
def test_files_of_phrases(tmp_path, content, told):
    path = tmp_path / "phrases.txt"
    path.write_bytes(content)
    if isinstance(told, list):
        assert read_phrases(path) == told
    else:
        with pytest.raises(DataError, match=told):
            read_phrases(path)


TABLES = {"a.tsv": "image\tphrase\n1.png\ta cat\n", "a.jsonl": '{"image": "1.png", "phrase": "a cat"}\n'}


@pytest.mark.parametrize(("name", "text"), TABLES.items())
def test_a_table_of_any_kind_is_asked(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert [q.phrases for q in questions_of(tmp_path / name, [])] == [("a cat",)]
    (tmp_path / "b.jsonl").write_text('{"image": "1.png", "phrase": ["a cat", "a dog"]}\n')
    with pytest.raises(DataError, match=r"line 1 of the table .* lacks its image or its phrase as text"):
        questions_of(tmp_path / "b.jsonl", [])


def test_a_folder_without_a_photograph_says_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"no image was found in .* \(looked for \.apng"):
        questions_of(tmp_path, ["a cat"])
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"\(left out 1 file of endings that are not read \(\.heic\)\)"):
        questions_of(tmp_path, ["a cat"])
