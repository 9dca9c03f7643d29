"""A model in a folder, written and read back without trusting the files: nothing in them is executed.

model.safetensors   weights in float16 (8-bit rows of out-of-vocabulary words as they are)
config.json         ModelConfig, and the SHA-256 of the three other files, so that those of two models cannot mix
vocabulary.txt      word<tab>count, most frequent first
extra_words.txt     out-of-vocabulary words, one a line
phrase_loc.json     of an image-text pair in its library's own format, in place of these: its name and our settings
README.md           model card, made from config.card, whose keys are all optional: the texts summary, words, data,
                    recipe, command, limits, license_note; figures, rows as reports have them; figures_of, their set
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError, PhraseLocError
from phrase_loc.files import (
    as_path,
    digest,
    make_folder,
    read_json,
    reason,
    same_file,
    write_bytes,
    writing,
)
from phrase_loc.models import towers
from phrase_loc.models.backbones import build, check_weights, read_weights
from phrase_loc.models.build import ImageText, fold_batch_norm, folded
from phrase_loc.models.library_nets import PAIRS
from phrase_loc.models.model import ModelConfig, TextHead, TextToRegion, WordTable
from phrase_loc.text.vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "vocabulary.txt"
EXTRA, CARD, OWN = "extra_words.txt", "README.md", "phrase_loc.json"
#: key of config.json -> the file whose SHA-256 it holds; a model of old has that of the weights alone
DIGESTS = {"weights_sha256": WEIGHTS, "vocabulary_sha256": VOCABULARY, "extra_words_sha256": EXTRA}
CONFIGS = (CONFIG, OWN, towers.OPEN_CLIP_CONFIG)  # any of them tells a model
ADVICE = "choose another place for the model"
DEFAULT, SHIPPED = "default", Path(__file__).parent / "default"  # its name, and where it lies
TASK = "zero-shot-object-detection"  # the hub's name that comes nearest


def save_model(model: TextToRegion, folder: str | os.PathLike, weights: bool | None = None) -> Path:
    """Writes a model to a folder, made if need be; each file whole or not at all, config.json last.

    Batch norms are folded on the way: a saved model is one to be queried. Raises a DataError where the folder cannot
    be written, a weight is not finite, or the config holds what cannot be read. `weights` says of an image-text pair
    whether its files are copied or its name is kept; None copies those of a folder.
    """
    from safetensors.torch import save

    folder = as_path(folder, "the folder of a model")
    if isinstance(model, ImageText):
        return _save_pair(model, folder, weights)
    model = folded(model)
    content = save({name: _compact(name, tensor) for name, tensor in model.state_dict().items()})
    ModelConfig.from_json(asdict(model.config), "the model's config")  # what is written can be read
    vocabulary = zip(model.vocabulary.words, model.vocabulary.counts)
    files = {
        WEIGHTS: content,
        VOCABULARY: "".join(f"{w}\t{n}\n" for w, n in vocabulary).encode(),
        EXTRA: "".join(f"{word}\n" for word in model.extra).encode(),
        CARD: model_card(model.config, len(model.vocabulary), len(model.extra), len(content)).encode(),
    }
    values = {**asdict(model.config), **{key: digest(files[name]) for key, name in DIGESTS.items()}}
    files[CONFIG] = (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()
    make_model_folder(folder, model)
    for name, content in files.items():
        write_bytes(folder / name, content, ADVICE)
    return folder


def make_model_folder(folder: Path, model: TextToRegion) -> None:
    """A folder that this model can be saved to; a DataError where other files than an earlier one's would go."""
    make_folder(folder, ADVICE)
    there = [name for name in (CARD, WEIGHTS, *CONFIGS, VOCABULARY, EXTRA) if os.path.lexists(folder / name)]
    if isinstance(model, ImageText):
        _, place = towers.split_name(model.config.backbone) or ("", "")
        ours = OWN in there or same_file(place, folder) or there == [CARD]  # which is not written
    elif CONFIG in there:
        values = read_json(folder / CONFIG, "the config") if (folder / CONFIG).is_file() else {}
        ours = isinstance(values, dict) and {"format", "backbone"} <= values.keys() and not _is_pair(folder)
    else:
        # a save that was killed has not come to the config
        ours = WEIGHTS in there and not _is_pair(folder) and "words.vectors" in read_weights(folder / WEIGHTS)
    if there and not ours:
        raise DataError(
            f"{folder} holds a {there[0]} that is not of an earlier model and would be replaced; {ADVICE}"
        )


