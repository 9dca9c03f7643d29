"""An image-text folder made on the spot through every command: each answers, or says what it cannot."""

import json

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from phrase_loc.cli import main
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.web.answers import Limits
from phrase_loc.web.app import create_app
from tests.conftest import encoded
from tests.datasets.flickr_tree import annotation, thing, tree
from tests.models import tiny_towers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_towers.pair(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def flickr(tmp_path):
    """Six photographs of a coloured thing."""
    names = ("dog", "hat", "ball", "man", "woman", "lorry")
    images = {
        str(i): ([f"A [/EN#{i}/other a {name}] ."], annotation(32, 32, thing(str(i), (3, 3, 20, 20))))
        for i, name in enumerate(names, 1)
    }
    root = tree(tmp_path / "flickr", images, photographs=True)
    for i in images:
        picture = Image.radial_gradient("L").rotate(30 * int(i)).resize((32, 32)).convert("RGB")
        picture.save(root / "flickr30k-images" / f"{i}.jpg")
    return root


def test_query(clip, tmp_path, drawn_image, capsys):
    drawn_image.save(tmp_path / "photo.png")
    assert main(["query", str(tmp_path / "photo.png"), "a red lorry", "--model", str(clip), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["predictions"]
    assert answer["present"] is None
    assert answer["boxes"]
    asked = ["query", str(tmp_path / "photo.png"), "hat", "--model", f"hf:{clip}", "--threshold", "0.5"]
    assert main(asked) == 2
    assert "not calibrated" in capsys.readouterr().err
    assert main([*asked[:5], "--method", "rise"]) == 2
    assert "rise masks a plane" in capsys.readouterr().err


def test_calibrate_says_states_from_then_on_and_leaves_the_librarys_files_alone(
    clip, flickr, tmp_path, drawn_image, capsys
):
    before = {path.name: path.read_bytes() for path in clip.iterdir()}
    out = tmp_path / "calibrated"
    assert main(["calibrate", f"hf:{clip}", "--root", str(flickr)]) == 2
    assert "name an --output folder" in capsys.readouterr().err
    assert main(["calibrate", f"hf:{clip}", "--root", str(flickr), "--output", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    assert main(["calibrate", str(out), "--root", str(flickr), "--set", "stage=block2"]) == 0
    assert {path.name: path.read_bytes() for path in clip.iterdir()} == before
    localizer = PhraseLocalizer.from_pretrained(out, device="cpu")
    (answer,) = localizer(drawn_image, ["a red hat"])
    assert localizer.settings.stage == "block2"
    assert answer.state in ("found", "not sure", "not there")


def test_evaluate(clip, flickr, tmp_path, capsys):
    methods = "method=[contrastive_mwp,contrastive_mwp@random_word,contrastive_mwp@random_top]"
    settings = [
        f"data.root={flickr}",
        "data.split=val",
        f"output={tmp_path / 'report.json'}",
        f"model={clip}",
    ]
    settings += [methods, "bootstrap=10", "protocols=[pointing_any]", "device=cpu", "proposal_cache=none"]
    assert main(["evaluate", "configs/flickr30k.yaml", *settings]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert {row["method"] for row in report["rows"]} >= {"contrastive_mwp", "contrastive_mwp@random_top"}
    assert "a red" not in capsys.readouterr().err


def test_export_and_training_from_it_are_refused_in_one_sentence(clip, tmp_path, capsys):
    assert main(["export", str(tmp_path / "out"), "--model", str(clip), "--format", "torch"]) == 2
    assert "do not export; train a word head over it (model.backbone=hf:" in capsys.readouterr().err


def test_serve(clip, drawn_image):
    localizer = PhraseLocalizer.from_pretrained(clip, device="cpu")
    with TestClient(create_app(localizer, Limits()), raise_server_exceptions=False) as client:
        files = {"image": ("photo.png", encoded(drawn_image)), "phrases": (None, '["a red hat"]')}
        answer = client.post("/api/localize", files=files, data={"maps": "true", "words": "true"}).json()
        assert answer["predictions"][0]["boxes"]
        assert answer["predictions"][0]["word_maps"][0]["word"] == "a red hat"
        assert client.get("/api/model").json()["calibrated"] is False
        point = client.post("/api/words-at", json={"key": answer["key"], "x": 30, "y": 40, "count": 3})
        assert point.status_code == 400
        assert "scores whole photographs and no places" in point.json()["error"]


def test_the_benchmark_prints_a_table_and_goes_on_over_what_cannot_be_loaded(
    clip, flickr, tmp_path, capsys, monkeypatch
):
    from benchmarks.towers import main as benchmark

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for a minute
    out = tmp_path / "towers.md"
    given = [str(clip), "hf:nowhere", "--root", str(flickr), "--duals", "negative", "mean", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["towers.py", *given, "--device", "cpu", "--set", "stage=block2"])
    benchmark()
    rows = [line.split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert capsys.readouterr().out.strip() == out.read_text().strip()
    assert len({len(row) for row in rows}) == 1
    assert [row[1] for row in rows[2:4]] == ["negative, contributions", "mean, contributions"]
    assert "cannot be loaded" in rows[4][1]
    assert rows[-1][0].strip("| ") in ("centre", "fixed_boxes", "whole_image", "random")
    assert json.loads(out.with_suffix(".json").read_text())[0]["settings"]["stage"] == "block2"
