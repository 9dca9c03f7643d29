"""A vision transformer and CLIP's ResNet against the Markov chain spelt out from their weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from phrase_loc.attention import contrastive_mwp, excitation_backprop
from phrase_loc.attention.excitation import wins
from tests.oracles import dense_of

State = dict[str, Tensor]


class Chain:
    """Chances of one rule for signed activations, entry by entry as the definition says."""

    def __init__(self, signed: str) -> None:
        self.signed = signed

    def matrix(self, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """P(j | i) of y = W x + b: (I, J), (J,), (I,) -> (I, J)."""
        if self.signed == "clamp":
            won = weight.clamp(min=0) * x.flatten().clamp(min=0)
        else:
            won = (torch.where(y.flatten() > 0, 1, -1)[:, None] * weight * x.flatten()).clamp(min=0)
        whole = won.sum(1, keepdim=True)
        return torch.where(whole > 0, won / whole.clamp(min=1e-300), 0)

    def down(self, p: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (p.flatten() @ self.matrix(weight, x, y)).view(x.shape)

    def tokens(self, p: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.down(p, torch.kron(torch.eye(len(x), dtype=x.dtype), weight), x, y)

    def branches(self, p: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.stack([a.flatten(), b.flatten()], 1)
        one = torch.ones(1, 2, dtype=a.dtype)
        shares = torch.cat([self.matrix(one, pair, pair.sum().view(1)) for pair in pairs])
        return tuple((p.flatten() * shares[:, i]).view(a.shape) for i in (0, 1))


def attention(x: Tensor, state: State, name: str, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (L, D) -> v (L, D), o = A v (L, D), and the matrix from v to o."""
    q, k, v = (F.linear(x, state[f"{name}.{n}_proj.weight"], state[f"{name}.{n}_proj.bias"]) for n in "qkv")
    size = q.shape[1] // heads
    dense = x.new_zeros(*q.shape, *v.shape)  # (L, D, L, D)
    for h in range(heads):
        of_head = slice(h * size, (h + 1) * size)
        gate = (q[:, of_head] @ k[:, of_head].T / size**0.5).softmax(1)
        for d in range(h * size, (h + 1) * size):
            dense[:, d, :, d] = gate
    dense = dense.flatten(2).flatten(0, 1)
    return v, (dense @ v.flatten()).view(v.shape), dense


