"""Parity with published maps: TorchRay's, stored beside the checkout, and a small case of our own.

TorchRay's maps were made by its own code on torchvision networks (see `parity/README.md` of the shared data).
ResNet-50 there splits residual sums in proportion, signed: our rule 'proportional'.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from phrase_loc.attention import KeptPositive, contrastive_mwp, excitation_backprop, mwp
from phrase_loc.attention.excitation import contrasts, wins

# network: (MODE of the reference, residual rule)
NETS = {
    "vgg16": ("plain", "positive"),
    "googlenet": ("plain", "positive"),
    "resnet50": ("skip", "proportional"),
}
PAPER_LAYER = {"vgg16": "features.23", "googlenet": "maxpool2", "resnet50": "layer3"}
ALL_LAYERS = {  # from the image up
    "vgg16": ["features.23"],  # 124 million weights make this the dearest case
    "googlenet": ["maxpool2", "maxpool3", "inception5b"],
    "resnet50": ["layer2", "layer3", "layer4"],
}
CASES = [
    (net, v)
    for net in NETS
    for v in ("init", "perturbed", "neggamma", "spiky")
    # VGG-16 has no norms, and of it the perturbed is the initial network with biases
    if v not in ("init", "neggamma") or net != "vgg16"
]


@pytest.fixture(scope="module")
def parity(shared_dir: Path) -> Path:
    folder = shared_dir / "parity"
    if not (folder / "rebuild.py").is_file():
        pytest.skip(f"no reference maps at {folder}")
    pytest.importorskip("torchvision")
    return folder


@pytest.fixture(scope="module")
def rebuild(parity: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_rebuild", parity / "rebuild.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def chain_of(model: nn.Module, net: str) -> list[tuple[str, nn.Module]]:
    """The network as named steps; the last is the classifier, whose rows are the units."""
    flatten = ("flatten", nn.Flatten())
    if net == "vgg16":
        features = [(f"features.{i}", m) for i, m in enumerate(model.features)]
        hidden = [(f"classifier.{i}", m) for i, m in enumerate(model.classifier[:6])]
        return [*features, ("avgpool", model.avgpool), flatten, *hidden, ("top", model.classifier[6])]
    steps = [(n, m) for n, m in model.named_children() if n not in ("fc", "aux1", "aux2")]
    return [*steps, flatten, ("top", model.fc)]


def folded(model: nn.Module) -> nn.Module:
    """Batch norms folded into the convolution before them, by torch itself."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for parent in model.modules():
        last = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(last and last[1], nn.Conv2d):
                setattr(parent, last[0], fuse_conv_bn_eval(last[1], child))
                setattr(parent, name, nn.Identity())
            last = (name, getattr(parent, name))
    return model


def assert_drawn_as_the_reference(stored, net: str, variant: str, rebuild: ModuleType) -> None:
    """Skips where this torch draws other weights: asked when a map differs, as telling takes longer than the map."""
    model, weights = build(stored, net, variant, rebuild), json.loads(str(stored["meta"]))["weights"]
    if rebuild.digest(model) != weights[variant]:
        # torch.exp, which makes the heavy tails, differs in the last bit between processors: let the logits tell.
        with torch.no_grad():
            logits = model(rebuild.inputs())
        if deviation(logits, stored[f"{variant}/logits"]) > 1e-4:
            pytest.skip("this torch draws other random weights than the reference was made with")


def build(stored, net: str, variant: str, rebuild: ModuleType) -> nn.Module:
    bn = {k.split("/", 2)[2]: stored[k] for k in stored.files if k.startswith(f"bn/{variant}/")}
    return rebuild.rebuild(net, variant, bn or None)


def deviation(ours: Tensor, theirs: np.ndarray) -> float:
    theirs = torch.from_numpy(theirs).to(ours)
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("net, variant", CASES)
def test_maps_equal_torchrays(parity, rebuild, net, variant):
    stored = np.load(parity / f"{net}.npz")
    try:
        compare(stored, build(stored, net, variant, rebuild).double(), net, variant, rebuild)
    except AssertionError:
        assert_drawn_as_the_reference(stored, net, variant, rebuild)
        raise


