"""The model: any word has a unit, any stage is a place to cut, features are never negative."""

import math

import pytest
import torch

from phrase_loc.errors import ConfigError
from phrase_loc.models.build import create, folded
from phrase_loc.models.model import POOLS, TextToRegion
from phrase_loc.text.vocabulary import Vocabulary

WORDS = ("man", "dog", "hat", "red", "tree")
IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([1, 4, 2])


def tiny_model(**options) -> TextToRegion:
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "weights": None, "hidden": 12, **options}
    return create(Vocabulary(WORDS, (9, 7, 5, 3, 2)), torch.randn(5, 6), **settings).eval()


def extended(model: TextToRegion) -> TextToRegion:
    """The model with two words outside its vocabulary."""
    model.words.set_extra(torch.randn(2, 6))
    model.extra = ("zebra", "kite")
    return model


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
    """A free head is the usual linear classifier over its features."""
    torch.manual_seed(0)
    settings = {"backbone": "tiny", "weights": None, "hidden": 12, "free": True, "tuned": True}
    model = create(Vocabulary(WORDS, (9, 7, 5, 3, 2)), torch.randn(5, 13), **settings)
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
    """Rows in the model's space, and those of older models in the space of another embedding."""
    model = tiny_model()
    with torch.no_grad():
        before = model.units(IDS)
    others, matrix, bias = torch.randn(2, 6), torch.randn(6, 6), torch.randn(6)
    model.words.set_extra(others)
    model.extra = ("zebra", "kite")
    assert model.encoder.encode("a zebra").ids == (5,)
    with torch.no_grad():
        found = model.word_vectors(torch.tensor([5, 0, 6]))
        assert torch.allclose(found[[0, 2]], others, atol=0.05)  # rows are stored in eight bits
        model.words.into.copy_(matrix)
        model.words.offset.copy_(bias)
        assert torch.allclose(model.words(torch.tensor([5, 6])), others @ matrix + bias, atol=0.1)
        assert torch.equal(found[1], model.words.vectors[0])
        assert torch.equal(model.units(IDS), before)


def test_tables_must_fit():
    with pytest.raises(ConfigError, match="a vector a word"):
        create(Vocabulary(("a", "b"), (1, 1)), torch.randn(3, 4), backbone="tiny", weights=None)
    with pytest.raises(ConfigError, match="unknown stage 'stage9'"):
        tiny_model().below("stage9")


SCORES = torch.tensor([[[[0.0, 1.0], [2.0, -3.0]]]])  # (N=1, K=1, 2, 2)


@pytest.mark.parametrize("name", POOLS)
def test_a_pool_of_equal_scores_is_that_score(name):
    assert POOLS[name](4.0)(torch.full((1, 1, 5, 5), 1.5)).item() == pytest.approx(1.5, abs=1e-5)


def test_values_by_hand():
    exponentials = [math.exp(2 * s) for s in (0, 1, 2, -3)]
    soft = math.log(sum(exponentials) / 4) / 2
    assert POOLS["average"](2.0)(SCORES).item() == pytest.approx(0.0)
    assert POOLS["log_sum_exp"](2.0)(SCORES).item() == pytest.approx(soft, rel=1e-5)
