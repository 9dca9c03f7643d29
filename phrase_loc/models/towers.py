"""Networks of transformers, open_clip and timm by name: image-text pairs, and image networks as trunks.

A name is LIBRARY:PLACE, the place a folder in the library's own format, a hub id, or a name that the library knows:

    hf:openai/clip-vit-base-patch16, hf:facebook/dinov2-base            (`transformers:` is the former prefix)
    open_clip:timm/resnet50_clip.openai, open_clip:ViT-B-32/laion2b_s34b_b79k
    timm:vit_base_patch16_224.augreg_in21k

Stages are stem, block1 ... of a transformer and stem, layer1 ... or stage1 ... of a convolutional network; those of
transformers are cut in library_nets.py. Each library is imported when one of its networks is asked for.
"""

import copy
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import punctuation
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrase_loc.errors import ConfigError, DataError, PhraseLocError, choose, extra
from phrase_loc.files import read_json, reason
from phrase_loc.models import library_nets
from phrase_loc.models.library_nets import Block, Part, Stages, Vision, closed, column, tokens_of

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
OPEN_CLIP_CONFIG = "open_clip_config.json"
_AT_ONCE = 64  # prompts
#: CLIP's own mean and std, which open_clip takes where a config names none.
_CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}


class Texts(nn.Module):
    """A text tower with its own tokenizer, which cuts what is too long: prompts to embeddings of length 1."""

    def __init__(
        self, net: nn.Module, tokenize: Callable[[list[str]], Any], embed: Callable[[Any, Any], Tensor]
    ):
        super().__init__()
        self.net, self.tokenize, self.embed = net, tokenize, embed

    def ids(self, prompt: str) -> list[int]:
        """The tokens of a prompt."""
        given = self.tokenize([prompt])
        return (given if isinstance(given, Tensor) else given["input_ids"])[0].tolist()

    @torch.inference_mode()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        """P prompts -> (P,E) on the device of the weights."""
        device, parts = next(self.parameters()).device, range(0, len(prompts), _AT_ONCE)
        tokens = (self.tokenize(list(prompts[i : i + _AT_ONCE])).to(device) for i in parts)
        return F.normalize(torch.cat([self.embed(self.net, given) for given in tokens]), dim=-1)


@dataclass(frozen=True)
class Pair:
    """An image network and a text tower over one embedding of E numbers."""

    vision: Vision
    project: Tensor | None  # (E,D) from what is pooled to the embedding; None where that is the embedding
    texts: Texts
    scale: float  # of the cosine, and what is added to it, in the logit that the two belong together
    bias: float
    images: dict[str, Any]  # mean and std of RGB in 0..1, size


def _pair(net: Any, vision: Vision, project: Any, texts: Texts, images: dict[str, Any]) -> Pair:
    """The pair of a network of transformers or open_clip, which holds the scale and bias of its logit."""
    bias = getattr(net, "logit_bias", None)
    scale = net.logit_scale.exp().item()
    return Pair(vision, project, texts, scale, 0.0 if bias is None else bias.item(), images)


def _no_texts(name: str, why: str) -> ConfigError:
    return ConfigError(
        f"{name} has no text tower to be asked phrases ({why}); name an image-text model such as "
        f"hf:openai/clip-vit-base-patch16, or train a word head over this one: model.backbone={name}"
    )


class _Transformers:
    """Networks and pairs of transformers."""

    network = staticmethod(library_nets.transformers_network)
    architecture = staticmethod(library_nets.architecture)
    blank = staticmethod(library_nets.from_architecture)
    trunk = staticmethod(library_nets.transformers_stages)

    def images(self, place: str) -> dict[str, Any]:
        from transformers.image_processing_base import ImageProcessingMixin

        config, facts = self.architecture(place), dict[str, Any]()
        with suppress(OSError):  # there is no preprocessor_config.json
            facts = ImageProcessingMixin.get_image_processor_dict(place)[0]
        size = facts.get("size")
        if isinstance(size, dict):
            size = size.get("shortest_edge", size.get("height"))
        if not size and "num_patches" in config:  # a Siglip2, which takes any shape
            size = math.isqrt(config["num_patches"]) * config["patch_size"]
        found = {"mean": facts.get("image_mean"), "std": facts.get("image_std")}
        return {**found, "size": size or config.get("image_size")}

    def pair(self, place: str) -> Pair:
        from transformers import AutoConfig

        kind = AutoConfig.from_pretrained(place, **library_nets.UNTRUSTED).model_type
        if kind not in library_nets.PAIRS:
            pairs = ", ".join(library_nets.PAIRS)
            raise _no_texts(f"hf:{place}", f"its model_type is {kind}, and the pairs are {pairs}")
        images = images_of("hf", place)
        if not {"mean", "std"} <= set(images):
            raise DataError(
                f"{place} has no preprocessor_config.json with its images' mean and std; copy it whole"
            )
        net = self.network(place)
        project = getattr(net, "visual_projection", None)
        vision = library_nets.vision_transformer(net.vision_model)
        texts = _texts(net, place, "siglip" in kind)
        net.vision_model = net.visual_projection = None  # the text tower is left
        return _pair(net, vision, None if project is None else project.weight, texts, images)


