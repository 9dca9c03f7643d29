"""Answers for other tools and for notebooks: the same boxes in every form, nothing lost and nothing executed."""

import base64
import importlib.resources
import io
import json
import pickle
import re
import typing

import numpy as np
import pytest
import torch
from PIL import Image

import phrase_loc
from phrase_loc import display
from phrase_loc.drawing import COLOURS, overlay, small_jpeg
from phrase_loc.errors import ConfigError
from phrase_loc.structures import Prediction, Predictions, Scene, Word

GREY = Image.new("RGB", (120, 80), "grey")
SCRIPT = "<script>alert(1)</script> & dog"


def prediction(phrase: str = "a dog", count: int = 2, **changes) -> Prediction:
    attention = torch.zeros(8, 12)
    attention[2:6, 1:5] = 1.0
    values = {
        "phrase": phrase,
        "words": (Word("dog", True, 1.0), Word("<zorglub>", False, 0.0)),
        "present": 0.875,
        "peak": torch.tensor([30.0, 40.0]),
        "boxes": torch.tensor([[10.0, 20.0, 50.0, 60.0], [0.0, 0.0, 120.0, 80.0]])[:count],
        "scores": torch.tensor([0.5, -1.0])[:count],
        "attention": attention,
        "size": (80, 120),
    }
    return Prediction(**{**values, **changes})


@pytest.fixture
def unknown() -> Prediction:
    words = (Word("zorglub", False, 0.0),)
    return prediction("zorglub", 0, words=words, present=None, peak=None, attention=torch.zeros(8, 12))


class TestExports:
    def test_the_dictionary_is_json(self, unknown):
        known = json.loads(json.dumps(display.to_dict(prediction())))
        assert known["boxes"][0] == {"xyxy": [10.0, 20.0, 50.0, 60.0], "score": 0.5}
        assert known["peak"] == [30.0, 40.0]
        assert known["words"][1] == {
            "word": "<zorglub>",
            "known": False,
            "weight": 0.0,
            "read_as": None,
        }
        assert known["note"] is None
        nan = prediction(
            present=float("nan"), peak=torch.tensor([float("inf"), 1.0]), scores=torch.full((2,), torch.nan)
        )
        odd = json.loads(json.dumps(display.to_dict(nan), allow_nan=False))
        assert (odd["present"], odd["peak"], odd["boxes"][0]["score"]) == (None, [None, 1.0], None)
        nothing = display.to_dict(unknown)
        assert (nothing["present"], nothing["peak"], nothing["boxes"]) == (None, None, [])

    def test_the_table_has_a_row_a_box(self, unknown):
        table = display.to_frame([prediction(), unknown, prediction("a cat", 1)])
        assert table["phrase"].tolist() == ["a dog", "a dog", "a cat"]
        assert table["rank"].tolist() == [1, 2, 1]
        assert table.loc[0, ["x1", "y1", "x2", "y2"]].tolist() == [10, 20, 50, 60]
        assert table["state"].tolist() == ["found"] * 3
        assert len(display.to_frame([]).columns) == len(table.columns)

    def test_coco_counts_width_and_height(self, unknown):
        rows = display.to_coco([unknown, prediction()], image_id=7)
        assert rows[0]["bbox"] == [10.0, 20.0, 40.0, 40.0]
        assert {(r["image_id"], r["category_id"], r["category_name"]) for r in rows} == {(7, 2, "a dog")}

    def test_detections_are_numpy_of_one_length(self, unknown):
        found = display.to_detections([prediction(), unknown, prediction("a cat")], top_k=1)
        assert found["xyxy"].tolist() == [[10, 20, 50, 60]] * 2
        assert found["xyxy"].dtype == found["confidence"].dtype == np.float32
        assert found["confidence"].tolist() == [0.875, 0.875]
        assert found["class_id"].tolist() == [0, 2]
        assert found["data"]["class_name"].tolist() == ["a dog", "a cat"]
        assert np.isnan(display.to_detections([prediction(present=None)])["confidence"]).all()

    def test_no_detections_are_empty_arrays(self, unknown):
        for nothing in ([], [unknown]):
            found = display.to_detections(nothing)
            assert found["xyxy"].shape == (0, 4)
            assert found["confidence"].shape == found["class_id"].shape == (0,)
            assert found["data"]["class_name"].shape == (0,)

    @pytest.mark.parametrize(
        "make", [display.to_frame, lambda p: display.to_coco(p, 1), display.to_detections]
    )
    def test_one_answer_is_a_list_of_one(self, make):
        one = prediction()
        for given in (one, iter([one])):
            assert str(make(given)) == str(make([one]))

    @pytest.mark.parametrize(
        "make",
        [
            display.to_frame,
            lambda p: display.to_coco(p, 1),
            display.to_detections,
            lambda p: display.plot(GREY, p),
        ],
    )
    def test_answers_for_several_photographs_are_refused(self, make):
        said = "expected the answers for one photograph, .*, got a "
        for given, got in (
            [[[prediction()]] * 2, "list with a list in it; take one"],
            [None, "NoneType; take"],
        ):
            with pytest.raises(ConfigError, match=said + got):
                make(given)

    def test_several_things_where_one_is_taken_are_refused(self):
        with pytest.raises(
            ConfigError, match=r"takes one answer, got a list; write \[to_dict\(p\) for p in answers"
        ):
            display.to_dict([prediction()])
        with pytest.raises(ConfigError, match=r"one photograph and its number, got \[1, 2\]"):
            display.to_coco([prediction()], [1, 2])

    def test_numbers_of_numpy_are_numbers_of_json(self):
        assert json.loads(json.dumps(display.to_coco(prediction(), np.int64(7))))[0]["image_id"] == 7

    @pytest.mark.parametrize("top_k", [0, -1, True, 1.5, "2"])
    def test_a_number_of_boxes_is_one_or_more(self, top_k):
        with pytest.raises(ConfigError, match="top_k is a number of boxes, 1 or more"):
            display.to_detections(prediction(), top_k)

    def test_supervision_takes_them(self):
        supervision = pytest.importorskip("supervision")
        found = supervision.Detections(**display.to_detections([prediction()]))
        assert found[found.confidence > 0.5]["class_name"].tolist() == ["a dog", "a dog"]


