"""Photographs that were looked at, kept in memory by a keyed hash of their bytes, the oldest leaving first."""

import hmac
import threading
from collections import OrderedDict
from dataclasses import dataclass

from phrase_loc.structures import Scene


@dataclass(frozen=True, slots=True)
class Kept:
    """A photograph as it was uploaded and what the network saw in it; not what somebody called it."""

    key: str
    content: bytes
    kind: str  # its media type
    scene: Scene


def content_key(content: bytes, secret: bytes) -> str:
    """Name of a photograph: 32 hexadecimal digits that nobody can compute who lacks the server's secret."""
    return hmac.digest(secret, content, "sha256").hex()[:32]


class SceneCache:
    """At most `capacity` photographs and `most_bytes` of their files; reading one makes it the youngest."""

    def __init__(self, capacity: int, most_bytes: int):
        self.capacity, self.most_bytes, self._bytes = capacity, most_bytes, 0
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
        """Keep a photograph; the least recently read leave when there are too many, or too large ones."""
        with self._lock:
            old = self._kept.pop(kept.key, None)
            self._bytes += len(kept.content) - (len(old.content) if old else 0)
            self._kept[kept.key] = kept
            while len(self._kept) > self.capacity or (self._bytes > self.most_bytes and len(self._kept) > 1):
                self._bytes -= len(self._kept.popitem(last=False)[1].content)
