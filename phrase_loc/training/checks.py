"""What can be wrong with a run's settings, looked for before it begins: a typing error must not cost an hour.

Types and ranges are checked as the config is read (config.py). Here stands what needs torch, the network or a file,
such as those that only a later phase or the last step opens; and the measures of a run: the one that
`config.validation` asks for, and whether photographs that a run with few of them held out are ranked by its words.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from phrase_loc.config import build
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.files import reason
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models.build import create, folded
from phrase_loc.models.model import TextToRegion, last_frozen, trainable_stages
from phrase_loc.models.store import load_model
from phrase_loc.pairs.dataset import Transform, WebImages, in_order
from phrase_loc.text import vectors
from phrase_loc.text.english import tokens
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.features import BATCH
from phrase_loc.training.losses import LOSSES
from phrase_loc.training.objective import table
from phrase_loc.training.setup import Setup, read_texts, text_files

if TYPE_CHECKING:
    from phrase_loc.evaluation.protocols import EvaluateConfig

log = logging.getLogger(__name__)

#: The model as it is, all processes -> figures, higher is better, the same everywhere.
Measure = Callable[[TextToRegion, World], dict[str, float]]

_WORDS = Vocabulary(("dog", "cat"), (2, 1))
_SHUFFLES = 200  # orders of held-out photographs that do not look


def check(config: TrainConfig, world: World) -> None:
    """Refuses what would fail later: names, sizes and combinations (ConfigError), files and packages (DataError)."""
    for phase in config.run_phases:
        for name in phase.losses:
            choose(LOSSES, name, f"loss of phase {phase.name}")
        if phase.batch < world.size * phase.accumulate:
            raise ConfigError(
                f"phase {phase.name}: a batch of {phase.batch} cannot be split over {world.size} processes and "
                f"{phase.accumulate} micro-batches; raise phases.batch or lower accumulate"
            )
    if config.precision == "float64" and world.device.type == "mps":
        raise ConfigError("precision=float64 does not exist on an Apple GPU; take float32, or device=cpu")
    if world.is_main:
        _check_words(config)
        _check_validation(config)
        model = _model(config)
        for phase in (*config.run_phases, *([config.few.phase] if config.few.below else [])):
            _check_phase(phase, model)
        _localizer(config, model)
        if config.compile:
            _check_compiler(world)


def _check_words(config: TrainConfig) -> None:
    """Whether what the vocabulary, vectors and out-of-vocabulary words are read from is there."""
    fresh = config.model.start in ("", "auto")
    if config.further.words or (fresh and config.vectors.source == "glove"):
        vectors.glove_package(())
    if config.further.words:
        deque(read_texts(config.further.texts), maxlen=0)  # to the end: they are used in the last step
    if file := config.vocabulary.file:
        for word in Vocabulary.load(file).words:
            if (read := " ".join(tokens(word))) != word:
                told = f"{file} has the word {word[:60]!r}, which no text is read as"
                raise ConfigError(f"{told}; write {read!r}" if read else f"{told}; leave it out")
    for path in text_files(config.vocabulary.extra_texts):
        next(read_texts((path,)), None)


def _model(config: TrainConfig) -> TextToRegion:
    """A model with two words, or the one that the run starts from: stages, sizes and head are those of the run."""
    settings = vars(config.model).copy()
    start = settings.pop("start")
    if start not in ("", "auto"):
        model = load_model(start)
        if model.reads_phrases:
            raise ConfigError(
                f"model.start={start} is an image-text pair and has no words to go on from; take its image tower: "
                f"model.start=none model.backbone={model.config.backbone}"
            )
        return model
    free = config.vectors.source == "free"
    numbers = (config.model.hidden or 0) + 1 if free else 2
    return create(_WORDS, torch.zeros(2, numbers), free=free, **settings).eval()


def _check_phase(phase: PhaseConfig, model: TextToRegion) -> None:
    trainable_stages(model.trunk, phase.train_from)
    if phase.cache:
        last_frozen(model.trunk, phase.train_from)
    for side in phase.sizes or (model.config.image_size,):
        try:
            with torch.inference_mode():
                model.trunk(torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"phase {phase.name}: images of {side} x {side} pixels do not fit {model.config.backbone} "
                f"({reason(error)}); take a multiple of 32"
            ) from None


def _check_compiler(world: World) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=world.device))
    except Exception as error:  # a compiler that is missing or broken raises what it likes
        raise ConfigError(
            f"compile=true cannot work here ({reason(error)}); install a C++ compiler or set compile=false"
        ) from None


def _localizer(config: TrainConfig, model: TextToRegion) -> PhraseLocalizer:
    """The model as it is asked with the settings that it is released with."""
    settings = Inference.from_dict({**model.config.inference, **config.inference})
    return PhraseLocalizer(folded(model).float(), settings)


def _plan(config: TrainConfig) -> "EvaluateConfig":
    from phrase_loc.evaluation.protocols import EvaluateConfig

    asked = config.validation
    plan = {"data": {"root": asked.root, "split": asked.split}, "protocols": list(asked.protocols)}
    rest = {"limit": asked.limit, "output": config.out / "validation.json", "bootstrap": 1, "resume": False}
    return build(EvaluateConfig, {**plan, **rest})


def _check_validation(config: TrainConfig) -> None:
    """Unknown protocols, splits and figures, and annotations that are not there."""
    asked = config.validation
    if not asked.root:
        return
    from phrase_loc.evaluation import run

    plan = _plan(config)
    images, _, protocols = run.read_data(plan)
    figures = [f"{protocol.name}/{metric}" for protocol in protocols for metric in protocol.metrics]
    choose(dict.fromkeys(figures), asked.metric, "figure in validation.metric")
    if not len(images):
        raise DataError(f"validation.root {asked.root} has no image in split {asked.split!r}; check both")


def measure_of(config: TrainConfig) -> Measure | None:
    """'protocol/metric' -> value on the validation images, which the processes share; None without annotations."""
    if not config.validation.root:
        return None
    from phrase_loc.evaluation.run import evaluate

    def measure(model: TextToRegion, world: World) -> dict[str, float]:
        evaluation = evaluate(_plan(config), world, _localizer(config, model))
        figures = {}
        for protocol in evaluation.plan.protocols:
            for metric in protocol.metrics:
                row = evaluation.rows.row(protocol, evaluation.config.methods[0], metric)
                figures[f"{protocol.name}/{metric}"] = float(row["value"])
        world.barrier()  # until then another process may read the results of single images
        if world.is_main:
            evaluation.progress.clear()
        return figures

    return measure


def held_out_score(config: TrainConfig, model: TextToRegion, setup: Setup) -> dict[str, Any]:
    """How well the learned words rank the photographs that were held out; {} where none were.

    The baseline does not look: the average precision of any order is about the share of photographs that have the
    word, and shuffled orders show how far chance alone goes. Words that none or all of them have are not scored.
    """
    numbers = list(setup.held_out)
    if not numbers:
        return {}
    ids = setup.new or range(len(model.vocabulary))
    size = (config.run_phases[-1].sizes or (model.config.image_size,))[-1]
    images = WebImages(setup.source, setup.labeller, [Transform((size, size))], config.seed, negatives=True)
    vectors, rows = model.words.vectors, torch.arange(ids.start, ids.stop)
    scores, labels = [], []
    with torch.inference_mode():
        for batch in in_order(images, numbers, BATCH):
            kept = batch.weights > 0
            pixels = batch.images.to(vectors.device, vectors.dtype)
            scores.append(model(pixels, rows.to(vectors.device)).float().cpu()[kept])
            labels.append(table(batch.words, rows, len(kept), torch.float32)[kept] > 0)
    words = [model.vocabulary.words[i] for i in ids]
    return _summary(words, torch.cat(scores).numpy(), torch.cat(labels).numpy())


def _summary(words: Sequence[str], scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    count, said = len(labels), labels.sum(0)
    asked = (said > 0) & (said < count)
    result: dict[str, Any] = {"photographs": count, "words_scored": int(asked.sum())}
    places, truth = np.argsort(-scores[:, asked], axis=0, kind="stable"), labels[:, asked]
    found = average_precision(truth, places)
    if len(found):
        random = np.random.default_rng(0)
        orders = (truth[random.permutation(count)] for _ in range(_SHUFFLES))
        shuffled = [average_precision(order, places).mean() for order in orders]
        result |= {"average_precision": float(found.mean()), "share": float(truth.mean())}
        result["shuffled_95"] = float(np.quantile(shuffled, 0.95))
    each = dict(zip(np.flatnonzero(asked).tolist(), found.tolist(), strict=True))
    result["words"] = {
        word: {"photographs": int(said[i]), "average_precision": each.get(i), "share": said[i] / count}
        for i, word in enumerate(words)
    }
    return result


def average_precision(labels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,K) bool, (n,K) photographs by descending score -> (K,); each word has a photograph."""
    hits = np.take_along_axis(labels, places, 0)
    precision = hits.cumsum(0) / np.arange(1, len(hits) + 1)[:, None]
    return np.asarray((precision * hits).sum(0) / hits.sum(0))


