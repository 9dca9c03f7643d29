"""Results of single images on disk, so that an interrupted evaluation goes on where it stopped.

One line an image, `digest JSON`, in `<stem>.progress/<key>-<rank>.jsonl` beside the report. The key is a hash of the
settings, the model and the annotations: a run that differs in any of them starts afresh. Each line stands behind its
digest: one torn by the interruption, or with a bit changed since, is computed again. The folder goes when the report
is written.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from phrase_loc.errors import ConfigError
from phrase_loc.files import digest

Outcome = dict[str, Any]


class Progress:
    """The finished images of one evaluation.

    Args:
        output: path of the report.
        key: what the results depend on (`key_of`).
        rank: number of this process; each writes a file of its own.
    """

    def __init__(self, output: Path, key: str, rank: int = 0):
        self.folder = output.with_name(output.stem + ".progress")
        self.key, self.rank = key, rank
        self._path = self.folder / f"{key}-{rank}.jsonl"
        self._file: TextIO | None = None

    def read(self) -> dict[str, Outcome]:
        """Finished images of all processes of earlier runs, by image id."""
        done: dict[str, Outcome] = {}
        damaged = 0
        for path in sorted(self.folder.glob(f"{self.key}-*.jsonl")):
            for line in path.read_bytes().splitlines():
                seal, _, content = line.partition(b" ")
                if seal.decode("ascii", "replace") == digest(content):
                    outcome = json.loads(content)
                    done[outcome["image"]] = outcome
                else:
                    damaged += bool(line)
        if damaged and self.rank == 0:
            print(f"{self.folder}: {damaged} damaged lines are computed again", file=sys.stderr)
        return done

    def add(self, outcome: Outcome) -> None:
        """Keep one image's results; they are in the file when this returns.

        Raises:
            ConfigError: the folder beside the report cannot be written to.
        """
        try:
            if self._file is None:
                self._file = self._open()
            content = json.dumps(outcome)
            self._file.write(f"{digest(content.encode())} {content}\n")
            self._file.flush()
        except OSError as error:
            raise ConfigError(
                f"results cannot be kept in {self.folder} ({error.strerror}); choose another output"
            ) from None

    def _open(self) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        torn = self._path.is_file() and not self._path.read_bytes().endswith(b"\n")
        file = self._path.open("a", encoding="utf-8")
        file.write("\n" if torn else "")
        return file

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def clear(self) -> None:
        """Remove this evaluation's files, and the folder when nothing else is in it: the first process does it.

        The others must be past reading and writing, as they are before `run` and after it.
        """
        if self.rank:
            return
        for path in self.folder.glob(f"{self.key}-*.jsonl"):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not there, or not empty
            self.folder.rmdir()


def key_of(*facts: Any) -> str:
    """A short hash of plain values; equal values give equal keys in every process."""
    return digest(json.dumps(facts, sort_keys=True, default=str).encode())[:16]
