"""Every rule of the Flickr30k protocols on cases worked by hand, through the whole evaluator."""

from pathlib import Path

import pytest
import torch

from phrase_loc.distributed import World
from phrase_loc.evaluation.protocols import FLICKR30K, PROTOCOLS, DataConfig, EvaluateConfig
from phrase_loc.evaluation.run import evaluate, report
from phrase_loc.evaluation.scoring import gather
from phrase_loc.structures import GroundingSample, Phrase
from tests.datasets.flickr_tree import annotation, thing, tree
from tests.evaluation.fakes import FakeLocalizer, point


def values(root, images, localizer, protocols, **settings):
    """{(protocol, metric): row} of an evaluation of hand-made images."""
    tree(root, images)
    config = EvaluateConfig(
        data=DataConfig(root=root, split="val"),
        protocols=protocols,
        output=root / "report.json",
        bootstrap=20,
        **settings,
    )
    rows = report(evaluate(config, World(), localizer))["rows"]
    return {(row["protocol"], row["metric"]): row for row in rows if row["method"] == "contrastive_mwp"}


def one(*boxes, phrase="a man", size=(100, 80)):
    """An image with one phrase and its boxes, 1-based."""
    return {"a": ([f"[/EN#1/people {phrase}]"], annotation(*size, thing("1", *boxes)))}


@pytest.mark.parametrize(
    "x, y, strict, closed",
    [
        (11, 21, 100, 100),  # just inside: the box is (10, 20)-(50, 60) from origin 0
        (10, 21, 0, 100),  # on the left side
        (50, 60, 0, 100),  # on the far corner
        (51, 60, 0, 0),  # just outside
        (9, 21, 0, 0),
    ],
)
def test_borders_are_outside_in_a_and_inside_in_f(tmp_path, x, y, strict, closed):
    localizer = FakeLocalizer({"a man": point(x, y, 100, 80)})
    images = one((11, 21, 51, 61))
    found = values(tmp_path, images, localizer, ["pointing_any", "pointing_area_filtered"])
    assert found["pointing_any", "accuracy"]["value"] == strict
    assert found["pointing_area_filtered", "accuracy"]["value"] == closed


def test_the_first_of_equal_maxima_in_row_order_is_the_point(tmp_path):
    tied = point(70, 30, 100, 80) + point(20, 30, 100, 80) + point(5, 31, 100, 80)
    found = values(tmp_path, one((11, 21, 51, 61)), FakeLocalizer({"a man": tied}), ["pointing_any"])
    assert found["pointing_any", "accuracy"]["value"] == 100
    upper = tied + point(99, 0, 100, 80)
    found = values(tmp_path / "b", one((11, 21, 51, 61)), FakeLocalizer({"a man": upper}), ["pointing_any"])
    assert found["pointing_any", "accuracy"]["value"] == 0


def test_a_plural_is_hit_in_any_box_but_must_cover_the_union(tmp_path):
    """Two men (0, 0)-(39, 79) and (60, 0)-(99, 79); the union is the image."""
    images = one((1, 1, 40, 80), (61, 1, 100, 80), phrase="two men")
    between, left = point(50, 40, 100, 80), point(20, 40, 100, 80)
    ranked = {"two men": ([[0, 0, 39, 79], [0, 0, 99, 79]], [2.0, 1.0])}
    names = ["pointing_any", "recall_union", "recall_any", "box_centre", "entity_pointing"]
    found = values(tmp_path, images, FakeLocalizer({"two men": left}, ranked), names)
    assert found["pointing_any", "accuracy"]["value"] == 100
    assert found["recall_union", "R@1"]["value"] == 0  # 40 x 80 of 100 x 80
    assert found["recall_union", "R@5"]["value"] == 100
    assert found["recall_any", "R@1"]["value"] == 100
    assert found["box_centre", "accuracy"]["value"] == 100
    found = values(tmp_path / "b", images, FakeLocalizer({"two men": between}, ranked), names)
    assert found["pointing_any", "accuracy"]["value"] == 0  # between the men
    assert found["entity_pointing", "accuracy"]["value"] == 100  # inside their union


@pytest.mark.parametrize("width, hit", [(20, 100), (19, 0)])
def test_widths_count_one_more_and_half_is_enough(tmp_path, width, hit):
    """Truth 40 x 10 pixels; a box of w x 10 inside it overlaps w / 40: 20 is exactly one half."""
    images = one((1, 1, 40, 10))
    localizer = FakeLocalizer({"a man": point(1, 1, 100, 80)}, {"a man": ([[0, 0, width - 1, 9]], [1.0])})
    found = values(tmp_path, images, localizer, ["recall_union", "recall_any"])
    assert found["recall_union", "R@1"]["value"] == hit
    assert found["recall_any", "R@1"]["value"] == hit


