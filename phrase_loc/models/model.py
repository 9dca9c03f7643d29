"""The model: a trunk, a text head over it, and the words it knows.

    images (N,3,H,W), RGB 0..255 -> trunk
    h(x, y) = relu( conv1x1(trunk) )                    features (N,D,h,w) >= 0: excitation backprop needs that
    unit(w) = project(vector of w)                      (K,D), for any word with a vector, trained or not
    score(w; x, y) = scale * unit(w) . h(x, y) + bias(w)
    score(w) = pool over locations                      (N,K)

For attention the same chain is cut at a stage: `below(stage)` maps images to activations, `above(stage)` maps
those to features. The last stage, "features", leaves nothing above: there a map is a matrix product.
Letters: N images, K words, D channels, h w grid, E numbers in a word vector.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from phrase_loc.config import STRICT, checked, shortened, without_retired
from phrase_loc.errors import ConfigError, DataError, choose
from phrase_loc.models.backbones import Normalize, between, stage_names
from phrase_loc.models.library_nets import patches_of
from phrase_loc.ranking import BoxRanker
from phrase_loc.structures import ABSENT_BELOW, FOUND_AT
from phrase_loc.text.phrases import EncodedPhrase, PhraseEncoder
from phrase_loc.text.vectors import quantise
from phrase_loc.text.vocabulary import Vocabulary

FEATURES = "features"
COMMON = 256  # words of a list that stand for all
FORMAT = 1  # version of the model folder; a reader refuses a newer one
#: Keys of older models and the value at which they did nothing; any other value is refused.
RETIRED_KEYS: dict[str, Any] = {
    "fuse": None,
    "fine_channels": None,
    "output_stride": 32,
    "learn_sharpness": False,
    "cosine": False,
}

Size = Annotated[int, Field(ge=1, le=65_536)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Numbers = dict[str, int | float]


def _usable(fit: Numbers) -> Numbers:
    if fit and not {"slope", "offset"} <= set(fit):
        raise ConfigError("key calibration needs slope and offset; run `phrase-loc calibrate` again")
    low, high = fit.get("absent_below", ABSENT_BELOW), fit.get("found_at", FOUND_AT)
    if fit and not 0 <= low <= high <= 1:
        expected = "key calibration needs 0 <= absent_below <= found_at <= 1"
        raise ConfigError(f"{expected}, got {low} and {high}; run `phrase-loc calibrate` again")
    return fit


def _figures(card: dict[str, Any]) -> dict[str, Any]:
    """The rows that the card prints; all else in it is printed as text, whatever it is."""
    rows = card.get("figures") or []
    whole = isinstance(rows, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("ci95") or [], (list, tuple))
        and isinstance(row.get("baselines") or {}, dict)
        for row in rows
    )
    if not whole:
        raise ConfigError("key card.figures holds rows as reports have them; leave it out")
    return card


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model is, as plain values: enough to build it again, saved as config.json beside the weights."""

    __pydantic_config__ = STRICT

    backbone: str  # a name of backbones.BACKBONES, or LIBRARY:PLACE
    channels: Size  # of the last stage
    embedding: Size  # E, numbers in a word vector
    architecture: dict[str, Any] | None = None  # of a library's network, whose folder may go
    folded: bool = True  # whether the weights have their batch norms folded
    mean: tuple[Finite, Finite, Finite] = (127.0, 127.0, 127.0)  # subtracted from RGB in 0..255
    std: tuple[Positive, Positive, Positive] = (128.0, 128.0, 128.0)  # then divided by
    image_size: Size = 224  # short side of an image in training, pixels
    hidden: Size | None = 512  # D, channels of the head's 1x1 convolution; None: without one, D = channels
    pool: str = "log_sum_exp"  # a key of POOLS
    sharpness: Positive = 4.0  # inverse temperature r of the pool
    free: bool = False  # whether a word vector is the unit itself, with its bias as last number
    tuned: bool = False  # whether training changed the word vectors
    #: out-of-vocabulary words that were learned from pictures of classes, and names of two words for the same rows
    class_words: tuple[str, ...] = ()
    ranker: tuple[str, Size] | None = None  # of a BoxRanker: the stage that it reads, and its channels
    inference: dict[str, Any] = field(default_factory=dict)  # settings of the localizer, checked by it
    #: slope and offset of the probability that a phrase is shown, the thresholds of its states (absent_below,
    #: found_at), and how good it is; {} for none
    calibration: Annotated[Numbers, AfterValidator(_usable)] = field(default_factory=dict)
    #: facts for the model card (data, recipe, command, figures), kept as they are
    card: Annotated[dict[str, Any], AfterValidator(_figures)] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def from_json(cls, values: Any, source: str) -> "ModelConfig":
        """Plain values -> a config; a DataError that begins with `source` where they are those of no config."""
        if not isinstance(values, dict):
            raise DataError(
                f"{source} must hold a JSON object, got a {type(values).__name__}; save the model again"
            )
        if type(values.get("format")) is not int or not 1 <= values["format"] <= FORMAT:
            raise DataError(
                f"{source} has model format {shortened(values.get('format'))}, this phrase_loc reads up to {FORMAT}; "
                "it is a newer model or none of ours: update phrase_loc or name another folder"
            )
        try:
            return checked(cls, without_retired(values, RETIRED_KEYS, "key"), "key")
        except ConfigError as error:
            raise DataError(f"{source}: {error}; save the model again or copy it whole") from None


