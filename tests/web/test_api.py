"""The API as a program uses it: answers, refusals, and what it must never do."""

import asyncio
import base64
import gc
import hashlib
import io
import json
import re
import tempfile
import threading
import time
import weakref
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from phrase_loc import masks
from phrase_loc.display import to_dict
from phrase_loc.images import load_image
from phrase_loc.label_formats import FORMATS, Label, LabelledImage, Place
from phrase_loc.localizer import prepare
from phrase_loc.maps import min_max
from phrase_loc.web.answers import Batcher, Kept, Refused, SceneCache
from phrase_loc.web.app import EXAMPLES, PAGE_FILES, create_app
from tests.conftest import encoded
from tests.web.conftest import LIMITS


def localize(client, photo=None, phrases=("a red hat",), **fields):
    files = {} if photo is None else {"image": ("photo.png", photo)}
    text = phrases if isinstance(phrases, str) else json.dumps(list(phrases))
    # a field that is no file, so that the form is multipart even without a photograph
    return client.post("/api/localize", files={**files, "phrases": (None, text)}, data=fields)


def refusal(answer) -> str:
    body = answer.json()
    assert set(body) == {"error"}
    assert "\n" not in body["error"]
    assert "Traceback" not in body["error"]
    return body["error"]


# answers


def test_the_answer_is_that_of_the_command_line(client, photo, tiny_localizer):
    answer = localize(client, photo, ["a red hat", "zorglub"], top_k=3).json()
    scene = tiny_localizer.look(load_image(photo))
    expected = [to_dict(p) for p in tiny_localizer.locate(scene, ["a red hat", "zorglub"], top_k=3)]
    assert answer["predictions"] == json.loads(json.dumps(expected))
    assert answer["size"] == [120, 80]
    assert answer["image"] == "photo.png"
    assert re.fullmatch("[0-9a-f]{32}", answer["key"])


def test_maps_and_word_maps_are_the_localizers(client, photo, tiny_localizer):
    answer = localize(client, photo, ["a red hat", "zorglub"], maps=True, words=True).json()
    known, unknown = answer["predictions"]
    assert unknown["map"] is None
    assert unknown["word_maps"] == []
    assert [w["word"] for w in known["word_maps"]] == ["red", "hat"]
    scene = tiny_localizer.look(load_image(photo))
    for sent, phrase in [(known["map"], "a red hat"), (known["word_maps"][1]["map"], "hat")]:
        levels = np.frombuffer(base64.b64decode(sent["data"]), "<u2").reshape(sent["side"], -1) / 65535
        heat = tiny_localizer.heat(tiny_localizer.attend(scene, [phrase]), (16, 16))[0]
        np.testing.assert_allclose(levels, min_max(heat).numpy(), atol=1e-3)
    assert len(known["proposals"]) % 4 == 0
    assert known["proposals"]


def test_a_photograph_is_asked_again_by_its_key(client, photo):
    first = client.post("/api/look", files={"image": ("photo.png", photo)}).json()
    assert first == {"image": "photo.png", "key": first["key"], "size": [120, 80]}
    again = localize(client, None, ["dog"], key=first["key"])
    assert again.status_code == 200
    assert again.json()["predictions"] == localize(client, photo, ["dog"]).json()["predictions"]
    held = client.get(f"/api/image/{first['key']}")
    assert held.content == photo
    assert held.headers["content-type"] == "image/png"


def test_the_oldest_photograph_leaves(client):
    keys = [
        client.post("/api/look", files={"image": encoded(Image.new("RGB", (40, 30), (c, 0, 0)))}).json()[
            "key"
        ]
        for c in range(LIMITS.scenes + 1)
    ]
    assert client.get("/healthz").json()["scenes"] == LIMITS.scenes
    assert localize(client, None, key=keys[-1]).status_code == 200
    gone = localize(client, None, key=keys[0])
    assert gone.status_code == 404
    assert "send it again" in refusal(gone)


def test_words_at_a_point(client, photo, tiny_localizer):
    key = client.post("/api/look", files={"image": photo}).json()["key"]
    answer = client.post("/api/words-at", json={"key": key, "x": 30, "y": 40, "count": 3}).json()
    assert len(answer["words"]) == 3
    assert {w["word"] for w in answer["words"]} <= set(tiny_localizer.vocabulary.words)
    scores = [w["score"] for w in answer["words"]]
    assert scores == sorted(scores, reverse=True)
    outside = client.post("/api/words-at", json={"key": key, "x": 121, "y": 40})
    assert outside.status_code == 400
    assert "120 x 80" in refusal(outside)


