"""The API for Label Studio and CVAT: what their clients send and read, and what is never fetched."""

import base64
import json
import subprocess
import threading
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient

from phrase_loc import masks
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.web import label_studio
from phrase_loc.web.app import create_app
from phrase_loc.web.label_studio import Photographs
from tests.test_labelling import READERS
from tests.web.conftest import LIMITS
from tests.web.test_api import refusal

ROOT = "/api/label-studio"
CONFIG = """<View>
  <Image name="img" value="$image"/>
  <RectangleLabels name="label" toName="img" model_score_threshold="0">
    <Label value="Hut" predicted_values="a hat, the red hat"/>
    <Label value="Hund" alias="dog"/>
    <Label value="zorglub" hint="a man"/>
    <Label value="xyzzy"/>
  </RectangleLabels>
</View>"""


#: Label Studio's own reader of predictions, in an environment of its own.
READ = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface
print(LabelInterface(sys.argv[1]).validate_prediction(json.loads(sys.argv[2]), return_errors=True))
"""


def data_url(photo: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(photo).decode()}"


def tasks(*links) -> dict:
    """What Label Studio 1.23 sends to `predict`: tasks with more fields than are read."""
    sent = [{"id": 7 + i, "project": 3, "data": {"image": link}, "meta": {}} for i, link in enumerate(links)]
    return {
        "tasks": sent,
        "project": "3.1764121200",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": None},
    }


def post(client, path, body):
    """As JSON, in which a lone surrogate may stand."""
    kind = {"Content-Type": "application/json"}
    return client.post(f"{ROOT}/{path}", content=json.dumps(body), headers=kind)


@contextmanager
def files(answers):
    """A server that answers each path with (status, headers, body); what was asked, and its address."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            status, headers, body = answers.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"access": "fresh"}')

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_health_setup_and_versions(client):
    assert client.get(f"{ROOT}/health").json()["status"] == "UP"
    asked = {"project": "3.1", "schema": CONFIG, "hostname": "http://x", "access_token": "t"}
    told = client.post(f"{ROOT}/setup", json=asked).json()
    assert told["unknown_labels"] == ["xyzzy"]
    assert client.get(f"{ROOT}/versions").json() == {"versions": [told["model_version"]]}


def test_predictions_are_regions_in_percent(client, photo, tiny_localizer):
    """Recorded from label_studio_sdk: the fields that LabelInterface.validate_prediction asks for."""
    answer = client.post(f"{ROOT}/predict", json=tasks(data_url(photo), data_url(photo))).json()
    assert len(answer["results"]) == 2  # one for each task, or Label Studio drops all of them
    assert answer["errors"] == []
    for prediction in answer["results"]:
        assert prediction["model_version"] == answer["model_version"]
        regions = prediction["result"]
        assert prediction["score"] == pytest.approx(sum(r["score"] for r in regions) / len(regions))
        for region in regions:
            assert region["from_name"] == "label"
            assert region["to_name"] == "img"
            assert region["type"] == "rectanglelabels"
            assert (region["original_width"], region["original_height"]) == (120, 80)
            value = region["value"]
            assert 0 <= value["x"] <= value["x"] + value["width"] <= 100.01
            assert 0 <= value["y"] <= value["y"] + value["height"] <= 100.01
    assert len({r["id"] for r in regions}) == len(regions)
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    assert sdk.LabelInterface(CONFIG).validate_prediction(prediction, return_errors=True) == []


@pytest.mark.parametrize("kind", ["PolygonLabels", "BrushLabels"])
def test_polygons_and_brushes_are_masks(client, photo, tiny_localizer, kind):
    config = CONFIG.replace("RectangleLabels", kind)
    answer = client.post(f"{ROOT}/predict", json=tasks(data_url(photo)) | {"label_config": config}).json()
    (prediction,) = answer["results"]
    (region,) = (r for r in prediction["result"] if r["value"][kind.lower()] == ["dog"])
    assert (region["type"], region["from_name"], region["to_name"]) == (kind.lower(), "label", "img")
    mask = tiny_localizer(load_image(photo), ["dog"], top_k=1)[0].mask.numpy()
    if kind == "BrushLabels":
        assert region["value"]["format"] == "rle"
        assert region["value"]["rle"] == masks.brush(mask)
    else:
        outline = masks.polygons(masks.encoded(mask))[0]
        assert region["value"]["points"] == pytest.approx(np.array(outline) / [1.2, 0.8])
        assert region["value"]["closed"] is True
    asked = [READERS, "-c", READ, config, json.dumps(prediction)]
    if READERS.is_file():
        said = subprocess.run(asked, capture_output=True, text=True)
        assert (said.returncode, said.stdout.strip()) == (0, "[]"), said.stderr


