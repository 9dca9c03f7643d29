"""What a run is made of: the source, the vocabulary counted from it, word vectors, labels, the model."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phrase_loc import __version__
from phrase_loc.config import to_dict
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError
from phrase_loc.files import digest, fingerprint
from phrase_loc.models.build import create
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import load_model
from phrase_loc.pairs.paths import expand
from phrase_loc.pairs.shards import load_index
from phrase_loc.pairs.sources import Source, open_source, texts_of
from phrase_loc.tables import text_lines
from phrase_loc.text import vectors as text_vectors
from phrase_loc.text.vocabulary import UnitCounter, Vocabulary, WordLabeller
from phrase_loc.training.checkpoint import Identity, check_same_data, identify, read_kept, write_kept
from phrase_loc.training.config import FurtherConfig, TrainConfig, VectorsConfig, VocabularyConfig
from phrase_loc.training.new_words import extended

log = logging.getLogger(__name__)

#: Weights of co-occurrence and GloVe vectors for out-of-vocabulary words, chosen on val (docs/experiments.md).
TEXT_SCALE, GLOVE_SCALE = 3.0, 1 / 6


@dataclass
class Setup:
    """Everything before the first step."""

    source: Source
    model: TextToRegion
    labeller: WordLabeller
    identity: Identity  # of the data and the vocabulary
    trained: list[int]  # photographs that are trained on, ascending
    held_out: tuple[int, ...]  # the others
    new: range  # rows of the words that the model learns anew
    card: dict[str, str]  # facts of the start, for the model card


def prepare(config: TrainConfig, world: World, source: Source, held: dict[str, Any] | None = None) -> Setup:
    """Labels and model of a run, the model on its device; `held` are the facts of its checkpoint's data.

    Raises DataError: unusable data, or other data than those of the checkpoint.
    """
    identity = identify(source, config.out / "source.key", world)
    check_same_data(held, identity.facts, config.out)
    held_out = left_out(len(source), config)
    trained = sorted(set(range(len(source))) - set(held_out))
    model, new, card = new_model(config, source, trained, identity, world)
    model = model.to(world.device)
    identity.facts["vocabulary"] = digest("\n".join(model.vocabulary.words).encode())
    check_same_data(held, identity.facts, config.out)
    if config.precision == "float64":
        model = model.double()
    model = model.to(memory_format=torch.channels_last)  # faster convolutions on CPU and GPU alike
    labeller = WordLabeller(model.vocabulary, config.labels.last_word)
    return Setup(source, model, labeller, identity, trained, held_out, new, card)


def left_out(count: int, config: TrainConfig) -> tuple[int, ...]:
    """A tenth of few photographs, drawn by the seed; none of many."""
    if count >= config.few.below:
        return ()
    drawn = np.random.default_rng([config.seed, 10]).permutation(count)[: count // 10]
    return tuple(sorted(drawn.tolist()))


def open_data(config: TrainConfig, world: World) -> Source:
    """The source; shards are indexed by all processes together and the indices kept."""
    folder = Path(config.data.index or config.out / "index")
    if world.size > 1:
        shards = [path for path in expand(config.data.shards) if path.endswith(".tar")]
        for shard in shards[world.rank :: world.size]:
            load_index(shard, folder)
        world.barrier()
    return open_source(config.data.shards, folder, config.data.text_fields)


def new_model(
    config: TrainConfig, source: Source, trained: Sequence[int], identity: Identity, world: World
) -> tuple[TextToRegion, range, dict[str, str]]:
    """The model at its start, equal in all processes; the rows that it learns anew; facts for its card."""
    asked, words = config.model, config.vectors
    vocabulary = find_vocabulary(config.vocabulary, source, identity, config.out, world)
    if asked.start:  # loaded for queries: frozen; of the trunk each phase trains its stages
        least = 1 if config.vocabulary.file else config.vocabulary.min_count
        model, first, said = extended(load_model(asked.start), vocabulary, source, trained, least)
        if model.config.backbone != asked.backbone:
            own = f"{asked.start} brings its own trunk ({model.config.backbone})"
            log.warning("%s; model.backbone=%s is not used", own, asked.backbone)
        if not config.new_words_only:
            model.drop_ranker()
        model.head.requires_grad_(not config.new_words_only)
        model.head.log_scale.requires_grad_(not model.config.free and not config.new_words_only)
        model.words.vectors.requires_grad_(words.tuned or config.new_words_only)
        new = range(first, len(model.vocabulary))
        return model, new, started_card(config, model, new, said, len(trained))
    log.info("vocabulary: %d units, most frequent %s", len(vocabulary), ", ".join(vocabulary.words[:8]))
    free = words.source == "free"
    if free:  # random classifier rows, each with its bias
        channels, draw = asked.hidden or 0, torch.Generator().manual_seed(config.seed)
        rows = (2 * torch.rand(len(vocabulary), channels, generator=draw) - 1) / channels**0.5
        vectors = torch.cat([rows, torch.full((len(vocabulary), 1), words.bias)], 1)
    else:
        texts = chain.from_iterable(texts_of(source, range(len(source))))
        every = chain(texts, read_texts(config.vocabulary.extra_texts))
        vectors = word_vectors(words, vocabulary, every, config.seed)
    torch.manual_seed(config.seed)
    settings = {key: value for key, value in vars(asked).items() if key != "start"}
    model = create(vocabulary, vectors, free=free, tuned=words.tuned, **settings)
    # a word is said of few images: from 0 the bias would take a thousand steps to learn that
    if model.head.word_bias is not None:  # of a free head it stands in the rows
        torch.nn.init.constant_(model.head.word_bias.bias, words.bias)
    return model, range(len(vocabulary)), {}


def started_card(
    config: TrainConfig, model: TextToRegion, new: range, said: Mapping[str, int], photographs: int
) -> dict[str, str]:
    """What the card of a model says of the one that it goes on from."""
    kept = (
        "kept: its words, trunk and calibration are as they were, and the figures above are those of its words"
        if config.new_words_only
        else "trained on, so figures and calibration above are of that model and no longer of this one"
    )
    learned = ", ".join(f"{word} ({said[word]})" for word in (model.vocabulary.words[i] for i in new))
    return {
        "summary": f"A model of one's own: `{config.model.start}` and the words of further photographs.",
        "words": f"This model goes on from `{config.model.start}`, which was {kept}. Words learned from "
        f"{photographs:,} further photographs, with the number of those that say them: {learned or 'none'}.",
    }


def find_vocabulary(
    config: VocabularyConfig, source: Source, identity: Identity, folder: Path, world: World
) -> Vocabulary:
    """The vocabulary of a file, or the one counted by all processes in one pass over all texts.

    The run's folder keeps it as vocabulary.tsv, with what it was counted from in vocabulary.key; it is counted anew,
    with a note, where it was counted otherwise or has changed since.
    """
    if config.file:
        return Vocabulary.load(config.file)
    kept, key = folder / "vocabulary.tsv", folder / "vocabulary.key"

    def look() -> tuple[dict[str, Any], bool]:
        extra = [fingerprint(path) for path in text_files(config.extra_texts)]
        texts = identity.facts["texts"] or identity.stamp
        asked = {"settings": to_dict(config), "texts": texts, "extra": extra, "version": __version__}
        there = kept.is_file()
        same = there and read_kept(key) == {"from": asked, "sha256": digest(kept)}
        if there and not same:
            log.warning("%s was counted otherwise or has changed since; the words are counted anew", kept)
        return asked, same

    asked, is_kept = world.from_main(look)
    if not is_kept:
        log.info("counting the words of %d images", len(source))
        vocabulary = _count(config, source, world)
        if world.is_main:
            vocabulary.save(kept)
            write_kept(key, {"from": asked, "sha256": digest(kept)})
        world.barrier()
    return Vocabulary.load(kept)


def _count(config: VocabularyConfig, source: Source, world: World) -> Vocabulary:
    own = UnitCounter()
    begin, end = (len(source) * part // world.size for part in (world.rank, world.rank + 1))
    for texts in texts_of(source, range(begin, end)):
        own.update(texts)
    counter, *others = world.gather(own)
    for other in others:
        counter.merge(other)
    counter.update(read_texts(config.extra_texts))
    limits = {key: value for key, value in vars(config).items() if key not in ("file", "extra_texts")}
    return counter.vocabulary(**limits)


def text_files(paths: tuple[str, ...]) -> list[str]:
    """The files that paths and patterns mean; there need be none."""
    return expand(paths) if paths else []


def read_texts(paths: tuple[str, ...]) -> Iterator[str]:
    """The texts of .txt or .gz files: a text a line, what stands before a tab left out."""
    for path in text_files(paths):
        for line in text_lines(Path(path), "the texts"):
            yield line.rstrip("\r\n").rpartition("\t")[2]


def word_vectors(config: VectorsConfig, vocabulary: Vocabulary, texts: Iterable[str], seed: int) -> Tensor:
    """(V,E) start of the word vectors, of mean 0 and mean squared length 1; words without one are zero.

    What all words share would be one strong direction of every unit, and contrast between units would be left with
    the rest.
    """
    words = vocabulary.words
    if config.source == "random":
        vectors = torch.randn(len(words), config.size, generator=torch.Generator().manual_seed(seed))
    elif config.source == "ppmi":
        size = min(config.size, len(words) - 1)
        vectors = text_vectors.cooccurrence_vectors(texts, vocabulary, size, seed)
    else:
        glove = text_vectors.glove_package(words)
        empty = torch.zeros_like(next(iter(glove.values()), torch.zeros(1)))
        vectors = torch.stack([glove.get(word, empty) for word in words])
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


def add_further_words(model: TextToRegion, config: FurtherConfig, seed: int) -> None:
    """Gives a model out-of-vocabulary words: those of the texts first, then GloVe's, by frequency.

        x(w) = [3 * co-occurrence vector, GloVe / 6]     for words of the texts; only GloVe for all others
        v(w) = W x(w) + b,  W of least squares with a penalty, fitted on the trained words

    A word keeps its finished vector in 8 bits a number, since the two kinds of words have different maps.
    """
    trained = model.vocabulary
    by_glove = {word: vector * GLOVE_SCALE for word, vector in text_vectors.glove_package().items()}
    by_text = _company(config.texts, seed)  # co-occurrence vectors
    by_both = {w: torch.cat([v, by_glove[w]]) for w, v in by_text.items() if w in by_glove}
    found = _mapped(model, by_both, config.penalty)
    wanted = [w for w in by_glove if w.isalpha() and w not in found and w not in trained]
    asked = [w for w in trained.words if w in by_glove] + wanted[: max(0, config.words - len(found))]
    found |= _mapped(model, {w: by_glove[w] for w in asked}, config.penalty)
    chosen = list(found)[: config.words]
    if chosen:
        model.words.set_extra(torch.stack([found[w] for w in chosen]))
        model.extra, model.config = tuple(chosen), replace(model.config, class_words=())


@lru_cache(maxsize=1)  # each best model of a run is written with it
def _company(paths: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    counter = UnitCounter()
    counter.update(read_texts(paths))
    if not counter.texts:
        return {}
    vocabulary = counter.vocabulary(size=30_000, pair_share=0.0)
    size = min(300, len(vocabulary) - 1)
    vectors = text_vectors.cooccurrence_vectors(read_texts(paths), vocabulary, size, seed) * TEXT_SCALE
    return dict(zip(vocabulary.words, vectors, strict=True))


def _mapped(model: TextToRegion, source: dict[str, Tensor], penalty: float) -> dict[str, Tensor]:
    """Vectors in the model's space of the words of `source` that it was not trained on."""
    words = model.vocabulary.words
    known = [i for i, word in enumerate(words) if word in source]
    others = [word for word in source if word not in model.vocabulary]
    if not known or not others:
        return {}
    from sklearn.linear_model import Ridge

    vectors = model.words.vectors.detach()[known].double().numpy()
    ridge = Ridge(alpha=penalty).fit(torch.stack([source[words[i]] for i in known]).double().numpy(), vectors)
    placed = ridge.predict(torch.stack([source[word] for word in others]).double().numpy())
    return dict(zip(others, torch.from_numpy(placed).float(), strict=True))