def test_chips_of_a_caption(client):
    answer = client.post("/api/chips", json={"text": "A man in a red hat walks a dog."})
    assert answer.json()["phrases"] == ["A man", "a red hat", "a dog"]


def test_methods_differ_and_unknown_ones_are_named(client, photo):
    maps = {
        m: localize(client, photo, ["dog"], method=m, maps=True).json()["predictions"][0]["map"]
        for m in client.get("/api/model").json()["methods"]
    }
    assert len(set(map(str, maps.values()))) > 1
    wrong = localize(client, photo, method="mvp")
    assert wrong.status_code == 400
    assert "mwp" in refusal(wrong)


def test_about_the_model(client, tiny_localizer):
    about = client.get("/api/model").json()
    assert about["words"] == len(tiny_localizer.vocabulary)
    assert about["calibrated"] is True
    assert about["ranking"]["gamma"] == tiny_localizer.settings.gamma
    assert about["limits"]["upload_bytes"] == LIMITS.upload_bytes


# refusals


@pytest.mark.parametrize(
    ("phrases", "sentence"),
    [
        ("a red hat", "JSON list of strings"),
        ("[1]", "JSON list of strings"),
        ('{"a": "b"}', "JSON list of strings"),
        ("[" * 10000, "JSON list of strings"),
        ("9" * 5000, "JSON list of strings"),
        ("[]", "expected 1 to 8 phrases, got 0"),
        ('["", "  "]', "expected 1 to 8 phrases, got 0"),
        (json.dumps(["dog"] * 9), "expected 1 to 8 phrases, got 9"),
        (json.dumps(["d" * 61]), "60 characters, one has 61"),
        (json.dumps(["a b c d e f g h i j k"] * 4), "40 words together, they have 44"),
    ],
)
def test_wrong_phrases(client, photo, phrases, sentence):
    answer = localize(client, photo, phrases)
    assert answer.status_code == 422
    assert sentence in refusal(answer)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "not an image"), (b"hello", "not an image"), (b"\x89PNG\r\n\x1a\n" + b"0" * 40, "image")],
    ids=["empty", "text", "broken"],
)
def test_broken_photographs(client, content, sentence):
    answer = localize(client, content)
    assert answer.status_code in {400, 422}
    assert sentence in refusal(answer)


def test_truncated_photograph(client):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    answer = localize(client, encoded(noise, "JPEG")[:900])
    assert answer.status_code == 400
    assert "broken image" in refusal(answer)


def test_too_many_pixels_are_refused_before_decoding(client):
    answer = localize(client, encoded(Image.new("1", (2001, 1000))))
    assert answer.status_code == 400
    assert "2001 x 1000 pixels" in refusal(answer)


def test_too_many_bytes(client, photo):
    slightly = localize(client, photo + b"0" * LIMITS.upload_bytes)
    assert slightly.status_code == 413
    declared = localize(client, photo + b"0" * (LIMITS.upload_bytes + 2**20))
    assert declared.status_code == 413
    assert "3 MB" in refusal(declared)


def test_an_endless_upload_is_cut_off(client):
    sent = 0

    def endless():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n\r\n'
        while sent < 100 * 2**20:
            sent += 2**18
            yield b"0" * 2**18

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/api/look", content=endless(), headers=headers)
    assert answer.status_code == 413
    assert "3 MB" in refusal(answer)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x", "text/plain"])
def test_forms_that_are_none(client, kind):
    answer = client.post("/api/localize", content=b"nonsense", headers={"Content-Type": kind})
    assert answer.status_code in {400, 422}
    refusal(answer)


def test_neither_photograph_nor_key(client):
    answer = localize(client)
    assert answer.status_code == 422
    assert "photograph in the field image" in refusal(answer)


# what it must never do


