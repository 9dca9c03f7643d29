"""Shards, tables and folders: what they hold, and what is wrong with them, is told."""

import json
import tarfile
from pathlib import Path

import pytest

from phrase_loc.datasets.web_paths import expand
from phrase_loc.datasets.web_shards import ShardReader, load_index
from phrase_loc.datasets.web_sources import ShardSource, clean, json_texts, open_source
from phrase_loc.errors import DataError
from tests.training.pairs import add, draw, write_set, write_shard


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("a/{000..002}.tar", ["a/000.tar", "a/001.tar", "a/002.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        (["x.tar", "y.tar", "x.tar"], ["x.tar", "y.tar"]),
        ("https://host/{00..01}.tar", ["https://host/00.tar", "https://host/01.tar"]),
        ("plain.csv", ["plain.csv"]),
    ],
)
def test_expand(pattern: str | list[str], expected: list[str]):
    assert expand(pattern) == expected


def test_expand_reads_globs_and_lists(tmp_path: Path):
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/*.tar") == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    (tmp_path / "list.txt").write_text(f"# ours\n{tmp_path}/a.tar\n\n{tmp_path}/{{x,y}}.tar # theirs\n")
    assert expand(f"@{tmp_path}/list.txt") == [f"{tmp_path}/{n}.tar" for n in "axy"]


@pytest.mark.parametrize("pattern", [[], "nowhere/*.tar", "{3..1}.tar", "@missing.txt"])
def test_expand_refuses_in_one_sentence(pattern: str | list[str]):
    with pytest.raises(DataError):
        expand(pattern)


def test_shards_give_their_images_and_texts(tmp_path: Path):
    source = open_source(write_set(tmp_path), tmp_path / "index")
    assert len(source) == 57
    assert source.groups.tolist() == [0] * 30 + [1] * 7 + [2] * 20
    for i in (0, 29, 30, 56):
        image, texts = draw(i)
        assert source.image(i) == image
        assert source.texts(i) == texts
        assert source.name(i).endswith(f"{i:06d}")


def test_the_index_is_kept_and_renewed_when_the_shard_changes(tmp_path: Path):
    shard = write_shard(tmp_path / "0.tar", range(4))
    load_index(str(shard), tmp_path / "index")
    (kept,) = (tmp_path / "index").iterdir()
    time = kept.stat().st_mtime_ns
    rows, _ = load_index(str(shard), tmp_path / "index")
    assert len(rows) == 4
    assert kept.stat().st_mtime_ns == time
    write_shard(shard, range(6))
    assert len(load_index(str(shard), tmp_path / "index")[0]) == 6


def test_img2dataset_layout_text_json_and_parquet_side_file(tmp_path: Path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    image = draw(0)[0]
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        add(tar, "000000000.jpg", image)
        add(tar, "000000000.txt", b" a red square \n")
        add(tar, "000000000.json", json.dumps({"caption": "a red square", "tags": ["snow", 3]}).encode())
        add(tar, "000000001.webp", image)
        add(tar, "000000002.png", image)
        add(tar, "000000002.json", b"{broken")
    side = pd.DataFrame({"key": ["000000001"], "caption": ["from the side file"], "status": ["success"]})
    side.to_parquet(tmp_path / "00000.parquet")
    source = open_source(str(tmp_path / "00000.tar"))
    assert [source.texts(i) for i in range(3)] == [["a red square", "snow"], ["from the side file"], []]


@pytest.mark.parametrize("cut", [2048 * 5, 2048 * 5 + 512, 2048 * 5 + 572, 2048 * 5 + 1024, 2048 * 5 + 1600])
def test_a_truncated_shard_keeps_what_is_whole_and_is_named(tmp_path: Path, cut: int):
    shard = write_shard(tmp_path / "cut.tar", range(10))  # 4 blocks of 512 bytes a sample
    shard.write_bytes(shard.read_bytes()[:cut])
    source = open_source(str(shard))
    assert len(source) == (5 if cut < 2048 * 5 + 1024 else 6)
    assert [source.image(i) for i in range(len(source))] == [draw(i)[0] for i in range(len(source))]
    (fault,) = [fault for fault in source.faults if fault.kind == "shard"]
    assert "cut.tar" in fault.name


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100])
def test_an_unreadable_shard_beside_a_good_one_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "bad.tar").write_bytes(content)
    write_shard(tmp_path / "good.tar", range(3))
    source = open_source([str(tmp_path / "bad.tar"), str(tmp_path / "good.tar")])
    assert len(source) == 3
    assert any("bad.tar" in fault.name for fault in source.faults)


def test_a_key_is_unique_within_its_shard(tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key in ("a", "b", "a"):
            add(tar, f"{key}.jpg", draw(ord(key))[0])
    with tarfile.open(tmp_path / "1.tar", "w") as tar:  # img2dataset's numbers begin anew in each run
        for key in ("b", "c"):
            add(tar, f"{key}.jpg", draw(ord(key))[0])
    source = ShardSource([str(tmp_path / "0.tar"), str(tmp_path / "1.tar")], None)
    assert [source.name(i)[-1] for i in range(len(source))] == ["a", "b", "b", "c"]
    assert [fault.name[-1] for fault in source.faults if fault.kind == "duplicate"] == ["a"]


def test_a_sample_without_image_is_named(tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.txt", b"text only")
        add(tar, "b.jpg", draw(0)[0])
    source = open_source(str(tmp_path / "0.tar"))
    assert len(source) == 1
    assert [(fault.kind, fault.name[-1]) for fault in source.faults] == [("lone", "a")]


def test_shards_at_an_address_are_read_by_ranges(tmp_path: Path):
    fsspec = pytest.importorskip("fsspec")
    shard = write_shard(tmp_path / "0.tar", range(6))
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/0.tar", shard.read_bytes())
    store.pipe("/bucket/1.tar", write_shard(tmp_path / "1.tar", range(6, 9)).read_bytes())
    source = open_source("memory://bucket/{0..1}.tar", tmp_path / "index")
    assert [source.image(i) for i in range(9)] == [draw(i)[0] for i in range(9)]
    assert source.texts(8) == draw(8)[1]
    assert len(list((tmp_path / "index").iterdir())) == 2
    with pytest.raises(DataError, match="does not exist"):
        open_source("memory://bucket/7.tar")
    with pytest.raises(DataError, match="cannot be opened"):
        open_source("nostore://bucket/7.tar")
    store.rm("/bucket", recursive=True)


def test_the_reader_holds_few_files_and_survives_pickling(tmp_path: Path):
    import pickle

    shards = [str(write_shard(tmp_path / f"{i}.tar", range(1))) for i in range(4)]
    reader = ShardReader(shards, open_files=2)
    for i in range(4):
        assert len(reader.read(i, 0, 512)) == 512
    assert len(reader._files) == 2
    other = pickle.loads(pickle.dumps(reader))
    assert other._files == {}
    assert other.read(3, 0, 100) == reader.read(3, 0, 100)
    reader.close()
    other.close()


def write_images(folder: Path, count: int) -> None:
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(draw(i)[0])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_group_rows_by_image(tmp_path: Path, kind: str):
    pd = pytest.importorskip("pandas")
    write_images(tmp_path, 2)
    frame = pd.DataFrame(
        {"image": ["0.jpg", "1.jpg", "0.jpg", "0.jpg"], "caption": ["a, b", "c", "d\te", "a, b"]}
    )
    path = tmp_path / f"pairs.{kind}"
    writers = {
        "csv": lambda: frame.to_csv(path, index=False),
        "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        "parquet": lambda: pytest.importorskip("pyarrow") and frame.to_parquet(path),
    }
    writers[kind]()
    source = open_source(str(path))
    assert [source.texts(i) for i in range(2)] == [["a, b", "d\te"], ["c"]]
    assert source.image(1) == draw(1)[0]
    assert [fault.kind for fault in source.faults] == ["duplicate"]


def test_folders_with_a_captions_file_or_a_text_beside_each_image(tmp_path: Path):
    pytest.importorskip("pandas")
    write_images(tmp_path, 2)
    (tmp_path / "0.txt").write_text("a cat\nanother\n")
    source = open_source(str(tmp_path))
    assert len(source) == 1
    assert source.texts(0) == ["a cat", "another"]
    assert [fault.kind for fault in source.faults] == ["lone"]
    (tmp_path / "captions.txt").write_text('0.jpg#0\tA cat .\n0.jpg#1\tA "pet"\n1.jpg#0\tA dog\n')
    source = open_source(str(tmp_path))
    assert [source.texts(i) for i in range(2)] == [["A cat .", 'A "pet"'], ["A dog"]]


@pytest.mark.parametrize(
    "name, content", [("a.csv", "x,y\n1,2\n"), ("a.csv", ""), ("a.tar.gz", ""), ("a.parquet", "no")]
)
def test_what_is_no_source_is_refused_in_one_sentence(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError):
        open_source(str(tmp_path / name))
    with pytest.raises(DataError):
        open_source(str(tmp_path / "missing.tar"))


def test_texts_of_json_members():
    raw = json.dumps({"captions": ["a", 3, "b"], "tags": "x, y", "width": 5}).encode()
    assert json_texts(raw, ("captions", "tags", "width")) == ["a", "b", "x, y"]
    assert json_texts(b"[1]", ("a",)) == json_texts(b"\xff", ("a",)) == []
    assert clean([" a ", "", "a", "b"]) == ["a", "b"]
