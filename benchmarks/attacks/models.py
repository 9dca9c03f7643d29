"""Settings and models: YAML files, `key=value`, config.json, vocabularies, weights.

What is right: text and paths come out as they went in; a model opens and answers, or is refused; words and weights
that are not those that were saved are always refused.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.attacks.mutations import ODD, changed_bytes, changed_tree
from benchmarks.attacks.tally import Tally
from phrase_loc.config import load_config, to_dict
from phrase_loc.errors import DataError
from phrase_loc.evaluation.protocols import EvaluateConfig
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.build import create, folded
from phrase_loc.models.store import CONFIG, EXTRA, VOCABULARY, WEIGHTS, load_model
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WORDS = ("dog", "cat", "person", "hat", "car")
#: Text that YAML alone would read otherwise, or not at all.
TEXTS = (
    *(
        "runs/1 #2",
        "*.tar",
        "@list",
        "{00000..00003}.tar",
        "photos [2023]",
        "a: b",
        "123",
        "null",
        "~/x",
        "1e5",
        "yes",
    ),
    *(
        " blanks ",
        "- x",
        "[x",
        "]",
        "{a: b}",
        "!x",
        "&a",
        "*a",
        "|",
        ">",
        "%a",
        "2023-01-01",
        "1:30",
        "a=b=c",
        "#",
        "?",
    ),
    *(
        "été",
        "日本/*.tar",
        "\t",
        "''",
        "x'y",
        '"',
        ".",
        "..",
        ".nan",
        "0x1F",
        "010",
        "no",
        "<<",
        "a,b",
        "a\nb",
    ),
)


def attack(count: int, seed: int, folder: Path) -> Tally:
    """Tries `count` changed settings and models; half of them settings."""
    random, tally = Random(seed), Tally()
    model = _model(folder / "model")
    for number in range(count):
        try_one = (_yaml, _override, _yaml, _config_json, _config_json, _words, _weights)[number % 7]
        try_one(tally, f"{number} {try_one.__name__}", random, folder, model)
    return tally


@dataclass(frozen=True)
class Saved:
    """A small model on disk, what its files were, and a picture to ask it about."""

    folder: Path
    files: dict[str, bytes]
    picture: Image.Image

    def restore(self) -> None:
        """Puts all files back."""
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)


def _model(folder: Path) -> Saved:
    torch.manual_seed(0)
    made = create(
        Vocabulary(WORDS, (9, 7, 5, 3, 2)),
        torch.randn(5, 6),
        backbone="tiny",
        weights=None,
        image_size=32,
        hidden=12,
    )
    made.words.set_extra(torch.randn(2, 6))
    made.extra = ("zebra", "kite")
    inference = {"image_sizes": [32], "grid": 16, "proposals": "windows"}
    made.config = replace(made.config, inference=inference, calibration={"slope": 1.0, "offset": 0.5})
    PhraseLocalizer(folded(made)).save_pretrained(folder)
    files = {name: (folder / name).read_bytes() for name in (CONFIG, VOCABULARY, EXTRA, WEIGHTS)}
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Saved(folder, files, Image.fromarray(noise))


def _yaml(tally: Tally, name: str, random: Random, folder: Path, model: Saved) -> None:
    """A shipped file of settings with a few bytes changed, or lines exchanged."""
    source = random.choice(sorted(CONFIGS.glob("*.yaml")))
    content = source.read_bytes()
    if random.random() < 0.3:
        lines = content.splitlines(True)
        lines.insert(random.randrange(len(lines)), random.choice(lines))
        content = b"".join(lines)
    else:
        content = changed_bytes(content, random)
    path = folder / random.choice(("settings.yaml", "lr=1.yaml", "settings 2.yml"))
    path.write_bytes(content)
    kind = TrainConfig if b"phases" in source.read_bytes() else EvaluateConfig
    tally.take(name, lambda: to_dict(load_config(kind, [str(path)])))
    path.unlink()


def _override(tally: Tally, name: str, random: Random, folder: Path, model: Saved) -> None:
    """`key=value`: text is taken as it is written, whatever it looks like; of other values, anything."""
    text = random.choice((*TEXTS, *(str(odd) for odd in ODD), random.choice(TEXTS) + random.choice(TEXTS)))
    if random.random() < 0.5:
        key = random.choice(("data.shards", "out", "model.start", "data.index", "validation.root"))
        basis = [a for a in ("data.shards=x", "out=runs/x") if not a.startswith(key)]
        config = tally.take(name, lambda: load_config(TrainConfig, [*basis, f"{key}={text}"]))
        value: Any = config
        for part in key.split(".") if config is not None else ():
            value = getattr(value, part)
        quoted = text[:1] + text[-1:] in ("''", '""', "[]")
        if config is not None and not quoted and str(value) != (str(Path(text)) if key == "out" else text):
            tally.wrong.append(f"{name}: {key}={text!r:.80} was read as {value!r:.80}")
        return
    key = random.choice(
        (
            *(
                "bootstrap",
                "limit",
                "held_out",
                "faithful",
                "method",
                "protocols",
                "data",
                "data.options",
                "inference",
            ),
            *(
                "inference.gamma",
                "data.options.year",
                "protocols.0",
                "method.x.y",
                "",
                ".",
                "data..root",
                "0",
                "é",
            ),
        )
    )
    basis = ["data.root=x", "protocols=[pointing_any]"]
    tally.take(name, lambda: to_dict(load_config(EvaluateConfig, [*basis, f"{key}={text}"])))


def _config_json(tally: Tally, name: str, random: Random, folder: Path, model: Saved) -> None:
    """config.json with another value, key or byte; what opens must answer as well."""
    content = model.files[CONFIG]
    if random.random() < 0.7:
        tree = changed_tree(json.loads(content), random)
        changed = json.dumps(tree).encode("utf-8", "surrogatepass")
    else:
        changed = changed_bytes(content, random)
    (model.folder / CONFIG).write_bytes(changed)
    tally.take(name, lambda: _ask(model))
    model.restore()


def _ask(model: Saved) -> list[float | None]:
    localizer = PhraseLocalizer.from_pretrained(model.folder, device="cpu")
    localizer.encode(["a dog"])
    if max(localizer.settings.image_sizes) * len(localizer.settings.image_sizes) > 200:
        return []  # right, and slow
    answers = localizer(model.picture, ["a dog", "a kite"])
    return [answer.present for answer in answers]


def _words(tally: Tally, name: str, random: Random, folder: Path, model: Saved) -> None:
    """A changed list of words would answer for others."""
    file = random.choice((VOCABULARY, EXTRA))
    lines = model.files[file].splitlines(True)
    random.shuffle(lines)
    changed = b"".join(lines) if random.random() < 0.3 else changed_bytes(model.files[file], random)
    _must_be_refused(tally, name, model, file, changed)
    values = json.loads(model.files[CONFIG])
    for key in ("vocabulary_sha256", "extra_words_sha256"):
        del values[key]
    (model.folder / CONFIG).write_text(json.dumps(values))  # a model of old: read or refused
    (model.folder / file).write_bytes(changed)
    Tally.take(tally, f"{name}, old", lambda: load_model(model.folder))
    model.restore()


def _weights(tally: Tally, name: str, random: Random, folder: Path, model: Saved) -> None:
    content = model.files[WEIGHTS]
    header = 8 + int.from_bytes(content[:8], "little")
    if random.random() < 0.5:  # in the header, where a size may become anything
        changed = changed_bytes(content[:header], random) + content[header:]
    else:
        changed = changed_bytes(content, random)
    _must_be_refused(tally, name, model, WEIGHTS, changed)


def _must_be_refused(tally: Tally, name: str, model: Saved, file: str, changed: bytes) -> None:
    (model.folder / file).write_bytes(changed)

    def opened() -> None:
        load_model(model.folder)
        if changed != model.files[file]:
            raise AssertionError(f"{file} was changed and nothing was said")
        raise DataError("not changed at all")

    tally.take(name, opened)
    model.restore()
