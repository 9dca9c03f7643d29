"""Files that are whole or not there: whoever writes one of a run, a cache or a report writes it through `writing`.

It gets a temporary name in the same folder, is flushed to the disk, and renamed: a `kill -9`, a full disk or a power
cut leaves the old file or the new one, and `remove_leftovers` takes away what is half written.
"""

import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

from filelock import FileLock, Timeout

from phrase_loc.errors import ConfigError, DataError, PhraseLocError

AnyPath: TypeAlias = str | os.PathLike[str]

#: Called with ("before" | "written" | "after", path) around each file that is written: a test kills its process here.
observer: Callable[[str, Path], object] = lambda moment, path: None  # noqa: E731 - replaced by tests

#: Folders that `make_folder` made since the command began.
made_folders: list[Path] = []

ADVICE = "choose a place that can be written"
UTF8 = "utf-8-sig"  # with a byte-order mark or without
#: Bytes of the digest that `sealed` puts before its content.
SEAL = hashlib.sha256().digest_size
_LEFTOVER = re.compile(r"^\.(?P<name>.+)\.(\d+-[0-9a-f]{8}\.part(\.\w+)?|(?P<old>replaced))$")
_GRACE = 1.0  # seconds: a child just forked from a killed owner lets go of the lock when it first runs


@contextmanager
def writing(path: AnyPath, advice: str = ADVICE) -> Iterator[Path]:
    """A temporary name beside `path` for a file or a folder that takes its place when the block ends well.

    An older folder is renamed first; `remove_leftovers` puts it back if the process was killed between the two.
    What a link leads to is replaced, and the link stays.

    Raises DataError: the folder is missing or read-only, the disk is full, or a device or a pipe stands there.
    """
    path = Path(os.path.realpath(path) if os.path.islink(path) else path)
    if os.path.exists(path) and not (path.is_file() or path.is_dir()):  # Path.exists raises for a long name
        raise DataError(f"{path} is a device or a pipe, which would be replaced; {advice}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")
    old = path.with_name(f".{path.name}.replaced")
    with refusing(path, advice):
        try:
            observer("before", path)
            yield temporary
            observer("written", path)
            _flush(temporary)
            if is_folder := temporary.is_dir():
                _remove(old)
                if path.exists():
                    path.rename(old)
                    observer("renamed", path)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            _remove(temporary)
    observer("after", path)
    if is_folder:
        _remove(old)


def refuse_foreign(path: AnyPath, mark: str, what: str, advice: str) -> None:
    """A ConfigError where a file stands that lacks `mark`, a pattern, in its first and last kilobytes: no `what`.

    Raises DataError: the file cannot be read.
    """
    path = Path(path)
    with told(path, f"the {what}", advice), path.open("rb") if path.is_file() else nullcontext() as file:
        ends = file.read(4096) if file else b""
        if file:
            file.seek(max(file.tell(), path.stat().st_size - 4096))  # WebP's metadata are its last
            ends += file.read(4096)
        ours = re.search(mark, ends.decode("utf-8", "replace"))
    if os.path.exists(path) and not ours:
        raise ConfigError(f"output would overwrite {path}, which is no {what}; {advice}")


def write_bytes(path: AnyPath, content: bytes, advice: str = ADVICE) -> None:
    """A file with this content, whole or not at all; raises DataError as `writing` does."""
    with writing(path, advice) as temporary:
        temporary.write_bytes(content)


def write_text(path: AnyPath, text: str, advice: str = ADVICE) -> None:
    """A UTF-8 file with this text, whole or not at all; raises DataError as `writing` does."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), advice)


def append_text(path: AnyPath, text: str, advice: str = ADVICE) -> None:
    """UTF-8 text at the end of a file; whoever reads it drops a line that a kill or a full disk has torn."""
    with refusing(path, advice):
        observer("before", Path(path))
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    observer("after", Path(path))


def remove_leftovers(folder: Path, age: float = 0.0, name: str | None = None) -> None:
    """Removes what killed processes left half written of the file `name`, or of any, in a folder.

    In a folder that other processes write to, only what has not changed for `age` seconds.
    """
    for path in folder.iterdir():
        found = _LEFTOVER.match(path.name)
        if found is None or name not in (None, found["name"]):
            continue
        if age and time.time() - path.lstat().st_mtime < age:
            continue
        if found["old"] and not (place := path.with_name(found["name"])).exists():
            path.rename(place)
        else:
            _remove(path)


@contextmanager
def lock(path: AnyPath, sentence: str) -> Iterator[None]:
    """Holds a lock file, or a DataError with this sentence; the lock ends with the process, however that ends."""
    path = Path(path)
    held = FileLock(path, timeout=_GRACE)
    with refusing(path.parent, "choose a folder that can be written"):
        try:
            held.acquire()
        except Timeout:
            raise DataError(sentence) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True) if os.name == "posix" else None  # while it is held: nobody else has it
        held.release()


@contextmanager
def refusing(place: AnyPath, advice: str) -> Iterator[None]:
    """Whatever goes wrong while something is written, as one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{place} cannot be written ({reason(error)}); {advice}") from None


def make_folder(folder: AnyPath, advice: str = ADVICE, called: str = "") -> None:
    """A folder and those above it, unless they are there; a DataError, which calls it so, where that cannot be."""
    with refusing(called or folder, advice):
        path = Path(folder).absolute()
        made_folders.extend(new for new in (path, *path.parents) if not new.exists())
        os.makedirs(folder, exist_ok=True)


