"""Shards, tables and folders: what they hold, and what is wrong with them, is told."""

import bz2
import gzip
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from phrase_loc.errors import DataError
from phrase_loc.pairs.paths import expand
from phrase_loc.pairs.shards import load_index
from phrase_loc.pairs.sources import ShardSource, member_texts, open_source
from phrase_loc.tables import cell_texts
from tests.training.pairs import add, draw, write_set, write_shard


def write_tar(path: Path, members: dict[str, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    return str(path)


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
    listed = (tmp_path / "list.txt").read_text()
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "list.txt").write_text(listed, encoding=encoding)
        assert expand(f"@{tmp_path}/list.txt") == [f"{tmp_path}/{n}.tar" for n in "axy"]


@pytest.mark.parametrize(
    "pattern",
    [[], "", " ", "nowhere/*.tar", "{3..1}.tar", "{0..9999999}{0..9}", "@missing.txt", "@itself.txt"],
)
def test_expand_refuses_in_one_sentence(
    tmp_path: Path, pattern: str | list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "itself.txt").write_text("@itself.txt")
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
    members = {
        **{"000000000.jpg": image, "000000000.txt": b" a red square \n"},
        "000000000.json": json.dumps({"caption": "a red square", "tags": ["snow", 3]}).encode(),
        **{"000000001.webp": image, "000000002.png": image, "000000002.json": b"{broken"},
    }
    write_tar(tmp_path / "00000.tar", members)
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
    write_tar(
        tmp_path / "1.tar", {"b.jpg": b"1", "c.jpg": b"2"}
    )  # img2dataset's numbers begin anew in each run
    source = ShardSource([str(tmp_path / "0.tar"), str(tmp_path / "1.tar")], None)
    assert [source.name(i)[-1] for i in range(len(source))] == ["a", "b", "b", "c"]
    assert [fault.name[-1] for fault in source.faults if fault.kind == "duplicate"] == ["a"]


def test_a_sample_without_image_is_named(tmp_path: Path):
    source = open_source(write_tar(tmp_path / "0.tar", {"a.txt": b"text only", "b.jpg": b"1"}))
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


def test_whatever_a_store_raises_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    store.pipe("/bucket/0.tar", write_shard(tmp_path / "0.tar", range(2)).read_bytes())
    source = open_source("memory://bucket/0.tar")

    def lost(*args: object, **options: object) -> None:
        raise RuntimeError("the line\nis dead")

    for name in ("cat_file", "open", "exists"):
        monkeypatch.setattr(type(store), name, lost)
    with pytest.raises(DataError, match="RuntimeError: the line is dead"):
        source.image(0)
    with pytest.raises(DataError, match="cannot be reached"):
        open_source("memory://bucket/0.tar")
    assert [fault.kind for fault in ShardSource(["memory://bucket/0.tar"], None).faults] == ["shard"]
    monkeypatch.undo()
    store.rm("/bucket", recursive=True)


def test_a_source_holds_few_files_and_survives_pickling(tmp_path: Path):
    import pickle

    shards = [str(write_shard(tmp_path / f"{i}.tar", range(1))) for i in range(4)]
    source = ShardSource(shards, None, open_files=2)
    images = [source.image(i) for i in range(4)]
    assert images == [draw(0)[0]] * 4
    assert len(source._open) == 2
    other = pickle.loads(pickle.dumps(source))
    assert other._open == {}
    assert [other.image(i) for i in range(4)] == images


def write_images(folder: Path, count: int) -> None:
    for i in range(count):
        (folder / f"{i}.jpg").write_bytes(draw(i)[0])


@pytest.mark.parametrize(
    "cell, expected",
    [
        ('["a dog", 3, "it\'s a cat"]', ["a dog", "it's a cat"]),
        (str(["a dog", "it's a cat"]), ["a dog", "it's a cat"]),
        ("['a dog' 'a cat']", ["['a dog' 'a cat']"]),  # numpy's: Python would read one string
        ("[1] a dog", ["[1] a dog"]),
        ("a dog\n\na cat ", ["a dog", "a cat"]),
        (["a dog", ["a cat"]], ["a dog", "a cat"]),
        (3, []),
    ],
)
def test_texts_of_a_cell(cell: object, expected: list[str]):
    assert cell_texts(cell) == expected


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


def test_a_damaged_header_costs_its_own_sample_and_is_named(tmp_path: Path):
    shard = write_shard(tmp_path / "0.tar", range(10))
    content = bytearray(shard.read_bytes())
    content[2048 * 5 + 3] ^= 1  # in the name of 000005.png; 4 blocks of 512 bytes a sample
    shard.write_bytes(content)
    source = open_source(str(shard), tmp_path / "index")
    assert [source.image(i) for i in range(9)] == [draw(i)[0] for i in range(10) if i != 5]
    assert [source.texts(i) for i in range(9)] == [draw(i)[1] for i in range(10) if i != 5]
    assert {fault.kind for fault in source.faults} == {"shard", "lone"}
    (fault,) = [fault for fault in source.faults if fault.kind == "shard"]
    assert "damaged" in fault.detail
    assert ".png" in fault.detail
    assert "10,240 to 11,264" in fault.detail


def test_joined_archives_are_read_on_and_their_keys_begin_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    parts = [write_shard(tmp_path / f"{i}.tar", range(3)).read_bytes() for i in range(2)]
    (tmp_path / "both.tar").write_bytes(b"".join(parts))
    source = open_source(str(tmp_path / "both.tar"))
    assert [source.image(i) for i in range(6)] == [draw(i % 3)[0] for i in range(6)]
    assert source.faults == []
    assert "goes on behind its end mark" in caplog.text


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda content: content[:2048] + bytes(2048) + content[4096:], "zeros stand"),
        (lambda content: content + b"x" * 700, "no header of a file"),
        (lambda content: content + bytes(100_000), "zeros stand"),
        (lambda content: content.rstrip(b"\0"), "mark at the end of the archive is missing"),
        (gzip.compress, "packed with gzip; unpack it"),
        (bz2.compress, "packed with bzip2; unpack it"),
        (lambda content: b"", "the file is empty"),
        (lambda content: b"<html>" * 1000, "no header of a file"),
    ],
)
def test_what_is_no_whole_tar_is_named(tmp_path: Path, change: Callable[[bytes], bytes], said: str):
    shard = write_shard(tmp_path / "0.tar", range(4))
    shard.write_bytes(change(shard.read_bytes()))
    source = ShardSource([str(shard), str(write_shard(tmp_path / "1.tar", range(2)))], tmp_path / "index")
    assert len(source) >= 2
    assert any(said in fault.detail for fault in source.faults if fault.kind == "shard")


