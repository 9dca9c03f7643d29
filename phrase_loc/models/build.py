"""A new model put together from names and numbers, and a model made ready for queries."""

import copy
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from string import punctuation, whitespace
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from phrase_loc.errors import ConfigError
from phrase_loc.models import backbones, towers
from phrase_loc.models.model import COMMON, FEATURES, FORMAT, ModelConfig, TextHead, TextToRegion, WordTable
from phrase_loc.structures import Word
from phrase_loc.text.phrases import EncodedPhrase
from phrase_loc.text.vocabulary import Vocabulary

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Trunk = TypeVar("Trunk", bound=nn.Module)


def create(
    vocabulary: Vocabulary,
    vectors: Tensor,
    *,
    backbone: str = "efficientnet_lite0",
    weights: str | Path | None = backbones.IMAGENET,
    fold: bool = True,
    image_size: int | None = None,
    **head: Any,
) -> TextToRegion:
    """A model whose trunk has `weights` (see backbones.build) and whose head is untrained; `head`: see ModelConfig.

    `vectors` (V,E) are those of the vocabulary; of a `free` head, a linear classifier, units with their biases.
    Batch norms are folded now where `fold` says so; the trunk can then be fine-tuned as plain convolutions. Without,
    it trains with batch norms, and `folded` makes the model to be queried. `image_size` None is the backbone's own.
    """
    trunk, named = backbones.build(backbone, weights), towers.split_name(backbone)
    facts = backbones.preprocessing(backbone)
    with torch.no_grad():
        channels = trunk(torch.zeros(1, 3, facts.size, facts.size)).shape[1]
    mean, std = (cast(Any, tuple(round(255 * v, 6) for v in values)) for values in (facts.mean, facts.std))
    config = ModelConfig(
        backbone=backbone,
        architecture=towers.architecture(*named) if named else None,
        folded=fold,
        mean=mean,
        std=std,
        image_size=facts.size if image_size is None else image_size,
        channels=channels,
        embedding=vectors.shape[1],
        **head,
    )
    trunk = fold_batch_norm(trunk) if fold else trunk
    return TextToRegion(config, trunk, TextHead(config), WordTable(vectors, config.tuned), vocabulary)


def folded(model: TextToRegion) -> TextToRegion:
    """The model to be queried: in eval mode, batch norms folded, nothing to train; `model` is untouched."""
    trunk = copy.deepcopy(model.trunk) if model.config.folded else fold_batch_norm(model.trunk)
    head, words = copy.deepcopy(model.head), copy.deepcopy(model.words)
    config = replace(model.config, folded=True)
    made = TextToRegion(config, trunk, head, words, model.vocabulary, model.extra)
    return made.eval().requires_grad_(False)


def fold_batch_norm(trunk: Trunk) -> Trunk:
    """A copy of `trunk`, in eval mode, whose batch norms are folded where one linear layer alone feeds them.

    A norm with a negative scale flips the sign of what its convolution computes. Excitation backprop splits
    weights by sign, so it must see the product of the two: the authors asked their users to "flip the filter".
    Elsewhere (DenseNet's norms before a convolution) norms stay and excitation passes through. Module names
    are kept: a folded norm becomes an Identity, so stages can still be cut by name.
    """
    pairs = _pairs(trunk)
    replaced: list[Any] = [trunk.get_submodule(name).weight for name in pairs.values()]
    whole = copy.deepcopy(trunk, {id(weight): weight for weight in replaced}).eval()
    for norm_name, linear_name in pairs.items():
        linear: Any = whole.get_submodule(linear_name)
        norm: Any = whole.get_submodule(norm_name)
        fuse: Any = fuse_linear_bn_weights if isinstance(linear, nn.Linear) else fuse_conv_bn_weights
        moments = (norm.running_mean, norm.running_var, norm.eps)
        linear.weight, linear.bias = fuse(linear.weight, linear.bias, *moments, norm.weight, norm.bias)
        whole.set_submodule(norm_name, nn.Identity())
    return whole


