"""What a run is made of: the source, the vocabulary counted from it, word vectors, labels, the model."""

import gzip
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from phrase_loc.datasets.web import Labeller
from phrase_loc.datasets.web_paths import expand
from phrase_loc.datasets.web_shards import load_index
from phrase_loc.datasets.web_sources import Source, open_source
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.assembly import create
from phrase_loc.models.text_to_region import TextToRegion
from phrase_loc.text import embeddings, synonyms
from phrase_loc.text.counting import UnitCounter
from phrase_loc.text.labels import WordLabeller, balance
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training.config import TrainConfig
from phrase_loc.training.data_config import VectorsConfig, VocabularyConfig

log = logging.getLogger(__name__)


@dataclass
class Materials:
    """Everything before the first step."""

    source: Source
    model: TextToRegion
    labeller: Labeller
    balance: Tensor  # (V,) weight of each word


def prepare(config: TrainConfig, world: World) -> Materials:
    """Source, model and labels of a run, the model on its device."""
    source = open_data(config, world)
    model = new_model(config, source, world).to(world.device)
    if config.precision == "float64":
        model = model.double()
    model = model.to(memory_format=torch.channels_last)  # faster convolutions on CPU and GPU alike
    labels = config.labels
    unpunished = unpunished_words(labels.unpunished, model, source)
    labeller = WordLabeller(model.vocabulary, labels.agree, labels.last_word, unpunished)
    weights = balance(model.vocabulary.counts, labels.balance, labels.most)
    return Materials(source, model, labeller, weights.to(next(model.head.parameters()).dtype))


def unpunished_words(kind: str, model: TextToRegion, source: Source) -> synonyms.Unpunished:
    """Row -> rows that are no negatives beside it."""
    if kind == "paraphrases":
        return synonyms.paraphrases((source.texts(i) for i in range(len(source))), model.vocabulary)
    if kind == "vectors":
        if model.config.free:  # where training goes on from a model; TrainConfig refuses it for a new one
            raise ConfigError(
                "labels.unpunished=vectors needs vectors from text, and the words of model.start have units of their "
                "own; set labels.unpunished=paraphrases"
            )
        return synonyms.near_vectors(model.words.vectors.detach())
    return synonyms.hypernyms(model.vocabulary) if kind == "hypernyms" else {}


def open_data(config: TrainConfig, world: World) -> Source:
    """The source; shards are indexed by all processes together and the indices kept."""
    folder = Path(config.data.index or config.out / "index")
    if world.size > 1:
        shards = [path for path in expand(config.data.shards) if path.endswith(".tar")]
        for shard in shards[world.rank :: world.size]:
            load_index(shard, folder)
        world.barrier()
    return open_source(config.data.shards, folder, config.data.text_fields)