def load_model(source: str | os.PathLike = DEFAULT) -> TextToRegion:
    """The shipped model ("default"), one in a folder, or one from a hub ("owner/name"); ready to be queried.

    A folder or hub id may also hold an image-text pair of transformers or open_clip (towers.py). Raises a DataError
    where there is none, or its files are missing, truncated, of a newer format or of two models.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise ConfigError(f"a model is 'default', a folder or a hub id owner/name, got {source!r}")
    if named := towers.split_name(os.fspath(source)):
        return ImageText(os.fspath(source), towers.load_pair(*named))
    folder = find_model(source)
    if _is_pair(folder):
        return _load_pair(folder, os.fspath(source))
    values = read_json(folder / CONFIG, "the model's config")
    digests = {key: values.pop(key) for key in DIGESTS if key in values} if isinstance(values, dict) else {}
    config = replace(ModelConfig.from_json(values, str(folder / CONFIG)), folded=True)
    tensors = read_weights(folder / WEIGHTS)
    vocabulary, further = Vocabulary.load(folder / VOCABULARY), folder / EXTRA
    extra = Vocabulary.load(further).words if further.is_file() and further.stat().st_size else ()
    for key, expected in digests.items():
        path = folder / DIGESTS[key]
        if not path.is_file() or digest(path) != expected:
            raise DataError(
                f"{path} is not the file that {CONFIG} beside it was written with; copy the whole folder again"
            )
    words = len(vocabulary) + len(extra)
    tensors.setdefault("words.presence_bias", torch.zeros(words))  # older models have none
    model = _empty(config, vocabulary, extra, tensors, folder)
    wanted = model.state_dict()
    check_weights(tensors, wanted, str(folder / WEIGHTS))
    if unknown := sorted(set(tensors) - set(wanted)):
        raise DataError(
            f"{folder / WEIGHTS} has {len(unknown)} weights that {CONFIG} beside it has no place for (first: "
            f"{unknown[0][:80]}); copy the whole folder again"
        )
    model.load_state_dict({name: tensors[name] for name in wanted})
    model.to(memory_format=torch.channels_last)  # a quarter less time in the trunk on a CPU
    return model.eval().requires_grad_(False)


def find_model(source: str | os.PathLike) -> Path:
    """The folder of a model; one on a hub is downloaded first, of an image-text pair the configs alone."""
    name = os.fspath(source)
    shipped = name == DEFAULT and not Path(name).is_dir()
    folder = SHIPPED if shipped else Path(name)
    if any((folder / config).is_file() for config in CONFIGS):
        return folder
    if shipped:
        raise DataError("this installation of phrase_loc ships no model; name a folder or train one")
    if folder.is_dir():
        raise DataError(
            f"{name} holds no model: {CONFIG} is missing; name a folder written by save_pretrained"
        )
    if folder.exists() or not towers.HUB_ID.fullmatch(name):
        raise DataError(
            f"no model at {name}; expected 'default', a folder of save_pretrained or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(name, allow_patterns=list(CONFIGS)))
        if _is_pair(found):
            return found
        return Path(snapshot_download(name, allow_patterns=[WEIGHTS, CONFIG, "*.txt", CARD]))
    except Exception as error:  # huggingface_hub and its HTTP library have no common root
        raise DataError(
            f"model {name!r} is no folder here and could not be fetched from the hub ({reason(error)}); "
            "check the name and the network, or name a folder"
        ) from None


def push_model(
    model: TextToRegion,
    model_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    **options: Any,
) -> str:
    """Uploads a model with its card to `owner/name`, made if need be; the address of the commit.

    `options` are those of huggingface_hub's HfApi.upload_folder, such as `commit_message` or `create_pr`. Raises a
    DataError where the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_model(model, folder)
        try:
            repo = hub.create_repo(model_id, private=private, exist_ok=True).repo_id
            return str(hub.upload_folder(repo_id=repo, folder_path=folder, revision=branch, **options))
        except Exception as error:
            raise DataError(
                f"the model could not be uploaded to {model_id!r} ({reason(error)}); check the name, the network "
                "and the login (hf auth login)"
            ) from None


def _is_pair(folder: Path) -> bool:
    return (folder / OWN).is_file() or _library_of(folder) is not None


def _library_of(folder: Path) -> str | None:
    """Whose format a folder is in, by its config files; None where it is of none of the three."""
    config = folder / "config.json"
    found = read_json(config, "the model's config") if config.is_file() else {}
    facts = found if isinstance(found, dict) else {}
    if (folder / towers.OPEN_CLIP_CONFIG).is_file() and facts.get("model_type") not in PAIRS:
        return "open_clip"
    return "hf" if "model_type" in facts else "timm" if isinstance(facts.get("architecture"), str) else None


