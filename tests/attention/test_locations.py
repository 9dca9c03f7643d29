"""Networks that score locations before they pool: the closed form, every method alike."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.attention import METHODS, contrastive_mwp, maps_at_depths, mwp
from phrase_loc.attention.excitation import contrastive_map, winning_map


def located() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(5, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU()).double()


X = torch.rand(2, 5, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
UNITS = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.2, 0.3, 0.5]], dtype=torch.float64)


@pytest.mark.parametrize("name", METHODS)
def test_features_with_locations_are_asked_as_if_averaged(name):
    head = located()
    pooled = METHODS[name](lambda x: F.adaptive_avg_pool2d(head(x), 1).flatten(1), X, UNITS)
    assert torch.allclose(METHODS[name](head, X, UNITS), pooled, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_weights_of_one_give_the_units_own_maps(name):
    maps = METHODS[name](located(), X, UNITS, weights=WEIGHTS)
    assert maps.shape == (2, 2, 6, 7)
    assert (maps >= 0).all()
    single = METHODS[name](located(), X, UNITS, weights=torch.eye(4))
    assert torch.allclose(single, METHODS[name](located(), X, UNITS), atol=1e-12)


def test_the_seed_over_locations_is_worked_out_from_the_definition():
    # e+ = h * max(u, 0), normalised over features and locations
    h = located()(X).detach()
    e = h * UNITS.clamp(min=0)[:, None, :, None, None]
    e = (e / e.sum((2, 3, 4), keepdim=True)).nan_to_num()  # a unit without a feature has no winner
    d = h * (-UNITS).clamp(min=0)[:, None, :, None, None]
    d = (d / d.sum((2, 3, 4), keepdim=True)).nan_to_num()
    maps = contrastive_mwp(lambda x: x, h, UNITS)
    assert torch.allclose(maps, (e - d).sum(2).clamp(min=0), atol=1e-14)


@pytest.mark.parametrize(
    "layers",
    [(), (5, 6), (5, 9, 6)],
    ids=["identity", "one 1x1 conv", "two 1x1 convs"],
)
def test_closed_form_equals_the_general_pass(layers):
    # A further ReLU stands in the way of the shortcut, and changes no value that is not negative. Without biases
    # nothing fires that was not excited, so no mass is lost on the way down.
    torch.manual_seed(3)
    convs = [nn.Conv2d(a, b, 1, bias=False) for a, b in itertools.pairwise(layers)]
    head = nn.Sequential(*(part for conv in convs for part in (conv, nn.ReLU()))).double()
    units = UNITS if layers else UNITS[:, :5]
    h = head(X).detach()
    for method, closed in ((mwp, winning_map), (contrastive_mwp, contrastive_map)):
        general = method(lambda x: F.relu(head(x)), X, units)
        assert torch.allclose(general, closed(h, units).clamp(min=0), atol=1e-12), method
    if not layers:
        shortcut = contrastive_mwp(head, X, units)
        assert torch.allclose(shortcut, contrastive_map(h, units).clamp(min=0), atol=1e-15)


def test_closed_form_exports():
    class Map(nn.Module):
        def forward(self, h: Tensor, units: Tensor) -> Tensor:
            return contrastive_map(h, units).clamp(min=0)

    h, units = X.float(), UNITS[:, :5].float()
    words = torch.export.Dim("words", min=2, max=512)
    exported = torch.export.export(Map(), (h, units), dynamic_shapes=({}, {0: words})).module()
    for k in (2, 3, 4):
        assert torch.allclose(exported(h, units[:k]), contrastive_mwp(lambda x: x, h, units[:k]), atol=1e-7)


def test_one_place_is_found_where_the_evidence_is():
    x = torch.full((1, 2, 5, 5), 0.1)
    x[0, 0, 1, 3] = 5  # the first feature fires here, the second there
    x[0, 1, 4, 0] = 5
    for name, method in METHODS.items():
        if name in ("gradient", "guided_backprop", "deconvnet"):
            continue  # of a linear network the derivative is the same everywhere
        maps = method(lambda x: x.mean((2, 3)), x, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        assert maps[0, 0].argmax() == 1 * 5 + 3, name
        assert maps[1, 0].argmax() == 4 * 5 + 0, name


@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 4), (0, 2), (0, 3, 4)])
@pytest.mark.parametrize("method", [contrastive_mwp, mwp, METHODS["grad_cam"]])
def test_maps_at_several_depths_are_those_of_a_pass_to_each(cuts, method):
    net = located()
    parts = [net[a:b] for a, b in itertools.pairwise((*cuts, len(net)))]
    together = maps_at_depths(parts, X, UNITS, method=method, weights=WEIGHTS)
    assert len(together) == len(cuts)
    x = X
    for number, found in enumerate(together):
        above = nn.Sequential(*parts[number:])
        alone = method(above, x, UNITS, weights=WEIGHTS)
        assert torch.allclose(found, alone, atol=1e-14)
        x = parts[number](x).detach()
