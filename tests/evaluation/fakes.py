"""A localizer whose maps are given: hand-made cases for the rules of the protocols."""

import hashlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from phrase_loc.images import load_image
from phrase_loc.structures import Scene, Word


@dataclass(frozen=True)
class Encoded:
    """What the encoder says of a phrase."""

    known: bool
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The settings the evaluator reads."""

    method: str = "contrastive_mwp"


@dataclass
class FakeLocalizer:
    """Maps and ranked boxes by phrase; others get a map drawn from their letters, 'zzz' is unknown.

    Maps are laid over the frame by nearest cells, so that a map of the frame's size is its own heat.
    """

    maps: dict = field(default_factory=dict)
    ranked: dict = field(default_factory=dict)  # phrase -> (boxes, scores)
    settings: Settings = Settings()
    vocabulary: frozenset = frozenset({"man", "dog"})
    looks: list = field(default_factory=list)
    attended: list = field(default_factory=list)
    opens: bool = False  # whether `look` needs a readable file
    model: torch.nn.Module = field(default_factory=torch.nn.Identity)  # whose weights the fingerprint is of

    def with_settings(self, **changes):
        kept = {"method": self.settings.method} | changes
        return FakeLocalizer(
            self.maps,
            self.ranked,
            Settings(**kept),
            self.vocabulary,
            self.looks,
            self.attended,
            self.opens,
        )

    def look(self, image, size=None):
        if self.opens:
            load_image(image)
        self.looks.append(str(image))
        return Scene(torch.zeros(1, 1, 1, 1), size)

    def encode(self, phrases):
        return [Encoded("zzz" not in phrase) for phrase in phrases]

    def attend(self, scene, phrases, method=None):
        self.attended.append(list(phrases))
        self._of = {}
        found = []
        for phrase in phrases:
            attention = torch.as_tensor(self.maps.get(phrase, drawn(phrase)), dtype=torch.float32)
            attention = torch.zeros_like(attention) if "zzz" in phrase else attention
            found.append(attention)
        side = max(m.shape for m in found)
        return torch.stack(
            [m if m.shape == side else F.interpolate(m[None, None], side)[0, 0] for m in found]
        )

    def heat(self, attention, size):
        return F.interpolate(attention[:, None], size, mode="nearest")[:, 0]

    def phrase_units(self, encoded):
        return torch.zeros(len(encoded), 1)

    def rank_all(self, scene, maps, top_k, units):
        return [self.rank(scene, attention, top_k) for attention in maps]

    def rank(self, scene, attention, top_k):
        for phrase, (boxes, scores) in self.ranked.items():
            if phrase in self.maps and torch.equal(torch.as_tensor(self.maps[phrase]).float(), attention):
                return torch.tensor(boxes).float()[:top_k], torch.tensor(scores).float()[:top_k]
        height, width = scene.size
        x = float(attention.sum(0).argmax()) / attention.shape[1]
        y = float(attention.sum(1).argmax()) / attention.shape[0]
        steps = torch.linspace(0.2, 0.9, 30)[:top_k, None]
        boxes = torch.tensor([x, y, x, y]) * (1 - steps) + steps * torch.tensor([0.0, 0.0, 1.0, 1.0])
        return boxes * torch.tensor([width, height] * 2), (1 - steps[:, 0]) * attention.max()


def drawn(phrase, side=8):
    """A map that depends on nothing but the phrase."""
    seed = int.from_bytes(hashlib.sha256(phrase.encode()).digest()[:6], "big")
    return torch.rand(side, side, generator=torch.Generator().manual_seed(seed))


def point(x, y, width, height):
    """A map of an image's own size with its maximum at one pixel."""
    grid = torch.zeros(height, width)
    grid[y, x] = 1.0
    return grid
