"""The way from a phrase to a box: one look, many questions, and nothing invented."""

import pickle
import threading
from copy import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from phrase_loc.distributed import pick_device
from phrase_loc.errors import ConfigError
from phrase_loc.images import checked_frame
from phrase_loc.localizer import Inference, PhraseLocalizer, prepare
from phrase_loc.maps import min_max, resize

PHRASES = ["a red hat", "the dog", "zorglub", "two men"]


def test_answers_lie_in_the_photograph(tiny_localizer, drawn_image):
    scene = tiny_localizer.look(drawn_image)
    answers = tiny_localizer.locate(scene, PHRASES, top_k=3)
    assert [a.phrase for a in answers] == PHRASES
    for answer in (a for a in answers if a.known):
        assert 1 <= len(answer.boxes) <= 3
        assert (answer.boxes[:, :2] >= 0).all()
        assert (answer.boxes[:, 2] <= 120).all()
        assert (answer.boxes[:, 3] <= 80).all()
        assert answer.scores.tolist() == sorted(answer.scores.tolist(), reverse=True)
        assert 0 <= answer.peak[0] < 120
        assert 0 <= answer.peak[1] < 80
        assert 0 < answer.present < 1


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_flat_map_gives_no_box_and_says_so(tiny_localizer, drawn_image, monkeypatch, level):
    scene, red = tiny_localizer.look(drawn_image), torch.zeros(8, 8)
    red[2, 3] = 1.0
    maps = torch.stack([red, torch.full((8, 8), level)])
    monkeypatch.setattr(tiny_localizer, "_attend", lambda *_: maps)
    there, flat = tiny_localizer.locate(scene, ["red", "the dog"])
    assert (flat.peak, len(flat.boxes), flat.place) == (None, 0, "no box")
    assert "its map is flat" in flat.note
    assert flat.present is not None
    assert len(there.boxes)
    assert "flat" not in (there.note or "")


@pytest.mark.parametrize(
    ("peak", "said"),
    [((10.0, 20.0), False), ((50.0, 60.0), False), ((51.0, 30.0), True), ((30.0, 19.0), True)],
)
def test_a_peak_outside_the_first_box_is_said(tiny_localizer, drawn_image, monkeypatch, peak, said):
    scene = tiny_localizer.look(drawn_image)
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0], [0.0, 0.0, 120.0, 80.0]])
    monkeypatch.setattr("phrase_loc.localizer.resized_peak", lambda *_: torch.tensor([peak]))
    monkeypatch.setattr(tiny_localizer, "_ranked", lambda *_: [(boxes, torch.ones(2))])
    (answer,) = tiny_localizer.locate(scene, ["red"])
    assert (answer.note == "map and box disagree: the peak of the map lies outside the best box") is said


