"""Photographs that were looked at, kept in memory by the hash of their bytes, the oldest leaving first."""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

from phrase_loc.structures import Scene


@dataclass(frozen=True, slots=True)
class Kept:
    """A photograph as it was uploaded and what the network saw in it."""

    key: str
    name: str
    content: bytes
    kind: str  # its media type
    scene: Scene


def content_key(content: bytes) -> str:
    """Name of a photograph: 32 hexadecimal digits of the SHA-256 of its bytes."""
    return hashlib.sha256(content).hexdigest()[:32]


class SceneCache:
    """At most `capacity` photographs; reading one makes it the youngest."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Kept | None:
        """The photograph of that name, or None when it has left."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, kept: Kept) -> None:
        """Keep a photograph; the least recently read leaves when there are too many."""
        with self._lock:
            self._kept[kept.key] = kept
            self._kept.move_to_end(kept.key)
            while len(self._kept) > self.capacity:
                self._kept.popitem(last=False)
