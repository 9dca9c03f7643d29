import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phrase_loc.text.splitting import noun_phrases, noun_spans

CAPTIONS = {
    "Two young men in red hats are playing the guitar.": ["Two young men", "red hats", "the guitar"],
    "A dog jumps over a log": ["A dog", "a log"],
    "A black and white dog runs": ["A black and white dog"],
    "A red, white, and black motorcycle": ["A red, white, and black motorcycle"],
    "A group of people walk their dogs": ["A group of people", "their dogs"],
    "A boy in the man 's hat stands in front of a snow covered mountain": [
        "A boy",
        "the man 's hat",
        "a snow covered mountain",
    ],
    "A man and woman kiss": ["A man", "woman"],
    "A running man, a building and a brightly colored ball": [
        "A running man",
        "a building",
        "a brightly colored ball",
    ],
    "A girl wearing a shirt that says something": ["A girl", "a shirt"],
    "the dog’s bowl": ["the dog’s bowl"],
    "a café": ["a café"],
    "hat": ["hat"],
    "She sits.": [],
    "": [],
    "🐶!": [],
}


@pytest.mark.parametrize("caption", CAPTIONS)
def test_noun_phrases(caption: str):
    assert noun_phrases(caption) == CAPTIONS[caption]


@settings(deadline=None)
@given(st.text(max_size=100))
def test_offsets_point_at_the_text(caption: str):
    end = 0
    for span, phrase in zip(noun_spans(caption), noun_phrases(caption), strict=True):
        assert caption[span] == phrase
        assert end <= span.start < span.stop <= len(caption)
        end = span.stop


def test_marked_phrases_of_our_own_captions_are_found():
    lines = (Path(__file__).parent / "captions.txt").read_text(encoding="utf-8").splitlines()
    found, right, marked = _counts(lines)
    assert marked > 50
    assert right / found > 0.91
    assert right / marked > 0.92


def test_marked_phrases_of_the_val_captions_are_found(shared_dir):
    """The figures of the module's docstring."""
    paths = (shared_dir / "data/flickr30k_entities_val/Sentences").glob("*.txt")
    found, right, marked = _counts(line for p in paths for line in p.read_text(encoding="utf-8").splitlines())
    assert marked > 3000
    assert right / found > 0.91
    assert right / marked > 0.92


def _counts(lines: Iterable[str]) -> tuple[int, int, int]:
    """Phrases that we find, that are marked as well, and that are marked."""
    found = right = marked = 0
    for line in lines:
        caption, spans = _plain(line)
        ours = {(span.start, span.stop) for span in noun_spans(caption)}
        found, right, marked = found + len(ours), right + len(ours & spans), marked + len(spans)
    return found, right, marked


def _plain(line: str) -> tuple[str, set[tuple[int, int]]]:
    """A caption without its marks, and the spans that were marked (lone pronouns left out)."""
    caption, spans, place = "", set(), 0
    for mark in re.finditer(r"\[/EN#\d+/(\S+) ([^\]]*)\]", line):
        caption += line[place : mark.start()]
        if mark[1] != "notvisual" or " " in mark[2]:
            spans.add((len(caption), len(caption) + len(mark[2])))
        caption, place = caption + mark[2], mark.end()
    return caption + line[place:], spans