def told_of_held_out(found: dict[str, Any], path: Path) -> str:
    """Logs what `held_out_score` found, a warning where that is no better than not looking; the card's sentence."""
    if not found:
        return ""
    if not found["words_scored"] or found["shuffled_95"] > 0.999:  # chance alone would often seem perfect
        log.warning("not measured: %d held-out photographs are too few to tell", found["photographs"])
        return "Not measured: too few photographs were held out to tell."
    told = (
        f"{found['photographs']} photographs were held out; of {found['words_scored']} words they are ranked with a "
        f"mean average precision of {found['average_precision']:.2f}, without looking {found['share']:.2f}"
    )
    ranked = sorted(found["words"].items(), key=lambda pair: -pair[1]["photographs"])
    for word, row in [pair for pair in ranked if pair[1]["average_precision"] is not None][:10]:
        one = (word, row["average_precision"], row["share"], row["photographs"])
        log.info("  %s: average precision %.2f, without looking %.2f (%d photographs)", *one)
    log.info("held out: %s (%s)", told, path)
    if found["average_precision"] > found["shuffled_95"]:
        return f"{told}."
    chance = f"no better than chance, which reaches {found['shuffled_95']:.2f}"
    advice = "give more photographs of each word, or words for what can be seen"
    log.warning("NO BETTER THAN NOT LOOKING: %s: %s; %s", told, chance, advice)
    return f"{told}: {chance}."
