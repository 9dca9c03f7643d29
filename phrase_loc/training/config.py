"""The settings of a training run, as one frozen tree; configs/train_web.yaml names them with their reasons.

Every number has its range here, so that a wrong one is told before the run begins.
"""

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from phrase_loc.config import config_dataclass, without_retired
from phrase_loc.errors import ConfigError
from phrase_loc.pairs.sources import TEXT_FIELDS

Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Processes = Annotated[int, Field(ge=0, le=1024)]
Side = Annotated[int, Field(ge=1, le=4096)]


@config_dataclass
class DataConfig:
    """Image-text pairs."""

    # tars: a path, a glob, a brace range, a list of those, or `@file` of paths; or a .csv/.tsv/.parquet/.jsonl table,
    # or a folder with a captions file
    shards: str | tuple[str, ...]
    index: str = ""  # folder for the shards' offset indices; the run's own when empty
    features: str = ""  # folder for what phases with `cache` keep, which runs can share
    # JSON fields or columns that hold text
    text_fields: Annotated[tuple[str, ...], Field(min_length=1)] = TEXT_FIELDS
    max_faults: Share = 0.05  # share of the samples that may be unusable before the run stops
    window: NonNegativeInt = 0  # shards shuffled together; 0 shuffles all, which asks for a fast disk
    workers: Processes = 2  # processes that decode, for each training process


@config_dataclass
class VocabularyConfig:
    """The words that are learned."""

    file: str = ""  # a finished vocabulary; else it is counted from the texts
    extra_texts: tuple[str, ...] = ()  # files, a text a line (after a tab, if any), counted as well
    size: PositiveInt = 18_000  # most words
    min_count: PositiveInt = 20  # a word must be seen so often
    min_association: float = 0.35  # normalised PMI from which two words are one unit
    pair_share: Share = 0.25  # most of `size` that may be bigrams


@config_dataclass
class VectorsConfig:
    """The word vectors of the text head."""

    # glove (the PyPI package), ppmi (co-occurrence of the texts), random, or free: every word learns its own
    # classifier row and bias, no projection
    source: Literal["glove", "ppmi", "random", "free"] = "glove"
    file: Literal[""] = ""  # retired, as encoder: no better than the others (docs/experiments.md)
    size: PositiveInt = 300  # numbers a word, for ppmi and random
    bias: float = -4.0  # that words start with, about the log-odds of being said of an image
    tuned: bool = True  # train them


def _from_scratch(value: Any) -> Any:
    return "" if value in (None, "none", "null") else value


@config_dataclass
class LabelsConfig:
    """From texts to weak labels; see text/vocabulary.py."""

    last_word: Share = 0.5  # strength that the last word of a bigram takes from it
    # retired at the values that they have in older configs: none of them helped (docs/experiments.md)
    agree: int = 1
    unpunished: str = "none"
    balance: float = 0.0
    most: float = 10.0  # of what balance made

    def __post_init__(self) -> None:
        without_retired(vars(self), {"agree": 1, "unpunished": "none", "balance": 0.0}, "labels setting")


@config_dataclass
class ModelSettings:
    """The network; see models.build.create."""

    # a model folder to go on from, with its own model and vectors settings; its vocabulary grows by the words of the
    # texts. none starts from scratch; auto too, save for few photographs (see FewConfig)
    start: Annotated[str, BeforeValidator(_from_scratch)] = "auto"
    backbone: str = "efficientnet_lite0"
    weights: str | None = "imagenet"
    fold: bool = True
    image_size: Side | None = None
    hidden: PositiveInt | None = 512
    pool: str = "log_sum_exp"
    sharpness: PositiveFloat = 4.0


@config_dataclass
class PhaseConfig:
    """A part of a run with its own trained layers, rates and losses."""

    name: str = "train"  # for the log and file names
    epochs: PositiveFloat = 1.0  # passes over all samples; a fraction is allowed
    steps: NonNegativeInt = 0  # in place of epochs, where not 0
    # of a model that is gone on from: train the rows of the words that it lacked, nothing else
    new_words_only: bool = False
    batch: PositiveInt = 64  # images of a step, over all processes and micro-batches
    accumulate: PositiveInt = 1  # micro-batches of a step
    train_from: str = "none"  # none (frozen trunk), all, or the lowest trained stage
    cache: bool = False  # keep the frozen stages' output; images are then not augmented, only mirrored
    sizes: tuple[Side, ...] = ()  # input sizes (H = W), one drawn for each step; the model's own when empty
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0  # smallest share of the area that a random crop keeps
    mirror: Share = 0.5  # probability of mirroring, where no text says left or right
    jitter: Share = 0.0  # strength of colour changes, hue only where no text names a colour
    dropout: BelowOne = 0.0  # of the head's features
    lr: PositiveFloat = 1e-3  # of head and word vectors
    trunk_lr: NonNegativeFloat = 0.1  # of the highest trained stage, as a share of lr
    layer_decay: PositiveFloat = 0.8  # from a stage to the one below
    weight_decay: NonNegativeFloat = 0.01  # of matrices
    optimizer: Literal["adamw"] = "adamw"  # the one there is
    momentum: BelowOne = 0.9  # of an optimizer that is gone; older configs say it, and it does nothing
    warmup: NonNegativeInt = 100  # steps, linear
    schedule: Literal["cosine"] = "cosine"  # to 0, the one there is
    clip: NonNegativeFloat = 1.0  # largest norm of the gradient; 0 does not clip
    # name -> weight, summed
    losses: dict[str, NonNegativeFloat] = field(default_factory=lambda: {"sigmoid": 1.0})
    # words that a step scores: 0 all, else those said in the batch and sampled others
    words: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^\W_][\w .+-]{0,99}", self.name):
            raise ConfigError(
                f"a phase's name is part of file names: letters, digits, spaces and .+-_ after a letter or digit, "
                f"got {self.name[:120]!r}"
            )
        if not any(self.losses.values()):
            raise ConfigError(
                f"phase {self.name} has no loss; give losses a weight over 0, such as sigmoid: 1"
            )


