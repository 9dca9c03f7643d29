"""Image-text pairs and image networks of three libraries, made on the spot: our numbers are the library's own."""

import json
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F

from phrase_loc.attention import class_token, mwp
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.export import export
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.build import create
from phrase_loc.models.store import load_model, save_model
from phrase_loc.models.towers import LIBRARIES
from phrase_loc.text.phrases import distinct_words
from phrase_loc.text.vocabulary import Vocabulary
from tests.models import tiny_towers as tiny

HF = ("clip", "siglip", "siglip2", "metaclip_2")
OPEN_CLIP = ("vit", "resnet", "convnext", "timm_vit")
PHRASES = ["a red hat", "the dog"]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("_offline"),
]


@pytest.fixture(scope="module", autouse=True)
def _offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> folder, each made once."""
    made = {}

    def folder(kind: str):
        if kind not in made:
            own = tmp_path_factory.mktemp(kind)
            made[kind] = (
                tiny.pair(own, kind) if kind in HF
                else tiny.open_clip_pair(own, kind.removeprefix("open_clip_")) if kind.startswith("open_clip_")
                else tiny.timm_network(own, kind.removeprefix("timm_")) if kind.startswith("timm_")
                else tiny.image_network(own, kind)
            )  # fmt: skip
        return made[kind]

    return folder


def images(side: int, number: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, side, side), generator=torch.Generator().manual_seed(0))


def pixels(seen: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (tiny.MEAN, tiny.STD))
    return (seen / 255 - mean) / std


def vectors(encoded) -> torch.Tensor:
    """The embeddings of phrases, (P,E)."""
    return torch.from_numpy(distinct_words(encoded)[1] @ distinct_words(encoded)[0])


def theirs(folder, kind: str, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings of images and prompts, of length 1, and their logits (N,P), by the library itself."""
    prompts = [f"a photo of {phrase}" for phrase in PHRASES]
    if kind.startswith("open_clip_"):
        import open_clip

        name = f"local-dir:{folder}"
        net = open_clip.create_model(name, force_image_size=seen.shape[-1]).eval()
        given = pixels(seen), open_clip.get_tokenizer(name)(prompts)
        return net.encode_image(given[0], True), net.encode_text(given[1], True), net.get_logits(*given)[0]
    from transformers import AutoModel, AutoTokenizer

    net, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    given = {"pixel_values": pixels(seen)}
    if kind == "siglip2":
        from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

        side = seen.shape[-1] // 8
        given = {"pixel_values": torch.stack([convert_image_to_patches(i, 8) for i in pixels(seen)])}
        given |= {"pixel_attention_mask": torch.ones(len(seen), side * side, dtype=torch.long)}
        given |= {"spatial_shapes": torch.tensor([[side, side]] * len(seen))}
    else:
        given |= {"interpolate_pos_encoding": True}
    padded = (
        {"padding": "max_length", "return_attention_mask": False} if "siglip" in kind else {"padding": True}
    )
    texts = tokenizer(prompts, return_tensors="pt", max_length=24, truncation=True, **padded)
    out = net(**given, **texts)
    return out.image_embeds, out.text_embeds, out.logits_per_image


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("kind", [*HF, *(f"open_clip_{kind}" for kind in OPEN_CLIP)])
@torch.no_grad()
def test_embeddings_and_logits_are_the_librarys_own_at_any_size(kind, larger, folders):
    if larger and kind.startswith("open_clip_") and kind != "open_clip_vit":
        pytest.skip("open_clip itself resizes nothing but its ViTs")
    model = load_model(folders(kind))
    side = model.config.image_size * 3 // 2 if larger else model.config.image_size
    image, text, logits = theirs(folders(kind), kind, images(side))
    pooled, words = model.features(images(side)), vectors(model.encode(PHRASES))
    embedded = pooled @ model.project.T
    assert torch.allclose(F.normalize(embedded), image, atol=2e-6)
    assert torch.allclose(words, text, atol=1e-6)
    assert torch.allclose(model.units(words) @ pooled.T, text @ embedded.T, atol=1e-5)
    assert torch.allclose(model.scores(pooled, words), logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "open_clip_resnet"])
def test_the_parts_of_a_tower_make_the_whole(kind, folders):
    model = load_model(folders(kind))
    seen = images(model.config.image_size)
    low, high = model.stages[1], model.stages[3]
    cut = model.above(high)(model.between(low, high)(model.below(low)(seen)))
    assert torch.equal(cut, model.features(seen))