def test_the_area_filter_reads_the_union_in_f_and_the_first_box_in_w(tmp_path):
    """100 x 80 pixels: 5 % is 400. Boxes of 10 x 10 far apart have a large union."""
    images = one((1, 1, 11, 11), (61, 41, 71, 51))
    localizer = FakeLocalizer({"a man": point(5, 5, 100, 80)})
    found = values(tmp_path, images, localizer, ["pointing_area_filtered", "entity_pointing"])
    assert found["pointing_area_filtered", "accuracy"]["count"] == 1
    assert found["entity_pointing", "accuracy"]["count"] == 0
    assert found["entity_pointing", "accuracy"]["value"] is None


def sample_of(*boxes, size=(80, 100)):
    return GroundingSample("a", Path("a"), size, (Phrase("a man", ("people",), "1"),), (torch.tensor(boxes),))


@pytest.mark.parametrize(
    "protocol, box, kept",
    [
        ("pointing_area_filtered", [0.0, 0.0, 20.0, 20.0], True),  # exactly 5 %
        ("entity_pointing", [0.0, 0.0, 20.0, 20.0], False),
        ("entity_pointing", [0.0, 0.0, 20.0, 20.1], True),
        ("pointing_any_small", [0.0, 0.0, 50.0, 40.0], False),  # exactly a quarter
        ("pointing_any_small", [0.0, 0.0, 50.0, 39.9], True),
    ],
)
def test_limits_of_the_area_filters(protocol, box, kept):
    assert len(gather(PROTOCOLS[protocol], sample_of(box))) == kept


def test_a_frame_of_four_pixels_does_not_count_where_the_border_is_cut(tmp_path):
    edge = 2 * point(3, 40, 100, 80) + point(60, 40, 100, 80)
    images = one((41, 21, 81, 61))
    names = ["pointing_area_filtered", "pointing_area_filtered_border"]
    found = values(tmp_path, images, FakeLocalizer({"a man": edge}), names)
    assert found["pointing_area_filtered", "accuracy"]["value"] == 0
    assert found["pointing_area_filtered_border", "accuracy"]["value"] == 100


CHAIN = {
    "a": (
        [
            "[/EN#1/people A man] [/EN#2/clothing his hat]",
            "[/EN#1/people/other A biker] [/EN#1/people A man]",
        ],
        annotation(100, 80, thing("1", (1, 1, 60, 60)), thing("2", (61, 1, 100, 40))),
    )
}


def test_an_entity_is_one_score_from_the_mean_of_its_mentions_maps(tmp_path):
    """'A man' twice at (10, 10), 'A biker' once with 1.5 at (90, 70): 2 / 3 against 1.5 / 3."""
    maps = {"A man": point(10, 10, 100, 80), "A biker": 1.5 * point(90, 70, 100, 80)}
    maps["his hat"] = point(70, 10, 100, 80)
    found = values(tmp_path, CHAIN, FakeLocalizer(maps), ["entity_pointing", "pointing_any"])
    assert found["entity_pointing", "accuracy"]["count"] == 2
    assert found["entity_pointing", "accuracy"]["value"] == 100
    assert found["pointing_any", "accuracy"]["count"] == 4
    assert found["pointing_any", "accuracy"]["value"] == 75


def test_a_phrase_with_two_types_counts_in_both(tmp_path):
    maps = {
        "A man": point(10, 10, 100, 80),
        "A biker": point(90, 70, 100, 80),
        "his hat": point(1, 1, 100, 80),
    }
    found = values(tmp_path, CHAIN, FakeLocalizer(maps), ["pointing_any"])
    by_type = found["pointing_any", "accuracy"]["by_type"]
    assert by_type == {"clothing": 0.0, "other": 0.0, "people": 66.67}


def test_a_box_shared_by_chains_is_the_truth_of_each(tmp_path):
    images = {
        "a": (
            ["[/EN#1/people a man] and [/EN#2/people a boy] , [/EN#3/people both]"],
            annotation(100, 80, thing(["1", "3"], (1, 1, 30, 60)), thing(["2", "3"], (61, 1, 90, 60))),
        )
    }
    maps = {"a man": point(70, 10, 100, 80), "a boy": point(70, 10, 100, 80), "both": point(70, 10, 100, 80)}
    found = values(tmp_path, images, FakeLocalizer(maps), ["pointing_any"])
    assert found["pointing_any", "accuracy"]["count"] == 3
    assert found["pointing_any", "accuracy"]["value"] == 66.67