@pytest.mark.parametrize(
    ("present", "thresholds", "state"),
    [
        (None, (0.05, 0.5), None),
        (0.04, (0.05, 0.5), "not there"),
        (0.05, (0.05, 0.5), "not sure"),
        (0.5, (0.05, 0.5), "found"),
        (0.5, (0.6, 0.9), "not there"),
        (0.8, (0.6, 0.9), "not sure"),
    ],
)
def test_three_states_are_said_everywhere(drawn_image, present, thresholds, state):
    one = prediction(present=present, thresholds=thresholds, picture=small_jpeg(drawn_image))
    assert one.state == display.to_dict(one)["state"] == state
    assert display.to_frame([one])["state"].tolist() == [state] * 2
    assert ("present" not in repr(one)) if state is None else (f"{state}, present {present:.0%}" in repr(one))
    assert state is None or f"{state}, present {present:.0%}" in one._repr_html_()


def test_without_its_noun_an_answer_is_in_part_unknown():
    red, lorry = Word("red", True, 1.0), Word("lorry", False, 0.0)
    one = prediction(present=None, words=(red, lorry))
    assert one.unsure
    assert "in part unknown" in repr(one)
    assert not prediction(present=None, words=(red,)).unsure


class TestNotebook:
    def test_texts_are_escaped(self, drawn_image):
        shown = prediction(SCRIPT, picture=small_jpeg(drawn_image))._repr_html_()
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown
        assert "&lt;zorglub&gt;" in shown
        assert "present 88%" in shown
        assert "[10, 20, 50, 60]" in shown

    def test_it_needs_nothing_else(self, drawn_image):
        shown = Predictions([prediction(picture=small_jpeg(drawn_image))])._repr_html_()
        (source,) = re.findall(r'(?:src|href)="([^"]+)"', shown)
        head, data = source.split(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (120, 80)

    def test_the_box_is_in_the_frame_of_the_photograph(self, drawn_image):
        """A photograph of 1200 x 800 is shown on 400 x 267; the box scales with it."""
        large = drawn_image.resize((1200, 800))
        box = torch.tensor([[300.0, 300.0, 900.0, 600.0]])
        one = prediction(size=(800, 1200), boxes=box, scores=torch.ones(1), picture=small_jpeg(large))
        picture = overlay(Image.open(io.BytesIO(one.picture)), [one])
        assert picture.size == (400, 267 + 26)
        edge = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
        assert picture.getpixel((101, 150)) == edge
        assert picture.getpixel((299, 150)) == edge
        assert picture.getpixel((200, 101)) == edge

    def test_without_a_photograph_the_map_is_shown_alone(self, unknown):
        shown = prediction()._repr_html_()
        jpeg = base64.b64decode(re.findall(r"base64,([^\"]+)", shown)[0])
        assert Image.open(io.BytesIO(jpeg)).size == (400, 267)  # large enough to see the map on it
        homeless = prediction(size=None)
        assert "<img" not in homeless._repr_html_()
        assert "no known word, no box" in unknown._repr_html_()
        assert "figure" not in Predictions()._repr_html_()

    def test_a_scene_shows_its_photograph(self, drawn_image):
        scene = Scene((torch.zeros(1),), (80, 120), torch.zeros(9, 4), small_jpeg(drawn_image))
        assert repr(scene) == "Scene(120 x 80 pixels, 9 proposals)"
        assert "120 × 80 pixels, 9 proposals" in scene._repr_html_()
        bare = Scene((torch.zeros(1),), (80, 120))
        assert "<img" not in bare._repr_html_()

    def test_printed_they_are_one_short_line(self, unknown):
        shown = repr(Predictions([prediction(), unknown]))
        assert (
            shown
            == "[Prediction('a dog', box [10, 20, 50, 60], found, present 88%), Prediction('zorglub', no box)]"
        )

    @pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (401, 400)])
    def test_any_shape_becomes_small(self, size):
        with Image.open(io.BytesIO(small_jpeg(Image.new("RGB", size)))) as picture:
            assert max(picture.size) <= 400
            assert min(picture.size) >= 1


