"""One record of what was left out: each thing once, the first of a kind named, and no more than the limit."""

import logging

import pytest

from phrase_loc.errors import DataError
from phrase_loc.skipped import Fault, Skipped


def test_faults_are_counted_once_named_and_limited(caplog: pytest.LogCaptureFixture):
    skipped = Skipped(limit=12)
    with caplog.at_level(logging.WARNING):
        for i in range(12):
            skipped.add(Fault("image", f"file {i}", "cut"))
            skipped.add(Fault("image", f"file {i}", "cut"))
    assert skipped.summary() == "12 x broken image"
    assert sum("broken image" in line for line in caplog.messages) == 10
    assert "file 0 cut" in caplog.text
    assert "file 11" not in caplog.text
    with pytest.raises(DataError, match="more than 12"):
        skipped.add(Fault("text", "another"))


def test_what_was_seen_before_is_neither_named_nor_counted_again(caplog: pytest.LogCaptureFixture):
    skipped = Skipped(limit=2)
    skipped.restore([("image", "a"), ("text", "b"), ("image", "a"), ("row", "c")])
    assert skipped.counts == {"image": 1, "text": 1, "row": 1}
    skipped.add(Fault("image", "a"))
    assert not caplog.messages
    with pytest.raises(DataError, match="more than 2 samples"):
        skipped.check(skipped.seen)


def test_photographs_of_other_words_are_counted_and_never_too_many():
    skipped = Skipped(limit=0)
    for i in range(3):
        skipped.add(Fault("words", f"photograph {i}"))
    assert skipped.summary() == "3 x text without a word of the vocabulary"
    with pytest.raises(DataError, match="more than 0"):
        skipped.add(Fault("image", "torn"))


def test_sentences_by_kind():
    skipped = Skipped()
    for kind, sentence in (
        ("images", "a: torn"),
        ("captions", "b: empty"),
        ("images", "a: torn"),
        ("images", "c"),
    ):
        skipped.note(kind, sentence)
    assert skipped.notes == {"images": ["a: torn", "c"], "captions": ["b: empty"]}
    assert skipped.to_dict()["images"] == {"count": 2, "sentences": ["a: torn", "c"]}
    assert skipped.summary() == "2 images, 1 captions"
    skipped.refuse_if_empty(1, "the set")
    with pytest.raises(DataError, match=r"the set holds nothing .* the first of 3 problems: a: torn"):
        skipped.refuse_if_empty(0, "the set")
    assert Skipped().summary() == ""
