"""Convolutional networks of transformers, made on the spot and read back from a folder, without a network."""

import json

import pytest
import torch

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.backbones import Preprocessing, between, build
from phrase_loc.models.build import create, fold_batch_norm
from phrase_loc.text.vocabulary import Vocabulary

HALF, QUARTER = (0.5,) * 3, (0.25,) * 3
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def nets():
    from transformers import ConvNextConfig, ConvNextModel, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    resnet = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    )
    convnext = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return {"resnet": ResNetModel(resnet).eval(), "convnext": ConvNextModel(convnext).eval()}


@pytest.mark.parametrize("kind", ["resnet", "convnext"])
def test_a_saved_folder_is_a_trunk(kind, nets, tmp_path):
    nets[kind].save_pretrained(tmp_path)
    trunk = build(f"transformers:{tmp_path}", weights="imagenet")
    assert [n for n, _ in trunk.named_children()] == ["stem", "stage1", "stage2", "stage3", "stage4"]
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = nets[kind](image).last_hidden_state
        assert torch.equal(trunk(image), expected)
        below, above = between(trunk, None, "stage2"), between(trunk, "stage2", None)
        assert torch.equal(above(below(image)), expected)
        folded = fold_batch_norm(trunk)
        assert torch.allclose(folded(image), expected, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())


def test_weights_from_a_file_of_the_folder(nets, tmp_path):
    nets["resnet"].save_pretrained(tmp_path)
    name = f"transformers:{tmp_path}"
    random = build(name)
    filled = build(name, weights=tmp_path / "model.safetensors")
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(filled(image), nets["resnet"](image).last_hidden_state)
        assert not torch.equal(random(image), filled(image))


def test_other_networks_and_missing_folders_are_one_sentence(tmp_path):
    from transformers import BertConfig

    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model_type 'bert'"):
        build(f"transformers:{tmp_path}")
    with pytest.raises(DataError, match="cannot be loaded"):
        build(f"transformers:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    "facts, expected",
    [
        ({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 64}}, (HALF, QUARTER, 64)),
        ({"size": {"height": 96, "width": 96}}, (Preprocessing().mean, Preprocessing().std, 96)),
        (None, (Preprocessing().mean, Preprocessing().std, 224)),
    ],
)  # fmt: skip
def test_a_trunk_takes_the_images_that_its_folder_describes(facts, expected, nets, tmp_path):
    nets["resnet"].save_pretrained(tmp_path)
    if facts:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(facts))
    words = Vocabulary(("dog", "cat"), (2, 1))
    model = create(words, torch.zeros(2, 4), backbone=f"transformers:{tmp_path}", weights=None)
    mean, std, size = expected
    assert model.config.mean == pytest.approx([255 * x for x in mean])
    assert model.config.std == pytest.approx([255 * x for x in std])
    assert model.config.image_size == size