class TestPlot:
    @pytest.fixture(autouse=True)
    def pyplot(self, monkeypatch):
        monkeypatch.setenv("MPLBACKEND", "agg")
        plt = pytest.importorskip("matplotlib.pyplot")
        yield
        plt.close("all")

    def test_an_axes_for_each_phrase(self, drawn_image, unknown):
        axes = display.plot(drawn_image, [prediction("costs $5 or $6"), unknown, prediction(), prediction()])
        assert len(axes) == 4
        axes[0].figure.savefig(io.BytesIO())  # a dollar sign is no mathematics
        assert axes[0].get_title().startswith("costs $5 or $6")
        assert axes[0].lines[0].get_xydata()[0].tolist() == [10, 20]
        assert not axes[1].lines

    @pytest.mark.parametrize(
        ("present", "lines", "fill"), [(0.9, ["-"], None), (0.2, ["--"], None), (0.01, [], "none")]
    )
    def test_states_are_told_apart(self, drawn_image, present, lines, fill):
        (axes,) = display.plot(drawn_image, [prediction(present=present)])
        *boxes, peak = axes.lines
        assert [line.get_linestyle() for line in boxes] == lines
        assert peak.get_markerfacecolor() == (fill or COLOURS[0])

    def test_a_picture_of_another_size_lies_in_the_same_frame(self, drawn_image):
        (axes,) = display.plot(drawn_image.resize((60, 40)), [prediction()])
        assert axes.get_xlim() == (0, 120)
        assert axes.images[0].get_extent() == [0, 120, 80, 0]

    def test_one_answer_is_a_list_of_one(self, drawn_image):
        one, heat = prediction(), torch.arange(6.0).reshape(2, 3)
        for given, heats in ((one, heat), (iter([one]), heat[None])):
            (axes,) = display.plot(drawn_image, given, heats)
            assert axes.images[1].get_array().tolist() == (heat / 5).tolist()
        with pytest.raises(ConfigError, match=r"a map for each of 2 phrases, \(P, H', W'\), got \(1, 2, 3\)"):
            display.plot(drawn_image, [one, one], heat)

    def test_own_axes_are_used_and_counted(self, drawn_image):
        from matplotlib.figure import Figure

        own = Figure().subplots()
        assert display.plot(drawn_image, [prediction()], axes=own)[0] is own
        with pytest.raises(ConfigError, match="axes for 2 phrases, got 1"):
            display.plot(drawn_image, [prediction()] * 2, axes=own)
        assert len(display.plot(drawn_image, [])) == 0