def _texts(net: Any, place: str, padded: bool) -> Texts:
    """Of transformers; `padded`: SigLIP reads texts of one length with their padding, lower case, no punctuation."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(place, **library_nets.UNTRUSTED)
    facts = net.config.text_config
    if len(tokenizer) < facts.vocab_size / 2:
        told = f"a tokenizer of {len(tokenizer)} tokens, and its text tower reads {facts.vocab_size}"
        raise DataError(f"{place} has {told}; copy it again, with all files of the tokenizer")
    longest = facts.max_position_embeddings
    options = {"truncation": True, "max_length": longest, "return_tensors": "pt"}
    options |= {"padding": "max_length" if padded else True, "return_attention_mask": not padded}

    def tokenize(prompts: list[str]) -> Any:
        if padded:
            bare = (text.lower().translate(str.maketrans("", "", punctuation)) for text in prompts)
            prompts = [" ".join(text.split()) for text in bare]
        return tokenizer(prompts, **options)

    return Texts(net, tokenize, lambda net, given: net.get_text_features(**given).pooler_output)


class _OpenClip:
    """Networks and pairs of open_clip."""

    def _name(self, place: str) -> tuple[str, str | None]:
        """The name that open_clip takes, and the tag of its weights."""
        import open_clip

        if Path(place).is_dir():
            return f"local-dir:{place}", None
        name, _, tag = place.partition("/")
        return (name, tag or None) if name in open_clip.list_models() else (f"hf-hub:{place}", None)

    def _config(self, place: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What open_clip knows of the network, and of its images."""
        import open_clip
        from huggingface_hub import hf_hub_download

        name, tag = self._name(place)
        if not name.startswith(("local-dir:", "hf-hub:")):
            return open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, tag) if tag else {}
        local = Path(place) / OPEN_CLIP_CONFIG
        found = read_json(local if local.parent.is_dir() else hf_hub_download(place, OPEN_CLIP_CONFIG))
        return found["model_cfg"], found.get("preprocess_cfg") or {}

    def images(self, place: str) -> dict[str, Any]:
        config, facts = self._config(place)
        size = facts.get("size") or config["vision_cfg"].get("image_size", 224)
        return {**{key: facts.get(key) or own for key, own in _CLIP.items()}, "size": size}

    def architecture(self, place: str) -> dict[str, Any]:
        config, keys = self._config(place)[0], ("embed_dim", "vision_cfg", "quick_gelu")
        return {"library": "open_clip", **{key: config.get(key) for key in keys}}

    def blank(self, config: dict[str, Any]) -> Any:
        from open_clip.model import _build_vision_tower

        return _build_vision_tower(config["embed_dim"], config["vision_cfg"], bool(config.get("quick_gelu")))

    def network(self, place: str) -> Any:
        import open_clip

        name, tag = self._name(place)
        return open_clip.create_model(name, tag, require_pretrained=True, pretrained_text=False).eval()

    def trunk(self, net: Any) -> nn.Sequential:
        return _open_clip_vision(getattr(net, "visual", net)).trunk

    def pair(self, place: str) -> Pair:
        import open_clip

        net, tokenizer = self.network(place), open_clip.get_tokenizer(self._name(place)[0])
        vision, project = _open_clip_vision(net.visual), getattr(net.visual, "proj", None)
        net.visual = None  # the text tower is left
        texts = Texts(net, tokenizer, lambda net, given: net.encode_text(given))
        project = None if project is None else project.T
        return _pair(net, vision, project, texts, images_of("open_clip", place))


