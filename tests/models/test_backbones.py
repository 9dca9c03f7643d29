"""Trunks are chains of named stages that compute what their source computes."""

import pytest
import torch
from torch import nn

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.backbones import BACKBONES, between, build, preprocessing, split, stage_names
from phrase_loc.models.build import NORMS, fold_batch_norm
from phrase_loc.models.library_nets import CUTS

PREACTIVATED = {"densenet121"}  # norms before a convolution cannot be folded
FAMILIES = ["resnet18", "googlenet", "densenet121", "mobilenet_v3_small", "shufflenet_v2_x1_0"]


def stir(net: nn.Module) -> nn.Module:
    """Gives every batch norm statistics and scales, some negative, that folding must respect."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.weight.data[::7] *= -1
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


#: one of each way to cut
WAYS = ["efficientnet_lite0", "tiny", "vgg11_bn", "resnet18", *(set(BACKBONES) & set(CUTS))]
WAYS += [
    "squeezenet1_1",
    "mnasnet1_0",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "densenet121",
    "convnext_tiny",
]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_a_chain_whose_norms_fold(name):
    device = "cpu" if name.startswith("regnet") else "meta"  # regnet computes its widths with tensors
    with torch.device(device):
        trunk = build(name)
        assert not trunk.training
        side = 224 if name.endswith("_fc") else 64
        assert trunk(torch.rand(1, 3, side, side)).ndim == 4
    assert len(stage_names(trunk)) >= 4
    kept = [m for m in fold_batch_norm(trunk).modules() if isinstance(m, NORMS)]
    assert not kept or name in PREACTIVATED


@pytest.mark.parametrize("name", sorted(WAYS))
def test_folding_and_cutting_do_not_change_the_function(name):
    torch.manual_seed(0)
    trunk = stir(build(name))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = trunk(image)
        folded = fold_batch_norm(trunk)
        assert torch.allclose(folded(image), expected, atol=1e-5 * float(expected.abs().max()))
        below, above = split(trunk, stage_names(trunk)[1])
        assert torch.equal(above(below(image)), expected)


def test_stages_of_resnet50_are_those_of_the_design():
    trunk = build("resnet50")
    assert [n for n, _ in trunk.named_children()] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    below, above = split(trunk, "layer3")
    with torch.no_grad():
        activations = below(torch.rand(2, 3, 224, 224))
        assert activations.shape == (2, 1024, 14, 14)
        assert above(activations).shape == (2, 2048, 7, 7)


@pytest.mark.parametrize(
    "name,stage,layer,cells",
    [("vgg16", "pool4", "features.23", 14), ("googlenet", "pool2", "maxpool2", 28)],
)
def test_the_papers_cuts(name, stage, layer, cells, tmp_path):
    from torchvision import models

    options = {"aux_logits": False} if name == "googlenet" else {}
    whole = getattr(models, name)(weights=None, init_weights=False, **options).eval()
    if name == "vgg16":
        whole.classifier = nn.Identity()  # nine tenths of its weights, which the trunk leaves
    seen = {}
    whole.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.update(map=output))
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    trunk = build(name, weights=tmp_path / "w.pth")
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        whole(image)
        below = between(trunk, None, stage)
        assert torch.equal(below(image), seen["map"])
    assert seen["map"].shape[-1] == cells


def test_the_last_stage_leaves_the_identity_above():
    trunk = build("tiny")
    below, above = split(trunk, "stage3")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(above(below(x)), below(x))


def test_folding_leaves_the_original_alone():
    trunk = stir(build("tiny"))
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    fold_batch_norm(trunk)
    assert all(torch.equal(v, before[k]) for k, v in trunk.state_dict().items())


def test_folding_spares_a_convolution_that_something_else_reads():
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return y + self.norm(y)

    net = stir(Forked().eval())
    folded = fold_batch_norm(net)
    assert isinstance(folded.norm, nn.BatchNorm2d)
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(folded(x), net(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_of_a_file_by_either_names(name, tmp_path):
    from torchvision import models

    torch.manual_seed(1)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    whole = stir(getattr(models, name)(weights=None, **options).eval())
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "w.pth")
    trunk = build(name, weights=tmp_path / "w.pth")
    torch.save(trunk.state_dict(), tmp_path / "own.pth")
    again = build(name, weights=tmp_path / "own.pth")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(trunk(image), again(image))
    # both list convolutions from the image up
    theirs, ours = ([v for v in net.state_dict().values() if v.ndim == 4] for net in (whole, trunk))
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_published_names_of_densenet(tmp_path):
    torch.manual_seed(0)
    source = build("densenet121").state_dict()
    published = {
        f"features.{key.split('.', 1)[1]}".replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): value
        for key, value in source.items()
    }
    published = {k.replace("norm2.", "norm.2.").replace("conv2.", "conv.2."): v for k, v in published.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, tmp_path / "w.pth")
    read = build("densenet121", weights=tmp_path / "w.pth").state_dict()
    assert all(torch.equal(read[key], value) for key, value in source.items())


def test_wrong_names_are_told_the_right_ones():
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        build("resnet5o")
    with pytest.raises(ConfigError, match="layer1, layer2, layer3, layer4, stem"):
        between(build("resnet18"), None, "layer5")


def test_bad_weights_files_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        build("tiny", weights=tmp_path / "none.pth")
    torch.save(build("tiny").state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:3000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 50)
    for cut in ("cut.pth", "cut.safetensors"):
        with pytest.raises(DataError, match="cannot be read"):
            build("tiny", weights=tmp_path / cut)
    with pytest.raises(DataError, match="lacks"):
        build("resnet18", weights=tmp_path / "whole.pth")
    wrong = build("tiny").state_dict() | {"stem.conv.weight": torch.zeros(2, 3, 3, 3)}
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(DataError, match=r"stem.conv.weight of shape \(2, 3, 3, 3\)"):
        build("tiny", weights=tmp_path / "wrong.pth")


def test_no_code_of_a_weights_file_runs(tmp_path):
    torch.save({"weight": print}, tmp_path / "code.pth")
    with pytest.raises(DataError, match="cannot be read"):
        build("tiny", weights=tmp_path / "code.pth")


def test_preprocessing_is_stated_for_every_backbone():
    for name in BACKBONES:
        facts = preprocessing(name)
        assert len(facts.mean) == len(facts.std) == 3
        assert facts.size > 0
    lite = preprocessing("efficientnet_lite0")
    assert (127 / 255 - lite.mean[0]) / lite.std[0] == pytest.approx(0)
    assert (255 / 255 - lite.mean[0]) / lite.std[0] == pytest.approx(1)