def test_names_with_dots_and_files_that_are_no_samples(tmp_path: Path):
    members = {
        **{"IMG.2020.01.jpg": b"1", "IMG.2020.01.txt": b"a dog", "IMG.2020.02.JPG": b"2"},
        **{"b.jpg": b"3", "b.txt": b"a cat", "b.seg.png": b"?", "b.v1.meta.json": b"{}", "._b.jpg": b"?"},
        **{"x/b.gif": b"4", "x/b.json": b"{}", "x/b.cls": b"7", "../b.png": b"5", "/b.bmp": b"6"},
        "c.seg.png": b"7",  # alone, it is a sample
    }
    source = open_source(write_tar(tmp_path / "0.tar", members))
    found = {
        source.name(i).rpartition(":")[2]: (source.image(i), source.texts(i)) for i in range(len(source))
    }
    assert found == {
        "IMG.2020.01": (b"1", ["a dog"]),
        "IMG.2020.02": (b"2", []),
        **{
            "b": (b"3", ["a cat"]),
            "x/b": (b"4", []),
            "../b": (b"5", []),
            "/b": (b"6", []),
            "c.seg": (b"7", []),
        },
    }
    assert source.faults == []


def test_links_and_sparse_files_are_named(tmp_path: Path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.jpg", b"1")
        for name, kind in (("b.jpg", tarfile.LNKTYPE), ("c.txt", tarfile.SYMTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "a.jpg"
            tar.addfile(link)
    source = open_source(str(tmp_path / "0.tar"))
    assert len(source) == 1
    assert [(f.kind, f.name[-5:], f.detail) for f in source.faults] == [
        ("image", "b.jpg", "is a link to a.jpg"),
        ("text", "c.txt", "is a link to a.jpg"),
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_whole(tmp_path: Path, form: int):
    names = ["n" * 150, "\u732b", "\udce9"]
    with tarfile.open(tmp_path / "0.tar", "w", format=form) as tar:
        for name in names:
            add(tar, f"{name}.jpg", b"x")
            add(tar, f"{name}.txt", b"a cat")
    source = open_source(str(tmp_path / "0.tar"), tmp_path / "index")
    assert [source.name(i).rpartition(":")[2] for i in range(3)] == names
    assert [source.texts(i) for i in range(3)] == [["a cat"]] * 3


def test_a_changed_bit_of_an_index_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shard, cache = str(write_shard(tmp_path / "0.tar", range(3))), tmp_path / "index"
    rows, _ = load_index(shard, cache)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    for number in range(60):
        place = number * len(content) // 60
        kept.write_bytes(content[:place] + bytes([content[place] ^ 1 << number % 8]) + content[place + 1 :])
        caplog.clear()
        assert load_index(shard, cache)[0].tobytes() == rows.tobytes()
        assert "damaged; it is made anew" in caplog.text
        assert kept.read_bytes() == content
    kept.write_bytes(b"")
    assert len(load_index(shard, cache)[0]) == 3


def test_texts_that_cannot_be_read_are_said(tmp_path: Path):
    texts = {"a.txt": b"caf\xe9", "b.json": b"{broken", "c.json": b"[1]"}
    source = open_source(
        write_tar(tmp_path / "0.tar", {"a.jpg": b"x", "b.jpg": b"x", "c.jpg": b"x", **texts})
    )
    assert source.told(0) == (["caf\u00e9"], "its text is not UTF-8 and is read as Windows-1252")
    assert source.told(1) == source.told(2) == ([], "its .json is no JSON object, or has a key twice")


def test_a_broken_table_beside_a_shard_is_named(tmp_path: Path):
    pytest.importorskip("pyarrow")
    write_tar(tmp_path / "0.tar", {"a.jpg": b"x"})
    (tmp_path / "0.parquet").write_bytes(b"PAR1 no PAR1")
    (fault,) = open_source(str(tmp_path / "0.tar")).faults
    assert "0.parquet cannot be read" in fault.detail


def test_a_row_of_another_width_moves_no_column(tmp_path: Path):
    write_images(tmp_path, 1)
    (tmp_path / "a.csv").write_text("image,caption\n0.jpg,a cat\n0.jpg,a dog, brown\n0.jpg,a hat\n")
    source = open_source(str(tmp_path / "a.csv"))
    assert source.texts(0) == ["a cat", "a hat"]
    (fault,) = source.faults
    assert (fault.kind, fault.name) == ("row", f"{tmp_path}/a.csv:row 2")
    assert fault.detail == "has 3 fields, the header has 2; quote the phrase"


def test_a_missing_image_of_a_table_is_told_when_it_is_read(tmp_path: Path):
    (tmp_path / "captions.csv").write_text("image,caption\nno.jpg,a cat\n.,a dog\n\0.jpg,a hat\n")
    source = open_source(str(tmp_path))
    for i in range(3):
        with pytest.raises(DataError, match=r"does not exist|is no file"):
            source.image(i)


def test_many_texts_of_one_image_each_count_once(tmp_path: Path):
    rows = [f"a.jpg,text {i % 250}\n" for i in range(500)]
    (tmp_path / "a.csv").write_text("image_path,caption\n" + "".join(rows))
    source = open_source(str(tmp_path / "a.csv"))
    assert source.texts(0) == [f"text {i}" for i in range(250)]
    assert len(source.faults) == 250


def test_folders_follow_links_once_and_say_what_they_leave_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "photos [1]").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("photos [1]/a.jpg", "elsewhere/b#1.gif", "photos [1]/c.heic"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "photos [1]" / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "elsewhere" / "b#1.txt").write_text("a cat")
    (tmp_path / "photos [1]" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos [1]" / "loop").symlink_to(tmp_path / "photos [1]")
    source = open_source(str(tmp_path / "photos [1]"))
    assert [source.texts(i) for i in range(len(source))] == [["caf\u00e9"], ["a cat"]]
    assert [source.image(i) for i in range(2)] == [b"", b""]
    assert {(fault.kind, fault.name.rpartition("/")[2]) for fault in source.faults} == {
        ("image", "c.heic"),
        ("text", "a.txt"),
    }
    assert "a link leads to it a second time" in caplog.text


@pytest.mark.parametrize(
    "name", ["a,b.tar", "{0..3}.tar", "#1 [x].tar", "@list", " a .tar", "*.tar", "\udce9.tar"]
)
def test_a_path_that_exists_is_that_path(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    (tmp_path / "other.tar").touch()
    assert expand(name) == [name]
    (tmp_path / "paths.txt").write_bytes(
        os.fsencode(f"{name.strip() if ' ' in name else name}\nother.tar # ours\n")
    )
    if name == name.strip():
        assert expand("@paths.txt") == [name, "other.tar"]


def test_only_what_is_not_there_is_a_pattern(tmp_path: Path):
    folder = tmp_path / "set {a,b} [2023] #2"
    folder.mkdir()
    for name in ("0.tar", "1.tar", "2.tar"):
        (folder / name).touch()
    assert expand(f"{folder}/*.tar") == [f"{folder}/{i}.tar" for i in range(3)]
    assert expand(f"{folder}/{{1..2}}.tar") == [f"{folder}/{i}.tar" for i in (1, 2)]
    assert expand([f"{folder}/0.tar", f"{folder}/../{folder.name}/0.tar"]) == [f"{folder}/0.tar"]
    assert expand("{x}.tar") == ["{x}.tar"]


def test_texts_of_json_members():
    raw = json.dumps({"captions": ["a", 3, "b"], "tags": "x, y", "width": 5, "title": "\ud800"}).encode()
    assert member_texts(None, raw, ("captions", "tags", "width", "title")) == (["a", "b", "x, y", "?"], "")
    assert member_texts(b"c\n", raw, ("tags",)) == (["c", "x, y"], "")
    for broken in (b"[1]", b"\xff", b"", b"[" * 100_000, b'{"a": "x", "a": "y"}'):
        assert member_texts(b"c", broken, ("a",)) == (
            ["c"],
            "its .json is no JSON object, or has a key twice",
        )


def test_a_table_with_splits_is_read_whole_which_is_said(tmp_path: Path, caplog):
    (tmp_path / "t.csv").write_text("image,caption,split\na.jpg,a dog,train\nb.jpg,a cat,test\n")
    assert len(open_source(str(tmp_path / "t.csv"))) == 2
    assert "has a column split, and the rows of all splits are read" in caplog.text
