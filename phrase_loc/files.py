"""Files that are whole or not there: atomic writing, locks, digests, and the one reader of text and JSON.

Whoever writes a file of a run, a cache or a report writes it through `writing` (or `write_bytes`, `write_text`,
`writing_folder`): to a temporary name in the same folder, flushed to the disk, and renamed. A `kill -9`, a full disk
or a power cut leaves the old file or the new one. What a killed process left behind is removed by
`remove_leftovers` when the owner of the folder starts again.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from phrase_loc.errors import DataError

#: Called with ("before" | "written" | "after", path) around each file that is written: a test kills its process here.
observer: Callable[[str, Path], None] | None = None

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.part(\.\w+)?$")
_REPLACED = re.compile(r"^\.(?P<name>.+)\.replaced$")
_DIGEST = hashlib.sha256
_GRACE = (
    1.0  # seconds: a child that was just forked from a killed owner lets go of the lock when it first runs
)
#: Bytes of the digest that `sealed` puts before its content.
SEAL = _DIGEST().digest_size


@contextmanager
def writing(path: str | os.PathLike, advice: str = "choose a place that can be written") -> Iterator[Path]:
    """A temporary name beside `path` that takes its place when the block ends well; else it is removed.

    Args:
        path: of the file; its folder must exist.
        advice: what the user can do about a folder that cannot be written, in the imperative.

    Yields:
        A path with the same ending in the same folder, to be written by the block.

    Raises:
        DataError: the folder is missing or read-only, or the disk is full.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        _observe("before", path)
        yield temporary
        _observe("written", path)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({_reason(error)}); {advice}") from None
    finally:
        temporary.unlink(missing_ok=True)
    _observe("after", path)


def write_bytes(
    path: str | os.PathLike, content: bytes, advice: str = "choose a place that can be written"
) -> None:
    """A file with this content, whole or not at all; raises DataError as `writing` does."""
    with writing(path, advice) as temporary:
        temporary.write_bytes(content)


def write_text(
    path: str | os.PathLike, text: str, advice: str = "choose a place that can be written"
) -> None:
    """A UTF-8 file with this text, whole or not at all; raises DataError as `writing` does."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), advice)


def append_text(
    path: str | os.PathLike, text: str, advice: str = "choose a place that can be written"
) -> None:
    """UTF-8 text at the end of a file; whoever reads it drops a last line that a kill or a full disk has torn.

    Raises:
        DataError: the file cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        _observe("before", path)
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({_reason(error)}); {advice}") from None
    _observe("after", path)


@contextmanager
def writing_folder(
    folder: str | os.PathLike, advice: str = "choose a place that can be written"
) -> Iterator[Path]:
    """A fresh folder that takes the place of `folder` when the block ends well; else it is removed.

    An older folder is renamed before the new one takes its name; `remove_leftovers` puts it back if the process
    was killed between the two.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    fresh, old = _temporary(folder), folder.with_name(f".{folder.name}.replaced")
    try:
        _observe("before", folder)
        fresh.mkdir(parents=True)
        yield fresh
        _observe("written", folder)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
            _observe("renamed", folder)
        fresh.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be written ({_reason(error)}); {advice}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    _observe("after", folder)


def remove_leftovers(folder: Path, age: float = 0.0, name: str | None = None) -> None:
    """Removes what killed processes left half written in a folder.

    Args:
        folder: that this process owns (see `lock`), or one that several share.
        age: seconds since the last change; in a shared folder longer than any process writes at a file.
        name: of the one file whose leftovers are meant, None for all; for a file that this process owns.
    """
    for path in folder.iterdir():
        found = _TEMPORARY.match(path.name) or _REPLACED.match(path.name)
        if name is not None and (found is None or found["name"] != name):
            continue
        if age and time.time() - path.lstat().st_mtime < age:
            continue
        replaced = _REPLACED.match(path.name)
        if replaced and not path.with_name(replaced["name"]).exists():
            path.rename(path.with_name(replaced["name"]))
        elif replaced or _TEMPORARY.match(path.name):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def same_file(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two paths lead to one file that exists, however they are written: links, `..`, another case."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


@contextmanager
def lock(path: str | os.PathLike, sentence: str) -> Iterator[None]:
    """Holds a file as this process's own; the lock ends with the process, however that ends.

    Args:
        path: of the lock file, which is made and removed again.
        sentence: of the DataError when another process holds it.

    Raises:
        DataError: another process holds the lock, or the file cannot be made.
    """
    path = Path(path)
    held = FileLock(path, timeout=_GRACE)
    try:
        held.acquire()
    except Timeout:
        raise DataError(sentence) from None
    except OSError as error:
        raise DataError(
            f"{path.parent} cannot be written ({_reason(error)}); choose a folder that can be written"
        ) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True) if os.name == "posix" else None  # while it is held: nobody else has it
        held.release()


def read_bytes(path: str | os.PathLike, what: str = "the file") -> bytes:
    """The content of a regular file; `what` names it in the DataError ('the vocabulary')."""
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"{what} {path} does not exist; check the path")
        if not path.is_file():
            raise DataError(f"{what} {path} is no file; check the path")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        if isinstance(error, DataError):
            raise
        raise DataError(f"{what} {path} cannot be read ({_reason(error)}); check the path") from None


def read_text(path: str | os.PathLike, what: str = "the file") -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises:
        DataError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_json(path: str | os.PathLike, what: str = "the file") -> Any:
    """The value in a JSON file; a DataError where it is missing, unreadable, no JSON, or has a key twice."""
    text = read_text(path, what)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} is not JSON ({_reason(error)}); write or copy it again") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's readers take the last of two equal keys, without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice")
    return found


def digest(content: bytes | Path) -> str:
    """Hexadecimal SHA-256 of some bytes or of a file's content."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, _DIGEST).hexdigest()
    return _DIGEST(content).hexdigest()


def sealed(content: bytes) -> bytes:
    """The content behind its digest; `unsealed` gives it back, or None if a bit has changed since."""
    return _DIGEST(content).digest() + content


def unsealed(blob: bytes) -> bytes | None:
    """What `sealed` was given; None for anything else."""
    seal, content = blob[:SEAL], blob[SEAL:]
    return content if len(seal) == SEAL and _DIGEST(content).digest() == seal else None


def fingerprint(path: str | os.PathLike) -> list[Any]:
    """What changes when a file is replaced: its absolute path, size in bytes and time of change in nanoseconds."""
    facts = os.stat(path)
    return [os.path.abspath(path), facts.st_size, facts.st_mtime_ns]


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")


def _flush(path: Path) -> None:
    """To the disk; a rename is there only when its folder is."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _observe(moment: str, path: Path) -> None:
    if observer is not None:
        observer(moment, path)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:160] or type(error).__name__
