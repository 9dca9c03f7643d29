"""A network asked by the name of a layer: the answer of the network cut by hand, and nothing left behind."""

import threading

import pytest
import torch
from torch import nn

from phrase_loc import explain, overlay
from phrase_loc.attention import METHODS
from phrase_loc.errors import ConfigError

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = [3, 7, 281]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = pytest.importorskip("torchvision.models").resnet18(weights=None).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*zero everywhere")
def test_it_is_the_network_cut_by_hand(net, method):
    below = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2)
    above = nn.Sequential(net.layer3, net.layer4, net.avgpool, nn.Flatten())
    torch.manual_seed(1)  # of the masks of rise
    expected = METHODS[method](above, below(X).detach(), net.fc.weight[CLASSES].detach())
    torch.manual_seed(1)
    found = explain(net, X, CLASSES, "layer2", method=method)
    assert found.shape == (3, 2, 4, 4)
    assert expected.max() > 0
    assert torch.allclose(found, expected, rtol=0, atol=1e-6 * float(expected.max()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_one_image_one_class_and_rows_of_the_head(net):
    maps = explain(net, X, CLASSES, "layer2")
    assert torch.allclose(explain(net, X[1], 7, "layer2"), maps[1:2, 1:2], atol=1e-6)
    assert torch.equal(explain(net, X, net.fc.weight[CLASSES], "layer2", head="fc"), maps)


def test_threads_share_a_network(net):
    alone = [explain(net, X[:1], 3, "layer2"), explain(net, X[1:], 7, "layer3")]
    found = [None, None]

    def ask(place, *asked):
        found[place] = explain(net, *asked)

    asked = [(0, X[:1], 3, "layer2"), (1, X[1:], 7, "layer3")]
    threads = [threading.Thread(target=ask, args=one) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(alone, found, strict=True))


@pytest.mark.parametrize(
    "library, name, layer",
    [
        ("torchvision", "squeezenet1_1", "features.7"),  # ends in a 1x1 convolution
        ("timm", "vit_tiny_patch16_224", "blocks.8"),
        ("timm", "mobilenetv3_small_050", "blocks.4"),
    ],
)
def test_networks_of_libraries(library, name, layer):
    torch.manual_seed(0)
    if library == "timm":
        net = pytest.importorskip("timm").create_model(name).eval()
    else:
        net = getattr(pytest.importorskip("torchvision.models"), name)(weights=None).eval()
    last = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    nn.init.normal_(last.weight)  # of zeros in some
    maps = explain(net, torch.rand(1, 3, 224, 224), [5], layer, method="mwp", signed="contributions")
    assert maps.shape[:2] == (1, 1)
    assert maps.max() > 0


def test_networks_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], num_labels=9
    )
    net = transformers.ResNetForImageClassification(config).eval()
    assert explain(net, X, [5, 7], "resnet.encoder.stages.2", method="mwp").shape == (2, 2, 2, 2)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"layer": "nope"}, "no layer 'nope'; choose from conv1, bn1"),
        ({"layer": "layer3.9"}, "choose from layer3.0, layer3.1, or one within"),
        ({"layer": "layer3.0.relu"}, "runs 2 times"),
        ({"layer": "fc"}, "gives no"),
        ({"head": "avgpool"}, "name it as head="),
        ({"classes": [1000]}, "numbers from 0 to 999, rows of the head, got 1000"),
        ({"classes": "cat"}, "rows of the head, got 'cat'"),
        ({"images": X[:0]}, "one at least"),
        ({"images": X.byte()}, "must be floating"),
        ({"images": "photo.jpg"}, "must be a tensor .* got a str"),
        ({"images": X.double()}, r"does not take images \(2, 3, 32, 32\) of torch.float64"),
        ({"images": X[:, :2]}, r"does not take images \(2, 2, 32, 32\)"),
        ({"images": X / 0}, "NaN or infinite"),
        ({"layer": None}, "a layer is the name of one module"),
        ({"layer": ["layer3"]}, "a layer is the name of one module"),
        ({"head": ["fc"]}, "a head is the name of one module"),
        ({"model": "resnet50"}, "expected a network, a torch.nn.Module, got str"),
        ({"method": "x"}, "choose from"),
        ({"dual": "mean"}, r"a dual must be \(1, 512\), as a unit is, got mean"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(net, changes, said):
    with pytest.raises(ConfigError, match=said):
        explain(**{"model": net, "images": X, "classes": 1, "layer": "layer3"} | changes)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_network_in_training_is_refused(net):
    net.train()
    with pytest.raises(ConfigError, match="eval"):
        explain(net, X, 1, "layer3")
    net.eval()


def test_a_plane_with_its_channels_last_is_refused():
    swin = pytest.importorskip("torchvision.models").swin_t(weights=None).eval()
    images = torch.rand(1, 3, 64, 96)
    with pytest.raises(
        ConfigError, match=r"'features.5' gives \(1, 4, 6, 384\), which look like channels last"
    ):
        explain(swin, images, 1, "features.5")
    assert explain(swin, images, 1, "permute").shape == (1, 1, 2, 3)


def test_an_empty_map_is_warned_of(net):
    with pytest.warns(
        RuntimeWarning, match="1 of 2 maps are zero everywhere, the first of class 0 in image 0"
    ):
        explain(net, X[:1], torch.stack([-torch.ones(512), net.fc.weight[3]]), "layer2")


def test_overlay_lays_one_map_over_a_photograph(drawn_image):
    assert overlay(drawn_image, torch.rand(1, 1, 4, 4)).size == drawn_image.size
    with pytest.raises(ConfigError, match=r"got the shape \(2, 4, 4\)"):
        overlay(drawn_image, torch.rand(2, 4, 4))
    with pytest.raises(ConfigError, match=r"got a list; of an answer give its attention"):
        overlay(drawn_image, [torch.rand(4, 4)])
    heat = torch.rand(4, 4)  # an exported model's is an array
    assert overlay(drawn_image, heat.numpy()).tobytes() == overlay(drawn_image, heat).tobytes()