@config_dataclass
class ValidationConfig:
    """Figures on annotated images during training; none without a root."""

    root: str = ""  # folder of Flickr30k Entities
    split: str = "val"
    protocols: tuple[str, ...] = ("pointing_any", "recall_union")  # of the evaluation
    every: NonNegativeFloat = 1.0  # epochs between two measurements, and always at the end
    metric: str = "pointing_any/accuracy"  # figure that chooses the best checkpoint; higher is better
    limit: NonNegativeInt = 0  # images; all when 0


@config_dataclass
class FurtherConfig:
    """Out-of-vocabulary words; see setup.add_further_words."""

    words: NonNegativeInt = 0  # how many
    texts: tuple[str, ...] = ()  # files whose words get vectors by their company, before GloVe's do
    penalty: PositiveFloat = 3.0  # of the ridge regression that places them


@config_dataclass
class FewConfig:
    """A run with few photographs holds out a tenth and says what it found there.

    With model.start=auto, and settings that are those of the shipped model, it starts from that model, keeps it as it
    is and learns in `phase` the words that it lacks; with `only`, the named phases are run in its place.
    """

    below: NonNegativeInt = 0  # photographs; 0 is never
    min_count: PositiveInt = 5  # photographs said to show a new word; the lower of it and the vocabulary's
    phase: PhaseConfig = PhaseConfig(
        name="words", steps=200, cache=True, sizes=(320,), mirror=0.0, lr=0.01, weight_decay=0.5, warmup=0, clip=0.0,
        new_words_only=True,
    )  # fmt: skip


@config_dataclass
class TrainConfig:
    """A whole run."""

    out: Path  # folder of the run: checkpoints, metrics.jsonl, the model
    data: DataConfig
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    phases: tuple[PhaseConfig, ...] = (PhaseConfig(),)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of everything random
    device: str = "auto"  # auto, cpu, cuda
    precision: Literal["float32", "float64", "bf16", "fp16"] = "float32"  # float64 for tests, mixed on a GPU
    ema: BelowOne = 0.0  # decay of the average of the weights that is released; 0 releases the last weights
    only: tuple[str, ...] = ()  # names of the phases that are run; all when empty
    average_of: tuple[str, ...] = ()  # phases whose last weights are averaged; the last alone when empty
    compile: bool = False  # torch.compile the trunk (minutes at the start, faster steps)
    recompute: bool = False  # compute activations of the trunk's stages again instead of keeping them
    memory_mb: PositiveInt = 1024  # most that the scores of words at locations may take at a time, megabytes
    save_every: PositiveInt = 200  # steps between checkpoints
    log_every: PositiveInt = 20  # steps between lines of metrics.jsonl
    tensorboard: bool = False  # write event files too
    threads: Processes = 0  # of each process on the CPU; 0 leaves torch's choice
    further: FurtherConfig = field(default_factory=FurtherConfig)
    few: FewConfig = field(default_factory=FewConfig)
    inference: dict[str, Any] = field(default_factory=dict)  # settings that the model is released with
    card: dict[str, str] = field(default_factory=dict)  # facts for the model card

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"phases need different names, at least one, got {', '.join(names) or 'none'}")
        for key, chosen in (("only", self.only), ("average_of", self.average_of)):
            for name in chosen:
                if name not in names:
                    raise ConfigError(f"{key} names phases ({', '.join(names)}), got {name!r}")
        if self.new_words_only and (len(self.run_phases) > 1 or self.run_phases[0].train_from != "none"):
            raise ConfigError(
                "a phase with new_words_only keeps the whole model: set its train_from to none, and run it by itself "
                "(only=[NAME])"
            )
        if self.new_words_only and not self.model.start:
            raise ConfigError(
                "a phase with new_words_only needs a model that is kept; set model.start=default"
            )
        fresh, free = self.model.start in ("", "auto"), self.vectors.source == "free"
        if fresh and free and (self.model.hidden is None or not self.vectors.tuned):
            raise ConfigError(
                "vectors.source=free needs model.hidden, the number of channels, and vectors.tuned=true"
            )

    @property
    def new_words_only(self) -> bool:
        """Whether the model that is gone on from is kept, and rows of new words are all that is trained."""
        return any(phase.new_words_only for phase in self.run_phases)

    @property
    def averaged(self) -> tuple[str, ...]:
        """The phases of average_of that are run."""
        return tuple(name for name in self.average_of if not self.only or name in self.only)

    @property
    def run_phases(self) -> tuple[PhaseConfig, ...]:
        """The phases that are run, in their order."""
        return tuple(phase for phase in self.phases if not self.only or phase.name in self.only)
