"""What can be wrong with a run's settings, looked for before it begins: a typing error must not cost an hour.

Types and ranges are checked as the config is read (config.py). Here stands what needs torch, the network or a file:
names of losses, pools and stages, input sizes, how the model will be asked, figures, and files that only a later
phase or the last step opens.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from phrase_loc.config import build
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models.build import create, folded
from phrase_loc.models.model import TextToRegion, last_frozen, pool_named, trainable_stages
from phrase_loc.models.store import load_model
from phrase_loc.pairs.paths import expand
from phrase_loc.text import labels, vectors
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.losses import LOSSES
from phrase_loc.training.setup import read_texts

_WORDS = Vocabulary(("dog", "cat"), (2, 1))


def check(config: TrainConfig, world: World) -> None:
    """Refuses settings that would fail later.

    Args:
        config: whose types and ranges are right.
        world: the processes; the main one looks at files and networks.

    Raises:
        ConfigError: a name, a size or a combination that cannot be.
        DataError: a file that is missing or unreadable, a package that is not installed.
    """
    for phase in config.run_phases:
        for name in phase.losses:
            choose(LOSSES, name, f"loss of phase {phase.name}")
        if phase.batch < world.size * phase.accumulate:
            raise ConfigError(
                f"phase {phase.name}: a batch of {phase.batch} cannot be split over {world.size} processes and "
                f"{phase.accumulate} micro-batches; raise phases.batch"
            )
    if config.precision == "float64" and world.device.type == "mps":
        raise ConfigError("precision=float64 does not exist on an Apple GPU; take float32, or device=cpu")
    if not world.is_main:
        return
    _check_words(config)
    check_validation(config)
    model = _model(config)
    for phase in config.run_phases:
        _check_phase(phase, model)
    # the settings with which it is released open it here as they will later
    settings = Inference.from_dict({**model.config.inference, **config.inference})
    PhraseLocalizer(folded(model), settings)
    if config.compile:
        _check_compiler(world)


def _check_words(config: TrainConfig) -> None:
    """Vocabulary, vectors, related and further words: whether what they are read from is there."""
    if config.further.words:
        vectors.glove_package(limit=1)
        deque(read_texts(config.further.texts), maxlen=0)  # to the end: they are used in the last step
    if config.labels.unpunished == "hypernyms":
        labels.hypernyms(_WORDS)
    if config.model.start:
        return
    if config.vocabulary.file:
        Vocabulary.load(config.vocabulary.file)
    for path in expand(config.vocabulary.extra_texts) if config.vocabulary.extra_texts else ():
        next(read_texts((path,)), None)
    if config.vectors.source == "glove":
        vectors.glove_package(limit=1)
    elif config.vectors.source == "file":
        vectors.read_glove(config.vectors.file, limit=3)
    elif config.vectors.source == "encoder":
        vectors.encoder_vectors(_WORDS.words, config.vectors.file)


def _model(config: TrainConfig) -> TextToRegion:
    """A model with two words, or the one that the run starts from: stages, sizes and head are those of the run."""
    settings = config.model
    if settings.start:
        model = load_model(settings.start)
        if model.config.free and config.labels.unpunished == "vectors":
            raise ConfigError(
                "labels.unpunished=vectors needs vectors from text, and the words of model.start have units of their "
                "own; set labels.unpunished=paraphrases"
            )
        return model
    pool_named(settings.pool)
    free = config.vectors.source == "free"
    return create(
        _WORDS,
        torch.zeros(2, (settings.hidden or 0) + 1 if free else 2),
        free=free,
        **{key: getattr(settings, key) for key in vars(settings) if key != "start"},
    ).eval()


def _check_phase(phase: PhaseConfig, model: TextToRegion) -> None:
    trainable_stages(model.trunk, phase.train_from)
    if phase.cache:
        last_frozen(model.trunk, phase.train_from)
    for side in phase.sizes or (model.image_size,):
        try:
            with torch.inference_mode():
                model.trunk(torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"phase {phase.name}: images of {side} x {side} pixels do not fit {model.config.backbone} "
                f"({' '.join(str(error).split())[:120]}); take a multiple of 32"
            ) from None


def _check_compiler(world: World) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=world.device))
    except Exception as error:  # a compiler that is missing or broken raises what it likes
        raise ConfigError(
            f"compile=true cannot work here ({' '.join(str(error).split())[:160]}); install a C++ compiler or set "
            "compile=false"
        ) from None


if TYPE_CHECKING:
    from phrase_loc.evaluation.config import EvaluateConfig

#: The model as it is, all processes -> figures, higher is better, the same everywhere.
Measure = Callable[[TextToRegion, World], dict[str, float]]


def measure_of(config: TrainConfig) -> Measure | None:
    """The measure that `config.validation` asks for; None without annotated images."""
    if not config.validation.root:
        return None
    return lambda model, world: measure(config, model, world)


def plan_of(config: TrainConfig) -> "EvaluateConfig":
    """The evaluation that `config.validation` asks for."""
    from phrase_loc.evaluation.config import EvaluateConfig

    asked = config.validation
    plan = {
        "data": {"root": asked.root, "split": asked.split},
        "protocols": list(asked.protocols),
        "output": config.out / "validation.json",
        "bootstrap": 1,
        "limit": asked.limit,
        "resume": False,
    }
    return build(EvaluateConfig, plan)


def check_validation(config: TrainConfig) -> None:
    """Refuses what the first measurement would stumble over; without annotated images there is none.

    Raises:
        ConfigError: an unknown protocol, split or figure.
        DataError: no annotations there.
    """
    asked = config.validation
    if not asked.root:
        return
    from phrase_loc.datasets import DATASETS
    from phrase_loc.evaluation import thresholds

    plan = plan_of(config)
    protocols = plan.chosen_protocols()
    thresholds.check(protocols, plan.held_out)
    figures = [f"{protocol.name}/{metric}" for protocol in protocols for metric in protocol.metrics]
    choose(dict.fromkeys(figures), asked.metric, "figure in validation.metric")
    if not len(DATASETS[plan.data.name](root=plan.data.root, split=plan.data.split)):
        raise DataError(f"validation.root {asked.root} has no image in split {asked.split!r}; check both")


def measure(config: TrainConfig, model: TextToRegion, world: World) -> dict[str, float]:
    """'protocol/metric' -> value on the validation images, which the processes share between them."""
    from phrase_loc.evaluation import run as procedure
    from phrase_loc.localizer import Inference, PhraseLocalizer
    from phrase_loc.models.build import folded

    settings = Inference.from_dict({**model.config.inference, **config.inference})
    localizer = PhraseLocalizer(folded(model).float(), settings)
    evaluation = procedure.evaluate(plan_of(config), world, localizer)
    figures = {}
    for protocol in evaluation.plan.protocols:
        for metric in protocol.metrics:
            row = evaluation.rows.row(protocol, evaluation.asked[0], metric)
            figures[f"{protocol.name}/{metric}"] = float(row["value"])
    world.barrier()  # until then another process may read the results of single images
    if world.is_main:
        evaluation.progress.clear()
    return figures