def _open_clip_vision(visual: Any) -> Vision:
    kind = type(visual).__name__
    if kind == "TimmModel":
        found = _timm_vision(visual.trunk)
        return Vision(found.stages, found.top, nn.Sequential(found.pool, visual.head))
    if kind == "ModifiedResNet":
        stem = "conv1 bn1 act1 conv2 bn2 act2 conv3 bn3 act3 avgpool"
        stages = library_nets.parts(visual, stem=stem, **library_nets.LAYERS)
        return Vision(stages, None, Part(visual, ("attnpool",), _attention_pool))
    if kind != "VisionTransformer":
        raise ConfigError(
            f"open_clip's {kind} is none of its ViTs, ResNets and timm networks; take one of those"
        )
    first = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
    stages = Stages(stem=Part(visual, first, _open_clip_embed, 1))
    stages |= {f"block{i}": Block(block) for i, block in enumerate(visual.transformer.resblocks, 1)}
    last = ("ln_post", "attn_pool", "attn_pool_contrastive")
    pool = Part(visual, last, lambda net, x: net._pool(tokens_of(x))[0])
    top = Part(visual, ("ln_post",), partial(closed, norm="ln_post", prefix=1))
    return Vision(stages, top, pool)


def _open_clip_embed(net: Any, images: Tensor) -> Tensor:
    plane = net.conv1(images)
    first = net.class_embedding.expand(len(plane), 1, -1)
    tokens = torch.cat([first, tokens_of(plane)], 1) + _resized(net.positional_embedding, plane.shape[-1])
    return column(net.ln_pre(tokens))


def _attention_pool(net: Any, x: Tensor) -> Tensor:
    """CLIP's attention pool, its position embeddings for the grid of x: (N,C,h,w) -> (N,E)."""
    pool = copy.copy(net.attnpool)  # a call in another thread may have another size
    fitting = nn.Parameter(_resized(pool.positional_embedding, x.shape[-1]), requires_grad=False)
    pool._parameters = {**pool._parameters, "positional_embedding": fitting}
    return pool(x)


def _resized(embedding: Tensor, side: int) -> Tensor:
    """Position embeddings (1 + s*s, C), the first of no place, for a grid of another side."""
    from timm.layers import resample_abs_pos_embed  # a dependency of open_clip

    return resample_abs_pos_embed(embedding[None], [side, side])[0]


class _Timm:
    """timm's networks, which see images alone."""

    def _config(self, place: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
        """What timm knows of the weights, the architecture's name, and its options."""
        import timm
        from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

        if Path(place).is_dir() or "/" in place:
            read = load_model_config_from_path if Path(place).is_dir() else load_model_config_from_hf
            return cast(Any, read(place))
        facts: Any = timm.get_pretrained_cfg(place, allow_unregistered=False)
        return facts.to_dict(), place.partition(".")[0], {}

    def images(self, place: str) -> dict[str, Any]:
        facts = self._config(place)[0]
        return {"mean": facts["mean"], "std": facts["std"], "size": facts["input_size"][-1]}

    def architecture(self, place: str) -> dict[str, Any]:
        _, name, options = self._config(place)
        return {"library": "timm", "name": name, "options": dict(options or {})}

    def blank(self, config: dict[str, Any]) -> Any:
        import timm

        return timm.create_model(config["name"], pretrained=False, **config["options"])

    def network(self, place: str) -> Any:
        import timm

        source = "local-dir:" if Path(place).is_dir() else "hf-hub:" if "/" in place else ""
        return timm.create_model(source + place, pretrained=True).eval()

    def trunk(self, net: Any) -> nn.Sequential:
        return _timm_vision(net).trunk

    def pair(self, place: str) -> Pair:
        raise _no_texts(f"timm:{place}", "timm's networks see images alone")


def _timm_vision(net: Any) -> Vision:
    head = ("norm", "attn_pool", "fc_norm", "head_drop", "head", "global_pool", "fc")
    if hasattr(net, "_pos_embed") and hasattr(net, "norm_pre") and not hasattr(net, "rope"):
        net.dynamic_img_size, patches, prefix = True, net.patch_embed, net.num_prefix_tokens
        patches.strict_img_size, patches.flatten, patches.output_fmt = False, False, "NHWC"
        keep = ("patch_embed", "pos_embed", "pos_drop", "patch_drop", "norm_pre", "cls_token", "reg_token")
        blocks = {f"block{i}": Block(block) for i, block in enumerate(net.blocks, 1)}
        stages = Stages(stem=Part(net, keep, _timm_embed, prefix), **blocks)
        top = Part(net, ("norm",), partial(closed, norm="norm", prefix=prefix))
        return Vision(stages, top, Part(net, head, lambda net, x: net.forward_head(net.norm(tokens_of(x)))))
    if hasattr(net, "stem") and hasattr(net, "stages"):
        stages = Stages(stem=net.stem, **{f"stage{i}": stage for i, stage in enumerate(net.stages, 1)})
    elif hasattr(net, "layer4"):
        stem = " ".join(name for name in ("conv1", "bn1", "act1", "maxpool") if hasattr(net, name))
        stages = library_nets.parts(net, stem=stem, **library_nets.LAYERS)
    else:
        kind = type(net).__name__
        raise ConfigError(f"timm's {kind} is none of its ViTs, ConvNeXts and ResNets; take one of those")
    last = next(reversed(stages))
    for name in ("norm_pre", "final_conv"):  # mostly an identity
        stages[last] = nn.Sequential(stages[last], getattr(net, name)) if hasattr(net, name) else stages[last]
    return Vision(stages, None, Part(net, head, lambda net, x: net.forward_head(x)))


def _timm_embed(net: Any, images: Tensor) -> Tensor:
    return column(net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images)))))