def find_vocabulary(config: VocabularyConfig, source: Source, kept: Path, world: World) -> Vocabulary:
    """The vocabulary of a file, or the one counted in one pass over all texts and kept in the run's folder.

    Args:
        config: how to count.
        source: of texts; each process counts its part.
        kept: file of an earlier start of the run.
        world: the processes.
    """
    if config.file:
        return Vocabulary.load(config.file)
    if not kept.is_file():
        log.info("counting the words of %d images", len(source))
        counter = UnitCounter()
        begin, end = (len(source) * part // world.size for part in (world.rank, world.rank + 1))
        for i in range(begin, end):
            counter.update(source.texts(i))
        counters = world.gather(counter)
        for other in counters[1:]:
            counters[0].merge(other)
        counters[0].update(read_texts(config.extra_texts))
        options = {"min_association": config.min_association, "pair_share": config.pair_share}
        vocabulary = counters[0].vocabulary(size=config.size, min_count=config.min_count, **options)
        if world.is_main:
            vocabulary.save(kept)
        world.barrier()
    return Vocabulary.load(kept)


def read_texts(paths: tuple[str, ...]) -> Iterator[str]:
    """The texts of .txt or .gz files: a text a line, what stands before a tab left out."""
    for path in expand(paths) if paths else []:
        try:
            opener = gzip.open if path.endswith(".gz") else open
            with opener(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    yield line.rstrip("\n").rpartition("\t")[2]
        except (OSError, UnicodeDecodeError, EOFError) as error:
            raise DataError(f"the texts {path} cannot be read: {error}") from None


def word_vectors(config: VectorsConfig, vocabulary: Vocabulary, texts: Iterator[str], seed: int) -> Tensor:
    """(V,E) start of the word vectors, of mean 0 and mean squared length 1; words without one are zero.

    What all words share would be one strong direction of every unit, and contrast between units would be left with
    the rest.
    """
    if config.source == "random":
        vectors = torch.randn(len(vocabulary), config.size, generator=torch.Generator().manual_seed(seed))
    elif config.source == "ppmi":
        vectors = embeddings.cooccurrence_vectors(
            texts, vocabulary, min(config.size, len(vocabulary) - 1), seed
        )
    elif config.source == "encoder":
        vectors = embeddings.encoder_vectors(vocabulary.words, config.file)
    else:
        words = set(vocabulary.words)
        read = (
            embeddings.glove_package(words)
            if config.source == "glove"
            else embeddings.read_glove(config.file, words)
        )
        found = [read.get(word) for word in vocabulary.words]
        empty = torch.zeros(read.vectors.shape[1])
        vectors = torch.stack([empty if vector is None else vector for vector in found])
    known = vectors.abs().sum(1, keepdim=True) > 0
    largest = vectors.abs().max()
    vectors = torch.where(known, vectors - vectors.sum(0) / known.sum(), 0.0)
    length = vectors.square().sum(1).mean().sqrt()
    if not length > 1e-5 * largest:
        raise ConfigError(
            f"vectors.source={config.source} has no two different vectors for the words of the vocabulary; "
            "give vectors of these words, or vectors.source=free"
        )
    return vectors / length


def new_model(config: TrainConfig, source: Source, world: World) -> TextToRegion:
    """The model at its start, equal in all processes."""
    kept = config.out / "vocabulary.tsv"
    settings = config.model
    if settings.start:
        from phrase_loc.models.store import load_model

        return trainable(load_model(settings.start), config.vectors.tuned)
    vocabulary = find_vocabulary(config.vocabulary, source, kept, world)
    log.info("vocabulary: %d units, most frequent %s", len(vocabulary), ", ".join(vocabulary.words[:8]))
    vectors = start_vectors(config, vocabulary, source)
    torch.manual_seed(config.seed)
    model = create(
        vocabulary,
        vectors,
        backbone=settings.backbone,
        weights=settings.weights,
        output_stride=settings.output_stride,
        fold=settings.fold,
        image_size=settings.image_size,
        fuse=settings.fuse,
        hidden=settings.hidden,
        pool=settings.pool,
        sharpness=settings.sharpness,
        learn_sharpness=settings.learn_sharpness,
        cosine=settings.cosine,
        free=config.vectors.source == "free",
        tuned=config.vectors.tuned,
    )
    # a word is said of few images: from 0 the bias would take a thousand steps to learn that
    model.head.start_bias(config.vectors.bias)
    return model


def start_vectors(config: TrainConfig, vocabulary: Vocabulary, source: Source) -> Tensor:
    """(V,E) the word vectors before training."""
    if config.vectors.source != "free":
        return word_vectors(config.vectors, vocabulary, _texts(source, config), config.seed)
    size = config.model.hidden
    if size is None or not config.vectors.tuned:
        raise ConfigError(
            "vectors.source=free needs model.hidden, the number of channels, and vectors.tuned=true"
        )
    draw = torch.Generator().manual_seed(config.seed)
    units = (2 * torch.rand(len(vocabulary), size, generator=draw) - 1) / size**0.5
    return torch.cat([units, torch.full((len(vocabulary), 1), config.vectors.bias)], 1)


def trainable(model: TextToRegion, tuned: bool) -> TextToRegion:
    """A loaded model, whose weights are frozen for queries, ready for further training (the trunk: by phase)."""
    model.head.requires_grad_(True)
    model.head.log_scale.requires_grad_(not model.config.free)
    model.words.vectors.requires_grad_(tuned)
    for name, parameter in model.head.pool.named_parameters():
        parameter.requires_grad_(name == "log_sharpness" and model.config.learn_sharpness)
    return model


def _texts(source: Source, config: TrainConfig) -> Iterator[str]:
    for i in range(len(source)):
        yield from source.texts(i)
    yield from read_texts(config.vocabulary.extra_texts)
