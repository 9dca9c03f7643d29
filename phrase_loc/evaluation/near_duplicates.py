"""Near-duplicate images: 64-bit perceptual hashes and an index that finds every hash within 7 bits.

The hash is imagehash's phash: the signs of the lowest 8 x 8 cosine coefficients of a 32 x 32 grey picture. It
survives resizing, squashing and recompression. The index cuts it into four bands of 16 bits: two hashes that
differ in at most 7 bits differ in at most 1 bit of some band, so looking up 17 values in each of four sorted
tables finds every pair, without comparing all with all. A pair counts only when 16 x 16 grey thumbnails
correlate as well, since flat pictures (a sunset, a page) share hashes by chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

BANDS, BITS = 4, 16
REACH = 2 * BANDS - 1  # differing bits up to which no pair is missed
THUMB = 16
BLOCK = 32  # pictures looked up at a time: each may share its hash with all
SIMILAR = 0.9  # least correlation of the thumbnails

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Prints:
    """Fingerprints of n pictures: phash (n,) uint64 and standardised thumbnails (n, 256) float32."""

    hashes: Hashes
    thumbs: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, images: Iterable[Image.Image]) -> "Prints":
        """Fingerprints of pictures in order."""
        pairs = [(perceptual_hash(image), thumbnail(image)) for image in images]
        thumbs = np.array([t for _, t in pairs], dtype=np.float32).reshape(-1, THUMB * THUMB)
        return cls(np.array([h for h, _ in pairs], dtype=np.uint64), thumbs)

    @classmethod
    def joined(cls, parts: Sequence["Prints"]) -> "Prints":
        """Several, one after the other."""
        return cls(np.concatenate([p.hashes for p in parts]), np.concatenate([p.thumbs for p in parts]))


@dataclass(frozen=True)
class Index:
    """Hashes of n pictures, each band sorted."""

    hashes: Hashes
    orders: tuple[NDArray[np.intp], ...]
    values: tuple[NDArray[np.uint32], ...]

    @classmethod
    def of(cls, hashes: Hashes) -> "Index":
        """Sort each band."""
        bands = [band(hashes, number) for number in range(BANDS)]
        orders = [np.argsort(values, kind="stable") for values in bands]
        return cls(hashes, tuple(orders), tuple(v[o] for v, o in zip(bands, orders)))

    def within(self, queries: Hashes, distance: int) -> NDArray[np.int64]:
        """All pairs at most `distance` bits apart: (q,) -> (m, 3) of query, entry, bits, in that order.

        Raises:
            ValueError: a distance beyond what the bands promise to find.
        """
        if not 0 <= distance <= REACH:
            raise ValueError(f"the index finds distances 0 to {REACH}, got {distance}")
        flips = np.array([0, *(1 << bit for bit in range(BITS))], dtype=np.uint32)
        found = [np.zeros((0, 2), dtype=np.int64)]
        for number, (order, values) in enumerate(zip(self.orders, self.values)):
            probes = (band(queries, number)[:, None] ^ flips).ravel()
            start, end = np.searchsorted(values, probes, "left"), np.searchsorted(values, probes, "right")
            rows = np.repeat(np.arange(len(probes)), end - start)
            places = np.arange(len(rows)) - np.repeat(np.cumsum(end - start) - (end - start), end - start)
            found.append(np.stack([rows // len(flips), order[start[rows] + places]], 1))
        pairs = np.unique(np.concatenate(found), axis=0)
        bits = np.bitwise_count(queries[pairs[:, 0]] ^ self.hashes[pairs[:, 1]]).astype(np.int64)
        near = bits <= distance
        return np.concatenate([pairs[near], bits[near, None]], 1)


def band(hashes: Hashes, number: int) -> NDArray[np.uint32]:
    """The `number`-th 16 bits of each hash: (n,) -> (n,)."""
    return ((hashes >> np.uint64(BITS * number)) & np.uint64((1 << BITS) - 1)).astype(np.uint32)


def perceptual_hash(image: Image.Image) -> int:
    """The phash of imagehash as one 64-bit number."""
    return int(str(imagehash.phash(image)), 16)


def thumbnail(image: Image.Image) -> NDArray[np.float32]:
    """A 16 x 16 grey picture with mean 0 and norm 1 (all zeros when it is flat): (256,)."""
    small = np.asarray(image.convert("L").resize((THUMB, THUMB), Image.Resampling.BOX), dtype=np.float32)
    centred = small.ravel() - small.mean()
    norm = float(np.linalg.norm(centred))
    return centred / norm if norm > 1e-3 else np.zeros_like(centred)


def duplicates(
    index: Index, known: Prints, asked: Prints, distance: int, similar: float = SIMILAR
) -> list[tuple[int, int, int, float]]:
    """Pairs of `asked` and `known` that are near duplicates: (asked, known, bits, correlation).

    Args:
        index: over known.hashes.
        known: n pictures.
        asked: q pictures.
        distance: greatest number of differing bits.
        similar: least correlation of the thumbnails.
    """
    found: list[tuple[int, int, int, float]] = []
    textured = np.flatnonzero(asked.thumbs.any(1))  # flat pictures are like nothing, and share their hashes
    for first in range(0, len(textured), BLOCK):
        own = textured[first : first + BLOCK]
        pairs = index.within(asked.hashes[own], distance)
        alike = np.einsum("ij,ij->i", asked.thumbs[own[pairs[:, 0]]], known.thumbs[pairs[:, 1]])
        for i in np.flatnonzero(alike >= similar).tolist():
            place, entry, bits = map(int, pairs[i])
            found.append((int(own[place]), entry, bits, round(float(alike[i]), 4)))
    return found
