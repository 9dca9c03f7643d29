"""One reader for the tables of query, train and vocab: whatever form they come in, and each bad row named."""

import codecs
import gzip
import json
import logging
from pathlib import Path

import pytest

from phrase_loc.errors import DataError
from phrase_loc.tables import cell_texts, image_path, is_table, lines_of, open_table

GOOD = [("1.jpg", "a dog, wet"), ("2.jpg", "null")]
CSV = 'image,caption\n1.jpg,"a dog, wet"\n2.jpg,null\n'


def read(path: Path, content: bytes | str) -> tuple[list[tuple], list[str]]:
    """(cells of image and caption of the rows, what was said of bad ones)."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    bad: list[str] = []
    rows = open_table(path).rows(["image", "caption"], lambda place, wrong: bad.append(f"{place} {wrong}"))
    return [cells for _, cells in rows], bad


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.csv", CSV),
        ("a.csv", CSV.replace("\n", "\r\n")),
        ("a.csv", CSV.replace("\n", "\r")),
        ("a.csv", "\ufeff" + CSV),
        ("a.csv", CSV.encode("utf-16")),
        ("a.csv", codecs.BOM_UTF16_BE + CSV.encode("utf-16-be")),
        ("a.csv", CSV.encode("utf-32")),
        ("a.csv.gz", gzip.compress(codecs.BOM_UTF32_BE + CSV.encode("utf-32-be"), mtime=0)),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("a.csv", "\n\n" + CSV.replace("2.jpg", "\n\n2.jpg")),
        ("a.csv", CSV.removesuffix("\n")),
        ("a.csv", 'Image , "CAPTION"\n1.jpg, "a dog, wet"\n2.jpg, null\n'),
        ("a.csv", "image;caption\n1.jpg;a dog, wet\n2.jpg;null\n"),
        ("a.csv", "id|caption|image\n7|a dog, wet|1.jpg\n8|null|2.jpg\n"),
        ("a.tsv", "image\tcaption\n1.jpg\ta dog, wet\n2.jpg\tnull\n"),
        ("a.jsonl", "".join(json.dumps({"Image": i, "caption": c, "n": 1}) + "\n\n" for i, c in GOOD)),
    ],
)
def test_forms_of_a_table(tmp_path: Path, name: str, content: bytes | str):
    assert read(tmp_path / name, content) == (GOOD, [])


@pytest.mark.parametrize(
    "row, wrong",
    [
        ("3.jpg,a cat, brown", "row 2 has 3 fields, the header has 2; quote the phrase"),
        ("3.jpg", "row 2 has 1 fields, the header has 2; quote the phrase"),
        ('3.jpg,"a cat', "row 2 has a quote that is not closed"),
        ('3.jpg,"a "brown" cat"', "row 2 cannot be split into fields (',' expected after '\"')"),
        ("3.jpg,a\rcat", "row 2 cannot be split into fields"),
        (
            "3.jpg," + "a" * 200_000,
            "row 2 cannot be split into fields (field larger than field limit (131072))",
        ),
    ],
)
@pytest.mark.parametrize("after", ["2.jpg,null\n", '2.jpg,"null"\n', '2.jpg,"null"'])
def test_a_bad_row_costs_itself_alone(tmp_path: Path, row: str, wrong: str, after: str):
    path = tmp_path / "a.csv"
    rows, bad = read(path, f'image,caption\n1.jpg,"a dog, wet"\n{row}\n{after}')
    assert rows == GOOD
    assert len(bad) == 1
    assert bad[0].startswith(wrong)
    with pytest.raises(DataError, match="row 2"):
        list(open_table(path).rows(["image", "caption"]))


def test_bad_lines_of_json_are_named_by_their_number(tmp_path: Path):
    lines = [
        '{"image": "1.jpg", "caption": "a dog, wet"}',
        "{broken",
        "[1]",
        "null",
        "[" * 100_000,
        "7" * 5000,
        '{"image": "3.jpg", "caption": "a dog", "caption": "a cat"}',
        '{"image": "3.jpg", "caption": "a dog", "Caption ": "a cat"}',
    ]
    rows, bad = read(tmp_path / "a.jsonl", "\n".join([*lines, '{"image": "2.jpg", "caption": "null"}']))
    assert rows == GOOD
    assert bad == [f"line {n} is no JSON object, or has a key twice" for n in range(2, 9)]


def test_keys_of_json_that_differ_in_case_matter_where_they_are_read(tmp_path: Path):
    line = '{"image": "1.jpg", "caption": "a dog", "url": "a", "URL": "b"}\n'
    assert read(tmp_path / "a.jsonl", line) == ([("1.jpg", "a dog")], [])
    with pytest.raises(DataError, match="no line that is a JSON object with each key once"):
        read(tmp_path / "a.jsonl", '{"image": "1.jpg", "caption": "a dog", "caption": "a cat"}\n')


def test_texts_may_go_over_lines_and_hold_quotes(tmp_path: Path):
    content = 'image,caption\n1.jpg,"one\n\ntwo ""2"""\n2.jpg,a 5" nail\n3.jpg,the "Bob" dog\n4.jpg,a\0b\n'
    rows, bad = read(tmp_path / "a.csv", content)
    texts = ['one\n\ntwo "2"', 'a 5" nail', 'the "Bob" dog', "a\0b"]
    assert rows == [(f"{i}.jpg", text) for i, text in enumerate(texts, start=1)]
    assert not bad


