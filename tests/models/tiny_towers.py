"""Image-text pairs and image networks of a few kilobytes, saved on the spot in each library's own format."""

import json
import shutil
from pathlib import Path

import torch

MEAN, STD, SIDE = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3], 32
_VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
_IMAGE = {"image_size": SIDE, "patch_size": 8}
_WORDS = "a photo of red blue green hat dog man woman ball lorry the and on with small large"


def tokenizer(folder: Path, kind: str) -> dict[str, int]:
    """The tokenizer that transformers has for a kind of pair; the numbers that its text tower must know."""
    if kind == "siglip":
        return _sentencepiece(folder)
    from transformers import CLIPTokenizer, Siglip2Tokenizer

    if kind == "siglip2":
        letters = dict.fromkeys("\u2581abcdefghijklmnopqrstuvwxyz")
        special = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4}
        made = Siglip2Tokenizer({**special, **{letter: i for i, letter in enumerate(letters, 5)}}, [])
        made.save_pretrained(folder)
        return {"vocab_size": len(made), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    letters = "abcdefghijklmnopqrstuvwxyz"
    ends = ("an", "an</w>", "<|startoftext|>", "<|endoftext|>")
    parts = [*letters, *(f"{letter}</w>" for letter in letters), *ends]
    made = CLIPTokenizer({part: i for i, part in enumerate(parts)}, [("a", "n"), ("a", "n</w>")])
    made.save_pretrained(folder)
    last = len(parts) - 1
    return {"vocab_size": len(parts), "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}


def _sentencepiece(folder: Path) -> dict[str, int]:
    import sentencepiece
    from transformers import SiglipTokenizer

    text = folder / "text.txt"
    text.write_text("\n".join([_WORDS, *_WORDS.split()]) + "\n")
    options = {"vocab_size": 40, "hard_vocab_limit": False, "minloglevel": 2, "pad_id": 3}
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "spiece"), **options)
    made = SiglipTokenizer(str(folder / "spiece.model"))
    made.save_pretrained(folder)
    for name in ("text.txt", "spiece.vocab"):
        (folder / name).unlink()
    return {"vocab_size": len(made), "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 1}


def pair(folder: Path, kind: str = "clip", seed: int = 0) -> Path:
    """CLIPModel, SiglipModel, Siglip2Model or MetaClip2Model with tokenizer and preprocessor_config.json."""
    import transformers

    torch.manual_seed(seed)
    name = {"clip": "CLIP", "siglip": "Siglip", "siglip2": "Siglip2", "metaclip_2": "MetaClip2"}[kind]
    folder.mkdir(parents=True, exist_ok=True)
    text = {**_VISION, "max_position_embeddings": 24, "projection_size": 16, **tokenizer(folder, kind)}
    image = {**_VISION, "patch_size": 8, "num_patches": 16} if kind == "siglip2" else {**_VISION, **_IMAGE}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=image, projection_dim=12)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    preprocessor(folder, kind != "siglip2")
    return folder


def preprocessor(folder: Path, sized: bool = True) -> None:
    facts = {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
    facts |= {"size": {"height": SIDE, "width": SIDE}} if sized else {}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))


def image_network(folder: Path, kind: str) -> Path:
    """A vision transformer of transformers alone."""
    import transformers

    torch.manual_seed(0)
    name = {"vit": "ViT", "dinov2": "Dinov2", "dinov3_vit": "DINOv3ViT"}
    name["dinov2_with_registers"] = "Dinov2WithRegisters"
    more = {"num_register_tokens": 2} if kind in ("dinov2_with_registers", "dinov3_vit") else {}
    config = getattr(transformers, f"{name[kind]}Config")(**_VISION, **_IMAGE, **more)
    getattr(transformers, f"{name[kind]}Model")(config).save_pretrained(folder)
    preprocessor(folder)
    return folder


_TIMM = {"timm_pool": "", "timm_proj": "linear"}
_OPEN_CLIP = {
    "vit": {"image_size": SIDE, "layers": 4, "width": 16, "head_width": 8, "patch_size": 8},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32, "patch_size": None},
    "convnext": {"timm_model_name": "test_convnext", **_TIMM, "image_size": 64},
    "timm_vit": {"timm_model_name": "test_vit", **_TIMM, "image_size": 160},
}


def open_clip_pair(folder: Path, kind: str = "vit") -> Path:
    """CLIP of open_clip with its open_clip_config.json; its tokenizer is in the package."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": _OPEN_CLIP[kind], "text_cfg": text}
    folder.mkdir(parents=True, exist_ok=True)
    net = open_clip.CLIP(**config)
    for module in net.modules():  # norms that do nothing hide a wrong fold
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    save_file(net.state_dict(), folder / "open_clip_model.safetensors")
    facts = {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(facts))
    return folder


def hub_cache(cache: Path, name: str, folder: Path) -> None:
    """A folder laid out as the hub's cache keeps a snapshot of `name`."""
    repo = cache / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)


def timm_network(folder: Path, name: str) -> Path:
    """A test network of timm, in the format of its hub folders."""
    import timm
    from timm.models._hub import save_for_hf

    torch.manual_seed(0)
    facts = {"mean": tuple(MEAN), "std": tuple(STD)}
    save_for_hf(timm.create_model(name, pretrained_cfg_overlay=facts), folder, safe_serialization=True)
    return folder
