"""A model in a folder: what is written, and how it is read back without trusting the files.

    model.safetensors   weights in float16 (8-bit rows of further words as they are)
    config.json         ModelConfig, and the SHA-256 of the three other files, so that those of two models cannot mix
    vocabulary.txt      word<tab>count, most frequent first
    extra_words.txt     further words, one a line (absent without any)
    README.md           model card, made from config.card

Nothing in these files is executed. The names are those of huggingface_hub: a folder can be pushed as it is.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phrase_loc.errors import ConfigError, DataError, PhraseLocError
from phrase_loc.files import digest, read_json, read_text, write_bytes
from phrase_loc.models.build import folded, skeleton
from phrase_loc.models.card import model_card
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.model_config import ModelConfig
from phrase_loc.models.transformers_nets import from_architecture
from phrase_loc.models.weights import check_weights, read_weights
from phrase_loc.text.vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY, EXTRA, CARD = (
    "model.safetensors",
    "config.json",
    "vocabulary.txt",
    "extra_words.txt",
    "README.md",
)
#: key of config.json -> the file whose SHA-256 it holds; a model of old has that of the weights alone
DIGESTS = {"weights_sha256": WEIGHTS, "vocabulary_sha256": VOCABULARY, "extra_words_sha256": EXTRA}
DEFAULT = "default"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def default_folder() -> Path:
    """Where the shipped model lies within the package."""
    return Path(__file__).parent / "default"


def save_model(model: TextToRegion, folder: str | os.PathLike) -> Path:
    """Writes a model to a folder, made if need be; each file whole or not at all, config.json last.

    Batch norms are folded on the way: a saved model is one to be queried.

    Raises:
        DataError: the folder cannot be written, a weight is not finite, or the config holds what cannot be read.
    """
    from safetensors.torch import save

    model, folder = folded(model), Path(folder)
    weights = save({name: _compact(name, tensor) for name, tensor in model.state_dict().items()})
    ModelConfig.from_json(model.config.to_json(), "the model's config")  # what is written can be read
    vocabulary = zip(model.vocabulary.words, model.vocabulary.counts)
    files = {
        WEIGHTS: weights,
        VOCABULARY: "".join(f"{w}\t{n}\n" for w, n in vocabulary).encode(),
        EXTRA: "".join(f"{word}\n" for word in model.extra).encode(),
        CARD: model_card(model.config, len(model.vocabulary), len(model.extra), len(weights)).encode(),
    }
    values = {**model.config.to_json(), **{key: digest(files[name]) for key, name in DIGESTS.items()}}
    files[CONFIG] = (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the model cannot be written to {folder}: {error.strerror}; choose another place"
        ) from None
    for name, content in files.items():
        write_bytes(folder / name, content, "choose another place for the model")
    return folder


def load_model(source: str | os.PathLike = DEFAULT) -> TextToRegion:
    """The shipped model ("default"), one in a folder, or one from a hub ("owner/name"); ready to be queried.

    Raises:
        DataError: there is no model, or its files are missing, truncated, of a newer format or of two models.
    """
    folder = find_model(source)
    values = read_json(folder / CONFIG, "the model's config")
    digests = {key: values.pop(key) for key in DIGESTS if key in values} if isinstance(values, dict) else {}
    config = replace(ModelConfig.from_json(values, str(folder / CONFIG)), folded=True)
    tensors = read_weights(folder / WEIGHTS)
    vocabulary, extra = Vocabulary.load(folder / VOCABULARY), _read_words(folder / EXTRA)
    for key, expected in digests.items():
        _check_digest(folder / DIGESTS[key], expected)
    model = _empty(config, vocabulary, extra, tensors, folder)
    wanted = model.state_dict()
    check_weights(tensors, wanted, str(folder / WEIGHTS))
    if surplus := sorted(set(tensors) - set(wanted)):
        raise DataError(
            f"{folder / WEIGHTS} has {len(surplus)} weights that {CONFIG} beside it has no place for (first: "
            f"{surplus[0][:80]}); copy the whole folder again"
        )
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


def _check_digest(path: Path, expected: Any) -> None:
    if not path.is_file() or digest(path) != expected:
        raise DataError(
            f"{path} is not the file that {CONFIG} beside it was written with; copy the whole folder again"
        )


def _empty(
    config: ModelConfig,
    vocabulary: Vocabulary,
    extra: tuple[str, ...],
    tensors: dict[str, Tensor],
    folder: Path,
) -> TextToRegion:
    """The skeleton of a model, once its sizes are known to be those of the weights: they could be anything."""
    with torch.device("meta"):
        sizes = {"words.vectors": torch.empty(len(vocabulary), config.embedding)}
        if config.hidden is not None:
            sizes["head.lift.weight"] = torch.empty(config.hidden, config.channels, 1, 1)
    check_weights(tensors, sizes, str(folder / WEIGHTS))
    rows = tensors.get("words.rows", torch.empty(0, 1))
    if len(rows) != len(extra) or rows.ndim != 2:
        raise DataError(
            f"{folder} holds {len(extra)} further words ({EXTRA}) where {len(rows)} were expected by its weights; "
            "copy the whole folder again"
        )
    try:
        if config.architecture is not None:
            with torch.device("meta"):
                size = sum(p.numel() for p in from_architecture(config.architecture).parameters())
            if size > 2 * sum(t.numel() for t in tensors.values()):
                raise ConfigError(f"its architecture has {size:,} weights, far more than {WEIGHTS}")
        return skeleton(config, vocabulary, extra, rows.shape[1])
    except PhraseLocError as error:
        raise DataError(f"{folder / CONFIG}: {error}") from None


def _read_words(path: Path) -> tuple[str, ...]:
    """One word a line; a model without further words may lack the file."""
    if not path.exists():
        return ()
    words = tuple(line.removesuffix("\r") for line in read_text(path, "the further words").split("\n"))
    words = words[:-1] if words[-1] == "" else words
    for number, word in enumerate(words, 1):
        if not word.strip() or "\t" in word:
            raise DataError(
                f"{path}, line {number}: expected a word, got {word[:60]!r}; copy the model again"
            )
    if len(set(words)) < len(words):
        raise DataError(f"{path} lists a word twice; copy the model again")
    return words
