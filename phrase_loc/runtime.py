"""Answers phrases -> maps from an exported model, with numpy and ONNX Runtime alone: torch is never imported.

    model = ExportedModel("exported")
    for answer in model("photo.jpg", ["a red hat", "the dog"]):
        print(answer.phrase, answer.state, answer.map.shape)

Pictures and phrases are read as by queries (text/phrases.py), with the same weights, notes and states.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import digest, read_json, read_text
from phrase_loc.image_inputs import Picture
from phrase_loc.images import load_image
from phrase_loc.structures import ABSENT_BELOW, FOUND_AT, state_of
from phrase_loc.text.phrases import PhraseEncoder, distinct_words
from phrase_loc.text.splitting import phrase_list
from phrase_loc.text.vocabulary import Vocabulary

Floats = NDArray[np.float32]


class Answer(NamedTuple):
    """Where a phrase is, as `structures.Prediction` says it but for peak and boxes."""

    phrase: str
    map: Floats  # (h, w) >= 0 over the whole picture; zeros without a known word
    score: float  # raw, -inf without a known word
    #: probability that the picture shows it; None without a calibration, or where its noun is not known
    present: float | None
    state: str | None  # "found", "not sure" or "not there"; None where `present` is
    note: str | None  # what of the phrase was not asked as it is written


class ExportedModel:
    """A folder written by `phrase-loc export --format onnx`; None leaves the number of threads to ONNX Runtime."""

    def __init__(self, folder: str | os.PathLike, threads: int | None = None):
        folder = Path(folder)
        self.facts = _facts(folder)
        extra = read_text(folder / "extra_words.txt").split("\n")[:-1]  # each line ends: the last is empty
        vocabulary, learned = Vocabulary.load(folder / "vocabulary.txt"), self.facts.get("class_words", ())
        self.encoder = PhraseEncoder(vocabulary, extra, class_words=map(str, learned))
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError("an exported model needs onnxruntime: pip install onnxruntime") from None
        options, path = onnxruntime.SessionOptions(), folder / "model.onnx"
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, without a common root
            raise DataError(f"{path} cannot be read ({str(error)[:160]}); export the model again") from None
        if "words" not in {given.name for given in self._session.get_inputs()}:
            raise DataError(f"{folder} was exported by an earlier version; export the model again")

    def __call__(self, image: Picture, phrases: Iterable[str]) -> list[Answer]:
        """Look for phrases in a picture, as `images.load_image` takes it; an answer for each, in order."""
        phrases = phrase_list(phrases)
        encoded = [self.encoder.encode(phrase) for phrase in phrases]
        rows, weights = distinct_words(encoded)
        if not len(rows):  # the graph takes one word or more
            rows, weights = np.zeros(1, np.int64), np.zeros((len(encoded), 1), np.float32)
        given, picture = {"words": rows, "weights": weights}, load_image(image)
        for side in self.facts["image_sizes"]:
            square = picture.resize((side, side), Image.Resampling.BICUBIC)
            given[f"image_{side}"] = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)[None])
        maps, scores = self._session.run(None, given)
        fit = self.facts.get("calibration") or {}
        thresholds = (fit.get("absent_below", ABSENT_BELOW), fit.get("found_at", FOUND_AT))
        answers = []
        for phrase, e, found, score in zip(phrases, encoded, maps, scores.tolist(), strict=True):
            present = None
            if fit and e.head_known:
                present = 1 / (1 + math.exp(-min(max(fit["slope"] * score + fit["offset"], -60), 60)))
            strength = score if e.known else -math.inf
            answers.append(Answer(phrase, found, strength, present, state_of(present, thresholds), e.note))
        return answers

    def maps(self, image: Picture, phrases: Iterable[str]) -> tuple[Floats, Floats]:
        """The maps (P, h, w) and raw scores (P,) of the answers."""
        answers = self(image, phrases)
        return np.array([a.map for a in answers]), np.array([a.score for a in answers], np.float32)

    def rows(self, phrase: str) -> tuple[int, ...]:
        """The rows that the graph is asked for: those of a phrase's known words."""
        return self.encoder.encode(phrase).ids


def _facts(folder: Path) -> dict[str, Any]:
    """What export.json says; the other files are those that it was written with."""
    path = folder / "export.json"
    if not path.is_file():
        raise DataError(
            f"{folder} holds no exported model (no export.json); write one with `phrase-loc export`"
        )
    facts = read_json(path, "the exported model's")
    sides = facts.get("image_sizes") if isinstance(facts, dict) else None
    learned = facts.get("class_words", []) if isinstance(facts, dict) else None
    if not isinstance(learned, list) or not isinstance(sides, list) or {*map(type, sides)} != {int}:
        raise DataError(f"{path} is none of `phrase-loc export`; export the model again")
    digests = facts.get("sha256", {})
    for name, expected in digests.items() if isinstance(digests, dict) else ():
        path = folder / Path(name).name
        if not path.is_file() or digest(path) != expected:
            raise DataError(
                f"{path} is not the file that export.json was written with; copy the whole folder again"
            )
    return facts
