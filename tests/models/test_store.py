"""Saved is loaded; what is broken is one sentence; a query imports nothing slow."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models import store
from phrase_loc.models.store import load_model, save_model
from tests.models.test_model import IDS, IMAGES, extended, tiny_model


@pytest.fixture
def model():
    made = extended(tiny_model())
    made.config = replace(
        made.config,
        inference={"method": "contrastive_mwp", "smoothing": 0.1},
        calibration={"slope": 1.5, "offset": -0.25, "auc": 0.8125},
        card={
            "data": "made up",
            "command": "python train.py x.yaml",
            "figures": [
                {
                    "protocol": "pointing_any",
                    "method": "cam",
                    "metric": "accuracy",
                    "value": 61.25,
                    "ci95": [59.0, 63.5],
                    "count": 3239,
                    "baselines": {"centre": 54.8},
                }
            ],
        },
    )
    return made


def test_loaded_is_saved_up_to_half_precision(model, tmp_path):
    again = load_model(save_model(model, tmp_path / "a" / "b"))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert (again.vocabulary, again.extra) == (model.vocabulary, model.extra)
    assert again.config == replace(model.config, folded=True)
    ids = torch.cat([IDS, torch.tensor([5, 6])])
    with torch.no_grad():
        assert torch.allclose(again(IMAGES, ids), model(IMAGES, ids), atol=2e-3)
        assert torch.equal(again.words.rows, model.words.rows)


def test_saving_what_was_loaded_changes_nothing(model, tmp_path):
    save_model(model, tmp_path / "a")
    save_model(load_model(tmp_path / "a"), tmp_path / "b")
    for name in ("model.safetensors", "config.json", "vocabulary.txt", "extra_words.txt", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list(tmp_path.glob("*/*.part"))


def test_unfolded_models_are_saved_folded(tmp_path):
    trained = tiny_model(fold=False)
    again = load_model(save_model(trained, tmp_path))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in again.modules())
    with torch.no_grad():
        assert torch.allclose(again(IMAGES, IDS), trained(IMAGES, IDS), atol=2e-3)


def test_transformers_models_need_their_folder_no_more(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained(tmp_path / "source")
    model = tiny_model(backbone=f"transformers:{tmp_path / 'source'}", weights="imagenet")
    save_model(model, tmp_path / "model")
    for file in (tmp_path / "source").iterdir():
        file.unlink()
    again = load_model(tmp_path / "model")
    with torch.no_grad():
        assert torch.allclose(again(IMAGES, IDS), model(IMAGES, IDS), rtol=2e-3, atol=2e-3)


def test_the_card_states_the_figures_with_their_baselines(model, tmp_path):
    card = (save_model(model, tmp_path) / "README.md").read_text()
    assert "| pointing_any | cam | accuracy | 61.25 | 59 to 63.5 | 54.8 | 3239 |" in card
    assert "python train.py x.yaml" in card
    assert "auc: 0.8125" in card
    assert "5 trained, 2 further" in card


def spoil(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


def edited(**changes):
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


def without(key):
    return lambda content: json.dumps({k: v for k, v in json.loads(content).items() if k != key}).encode()


@pytest.mark.parametrize(
    "name,change,message",
    [
        ("model.safetensors", lambda b: b[: len(b) // 2], "cannot be read"),
        ("model.safetensors", lambda b: b[:-4] + b"\0\0\0\1", "copy the whole folder again"),
        ("config.json", lambda b: b[:40], "JSON"),
        ("config.json", lambda b: b"[1]", "JSON object"),
        ("config.json", edited(format=99), "update phrase_loc"),
        ("config.json", edited(bakbone="x"), "did you mean 'backbone'"),
        ("config.json", edited(hidden=99), "where"),
        ("config.json", edited(hidden=None), "where"),
        ("vocabulary.txt", lambda b: b[: len(b) // 2] + b"\n", "vocabulary|words|shape|lacks|where"),
        ("vocabulary.txt", lambda b: b"", "empty"),
        (
            "extra_words.txt",
            lambda b: b"zebra\n",
            "is not the file that config.json beside it was written with",
        ),
        ("config.json", edited(channels="12"), "key 'channels'"),
        ("config.json", edited(channels=True), "key 'channels'"),
        ("config.json", edited(channels=10**6), "key 'channels'"),
        ("config.json", edited(embedding=65_536), "where"),
        ("config.json", edited(mean=[1, 2]), "key 'mean"),
        ("config.json", edited(std=[1, 0, 1]), "key 'std"),
        ("config.json", edited(mean=[1, None, 1]), "key 'mean"),
        ("config.json", edited(sharpness=-1.0), "key 'sharpness"),
        ("config.json", edited(sharpness=float("nan")), "key 'sharpness"),
        ("config.json", edited(pool="maximum"), "unknown pool"),
        ("config.json", edited(pool="top"), "unknown pool 'top'"),
        ("config.json", edited(cosine=True), "key cosine=True .*docs/experiments.md"),
        ("config.json", edited(fuse="stage9"), "key fuse='stage9' .*docs/experiments.md"),
        ("config.json", edited(backbone="tinny"), "unknown backbone"),
        ("config.json", edited(output_stride=16), "key output_stride=16 .*docs/experiments.md"),
        ("config.json", edited(calibration={"slope": 1.0}), "slope and offset"),
        ("config.json", edited(calibration={"slope": 1.0, "offset": float("inf")}), "calibration.offset"),
        (
            "config.json",
            edited(calibration={"slope": 1, "offset": 0, "absent_below": 0.9}),
            "absent_below <= found_at <= 1, got 0.9 and 0.5",
        ),
        ("config.json", edited(inference=[]), "inference"),
        ("config.json", edited(card={"figures": [3]}), "card.figures"),
        ("config.json", edited(architecture={"model_type": "resnet", "depths": "x"}), "architecture"),
        ("config.json", edited(weights_sha256=7), "copy the whole folder again"),
        ("config.json", lambda b: b"[" * 9999, "not JSON"),
        ("config.json", lambda b: b.replace(b'"channels"', b'"channels": 5, "channels"'), "stands twice"),
    ],
)
def test_broken_folders_are_one_sentence(model, tmp_path, name, change, message):
    save_model(model, tmp_path)
    spoil(tmp_path, name, change)
    with pytest.raises(DataError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vocabulary.txt", "extra_words.txt"])
def test_exchanged_words_are_noticed(model, tmp_path, name):
    """They would answer for one another."""
    save_model(model, tmp_path)
    spoil(tmp_path, name, lambda b: b"".join(b.splitlines(True)[::-1]))
    with pytest.raises(
        DataError, match=r"is not the file that config\.json beside it was written with; copy"
    ):
        load_model(tmp_path)


def test_a_model_of_old_has_the_digest_of_its_weights_alone(model, tmp_path):
    save_model(model, tmp_path)
    for key in ("vocabulary_sha256", "extra_words_sha256"):
        spoil(tmp_path, "config.json", without(key))
    assert load_model(tmp_path).extra == model.extra


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surplus": torch.zeros(3)}, "no place for"),
        ({"head.lift.bias": torch.full((12,), torch.nan)}, "not finite"),
        ({"head.lift.bias": torch.zeros(12, dtype=torch.int32)}, "torch.int32 where torch.float32"),
        ({"words.rows": torch.zeros(2, 4)}, "torch.float32 where torch.int8"),
        ({"words.rows": torch.zeros(3, 4, dtype=torch.int8)}, "out-of-vocabulary words"),
        ({"words.vectors": torch.zeros(4, 6)}, "where"),
    ],
)
def test_other_weights_are_one_sentence(model, tmp_path, change, message):
    from safetensors.torch import load_file, save_file

    save_model(model, tmp_path)
    save_file(load_file(tmp_path / "model.safetensors") | change, tmp_path / "model.safetensors")
    spoil(tmp_path, "config.json", without("weights_sha256"))
    with pytest.raises(DataError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("lines", ["zebra\n\n", "kite\nkite\n", "zebra\tkite\n", "zebra\n"])
def test_further_words_of_old_models_stand_one_a_line(model, tmp_path, lines):
    save_model(model, tmp_path)
    (tmp_path / "extra_words.txt").write_text(lines)
    spoil(tmp_path, "config.json", without("extra_words_sha256"))
    with pytest.raises(DataError, match=r"line|twice|out-of-vocabulary words"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.txt", "config.json"])
def test_missing_files_are_named(model, tmp_path, name):
    save_model(model, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name):
        load_model(tmp_path)


def test_no_such_model(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no model at"):
        load_model(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(DataError, match=r"config\.json is missing"):
        load_model(tmp_path)
    for odd in (None, 3, ""):
        with pytest.raises(ConfigError, match="a model is 'default'"):
            load_model(odd)
    monkeypatch.setattr(store, "SHIPPED", tmp_path)
    with pytest.raises(DataError, match="ships no model"):
        load_model("default")


@pytest.mark.parametrize(
    "strangers",
    [
        {"README.md": "somebody's own"},
        {"config.json": '{"my": "settings"}', "notes.txt": ""},
        {"config.json": '{"model_type": "clip"}', "model.safetensors": "of another library"},
        {"config.json": "[]", "model.safetensors": ""},
        {"vocabulary.txt": "dog\t7\n"},
        {"phrase_loc.json": '{"tower": "."}'},
    ],
)
def test_files_that_are_no_models_stay(strangers, model, tmp_path):
    for name, content in strangers.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(
        DataError, match="is not of an earlier model and would be replaced; choose another place"
    ):
        save_model(model, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == strangers


def test_a_save_that_was_killed_is_made_again(model, tmp_path):
    save_model(model, tmp_path)
    (tmp_path / "config.json").unlink()
    load_model(save_model(model, tmp_path))


def test_weights_of_another_library_alone_stay(model, tmp_path):
    save_file({"linear.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"holds a model\.safetensors that is not of an earlier model"):
        save_model(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_failed_write_leaves_the_old_model(model, tmp_path, monkeypatch):
    save_model(model, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(DataError, match="No space left"):
        save_model(model, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_weight_that_is_not_finite_is_refused(model, tmp_path):
    with torch.no_grad():
        model.head.project.weight[0, 0] = 1e6
    with pytest.raises(DataError, match=r"head\.project\.weight"):
        save_model(model, tmp_path)


def test_loading_imports_nothing_slow(model, tmp_path):
    save_model(model, tmp_path)
    code = (
        "import sys; from phrase_loc.models.store import load_model; load_model(sys.argv[1]); "
        "slow = {'torchvision', 'timm', 'transformers', 'nltk', 'pandas', 'sklearn', 'scipy', 'matplotlib', "
        "'huggingface_hub', 'torch._dynamo', 'sympy', 'onnx', 'onnxruntime'}; "
        "print(sorted(slow & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"


class TestHub:
    """A model of a hub; the network is never asked."""

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        pytest.importorskip("huggingface_hub")

    def test_a_downloaded_folder_is_loaded(self, model, tmp_path, monkeypatch):
        import huggingface_hub as hub

        save_model(model, tmp_path)
        asked = []
        monkeypatch.setattr(
            hub, "snapshot_download", lambda name, **options: asked.append(name) or str(tmp_path)
        )
        assert load_model("somebody/phrase-model").extra == model.extra
        assert set(asked) == {"somebody/phrase-model"}

    def test_no_network_is_one_sentence(self, monkeypatch):
        import huggingface_hub as hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        def no_network(name, **options):
            raise LocalEntryNotFoundError("no network")

        monkeypatch.setattr(hub, "snapshot_download", no_network)
        with pytest.raises(DataError, match="check the name and the network"):
            load_model("somebody/phrase-model")