class _Tracer(Tracer):
    """Looks inside every module but torch's own and those built on a linear layer or a norm."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, LINEAR + NORMS) or super().is_leaf_module(m, module_qualified_name)


def _pairs(root: nn.Module, prefix: str = "") -> dict[str, str]:
    """Norm -> linear layer whose only reader it is, by name: in a Sequential, or as a forward() calls them."""
    found = {}
    for name, chain in root.named_modules():
        if isinstance(chain, nn.Sequential):
            at = f"{prefix}{name}." if name else prefix
            for (first, linear), (second, norm) in pairwise(chain.named_children()):
                if isinstance(linear, LINEAR) and isinstance(norm, NORMS):
                    found[at + second] = at + first
    norms = sum(isinstance(m, NORMS) for m in root.modules())
    if len(found) == norms or isinstance(root, NORMS):  # tracing takes a while
        return found
    if not isinstance(root, nn.Sequential):
        try:
            return {prefix + norm: prefix + linear for norm, linear in _traced(root)} | found
        except Exception:  # control flow on values stops the tracer here; the parts may be traceable
            pass
    for name, part in root.named_children():
        found |= _pairs(part, f"{prefix}{name}.")
    return found


def _traced(root: nn.Module) -> Iterator[tuple[str, str]]:
    calls = [node for node in _Tracer().trace(root).nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        norm, linear = str(node.target), str(before.target)
        if times[norm] == times[linear] == 1 and (
            isinstance(root.get_submodule(norm), NORMS) and isinstance(root.get_submodule(linear), LINEAR)
        ):
            yield norm, linear


PROMPTS = ("a photo of {phrase}",)
_KEPT = 1 << 14  # phrases whose embedding is kept
_LONG = 60  # bytes of a phrase and its prompt from which they may be more than a text tower reads
_BLANK = punctuation + whitespace


class ImageText(TextToRegion):
    """A pretrained image-text pair that is asked whole phrases: the embedding of a prompt is the unit of its phrase.

        h = what the image tower pools, (N,D), signed
        unit = W' e(prompt), (K,D): W (E,D) the visual projection, ' its transpose, e the text tower, of length 1
        score = scale * cos(W h, e) + bias, the logit that the pair was trained by

    It knows every phrase but those without a word, as one word of weight 1. Several prompts are averaged. Words (K,E)
    are such embeddings.
    """

    project: Tensor
    reads_phrases = True

    def __init__(self, name: str, pair: towers.Pair, facts: Mapping[str, Any] | None = None):
        stages = nn.Sequential(pair.vision.stages)
        stages = fold_batch_norm(stages) if any(isinstance(m, NORMS) for m in stages.modules()) else stages
        side = pair.images["size"]
        with towers.reading(*cast(Any, towers.split_name(name))), torch.no_grad():  # what only now turns out
            embedding = pair.texts(["a photo"]).shape[1]
            channels = stages(torch.zeros(1, 3, side, side)).shape[1]
        values: dict[str, Any] = {"format": FORMAT, "inference": {}, **(facts or {})}
        if isinstance(values["inference"], dict):
            default = {**_reading(pair.vision.stages), "image_sizes": [side]}
            values["inference"] = default | values["inference"]
        values |= {key: tuple(round(255 * v, 6) for v in pair.images[key]) for key in ("mean", "std")}
        values |= {"backbone": name, "embedding": embedding, "image_size": side, "hidden": None}
        values |= {"ranker": None, "channels": channels}
        config = ModelConfig.from_json(values, name)
        nothing = WordTable(torch.zeros(0, embedding)), Vocabulary((), ())
        super().__init__(config, stages, cast(Any, pair.vision.pool), *nothing)
        self.texts, self.scale, self.bias = pair.texts, pair.scale, pair.bias
        project = torch.eye(embedding) if pair.project is None else pair.project.detach()
        self.register_buffer("project", project)
        self._kept: dict[tuple[tuple[str, ...], str], EncodedPhrase] = {}
        self.eval().requires_grad_(False)

    @property
    def _chain(self) -> list[nn.Module]:
        return [*self.trunk, self.head]

    def below(self, stage: str = FEATURES) -> nn.Module:
        """As of any model, but its features are pooled and no place has a map; a ConfigError for those."""
        if stage == FEATURES:
            raise ConfigError(
                f"an image-text pair has maps at {', '.join(self.stages[:-1])}, and none at its pooled features; "
                "name another inference.stage"
            )
        return super().below(stage)

    def features(self, images: Tensor) -> Tensor:
        """(N,3,H,W) RGB 0..255 -> (N,D), what the image tower pools."""
        return self.head(self.trunk(self.normalize(images)))

    def encode(self, phrases: Sequence[str], prompts: Sequence[str] = ()) -> list[EncodedPhrase]:
        """Whole phrases by the prompts, each with {phrase} in it; those asked before are not embedded again."""
        templates = tuple(prompts) or PROMPTS
        kept = self._kept if len(self._kept) <= _KEPT else {}
        if missing := [p for p in dict.fromkeys(phrases) if p.strip(_BLANK) and (templates, p) not in kept]:
            said = [p.encode("utf-8", "replace").decode() for p in missing]  # a file's name may be no text
            texts = [t.replace("{phrase}", text) for text in said for t in templates]
            vectors = self.texts(texts).unflatten(0, (len(missing), -1)).mean(1)
            vectors = F.normalize(vectors, dim=1).cpu().numpy()
            for phrase, text, vector in zip(missing, said, vectors, strict=True):
                word, note = Word(phrase, True, 1.0), self._unread(text, templates)
                kept[templates, phrase] = EncodedPhrase((word,), (vector,), (1.0,), note)
            self._kept = kept
        return [kept[templates, p] if p.strip(_BLANK) else EncodedPhrase((), (), ()) for p in phrases]

    def with_synonyms(self, synonyms: Mapping[str, str]) -> Self:
        """There are none."""
        raise ConfigError("an image-text pair reads whole phrases; synonyms are for models that read words")

    def _unread(self, phrase: str, templates: Sequence[str]) -> str | None:
        """The note where the last letter of a phrase changes nothing: the tokenizer has cut it off."""
        if max(len(template.replace("{phrase}", phrase).encode()) for template in templates) <= _LONG:
            return None
        shorter = re.sub(r"(\w\W*|.)$", "", phrase, flags=re.DOTALL)
        for template in templates:
            one, two = (self.texts.ids(template.replace("{phrase}", text)) for text in (phrase, shorter))
            if one == two:
                return "its end was not read: with its prompt it is longer than the text tower reads"
        return None

    def common_units(self, prompts: Sequence[str] = ()) -> Tensor:
        """The mean unit of the commonest words of the shipped model's list, (1,D)."""
        vectors = np.stack([e.ids[0] for e in self.encode(self.word_list[:COMMON], prompts)])
        return self.units(torch.from_numpy(vectors).to(self.project.device)).mean(0, keepdim=True)

    @cached_property
    def word_list(self) -> tuple[str, ...]:
        """Words to draw others from, commonest first: those of the shipped model."""
        return Vocabulary.load(Path(__file__).parent / "default" / "vocabulary.txt").words

    def units(self, words: Tensor) -> Tensor:
        """Embeddings (K,E) -> units (K,D)."""
        return words @ self.project

    def scores(self, features: Tensor, words: Tensor) -> Tensor:
        """(N,D), (K,E) -> (N,K)."""
        return self.scale * F.normalize(features @ self.project.T, dim=1) @ words.T + self.bias

    def location_scores(self, features: Tensor, words: Tensor) -> Tensor:
        """There are none."""
        raise ConfigError(
            "an image-text pair scores whole photographs and no places; ask it a phrase instead"
        )


def _reading(vision: Mapping[str, nn.Module]) -> dict[str, str]:
    """How maps are read if nothing else is said: what did best on benchmarks/shapes.py."""
    stages = list(vision)
    if any(name.startswith("block") for name in stages):
        method = "class_lrp" if cast(Any, vision["stem"]).prefix else "attn_lrp"  # is there a class token?
        return {"method": method, "signed": "contributions", "stage": stages[0]}
    return {"signed": "contributions", "stage": stages[max(0, len(stages) - 2)]}