def test_thresholds_come_from_the_calibration(tiny_localizer, drawn_image):
    localizer = copy(tiny_localizer)
    localizer.model = copy(tiny_localizer.model)
    states = []
    for low, high in ((0.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        fit = {"slope": 1.0, "offset": 0.0, "absent_below": low, "found_at": high}
        localizer.model.config = replace(localizer.model.config, calibration=fit)
        states += [p.state for p in localizer.locate(localizer.look(drawn_image), ["red"])]
    assert states == ["found", "not sure", "not there"]


def test_unknown_phrases_are_never_given_a_box(tiny_localizer, drawn_image):
    (answer,) = tiny_localizer.locate(tiny_localizer.look(drawn_image), ["zorglub"])
    assert (answer.present, answer.peak, len(answer.boxes)) == (None, None, 0)
    assert not answer.known
    assert tiny_localizer.locate(tiny_localizer.look(drawn_image), []) == []


def test_many_phrases_are_answered_as_one_by_one(tiny_localizer, drawn_image):
    scene = tiny_localizer.look(drawn_image)
    together = tiny_localizer.attend(scene, PHRASES)
    for phrase, attention in zip(PHRASES, together, strict=True):
        torch.testing.assert_close(tiny_localizer.attend(scene, [phrase])[0], attention)


def test_photographs_looked_at_together_are_seen_as_alone(tiny_localizer, drawn_image):
    turned = drawn_image.rotate(90, expand=True)
    prepared = [prepare(p, tiny_localizer.settings) for p in (drawn_image, turned)]
    for scene, picture in zip(tiny_localizer.look_at(prepared), (drawn_image, turned), strict=True):
        alone = tiny_localizer.look(picture)
        assert scene.size == alone.size == (picture.height, picture.width)
        for a, b in zip(scene.activations, alone.activations, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_several_sizes_are_the_mean_of_single_ones(tiny_localizer, drawn_image):
    single = []
    for side in (32, 48):
        one = tiny_localizer.with_settings(image_sizes=(side,))
        single.append(min_max(resize(one.attend(one.look(drawn_image), ["dog"]), (16, 16))))
    both = tiny_localizer.attend(tiny_localizer.look(drawn_image), ["dog"])
    torch.testing.assert_close(both, torch.stack(single).mean(0))


def test_of_several_stages_the_lower_are_read_at_the_first_size_and_the_highest_at_the_others(
    tiny_localizer, drawn_image
):
    def at(side, stage):
        one = tiny_localizer.with_settings(image_sizes=(side,), stage=stage)
        return min_max(resize(one.attend(one.look(drawn_image), ["dog"]), (16, 16)))

    for sizes, top in (((32, 48), [48]), ((32,), [32]), ((32, 48, 64), [48, 64])):
        asked = tiny_localizer.with_settings(image_sizes=sizes, stage=("features", "stage2"))
        highest = torch.stack([at(side, "features") for side in top]).mean(0)
        expected = (at(32, "stage2") + highest) / 2
        torch.testing.assert_close(asked.attend(asked.look(drawn_image), ["dog"]), expected)


def test_answers_come_in_the_frame_asked_for(tiny_localizer, drawn_image):
    own = tiny_localizer.locate(tiny_localizer.look(drawn_image), ["dog"])[0]
    large = tiny_localizer.locate(tiny_localizer.look(drawn_image, size=(800, 1200)), ["dog"])[0]
    torch.testing.assert_close(large.boxes, own.boxes * 10, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("threshold", ["0.5", float("nan"), True, -0.1, 2])
def test_a_threshold_is_a_probability(threshold, tiny_localizer, drawn_image):
    scene = tiny_localizer.look(drawn_image)
    with pytest.raises(ConfigError, match="threshold is a probability from 0 to 1"):
        tiny_localizer.locate(scene, ["dog"], threshold=threshold)
    assert len(tiny_localizer.locate(scene, ["dog"], threshold=np.float32(0.5))) == 1


@pytest.mark.parametrize("ask", ["locate", "attend", "presence"])
def test_a_picture_is_no_scene(ask, tiny_localizer, drawn_image):
    with pytest.raises(ConfigError, match=r"expected the scene that look\(image\) gives, got Image"):
        getattr(tiny_localizer, ask)(drawn_image, ["dog"])


def test_a_model_saved_with_a_location_prior_is_asked_without(tiny_localizer, drawn_image):
    old, saved = copy(tiny_localizer.model), asdict(tiny_localizer.settings)
    old.config = replace(old.config, inference={**saved, "prior": 0.2, "prior_sigma": 0.25})
    with pytest.warns(UserWarning, match="saved with a location prior, which is gone"):
        localizer = PhraseLocalizer(old)
    assert localizer.settings == tiny_localizer.settings
    old.config = replace(old.config, inference={**saved, "prior": 0.0, "prior_sigma": 0.3})
    assert PhraseLocalizer(old).settings == tiny_localizer.settings
    with pytest.raises(ConfigError, match=r"prior=0\.2 is no longer there: .* set it to 0"):
        tiny_localizer.with_settings(prior=0.2)
    assert tiny_localizer.with_settings(prior=0.0).settings == tiny_localizer.settings


@pytest.mark.parametrize("method", ["mwp", "contrastive_mwp", "cam", "grad_cam", "gradient"])
def test_every_method_answers(method, tiny_localizer, drawn_image):
    (answer,) = tiny_localizer.locate(tiny_localizer.look(drawn_image), ["red hat"], method=method)
    flat = "its map is flat" in (answer.note or "")  # as the gradient of a mean is
    assert bool(len(answer.boxes)) is not flat
    assert not flat or method == "gradient"
    assert torch.isfinite(answer.attention).all()


def test_one_pixel_works(tiny_localizer):
    (answer,) = tiny_localizer.locate(tiny_localizer.look(Image.new("RGB", (1, 1), "red")), ["dog"])
    assert answer.peak.tolist() == [0, 0]


def test_saved_and_loaded_it_answers_alike(tiny_localizer, tiny_model, drawn_image):
    again = PhraseLocalizer.from_pretrained(tiny_model, device="cpu")
    assert again.settings == tiny_localizer.settings
    before = tiny_localizer.locate(tiny_localizer.look(drawn_image), ["red hat"])[0]
    after = again.locate(again.look(drawn_image), ["red hat"])[0]
    torch.testing.assert_close(
        after.attention, before.attention, rtol=2e-2, atol=2e-2
    )  # stored in half precision


def test_pickled_it_answers_the_same(tiny_localizer, drawn_image):
    again = pickle.loads(pickle.dumps(tiny_localizer))
    assert torch.equal(
        again.attend(again.look(drawn_image), ["dog"]),
        tiny_localizer.attend(tiny_localizer.look(drawn_image), ["dog"]),
    )


def test_threads_share_one_localizer(tiny_localizer, drawn_image):
    expected = tiny_localizer.attend(tiny_localizer.look(drawn_image), PHRASES)
    wrong = []

    def work() -> None:
        for _ in range(5):
            if not torch.equal(tiny_localizer.attend(tiny_localizer.look(drawn_image), PHRASES), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": "mvp"}, "unknown attention method 'mvp'.*mwp"),
        ({"proposals": "rpn"}, "unknown proposal source 'rpn'"),
        (
            {"score": "surplus"},
            "score='surplus' is no longer there.*docs/experiments.md.*'mass' or leave it out",
        ),
        ({"gama": 1}, "unknown inference setting 'gama'.*did you mean 'gamma'"),
        ({"stage": "layer9"}, "unknown stage 'layer9'"),
    ],
)
def test_wrong_settings_are_named(changes, sentence, tiny_localizer):
    with pytest.raises(ConfigError, match=sentence):
        tiny_localizer.with_settings(**changes)


def test_settings_survive_json():
    settings = Inference(image_sizes=(320, 448), gamma=0.2)
    assert Inference.from_dict({"image_sizes": [320, 448], "gamma": 0.2}) == settings
    assert Inference.from_dict({"score": "mass"}) == Inference()  # as saved models have it


def test_cached_proposals_are_the_same(tiny_localizer, drawn_image, tmp_path, monkeypatch):
    plain = tiny_localizer.with_settings(proposals="regions")
    cached = plain.with_cache(tmp_path / "boxes")
    first = cached.look(drawn_image).proposals
    assert torch.equal(first, plain.look(drawn_image).proposals)
    monkeypatch.setattr(type(cached.source.source), "of_image", None)  # a second search would fail
    assert torch.equal(cached.with_settings(gamma=0.3).look(drawn_image).proposals, first)


@pytest.mark.parametrize(
    "make",
    [tuple, iter, np.array, dict.fromkeys(PHRASES).keys, lambda p: (x for x in p)],
    ids=["tuple", "iterator", "array", "keys", "generator"],
)
def test_phrases_come_from_any_iterable(make, tiny_localizer, drawn_image):
    given = make() if make.__name__ == "keys" else make(PHRASES)
    answers = tiny_localizer(drawn_image, given, top_k=np.int64(2))
    assert [a.phrase for a in answers] == PHRASES
    assert {type(a.phrase) for a in answers} == {str}


@pytest.mark.parametrize(
    ("phrases", "sentence"),
    [
        ("a dog", r"got a string; write \['a dog'\]"),
        ("a dog " * 100_000, "got a string"),
        ([float("nan")], "phrase 1 is nan"),
        (["a dog", None], "phrase 2 is None"),
        ([b"a dog"], "phrase 1 is a bytes"),
        ([["a dog"]], "phrase 1 is a list"),
        (np.zeros((900, 900)), "phrase 1 is a ndarray"),
        (np.array("a dog"), "got a ndarray"),
        (b"a dog", "got a bytes"),
        ({"a dog": 1}, "got a dict"),
        (None, "got None"),
        (7, "got 7"),
    ],
)
def test_what_is_no_phrase_is_named(phrases, sentence, tiny_localizer, drawn_image):
    scene = tiny_localizer.look(drawn_image)
    for ask in (
        tiny_localizer.locate,
        tiny_localizer.attend,
        tiny_localizer.presence,
        tiny_localizer.present,
    ):
        with pytest.raises(ConfigError, match=sentence) as caught:
            ask(scene, phrases)
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", None, True, [2]])
def test_a_number_of_boxes_is_at_least_one(top_k, tiny_localizer, drawn_image):
    with pytest.raises(ConfigError, match="top_k is a number of boxes, 1 or more"):
        tiny_localizer(drawn_image, ["a dog"], top_k=top_k)


@pytest.mark.parametrize(
    "size",
    [
        (0, 5),
        (5,),
        (5, -1),
        "large",
        7,
        (float("nan"), 3),
        (1, 2, 3),
        (10**9, 2),
        (64.7, 96),
        (True, 5),
        ("64", "96"),
        (float("inf"), 3),
    ],
)
def test_a_frame_is_two_lengths(size, tiny_localizer, drawn_image):
    with pytest.raises(ConfigError, match=r"size is \(H, W\)"):
        tiny_localizer.look(drawn_image, size=size)
    with pytest.raises(ConfigError, match=r"size is \(H, W\)"):
        tiny_localizer.heat(torch.rand(1, 4, 4), size)


@pytest.mark.parametrize(
    "size", [(480.0, 640.0), np.array([480, 640]), np.float32([480, 640]), torch.tensor([480.0, 640.0])]
)
def test_a_frame_in_whole_numbers_of_any_type(size):
    assert checked_frame(size) == (480, 640)
    assert set(map(type, checked_frame(size))) == {int}


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda own: PhraseLocalizer("default"), "asks a model, got str; PhraseLocalizer.from_pretrained"),
        (lambda own: PhraseLocalizer(own.model, {"gamma": 1}), "settings are an Inference, got dict"),
        (lambda own: own.look_at(["photo.jpg"]), "look takes a photograph"),
        (lambda own: own.look_at(p for p in []), "look takes a photograph"),
        (lambda own: own.with_cache(None), "a folder of proposals is a path, got 'None'"),
        (lambda own: PhraseLocalizer(own.model, cache=7), "a folder of proposals is a path, got '7'"),
        (lambda own: own.heat([[1.0]], (4, 4)), "heat takes maps .*, got a list"),
        (lambda own: own.heat(torch.full((1, 4, 4), torch.nan), (4, 4)), "some that are nan"),
        (lambda own: own.with_cache(""), "a folder of proposals is a path, got ''"),
        (lambda own: own.save_pretrained(None), "the folder of a model is a path, got 'None'"),
    ],
)
def test_something_of_another_kind_is_one_sentence(ask, sentence, tiny_localizer):
    with pytest.raises(ConfigError, match=sentence):
        ask(tiny_localizer)


