"""Flickr30k Entities: rules of the official reader on hand-made trees, bad input, and the real val images."""

import pytest
import torch

from phrase_loc.datasets.flickr30k import Flickr30kEntities, parse_caption
from phrase_loc.errors import ConfigError, DataError
from tests.datasets.flickr_tree import annotation, thing, tree

GOOD = (["[/EN#1/people A man] ."], annotation(100, 80, thing("1", (11, 21, 51, 61))))


def read(root, **images):
    return Flickr30kEntities(tree(root, images), "val")


def test_corners_are_one_based_and_the_frame_is_the_xmls(tmp_path):
    sample = read(tmp_path, a=GOOD)[0]
    assert sample.boxes[0].tolist() == [[10, 20, 50, 60]]
    assert sample.size == (80, 100)
    assert sample.path.name == "a.jpg"


def test_a_box_belongs_to_each_of_its_names_and_a_chain_has_all_its_boxes(tmp_path):
    xml = annotation(
        100, 80, thing(["1", "2"], (1, 1, 10, 10)), thing("2", (21, 1, 30, 10)), thing("3", scene=1)
    )
    captions = ["[/EN#1/people A man] and [/EN#2/people two men] in [/EN#3/scene a park] ."]
    sample = read(tmp_path, a=(captions, xml))[0]
    assert [b.tolist() for b in sample.boxes] == [[[0, 0, 9, 9]], [[0, 0, 9, 9], [20, 0, 29, 9]], []]


def test_chains_of_several_types_mentions_and_captions(tmp_path):
    captions = [
        "[/EN#7/people/other A person] stands",
        "",
        "[/EN#0/notvisual the sky] over [/EN#7/people him] ,",
    ]
    sample = read(tmp_path, a=(captions, annotation(9, 9, thing("7", (1, 1, 3, 3)))))[0]
    assert [(p.text, p.labels, p.entity, p.sentence) for p in sample.phrases] == [
        ("A person", ("people", "other"), "7", 0),
        ("the sky", ("notvisual",), "0", 1),
        ("him", ("people",), "7", 1),
    ]
    assert [len(b) for b in sample.boxes] == [1, 0, 1]


def test_a_scene_with_boxes_stays_in(tmp_path):
    captions = ["[/EN#3/scene a street] with [/EN#4/other nothing]"]
    xml = annotation(50, 50, thing("3", (1, 1, 50, 50)), thing("4", nobndbox=1))
    sample = read(tmp_path, a=(captions, xml))[0]
    assert [len(b) for b in sample.boxes] == [1, 0]


@pytest.mark.parametrize("caption", ["[/EN#1/people A man is here", "[/EN#1/people A [/EN#2/other hat] man"])
def test_unclosed_bracket_is_named(caption):
    with pytest.raises(DataError, match="does not close"):
        parse_caption(caption, 0)


@pytest.mark.parametrize("caption", ["[/EN#1 A man]", "[/EN#x/people A man]", "[/EN#1/people ]"])
def test_odd_heads_are_named(caption):
    with pytest.raises(DataError, match=r"is not of the form"):
        parse_caption(caption, 0)