def norm(x: Tensor, state: State, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


@pytest.fixture
def clip():
    """A CLIP vision tower of two blocks in float64, random biases and norms with it, and its weights by name."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    net = transformers.CLIPVisionModel(config).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return net, {name.removeprefix("vision_model."): p.detach() for name, p in net.named_parameters()}


@pytest.mark.parametrize("signed", ["clamp", "contributions"])
def test_a_clip_transformer_equals_the_explicit_chain(clip, signed):
    net, state = clip
    x, units, chain = (
        torch.randn(1, 3, 8, 8, dtype=torch.float64),
        torch.randn(2, 8, dtype=torch.float64),
        Chain(signed),
    )
    patches = F.conv2d(x, state["embeddings.patch_embedding.weight"], None, 4)[0].flatten(1).T
    tokens = torch.cat([state["embeddings.class_embedding"][None], patches])
    hidden = [norm(tokens + state["embeddings.position_embedding.weight"], state, "pre_layrnorm")]
    kept = []
    for i in range(2):
        of = f"encoder.layers.{i}"
        n1 = norm(hidden[-1], state, f"{of}.layer_norm1")
        v, o, dense = attention(n1, state, f"{of}.self_attn", 2)
        c = F.linear(o, state[f"{of}.self_attn.out_proj.weight"], state[f"{of}.self_attn.out_proj.bias"])
        between = hidden[-1] + c
        n2 = norm(between, state, f"{of}.layer_norm2")
        f = F.linear(n2, state[f"{of}.mlp.fc1.weight"], state[f"{of}.mlp.fc1.bias"])
        g = f * torch.sigmoid(1.702 * f)
        m = F.linear(g, state[f"{of}.mlp.fc2.weight"], state[f"{of}.mlp.fc2.bias"])
        kept.append((n1, v, o, dense, c, between, n2, f, g, m))
        hidden.append(between + m)
    top = norm(hidden[-1][:1], state, "post_layernorm")

    def slow(unit: Tensor) -> Tensor:
        seed = chain.matrix(unit[None], top, torch.ones(1))[0]  # it has won, whatever its score
        p = torch.zeros_like(hidden[-1])
        p[0] = seed
        for i in (1, 0):
            (n1, v, o, dense, c, between, n2, f, g, m), of = kept[i], f"encoder.layers.{i}"
            p, won = chain.branches(p, between, m)
            won = chain.tokens(won, state[f"{of}.mlp.fc2.weight"], g, m)
            p = p + chain.tokens(won, state[f"{of}.mlp.fc1.weight"], n2, f)
            p, won = chain.branches(p, hidden[i], c)
            won = chain.tokens(won, state[f"{of}.self_attn.out_proj.weight"], o, c)
            won = chain.down(won, dense, v, o)
            p = p + chain.tokens(won, state[f"{of}.self_attn.v_proj.weight"], n1, v)
        weight = dense_of(
            lambda x: F.conv2d(x, state["embeddings.patch_embedding.weight"], None, 4), (3, 8, 8)
        )
        return chain.down(p[1:].T, weight, x[0], patches.T)

    def net_of(x: Tensor) -> Tensor:
        return net(pixel_values=x).pooler_output

    assert torch.allclose(net_of(x), top)
    fast = excitation_backprop(net_of, x, lambda h: wins(h, units, signed), signed=signed)
    for k in range(2):
        expected = slow(units[k])
        assert expected.sum() > 1e-3
        assert torch.allclose(fast[k, 0], expected, atol=1e-10)
    contrast = sum(sign * slow(sign * units[0]) for sign in (1, -1)).sum(0).clamp(min=0)
    assert torch.allclose(contrastive_mwp(net_of, x, units, signed=signed)[0, 0], contrast, atol=1e-10)


@pytest.mark.parametrize("signed", ["clamp", "contributions"])
def test_the_top_of_a_clip_resnet_equals_the_explicit_chain(signed):
    """Bottleneck with anti-aliased stride and attention pool, over activations >= 0 (N, 64, 4, 4)."""
    module = pytest.importorskip("open_clip.modified_resnet")
    torch.manual_seed(0)
    net = module.ModifiedResNet([1, 1, 1, 1], output_dim=6, heads=4, image_size=64, width=4).double().eval()
    block, pool = net.layer4[0], net.attnpool
    with torch.no_grad():
        for p in [*block.parameters(), *pool.parameters()]:
            p.copy_(torch.randn_like(p) * 0.5)
    state, chain = {n: p.detach() for n, p in pool.named_parameters()}, Chain(signed)
    x, units = torch.rand(1, 64, 4, 4, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)

    def steps(x: Tensor, *operations) -> list[tuple]:
        """(matrix or None where the input passes, x, y) of a chain of modules."""
        found = []
        for op in operations:
            y = op(x)
            linear = isinstance(op, (torch.nn.Conv2d, torch.nn.AvgPool2d))
            found.append((dense_of(op, x.shape[1:]) if linear else None, x, y))
            x = y
        return found

    def hand_down(p: Tensor, steps: list[tuple]) -> Tensor:
        for weight, x, y in reversed(steps):
            p = p.view(x.shape) if weight is None else chain.down(p, weight, x, y)
        return p

    with torch.no_grad():
        names = "conv1 bn1 act1 conv2 bn2 act2 avgpool conv3 bn3"
        main = steps(x, *(getattr(block, name) for name in names.split()))
        side = steps(x, *block.downsample)
        a, b = main[-1][2], side[-1][2]
        plane = (a + b).relu()[0].flatten(1).T  # (4, 128)
        tokens = torch.cat([plane.mean(0, keepdim=True), plane]) + state["positional_embedding"]
        v, o, dense = attention(tokens, named(state), "pool", 4)
        y = F.linear(o[:1], state["c_proj.weight"], state["c_proj.bias"])

    def slow(unit: Tensor) -> Tensor:
        p = chain.matrix(unit[None], y, torch.ones(1))  # (1, 6)
        won = torch.zeros_like(o)
        won[:1] = chain.tokens(p, state["c_proj.weight"], o[:1], y)
        p = chain.tokens(chain.down(won, dense, v, o), state["v_proj.weight"], tokens, v)
        mean = torch.kron(torch.full((1, 4), 0.25), torch.eye(128)).double()
        p = p[1:] + chain.down(p[:1], mean, plane, plane.mean(0))
        one, other = chain.branches(p.T.reshape(a.shape), a, b)
        return (hand_down(one, main) + hand_down(other, side))[0]

    def net_of(x: Tensor) -> Tensor:
        return pool(net.layer4(x))

    assert torch.allclose(net_of(x), y)
    fast = excitation_backprop(net_of, x, lambda h: wins(h, units, signed), signed=signed)
    for k in range(3):
        expected = slow(units[k])
        assert expected.sum() > 0.1
        assert torch.allclose(fast[k, 0], expected, atol=1e-10)


def named(state: State) -> State:
    return {f"pool.{name}": tensor for name, tensor in state.items()}
