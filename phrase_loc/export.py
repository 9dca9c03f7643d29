"""The model as a fixed graph, for ONNX Runtime or torch.export.

    image (1,3,S,S) uint8, units (K,D), bias (K,), weights (P,K)  ->  maps (P,h,w), scores (P,)

At the features the contrastive map is a matrix product (attention/closed_form.py), so the whole query up to
the map, image to maps for any number of words and phrases, is one graph without a backward pass. A map read at
an earlier stage of the trunk does not export; the exported model always reads at "features".

`export` writes a folder that `phrase_loc.exported` answers from without torch:

    model.onnx | model.pt2   the graph
    words.npz                what turns a word into its unit and bias, in float16 and 8 bits
    vocabulary.txt, extra_words.txt   the words, row by row
    export.json              sizes and settings
"""

import json
import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phrase_loc.attention.closed_form import contrastive_map
from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.text_to_region import TextToRegion

GRAPHS = {"onnx": "model.onnx", "torch": "model.pt2"}
INPUTS, OUTPUTS = ("image", "units", "bias", "weights"), ("maps", "scores")


class ManyPhrases(nn.Module):
    """Image to contrastive maps of P phrases over K words, as a graph of plain tensor operations.

    Args:
        model: in eval mode.
        mirrored: look at the mirrored image too and average the maps.
    """

    def __init__(self, model: TextToRegion, mirrored: bool = False):
        super().__init__()
        self.below, self.head, self.mirrored = model.below(), model.head, mirrored

    def forward(self, image: Tensor, units: Tensor, bias: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """(1,3,S,S) RGB 0..255, (K,D), (K,), (P,K) -> maps (P,h,w) >= 0, scores (P,)."""
        views = torch.cat([image, image.flip(-1)]) if self.mirrored else image
        features = self.below(views)
        scores = self.head.unit_scores(features, units, bias)  # (N,K,h,w)
        signed = contrastive_map(features, units, self.head.pool.posterior(scores))  # (K,N,h,w)
        maps = torch.einsum("pk,knhw->pnhw", weights, signed).clamp(min=0)
        if self.mirrored:
            maps = (maps[:, :1] + maps[:, 1:].flip(-1)) / 2
        return maps[:, 0], weights @ self.head.pool(scores).mean(0)


def export(source: str | os.PathLike, out: str | os.PathLike, format: str = "onnx") -> Path:
    """Writes a model as a graph with its words.

    Args:
        source: "default", a folder of `save_pretrained` or a hub id.
        out: folder to be made.
        format: "onnx" (needs the extra `onnx`) or "torch".

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown format, or its packages are not installed.
        DataError: no model at `source`, or `out` cannot be written.
    """
    write = choose(WRITERS, format, "export format")
    localizer = PhraseLocalizer.from_pretrained(source, device="cpu")
    model, settings, folder = localizer.model, localizer.settings, Path(out)
    graph = ManyPhrases(model, settings.mirrored).eval()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"part.{os.getpid()}.{GRAPHS[format]}"
        write(graph, _example(model, settings.image_size), part)
        os.replace(part, folder / GRAPHS[format])
        _write_words(model, folder)
        facts = {
            "format": format,
            "image_size": settings.image_size,
            "mirrored": settings.mirrored,
            "method": "contrastive_mwp",
            "stage": "features",
            "source": str(source),
        }
        (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write the exported model to {folder}: {error}; choose another place"
        ) from None
    return folder


def _example(model: TextToRegion, side: int) -> tuple[Tensor, ...]:
    ids = torch.arange(3) % len(model.words)
    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    return image, model.units(ids), model.word_bias(ids), torch.full((2, 3), 1 / 3)


def _dynamic() -> dict[str, Any]:
    words, phrases = (
        torch.export.Dim("words", min=1, max=65536),
        torch.export.Dim("phrases", min=1, max=65536),
    )
    return {"image": None, "units": {0: words}, "bias": {0: words}, "weights": {0: phrases, 1: words}}


def _write_torch(graph: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    torch.export.save(torch.export.export(graph, example, dynamic_shapes=_dynamic()), path)


def _write_onnx(graph: nn.Module, example: tuple[Tensor, ...], path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        if not find_spec(package):
            raise ConfigError(f"export to ONNX needs the package {package}; pip install 'phrase_loc[onnx]'")
    with warnings.catch_warnings():  # the exporter warns of its own code
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=_dynamic(),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


WRITERS: dict[str, Callable[[nn.Module, tuple[Tensor, ...], Path], None]] = {
    "onnx": _write_onnx,
    "torch": _write_torch,
}


def _write_words(model: TextToRegion, folder: Path) -> None:
    """The words and the numbers that make a unit of each: words.npz, vocabulary.txt, extra_words.txt."""
    head, table = model.head, model.words
    axes = torch.eye(model.config.embedding)  # both maps are affine: what they do to the axes says it all
    with torch.no_grad():
        bias = head.word_bias(torch.zeros_like(axes[:1]))[0]
        halves = {
            "vectors": table.vectors,
            "scale": table.scale,
            "into": table.into,
            "offset": table.offset,
            "project": head.project(axes).T,
            "bias_weight": head.word_bias(axes)[:, 0] - bias,
            "bias": bias,
        }
    arrays = {name: tensor.detach().half().numpy() for name, tensor in halves.items()}
    np.savez(folder / "words.npz", rows=table.rows.numpy(), cosine=np.array(head.cosine), **arrays)
    model.vocabulary.save(folder / "vocabulary.txt")
    (folder / "extra_words.txt").write_text("".join(f"{w}\n" for w in model.extra), encoding="utf-8")
