"""Whatever the network, its dtype, its threads: values as they were, nothing changed, nothing NaN."""

import copy
import re
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.attention import METHODS, contrastive_mwp, mwp
from phrase_loc.attention.excitation import RULES
from phrase_loc.attention.tape import Tape, plain

# one of every family that differs in its operations
TORCHVISION = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5",
    "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_0",
]  # fmt: skip
BIAS_FREE_EXCITATION = {"alexnet", "densenet121", "googlenet", "regnet_y_400mf", "resnet18", "squeezenet1_0"}


class Everything(nn.Module):
    """Convolution, batch norm, in-place ReLU6, squeeze-excitation, residual, concat, pooling; (N, 16)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.SiLU(), nn.Conv2d(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.branch(x * self.gate(x))
        out += x
        up = F.interpolate(F.max_pool2d(out, 2), size=out.shape[2:])
        return F.relu(torch.cat([out, up], 1)).mean((2, 3))


@pytest.fixture
def net() -> nn.Module:
    return Everything().eval()


X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
UNITS = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))


def assert_bit_identical(net: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        alone = net(x)
        recorded = net(Tape(RULES).watch(x.clone()))
    assert torch.equal(plain(recorded), alone)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_values_are_bit_identical_and_mass_is_bounded(name):
    models = pytest.importorskip("torchvision.models")
    more = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    more |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    net = getattr(models, name)(weights=None, **more).eval()
    x = torch.rand(1, 3, 75 if name == "inception_v3" else 64, 75 if name == "inception_v3" else 64)
    assert_bit_identical(net, x)
    mass = mwp(net, x, torch.randn(2, 1000)).sum((2, 3))
    assert (mass <= 1 + 1e-5).all()
    if name in BIAS_FREE_EXCITATION:
        assert torch.allclose(mass, torch.ones(2, 1), atol=1e-4)


#: deeper or wider than one beside them, of the same operations
TWINS = re.compile(r"vgg1[369]|resnet(34|101)|wide_|efficientnet_lite[12]|mobilenet_v3_large")


def test_every_kind_of_backbone_offered_keeps_its_values():
    backbones = pytest.importorskip("phrase_loc.models.backbones")
    for name in filter(lambda name: not TWINS.match(name), backbones.BACKBONES):
        trunk = backbones.build(name, weights=None).eval()
        side = 224 if name.endswith("_fc") else 64
        assert_bit_identical(trunk, torch.rand(1, 3, side, side))


def test_values_of_everything_are_bit_identical(net):
    assert_bit_identical(net, X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_low_precision_networks_never_give_nan(net, dtype, name):
    if name == "cam":
        pytest.skip("this network has no last average over locations under a linear layer alone")
    exact = METHODS[name](net, X, UNITS)
    low = METHODS[name](copy.deepcopy(net).to(dtype), X.to(dtype), UNITS.to(dtype))
    assert low.dtype == torch.float32
    assert torch.isfinite(low).all()
    # Not the largest difference: a max pool that decides a tie the other way moves a gradient elsewhere.
    assert F.cosine_similarity(low.flatten(), exact.flatten(), dim=0) > 0.9


def test_autocast_and_inference_mode_change_nothing(net):
    plain = contrastive_mwp(net, X, UNITS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_mwp(net, X, UNITS), plain)
    with torch.inference_mode():
        maps = contrastive_mwp(net, X.clone(), UNITS)
        assert torch.equal(maps, plain)
    assert not maps.is_inference()  # usable in training afterwards
    assert type(maps) is Tensor
    with torch.inference_mode():
        for name, method in METHODS.items():
            if name != "cam":
                assert torch.isfinite(method(net, X.clone(), UNITS)).all()


def test_a_network_that_casts_by_itself_stays_exact(net):
    def casting(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x.bfloat16().float())

    assert torch.allclose(mwp(casting, X.bfloat16().float(), UNITS), mwp(net, X.bfloat16().float(), UNITS))


def test_dead_and_tiny_activations_give_zero_not_nan(net):
    assert torch.equal(mwp(net, torch.zeros_like(X), UNITS), torch.zeros(5, 2, 16, 16))
    for scale in (1e-30, 1e-38, 1e30):
        assert torch.isfinite(contrastive_mwp(net, X * scale, UNITS)).all()
    spread = torch.where(torch.rand_like(X) > 0.5, X * 1e-38, 0)
    huge = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        huge[0].weight.mul_(1e6)
    assert torch.isfinite(mwp(huge, spread, UNITS)).all()


def test_nothing_is_left_behind(net):
    net.train(False)
    for p in net.parameters():
        p.grad = None
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, units = X.clone().requires_grad_(), UNITS.clone().requires_grad_()
    conv = F.conv2d
    for name, method in METHODS.items():
        if name != "cam":
            assert not method(net, x, units).requires_grad
    with pytest.raises(NotImplementedError):
        mwp(lambda x: torch.softmax(net(x), 1), x, units)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert x.grad is None
    assert torch.equal(x, X)
    assert F.conv2d is conv
    assert not any(m._forward_hooks or m._backward_hooks for m in net.modules())


def test_in_place_functions_do_not_touch_the_callers_tensor():
    x = X.clone() - 0.5
    before = x.clone()
    maps = mwp(lambda x: F.relu_(x).add_(1).mean((2, 3)), x, torch.ones(1, 3))
    assert torch.equal(x, before)
    assert torch.isfinite(maps).all()


def test_threads_share_a_model_with_training_beside(net):
    expected = {name: METHODS[name](net, X, UNITS) for name in ("mwp", "contrastive_mwp", "guided_backprop")}
    (slope,) = torch.autograd.grad(net(X.requires_grad_()).sum(), X)
    X.requires_grad_(False)
    wrong: list[str] = []

    def attend(name: str) -> None:
        for _ in range(5):
            if not torch.allclose(METHODS[name](net, X, UNITS), expected[name], atol=1e-7):
                wrong.append(name)

    def train() -> None:
        for _ in range(15):
            x = X.clone().requires_grad_()
            if not torch.allclose(torch.autograd.grad(net(x).sum(), x)[0], slope, atol=1e-7):
                wrong.append("gradient")

    threads = [threading.Thread(target=attend, args=(name,)) for name in expected]
    threads.append(threading.Thread(target=train))
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
