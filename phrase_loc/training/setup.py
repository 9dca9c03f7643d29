"""What a run is made of: the source, the vocabulary counted from it, word vectors, labels, the model."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phrase_loc import __version__
from phrase_loc.config import to_dict
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError
from phrase_loc.files import digest, fingerprint
from phrase_loc.models.build import create
from phrase_loc.models.model import TextToRegion
from phrase_loc.pairs.dataset import Labeller
from phrase_loc.pairs.paths import expand
from phrase_loc.pairs.shards import load_index
from phrase_loc.pairs.sources import Source, open_source
from phrase_loc.tables import text_lines
from phrase_loc.text import labels
from phrase_loc.text import vectors as text_vectors
from phrase_loc.text.labels import WordLabeller, balance
from phrase_loc.text.vocabulary import UnitCounter, Vocabulary
from phrase_loc.training.config import TrainConfig, VectorsConfig, VocabularyConfig
from phrase_loc.training.identity import Identity, check_same_data, identify, read_kept, texts_of, write_kept

log = logging.getLogger(__name__)


@dataclass
class Materials:
    """Everything before the first step."""

    source: Source
    model: TextToRegion
    labeller: Labeller
    balance: Tensor  # (V,) weight of each word
    identity: Identity  # of the data and the vocabulary


def prepare(config: TrainConfig, world: World, held: dict[str, Any] | None = None) -> Materials:
    """Source, model and labels of a run, the model on its device.

    Args:
        config: of the run, whose folder exists.
        world: the processes.
        held: facts in the checkpoint of the run, which the data must have.

    Raises:
        DataError: unusable data, or other data than those of the checkpoint.
    """
    source = open_data(config, world)
    identity = identify(source, config.out / "source.key", world)
    check_same_data(held or {}, identity.facts, config.out)
    model = new_model(config, source, identity, world).to(world.device)
    words = digest("\n".join(model.vocabulary.words).encode())
    identity = replace(identity, facts={**identity.facts, "vocabulary": words})
    check_same_data(held or {}, identity.facts, config.out)
    if config.precision == "float64":
        model = model.double()
    model = model.to(memory_format=torch.channels_last)  # faster convolutions on CPU and GPU alike
    labels = config.labels
    unpunished = unpunished_words(labels.unpunished, model, source)
    labeller = WordLabeller(model.vocabulary, labels.agree, labels.last_word, unpunished)
    weights = balance(model.vocabulary.counts, labels.balance, labels.most)
    return Materials(source, model, labeller, weights.to(next(model.head.parameters()).dtype), identity)


def unpunished_words(kind: str, model: TextToRegion, source: Source) -> dict[int, tuple[int, ...]]:
    """Row -> rows that are no negatives beside it."""
    if kind == "vectors":
        if model.config.free:  # where training goes on from a model; TrainConfig refuses it for a new one
            raise ConfigError(
                "labels.unpunished=vectors needs vectors from text, and the words of model.start have units of their "
                "own; set labels.unpunished=none"
            )
        return labels.near_vectors(model.words.vectors.detach())
    return {}


def open_data(config: TrainConfig, world: World) -> Source:
    """The source; shards are indexed by all processes together and the indices kept."""
    folder = Path(config.data.index or config.out / "index")
    if world.size > 1:
        shards = [path for path in expand(config.data.shards) if path.endswith(".tar")]
        for shard in shards[world.rank :: world.size]:
            load_index(shard, folder)
        world.barrier()
    return open_source(config.data.shards, folder, config.data.text_fields)


def find_vocabulary(
    config: VocabularyConfig, source: Source, identity: Identity, folder: Path, world: World
) -> Vocabulary:
    """The vocabulary of a file, or the one counted in one pass over all texts and kept in the run's folder.

    What is kept is counted anew, with a note, where it was counted otherwise or has changed since.

    Args:
        config: how to count.
        source: of texts; each process counts its part.
        identity: of the source.
        folder: of the run: vocabulary.tsv, and vocabulary.key, which says what it was counted from.
        world: the processes.
    """
    if config.file:
        return Vocabulary.load(config.file)
    kept, path = folder / "vocabulary.tsv", folder / "vocabulary.key"
    asked = world.from_main(lambda: _counted_from(config, identity))
    if not world.from_main(lambda: _is_kept(kept, path, asked)):
        log.info("counting the words of %d images", len(source))
        vocabulary = _count(config, source, world)
        if world.is_main:
            vocabulary.save(kept)
            write_kept(path, {"from": asked, "sha256": digest(kept)})
        world.barrier()
    return Vocabulary.load(kept)


def _counted_from(config: VocabularyConfig, identity: Identity) -> dict[str, Any]:
    texts = identity.facts["texts"] or identity.stamp
    extra = [fingerprint(path) for path in (expand(config.extra_texts) if config.extra_texts else [])]
    return {"settings": to_dict(config), "texts": texts, "extra": extra, "version": __version__}


def _is_kept(kept: Path, path: Path, asked: dict[str, Any]) -> bool:
    if not kept.is_file():
        return False
    held = read_kept(path)
    if held == {"from": asked, "sha256": digest(kept)}:
        return True
    log.warning("%s was counted otherwise or has changed since; the words are counted anew", kept)
    return False


def _count(config: VocabularyConfig, source: Source, world: World) -> Vocabulary:
    counter = UnitCounter()
    begin, end = (len(source) * part // world.size for part in (world.rank, world.rank + 1))
    for i in range(begin, end):
        counter.update(texts_of(source, i))
    counters = world.gather(counter)
    for other in counters[1:]:
        counters[0].merge(other)
    counters[0].update(read_texts(config.extra_texts))
    options = {"min_association": config.min_association, "pair_share": config.pair_share}
    return counters[0].vocabulary(size=config.size, min_count=config.min_count, **options)


def read_texts(paths: tuple[str, ...]) -> Iterator[str]:
    """The texts of .txt or .gz files: a text a line, what stands before a tab left out."""
    for path in expand(paths) if paths else []:
        for line in text_lines(Path(path), "the texts"):
            yield line.rstrip("\r\n").rpartition("\t")[2]


def word_vectors(config: VectorsConfig, vocabulary: Vocabulary, texts: Iterator[str], seed: int) -> Tensor:
    """(V,E) start of the word vectors, of mean 0 and mean squared length 1; words without one are zero.

    What all words share would be one strong direction of every unit, and contrast between units would be left with
    the rest.
    """
    if config.source == "random":
        vectors = torch.randn(len(vocabulary), config.size, generator=torch.Generator().manual_seed(seed))
    elif config.source == "ppmi":
        vectors = text_vectors.cooccurrence_vectors(
            texts, vocabulary, min(config.size, len(vocabulary) - 1), seed
        )
    elif config.source == "encoder":
        vectors = text_vectors.encoder_vectors(vocabulary.words, config.file)
    else:
        words = set(vocabulary.words)
        read = (
            text_vectors.glove_package(words)
            if config.source == "glove"
            else text_vectors.read_glove(config.file, words)
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


def new_model(config: TrainConfig, source: Source, identity: Identity, world: World) -> TextToRegion:
    """The model at its start, equal in all processes."""
    settings = config.model
    if settings.start:
        from phrase_loc.models.store import load_model

        return trainable(load_model(settings.start), config.vectors.tuned)
    vocabulary = find_vocabulary(config.vocabulary, source, identity, config.out, world)
    log.info("vocabulary: %d units, most frequent %s", len(vocabulary), ", ".join(vocabulary.words[:8]))
    vectors = start_vectors(config, vocabulary, source)
    torch.manual_seed(config.seed)
    model = create(
        vocabulary,
        vectors,
        free=config.vectors.source == "free",
        tuned=config.vectors.tuned,
        **{key: value for key, value in vars(settings).items() if key != "start"},
    )
    # a word is said of few images: from 0 the bias would take a thousand steps to learn that
    model.head.start_bias(config.vectors.bias)
    return model


def start_vectors(config: TrainConfig, vocabulary: Vocabulary, source: Source) -> Tensor:
    """(V,E) the word vectors before training."""
    if config.vectors.source != "free":
        return word_vectors(config.vectors, vocabulary, _texts(source, config), config.seed)
    size = config.model.hidden
    assert size is not None  # TrainConfig refuses it
    draw = torch.Generator().manual_seed(config.seed)
    units = (2 * torch.rand(len(vocabulary), size, generator=draw) - 1) / size**0.5
    return torch.cat([units, torch.full((len(vocabulary), 1), config.vectors.bias)], 1)


def trainable(model: TextToRegion, tuned: bool) -> TextToRegion:
    """A loaded model, whose weights are frozen for queries, ready for further training (the trunk: by phase)."""
    model.head.requires_grad_(True)
    model.head.log_scale.requires_grad_(not model.config.free)
    model.words.vectors.requires_grad_(tuned)
    return model


def _texts(source: Source, config: TrainConfig) -> Iterator[str]:
    for i in range(len(source)):
        yield from texts_of(source, i)
    yield from read_texts(config.vocabulary.extra_texts)