def test_labels_are_sought_by_predicted_values_value_alias_or_hint(client, photo, tiny_localizer):
    regions = client.post(f"{ROOT}/predict", json=tasks(data_url(photo))).json()["results"][0]["result"]
    found = {r["value"]["rectanglelabels"][0]: r for r in regions}
    assert set(found) == {"Hut", "dog", "zorglub"}  # the alias is the name, as Label Studio has it
    scene = tiny_localizer.look(photo)
    for label, phrase in {"dog": "dog", "zorglub": "a man"}.items():
        x1, y1, x2, y2 = tiny_localizer.locate(scene, [phrase], top_k=1)[0].boxes[0].tolist()
        value = found[label]["value"]
        percent = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
        assert percent == pytest.approx([x1 / 1.2, y1 / 0.8, x2 / 1.2, y2 / 0.8], abs=0.05)


def test_of_one_label_no_box_overlaps_a_better_one(client, photo, tiny_localizer):
    config = CONFIG.replace("a hat, the red hat", "a hat, the hat, hats")  # one and the same thing
    answer = client.post(f"{ROOT}/predict", json=tasks(data_url(photo)) | {"label_config": config}).json()
    labels = [r["value"]["rectanglelabels"][0] for r in answer["results"][0]["result"]]
    assert labels.count("Hut") == 1


def test_what_is_not_found_gets_no_box(tiny_localizer, photo):
    model = copy(tiny_localizer.model)
    strict = PhraseLocalizer(model, tiny_localizer.settings)
    present = dict(zip(("dog", "a man"), strict.present(strict.look(photo), ["dog", "a man"]), strict=True))
    least = sum(present.values()) / 2  # between the two
    model.config = replace(model.config, calibration={**model.config.calibration, "found_at": least})
    labels = {"dog": "dog", "a man": "zorglub"}
    expected = [labels[phrase] for phrase, chance in present.items() if chance >= least]
    assert len(expected) == 1
    for threshold, found in ("", expected), ('model_score_threshold="1"', []):
        config = CONFIG.replace('model_score_threshold="0"', threshold).replace("a hat, the red hat", "xyzzy")
        with TestClient(create_app(strict, LIMITS)) as client:
            body = tasks(data_url(photo)) | {"label_config": config}
            regions = client.post(f"{ROOT}/predict", json=body).json()["results"][0]["result"]
        assert [r["value"]["rectanglelabels"][0] for r in regions] == found


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "as XML"),
        ("<View><Image", "as XML"),
        ("\ud800", "as XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "as XML"),
        ("<View/>", "RectangleLabels"),
        (CONFIG.replace('toName="img"', 'toName="other"'), "RectangleLabels"),
        (CONFIG.replace("Label ", "Choice "), "RectangleLabels"),
        (CONFIG.replace('"0"', '"many"'), "from 0 to 1"),
        ("<a>" * 200_000, "as XML"),
    ],
)
def test_a_labelling_interface_that_cannot_be_filled(client, photo, config, said):
    assert said in refusal(post(client, "setup", {"project": "1", "schema": config}))
    body = tasks(data_url(photo)) | {"label_config": config}
    assert said in refusal(post(client, "predict", body))


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("/data/upload/3/a.png", "--label-studio-url"),
        ("upload/3/a.png", "--label-studio-url"),
        ("/data/local-files/?d=a.png", "--label-studio-url"),
        ("http://localhost:1/a.png", "--image-host localhost"),
        ("https://user@10.0.0.1/a.png", "--image-host 10.0.0.1"),
        ("//example.org/a.png", "cannot be read"),
        ("file:///etc/passwd", "cannot be read"),
        ("s3://bucket/a.png", "cannot be read"),
        ("/etc/passwd", "--label-studio-url"),
        ("http://[", "cannot be asked"),
        ("data:image/png;base64,!!", "base64"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,aGVsbG8=", "image"),
        (None, "expected the address"),
        ("", "expected the address"),
        ({"a": 1}, "expected the address"),
    ],
)
def test_nothing_is_fetched_that_was_not_allowed(client, link, said):
    assert said in refusal(client.post(f"{ROOT}/predict", json=tasks(link)))


def test_a_task_that_fails_is_named_and_the_others_are_done(client, photo):
    answer = post(client, "predict", tasks("/data/a.png", data_url(photo), "http://\ud800/a.png")).json()
    assert answer["results"][0] == answer["results"][2] == []  # Label Studio keeps nothing, and asks again
    assert answer["results"][1]["result"]
    assert [e["task"] for e in answer["errors"]] == [7, 9]
    assert "--label-studio-url" in answer["errors"][0]["error"]


def test_photographs_of_label_studio_are_fetched_with_its_token(tiny_localizer, photo):
    answers = {"/data/upload/3/a%20b.png": (200, {}, photo), "/data/local-files/?d=x/y.png": (200, {}, photo)}
    with files(answers) as (address, asked):
        app = create_app(tiny_localizer, LIMITS, photographs=Photographs(address + "/", "abc"))
        with TestClient(app) as client:
            links = "/data/upload/3/a b.png", f"{address}/data/upload/3/a%20b.png"
            asking = tasks(*links, "/data/local-files/?d=x/y.png")
            answer = client.post(f"{ROOT}/predict", json=asking).json()
    assert answer["errors"] == []
    assert len(asked) == 3
    assert {headers["Authorization"] for _, headers in asked} == {"Token abc"}


