import gzip
import json

import pytest

from phrase_loc.errors import DataError
from phrase_loc.pairs.sources import stream_texts
from phrase_loc.skipped import Skipped
from tests.pairs.test_sources import write_tar


def test_captions_files(tmp_path):
    plain = tmp_path / "a.txt"
    plain.write_text("12\ta dog\n\n  \na cat\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as packed:
        packed.write("7\ta hat\n")
    assert list(stream_texts([str(plain), str(tmp_path / "b.txt.gz")])) == ["a dog", "a cat", "a hat"]
    assert list(stream_texts(str(tmp_path / "*.txt"))) == ["a dog", "a cat"]


def test_a_first_line_that_is_no_header_is_a_text(tmp_path):
    path = tmp_path / "a.txt"
    for first in ("a dog\ra cow", "a dog " + "and a cow " * 30_000):
        path.write_text(f"{first}\na cat\n", encoding="utf-8", newline="")
        assert list(stream_texts(str(path))) == [first.strip(), "a cat"]


def test_tables(tmp_path):
    (tmp_path / "a.csv").write_text('url,caption\nx,"a dog, wet"\ny,\nz,"[""a"", ""b""]"\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("url\ttitle\nx\ta cat\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(
        '{"captions": ["one", "two"]}\nnot json\n{"url": 1}\n', encoding="utf-8"
    )
    assert list(stream_texts(str(tmp_path / "a.csv"))) == ["a dog, wet", "a", "b"]
    assert list(stream_texts(str(tmp_path / "a.tsv"))) == ["a cat"]
    assert list(stream_texts(str(tmp_path / "a.jsonl"))) == ["one", "two"]
    assert list(stream_texts(str(tmp_path / "a.csv"), fields=["url"])) == ["x", "y", "z"]


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"url": ["x", "y"], "captions": [["a dog", "a cat"], ["a hat"]]})
    frame.to_parquet(tmp_path / "a.parquet")
    assert list(stream_texts(str(tmp_path / "a.parquet"))) == ["a dog", "a cat", "a hat"]


def test_shards(tmp_path):
    members = {
        "0.jpg": b"\xff\xd8",
        "0.txt": b"a dog\na puppy\n",
        "1.json": json.dumps({"caption": "a cat", "width": 3}).encode(),
        "2.json": b"{broken",
    }
    shard, skipped = write_tar(tmp_path / "0.tar", members), Skipped()
    assert list(stream_texts(shard, skipped=skipped)) == ["a dog", "a puppy", "a cat"]
    assert skipped.counts == {"text": 1}
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress((tmp_path / "0.tar").read_bytes()))
    with pytest.raises(DataError, match=r"unpacked to \.tar first"):
        list(stream_texts(f"{shard}.gz"))


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("url\nx\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("", encoding="utf-8")
    (tmp_path / "bad.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "bad.txt.gz").write_bytes(b"no gzip")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    (tmp_path / "words.doc").write_text("x", encoding="utf-8")
    names = ["a.csv", "empty.csv", "bad.tar", "bad.txt", "bad.txt.gz", "bad.parquet", "words.doc", "none.txt"]
    for name in names:
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            list(stream_texts(str(tmp_path / name)))
    with pytest.raises(DataError, match="address"):
        list(stream_texts("https://example.org/a.txt"))


def test_former_names_hold_for_a_release():
    from phrase_loc import exported, runtime
    from phrase_loc.datasets import web_sources, web_texts
    from phrase_loc.pairs import sources

    assert web_sources.open_source is sources.open_source
    assert web_texts.stream_texts is sources.stream_texts
    assert exported.ExportedModel is runtime.ExportedModel
