"""Figures on annotated images during training: pointing and R@k of Flickr30k Entities, by `evaluate` itself."""

from collections.abc import Callable
from pathlib import Path

from phrase_loc.distributed import World
from phrase_loc.models.text_to_region import TextToRegion
from phrase_loc.training.config import TrainConfig

#: The model as it is, all processes -> figures, higher is better, the same everywhere.
Measure = Callable[[TextToRegion, World], dict[str, float]]


def measure_of(config: TrainConfig) -> Measure | None:
    """The measure that `config.validation` asks for; None without annotated images."""
    if not config.validation.root:
        return None
    return lambda model, world: measure(config, model, world)


def measure(config: TrainConfig, model: TextToRegion, world: World) -> dict[str, float]:
    """'protocol/metric' -> value on the validation images, which the processes share between them."""
    from phrase_loc.evaluation import procedure
    from phrase_loc.evaluation.config import DataConfig, EvaluateConfig
    from phrase_loc.localizer import Inference, PhraseLocalizer
    from phrase_loc.models.assembly import folded

    asked = config.validation
    settings = Inference.from_dict({**model.config.inference, **config.inference})
    plan = EvaluateConfig(
        data=DataConfig(root=Path(asked.root), split=asked.split),
        protocols=list(asked.protocols),
        output=config.out / "validation.json",
        bootstrap=1,
        limit=asked.limit,
        resume=False,
    )
    evaluation = procedure.evaluate(plan, world, PhraseLocalizer(folded(model).float(), settings))
    figures = {}
    for protocol in evaluation.plan.protocols:
        for metric in protocol.metrics:
            row = evaluation.rows.row(protocol, evaluation.asked[0], metric)
            figures[f"{protocol.name}/{metric}"] = float(row["value"])
    evaluation.progress.clear()
    return figures