#: Library -> how it reads a place: the network with its weights, the pair, what `images_of` and `architecture` say;
#: and the network of such an architecture, its weights random (`blank`), and a network's trunk, sharing its weights.
LIBRARIES: dict[str, Any] = {"hf": _Transformers(), "open_clip": _OpenClip(), "timm": _Timm()}


def split_name(name: str) -> tuple[str, str] | None:
    """(library, place) of LIBRARY:PLACE; None for any other name."""
    library, _, place = name.partition(":")
    library = "hf" if library == "transformers" else library
    return (library, place) if place and library in LIBRARIES else None


@contextmanager
def reading(library: str, place: str | None) -> Iterator[None]:
    """Whatever a library raises of a place, or of an architecture that was saved, becomes one sentence."""
    what, advice = f"{library}:{place}", "check the name and the network, or name a folder that is here"
    if place is None:
        what, advice = f"the model's architecture of {library}", "copy the model again"
    elif os.path.exists(place):
        advice = "copy the folder again, whole"
    try:
        yield
    except PhraseLocError:
        raise
    except ImportError as error:
        needed = f"the package {error.name}" if error.name else reason(error)
        raise ConfigError(f"{what} needs {needed}: {extra('clip')}") from None
    except Exception as error:  # of a broken folder or without a network the libraries raise anything
        raise DataError(f"{what} cannot be loaded ({reason(error)}); {advice}") from None


def load_pair(library: str, place: str) -> Pair:
    """An image-text model with its weights; a PhraseLocError where they are partial, broken or out of reach."""
    with reading(library, place):
        pair = LIBRARIES[library].pair(place)
    weights = nn.ModuleList([*pair.vision.stages.values(), pair.vision.pool, pair.texts]).state_dict()
    for name, value in (weights if pair.project is None else {**weights, "projection": pair.project}).items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DataError(f"{library}:{place} has weights that are not finite ({name}); copy it again")
    return pair


def architecture(library: str, place: str) -> dict[str, Any]:
    """What `blank_trunk` builds again, kept in a saved model so that it needs the place no more."""
    with reading(library, place):
        return LIBRARIES[library].architecture(place)


def images_of(library: str, place: str) -> dict[str, Any]:
    """Mean and std of RGB in 0..1 and the size, a side in pixels, of a place's images, as far as it says them."""
    with reading(library, place):
        told = {key: value for key, value in LIBRARIES[library].images(place).items() if value}
        size = told.get("size", 1)
        size = size if isinstance(size, int) else size[0]
        if size not in range(1, 4097) or any(len(told.get(key, "RGB")) != 3 for key in ("mean", "std")):
            raise ValueError(f"images of mean, std and size {', '.join(map(str, told.values()))}")
        return {key: size if key == "size" else tuple(value) for key, value in told.items()}


def trunk(library: str, place: str, pretrained: bool) -> tuple[nn.Sequential, dict[str, str]]:
    """Named stages with their own weights or random ones, and names in the library's network -> names in these."""
    with reading(library, place):
        own = LIBRARIES[library]
        net = own.network(place) if pretrained else own.blank(own.architecture(place))
        made = own.trunk(net)
    return made, library_nets.renamed(net, made)


def blank_trunk(config: dict[str, Any]) -> nn.Sequential:
    """The trunk of an `architecture`, with random weights."""
    library = config.get("library", "hf")
    own = choose(LIBRARIES, library, "library of an architecture")
    with reading(library, None):
        return own.trunk(own.blank(config))
