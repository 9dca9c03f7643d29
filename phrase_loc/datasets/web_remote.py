"""Shards at an address (s3://, gs://, https://): ranged reads through fsspec, which has a plug-in for each store.

A shard is read once from front to back when its index is built; then each sample is one request, made in the loader's
workers, so more workers hide the wait. fsspec keeps its connections for each process; an address whose
plug-in is not installed (s3fs, gcsfs, aiohttp) is told in one sentence.
"""

from typing import IO, Any

from phrase_loc.errors import DataError

BLOCK = 4 * 2**20


def remote_file(address: str) -> IO[bytes]:
    """A shard as a file that can be sought in, read ahead in large blocks."""
    system, path = _system(address)
    return system.open(path, "rb", block_size=BLOCK)


def remote_read(address: str, offset: int, size: int) -> bytes:
    """`size` bytes from `offset`; raises OSError."""
    system, path = _system(address)
    return system.cat_file(path, start=offset, end=offset + size)


def remote_size(address: str) -> int:
    """Bytes of a shard; raises OSError."""
    system, path = _system(address)
    return int(system.size(path))


def remote_version(address: str) -> str:
    """What changes when the shard does: its size and the store's mark of its content."""
    system, path = _system(address)
    facts = system.info(path)
    marks = (facts.get(key) for key in ("size", "ETag", "etag", "LastModified", "mtime", "created"))
    return f"{address}|{'|'.join(map(str, marks))}"


def exists(address: str) -> bool:
    """Whether there is such a shard."""
    system, path = _system(address)
    return bool(system.exists(path))


def _system(address: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(address)  # cached by fsspec, anew in each forked worker
    except (ImportError, ValueError) as error:
        raise DataError(f"{address} cannot be opened: {error}") from None