class TestPublicSurface:
    def test_every_public_call_is_annotated(self):
        for name in ("plot", "to_coco", "to_detections", "to_dict", "to_frame"):
            assert "return" in getattr(display, name).__annotations__, name
        asked = [name for name in vars(phrase_loc.PhraseLocalizer) if not name.startswith("_")]
        for name in [*asked, "__call__"]:
            function = vars(phrase_loc.PhraseLocalizer)[name]
            function = getattr(function, "fget", None) or getattr(function, "__func__", function)
            assert "return" in typing.get_type_hints(function), name

    def test_the_package_says_that_it_is_typed(self):
        assert importlib.resources.files(phrase_loc).joinpath("py.typed").is_file()


def test_pickled_they_are_the_same(tiny_localizer, drawn_image):
    scene = tiny_localizer.look(drawn_image)
    again = pickle.loads(pickle.dumps(scene))
    assert (again.size, again.picture) == (scene.size, scene.picture)
    answers = tiny_localizer.locate(scene, ["dog", "zorglub"])
    copies = pickle.loads(pickle.dumps(answers))
    assert type(copies) is Predictions
    assert [display.to_dict(p) for p in copies] == [display.to_dict(p) for p in answers]
    assert copies[0]._repr_html_() == answers[0]._repr_html_()


def test_a_localizer_is_called_in_one_line(tiny_localizer, drawn_image):
    answers = tiny_localizer(drawn_image, ["a red hat", "the dog"], top_k=1)
    by_hand = tiny_localizer.locate(tiny_localizer.look(drawn_image), ["a red hat", "the dog"], top_k=1)
    assert [display.to_dict(p) for p in answers] == [display.to_dict(p) for p in by_hand]
    assert answers[0].size == (80, 120)
    assert answers[0].picture is not None


def test_a_bare_string_is_not_taken_letter_by_letter(tiny_localizer, drawn_image):
    with pytest.raises(ConfigError, match=r"expected a list of phrases, got a string; write \['the dog'\]"):
        tiny_localizer(drawn_image, "the dog")


@pytest.mark.parametrize(
    ("heat", "said"),
    [
        (torch.full((4, 4), torch.nan), "of finite numbers, got some that are nan or inf"),
        (np.full((4, 4), np.inf), "of finite numbers"),
        (None, "got a NoneType"),
        (prediction(), "got a Prediction; of an answer give its attention"),
        (np.array([["a"]]), "got a ndarray"),
        (torch.zeros(4, 0), r"got torch.float32 \(4, 0\)"),
        (torch.zeros(4, 4, dtype=torch.complex64), "got torch.complex64"),
    ],
)
def test_maps_that_are_none_are_refused(heat, said):
    with pytest.raises(ConfigError, match=said):
        display.overlay(GREY, heat)
    if heat is not None:
        with pytest.raises(ConfigError, match=said):
            display.plot(GREY, prediction(), heat)


def test_axes_that_are_none_are_refused():
    pytest.importorskip("matplotlib").use("Agg")
    with pytest.raises(ConfigError, match="expected axes for 1 phrases, got 0"):
        display.plot(GREY, prediction(), axes=[1])


@pytest.mark.parametrize("image_id", [[[1], 2], None, 1.5, {1}, b"1", np.float32(2)])
def test_the_number_of_a_photograph_is_one_that_json_has(image_id):
    with pytest.raises(ConfigError, match="takes the answers for one photograph and its number, got"):
        display.to_coco([], image_id)


def test_maps_of_arrays_and_with_gradients_are_taken():
    heat = torch.rand(4, 4)
    shown = display.overlay(GREY, heat)
    assert display.overlay(GREY, heat.numpy()[::-1][::-1]).tobytes() == shown.tobytes()
    assert display.overlay(GREY, heat.requires_grad_()).tobytes() == shown.tobytes()
    pytest.importorskip("matplotlib").use("Agg")
    for given in (heat, heat.detach().numpy()):
        display.plot(GREY, prediction(), given)
