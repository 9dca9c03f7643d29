"""The hub's conventions: three verbs, a card that the hub can read, and an upload without a network."""

import base64
import json
import re

import pytest
import yaml

from phrase_loc.errors import DataError
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.model import ModelConfig
from phrase_loc.models.store import front_matter, model_card

hub = pytest.importorskip("huggingface_hub")
FIGURES = [
    {"protocol": "pointing_any", "method": method, "metric": "accuracy", "value": value, "ci95": [59.0, 63.5]}
    for method, value in (("contrastive_mwp", 61.25), ("contrastive_mwp_no_prior", 60.5), ("cam", 50.0))
]
CARD = {"figures": FIGURES, "figures_of": "val: 247 photographs, 'quoted' # no comment"}


def config(**changes) -> ModelConfig:
    values = {"backbone": "tiny", "channels": 8, "embedding": 4, "card": CARD}
    return ModelConfig(**{**values, "inference": {"method": "contrastive_mwp"}, **changes})


class TestCard:
    def test_the_hub_reads_it(self):
        card = hub.ModelCard(model_card(config(), words=5, extra_words=0, size=1000))
        assert (card.data.license, card.data.library_name) == ("apache-2.0", "phrase_loc")
        assert card.data.pipeline_tag == "zero-shot-object-detection"
        assert {"phrase-grounding", "tiny"} <= set(card.data.tags)
        read = {(r.metric_name, r.metric_value, r.dataset_name) for r in card.data.eval_results}
        name = "contrastive_mwp, pointing_any, accuracy (95 % interval 59 to 63.5)"
        assert (name, 61.25, CARD["figures_of"]) in read
        assert len(read) == 2, "the method asked by and its twin without the prior"

    def test_without_figures_it_claims_none(self):
        assert "model-index" not in front_matter(config(card={}))
        assert hub.ModelCard(model_card(config(card={}), 5, 0, 1000)).data.eval_results is None

    def test_figures_of_other_methods_are_better_than_none(self):
        values = front_matter(config(inference={}))
        assert len(values["model-index"][0]["results"][0]["metrics"]) == len(FIGURES)


@pytest.fixture
def requests(monkeypatch):
    """What huggingface_hub sends, answered here as the hub does."""
    httpx = pytest.importorskip("httpx2")
    from huggingface_hub import constants
    from huggingface_hub.utils import set_client_factory

    seen = []

    def answer(request):
        seen.append(request)
        path, body = request.url.path, request.content
        if b"nobody" in body or "nobody" in path:
            return httpx.Response(403, json={"error": "no right to the namespace nobody"})
        if b"unplugged" in body:
            raise httpx.ConnectError("Name or service not known")
        if path == "/api/repos/create":
            return httpx.Response(200, json={"url": "https://huggingface.co/somebody/red-hats"})
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return httpx.Response(200, json={"files": files})
        if path.endswith("/commit/main"):
            told = {"commitUrl": "https://huggingface.co/somebody/red-hats/commit/1", "commitOid": "1"}
            return httpx.Response(200, json=told)
        return httpx.Response(200, json={})

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    set_client_factory(lambda: httpx.Client(transport=httpx.MockTransport(answer)))
    yield seen
    set_client_factory(httpx.Client)


def test_what_is_pushed_is_the_folder_and_loads_again(requests, tiny_localizer, tmp_path):
    asked = tiny_localizer.with_settings(gamma=0.25)
    address = asked.push_to_hub("somebody/red-hats", token="hf_none", private=True)
    assert address == "https://huggingface.co/somebody/red-hats/commit/1"
    created = json.loads(next(r for r in requests if r.url.path == "/api/repos/create").content)
    assert created["name"] == "red-hats"
    assert created.get("private") is True or created.get("visibility") == "private"
    commit = next(r for r in requests if r.url.path.endswith("/commit/main"))
    assert commit.headers["authorization"] == "Bearer hf_none"
    for line in map(json.loads, commit.content.splitlines()):
        if line["key"] == "file":
            (tmp_path / line["value"]["path"]).write_bytes(base64.b64decode(line["value"]["content"]))
    names = {p.name for p in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "vocabulary.txt", "README.md"} <= names
    again = PhraseLocalizer.from_pretrained(tmp_path, device="cpu")
    assert again.settings == asked.settings
    assert tiny_localizer.settings.gamma != 0.25
    head = re.match(r"---\n(.+?)\n---\n", (tmp_path / "README.md").read_text(encoding="utf-8"), re.S)
    assert yaml.safe_load(head[1])["library_name"] == "phrase_loc"


def test_saving_with_other_settings_leaves_the_shared_model_alone(tiny_localizer, tmp_path):
    before = dict(tiny_localizer.model.config.inference)
    tiny_localizer.with_settings(gamma=0.125).save_pretrained(tmp_path)
    assert PhraseLocalizer.from_pretrained(tmp_path, device="cpu").settings.gamma == 0.125
    assert tiny_localizer.model.config.inference == before


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nobody/model", "403"), ("a/unplugged", "Name or service not known"), ("a/b/c", "Repo id must be")],
)
def test_a_refused_upload_is_one_sentence(name, reason, requests, tiny_localizer):
    with pytest.raises(
        DataError, match=f"could not be uploaded to '{name}' .*{reason}.*; check the name"
    ) as told:
        tiny_localizer.push_to_hub(name, token="hf_none")
    assert "\n" not in str(told.value)
