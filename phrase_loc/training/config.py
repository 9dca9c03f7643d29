"""The settings of a training run, as one frozen tree; configs/train_web.yaml names them with their reasons."""

import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from phrase_loc.config import config_dataclass
from phrase_loc.errors import ConfigError
from phrase_loc.pairs.sources import TEXT_FIELDS

# Every number of a run has its range here, so that a wrong one is told before the run begins.
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Processes = Annotated[int, Field(ge=0, le=1024)]
Side = Annotated[int, Field(ge=1, le=4096)]


@config_dataclass
class DataConfig:
    """Image-text pairs.

    Attributes:
        shards: tars: a path, a glob, a brace range, a list of those, or `@file` of paths; the pairs may as well be
            a .csv/.tsv/.parquet/.jsonl table or a folder with a captions file.
        index: folder for the shards' offset indices; the run's own when empty.
        features: folder for what phases with `cache` keep, so that several runs share it; the run's own when empty.
        text_fields: JSON fields or columns that hold text.
        max_faults: share of the samples that may be unusable before the run stops.
        window: shards whose samples are shuffled together; 0 shuffles all, which asks for a fast disk.
        workers: processes that decode, for each training process.
    """

    shards: str | tuple[str, ...]
    index: str = ""
    features: str = ""
    text_fields: Annotated[tuple[str, ...], Field(min_length=1)] = TEXT_FIELDS
    max_faults: Share = 0.05
    window: Count = 0
    workers: Processes = 2


@config_dataclass
class VocabularyConfig:
    """The words that are learned.

    Attributes:
        file: a finished vocabulary; else it is counted from the texts.
        extra_texts: text files (.txt or .gz, a text a line, after a tab if there is one) that are counted as well.
        size: most words.
        min_count: a word must be seen so often.
        min_association: normalised PMI from which two words are one unit.
        pair_share: most of `size` that may be pairs.
    """

    file: str = ""
    extra_texts: tuple[str, ...] = ()
    size: AtLeastOne = 18_000
    min_count: AtLeastOne = 20
    min_association: Finite = 0.35
    pair_share: Share = 0.25


@config_dataclass
class VectorsConfig:
    """The word vectors of the text head.

    Attributes:
        source: glove (the PyPI package), file (GloVe's text format), ppmi (co-occurrence of the texts), encoder (a
            transformers text encoder), random, or free: every word learns its own unit and bias, no projection.
        file: of GloVe vectors, or the encoder's folder or package.
        size: numbers a word, for ppmi and random.
        bias: that words start with, about the log-odds of being said of an image.
        tuned: train them.
    """

    source: Literal["glove", "file", "ppmi", "encoder", "random", "free"] = "glove"
    file: str = ""
    size: AtLeastOne = 300
    bias: Finite = -4.0
    tuned: bool = True

    def __post_init__(self) -> None:
        if self.source in ("file", "encoder") and not self.file:
            what = "GloVe's text format" if self.source == "file" else "a text encoder, or its package"
            raise ConfigError(f"vectors.source={self.source} needs vectors.file, the path of {what}")


@config_dataclass
class LabelsConfig:
    """From texts to weak labels; see text.labels and text.synonyms.

    Attributes:
        agree: texts that must hold a word for strength 1.
        last_word: strength that the last word of a pair takes from it.
        unpunished: words that are no negatives where a related one was said: none, paraphrases (counted in the other
            texts of the same image), vectors (near word vectors) or hypernyms (WordNet, from NLTK's data).
        balance: power by which rare words weigh more; 0 leaves all alike.
        most: largest ratio to the median's weight.
    """

    agree: AtLeastOne = 1
    last_word: Share = 0.5
    unpunished: Literal["none", "paraphrases", "vectors", "hypernyms"] = "none"
    balance: Amount = 0.0
    most: Positive = 10.0


@config_dataclass
class ModelSettings:
    """The network; see models.build.create.

    Attributes:
        start: a model folder to go on from; the other settings of model, vocabulary and vectors are then its own.
    """

    RETIRED: ClassVar = ("fuse", "output_stride", "learn_sharpness", "cosine")

    start: str = ""
    backbone: str = "efficientnet_lite0"
    weights: str | None = "imagenet"
    fold: bool = True
    image_size: Side | None = None
    hidden: AtLeastOne | None = 512
    pool: str = "log_sum_exp"
    sharpness: Positive = 4.0


