"""The model: any word has a unit, any stage is a place to cut, features are never negative."""

import pytest
import torch

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.models.build import create, folded, with_extra
from phrase_loc.models.model import POOLS, TextToRegion, WordTable
from phrase_loc.text.vectors import Alignment, WordVectors
from phrase_loc.text.vocabulary import Vocabulary

WORDS = ("man", "dog", "hat", "red", "tree")
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([1, 4, 2])


def tiny_model(**options) -> TextToRegion:
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "weights": None, "hidden": 12, **options}
    return create(Vocabulary(WORDS, (9, 7, 5, 3, 2)), torch.randn(5, 6), **settings).eval()


@pytest.mark.parametrize("hidden", [12, None])
def test_cutting_at_any_stage_gives_the_same_features(hidden):
    model = tiny_model(hidden=hidden)
    with torch.no_grad():
        features = model.features(IMAGES)
        assert features.shape == (2, hidden or 32, 8, 8)
        assert (features >= 0).all()
        for stage in model.stages:
            assert torch.equal(model.above(stage)(model.below(stage)(IMAGES)), features)


@pytest.mark.parametrize("pool", POOLS)
def test_scores_are_units_times_features(pool):
    model = tiny_model(pool=pool)
    torch.nn.init.normal_(model.head.word_bias.weight)
    with torch.no_grad():
        features = model.features(IMAGES)
        units = model.units(IDS)
        scores = torch.einsum("kd,ndhw->nkhw", units, features)
        scores = scores * model.head.log_scale.exp() + model.word_bias(IDS)[:, None, None]
        assert torch.allclose(model.location_scores(features, IDS), scores, atol=1e-5)
        assert torch.allclose(model(IMAGES, IDS), model.head.pool(scores), atol=1e-5)


def test_words_are_rows_or_vectors():
    model = tiny_model()
    with torch.no_grad():
        features = model.features(IMAGES)
        assert torch.equal(model.scores(features, IDS), model.scores(features, model.word_vectors(IDS)))


def test_images_are_bytes_or_floats_of_the_same_range():
    model = tiny_model()
    with torch.no_grad():
        assert torch.equal(model.features(IMAGES), model.features(IMAGES.float()))
        grey = model.normalize(torch.full((1, 3, 1, 1), 127.5))
    assert torch.allclose(grey, torch.zeros(1, 3, 1, 1), atol=1e-6)


@pytest.mark.parametrize("tuned", [False, True])
def test_what_trains(tuned):
    model = tiny_model(fold=False, tuned=tuned).train()
    model(IMAGES, IDS).sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert ("words.vectors" in trained) == tuned
    assert {
        "head.project.weight",
        "head.word_bias.weight",
        "head.log_scale",
    } <= trained
    assert "trunk.stem.norm.weight" in trained


def test_words_may_learn_units_and_biases_of_their_own():
    """Without vectors the head is the usual linear classifier over its features."""
    torch.manual_seed(0)
    model = create(Vocabulary(WORDS, (9, 7, 5, 3, 2)), backbone="tiny", weights=None, hidden=12)
    assert model.word_vectors(IDS).shape == (3, 13)
    with torch.no_grad():
        model.words.vectors[:, -1] = torch.arange(5.0)
    assert torch.equal(model.word_bias(IDS), IDS.float())
    assert torch.equal(model.units(IDS), model.words.vectors[IDS, :12])
    model(IMAGES, IDS).sum().backward()
    assert (model.words.vectors.grad[IDS].abs().amax(1) > 0).all()


def test_folding_keeps_the_scores_and_leaves_nothing_to_train():
    model = tiny_model(fold=False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    asked = folded(model)
    assert asked.config.folded
    assert not any(p.requires_grad for p in asked.parameters())
    with torch.no_grad():
        assert torch.allclose(asked(IMAGES, IDS), model(IMAGES, IDS), atol=1e-5)


def test_words_outside_the_vocabulary_have_vectors():
    """A linear relation between the two spaces is found, and carries over to words that were not trained."""
    generator = torch.Generator().manual_seed(3)
    names = (*WORDS, *(f"known{i}" for i in range(60)), "zebra", "kite")
    glove = torch.randn(len(names), 4, generator=generator)
    into, offset = torch.randn(4, 6, generator=generator), torch.randn(6, generator=generator)
    known = names[:-2]
    model = create(
        Vocabulary(known, (1,) * len(known)), glove[:-2] @ into + offset, backbone="tiny", weights=None
    )
    larger = with_extra(model, WordVectors(names, glove))
    assert larger.extra == ("zebra", "kite")
    phrase = larger.encoder.encode("a zebra")
    assert phrase.ids.tolist() == [len(known)]
    found = larger.word_vectors(torch.tensor([len(known), 0, len(known) + 1]))
    truth = torch.stack([glove[-2], glove[0], glove[-1]]) @ into + offset
    assert torch.allclose(found, truth, atol=0.25)
    assert torch.nn.functional.cosine_similarity(found, truth).min() > 0.99
    assert larger.units(torch.tensor([len(known)])).shape == (1, 512)
    assert model.extra == ()


def test_only_the_most_frequent_further_words_are_taken():
    source = WordVectors(("man", "zebra", "kite", "kayak"), torch.randn(4, 3))
    assert with_extra(tiny_model(), source, limit=2).extra == ("zebra", "kite")
    with pytest.raises(DataError, match="shares no word"):
        with_extra(tiny_model(), WordVectors(("zebra",), torch.randn(1, 3)))


def test_tables_must_fit():
    with pytest.raises(ConfigError, match="a vector a word"):
        create(Vocabulary(("a", "b"), (1, 1)), torch.randn(3, 4), backbone="tiny", weights=None)
    with pytest.raises(ConfigError, match="unknown stage 'stage9'"):
        tiny_model().below("stage9")
    with pytest.raises(DataError, match="must be"):
        WordTable(torch.zeros(2, 4)).set_extra(
            torch.zeros(2, 3), Alignment(torch.zeros(3, 5), torch.zeros(5))
        )
