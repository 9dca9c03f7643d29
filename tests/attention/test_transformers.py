"""Excitation backprop on transformers: attention, norms, gates and tokens, on networks made on the spot."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.attention import SIGNED, attn_lrp, contrastive_mwp, excitation_backprop, maps_at_depths, mwp
from phrase_loc.attention.baselines import Gates, derivative
from phrase_loc.attention.excitation import RULES, wins
from phrase_loc.attention.tape import Tape, plain
from phrase_loc.errors import ConfigError, RuleError
from phrase_loc.localizer import Inference


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ways_of_attention() -> dict:
    """One attention, (N, L, D) of four heads, in every spelling."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, batch_first=True).double().eval()
    weight, bias = module.in_proj_weight, module.in_proj_bias
    mask = torch.rand(5, 5) > 0.3
    mask.fill_diagonal_(True)

    def heads(x: Tensor) -> tuple[Tensor, ...]:
        return F.linear(x, weight, bias).unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4).unbind(0)

    def joined(o: Tensor) -> Tensor:
        return module.out_proj(o.transpose(1, 2).flatten(2))

    def by_matmul(x: Tensor) -> Tensor:
        q, k, v = heads(x)
        scores = (q @ k.transpose(-2, -1) * 2**-0.5).masked_fill(~mask, float("-inf"))
        return joined(F.dropout(scores.softmax(-1), 0.5, False) @ v)

    def by_einsum(x: Tensor) -> Tensor:
        q, k, v = heads(x)
        scores = torch.einsum("nhld,nhsd->nhls", q, k) / 2**0.5
        return joined(torch.einsum("nhls,nhsd->nhld", (scores + mask.double().log()).softmax(-1), v))

    return {
        "fused": lambda x: joined(F.scaled_dot_product_attention(*heads(x), attn_mask=mask)),
        "keywords": lambda x: joined(
            F.scaled_dot_product_attention(
                **dict(zip(("query", "key", "value"), heads(x), strict=True)), attn_mask=mask
            )
        ),
        "float mask": lambda x: joined(F.scaled_dot_product_attention(*heads(x), mask.double().log())),
        "matmul": by_matmul,
        "einsum": by_einsum,
        "module": lambda x: module(x, x, x, attn_mask=~mask, need_weights=False)[0],
        "module with weights": lambda x: module(x, x, x, attn_mask=~mask)[0],
    }


@pytest.mark.parametrize("signed", SIGNED)
def test_every_spelling_of_attention_has_the_same_winners(signed):
    x, units = randn(2, 5, 8), randn(3, 8, seed=1)
    found = {
        name: mwp(lambda x, net=net: net(x.mT).mean(1), x.mT, units, signed=signed)
        for name, net in ways_of_attention().items()
    }
    for name, maps in found.items():
        assert maps.shape == (3, 2, 5)
        assert torch.allclose(maps, found["fused"], atol=1e-12), name


def test_an_operation_on_the_way_of_winners_is_named_and_one_in_a_gate_needs_no_rule():
    x, units = randn(1, 4, 3), randn(1, 4)
    assert mwp(lambda x: (x * torch.cumsum(x, 1)).mean(2), x, units).isfinite().all()
    with pytest.raises(RuleError, match=r"cumsum.*rules="):  # which the command line tells in a sentence
        mwp(lambda x: torch.cumsum(x, 1).mean(2), x, units)
    with pytest.raises(NotImplementedError, match="softmax"):
        contrastive_mwp(lambda x: x.mean(2).softmax(1), x, units)


def test_by_contributions_what_made_a_unit_negative_explains_it():
    x, weight = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[1.0, 1.0, -1.0]])  # y = 1 - 2 - 3
    ones = lambda h: torch.ones(1, *h.shape)  # noqa: E731
    p = excitation_backprop(lambda x: F.linear(x, weight), x, ones, signed="contributions")
    assert torch.allclose(p[0, 0], torch.tensor([0, 0.4, 0.6]))
    p = excitation_backprop(lambda x: F.linear(x, -weight), x, ones, signed="contributions")
    assert torch.allclose(p[0, 0], torch.tensor([0, 0.4, 0.6]))
    p = excitation_backprop(lambda x: F.linear(x, weight), x, ones)
    assert torch.allclose(p[0, 0], torch.tensor([1.0, 0, 0]))


