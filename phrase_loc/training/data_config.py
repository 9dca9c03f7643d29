"""The settings of what is learned from: image-text pairs, words, their vectors and weak labels."""

from typing import Annotated, Literal

from pydantic import Field

from phrase_loc.config import config_dataclass
from phrase_loc.datasets.web_sources import TEXT_FIELDS
from phrase_loc.errors import ConfigError

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