def _load_pair(folder: Path, place: str) -> ImageText:
    """The pair that a folder's phrase_loc.json names, or that is the folder itself, at `place`."""
    own = read_json(folder / OWN, "the settings of the pair") if (folder / OWN).is_file() else {}
    tower = own.pop("tower", None) if isinstance(own, dict) else None
    library = _library_of(folder)
    named = towers.split_name(f"{library}:{place}" if tower in (None, ".") else str(tower))
    if named is None or not isinstance(own, dict):
        raise DataError(
            f"{folder / OWN} names no image-text pair (key tower); save it again, or copy the folder whole"
        )
    return ImageText(":".join(named), towers.load_pair(*named), own)


def _save_pair(model: ImageText, folder: Path, weights: bool | None) -> Path:
    """phrase_loc.json, and where asked for the library's own files beside it."""
    library, place = towers.split_name(model.config.backbone) or ("", "")
    local = Path(place).is_dir()
    make_model_folder(folder, model)
    here = local and same_file(place, folder)
    keep = here or (local if weights is None else weights)
    for path in _files_of(library, place) if keep and not here else ():
        with writing(folder / path.name, ADVICE) as temporary:
            shutil.copyfile(path, temporary)
    facts = {key: getattr(model.config, key) for key in ("format", "inference", "calibration", "card")}
    name = "." if keep else f"{library}:{Path(place).resolve() if local else place}"
    content = json.dumps({"tower": name, **facts}, indent=1, ensure_ascii=False)
    write_bytes(folder / OWN, f"{content}\n".encode(), ADVICE)
    return folder


def _files_of(library: str, place: str) -> list[Path]:
    """The files of a pair, weights, configs and tokenizer, to be copied; a hub's are fetched first."""
    texts, folder = ("*.json", "*.txt", "*.model"), Path(place)
    kinds = ("open_clip*.safetensors" if library == "open_clip" else "model*.safetensors", "*.bin")
    if not folder.is_dir():
        if not towers.HUB_ID.fullmatch(place):
            raise ConfigError(
                f"{library}:{place} is a name of the library's; name its folder or hub id to copy its files"
            )
        from huggingface_hub import snapshot_download

        with towers.reading(library, place):
            folder = Path(snapshot_download(place, allow_patterns=[*texts, kinds[0]]))
    weights = next((found for kind in kinds if (found := sorted(folder.glob(kind)))), [])
    if not weights:
        raise DataError(f"{folder} holds no weights to copy ({' or '.join(kinds)}); keep its name instead")
    return [*(path for kind in texts for path in sorted(folder.glob(kind))), *weights]