def test_nothing_is_written_to_disk(client, monkeypatch, tmp_path):
    """Starlette moves a file above a megabyte to the temporary folder; here there is no such folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    noise = np.random.default_rng(0).integers(0, 255, (800, 800, 3), dtype=np.uint8)
    photo = encoded(Image.fromarray(noise))
    assert len(photo) > 1.5 * 2**20
    assert localize(client, photo).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/examples/../../pyproject.toml",
        "/examples/%2e%2e/%2e%2e/errors.py",
        "/page/index.html",
        "/..%2f..%2f..%2fetc/passwd",
        "/api/image/..%2f..%2fetc%2fpasswd",
        "//etc/passwd",
    ],
)
def test_no_path_of_the_server_can_be_reached(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    refusal(answer)


def test_a_files_name_is_only_repeated(client, photo):
    answer = client.post("/api/look", files={"image": ("../../etc/passwd", photo)})
    assert answer.json()["image"] == "../../etc/passwd"


def test_a_photographs_key_is_the_servers_own(tiny_localizer, photo):
    keys = set()
    for _ in range(2):
        with TestClient(create_app(tiny_localizer, LIMITS)) as client:
            keys |= {client.post("/api/look", files={"image": photo}).json()["key"] for _ in range(2)}
    assert len(keys) == 2
    assert hashlib.sha256(photo).hexdigest()[:32] not in keys


def test_nobody_is_told_what_another_calls_the_same_photograph(client, photo):
    first = client.post("/api/look", files={"image": ("my holidays.png", photo)}).json()
    second = localize(client, photo).json()
    by_key = localize(client, None, key=first["key"]).json()
    assert (first["image"], second["image"], by_key["image"]) == (
        "my holidays.png",
        "photo.png",
        first["key"],
    )
    assert first["key"] == second["key"]


def test_nothing_of_a_request_is_logged(client, photo, monkeypatch, tiny_localizer, caplog, capfd):
    def fails(self, scene, phrases, **_):
        raise RuntimeError(f"no answer to {phrases}")

    monkeypatch.setattr(type(tiny_localizer), "locate", fails)
    with caplog.at_level(0):
        answer = client.post(
            "/api/localize", files={"image": ("private.png", photo), "phrases": (None, '["my secret"]')}
        )
        localize(client, b"private bytes", ["my secret"])
    assert answer.status_code == 500
    assert refusal(answer) == "the server failed (RuntimeError); its log says where"
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("phrase_loc")]
    assert [re.sub(r":\d+", ":N", line) for line in ours] == [
        "a request failed: RuntimeError at phrase_loc/web/answers.py:N"
    ]
    out, err = capfd.readouterr()
    everything = out + err + caplog.text
    assert "secret" not in everything
    assert "private" not in everything
    assert all(r.exc_info is None for r in caplog.records if not r.name.startswith("asyncio"))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([("topk", "3")], "unknown field 'topk' (did you mean 'top_k'?); known: "),
        ([("top_k", "3"), ("top_k", "4")], "top_k came more than once"),
        ([("phrases", '["a"]')], "phrases came more than once"),
        ([("key", "0" * 32)], "the key of one sent before, got both"),
    ],
)
def test_no_field_is_overlooked(client, photo, fields, sentence):
    files = [("image", ("i.png", photo)), ("phrases", (None, '["a red hat"]'))]
    answer = client.post("/api/localize", files=files + [(name, (None, value)) for name, value in fields])
    assert answer.status_code == 422
    assert sentence in refusal(answer)


@pytest.mark.parametrize("path", ["/api/localize?top_k=3", "/api/chips?x=1", "/api/model?a"])
def test_no_query_is_overlooked(client, path):
    answer = client.get(path) if "model" in path else client.post(path, json={"text": "a dog"})
    assert answer.status_code == 422
    assert "question mark" in refusal(answer)


@pytest.mark.parametrize("name", ["a\ud800b", "two\nlines", "\u202efdp.exe", "x" * 5000, ""])
def test_odd_file_names(client, photo, name):
    disposition = f'form-data; name="image"; filename="{name}"'.encode("unicode_escape")
    body = b"--b\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + photo + b"\r\n--b--\r\n"
    kind = "multipart/form-data; boundary=b; charset=unicode_escape"
    answer = client.post("/api/look", content=body, headers={"Content-Type": kind})
    assert answer.status_code in {200, 400, 422}
    assert "\n" not in answer.json().get("image", "")


def test_no_redirect_names_the_host_of_a_request(client):
    assert client.get("/api/model/", follow_redirects=False).status_code == 404


def test_photographs_leave_when_their_files_take_too_much(tiny_localizer, photo):
    limits = replace(LIMITS, kept_bytes=5 * len(photo) // 2)
    with TestClient(create_app(tiny_localizer, limits)) as client:
        keys = [client.post("/api/look", files={"image": photo + bytes(i)}).json()["key"] for i in range(3)]
        assert client.get("/healthz").json()["scenes"] == 2
        assert [client.get(f"/api/image/{key}").status_code for key in keys] == [404, 200, 200]


def test_boxes_are_proposed_by_the_localizers_own_source(tiny_localizer, photo):
    class Corners:
        def of_image(self, picture, size):
            return torch.tensor([[0.0, 0.0, 11.0, 7.0]])

        def of_map(self, heat, size):
            return torch.tensor([[2.0, 3.0, 17.0, 13.0]])

    localizer = type(tiny_localizer)(tiny_localizer.model, tiny_localizer.settings)
    localizer.source = Corners()
    with TestClient(create_app(localizer, LIMITS)) as client:
        answer = localize(client, photo, maps=True).json()
    assert answer["proposals"] == [0, 0, 11, 7]
    assert answer["predictions"][0]["proposals"] == [2, 3, 17, 13]
    boxes = {tuple(box["xyxy"]) for box in answer["predictions"][0]["boxes"]}
    assert boxes <= {(0, 0, 11, 7), (2, 3, 17, 13)}


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("a red hat", ["a red hat"]),
        ("a dog, a cat. a bird", ["a dog", "a cat", "a bird"]),
        ("a big, brown dog", ["a big, brown dog"]),
        ("A man in a red hat walks a dog by the sea", ["A man", "a red hat", "a dog", "the sea"]),
        ("a dog, a dog", ["a dog"]),
        (" ", []),
    ],
)
def test_typed_text_is_read_as_at_the_command_line(client, text, phrases):
    assert client.post("/api/phrases", json={"text": text}).json()["phrases"] == phrases


# many at once


def test_a_full_queue_refuses_at_once(tiny_localizer):
    gate = threading.Event()
    batcher = Batcher(tiny_localizer, 1, 1)
    running = batcher.put(gate.wait)
    while batcher.waiting():
        time.sleep(0.001)
    waiting = batcher.put(lambda: 3)
    with pytest.raises(Refused, match="1 requests are waiting already"):
        batcher.put(lambda: 4)
    gate.set()
    assert waiting.result(10) == 3
    assert running.result(10)
    batcher.close()


def test_a_full_queue_answers_503(tiny_localizer, photo):
    with TestClient(create_app(tiny_localizer, replace(LIMITS, queue=0))) as client:
        answer = client.post("/api/look", files={"image": photo})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "try again" in refusal(answer)


def test_a_slow_answer_gives_503(tiny_localizer, photo, monkeypatch):
    with TestClient(create_app(tiny_localizer, replace(LIMITS, seconds=0.2))) as client:
        monkeypatch.setattr(type(tiny_localizer), "look_at", lambda *_: time.sleep(1) or [])
        answer = client.post("/api/look", files={"image": photo})
    assert answer.status_code == 503
    assert "0.2 seconds" in refusal(answer)


def test_a_failure_in_one_answer_leaves_the_server_alive(client, photo, monkeypatch, tiny_localizer):
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny_localizer), "locate", lambda *_, **__: 1 / 0)
        broken = localize(client, photo)
    assert broken.status_code == 500
    assert "ZeroDivisionError" in refusal(broken)
    assert localize(client, photo).status_code == 200


def test_photographs_that_wait_are_looked_at_in_one_pass(tiny_localizer, drawn_image):
    looked = []
    batcher = Batcher(counting(tiny_localizer, looked), 8, 4)
    gate = threading.Event()
    running = batcher.put(gate.wait)
    while batcher.waiting():
        time.sleep(0.001)
    pictures = [prepare(drawn_image.rotate(angle), tiny_localizer.settings) for angle in range(6)]
    futures = [batcher.put(picture) for picture in pictures]
    gate.set()
    scenes = [future.result(30) for future in futures]
    assert looked == [4, 2]
    for picture, scene in zip(pictures, scenes):
        alone = tiny_localizer.look_at([picture])[0]
        torch.testing.assert_close(scene.activations[0], alone.activations[0])
    assert running.result(10)
    batcher.close()


def test_photographs_that_are_given_up_do_not_pile_up(tiny_localizer, drawn_image):
    batcher, gate = Batcher(tiny_localizer, 3, 2), threading.Event()
    batcher.put(gate.wait)
    while batcher.waiting():
        time.sleep(0.001)
    picture = prepare(drawn_image, tiny_localizer.settings)
    assert all(batcher.put(picture).cancel() for _ in range(3))
    with pytest.raises(Refused):
        batcher.put(picture)
    gate.set()
    batcher.close()


def test_nothing_of_a_photograph_that_left_stays_in_memory(tiny_localizer):
    cache = SceneCache(2, 1000)
    features = []
    for i in range(5):
        scene = tiny_localizer.look(Image.new("RGB", (40, 30), (i, 0, 0)))
        features.append(weakref.ref(scene.activations[0]))
        cache.put(Kept(str(i), b"", "", scene))
    del scene
    gc.collect()
    assert [f() is None for f in features] == [True, True, True, False, False]


def test_load(tiny_localizer):
    """32 clients, 160 requests, five photographs: none lost, every photograph looked at once."""
    from httpx2 import ASGITransport, AsyncClient

    looked = []
    app = create_app(counting(tiny_localizer, looked), replace(LIMITS, scenes=16, seconds=120))
    photos = [encoded(Image.new("RGB", (40 + i, 30), (40 * i, 90, 0))) for i in range(5)]

    async def one_client(client, number):
        statuses = []
        for i in range(number, 160, 32):
            files = {"image": (f"{i}.png", photos[i % 5]), "phrases": (None, '["a red hat", "dog"]')}
            answer = await client.post("/api/localize", files=files)
            statuses.append((answer.status_code, answer.json().get("image") == f"{i % 5}.png"))
        return statuses

    async def everybody():
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test", timeout=120) as client:
            found = await asyncio.gather(*(one_client(client, n) for n in range(32)))
        return [status for statuses in found for status, _ in statuses]

    statuses = asyncio.run(everybody())
    assert statuses == [200] * 160
    assert sum(looked) == 5
    with TestClient(app) as client:
        assert client.get("/healthz").json() == {"status": "ok", "waiting": 0, "scenes": 5}


def counting(localizer, looked):
    """The same localizer that notes how many photographs it looks at."""

    class Counting(type(localizer)):
        def look_at(self, pictures):
            looked.append(len(pictures))
            return super().look_at(pictures)

    return Counting(localizer.model, localizer.settings)


# any input

TEXT = st.text(max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    phrases=st.one_of(TEXT, st.lists(st.text(max_size=12), max_size=10).map(json.dumps)),
    fields=st.dictionaries(st.sampled_from(["key", "top_k", "method", "maps", "words", "other"]), TEXT),
    content=st.one_of(st.none(), st.binary(max_size=50), st.just("photo")),
)
def test_any_form_gets_an_answer_or_a_sentence(client, photo, phrases, fields, content):
    files = {"phrases": (None, phrases.encode("utf-8", "replace"))}
    files |= {name: (None, text.encode("utf-8", "replace")) for name, text in fields.items()}
    if content is not None:
        files["image"] = ("photo", photo if content == "photo" else content)
    answer = client.post("/api/localize", files=files)
    assert answer.status_code in {200, 400, 404, 413, 422}
    if answer.status_code != 200:
        refusal(answer)


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), st.lists, max_leaves=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["/api/words-at", "/api/chips"]),
    body=st.one_of(JSON, st.dictionaries(st.sampled_from(["key", "x", "y", "count", "text"]), JSON)),
)
def test_any_json_gets_an_answer_or_a_sentence(client, path, body):
    headers = {"Content-Type": "application/json"}
    answer = client.post(path, content=json.dumps(body).encode(), headers=headers)
    assert answer.status_code in {200, 400, 404, 422}
    if answer.status_code != 200:
        refusal(answer)


# the page's files


def test_the_page_is_served_and_loads_nothing_from_elsewhere(client):
    for route, (_, kind) in PAGE_FILES.items():
        answer = client.get(route)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == kind
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        outside = set(re.findall(r"""["'(]((?:https?:)?//[^"')\s]+)""", answer.text))
        assert outside <= {"http://www.w3.org/2000/svg"}, (
            f"{route} refers to {outside}"
        )  # a name, not fetched
    for name in EXAMPLES:
        with Image.open(io.BytesIO(client.get(f"/examples/{name}").content)) as picture:
            assert picture.width > 100


def test_openapi_names_every_route(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/api/look", "/api/localize", "/api/words-at", "/api/chips", "/api/phrases", "/api/image/{key}",
        "/api/model", "/healthz", "/api/export", "/api/masks", "/api/cvat",
        *(f"/api/label-studio/{name}" for name in ("health", "setup", "versions", "predict", "webhook")),
    }  # fmt: skip
    fields = described["components"]["schemas"]["Body_localize_api_localize_post"]["properties"]
    assert {"image", "phrases", "key", "top_k", "method", "maps", "words"} == set(fields)


def test_an_answer_leaves_the_held_scene_as_it_was(tiny_localizer, photo):
    scene = tiny_localizer.look(load_image(photo))
    before = [a.clone() for a in scene.activations]
    tiny_localizer.locate(scene, ["dog", "a red hat"])
    assert all(torch.equal(a, b) for a, b in zip(before, scene.activations))


# labels for other tools


def sent(client, photo, tiny_localizer):
    """Two photographs as the page sends them, one with a mask, and what the writers are given for them."""
    localize(client, photo, ["a dog"])
    key = localize(client, photo, ["a dog"]).json()["key"]
    asked = {"key": key, "phrase": "a dog", "boxes": [[1, 2, 30, 40.5]]}
    answer = client.post("/api/masks", json=asked)
    (mask,) = answer.json()["masks"]
    outlines = mask.pop("outlines")
    dog = {"phrase": "a dog", "xyxy": [1, 2, 30, 40.5], "present": 0.75, "mask": mask}
    cat = {"phrase": "a cat", "xyxy": [0, 0, 9, 9], "present": None}
    photographs = [{"name": "a.png", "size": [120, 80], "labels": [dog, cat], "key": key}]
    photographs.append({"name": "a.png", "size": [120, 80], "labels": [], "key": key})
    found = (
        Label(0, (1.0, 2.0, 30.0, 40.5), 0.75, "a dog", 0.75, mask),
        Label(1, (0.0, 0.0, 9.0, 9.0), 1.0, "a cat", 1.0),
    )
    images = [LabelledImage("a.png", (120, 80), found), LabelledImage("a-2.png", (120, 80), ())]
    return photographs, images, mask, outlines


def test_masks_are_those_of_the_command_line(client, photo, tiny_localizer):
    _, _, mask, outlines = sent(client, photo, tiny_localizer)
    found = tiny_localizer(load_image(photo), ["a dog"])[0]
    found = replace(found, boxes=torch.tensor([[1, 2, 30, 40.5]]))
    assert mask == json.loads(json.dumps(masks.encoded(found.mask.numpy())))
    assert outlines == json.loads(json.dumps(masks.polygons(mask)))
    asked = {"key": "0" * 32, "phrase": "a dog", "boxes": [[1, 2, 30, 40.5]]}
    assert "send it again" in refusal(client.post("/api/masks", json=asked))
    key = localize(client, photo).json()["key"]
    for wrong in (
        {"boxes": []},
        {"boxes": [[0, 0, "x", 1]]},
        {"method": "guess"},
        {"phrase": "zorglub"},
        {"phrase": ""},
    ):
        assert 400 <= client.post("/api/masks", json=asked | {"key": key} | wrong).status_code < 500


def test_labels_are_written_as_the_command_line_writes_them(client, photo, tiny_localizer, tmp_path):
    photographs, images, _, _ = sent(client, photo, tiny_localizer)
    for name, (write, made) in FORMATS.items():
        answer = client.post("/api/export", json={"format": name, "photographs": photographs})
        assert answer.status_code == 200
        write(images, Place(Path.cwd(), ["a dog", "a cat"], "", lambda *_: None), tmp_path / made)
        if (tmp_path / made).is_file():
            assert answer.content == (tmp_path / made).read_bytes()
            continue
        with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
            held = {entry: file.read(entry) for entry in file.namelist()}
        expected = {
            p.relative_to(tmp_path).as_posix(): p for p in (tmp_path / made).rglob("*") if p.is_file()
        }
        pictures = held.keys() - expected.keys()
        assert len(pictures) == 2
        assert all(held[picture] == photo for picture in pictures)
        same = expected.keys() - {"fiftyone/data.json"}
        assert all(held[entry] == expected[entry].read_bytes() for entry in same)
        if name == "fiftyone":
            where = json.loads(held["fiftyone/data.json"])
            assert {f"fiftyone/{place}" for place in where.values()} == pictures


def test_labels_that_cannot_be_written(client, photo, tiny_localizer):
    photographs, _, mask, _ = sent(client, photo, tiny_localizer)
    asked = {"format": "yolo", "photographs": photographs}

    def refused(change, **further):
        body = json.loads(json.dumps(asked | further))
        change(body["photographs"][0])
        return refusal(client.post("/api/export", json=body))

    assert "format" in refused(lambda photo: None, format="pptx")
    assert "send it again" in refused(lambda photo: photo.pop("key"))
    assert "the masks of a.png" in refused(lambda photo: photo.update(size=[80, 120]))
    for counts in mask["counts"][:-2], "", "zorglub":
        wrong = {"mask": mask | {"counts": counts}}
        assert "run lengths" in refused(lambda photo: photo["labels"][0].update(wrong))  # noqa: B023 - run at once