def compare(stored, model: nn.Module, net: str, variant: str, rebuild: ModuleType) -> None:
    mode, residual = NETS[net]
    model, x = model if variant == "neggamma" else folded(model), rebuild.inputs().double()
    # The heavy-tailed variant is stored in float32 only: the bounds are TorchRay's own distance from float64.
    dtype, bounds = ("f32", (5e-3, 3e-2, 5e-3)) if variant == "spiky" else ("f64", (1e-6,) * 3)
    start, steps = 0, chain_of(model, net)
    for layer in ALL_LAYERS[net] if variant == "perturbed" else [PAPER_LAYER[net]]:
        at = [n for n, _ in steps].index(layer) + 1
        with torch.no_grad():
            x = nn.Sequential(*(m for _, m in steps[start:at]))(x)
        start, above = at, nn.Sequential(*(m for _, m in steps[at:-1]))
        maps = three_questions(above, x, steps[-1][1].weight.detach(), residual, rebuild)
        for ours, name, bound in zip(maps, ("mwp", "cmwp_signed", "mwp_dense"), bounds, strict=True):
            if (key := f"{variant}/{mode}/{layer}/{dtype}/{name}") in stored:
                assert deviation(ours[:, None], stored[key]) < bound, key
        if layer == PAPER_LAYER[net]:
            at_paper = above, x[:1].float()
    if variant != "neggamma":
        model.float()
        sixteen_in_float32(stored, *at_paper, steps[-1][1].weight.detach(), net, variant, rebuild)


def three_questions(above: nn.Module, x: Tensor, top: Tensor, residual: str, rebuild: ModuleType) -> Tensor:
    """MWP, signed contrast (unit k of image k), MWP under a prior over all units: (3, N, h, w), in one pass."""
    each = torch.eye(2, dtype=x.dtype).view(2, 2, 1)
    units, through = top[rebuild.UNITS], top.clamp(min=0)
    dense = rebuild.dense_target().to(x)

    def seed(h: Tensor) -> Tensor:
        seen = h.clamp(min=0)
        all_units = seen * ((dense / (seen @ through.T)) @ through)  # handed down as within a linear layer
        return torch.stack([(wins(h, units) * each).sum(0), (contrasts(h, units) * each).sum(0), all_units])

    return excitation_backprop(above, x, seed, residual=residual).sum(2)


def sixteen_in_float32(
    stored, above: nn.Module, x: Tensor, top: Tensor, net: str, variant: str, rebuild: ModuleType
) -> None:
    mode, residual = NETS[net]
    units, key = top[rebuild.UNITS16], f"{variant}/{mode}/{PAPER_LAYER[net]}/f32"
    kept = KeptPositive(above)
    assert deviation(mwp(kept, x, units, residual=residual), stored[f"{key}/mwp_u16"]) < 5e-3
    assert deviation(contrastive_mwp(kept, x, units, residual=residual), stored[f"{key}/cmwp_u16"]) < 3e-2
    if variant == "spiky":  # units differ clearly: a wrong one would be seen
        wrong = mwp(kept, x, units.roll(1, 0), residual=residual)
        assert deviation(wrong, stored[f"{key}/mwp_u16"]) > 1e-2


def test_golden_case():
    """A net small enough to work out by hand: the literals are fractions found with pencil and paper.

    x = (2, 1 | 1, 3) over two places; a 1x1 conv to a = x0 + x1, b = 2 x0 - x1; ReLU; mean; unit (1, 1), and
    (1, -1) for the contrast. Place 0: a = 3, b = 3; place 1: a = 4, b = -1 -> 0.
    """
    x = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64).T.reshape(1, 2, 1, 2)
    conv = torch.tensor([[1.0, 1.0], [2.0, -1.0]], dtype=torch.float64).view(2, 2, 1, 1)

    def net(x: Tensor) -> Tensor:
        return torch.conv2d(x, conv).relu().mean((2, 3))

    ask = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    p = excitation_backprop(net, x, lambda h: wins(h, ask[:1]))[0, 0, :, 0]
    # feature a holds 7/10 of the evidence, 3/7 of it at place 0; all of b (3/10) is there and comes from x0
    a0, a1, b0 = 7 / 10 * 3 / 7, 7 / 10 * 4 / 7, 3 / 10
    assert torch.allclose(p[:, 0], torch.tensor([a0 * 2 / 3 + b0, a0 / 3], dtype=torch.float64), atol=1e-15)
    assert torch.allclose(p[:, 1], torch.tensor([a1 / 4, a1 * 3 / 4], dtype=torch.float64), atol=1e-15)
    contrast = contrastive_mwp(net, x, ask[1:])[0, 0, 0]
    assert torch.allclose(contrast, torch.tensor([0.0, 4 / 7], dtype=torch.float64), atol=1e-15)
