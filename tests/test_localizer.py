"""The way from a phrase to a box: one look, many questions, and nothing invented."""

import pickle
import threading

import pytest
import torch
from PIL import Image

from phrase_loc.errors import ConfigError
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
        single.append(min_max(resize(one.attend(one.look(drawn_image), ["dog"]), (16, 16), mode="bicubic")))
    both = tiny_localizer.attend(tiny_localizer.look(drawn_image), ["dog"])
    torch.testing.assert_close(both, torch.stack(single).mean(0))


def test_answers_come_in_the_frame_asked_for(tiny_localizer, drawn_image):
    own = tiny_localizer.locate(tiny_localizer.look(drawn_image), ["dog"])[0]
    large = tiny_localizer.locate(tiny_localizer.look(drawn_image, size=(800, 1200)), ["dog"])[0]
    torch.testing.assert_close(large.boxes, own.boxes * 10, rtol=1e-4, atol=1e-2)


def test_a_prior_pulls_to_the_centre_and_can_be_switched_off(tiny_localizer, drawn_image):
    scene = tiny_localizer.look(drawn_image)
    strong = tiny_localizer.with_settings(prior=50.0, prior_sigma=0.2)
    x, y = strong.locate(scene, ["dog"])[0].peak.tolist()
    assert abs(x - 60) < 12
    assert abs(y - 40) < 8
    plain = strong.with_settings(prior=0.0)
    assert torch.equal(plain.locate(scene, ["dog"])[0].peak, tiny_localizer.locate(scene, ["dog"])[0].peak)


@pytest.mark.parametrize("method", ["mwp", "contrastive_mwp", "cam", "grad_cam", "gradient"])
def test_every_method_answers(method, tiny_localizer, drawn_image):
    (answer,) = tiny_localizer.locate(tiny_localizer.look(drawn_image), ["red hat"], method=method)
    assert len(answer.boxes)
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
        ({"score": "sum"}, "unknown box score 'sum'"),
        ({"gama": 1}, "unknown inference setting 'gama'.*did you mean 'gamma'"),
        ({"stage": "layer9"}, "unknown stage 'layer9'"),
    ],
)
def test_wrong_settings_are_named(changes, sentence, tiny_localizer):
    with pytest.raises(ConfigError, match=sentence):
        tiny_localizer.with_settings(**changes)


def test_settings_survive_json():
    settings = Inference(image_sizes=(320, 448), prior=0.2)
    assert Inference.from_dict({"image_sizes": [320, 448], "prior": 0.2}) == settings


def test_cached_proposals_are_the_same(tiny_localizer, drawn_image, tmp_path, monkeypatch):
    plain = tiny_localizer.with_settings(proposals="regions")
    cached = plain.with_cache(tmp_path / "boxes")
    first = cached.look(drawn_image).proposals
    assert torch.equal(first, plain.look(drawn_image).proposals)
    monkeypatch.setattr(type(cached.source.source), "of_image", None)  # a second search would fail
    assert torch.equal(cached.with_settings(gamma=0.3).look(drawn_image).proposals, first)