class LogSumExp(nn.Module):
    """A soft maximum, (1/r) log mean exp(r s), between mean (r -> 0) and maximum (Pinheiro & Collobert 2015)."""

    log_sharpness: Tensor

    def __init__(self, sharpness: float = 4.0):
        super().__init__()
        self.register_buffer("log_sharpness", torch.tensor(math.log(sharpness)))

    def forward(self, scores: Tensor) -> Tensor:
        """(N,K,h,w) -> (N,K)."""
        r, flat = self.log_sharpness.exp(), scores.flatten(2)
        return (torch.logsumexp(r * flat, -1) - math.log(flat.shape[-1])) / r


#: Name -> pool of scores at locations, given its inverse temperature r (the average has none).
POOLS: dict[str, Callable[[float], nn.Module]] = {
    "average": lambda sharpness: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "log_sum_exp": LogSumExp,
}


class TextHead(nn.Module):
    """Scores words at every location of a feature map."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dimensions = config.channels if config.hidden is None else config.hidden
        self.lift = nn.Identity() if config.hidden is None else nn.Conv2d(config.channels, dimensions, 1)
        if config.free and config.embedding != dimensions + 1:
            raise ConfigError(
                f"a free head of {dimensions} channels needs word vectors of {dimensions + 1} numbers, "
                f"got {config.embedding}"
            )
        # a free head's vectors are units already, each with its bias as last number
        self.project = None if config.free else nn.Linear(config.embedding, dimensions, bias=False)
        self.word_bias = None if config.free else nn.Linear(config.embedding, 1)
        if self.project is not None and self.word_bias is not None:
            # vectors have length 1: so both learn at one rate
            nn.init.normal_(self.project.weight, std=dimensions**-0.5)
            nn.init.zeros_(self.word_bias.weight)
            nn.init.zeros_(self.word_bias.bias)
        # untied rows find their own length; a common scale beside it only hastens over-fitting
        self.log_scale = nn.Parameter(torch.zeros(()), requires_grad=not config.free)
        self.pool = choose(POOLS, config.pool, "pool")(config.sharpness)
        self.ranker = BoxRanker(config.ranker[1], dimensions).requires_grad_(False) if config.ranker else None

    def features(self, x: Tensor) -> Tensor:
        """(N,C,h,w) of the last stage -> (N,D,h,w) >= 0."""
        return F.relu(self.lift(x))

    def unit_scores(self, features: Tensor, units: Tensor, bias: Tensor) -> Tensor:
        """(N,D,h,w), units (K,D), their biases (K,) -> scores at locations (N,K,h,w)."""
        scores = F.conv2d(features, units[:, :, None, None])
        return self.log_scale.exp() * scores + bias[:, None, None]


class WordTable(nn.Module):
    """Row numbers to vectors: rows below V are the vocabulary's, row V + i the i-th out-of-vocabulary word's.

    `vectors` (V,E) are for the vocabulary; training may change them where they are `tuned`.
    """

    rows: Tensor
    scale: Tensor
    into: Tensor
    offset: Tensor
    presence_bias: Tensor  # (V + M,) added to a word's score where presence is asked, fitted by calibration

    def __init__(self, vectors: Tensor, tuned: bool = False):
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone().float(), requires_grad=tuned)
        self.reserve(0, 1)

    def reserve(self, words: int, numbers: int) -> None:
        """Makes room for M out-of-vocabulary words of F numbers each."""
        embedding, device = self.vectors.shape[1], self.vectors.device
        self.register_buffer("rows", torch.zeros(words, numbers, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.zeros(words, device=device))
        self.register_buffer("into", torch.zeros(numbers, embedding, device=device))
        self.register_buffer("offset", torch.zeros(embedding, device=device))
        trained = getattr(self, "presence_bias", torch.zeros(len(self.vectors), device=device))
        trained = trained[: len(self.vectors)]
        self.register_buffer("presence_bias", torch.cat([trained, trained.new_zeros(words)]))

    @torch.no_grad()
    def set_extra(self, vectors: Tensor) -> None:
        """Replaces the out-of-vocabulary words: (M,E) vectors, most frequent first; their map is the identity."""
        self.reserve(*vectors.shape)
        codes, scale = quantise(vectors.float())
        self.rows.copy_(codes)
        self.scale.copy_(scale)
        self.into.fill_diagonal_(1)

    def __len__(self) -> int:
        return len(self.vectors) + len(self.rows)

    def forward(self, ids: Tensor) -> Tensor:
        """(K,) row numbers -> (K,E)."""
        trained = len(self.vectors)
        if not len(self.rows):
            return self.vectors[ids]
        own = self.vectors[ids.clamp(max=trained - 1)]
        place = (ids - trained).clamp(min=0)
        further = (self.rows[place].to(own.dtype) * self.scale[place, None]) @ self.into + self.offset
        return torch.where((ids < trained)[:, None], own, further)


class TextToRegion(nn.Module):
    """Trunk + text head + words. `build.create` makes one from names, `store.load_model` from a folder.

    `words` holds vectors of the V words of `vocabulary` and of the M others in `extra`, row V + i.
    """

    reads_phrases = False  # whole ones, not their words (build.ImageText)

    def __init__(
        self,
        config: ModelConfig,
        trunk: nn.Sequential,
        head: TextHead,
        words: WordTable,
        vocabulary: Vocabulary,
        extra: tuple[str, ...] = (),
    ):
        super().__init__()
        if len(words) != len(vocabulary) + len(extra):
            raise ConfigError(
                f"a model needs a vector a word, got {len(words)} for {len(vocabulary)} + {len(extra)} "
                "words; give both tables in the order of the vectors"
            )
        self.config, self.vocabulary, self.extra = config, vocabulary, extra
        self.trunk, self.head, self.words = trunk, head, words
        self.normalize = Normalize(config.mean, config.std)

    def with_synonyms(self, synonyms: Mapping[str, str]) -> Self:
        """The same, reading each key as its value; a ConfigError for an unknown value."""
        model = copy(self)
        model.encoder = PhraseEncoder(model.vocabulary, model.extra, synonyms, model.config.class_words)
        return model

    def drop_ranker(self) -> None:
        """Takes away the box ranker, of a network that is to change, and the settings that were chosen with it."""
        if self.config.ranker:
            kept = {k: v for k, v in self.config.inference.items() if k not in {"gamma", "spread", "ranker"}}
            self.head.ranker, self.config = None, replace(self.config, ranker=None, inference=kept)

    def encode(self, phrases: Sequence[str], prompts: Sequence[str] = ()) -> list[EncodedPhrase]:
        """Phrases as the model reads them; `prompts` are for image-text pairs alone, else a ConfigError."""
        if prompts:
            raise ConfigError("prompts are for image-text pairs, and this model reads words; leave them out")
        return [self.encoder.encode(phrase) for phrase in phrases]

    def common_units(self, prompts: Sequence[str] = ()) -> Tensor:
        """The mean unit of the commonest words, (1,D): what they all share."""
        rows = torch.arange(len(self.vocabulary), device=self.words.vectors.device)[:COMMON]
        return self.units(rows).mean(0, keepdim=True)

    def grid(self, maps: Tensor) -> Tensor:
        """What is read at a transformer's tokens, (...,T,1), on the plane of the patches; planes as they are."""
        stem: Any = self.trunk[0]
        tokens = maps.shape[-1] == 1 < maps.shape[-2] and getattr(stem, "prefix", None) is not None
        return patches_of(maps, stem.prefix) if tokens else maps

    @cached_property
    def encoder(self) -> PhraseEncoder:
        """Phrases -> rows of `words`."""
        return PhraseEncoder(self.vocabulary, self.extra, class_words=self.config.class_words)

    def features(self, images: Tensor) -> Tensor:
        """(N,3,H,W) RGB 0..255, uint8 or float -> (N,D,h,w) >= 0."""
        return self.head.features(self.trunk(self.normalize(images)))

    def word_vectors(self, words: Tensor) -> Tensor:
        """(K,) row numbers -> (K,E); vectors (K,E) pass as they are, here and in all that follows."""
        return words if words.is_floating_point() else self.words(words)

    def word_bias(self, words: Tensor) -> Tensor:
        """(K,) -> (K,) what is added to the scores at every location."""
        vectors, linear = self.word_vectors(words), self.head.word_bias
        return vectors[:, -1] if linear is None else linear(vectors)[:, 0]

    def units(self, words: Tensor) -> Tensor:
        """(K,) -> (K,D): the seeds of a top-down pass."""
        vectors, linear = self.word_vectors(words), self.head.project
        return vectors[:, :-1] if linear is None else linear(vectors)

    def presence_bias(self, words: Tensor) -> Tensor:
        """(K,) -> (K,) what calibration adds to the pooled scores, on the CPU; none to vectors (K,E)."""
        return torch.zeros(len(words)) if words.is_floating_point() else self.words.presence_bias.cpu()[words]

    def location_scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w), (K,) -> (N,K,h,w)."""
        return self.head.unit_scores(features, self.units(words), self.word_bias(words))

    def scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D,h,w), (K,) -> (N,K): is the word in the image."""
        return self.head.pool(self.location_scores(features, words))

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """(N,3,H,W) RGB 0..255, (K,) -> (N,K) scores, for training."""
        return self.scores(self.features(images), words)

    @property
    def stages(self) -> tuple[str, ...]:
        """Where the model can be cut, from the image up; the last is "features"."""
        return (*stage_names(self.trunk), FEATURES)

    def stage_index(self, stage: str) -> int:
        """The place of a stage from the image up; raises ConfigError for an unknown one."""
        return choose({name: i for i, name in enumerate(self.stages)}, stage, "stage")

    def below(self, stage: str = FEATURES) -> nn.Module:
        """The part up to a stage: images (N,3,H,W) RGB 0..255 -> activations (N,C,h,w)."""
        return nn.Sequential(self.normalize, *self._chain[: self.stage_index(stage) + 1])

    def above(self, stage: str = FEATURES) -> nn.Module:
        """The part over a stage: activations (N,C,h,w) -> features (N,D,h',w') >= 0."""
        return self.between(stage, FEATURES)

    def between(self, low: str, high: str) -> nn.Module:
        """The part from a stage to a later one: activations (N,C,h,w) -> activations, or features for "features"."""
        return nn.Sequential(*self._chain[self.stage_index(low) + 1 : self.stage_index(high) + 1])

    @property
    def _chain(self) -> list[nn.Module]:
        return [*self.trunk, nn.Sequential(self.head.lift, nn.ReLU())]