def test_things_without_boxes_do_not_count_and_scenes_with_boxes_do(tmp_path):
    images = {
        "a": (
            ["[/EN#1/scene a street] , [/EN#2/scene a park] , [/EN#3/other air] , [/EN#0/notvisual it]"],
            annotation(100, 80, thing("1", (1, 1, 100, 80)), thing("2", scene=1), thing("3", nobndbox=1)),
        )
    }
    found = values(tmp_path, images, FakeLocalizer(), ["pointing_any"])
    assert found["pointing_any", "accuracy"]["count"] == 1
    assert list(found["pointing_any", "accuracy"]["by_type"]) == ["scene"]


def test_an_unknown_phrase_stays_in_the_count_as_a_miss_everywhere(tmp_path):
    """Its map is flat, and the truth covers the image: any invented answer would be a hit."""
    images = one((1, 1, 100, 80), phrase="a zzz")
    names = [name for name in FLICKR30K if not name.endswith("small")]
    found = values(tmp_path, images, FakeLocalizer({"a zzz": torch.ones(80, 100)}), names)
    assert len(found) >= 12
    assert {(row["value"], row["count"]) for row in found.values()} == {(0.0, 1)}


def test_an_entity_with_one_known_mention_is_known(tmp_path):
    images = {
        "a": (
            ["[/EN#1/people a zzz]", "[/EN#1/people a man]"],
            annotation(100, 80, thing("1", (1, 1, 60, 60))),
        )
    }
    found = values(tmp_path, images, FakeLocalizer({"a man": point(9, 9, 100, 80)}), ["entity_pointing"])
    assert found["entity_pointing", "accuracy"]["value"] == 100


def test_the_map_box_holds_all_above_half_of_the_maximum(tmp_path):
    """Cells of 1 fill (10, 10)-(50, 50); a far cell of 0.49 is below half, one of 0.5 is not."""
    heat = torch.zeros(80, 100)
    heat[10:50, 10:50] = 1
    images = one((11, 11, 51, 51))
    for far, hit in ((0.49, 100), (0.5, 0)):
        heat[79, 99] = far
        found = values(tmp_path / str(far), images, FakeLocalizer({"a man": heat.clone()}), ["entity_box"])
        assert found["entity_box", "accuracy"]["value"] == hit


def test_a_resized_photograph_is_scored_in_the_frame_of_the_xml(tmp_path):
    """The files are 32 x 32; the map's cell (4, 4) of 8 x 8 is pixel (50, 40) of the XML's 100 x 80."""
    images = one((49, 39, 60, 50))
    found = values(tmp_path, images, FakeLocalizer({"a man": point(4, 4, 8, 8)}), ["pointing_any"])
    assert found["pointing_any", "accuracy"]["value"] == 100


def test_small_instances_are_the_same_test_on_a_subset(tmp_path):
    images = {
        "a": (
            ["[/EN#1/people a man] [/EN#2/clothing a hat]"],
            annotation(100, 80, thing("1", (1, 1, 90, 70)), thing("2", (1, 1, 20, 20))),
        )
    }
    maps = {"a man": point(50, 50, 100, 80), "a hat": point(50, 50, 100, 80)}
    found = values(tmp_path, images, FakeLocalizer(maps), ["pointing_any", "pointing_any_small"])
    assert found["pointing_any", "accuracy"]["value"] == 50
    assert found["pointing_any_small", "accuracy"]["value"] == 0
    assert found["pointing_any_small", "accuracy"]["count"] == 1


def test_phrases_are_grouped_by_the_words_seen_in_training(tmp_path):
    images = {
        "a": (
            ["[/EN#1/people a man] [/EN#1/people a tall man] [/EN#2/other gravel] [/EN#2/animals dogs]"],
            annotation(100, 80, thing("1", (1, 1, 60, 60)), thing("2", (61, 1, 90, 60))),
        )
    }
    maps = dict.fromkeys(["a man", "a tall man", "gravel", "dogs"], point(5, 5, 100, 80))
    row = values(tmp_path, images, FakeLocalizer(maps), ["pointing_any"])["pointing_any", "accuracy"]
    assert row["by_seen"] == {
        "seen": {"value": 50.0, "count": 2},
        "partly seen": {"value": 100.0, "count": 1},
        "unseen": {"value": 0.0, "count": 1},
    }


def test_a_phrase_is_attended_once_however_often_it_is_written(tmp_path):
    localizer = FakeLocalizer()
    values(tmp_path, CHAIN, localizer, ["pointing_any", "entity_pointing", "recall_union"])
    assert len(localizer.looks) == 1
    assert localizer.attended == [["A man", "his hat", "A biker"]]