def test_maps_may_be_arrays_and_whole_numbers(tiny_localizer):
    maps = torch.tensor([[[0, 1], [2, 5]]])
    wanted = tiny_localizer.heat(maps.float(), (6, 8))
    for given in (maps, maps.numpy(), maps.double().numpy()):
        assert torch.equal(tiny_localizer.heat(given, (6, 8)), wanted)


@pytest.mark.parametrize("rows", [[-1], [10**9], [1.0], [[1, 2]], [], [True], "cat", None])
def test_rows_of_words_are_those_of_the_model(rows, tiny_localizer, drawn_image):
    scene = tiny_localizer.look(drawn_image)
    assert torch.equal(
        tiny_localizer.word_scores(scene, [1]), tiny_localizer.word_scores(scene, np.array([1]))
    )
    with pytest.raises(ConfigError, match="words are their rows"):
        tiny_localizer.word_scores(scene, rows)


def test_a_ranking_takes_a_unit_for_each_map(tiny_localizer, drawn_image):
    scene, units = tiny_localizer.look(drawn_image), torch.rand(1, 4)
    for maps in (torch.rand(2, 4, 4), torch.rand(4, 4)):
        with pytest.raises(ConfigError, match=r"expected maps \(P, h, w\) and units \(P, D\), got"):
            tiny_localizer.rank_all(scene, maps, 3, units)


