"""The two networks of `shapes.py`, small enough for two cores, and how they learn words from captions alone.

Both begin with the same convolutions, whose field of view (33 pixels) holds a thing: a transformer over bare patches
needs ten times as many pictures before it tells a star from a ring. Pictures of half the side with one thing come
first, then those of two to six things.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from shape_pictures import SIDE, WORDS, Picture
from torch import Tensor, nn

PATCH = 9  # pixels: 8 x 8 cells
WIDTH, DEPTH, HEADS = 64, 4, 4
BATCH = 32
DECAY = 0.02  # of weights, none of biases and scales


def stem() -> list[nn.Module]:
    """Images to 96 features >= 0 on the cells, in two parts."""

    def conv(a: int, b: int, *sizes: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, *sizes, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return [
        nn.Sequential(*conv(3, 32, 3), *conv(32, 48, 1, 1), nn.MaxPool2d(PATCH // 3)),
        nn.Sequential(*conv(48, 96, 1, 1)),
    ]


def window(places: Tensor, side: int) -> Tensor:
    """Position embeddings (T, C) for a grid of `side`: some part of theirs, where it is smaller."""
    whole = math.isqrt(len(places))
    if side == whole:
        return places
    row, column = torch.randint(whole - side + 1, (2,)).tolist()
    return places.unflatten(0, (whole, whole))[row : row + side, column : column + side].flatten(0, 1)


class Block(nn.Module):
    """Pre-norm transformer block over tokens (N, T, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens to tokens."""
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer as CLIP's: the class token, normalised, is weighed by the words' units.

    `read` is "class", or "mean" for the mean of the patches' tokens (no class token then), as SigLIP's and DINO's
    heads average.
    """

    def __init__(self, read: str = "class", depth: int = DEPTH) -> None:
        super().__init__()
        self.extra = int(read == "class")  # tokens that are no place
        self.patches = nn.Sequential(*stem(), nn.Conv2d(96, WIDTH, 1))
        cells = (SIDE // PATCH) ** 2
        self.place = nn.Parameter(0.02 * torch.randn(cells, WIDTH))
        self.token = nn.Parameter(0.02 * torch.randn(self.extra, WIDTH))
        self.blocks = nn.ModuleList(Block(WIDTH, HEADS) for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.words = nn.Linear(WIDTH, len(WORDS))

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the first block's tokens (N, C, T)."""
        x = self.patches(images)
        x = x.flatten(2).mT + window(self.place, x.shape[-1])
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1).mT

    def parts(self) -> list[Callable[[Tensor], Tensor]]:
        """Each block from (N, C, T) to (N, C, T), then the head, from (N, C, T) to features (N, C)."""

        def head(x: Tensor) -> Tensor:
            x = self.norm(x.mT)
            return x[:, 0] if self.extra else x.mean(1)

        return [*(lambda x, b=block: b(x.mT).mT for block in self.blocks), head]

    def grid(self, maps: Tensor) -> Tensor:
        """What belongs to patches, of values at tokens: (..., T) -> (..., h, w)."""
        side = SIDE // PATCH
        return maps[..., self.extra :].unflatten(-1, (side, side))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, V) of the words."""
        x = self.embed(images)
        for part in self.parts():
            x = part(x)
        return self.words(x)


class AttentionPool(nn.Module):
    """CLIP ResNet's: the mean of the features asks, the features and their mean answer (N, C, h, w) -> (N, C)."""

    def __init__(self, width: int, heads: int, cells: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(cells + 1, width) / width**0.5)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, h, w) to one vector."""
        place = torch.cat([self.place[:1], window(self.place[1:], x.shape[-1])])
        x = x.flatten(2).mT
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + place
        n, _, c = x.shape
        q, k, v = (
            layer(part).view(n, -1, self.heads, c // self.heads).transpose(1, 2)
            for layer, part in ((self.query, x[:, :1]), (self.key, x), (self.value, x))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


class ConvNet(nn.Module):
    """Convolutions with ReLU to 8 x 8 cells, then CLIP's attention pool."""

    extra = 0

    def __init__(self) -> None:
        super().__init__()

        last = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96), nn.ReLU())
        self.stages = nn.ModuleList([*stem(), last])
        self.pool = AttentionPool(96, HEADS, (SIDE // PATCH) ** 2)
        self.words = nn.Linear(96, len(WORDS))

    def embed(self, images: Tensor) -> Tensor:
        """Images to the first stage's features, (N, C, h, w) >= 0."""
        return self.stages[0](images)

    def parts(self) -> list[Callable[[Tensor], Tensor]]:
        """Each further stage, then the pool."""
        return [*self.stages[1:], self.pool]

    def grid(self, maps: Tensor) -> Tensor:
        """Maps are on the grid already."""
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, V) of the words."""
        x = self.embed(images)
        for part in self.parts():
            x = part(x)
        return self.words(x)


@dataclass(frozen=True)
class Recipe:
    """How one of the networks is made and trained."""

    make: Callable[[], "ViT | ConvNet"]
    rate: float
    epochs: tuple[int, int]  # on one thing, on two to six


RECIPES = {"vit": Recipe(ViT, 2e-3, (3, 4)), "conv": Recipe(ConvNet, 4e-3, (3, 6))}


def as_input(pictures: list[Picture]) -> Tensor:
    """Pictures as a network takes them: (N, 3, H, W) float32 around 0."""
    return scaled(torch.from_numpy(np.stack([p.pixels for p in pictures])).permute(0, 3, 1, 2))


def scaled(pixels: Tensor) -> Tensor:
    """Bytes to floats with mean 0 and a spread of about 1."""
    return (pixels.float() - 127.5) / 64


def said(pictures: list[Picture]) -> Tensor:
    """Which words each caption says: (N, V) of 0 and 1. Boxes and masks are not looked at."""
    return torch.tensor([[word in p.caption.split() for word in WORDS] for p in pictures]).float()


def train(
    net: nn.Module, pictures: list[Picture], rate: float, epochs: int, seed: int, say: Callable[[str], None]
) -> None:
    """Fit the words of the captions: each word against its absence, one-cycle AdamW, flips."""
    device = next(net.parameters()).device
    pixels = torch.from_numpy(np.stack([p.pixels for p in pictures])).permute(0, 3, 1, 2).to(device)
    labels = said(pictures).to(device)
    groups = [
        {"params": [p for p in net.parameters() if (p.dim() > 1) == matrices], "weight_decay": decay}
        for matrices, decay in ((True, DECAY), (False, 0.0))
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, fused=True)
    steps = epochs * (len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    start = time.process_time()
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(pictures), generator=generator)
        for part in order[: len(order) // BATCH * BATCH].to(device).split(BATCH):
            flip = bool(torch.randint(0, 2, (), generator=generator))
            images = scaled(pixels[part])
            loss = F.binary_cross_entropy_with_logits(net(images.flip(3) if flip else images), labels[part])
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        say(f"epoch {epoch + 1}: loss {total * BATCH / len(order):.4f}, {time.process_time() - start:.0f} s")
    net.eval()