def _compact(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.contiguous().cpu()
    half = tensor.detach().to("cpu", torch.float16).contiguous()
    if not torch.isfinite(half).all():
        raise DataError(
            f"the weight {name} has numbers that are not finite in float16; train with a lower rate"
        )
    return half


def _empty(
    config: ModelConfig,
    vocabulary: Vocabulary,
    extra: tuple[str, ...],
    tensors: dict[str, Tensor],
    folder: Path,
) -> TextToRegion:
    """A model to be filled, once its sizes are known to be those of the weights: they could be anything."""
    sizes = {"words.vectors": torch.empty(len(vocabulary), config.embedding, device="meta")}
    if config.hidden is not None:
        sizes["head.lift.weight"] = torch.empty(config.hidden, config.channels, 1, 1, device="meta")
    check_weights(tensors, sizes, str(folder / WEIGHTS))
    rows = tensors.get("words.rows", torch.empty(0, 1))
    if len(rows) != len(extra) or rows.ndim != 2:
        raise DataError(
            f"{folder} holds {len(extra)} out-of-vocabulary words ({EXTRA}) where {len(rows)} were expected by "
            "its weights; copy the whole folder again"
        )
    words = WordTable(torch.zeros(len(vocabulary), config.embedding), config.tuned)
    words.reserve(*(rows.shape if extra else (0, 1)))
    try:
        trunk = _empty_trunk(config, sum(tensor.numel() for tensor in tensors.values()))
        return TextToRegion(config, trunk, TextHead(config), words, vocabulary, extra)
    except PhraseLocError as error:
        raise DataError(f"{folder / CONFIG}: {error}") from None


def _empty_trunk(config: ModelConfig, numbers: int) -> nn.Sequential:
    """The trunk of a config whose weights have so many numbers, its own any."""
    if config.architecture is None:
        return fold_batch_norm(build(config.backbone))
    with torch.device("meta"):
        size = sum(p.numel() for p in towers.blank_trunk(config.architecture).parameters())
    if size > 2 * numbers:
        raise ConfigError(f"its architecture has {size:,} weights, far more than {WEIGHTS}")
    return fold_batch_norm(towers.blank_trunk(config.architecture).eval())


def model_digest(model: TextToRegion) -> str:
    """12 hexadecimal digits that are others for other weights, words or calibration."""
    facts = {key: value for key, value in asdict(model.config).items() if key not in {"card", "inference"}}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(json.dumps([model.vocabulary.words, model.extra]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def model_card(config: ModelConfig, words: int, extra_words: int, size: int) -> str:
    """Markdown with the front matter of a hub: V trained words, M others, weights of `size` bytes."""
    card = config.card
    hidden = f"1x1 convolution to {config.hidden} channels" if config.hidden else "no hidden layer"
    parts = [
        f"---\n{yaml.safe_dump(front_matter(config), sort_keys=False, allow_unicode=True)}---",
        "# phrase_loc model",
        str(card.get("summary", "Type a phrase, get the region of the photograph it names.")),
        f"- backbone: {config.backbone}, batch norms folded\n"
        f"- head: reads the last stage, {hidden}, pool {config.pool}\n"
        f"- words: {words:,} trained, {extra_words:,} further ones; {config.embedding} numbers a vector\n"
        f"- images: {config.image_size} pixels; weights: {size / 1e6:.1f} MB",
        "```python\nfrom phrase_loc import PhraseLocalizer\n\n"
        'localizer = PhraseLocalizer.from_pretrained("FOLDER_OR_HUB_ID")\n'
        'localizer.locate(localizer.look("photo.jpg"), ["a red hat"])\n```',
    ]
    if card.get("figures"):
        parts += ["## Figures", str(card.get("figures_of", "")), _table(card["figures"])]
    if config.calibration:
        lines = [f"- {key}: {_number(value)}" for key, value in config.calibration.items()]
        parts += ["## Is it there? (calibration)", "\n".join(lines)]
    for key in ("words", "data", "recipe", "command", "limits", "license_note"):
        if card.get(key):
            title = "Licence" if key == "license_note" else key.capitalize()
            parts += [f"## {title}", f"```\n{card[key]}\n```" if key == "command" else str(card[key])]
    return "\n\n".join(part for part in parts if part) + "\n"


def front_matter(config: ModelConfig) -> dict[str, Any]:
    """What a hub reads of a card: licence, library, tags, and the figures of the method the model is asked by.

    The figures of other methods stand in the table of the card alone. One is named with all that it depends
    on: method, protocol, metric and, where it has one, its interval.
    """
    values: dict[str, Any] = {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "phrase_loc",
        "pipeline_tag": TASK,
        "tags": ["phrase-grounding", "weakly-supervised", "excitation-backprop", config.backbone],
    }
    figures = config.card.get("figures") or []
    own = str(config.inference.get("method", ""))
    chosen = [row for row in figures if own and str(row.get("method", "")).startswith(own)] or figures
    if chosen:
        dataset = {"type": "flickr30k_entities", "name": str(config.card.get("figures_of") or "not stated")}
        result = {"task": {"type": TASK}, "dataset": dataset, "metrics": [_metric(row) for row in chosen]}
        values["model-index"] = [{"name": "phrase_loc", "results": [result]}]
    return values


def _metric(row: dict[str, Any]) -> dict[str, Any]:
    name = ", ".join(str(row.get(key, "")) for key in ("method", "protocol", "metric"))
    name += f" (95 % interval {_interval(row)})" if row.get("ci95") else ""
    return {"type": str(row.get("metric", "")), "value": row.get("value"), "name": name}


def _table(rows: Sequence[dict[str, Any]]) -> str:
    baselines = sorted({name for row in rows for name in row.get("baselines") or {}})
    head = ["protocol", "method", "metric", "value", "95 % interval", *baselines, "count"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        facts = [*(str(row.get(key, "")) for key in head[:3]), _number(row.get("value", "")), _interval(row)]
        facts += [_number((row.get("baselines") or {}).get(name, "")) for name in baselines]
        lines.append([*facts, str(row.get("count", ""))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval(row: dict[str, Any]) -> str:
    return " to ".join(_number(value) for value in row.get("ci95") or ())


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
