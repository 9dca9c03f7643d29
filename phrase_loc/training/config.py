"""The settings of a training run, as one frozen tree; configs/train_web.yaml names them with their reasons."""

from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from phrase_loc.config import config_dataclass
from phrase_loc.datasets.web_sources import TEXT_FIELDS
from phrase_loc.errors import ConfigError


@config_dataclass
class DataConfig:
    """Image-text pairs.

    Attributes:
        shards: tars: a path, a glob, a brace range, a list of those, or `@file` of paths; the pairs may as well be
            a .csv/.tsv/.parquet/.jsonl table or a folder with a captions file.
        index: folder for the shards' offset indices; the run's own when empty.
        text_fields: JSON fields or columns that hold text.
        max_faults: share of the samples that may be unusable before the run stops.
        window: shards whose samples are shuffled together; 0 shuffles all, which asks for a fast disk.
        workers: processes that decode, for each training process.
    """

    shards: str | tuple[str, ...]
    index: str = ""
    text_fields: tuple[str, ...] = TEXT_FIELDS
    max_faults: float = 0.05
    window: int = 0
    workers: int = 2


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
    size: int = 18_000
    min_count: int = 20
    min_association: float = 0.35
    pair_share: float = 0.25


@config_dataclass
class VectorsConfig:
    """The word vectors of the text head.

    Attributes:
        source: glove (the PyPI package), file (GloVe's text format), ppmi (co-occurrence of the texts), encoder (a
            transformers text encoder), random, or free: every word learns its own unit and bias, no projection.
        file: of GloVe vectors, or the encoder's folder or package.
        size: numbers a word, for ppmi and random.
        bias: that free words start with.
        tuned: train them.
    """

    source: Literal["glove", "file", "ppmi", "encoder", "random", "free"] = "glove"
    file: str = ""
    size: int = 300
    bias: float = -4.0
    tuned: bool = True


@config_dataclass
class LabelsConfig:
    """From texts to weak labels; see text.labels and text.synonyms.

    Attributes:
        agree: texts that must hold a word for strength 1.
        last_word: strength that the last word of a pair takes from it.
        unpunished: words that are no negatives where a related one was said: none, paraphrases (counted in the other
            texts of the same image), vectors (near word vectors) or hypernyms (WordNet).
        balance: power by which rare words weigh more; 0 leaves all alike.
        most: largest ratio to the median's weight.
    """

    agree: int = 1
    last_word: float = 0.5
    unpunished: Literal["none", "paraphrases", "vectors", "hypernyms"] = "none"
    balance: float = 0.0
    most: float = 10.0


@config_dataclass
class ModelSettings:
    """The network; see models.assembly.create.

    Attributes:
        start: a model folder to go on from; the other settings of model, vocabulary and vectors are then its own.
    """

    start: str = ""
    backbone: str = "efficientnet_lite0"
    weights: str | None = "imagenet"
    output_stride: int = 32
    fold: bool = True
    image_size: int | None = None
    fuse: str | None = None
    hidden: int | None = 512
    pool: str = "log_sum_exp"
    sharpness: float = 4.0
    learn_sharpness: bool = False
    cosine: bool = False


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

    name: str = "train"
    epochs: float = 1.0
    batch: int = 64
    accumulate: int = 1
    train_from: str = "none"
    cache: bool = False
    sizes: tuple[int, ...] = ()
    crop: float = 1.0
    mirror: float = 0.5
    jitter: float = 0.0
    dropout: float = 0.0
    lr: float = 1e-3
    trunk_lr: float = 0.1
    layer_decay: float = 0.8
    weight_decay: float = 0.01
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = 1.0
    losses: dict[str, float] = field(default_factory=lambda: {"sigmoid": 1.0})
    words: int = 0
    hard_negatives: int = 0


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
    every: float = 1.0
    metric: str = "pointing_any/accuracy"
    limit: int = 0


@config_dataclass
class FurtherConfig:
    """Words beyond the vocabulary; see further.py.

    Attributes:
        words: how many.
        texts: text files (.txt or .gz) from whose words' company they get vectors, before GloVe does.
        penalty: of the ridge regression that places them.
    """

    words: int = 0
    texts: tuple[str, ...] = ()
    penalty: float = 3.0


@config_dataclass
class TrainConfig:
    """A whole run.

    Attributes:
        out: folder of the run: checkpoints, metrics.jsonl, the model.
        seed: of everything random.
        device: auto, cpu, cuda.
        precision: float32, float64 (tests), bf16 or fp16 (mixed, on a GPU).
        ema: decay of the average of the weights that is released; 0 releases the last weights.
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
    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "float64", "bf16", "fp16"] = "float32"
    ema: float = 0.0
    average_of: tuple[str, ...] = ()
    compile: bool = False
    recompute: bool = False
    memory_mb: int = 1024
    save_every: int = 200
    log_every: int = 20
    tensorboard: bool = False
    threads: int = 0
    further: FurtherConfig = field(default_factory=FurtherConfig)
    inference: dict[str, Any] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [phase.name for phase in self.phases]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"phases need different names, at least one, got {', '.join(names) or 'none'}")
        for name in self.average_of:
            if name not in names:
                raise ConfigError(f"average_of names phases ({', '.join(names)}), got {name!r}")