def trainable_stages(trunk: nn.Sequential, train_from: str) -> list[str]:
    """Names of the stages that a phase trains, lowest first: 'none', 'all', or from the named one upwards."""
    names = stage_names(trunk)
    if train_from in ("none", "all"):
        return names if train_from == "all" else []
    if train_from not in names:
        raise ConfigError(f"train_from must be none, all or a stage ({', '.join(names)}), got {train_from!r}")
    return names[names.index(train_from) :]


def last_frozen(trunk: nn.Sequential, train_from: str) -> str:
    """The stage below the trained ones, whose output can be cached; a ConfigError where all are trained."""
    names = stage_names(trunk)
    frozen = names[: len(names) - len(trainable_stages(trunk, train_from))]
    if not frozen:
        raise ConfigError(
            "cache: true needs frozen stages; set train_from to none or to a stage above the first"
        )
    return frozen[-1]


def run_stages(
    model: TextToRegion, x: Tensor, after: str | None, until: str | None, again: bool = False
) -> Tensor:
    """The output of the trunk's stage `until` (None: the last), from images (N,3,H,W) RGB 0..255 or stage `after`'s.

    `again` computes activations again in the backward pass instead of keeping them.
    """
    x = model.normalize(x) if after is None else x
    x = x.contiguous(memory_format=torch.channels_last)
    for stage in between(model.trunk, after, until):
        x = checkpoint(stage, x, use_reentrant=False) if again and torch.is_grad_enabled() else stage(x)
    return x