SLICES = {
    "class token": lambda x: x[:, 0],
    "registers cut off": lambda x: x[:, 3:],
    "a token and a range of channels": lambda x: x[:, 2, 1:5],
    "steps and a new axis": lambda x: x[:, ::2, None],
    "nothing and all": lambda x: torch.cat([x[:, :0], x[...]], 1),
    "one of q, k and v": lambda x: x.unflatten(2, (3, 2, 2)).permute(2, 0, 3, 1, 4).unbind(0)[2],
    "a chunk": lambda x: x.chunk(3, 2)[1],
    "chosen": lambda x: x[:, [0, 3]],
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_give_each_place_its_own_through_what_follows(name):
    x, cut, weight = randn(2, 5, 12), SLICES[name], randn(7, 12, seed=1)

    def net(x: Tensor) -> Tensor:  # a linear layer, a norm, a sum, then the slice
        return cut(F.layer_norm(F.linear(F.gelu(x @ weight.T), weight.T) + 3 * x, (12,)))

    won = randn(4, *net(x).shape, seed=2)
    rows = excitation_backprop(net, x, lambda h: won)
    whole = won.new_zeros(4, 2, 5, 12)
    for k in range(4):  # the derivative of the slice says where each winner came from
        leaf = x.clone().requires_grad_()
        whole[k] = torch.autograd.grad(cut(leaf), leaf, won[k])[0]
    uncut = lambda x: F.layer_norm(F.linear(F.gelu(x @ weight.T), weight.T) + 3 * x, (12,))  # noqa: E731
    assert torch.allclose(rows, excitation_backprop(uncut, x, lambda h: whole), atol=1e-12)


def test_an_unknown_rule_for_signed_activations_is_refused():
    x, units = randn(1, 4, 3), randn(1, 4)
    with pytest.raises(ConfigError, match=r"rule for signed activations.*clamp, contributions"):
        mwp(lambda x: x.mean(2), x, units, signed="both")
    with pytest.raises(ConfigError, match="rule for signed activations"):
        Inference.from_dict({"signed": "both"})


# --- whole towers, made on the spot -----------------------------------------------------------------------------

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PLANE = {"image_size": 32, "patch_size": 8}
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TRANSFORMERS = {
    "CLIPVision": {}, "SiglipVision": {}, "Siglip2Vision": {"num_patches": 16, "patch_size": 8}, "ViT": {},
    "Dinov2": {}, "Dinov2WithRegisters": {"use_swiglu_ffn": True}, "DINOv3ViT": {"use_gated_mlp": True},
}  # fmt: skip


class Pooled(nn.Module):
    """A transformers vision model as images -> features (N, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        if "Siglip2" in type(self.model).__name__:
            n = len(x)
            patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(n, 16, 192)
            shapes, seen = torch.tensor([[4, 4]] * n), torch.ones(n, 16, dtype=torch.long)
            return self.model(patches, pixel_attention_mask=seen, spatial_shapes=shapes).pooler_output
        found = self.model(pixel_values=x)
        return found.last_hidden_state[:, 0] if found.pooler_output is None else found.pooler_output


def tower(name: str) -> nn.Module:
    """A tiny network of a family, random weights, images (N, 3, 32, 32) -> (N, D)."""
    library, _, kind = name.partition(":")
    torch.manual_seed(0)
    if library in ("sdpa", "eager"):
        transformers = pytest.importorskip("transformers")
        plane = {} if kind == "Siglip2Vision" else PLANE
        config = getattr(transformers, f"{kind}Config")(**SIZES, **plane, **TRANSFORMERS[kind])
        config._attn_implementation = library
        return Pooled(getattr(transformers, f"{kind}Model")(config)).eval()
    if library == "timm":
        timm = pytest.importorskip("timm")
        if kind == "resnet_clip":
            from timm.models.byobnet import ByoBlockCfg

            blocks = [ByoBlockCfg(type="bottle", d=1, c=c, s=2, br=0.25) for c in (32, 64)]
            return timm.create_model(
                "resnet50_clip", blocks=blocks, stem_chs=(8, 8, 16), img_size=32, num_classes=8
            ).eval()
        heads = (
            {"embed_dim": 48, "num_heads": 3}
            if "eva" in kind or "dinov3" in kind
            else {"embed_dim": 32, "num_heads": 4}
        )
        return timm.create_model(kind, img_size=32, patch_size=8, depth=2, num_classes=8, **heads).eval()
    if library == "torchvision":
        models = pytest.importorskip("torchvision.models")
        net = models.VisionTransformer(32, 8, 2, 4, 32, 48)
        net.heads = nn.Identity()  # its weights start at 0
        return net.eval()
    model = pytest.importorskip("open_clip.model")
    pooling = (
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 4} if kind == "pool" else {}
    )
    shape = (
        {"layers": (1, 1, 1, 1), "width": 8}
        if kind == "resnet"
        else {"layers": 2, "width": 32, "patch_size": 8}
    )
    vision = model.CLIPVisionCfg(head_width=8, image_size=32, **shape, **pooling)
    text = model.CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
    return model.CLIP(16, vision, text, quick_gelu=kind != "vit").visual.eval()


TOWERS = [
    *(f"{way}:{kind}" for way in ("sdpa", "eager") for kind in TRANSFORMERS),
    *(f"timm:{kind}" for kind in (
        "vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "vit_base_patch16_clip_quickgelu_224",
        "vit_small_patch14_reg4_dinov2", "eva02_tiny_patch14_224", "deit3_small_patch16_224",
        "vit_small_patch16_dinov3", "resnet_clip",
    )),
    "open_clip:vit", "open_clip:quick", "open_clip:pool", "open_clip:resnet", "torchvision:vit",
]  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_towers_keep_their_values_to_the_bit_and_mass_is_bounded(name):
    net = tower(name)
    values = net(IMAGES).detach()  # with gradients: without them nn.MultiheadAttention takes another kernel
    with torch.no_grad():
        recorded = net(Tape(RULES).watch(IMAGES.clone()))
    assert torch.equal(plain(recorded), values)
    units = torch.randn(3, values.shape[1], generator=torch.Generator().manual_seed(1))
    for signed in SIGNED:
        maps = mwp(net, IMAGES, units, signed=signed)
        assert maps.shape == (3, 2, 32, 32)
        assert (maps >= -1e-7).all()
        mass = maps.sum((2, 3))
        assert (mass < 1 + 1e-5).all()
        assert mass.max() > 1e-6


class Blocks(nn.Module):
    """Pre-norm blocks without biases over tokens (N, C, L), one of each kind of attention, norm and gate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.module = nn.TransformerEncoderLayer(
            16, 4, 32, 0, "gelu", batch_first=True, norm_first=True, bias=False
        )
        self.qkv, self.out = nn.Linear(16, 48, bias=False), nn.Linear(16, 16, bias=False)
        self.gate, self.up, self.down = (
            nn.Linear(*size, bias=False) for size in ((16, 24), (16, 24), (24, 16))
        )
        self.norm, self.scale = nn.RMSNorm(16), nn.Parameter(torch.randn(16))

    def first(self, x: Tensor) -> Tensor:
        return self.module(x.mT).mT

    def second(self, x: Tensor) -> Tensor:
        x = x.mT
        q, k, v = (
            self.qkv(F.layer_norm(x, (16,))).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        )
        x = x + self.scale * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = self.norm(x)
        return (x + self.down(F.silu(self.gate(h)) * self.up(h))).mT

    def head(self, x: Tensor) -> Tensor:
        x = x.mT
        return x[:, 0] + x[:, 1:].mean(1)


def test_without_biases_contributions_lose_no_mass_at_any_block_and_clamp_adds_none():
    net, x, units = Blocks().double(), randn(2, 16, 7), randn(3, 16, seed=1)
    parts = [net.first, net.second, net.first, net.head]
    for maps in maps_at_depths(parts, x, units, method=mwp, signed="contributions"):
        assert torch.allclose(maps.sum(2), torch.ones(3, 2).double(), atol=1e-9)
    lost = [1 - maps.sum(2) for maps in maps_at_depths(parts, x, units, method=mwp)]
    assert all(
        (below >= above - 1e-12).all() for below, above in zip(lost, [*lost[1:], 0 * lost[0]], strict=True)
    )


@pytest.mark.parametrize("signed", SIGNED)
def test_sums_over_channels_made_on_the_way_are_those_of_the_whole(signed):
    net, x, units = Blocks().double(), randn(2, 16, 7), randn(3, 16, seed=1)
    above = lambda x: net.head(net.second(net.first(x)))  # noqa: E731
    whole = excitation_backprop(above, x, lambda h: wins(h, units, signed), signed=signed).sum(2)
    assert torch.allclose(mwp(above, x, units, signed=signed), whole, atol=1e-12)


@pytest.mark.parametrize("signed", SIGNED)
def test_many_units_and_images_in_one_pass_in_threads_are_those_of_each_alone(signed):
    net = tower("open_clip:vit")
    units = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    with ThreadPoolExecutor(4) as pool:
        ask = partial(contrastive_mwp, net, IMAGES, units, signed=signed)
        for maps in pool.map(lambda _: ask(), range(4)):
            for k in range(5):
                alone = contrastive_mwp(net, IMAGES[1:], units[k : k + 1], signed=signed)
                assert torch.allclose(maps[k, 1], alone[0, 0], atol=1e-6)


@pytest.mark.parametrize("signed", SIGNED)
@pytest.mark.parametrize(
    "name", ["open_clip:vit", "sdpa:SiglipVision", "eager:CLIPVision", "open_clip:resnet"]
)
def test_low_precision_is_read_exactly(name, signed):
    net = tower(name).bfloat16()
    x, units = IMAGES.bfloat16(), torch.randn(3, 16 if "open" in name else 32).bfloat16()
    low = contrastive_mwp(net, x, units, signed=signed)
    exact = contrastive_mwp(net.float(), x.float(), units.float(), signed=signed)
    assert low.dtype == torch.float32
    assert torch.allclose(low, exact, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_mwp(net, x.float(), units.float(), signed=signed), exact)


@pytest.mark.parametrize("signed", SIGNED)
def test_attention_and_linear_layers_equal_lxt_and_zennit_where_the_rules_coincide(signed):
    """lxt's attention (CP-LRP: nothing through the softmax, epsilon for A v) with zennit's ZPlus for linear layers.

    They coincide for values v >= 0, winners y > 0 and, by "clamp", x >= 0. They differ where v is signed (epsilon
    lets signed shares through), where y < 0 (ZPlus still asks for positive contributions) and in lxt's own AttnLRP,
    which sends half of all relevance through the softmax to queries and keys.
    """
    lxt, zennit = pytest.importorskip("lxt.explicit.special"), pytest.importorskip("zennit.rules")
    torch.manual_seed(0)
    query, key, value, out = (nn.Linear(8, 8).double() for _ in range(4))
    x = randn(2, 5, 8).abs() if signed == "clamp" else randn(2, 5, 8)

    def theirs(x: Tensor) -> Tensor:
        values = nn.Sequential(value, nn.ReLU())
        keys = (query.weight, query.bias, key.weight, key.bias)
        return lxt.multi_head_attention_cp(x, x, x, True, 2, 4, *keys, values, out)[0]

    def ours(x: Tensor) -> Tensor:
        q, k, v = (f.unflatten(2, (2, 4)).transpose(1, 2) for f in (query(x), key(x), value(x).relu()))
        return out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    won = randn(2, 5, 8, seed=2).abs() * (ours(x) > 0)
    won = won / won.sum()  # lxt's epsilon is 1e-6 of a value and takes a little
    leaf = x.clone().requires_grad_()
    hooks = [zennit.ZPlus(stabilizer=1e-12, zero_params="bias").register(layer) for layer in (value, out)]
    (relevance,) = torch.autograd.grad(theirs(leaf), leaf, won)
    for hook in hooks:
        hook.remove()
    found = excitation_backprop(ours, x.mT.mT, lambda h: won[None], signed=signed)[0]
    assert torch.allclose(found, relevance, atol=1e-5)
    assert found.sum() == pytest.approx(float(relevance.sum()), rel=1e-5)


@pytest.mark.parametrize("signed", SIGNED)
def test_a_dual_of_ones_own_takes_the_place_of_the_negative(signed):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True).double().eval()
    x, units, dual = randn(2, 8, 5), randn(3, 8, seed=1), randn(1, 8, seed=2)

    def net(x):
        return layer(x.mT).mean(1)

    found = contrastive_mwp(net, x, units, signed=signed, dual=dual)
    own, shared = (mwp(net, x, of, signed=signed) for of in (units, dual))  # the pass is linear in its seed
    assert torch.allclose(found, (own - shared).clamp(min=0), atol=1e-12)
    at_features = contrastive_mwp(lambda x: x, x, units, signed=signed, dual=dual)
    own, shared = (mwp(lambda x: x, x, of, signed=signed) for of in (units, dual))
    assert torch.allclose(at_features, (own - shared).clamp(min=0), atol=1e-12)
    with pytest.raises(ConfigError, match=r"a dual must be \(1, 8\), as a unit is, got \(2, 8\)"):
        contrastive_mwp(net, x, units, dual=units[:2])
    plain_dual = contrastive_mwp(net, x, units[:1], signed=signed, dual=-units[:1])
    assert torch.equal(plain_dual, contrastive_mwp(net, x, units[:1], signed=signed))