def test_lines_that_are_not_utf8_are_read_as_windows_1252_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    content = "image,caption\n1.jpg,caf\u00e9\n".encode() + b"2.jpg,caf\xe9 \x93here\x94\n3.jpg,\x81\n"
    with caplog.at_level(logging.WARNING):
        rows, _ = read(tmp_path / "a.csv", content)
    assert [text for _, text in rows] == ["caf\u00e9", "caf\u00e9 \u201chere\u201d", "\x81"]
    assert "2 of 4 lines are not UTF-8 and were read as Windows-1252, the first is line 3" in caplog.text


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n \n", "is empty"),
        ("a.jsonl", b"[]\n", "no line that is a JSON object"),
        ("a.csv", b"image,Image,caption\n1,2,3\n", "two columns named image"),
        ("a.csv", b"\xff\xfei", r"a\.csv is not UTF-16 text \(byte 2\); save it as UTF-8"),
        ("a.csv", CSV.encode("utf-32")[:-1], r"a\.csv is not UTF-32 text"),
        (
            "a.csv",
            CSV.encode("utf-16-le"),
            r"a\.csv has nulls as UTF-16 has them, and no byte-order mark; save",
        ),
        ("a.jsonl", b'{\0"\0', "has nulls as UTF-16"),
        ("a.tsv", "image\tcaption\n".encode("utf-32-be"), "has nulls as UTF-32"),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-9], "cannot be read"),
        ("a.csv.gz", b"no gzip", "cannot be read"),
        ("a.parquet", b"PAR1 no parquet PAR1", "cannot be read"),
    ],
)
def test_what_is_no_table_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes, said: str):
    with pytest.raises(DataError, match=said) as refusal:
        read(tmp_path / name, content)
    assert "\n" not in str(refusal.value)


def test_parquet(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pa.table({"IMAGE": ["1.jpg", None], "caption": [["a", "b"], []], "n": [1, 2]})
    parquet.write_table(table, path, write_page_checksum=True, compression="none")
    found = open_table(path)
    assert found.columns == ("image", "caption", "n")
    assert list(found.rows(["caption", "image"])) == [("row 1", (["a", "b"], "1.jpg")), ("row 2", ([], None))]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1.jpg", b"7.jpg", 1))
    with pytest.raises(DataError, match="cannot be read"):
        list(open_table(path).rows(["image"]))


@pytest.mark.parametrize(
    "cell, texts",
    [
        (" a dog \n\na cat", ["a dog", "a cat"]),
        ('["a dog", 3, "a cat"]', ["a dog", "a cat"]),
        ("[a dog]", ["[a dog]"]),
        (["a dog", ["a cat"]], ["a dog", "a cat"]),
        ("NA", ["NA"]),
        ("half \ud800", ["half ?"]),
        (None, []),
        (3, []),
    ],
)
def test_texts_of_a_cell(cell: object, texts: list[str]):
    assert cell_texts(cell) == texts


def test_a_file_that_is_there_goes_before_what_its_name_could_mean(tmp_path: Path):
    for name in ("a.jpg#0", "b.jpg", " c.jpg"):
        (tmp_path / name).touch()
    names = ("a.jpg#0", "b.jpg#1", " b.jpg ", " c.jpg", "d#1.jpg", "no.jpg#12")
    found = [image_path(tmp_path, name).name for name in names]
    assert found == ["a.jpg#0", "b.jpg", "b.jpg", " c.jpg", "d#1.jpg", "no.jpg"]


def test_endings():
    assert [is_table(name) for name in ("A.CSV", "a.jsonl.gz", "a.parquet.gz", "a.txt")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_short_text_of_windows_is_read():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert lines_of("a dog\r\ncafé".encode(encoding)) == (["a dog", "café"], "")
    assert lines_of("a dog".encode("utf-16-le"))[1].startswith(
        "its text has nulls as UTF-16 has them, and no byte-"
    )
    assert lines_of("a dog".encode("utf-32")[:-1]) == (
        [],
        "its text is not UTF-32 text (byte 20); save it as UTF-8",
    )
    assert lines_of(b"") == ([], "")
    assert lines_of("café".encode("cp1252"))[1].endswith("is read as Windows-1252")
