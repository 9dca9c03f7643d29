"""Results of single images on disk, so that an interrupted evaluation goes on where it stopped.

One JSON line an image in `<stem>.progress/<key>-<rank>.jsonl` beside the report. The key is a hash of the
settings, the model and the annotations: a run that differs in any of them starts afresh. A line torn by the
interruption is computed again. The folder goes when the report is written.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TextIO

from phrase_loc.errors import ConfigError

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
        self.key = key
        self._path = self.folder / f"{key}-{rank}.jsonl"
        self._file: TextIO | None = None

    def read(self) -> dict[str, Outcome]:
        """Finished images of all processes of earlier runs, by image id."""
        done: dict[str, Outcome] = {}
        for path in sorted(self.folder.glob(f"{self.key}-*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    outcome = json.loads(line)
                    done[outcome["image"]] = outcome
                except (ValueError, TypeError, KeyError):
                    continue
        return done

    def add(self, outcome: Outcome) -> None:
        """Keep one image's results; they are in the file when this returns.

        Raises:
            ConfigError: the folder beside the report cannot be written to.
        """
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(json.dumps(outcome) + "\n")
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
        """Remove this evaluation's files, and the folder when nothing else is in it."""
        for path in self.folder.glob(f"{self.key}-*.jsonl"):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def key_of(*facts: Any) -> str:
    """A short hash of plain values; equal values give equal keys in every process."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