def test_a_map_stands_on_the_plane_of_the_patches_without_class_and_registers(folders):
    model = create(Vocabulary(("dog",), (1,)), torch.zeros(1, 4), backbone=f"hf:{folders('dinov3_vit')}")
    tokens = model.below("block2")(images(32))
    assert tokens.shape == (2, 16, 1 + 2 + 16, 1)
    assert torch.equal(model.grid(tokens), tokens[:, :, 3:, 0].reshape(2, 16, 4, 4))
    plane = model.features(images(32))
    assert model.grid(plane) is plane


@pytest.mark.parametrize("kind", ["clip", "siglip2", "open_clip_resnet"])
@pytest.mark.parametrize("method", ["grad_cam", "contrastive_mwp"])
def test_a_folder_answers_phrases(kind, method, folders, drawn_image):
    localizer = PhraseLocalizer.from_pretrained(folders(kind), device="cpu").with_settings(method=method)
    answers = localizer(drawn_image, ["a red hat", "zorglub"])
    assert [e.note for e in localizer.encode(["a red hat", "zorglub"])] == [None, None]
    for answer in answers:
        assert answer.known
        assert answer.present is None
        assert answer.state is None
        assert [(w.text, w.known, w.weight) for w in answer.words] == [(answer.phrase, True, 1.0)]
    assert len(answers[0].boxes)
    assert not torch.equal(answers[0].attention, answers[1].attention)


def test_prompts_are_averaged_and_lengths_are_one(folders):
    model = load_model(folders("clip"))
    both = model.encode(["hat"], ["a {phrase}", "the red {phrase}"])
    one, two = (vectors(model.encode([text], ["{phrase}"])) for text in ("a hat", "the red hat"))
    assert torch.allclose(vectors(both), F.normalize(one + two), atol=1e-6)
    localizer = PhraseLocalizer(model).with_settings(prompts=["the red {phrase}"])
    assert torch.equal(vectors(localizer.encode(["hat"])), two)
    with pytest.raises(ConfigError, match="prompts needs"):
        localizer.with_settings(prompts=["a photo"])


def test_stages_and_sizes_that_do_not_fit_are_one_sentence(folders, drawn_image):
    localizer = PhraseLocalizer.from_pretrained(folders("clip"), device="cpu")
    with pytest.raises(ConfigError, match=r"has maps at stem, block1, block2.* none at its pooled features"):
        localizer.with_settings(stage="features")
    with pytest.raises(ConfigError, match="reads whole phrases; synonyms are for"):
        localizer.with_synonyms({"perro": "dog"})
    with pytest.raises(ConfigError, match="images of 4 pixels do not fit the network"):
        localizer.with_settings(image_sizes=[4]).look(drawn_image)
    timm = PhraseLocalizer.from_pretrained(folders("open_clip_timm_vit"), device="cpu")
    with pytest.raises(ConfigError, match=r"images of 41 pixels do not fit .*divisible by patch size"):
        timm.with_settings(image_sizes=[41]).look(drawn_image)


def test_a_text_that_is_cut_is_said_to_be(folders):
    model = load_model(folders("clip"))
    long, short = model.encode(["red hat " * 20, "red hat"])
    assert "its end was not read" in long.note
    assert short.note is None


def test_an_end_that_is_cut_is_said_in_every_script_and_under_every_prompt(folders):
    model = load_model(folders("open_clip_vit"))  # of 16 tokens, a Chinese letter is up to three of them
    cut, whole = model.encode(["\u4e00\u53ea\u72d7\u5728\u8349\u5730\u4e0a" * 3, "\u72d7"])
    assert "its end was not read" in cut.note
    assert whole.note is None
    for prompts in (["a {phrase}", "word " * 20 + "{phrase}"], ["word " * 20 + "{phrase}"]):
        (unread,) = model.encode(["red hat"], prompts)
        assert "its end was not read" in unread.note


def test_a_phrase_without_a_word_and_one_that_is_no_text(folders, drawn_image):
    for kind in ("clip", "siglip", "open_clip_vit"):
        localizer = PhraseLocalizer.from_pretrained(folders(kind), device="cpu")
        answers = localizer(drawn_image, ["", "red hat", " !?", "\udcff red"])
        assert [len(answer.boxes) > 0 for answer in answers] == [False, True, False, True]
        assert [answer.known for answer in answers] == [False, True, False, True]