class TestAttnLrp:
    """Gradient times activation with every gate constant, against networks in which they are."""

    @pytest.mark.parametrize("name", list(ways_of_attention()))
    def test_every_spelling_of_attention_is_the_same(self, name):
        nets = ways_of_attention()
        x, units = randn(2, 8, 5), randn(3, 8, seed=1)
        found, wanted = (
            derivative(lambda x, way=way: nets[way](x.mT).mean(1), x, units, mode=Gates())
            for way in (name, "fused")
        )
        torch.testing.assert_close(found, wanted)

    def test_relevance_is_the_score_where_there_is_no_bias(self):
        blocks = Blocks().double()
        x, units = randn(2, 16, 7), randn(3, 16, seed=1)
        scores = torch.einsum("nd,kd->kn", blocks.head(blocks.second(blocks.first(x))), units)

        def net(x):
            return blocks.head(blocks.second(blocks.first(x)))

        relevance = (derivative(net, x, units, mode=Gates()) * x).sum(2)
        torch.testing.assert_close(relevance.sum(2), scores)
        torch.testing.assert_close(attn_lrp(net, x, units), relevance.clamp(min=0))

    def test_gates_by_hand(self):
        x = randn(2, 6)
        weight, bias = randn(6, seed=1), randn(6, seed=2)

        def spread(x, c):
            return (x - x.mean(-1, keepdim=True)) / (c.var(-1, False, keepdim=True) + 1e-5).sqrt()

        made = {
            "layer_norm": (
                lambda x: F.layer_norm(x, (6,), weight, bias),
                lambda x, c: spread(x, c) * weight,
            ),
            "rms_norm": (
                lambda x: F.rms_norm(x, (6,), weight, 1e-5),
                lambda x, c: x / c.square().mean(-1, keepdim=True).add(1e-5).sqrt() * weight,
            ),
            "by hand": (
                lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5),
                lambda x, c: x / c.square().mean(-1, keepdim=True).add(1e-5).sqrt(),
            ),
            "group_norm": (
                lambda x: F.group_norm(x, 2, weight, bias),
                lambda x, c: spread(x.view(2, 2, 3), c.view(2, 2, 3)).flatten(1) * weight,
            ),
            "gelu": (F.gelu, lambda x, c: x * (F.gelu(c) / c)),
            "silu in place": (lambda x: F.silu(x * 1, inplace=True), lambda x, c: x * torch.sigmoid(c)),
            "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), lambda x, c: x * torch.sigmoid(1.702 * c)),
        }
        for name, (net, held) in made.items():
            leaf = x.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(held(leaf, x).sum(), leaf)
            (found,) = derivative(net, x, torch.ones(1, 6).double(), mode=Gates())
            torch.testing.assert_close(found, wanted, msg=name)
            with Gates():
                values = net(x.clone().requires_grad_())
            assert torch.equal(values, net(x)), name
