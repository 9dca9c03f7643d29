"""Detectors of transformers under our protocols, on tiny random networks made on the spot."""

import json

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from phrase_loc.__main__ import main
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.evaluation.external import TOGETHER, Detector
from phrase_loc.evaluation.protocols import PROTOCOLS, DataConfig, EvaluateConfig
from phrase_loc.evaluation.report import write
from phrase_loc.evaluation.run import evaluate
from phrase_loc.structures import GroundingSample, Phrase
from tests.datasets.flickr_tree import annotation, thing, tree

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def owl(folder, name):
    """A random OWL-ViT or OWLv2 of 2 x 2 patches and a tokenizer of letters."""
    import transformers

    pieces = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16
    )
    parts = ("Config", "ForObjectDetection", "ImageProcessor", "Processor")
    config, network, images, processor = (getattr(transformers, f"{name}{part}") for part in parts)
    size = {"height": 32, "width": 32}
    cut = {"crop_size": size} if name == "OwlViT" else {}
    processor(image_processor=images(size=size, **cut), tokenizer=tokenizer).save_pretrained(folder)
    vision = TEXT | {"image_size": 32, "patch_size": 16}
    text = TEXT | {"vocab_size": len(pieces), "max_position_embeddings": 16}
    settings = config(text_config=text, vision_config=vision, projection_dim=16)
    network(settings).save_pretrained(folder)


def dino(folder, name):
    """A random Grounding DINO with five queries and a tokenizer of letters."""
    import transformers

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *LETTERS, *(f"##{c}" for c in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    sizes = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 1], "window_size": 4}
    swin = transformers.SwinConfig(**sizes, out_features=["stage2", "stage3"])
    settings = getattr(transformers, f"{name}Config")(
        backbone_config=swin,
        text_config=TEXT | {"model_type": "bert", "vocab_size": len(pieces)},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
        num_feature_levels=2,
    )
    getattr(transformers, f"{name}ForObjectDetection")(settings).save_pretrained(folder)


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Name -> folder of a random detector."""
    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in TOGETHER}
    owl(folders["owlvit"], "OwlViT")
    owl(folders["owlv2"], "Owlv2")
    dino(folders["grounding-dino"], "GroundingDino")
    dino(folders["mm-grounding-dino"], "MMGroundingDino")
    return folders


def sample_of(path, size, phrases=("a man", "the dog")):
    boxes = (torch.tensor([[1.0, 2, 30, 40]]),) * len(phrases)
    return GroundingSample("1", path, size, tuple(Phrase(p) for p in phrases), boxes)


@pytest.mark.parametrize("name", TOGETHER)
def test_boxes_and_scores_are_those_of_the_pipeline(networks, tmp_path, name):
    """Against transformers' own pipeline, asked for one phrase at a time, in the frame of the photograph."""
    from transformers import pipeline

    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    picture.save(tmp_path / "a.png")
    detector = Detector(f"transformers:{networks[name]}", torch.device("cpu"))
    tests = [PROTOCOLS["recall_union"]]
    found = detector.answer(sample_of(tmp_path / "a.png", (60, 90)), [("a man",), ("the dog",)], tests)
    asked = pipeline("zero-shot-object-detection", model=str(networks[name]), device="cpu")
    for i, phrase in enumerate(("a man", "the dog")):
        stop = "" if TOGETHER[name] else "."  # ends each phrase of its prompts
        own = asked(picture, candidate_labels=[phrase + stop], threshold=0.0)
        boxes = torch.tensor([list(answer["box"].values()) for answer in own], dtype=torch.float)
        scores = torch.tensor([answer["score"] for answer in own])
        there = ~found.ranked[i, :, 4].isnan()
        assert there.sum() == len(own) > 1
        assert torch.allclose(found.ranked[i, :, 4][there], scores, atol=1e-5)
        assert (found.boxes[i][there] - boxes).abs().max() <= 1.001  # the pipeline cuts to whole pixels
        assert torch.equal(found.peaks[0][i], (found.boxes[i, 0, :2] + found.boxes[i, 0, 2:]) / 2)
    assert found.known.all()


