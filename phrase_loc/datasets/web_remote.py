"""Shards at an address (s3://, gs://, https://): ranged reads through fsspec, which has a plug-in for each store.

A shard is read once from front to back when its index is built; then each sample is one request, made in the loader's
workers, so more workers hide the wait. fsspec keeps its connections for each process; an address whose
plug-in is not installed (s3fs, gcsfs, aiohttp) is told in one sentence, and whatever a store raises is an OSError.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from phrase_loc.errors import DataError

BLOCK = 4 * 2**20


def remote_file(address: str) -> IO[bytes]:
    """A shard as a file that can be sought in, read ahead in large blocks."""
    with _store(address) as (system, path):
        return system.open(path, "rb", block_size=BLOCK)


def remote_read(address: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; raises OSError."""
    with _store(address) as (system, path):
        return system.cat_file(path, start=offset, end=offset + size)


def remote_version(address: str) -> str:
    """What changes when the shard does: its size and the store's mark of its content."""
    with _store(address) as (system, path):
        facts = system.info(path)
    marks = (facts.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created"))
    return f"{address}|{'|'.join(map(str, marks))}"


def exists(address: str) -> bool:
    """Whether there is such a shard; raises OSError where the store cannot be asked."""
    with _store(address) as (system, path):
        return bool(system.exists(path))


@contextmanager
def _store(address: str) -> Iterator[tuple[Any, str]]:
    import fsspec

    try:
        found = fsspec.core.url_to_fs(address)  # cached by fsspec, anew in each forked worker
    except Exception as error:  # no plug-in, no account
        raise DataError(f"{address} cannot be opened: {' '.join(str(error).split())[:200]}") from None
    try:
        yield found
    except OSError:
        raise
    except Exception as error:  # each store has its own
        raise OSError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
