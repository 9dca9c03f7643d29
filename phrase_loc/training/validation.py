"""Figures on annotated images during training: pointing and R@k of Flickr30k Entities, by `evaluate` itself."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from phrase_loc.config import build
from phrase_loc.distributed import World
from phrase_loc.errors import DataError, choose
from phrase_loc.models.model import TextToRegion
from phrase_loc.training.config import TrainConfig

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
    from phrase_loc.evaluation import localization

    plan = plan_of(config)
    protocols = plan.chosen_protocols()
    localization.check(protocols, plan.held_out)
    figures = [f"{protocol.name}/{metric}" for protocol in protocols for metric in protocol.metrics]
    choose(dict.fromkeys(figures), asked.metric, "figure in validation.metric")
    if not len(DATASETS[plan.data.name](root=plan.data.root, split=plan.data.split)):
        raise DataError(f"validation.root {asked.root} has no image in split {asked.split!r}; check both")


def measure(config: TrainConfig, model: TextToRegion, world: World) -> dict[str, float]:
    """'protocol/metric' -> value on the validation images, which the processes share between them."""
    from phrase_loc.evaluation import procedure
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