@pytest.mark.parametrize("method", [7, ["cam"], b"cam"])
def test_a_method_is_a_name(method, tiny_localizer, drawn_image):
    with pytest.raises(ConfigError, match="the attention method is a name"):
        tiny_localizer(drawn_image, ["a dog"], method=method)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mps", "device 'mps' was asked for, but torch sees no Apple GPU; use --device auto or cpu"),
        ("xpu", "torch sees no Intel GPU"),
        ("hpu", "torch sees no hpu device"),
        ("meta", "torch sees no meta device"),
        ("vulkan", "torch sees no vulkan device"),
        ("cuda:99", "torch sees .* CUDA devices"),
        ("gpu", "device must be auto, cpu, mps, cuda"),
        ("", "device must be auto"),
        ("cuda:-1", "device must be auto"),
        (None, "device must be auto"),
        (0, "device must be auto"),
        (["cpu"], "device must be auto"),
    ],
)
def test_a_device_that_is_not_there_is_named(name, sentence, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=sentence):
        pick_device(name)


@pytest.mark.parametrize("method", ["contrastive_mwp", "cam", "class_lrp", "occlusion"])
def test_presence_is_read_from_the_features_of_the_maps(tiny_localizer, drawn_image, method):
    """Without a threshold no pass beside that of the maps; what is said is what `present` says."""
    asked = tiny_localizer.with_settings(stage=tiny_localizer.model.stages[-3:])
    scene, passes = asked.look(drawn_image), []
    expected = asked.present(scene, PHRASES)
    hook = asked.model.head.lift.register_forward_hook(lambda *_: passes.append(0))
    try:
        asked.attend(scene, PHRASES, method)
        for_maps = len(passes)
        answers = asked.locate(scene, PHRASES, method=method)
        assert len(passes) == 2 * for_maps
        some = asked.locate(scene, PHRASES, method=method, threshold=expected[0])
    finally:
        hook.remove()
    assert len(passes) == 3 * for_maps + 1  # the larger size is looked at up to the features
    assert [a.present or 0 for a in answers] == pytest.approx([p or 0 for p in expected], rel=1e-5)
    assert [a.present for a in some] == expected
    assert [len(a.boxes) > 0 for a in some] == [p is not None and p >= expected[0] for p in expected]
    assert scene.features == ()


def test_a_device_may_be_given_as_torch_has_it():
    assert pick_device(torch.device("cpu")) == pick_device("cpu") == torch.device("cpu")