BROKEN = {
    "unclosed XML": ("<annotation><size>", "broken XML"),
    "entities": (
        '<!DOCTYPE a [<!ENTITY x "y">]><annotation><size><width>&x;</width></size></annotation>',
        "declares XML entities",
    ),
    "no size": ("<annotation></annotation>", "no number in <size/height>"),
    "zero size": (annotation(0, 9), "at least 1 x 1"),
    "odd corner": (annotation(9, 9, thing("1", ("one", 1, 2, 2))), "no number in <xmin>"),
    "nan": (annotation(9, 9, thing("1", ("nan", 1, 2, 2))), "no finite number in <xmin>"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_unreadable_annotation_takes_its_image_out_and_is_named(tmp_path, case):
    xml, why = BROKEN[case]
    data = read(tmp_path, good=GOOD, bad=(GOOD[0], xml))
    assert [sample.image_id for sample in data] == ["good"]
    (sentence,) = data.skipped.notes["images"]
    assert sentence.startswith("bad: ")
    assert why in sentence


@pytest.mark.parametrize("folder", ["Sentences", "Annotations"])
def test_missing_files_and_text_that_is_not_utf8(tmp_path, folder):
    data = tree(tmp_path, {"good": GOOD, "gone": GOOD, "latin": GOOD})
    suffix = {"Sentences": "txt", "Annotations": "xml"}[folder]
    (data / folder / f"gone.{suffix}").unlink()
    (data / "Sentences" / "latin.txt").write_bytes("[/EN#1/people Señor]".encode("latin-1"))
    found = Flickr30kEntities(data, "val")
    assert len(found) == 1
    first, second = found.skipped.notes["images"]
    assert first == f"gone: file gone.{suffix} is missing in {folder}"
    assert second.startswith("latin: captions ")
    assert "latin.txt is not UTF-8 text (byte 16)" in second


def test_a_broken_caption_leaves_the_others(tmp_path):
    captions = ["[/EN#1/people A man", "[/EN#1/people A man] sits"]
    data = read(tmp_path, a=(captions, GOOD[1]))
    assert [p.sentence for p in data[0].phrases] == [1]
    assert "line 1" in data.skipped.notes["captions"][0]


@pytest.mark.parametrize(
    "box, why", [((30, 1, 20, 9), "inverted"), ((101, 1, 120, 9), "outside"), ((1, -9, 5, -2), "outside")]
)
def test_a_chain_with_an_unusable_box_leaves_the_count(tmp_path, box, why):
    xml = annotation(100, 80, thing("1", (1, 1, 9, 9), box), thing("2", (5, 5, 6, 6)))
    data = read(tmp_path, a=(["[/EN#1/people Men] by [/EN#2/other a car]"], xml))
    assert [p.text for p in data[0].phrases] == ["a car"]
    assert why in data.skipped.notes["chains"][0]


def test_a_box_partly_outside_is_kept_as_annotated_and_named(tmp_path):
    xml = annotation(100, 80, thing("1", (90, 1, 120, 9)))
    data = read(tmp_path, a=(GOOD[0], xml))
    assert data[0].boxes[0].tolist() == [[89, 0, 119, 8]]
    assert data.skipped.counts == {"boxes partly outside (kept)": 1}


def test_a_chain_that_the_xml_does_not_name_is_told(tmp_path):
    data = read(tmp_path, a=(["[/EN#1/people A man] in [/EN#5/clothing a hat]"], GOOD[1]))
    assert data.skipped.notes["chains without annotation"] == ["a: the XML does not name chain 5"]
    assert [len(b) for b in data[0].boxes] == [1, 0]


def test_captions_that_are_empty_or_not_marked_are_told(tmp_path):
    xml = annotation(9, 9, thing("1", (1, 1, 2, 2)))
    data = read(tmp_path, a=([], xml), b=(["A man in a park ."], xml), c=GOOD)
    assert [sample.image_id for sample in data] == ["b", "c"]
    assert data.skipped.notes == {
        "images": ["a: its captions are empty"],
        "images without a marked phrase (kept)": ["b"],
    }


def test_an_id_that_leaves_the_tree_is_refused(tmp_path):
    tree(tmp_path, {"a": GOOD})
    (tmp_path / "val.txt").write_text("a\n../a\n")
    assert "is no file name" in Flickr30kEntities(tmp_path, "val").skipped.notes["images"][0]


def test_errors_of_the_tree(tmp_path):
    with pytest.raises(ConfigError, match="no folder Annotations"):
        Flickr30kEntities(tmp_path / "nowhere", "val")
    tree(tmp_path, {"a": GOOD})
    with pytest.raises(ConfigError, match="splits in this tree: val"):
        Flickr30kEntities(tmp_path, "test")
    (tmp_path / "val.txt").write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        Flickr30kEntities(tmp_path, "val")
    (tmp_path / "val.txt").write_text("b\nc\n")
    with pytest.raises(
        DataError, match=r"nothing that can be evaluated; the first of 2 problems: b: file b\.txt"
    ):
        Flickr30kEntities(tmp_path, "val")


def official(root, phrases):
    """1,000 images, 999 of which have boxed phrases, `phrases` in all; the other has none."""
    images = {}
    for i in range(1000):
        number = phrases // 999 + (i < phrases % 999) if i < 999 else 0
        caption = " ".join(["[/EN#1/people a man]"] * number) or "[/EN#2/other nothing]"
        images[str(i)] = ([caption], annotation(50, 40, thing("1", (1, 1, 9, 9)), thing("2", nobndbox=1)))
    return tree(root, images, split="test")


def test_the_complete_official_split_must_have_its_phrases(tmp_path):
    data = Flickr30kEntities(official(tmp_path, 14_481), "test")
    assert sum(len(b) > 0 for sample in data for b in sample.boxes) == 14_481
    (tmp_path / "Sentences" / "0.txt").write_text("[/EN#2/other nothing]\n")
    with pytest.raises(DataError, match=r"14,481 phrases with a box in 999 images, but .* 14,466 in 998"):
        Flickr30kEntities(tmp_path, "test")
    ids = (tmp_path / "test.txt").read_text().split()
    (tmp_path / "test.txt").write_text("\n".join(ids[:999]))  # a subset is never checked
    assert len(Flickr30kEntities(tmp_path, "test")) == 999


def test_real_val_images(shared_dir):
    data = Flickr30kEntities(shared_dir / "data/flickr30k_entities_val", "val")
    boxes = [b for sample in data for b in sample.boxes if len(b)]
    assert (len(data), len(boxes)) == (247, 3239)
    assert not data.skipped.notes
    assert all(sample.path.is_file() for sample in data)
    assert torch.cat(boxes).min() >= 0