def test_siglips_texts_are_in_lower_case_and_without_punctuation_as_it_was_trained(folders):
    for kind, alike in (("siglip", True), ("siglip2", True), ("clip", False)):
        one, two = vectors(load_model(folders(kind)).encode(["Red hat, man!", "red hat man"]))
        assert torch.equal(one, two) is alike
    (dot,) = load_model(folders("siglip")).encode(["the small red dog on the large blue hat with the man ."])
    assert dot.note is None  # the end that changes nothing is no word


def test_prompts_are_for_pairs_alone(tiny_localizer):
    with pytest.raises(ConfigError, match="prompts are for image-text pairs"):
        tiny_localizer.with_settings(prompts=["a {phrase}"]).encode(["hat"])


def test_a_pair_is_saved_by_its_name_or_its_files(folders, tmp_path):
    source = folders("clip")
    localizer = PhraseLocalizer.from_pretrained(source, device="cpu").with_settings(
        gamma=0.25, stage="block2"
    )
    named, whole = (localizer.save_pretrained(tmp_path / str(w), weights=w) for w in (False, True))
    assert [path.name for path in named.iterdir()] == ["phrase_loc.json"]
    assert json.loads((named / "phrase_loc.json").read_text())["tower"] == f"hf:{source}"
    assert (whole / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((whole / "phrase_loc.json").read_text())["tower"] == "."
    for folder in (named, whole, localizer.save_pretrained(whole)):
        again = PhraseLocalizer.from_pretrained(folder, device="cpu")
        assert again.settings == localizer.settings
        assert torch.equal(vectors(again.encode(["hat"])), vectors(localizer.encode(["hat"])))
    assert (whole / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_hub_ids_are_read_from_the_hubs_cache_without_a_network(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tiny.hub_cache(tmp_path / "hub", "somebody/clip", folders("clip"))
    tiny.hub_cache(tmp_path / "hub", "timm/resnet_clip.tiny", folders("open_clip_resnet"))
    tiny.hub_cache(tmp_path / "hub", "somebody/dino", folders("dinov2"))
    for name, backbone, files in (
        ("somebody/clip", "hf:somebody/clip", {"model.safetensors", "tokenizer.json"}),
        ("hf:somebody/clip", "hf:somebody/clip", {"model.safetensors", "tokenizer.json"}),
        ("timm/resnet_clip.tiny", "open_clip:timm/resnet_clip.tiny", {"open_clip_model.safetensors"}),
    ):
        localizer = PhraseLocalizer.from_pretrained(name, device="cpu")
        assert localizer.model.config.backbone == backbone
        assert localizer.encode(["hat"])[0].known
        saved = localizer.save_pretrained(tmp_path / name.replace("/", "-"), weights=True)
        assert {path.name for path in saved.iterdir()} >= {"phrase_loc.json", *files}
    with pytest.raises(ConfigError, match="hf:somebody/dino has no text tower"):
        load_model("somebody/dino")
    with pytest.raises(DataError, match="could not be fetched from the hub"):
        load_model("somebody/else")


class TestOneSentence:
    def refused(self, folder, match, kind=DataError):
        with pytest.raises(kind, match=match) as told:
            load_model(folder)
        assert "\n" not in str(told.value)

    @pytest.mark.parametrize("kind", ["clip", "open_clip_vit"])
    def test_partial_broken_and_infinite_weights(self, kind, folders, tmp_path):
        from safetensors.torch import load_file, save_file

        shutil.copytree(folders(kind), tmp_path, dirs_exist_ok=True)
        weights = next(tmp_path.glob("*.safetensors"))
        tensors, whole = load_file(weights), weights.read_bytes()
        name = "visual_projection.weight" if kind == "clip" else "visual.proj"
        facts = {"format": "pt"}
        save_file({key: value for key, value in tensors.items() if key != name}, weights, facts)
        self.refused(tmp_path, "lacks 1 of|Missing key")
        save_file(tensors | {name: torch.full_like(tensors[name], torch.nan)}, weights, facts)
        self.refused(tmp_path, "not finite")
        save_file(tensors | {name: tensors[name][:1]}, weights, facts)
        self.refused(tmp_path, "cannot be loaded")
        weights.write_bytes(whole[: len(whole) // 2])
        self.refused(tmp_path, "cannot be loaded")
        weights.unlink()
        self.refused(tmp_path, "cannot be loaded")

    def test_a_pair_without_its_preprocessing(self, folders, tmp_path):
        shutil.copytree(folders("clip"), tmp_path, dirs_exist_ok=True)
        path = tmp_path / "preprocessor_config.json"
        facts = json.loads(path.read_text())
        for odd in ({"size": "large"}, {"size": -3}, {"image_mean": 0.5}, {"image_std": [1.0]}):
            path.write_text(json.dumps(facts | odd))
            self.refused(tmp_path, "cannot be loaded .*; copy the folder again")
        path.write_text(json.dumps(facts))
        config = tmp_path / "config.json"
        whole = json.loads(config.read_text())
        for part, odd, said in (
            ("text_config", {"layer_norm_eps": None}, "cannot be loaded .*; copy the folder again"),
            ("vision_config", {"model_type": 7}, "cannot be loaded .*; copy the folder again"),
            (
                "text_config",
                {"num_hidden_layers": 2},
                r"weights of layers that .*text_model.encoder.layers.2",
            ),
        ):
            config.write_text(json.dumps({**whole, part: {**whole[part], **odd}}))
            self.refused(tmp_path, said)
        config.write_text(json.dumps(whole))
        tokens = (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere")
        self.refused(tmp_path, r"tokenizer of \d tokens, and its text tower reads 56; copy it again")
        tokens.rename(tmp_path / "tokenizer.json")
        path.unlink()
        self.refused(tmp_path, "no preprocessor_config.json with its images' mean and std")
        path.write_text(json.dumps(facts))
        for own in ({"inference": 5}, {"name": "x"}, {"tower": 3}):
            (tmp_path / "phrase_loc.json").write_text(json.dumps({"tower": ".", **own}))
            self.refused(tmp_path, "key")

    def test_networks_without_texts_and_of_no_known_kind(self, folders, tmp_path, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for a minute
        self.refused(folders("dinov2"), "has no text tower .*model.backbone=hf:", ConfigError)
        self.refused(folders("timm_test_vit"), "has no text tower .*model.backbone=timm:", ConfigError)
        (tmp_path / "config.json").write_text('{"model_type": "zorglub"}')
        self.refused(tmp_path, "cannot be loaded .*zorglub")
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        self.refused(tmp_path, "has no text tower .*its model_type is bert", ConfigError)
        (tmp_path / "phrase_loc.json").write_text('{"tower": "zorglub"}')
        self.refused(tmp_path, "names no image-text pair")
        self.refused("open_clip:nowhere/at-all", "cannot be loaded")
        for name, match in (
            ("nowhere", "cannot be loaded"),
            ("x" * 400, "cannot be loaded"),
            ("", "no model at"),
        ):
            self.refused(f"hf:{name}", match)

    @pytest.mark.parametrize(
        "name", ["eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"]
    )
    def test_networks_of_timm_that_are_not_cut(self, name):
        timm = pytest.importorskip("timm")
        with (
            torch.device("meta"),
            pytest.raises(ConfigError, match="is none of its ViTs, ConvNeXts and ResNets"),
        ):
            LIBRARIES["timm"].trunk(timm.create_model(name))

    def test_open_clip_is_not_installed(self, folders, monkeypatch):
        monkeypatch.setitem(sys.modules, "open_clip", None)
        self.refused(
            folders("open_clip_vit"), r"needs the package open_clip: pip install '.\[clip\]'", ConfigError
        )


TRUNKS = {
    "hf": ("clip", "siglip2", "vit", "dinov2", "dinov2_with_registers", "dinov3_vit"),
    "open_clip": tuple(f"open_clip_{kind}" for kind in OPEN_CLIP),
    "timm": ("timm_test_vit", "timm_test_resnet", "timm_test_convnext"),
}


@pytest.mark.parametrize(
    ("library", "kind"), [(lib, kind) for lib, kinds in TRUNKS.items() for kind in kinds]
)
@torch.no_grad()
def test_a_network_is_a_trunk_and_a_saved_model_needs_it_no_more(library, kind, folders, tmp_path):
    words = Vocabulary(("dog", "cat"), (2, 1))
    model = create(words, torch.zeros(2, 4), backbone=f"{library}:{folders(kind)}", hidden=8)
    assert model.config.mean == pytest.approx([255 * x for x in tiny.MEAN])
    seen = images(model.config.image_size)
    found = model.features(seen)
    assert found.dim() == 4
    assert found.shape[1] == 8
    if library == "hf" and kind not in ("clip", "siglip2"):
        from transformers import AutoModel

        hidden = AutoModel.from_pretrained(folders(kind)).eval()(pixels(seen)).last_hidden_state
        plane = model.trunk(model.normalize(seen))
        assert torch.allclose(plane.flatten(2).mT, hidden[:, -16:], atol=2e-6)
    again = load_model(save_model(model, tmp_path))
    assert again.config.architecture is not None
    assert torch.allclose(again.features(seen), found, atol=1e-2)  # float16


def test_former_and_random_names(folders):
    name = f"transformers:{folders('clip')}"
    random, filled = (
        create(Vocabulary(("dog",), (1,)), torch.zeros(1, 4), backbone=name, weights=w)
        for w in (None, "imagenet")
    )
    assert random.stages == filled.stages == ("stem", *(f"block{i}" for i in range(1, 5)), "top", "features")
    one, two = (model.trunk.state_dict()["block1.block.mlp.fc1.weight"] for model in (random, filled))
    assert not torch.equal(one, two)


def test_what_did_best_on_shapes_is_the_default(folders):
    kinds = ("clip", "siglip", "open_clip_resnet")
    read = {kind: load_model(folders(kind)).config.inference for kind in kinds}
    assert (read["siglip"]["method"], read["siglip"]["stage"]) == ("attn_lrp", "stem")
    assert (read["clip"]["method"], read["clip"]["stage"]) == ("class_lrp", "stem")
    assert "method" not in read["open_clip_resnet"]  # contrastive MWP
    assert read["open_clip_resnet"]["stage"] == "layer3"
    assert {r["signed"] for r in read.values()} == {"contributions"}


@pytest.mark.parametrize("kind", ["clip", "metaclip_2", "open_clip_vit", "open_clip_timm_vit"])
def test_one_row_a_block_is_asked_of_a_pairs_transformer(kind, folders, drawn_image, monkeypatch):
    monkeypatch.setattr(class_token, "attn_lrp", lambda *args, **kwargs: pytest.fail("asked every token"))
    localizer = PhraseLocalizer.from_pretrained(folders(kind), device="cpu").with_settings(method="class_lrp")
    scene = localizer.look(drawn_image)
    maps = localizer.attend(scene, PHRASES)
    assert (maps >= 0).all()
    alone = torch.stack([localizer.attend(scene, [phrase])[0] for phrase in PHRASES])
    assert torch.allclose(alone, maps, atol=1e-6)


@pytest.mark.parametrize("signed", ["clamp", "contributions"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip_resnet"])
def test_the_map_of_a_phrase_is_its_units_pass_over_the_librarys_network(kind, signed, folders, drawn_image):
    localizer = PhraseLocalizer.from_pretrained(folders(kind), device="cpu")
    localizer = localizer.with_settings(method="contrastive_mwp", signed=signed)
    model, scene = localizer.model, localizer.look(drawn_image)
    unit = model.units(vectors(localizer.encode(PHRASES)))
    above, x = model.above(localizer.settings.stage), scene.activations[0]
    places = mwp(above, x, unit, signed=signed)[:, 0]  # (P, T, 1) or (P, h, w)
    assert (places.flatten(1).sum(1) <= 1 + 1e-5).all()
    shown = localizer.attend(scene, PHRASES, "mwp")
    skipped = places.shape[1] - 16 if places.shape[-1] == 1 else 0
    assert torch.allclose(shown.flatten(1), places.flatten(1)[:, skipped:], atol=1e-6)
    mean = localizer.with_settings(dual="mean")
    assert mean.model.common_units().shape == (1, unit.shape[1])
    expected = (places - mwp(above, x, mean.model.common_units(), signed=signed)[:, 0]).clamp(min=0)
    held = mean.attend(scene, PHRASES)
    assert torch.allclose(held.flatten(1), expected.flatten(1)[:, skipped:], atol=1e-6)
    negative = localizer.attend(scene, PHRASES)
    assert not torch.allclose(held, negative)
    alone = torch.stack([localizer.attend(scene, [phrase])[0] for phrase in PHRASES])
    assert torch.allclose(alone, negative, atol=1e-6)


def test_a_word_model_has_the_mean_unit_of_its_words_as_a_dual_too(tiny_localizer, drawn_image, tmp_path):
    scene, mean = tiny_localizer.look(drawn_image), tiny_localizer.with_settings(dual="mean")
    rows = torch.arange(len(tiny_localizer.vocabulary))
    assert torch.equal(
        mean.model.common_units(), mean.model.units(rows).mean(0, keepdim=True)
    )  # fewer than 256 words
    assert not torch.allclose(mean.attend(scene, ["hat"]), tiny_localizer.attend(scene, ["hat"]))
    with pytest.raises(ConfigError, match="an exported model holds units against their negatives"):
        export(mean.save_pretrained(tmp_path / "model"), tmp_path / "out", "torch")