@config_dataclass
class PhaseConfig:
    """A part of a run with its own trained layers, rates and losses.

    Attributes:
        name: for the log.
        epochs: passes over all samples; a fraction is allowed.
        batch: images of a step, over all processes and micro-batches.
        accumulate: micro-batches of a step; coupled losses contrast within one.
        train_from: none (frozen trunk), all, or the lowest trained stage.
        cache: keep the output of the frozen stages on disk; images are then not augmented, only mirrored.
        sizes: input sizes (H = W), one of which is drawn for each step; the model's own when empty.
        crop: smallest share of the area that a random crop keeps.
        mirror: probability of mirroring, where no text says left or right.
        jitter: strength of colour changes, hue only where no text names a colour.
        dropout: of the head's features.
        lr: of head and word vectors.
        trunk_lr: of the highest trained stage, as a share of lr.
        layer_decay: from a stage to the one below.
        weight_decay: of matrices.
        optimizer: adamw or sgd.
        momentum: of sgd.
        warmup: steps.
        schedule: cosine or constant.
        clip: largest norm of the gradient; 0 does not clip.
        losses: name -> weight, summed.
        words: words that a step scores: 0 all, else those said in the batch and sampled others.
        hard_negatives: for image_caption, texts with one word replaced, per image.
    """

    RETIRED: ClassVar = ("own_maps", "own_map", "paraphrases")

    name: str = "train"
    epochs: Positive = 1.0
    batch: AtLeastOne = 64
    accumulate: AtLeastOne = 1
    train_from: str = "none"
    cache: bool = False
    sizes: tuple[Side, ...] = ()
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    mirror: Share = 0.5
    jitter: Share = 0.0
    dropout: BelowOne = 0.0
    lr: Positive = 1e-3
    trunk_lr: Amount = 0.1
    layer_decay: Positive = 0.8
    weight_decay: Amount = 0.01
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: BelowOne = 0.9
    warmup: Count = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: Amount = 1.0
    losses: dict[str, Amount] = field(default_factory=lambda: {"sigmoid": 1.0})
    words: Count = 0
    hard_negatives: Count = 0

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
        if self.batch < self.accumulate:
            raise ConfigError(
                f"phase {self.name}: a batch of {self.batch} cannot be split into {self.accumulate} micro-batches; "
                "raise batch or lower accumulate"
            )


@config_dataclass
class ValidationConfig:
    """Figures on annotated images during training; none without a root.

    Attributes:
        root: folder of Flickr30k Entities.
        split: of it.
        protocols: of the evaluation.
        every: epochs between two measurements, and always at the end.
        metric: figure that chooses the best checkpoint; higher is better.
        limit: images; all when 0.
    """

    root: str = ""
    split: str = "val"
    protocols: tuple[str, ...] = ("pointing_any", "recall_union")
    every: Amount = 1.0
    metric: str = "pointing_any/accuracy"
    limit: Count = 0


@config_dataclass
class FurtherConfig:
    """Words beyond the vocabulary; see further.py.

    Attributes:
        words: how many.
        texts: text files (.txt or .gz) from whose words' company they get vectors, before GloVe does.
        penalty: of the ridge regression that places them.
    """

    words: Count = 0
    texts: tuple[str, ...] = ()
    penalty: Positive = 3.0


@config_dataclass
class TrainConfig:
    """A whole run.

    Attributes:
        out: folder of the run: checkpoints, metrics.jsonl, the model.
        seed: of everything random.
        device: auto, cpu, cuda.
        precision: float32, float64 (tests), bf16 or fp16 (mixed, on a GPU).
        ema: decay of the average of the weights that is released; 0 releases the last weights.
        only: names of the phases that are run; all when empty.
        average_of: phases whose final weights are averaged for the model; the last phase's alone when empty.
        compile: torch.compile the trunk (minutes at the start, faster steps).
        recompute: do not keep activations of the trunk's stages but compute them again (memory for time).
        memory_mb: most that the scores of words at locations may take at a time, megabytes.
        save_every: steps between checkpoints.
        log_every: steps between lines of metrics.jsonl.
        tensorboard: write event files too.
        threads: of each process on the CPU; 0 leaves torch's choice.
        further: words that the model can be asked without having been trained on them.
        inference: settings of the localizer that the model is released with.
        card: facts for the model card.
    """

    out: Path
    data: DataConfig
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    model: ModelSettings = field(default_factory=ModelSettings)
    phases: tuple[PhaseConfig, ...] = (PhaseConfig(),)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    precision: Literal["float32", "float64", "bf16", "fp16"] = "float32"
    ema: BelowOne = 0.0
    only: tuple[str, ...] = ()
    average_of: tuple[str, ...] = ()
    compile: bool = False
    recompute: bool = False
    memory_mb: AtLeastOne = 1024
    save_every: AtLeastOne = 200
    log_every: AtLeastOne = 20
    tensorboard: bool = False
    threads: Processes = 0
    further: FurtherConfig = field(default_factory=FurtherConfig)
    inference: dict[str, Any] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"phases need different names, at least one, got {', '.join(names) or 'none'}")
        for key, chosen in (("only", self.only), ("average_of", self.average_of)):
            for name in chosen:
                if name not in names:
                    raise ConfigError(f"{key} names phases ({', '.join(names)}), got {name!r}")
        free = self.vectors.source == "free" and not self.model.start
        if free and (self.model.hidden is None or not self.vectors.tuned):
            raise ConfigError(
                "vectors.source=free needs model.hidden, the number of channels, and vectors.tuned=true"
            )
        unread = self.vectors.source in ("free", "random") and not self.model.start
        if self.labels.unpunished == "vectors" and unread:
            raise ConfigError(
                f"labels.unpunished=vectors needs vectors from text, got vectors.source={self.vectors.source}; "
                "set vectors.source to glove, ppmi, encoder or file, or labels.unpunished=paraphrases"
            )
        if missing := sorted(set(self.average_of) - {phase.name for phase in self.run_phases}):
            raise ConfigError(f"average_of names {missing[0]!r}, which is not in only; change one of them")

    @property
    def run_phases(self) -> tuple[PhaseConfig, ...]:
        """The phases that are run, in their order."""
        return tuple(phase for phase in self.phases if not self.only or phase.name in self.only)
