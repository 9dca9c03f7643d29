"""The model as a fixed graph for ONNX Runtime or torch.export; runtime.py answers from its folder without torch.

    image (1,3,S,S) uint8 at each input size S, words (K,) row numbers, weights (P,K) -> maps (P,h,w), scores (P,)

At the features the contrastive map is a matrix product (`contrastive_map`), so everything from image to maps is one
graph without a backward pass. Maps of earlier stages do not export; an exported model always reads at "features".
"""

import io
import json
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phrase_loc.attention.excitation import contrastive_map
from phrase_loc.errors import ConfigError, choose, extra
from phrase_loc.files import digest, make_folder, write_text, writing
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.maps import min_max, resize
from phrase_loc.models.model import TextToRegion

WORD_FILES, FACTS = ("vocabulary.txt", "extra_words.txt"), "export.json"
GRAPHS = {"onnx": "model.onnx", "torch": "model.pt2"}
INPUTS, OUTPUTS = ("words", "weights"), ("maps", "scores")


class ManyPhrases(nn.Module):
    """`PhraseLocalizer.attend` with contrastive_mwp at "features", and `presence`, as plain tensor operations."""

    def __init__(self, model: TextToRegion, settings: Inference):
        super().__init__()
        self.model, self.below, self.settings = model, model.below(), settings

    def forward(self, images: list[Tensor], words: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The photograph at each size (1,3,S,S) RGB 0..255, row numbers (K,), (P,K) -> (P,h,w) >= 0, (P,)."""
        units, bias = self.model.units(words), self.model.word_bias(words)
        maps, scores = [], []
        for features in map(self.below, images):
            signed = contrastive_map(features, units)[:, 0]  # (K,h,w)
            maps.append(torch.einsum("pk,khw->phw", weights, signed).clamp(min=0))
            scores.append(self.model.head.pool(self.model.head.unit_scores(features, units, bias))[0])  # (K,)
        strength = weights @ (torch.stack(scores).mean(0) + self.model.words.presence_bias[words])
        if len(maps) == 1:
            return maps[0], strength
        grid = (self.settings.grid, self.settings.grid)
        fine = [min_max(resize(found, grid)) for found in maps]
        return torch.stack(fine).mean(0), strength


def export(source: str | os.PathLike, out: str | os.PathLike, format: str = "onnx") -> Path:
    """Write a model as a graph ("onnx", which needs the extra `onnx`, or "torch") with its words; gives the folder.

    vocabulary.txt and extra_words.txt after it hold the words row by row, export.json sizes, settings and the SHA-256
    of the others.
    """
    write = choose(WRITERS, format, "export format")
    there = [
        name for name in ("config.json", *WORD_FILES, GRAPHS[format]) if os.path.lexists(Path(out) / name)
    ]
    if there and (there[0] == "config.json" or not (Path(out) / FACTS).is_file()):
        raise ConfigError(
            f"{out} holds a {there[0]} that is of no whole export and would be replaced; delete it, or name another "
            "folder"
        )
    localizer = PhraseLocalizer.from_pretrained(source, device="cpu")
    model, settings, folder = localizer.model, localizer.settings, Path(out)
    if model.reads_phrases:
        raise ConfigError(
            f"{source} is an image-text pair, whose maps need the top-down pass and do not export; train a word head "
            f"over it (model.backbone={model.config.backbone}) and export that"
        )
    if settings.dual != "negative":
        raise ConfigError(
            f"an exported model holds units against their negatives, and {source} has dual mean"
        )
    make_folder(folder)
    with writing(folder / GRAPHS[format]) as path:
        images = [torch.zeros(1, 3, side, side, dtype=torch.uint8) for side in settings.image_sizes]
        example = images, torch.arange(3) % len(model.words), torch.full((2, 3), 1 / 3)
        words, phrases = (torch.export.Dim(name, min=1, max=65_536) for name in ("words", "phrases"))
        dynamic = {"images": [None] * len(images), "words": {0: words}, "weights": {0: phrases, 1: words}}
        write(ManyPhrases(model, settings).eval(), example, dynamic, path)
    model.vocabulary.save(folder / "vocabulary.txt")
    write_text(folder / "extra_words.txt", "".join(f"{w}\n" for w in model.extra))
    facts: dict[str, Any] = {"format": format, "image_sizes": settings.image_sizes}
    facts |= {"method": "contrastive_mwp", "stage": "features"}
    facts |= {"calibration": model.config.calibration, "source": str(source)}
    facts |= {"class_words": model.config.class_words}
    facts |= {"sha256": {name: digest(folder / name) for name in (GRAPHS[format], *WORD_FILES)}}
    write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")
    return folder


def _write_torch(graph: nn.Module, example: tuple[Any, ...], dynamic: dict[str, Any], path: Path) -> None:
    content = io.BytesIO()  # torch's own writer kills the process where a disk is full
    torch.export.save(torch.export.export(graph, example, dynamic_shapes=dynamic), content)
    path.write_bytes(content.getvalue())


def _write_onnx(graph: nn.Module, example: tuple[Any, ...], dynamic: dict[str, Any], path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        if not find_spec(package):
            raise ConfigError(f"export to ONNX needs the package {package}: {extra('onnx')}")
    with warnings.catch_warnings():  # the exporter warns of its own code
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=[*(f"image_{image.shape[-1]}" for image in example[0]), *INPUTS],
            output_names=OUTPUTS,
            dynamic_shapes=dynamic,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


WRITERS = {"onnx": _write_onnx, "torch": _write_torch}