def test_a_personal_token_is_exchanged_once(photo):
    with files({"/data/upload/1/a.png": (200, {}, photo)}) as (address, asked):
        photographs = Photographs(address, "head.body.sign")
        assert photographs.read("/data/upload/1/a.png") == photographs.read("upload/1/a.png") == photo
    assert asked[0] == ("/api/token/refresh", {"refresh": "head.body.sign"})
    assert [headers["Authorization"] for _, headers in asked[1:]] == ["Bearer fresh", "Bearer fresh"]


def test_other_hosts_get_no_token_and_redirects_are_not_followed(photo):
    answers = {"/a.png": (200, {}, photo), "/b.png": (302, {"Location": "/a.png"}, b"")}
    with files(answers) as (address, asked):
        photographs = Photographs("http://studio.example:1", "abc", frozenset({"127.0.0.1"}), most=len(photo))
        assert photographs.read(f"{address}/a.png") == photo
        assert "Authorization" not in asked[0][1]
        with pytest.raises(DataError, match="leads to another address"):
            photographs.read(f"{address}/b.png")
        with pytest.raises(DataError, match="answered 404"):
            photographs.read(f"{address}/c.png")
        photographs.most -= 1
        with pytest.raises(DataError, match="larger than"):
            photographs.read(f"{address}/a.png")
    with pytest.raises(DataError, match="cannot be asked"):
        photographs.read(f"{address}/a.png")
    with pytest.raises(ConfigError, match="http://localhost:8080"):
        Photographs("studio")


def test_the_time_of_a_batch_ends(client, photo, monkeypatch):
    clock = iter(range(0, 10_000, 30))  # seconds; at most 80 of 100 may have gone when a task is begun
    monkeypatch.setattr(label_studio, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    answer = client.post(f"{ROOT}/predict", json=tasks(*[data_url(photo)] * 4)).json()
    assert [bool(result) for result in answer["results"]] == [True, True, False, False]
    assert all("ask again" in e["error"] for e in answer["errors"])


def test_label_studio_may_send_the_token_as_a_password(tiny_localizer):
    basic = {"Authorization": "Basic " + base64.b64encode(b"anybody:secret").decode()}
    with TestClient(create_app(tiny_localizer, LIMITS, token="secret")) as client:
        assert client.get(f"{ROOT}/health").status_code == 401
        assert client.get(f"{ROOT}/health", headers=basic).status_code == 200
        assert client.get("/api/model", headers=basic).status_code == 401
        for wrong in ("Basic c2VjcmV0", "Basic !!", "Basic " + base64.b64encode(b"x:y").decode()):
            assert client.get(f"{ROOT}/health", headers={"Authorization": wrong}).status_code == 401


# CVAT


def test_cvat_gets_shapes_in_pixels(client, photo, tiny_localizer):
    image = base64.b64encode(photo).decode()
    labels = {"Hut": ["a hat"], "nothing": []}
    body = {"image": image, "threshold": 0, "labels": labels, "job": 5}
    [shape] = client.post("/api/cvat", json=body).json()
    assert set(shape) == {"confidence", "label", "points", "type"}
    assert (shape["label"], shape["type"]) == ("Hut", "rectangle")
    expected = tiny_localizer.locate(tiny_localizer.look(photo), ["a hat"], top_k=1)[0]
    assert shape["points"] == pytest.approx(expected.boxes[0].tolist(), abs=0.01)
    assert float(shape["confidence"]) == pytest.approx(expected.present, abs=1e-4)
    assert client.post("/api/cvat", json={"image": image, "threshold": 1.0, "labels": ["a hat"]}).json() == []
    lines = base64.encodebytes(photo).decode()
    assert client.post("/api/cvat", json=body | {"image": lines}).json() == [shape]
    assert "labels" in refusal(client.post("/api/cvat", json={"image": image}))
    kind = {"Content-Type": "application/json"}
    assert "holds no JSON" in refusal(client.post("/api/cvat", content=b'{"image": ', headers=kind))
    twice = b'{"labels": {"hat": ["a hat"], "hat": []}, "image": ""}'
    assert "the key 'hat' stands twice" in refusal(client.post("/api/cvat", content=twice, headers=kind))
    assert "base64" in refusal(client.post("/api/cvat", json={"image": "?", "labels": ["dog"]}))


def test_a_frame_in_base64_may_be_as_large_as_an_upload(client):
    large = base64.b64encode(b"x" * LIMITS.upload_bytes).decode()
    assert "image" in refusal(client.post("/api/cvat", json={"image": large, "labels": ["dog"]}))
    answer = client.post("/api/cvat", json={"image": large * 2, "labels": ["dog"]})
    assert answer.status_code == 413
