"""Answers words -> maps from an exported model, with numpy and ONNX Runtime alone: torch is never imported.

    model = ExportedModel("exported")
    maps, scores = model.maps("photo.jpg", ["a red hat", "the dog"])     # (2,h,w), (2,)

Pictures are read as by queries. Words are looked up one by one: as written, then in their dictionary form; the full
rule from a phrase to weighted words (text/phrases.py) stays with the torch path: pass its weights to `answer`.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import digest, read_json, read_text
from phrase_loc.image_inputs import Picture
from phrase_loc.images import load_image
from phrase_loc.text.english import spellings
from phrase_loc.text.parsing import parse
from phrase_loc.text.splitting import phrase_list

Floats = NDArray[np.float32]


class ExportedModel:
    """A folder written by `phrase-loc export --format onnx`; None leaves the number of threads to ONNX Runtime."""

    def __init__(self, folder: str | os.PathLike, threads: int | None = None):
        folder = Path(folder)
        self.facts = _facts(folder)
        try:
            with np.load(folder / "words.npz") as table:
                self._table = dict(table)
            # each line ends, so that the last one is empty; a word is the row of its first mention
            own = [line.split("\t")[0] for line in read_text(folder / "vocabulary.txt").split("\n")[:-1]]
            words = [*own, *read_text(folder / "extra_words.txt").split("\n")[:-1]]
            self._rows = {word: row for row, word in reversed(list(enumerate(words)))}
        except Exception as error:  # of an archive that is anything, numpy and zipfile raise anything
            raise DataError(
                f"{folder} holds no exported model ({str(error)[:160]}); write one with `phrase-loc export`"
            ) from None
        if self._table.pop("cosine", False):
            raise DataError(
                f"{folder} holds a model with cosine=True, which is no longer there (docs/experiments.md); "
                "export another model"
            )
        self._session = _session(folder / "model.onnx", threads)

    def __contains__(self, word: str) -> bool:
        return bool(self.rows(word))

    def rows(self, word: str) -> tuple[int, ...]:
        """Row numbers of a word: as written, else of its dictionary form; () when it is unknown."""
        if word in self._rows:
            return (self._rows[word],)
        ways = [[self._rows[part] for part in way if part in self._rows] for way in spellings(word.lower())]
        return next((tuple(found) for found in ways if found), ())

    def units(self, rows: Sequence[int]) -> tuple[Floats, Floats]:
        """Row numbers -> units (K,D) and biases (K,)."""
        t, ids = self._table, np.asarray(rows, dtype=np.int64)
        trained = len(t["vectors"])
        vectors = t["vectors"][np.minimum(ids, trained - 1)].astype(np.float32)
        if (extra := ids >= trained).any():
            place = ids[extra] - trained
            compact = t["rows"][place].astype(np.float32) * t["scale"][place, None].astype(np.float32)
            vectors[extra] = compact @ t["into"].astype(np.float32) + t["offset"].astype(np.float32)
        units = vectors @ t["project"].astype(np.float32).T
        bias = vectors @ t["bias_weight"].astype(np.float32) + t["bias"].astype(np.float32)
        return np.ascontiguousarray(units), np.ascontiguousarray(bias)

    def maps(self, image: Picture, phrases: Iterable[str]) -> tuple[Floats, Floats]:
        """Where each of P phrases wins in a picture, as `images.load_image` takes it; known words are weighted alike.

        Gives (P,h,w) maps >= 0 and (P,) scores; zeros and -inf for a phrase without a known word.
        """
        phrases = phrase_list(phrases)
        rows = [[row for word in parse(phrase) for row in self.rows(word.text)] for phrase in phrases]
        distinct = sorted({row for found in rows for row in found}) or [0]
        weights = np.zeros((len(phrases), len(distinct)), dtype=np.float32)
        for p, found in enumerate(rows):
            for row in found:
                weights[p, distinct.index(row)] += 1 / len(found)
        maps, scores = self.answer(image, distinct, weights)
        scores[[not found for found in rows]] = -np.inf
        return maps, scores

    def answer(self, image: Picture, rows: Sequence[int], weights: Floats) -> tuple[Floats, Floats]:
        """Maps (P,h,w) and scores (P,) of phrases that mix the words `rows` (K,) by weights (P,K)."""
        units, bias = self.units(rows)
        picture = load_image(image)
        pictures = {f"image_{side}": pixels(picture, side) for side in self.facts["image_sizes"]}
        maps, scores = self._session.run(None, pictures | {"units": units, "bias": bias, "weights": weights})
        return maps, scores

    def present(self, scores: Floats) -> Floats | None:
        """Scores (P,) -> calibrated probabilities (P,) that the image shows the phrases, None if it never was."""
        fit = self.facts.get("calibration")
        if not fit:
            return None
        return 1 / (1 + np.exp(-np.clip(fit["slope"] * scores + fit["offset"], -60, 60)))


def pixels(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """A picture of `load_image` as the graph takes it, squashed to (1,3,S,S)."""
    square = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1)[None])


def _facts(folder: Path) -> dict[str, Any]:
    """What export.json says; the other files are those that it was written with."""
    path = folder / "export.json"
    if not path.is_file():
        raise DataError(
            f"{folder} holds no exported model (no export.json); write one with `phrase-loc export`"
        )
    facts = read_json(path, "the exported model's")
    sides = facts.get("image_sizes") if isinstance(facts, dict) else None
    if not isinstance(sides, list) or not all(isinstance(side, int) for side in sides):
        raise DataError(f"{path} is none of `phrase-loc export`; export the model again")
    digests = facts.get("sha256", {})
    for name, expected in digests.items() if isinstance(digests, dict) else ():
        path = folder / Path(name).name
        if not path.is_file() or digest(path) != expected:
            raise DataError(
                f"{path} is not the file that export.json was written with; copy the whole folder again"
            )
    return facts


def _session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("an exported model needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, without a common root
        raise DataError(f"{path} cannot be read ({str(error)[:160]}); export the model again") from None