def remove_empty_folders() -> None:
    """Removes the folders that a command made before it failed, if nothing is in them."""
    for folder in sorted(made_folders, reverse=True):
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def told(path: AnyPath, what: str, advice: str = "check the file") -> Iterator[None]:
    """Whatever goes wrong while a file is read, as one sentence; `what` names it ('the vocabulary')."""
    try:
        yield
    except PhraseLocError:
        raise
    except Exception as error:  # decoders of damaged files fail in any way
        raise DataError(f"{what} {path} cannot be read ({reason(error)}); {advice}") from None


def opened(path: AnyPath, what: str, unpack: bool = True) -> IO[bytes]:
    """A regular file or a pipe of the shell, unpacked if it ends in .gz; raises DataError when there is none."""
    path = Path(path)
    piped = os.fspath(path).startswith("/dev/") and path.is_fifo()  # a shell's <(...), or /dev/stdin
    if not path.is_file() and not piped:
        wrong = "is no file" if path.exists() else "does not exist"
        raise DataError(f"{what} {path} {wrong}; check the path")
    if unpack and path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    return path.open("rb")


def as_path(value: AnyPath, what: str) -> Path:
    """What was given as a path; a ConfigError, which calls it `what`, for anything else and for an empty one."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise ConfigError(f"{what} is a path, got {str(value)[:40]!r}")
    return Path(value)


def read_bytes(path: AnyPath, what: str = "the file") -> bytes:
    """The content of a regular file; raises DataError."""
    with told(path, what), opened(path, what, unpack=False) as file:
        return file.read()


def read_text(path: AnyPath, what: str = "the file") -> str:
    """The text of a file as `unicode_text` reads it; a DataError where it is missing or something else."""
    return unicode_text(read_bytes(path, what), f"{what} {path}")


def unicode_text(content: bytes, name: str) -> str:
    """Bytes as UTF-8, or as UTF-16 or UTF-32 where their byte-order mark stands first; the mark is left out.

    Raises DataError, which calls the text `name`: it is none of these, or holds null characters.
    """
    encoding = encoding_of(content, name)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        own = encoding.upper().removesuffix("-SIG")
        raise DataError(f"{name} is not {own} text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{name} holds null characters and is no text; save it as UTF-8")
    return text


def to_utf8(content: bytes, name: str) -> bytes:
    """Bytes of a text without byte-order mark: UTF-16 and UTF-32 as UTF-8, all others (names of files) as they are.

    Raises DataError, which calls the text `name`, as `unicode_text` does.
    """
    if encoding_of(content, name) != UTF8:
        return unicode_text(content, name).encode()
    return content.removeprefix(BOM_UTF8)


def encoding_of(start: bytes, name: str) -> str:
    """The encoding of a text by its first bytes: 'utf-16' or 'utf-32' by a byte-order mark, else UTF8.

    Raises DataError, which calls the text `name`: it has the nulls of one of the two, and no mark.
    """
    found = json.detect_encoding(start)  # the rules of RFC 4627, which fit any text that begins with ASCII
    if found.endswith(("le", "be")):
        wide = found[:6].upper()
        raise DataError(f"{name} has nulls as {wide} has them, and no byte-order mark; save it as UTF-8")
    return UTF8 if found == "utf-8" else found


def read_json(path: AnyPath, what: str = "the file") -> Any:
    """The value in a JSON file; a DataError where it is missing, unreadable, no JSON, or has a key twice."""
    text = read_text(path, what)
    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} {path} is not JSON ({reason(error)}); write or copy it again") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary; a ValueError where a key stands twice, of which the last would win without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice")
    return found


def same_file(one: AnyPath, other: AnyPath) -> bool:
    """Whether two paths lead to one file that exists, however they are written: links, `..`, another case."""
    with suppress(OSError, ValueError):
        return os.path.samefile(one, other)
    return False


def digest(content: bytes | Path) -> str:
    """Hexadecimal SHA-256 of some bytes or of a file's content."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(content).hexdigest()


def sealed(content: bytes) -> bytes:
    """The content behind its digest."""
    return hashlib.sha256(content).digest() + content


def unsealed(blob: bytes) -> bytes | None:
    """What `sealed` was given; None for anything else, were it one bit."""
    return blob[SEAL:] if blob[:SEAL] == hashlib.sha256(memoryview(blob)[SEAL:]).digest() else None


def sealed_line(content: str) -> str:
    """A line for `append_text`, behind its digest; it begins anew behind one that was torn."""
    return f"\n{digest(content.encode('utf-8', 'backslashreplace'))} {content}"


def line_in(line: bytes) -> bytes | None:
    """What `sealed_line` was given; None for a line that is torn or another one."""
    seal, _, content = line.rstrip(b"\n").partition(b" ")
    return content if seal.decode("ascii", "replace") == digest(content) else None


def fingerprint(path: AnyPath) -> list[Any]:
    """What changes when a file is replaced: its absolute path, size in bytes and time of change in nanoseconds."""
    facts = os.stat(path)
    return [os.path.abspath(path), facts.st_size, facts.st_mtime_ns]


def reason(error: Exception) -> str:
    """What an exception says, short and in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:  # a rename is on the disk only when its folder is
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