def test_boxes_are_in_the_frame_of_the_annotation(networks, tmp_path):
    """A squashed photograph gives the boxes that it holds, stretched; a chain has its mentions' boxes together."""
    Image.effect_noise((48, 48), 80).convert("RGB").save(tmp_path / "a.png")
    detector = Detector(f"transformers:{networks['owlv2']}", torch.device("cpu"))
    tests = [PROTOCOLS["recall_union"]]
    queries = [("a man",), ("a man", "the dog")]
    square = detector.answer(sample_of(tmp_path / "a.png", (48, 48)), queries, tests)
    wide = detector.answer(sample_of(tmp_path / "a.png", (96, 192)), [("a man",)], tests)
    factor = torch.tensor([4.0, 2, 4, 2])
    count = int((~square.ranked[0, :, 4].isnan()).sum())
    assert torch.allclose(wide.boxes[0], square.boxes[0, :count] * factor, atol=1e-3)
    assert (~square.ranked[1, :, 4].isnan()).sum() == 2 * count
    assert (square.ranked[1, :, 4].diff() <= 0).all()


def test_its_rows_are_marked(networks, tmp_path):
    tall = "[/EN#1/people Somebody quite tall indeed, really]"
    captions = ["[/EN#1/people A man] and [/EN#2/other the dog]", tall]
    boxes = thing("1", (5, 5, 20, 30)), thing("2", (9, 9, 30, 30))
    tree(tmp_path, {"im": (captions, annotation(32, 32, *boxes))}, photographs=True)
    method = f"transformers:{networks['owlvit']}"
    data = DataConfig(root=tmp_path, split="val")
    settings = {"method": [method, "centre"], "output": tmp_path / "r.json", "bootstrap": 20}
    report, _ = write(evaluate(EvaluateConfig(data=data, html=True, **settings), World()))
    for row in report["rows"]:
        assert (row.get("supervision") == "trained on boxes") == (row["method"] == method)
        assert ("centre of its first box" in row.get("note", "")) == (row["method"] == method)
        assert (row["value"] is None) == (row["count"] == 0)
    assert f"| {method} (trained on boxes) |" in (tmp_path / "r.md").read_text()
    header, *lines = (tmp_path / "r.csv").read_text().splitlines()
    assert header.endswith(",supervision")
    assert {line.endswith(",trained on boxes") for line in lines if method in line} == {True}
    assert not any("trained" in line for line in lines if ",centre," in line)
    assert '<span class="tag">trained on boxes</span>' in (tmp_path / "r.html").read_text()


def test_what_cannot_be_loaded_is_one_sentence(networks, tmp_path, tiny_model, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tree(tmp_path, {"im": (["[/EN#1/people a man]"], annotation(32, 32, thing("1", (5, 5, 20, 30))))})
    settings = [f"data.root={tmp_path}", "data.split=val", f"output={tmp_path / 'r.json'}"]
    assert main(["evaluate", *settings, "method=transformers:nobody/no-such-detector"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "transformers:nobody/no-such-detector cannot be loaded" in said
    assert said.endswith("give a folder with its files, or a hub id and a network\n")
    with pytest.raises(DataError, match="cannot be loaded"):
        Detector(f"transformers:{tiny_model}", torch.device("cpu"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is a bert, no detector; expected one of owlvit, owlv2"):
        Detector(f"transformers:{tmp_path}", torch.device("cpu"))
    (networks["owlvit"] / "model.safetensors").rename(networks["owlvit"] / "gone")
    try:
        with pytest.raises(DataError, match="cannot be loaded"):
            Detector(f"transformers:{networks['owlvit']}", torch.device("cpu"))
    finally:
        (networks["owlvit"] / "gone").rename(networks["owlvit"] / "model.safetensors")
