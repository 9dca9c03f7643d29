"""A model in a folder: what is written, and how it is read back without trusting the files.

    model.safetensors   weights in float16 (8-bit rows of further words as they are)
    config.json         ModelConfig, and the SHA-256 of the weights, so that files of two models cannot mix
    vocabulary.txt      word<tab>count, most frequent first
    extra_words.txt     further words, one a line (absent without any)
    README.md           model card, made from config.card

Nothing in these files is executed. The names are those of huggingface_hub: a folder can be pushed as it is.
"""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from phrase_loc.errors import DataError
from phrase_loc.models.assembly import folded, skeleton
from phrase_loc.models.card import model_card
from phrase_loc.models.model_config import ModelConfig
from phrase_loc.models.text_to_region import TextToRegion
from phrase_loc.models.weights import check_weights, read_weights
from phrase_loc.text.vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY, EXTRA, CARD = (
    "model.safetensors",
    "config.json",
    "vocabulary.txt",
    "extra_words.txt",
    "README.md",
)
DEFAULT = "default"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def default_folder() -> Path:
    """Where the shipped model lies within the package."""
    return Path(__file__).parent / "default"


def save_model(model: TextToRegion, folder: str | os.PathLike) -> Path:
    """Writes a model to a folder, made if need be; each file whole or not at all, config.json last.

    Batch norms are folded on the way: a saved model is one to be queried.

    Raises:
        DataError: the folder cannot be written, or a weight is not finite.
    """
    from safetensors.torch import save

    model, folder = folded(model), Path(folder)
    weights = save({name: _compact(name, tensor) for name, tensor in model.state_dict().items()})
    values = {**model.config.to_json(), "weights_sha256": hashlib.sha256(weights).hexdigest()}
    files = {
        WEIGHTS: weights,
        VOCABULARY: "".join(
            f"{w}\t{n}\n" for w, n in zip(model.vocabulary.words, model.vocabulary.counts)
        ).encode(),
        EXTRA: "".join(f"{word}\n" for word in model.extra).encode(),
        CARD: model_card(model.config, len(model.vocabulary), len(model.extra), len(weights)).encode(),
        CONFIG: (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write(folder / name, content)
    except OSError as error:
        raise DataError(
            f"the model cannot be written to {folder}: {error.strerror}; choose another place"
        ) from None
    return folder


def load_model(source: str | os.PathLike = DEFAULT) -> TextToRegion:
    """The shipped model ("default"), one in a folder, or one from a hub ("owner/name"); ready to be queried.

    Raises:
        DataError: there is no model, or its files are missing, truncated, of a newer format or of two models.
    """
    folder = find_model(source)
    values = _read_json(folder / CONFIG)
    digest = values.pop("weights_sha256", None) if isinstance(values, dict) else None
    config = replace(ModelConfig.from_json(values, str(folder / CONFIG)), folded=True)
    tensors = _read_tensors(folder / WEIGHTS, digest)
    extra = _read_words(folder / EXTRA)
    extra_size = tensors["words.rows"].shape[-1] if "words.rows" in tensors else 1
    model = skeleton(config, Vocabulary.load(folder / VOCABULARY), extra, extra_size)
    wanted = model.state_dict()
    check_weights(tensors, wanted, str(folder / WEIGHTS))
    model.load_state_dict({name: tensors[name] for name in wanted})
    model.to(memory_format=torch.channels_last)  # a quarter less time in the trunk on a CPU
    return model.eval().requires_grad_(False)


def find_model(source: str | os.PathLike) -> Path:
    """The folder of a model; one on a hub is downloaded first (huggingface_hub is imported only then)."""
    name = os.fspath(source)
    if name == DEFAULT and not Path(name).is_dir():
        folder = default_folder()
        if not (folder / CONFIG).is_file():
            raise DataError("this installation of phrase_loc ships no model; name a folder or train one")
        return folder
    if Path(name).is_dir():
        if not (Path(name) / CONFIG).is_file():
            raise DataError(
                f"{name} holds no model: {CONFIG} is missing; name a folder written by save_pretrained"
            )
        return Path(name)
    if Path(name).exists() or not _HUB_ID.fullmatch(name):
        raise DataError(
            f"no model at {name}; expected 'default', a folder of save_pretrained or a hub id owner/name"
        )
    from phrase_loc.models.hub import download

    return download(name)


def _compact(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous().cpu()
    half = tensor.detach().to("cpu", torch.float16).contiguous()
    if not torch.isfinite(half).all():
        raise DataError(
            f"the weight {name} has numbers that are not finite in float16; train with a lower rate"
        )
    return half


def _read_tensors(path: Path, digest: str | None) -> dict[str, Tensor]:
    tensors = read_weights(path)
    if digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise DataError(
            f"{path} is not the file that {CONFIG} beside it was written with; copy the whole folder again"
        )
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); copy the model again") from None


def _read_words(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); copy the model again") from None


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
