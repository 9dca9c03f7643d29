"""Training samples: broken data costs a sample and is named; augmentation keeps the words true."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from phrase_loc.errors import DataError
from phrase_loc.images import load_image, load_tensor, to_tensor
from phrase_loc.pairs.dataset import (
    FILLER,
    Transform,
    WebImages,
    _window,
    collate,
    names_a_colour,
    names_a_side,
)
from phrase_loc.pairs.sources import open_source
from phrase_loc.text.vocabulary import Vocabulary, WordLabeller
from tests.conftest import encoded
from tests.training.pairs import add, draw, write_set

WORDS = ("red", "green", "blue", "yellow", "square", "circle", "snow", "night", "sand")


def labeller() -> WordLabeller:
    return WordLabeller(Vocabulary(WORDS, (9,) * len(WORDS)))


def images(shards: str, **changes: float) -> WebImages:
    return WebImages(open_source(shards), labeller(), [Transform((24, 40), **changes)], seed=3)


def test_a_sample_is_an_image_with_its_words(tmp_path: Path):
    sample = images(write_set(tmp_path, (3,)))[0, 1, 0]
    said = {WORDS[i] for i in sample.labels.ids}
    assert said == {word for word in WORDS if word in " ".join(draw(1)[1]).lower()}
    assert sample.image.shape == (3, 24, 40)
    assert sample.weight == 1
    assert sample.fault is None


def test_broken_images_and_empty_texts_cost_a_sample_and_are_named(tmp_path: Path):
    import tarfile

    good = draw(0)[0]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, image, text in (
            ("good", good, b"a red square"),
            ("cut", good[: len(good) // 2], b"a red square"),
            ("noise", b"\xff\xd8\xffnot a jpeg\xff\xd9", b"a red square"),
            ("nothing", b"", b"a red square"),
            ("blank", good, b" \n"),
            ("latin", good, b"\xff\xfe\xe9"),
        ):
            add(tar, f"{key}.jpg", image)
            add(tar, f"{key}.txt", text)
    dataset = images(str(tmp_path / "0.tar"))
    samples = [dataset[0, i, 0] for i in range(len(dataset))]
    faults = [(s.fault.kind, s.fault.name.rpartition(":")[2]) for s in samples if s.fault]
    assert faults == [
        ("image", "cut"),
        ("image", "noise"),
        ("image", "nothing"),
        ("text", "blank"),
        ("text", "latin"),
    ]
    assert [s.weight for s in samples] == [1, 0, 0, 0, 0, 0]
    batch = collate(samples)
    assert batch.images.shape == (6, 3, 24, 40)
    assert set(batch.words.owner.tolist()) == {0}
    assert len(batch.faults) == 5


def test_a_broken_text_beside_a_good_one_is_named_and_the_sample_used(tmp_path: Path):
    import tarfile

    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in {"a.png": draw(0)[0], "a.txt": b"a red square", "a.json": b"{broken"}.items():
            add(tar, name, content)
    sample = images(str(tmp_path / "0.tar"))[0, 0, 0]
    assert sample.weight == 1
    assert sample.labels.ids
    assert sample.fault is not None
    assert (sample.fault.kind, sample.fault.detail) == (
        "text",
        "its .json is no JSON object, or has a key twice",
    )


def test_a_filler_is_empty_and_no_fault(tmp_path: Path):
    sample = images(write_set(tmp_path, (3,)))[0, FILLER, 0]
    assert sample.weight == 0
    assert sample.fault is None
    assert not sample.labels.ids


def test_a_sample_depends_on_seed_epoch_and_number_alone(tmp_path: Path):
    dataset = images(write_set(tmp_path, (5,)), crop=0.5, jitter=0.5)
    first = dataset[1, 2, 0].image
    dataset[1, 3, 0]
    assert torch.equal(dataset[1, 2, 0].image, first)
    assert not torch.equal(dataset[2, 2, 0].image, first)


def picture(mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(image).rectangle((5, 5, 20, 14), fill="red")
    return image.convert(mode)


@pytest.mark.parametrize(
    "mode, kind", [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("RGB", "WEBP")]
)
def test_decoding_agrees_with_pillow(mode: str, kind: str):
    data = encoded(picture(mode), kind)
    assert (load_tensor(data).int() - to_tensor(load_image(data)).int()).abs().max() <= 3


def test_decoding_turns_an_image_upright():
    rotated = picture()
    exif = rotated.getexif()
    exif[0x0112] = 6
    data = encoded(rotated, "JPEG", exif=exif.tobytes())
    assert load_tensor(data).shape == (3, 40, 30)


@pytest.mark.parametrize("data", [b"", b"GIF89a", encoded(picture(), "JPEG")[:300]])
def test_what_is_no_image_is_refused(data: bytes):
    with pytest.raises(DataError):
        load_tensor(data)


def test_words_of_sides_and_colours():
    assert names_a_side(["the man on the Left"])
    assert not names_a_side(["nothing leftover , brightly lit"])
    assert names_a_colour(["a GREY cat"])
    assert names_a_colour(["reddish hair"])
    assert not names_a_colour(["bored , tired"])


@pytest.mark.parametrize("size", [(24, 40), (60, 30), (30, 40)])
def test_resizing_is_torchvisions(size: tuple[int, int]):
    from torchvision.transforms.v2 import functional as F

    image = to_tensor(picture())
    expected = F.resize(image, list(size), antialias=True)
    assert torch.equal(Transform(size)(image, [], np.random.default_rng(0)), expected)


def test_mirroring_spares_texts_with_sides():
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).reshape(3, 4, 6)
    transform = Transform((4, 6), mirror=1.0)
    assert torch.equal(transform(image, ["a dog"], np.random.default_rng(0)), image.flip(-1))
    assert torch.equal(transform(image, ["the dog to the right"], np.random.default_rng(0)), image)


def test_jitter_keeps_hues_where_a_colour_is_named():
    red = torch.zeros(3, 8, 8, dtype=torch.uint8)
    red[0] = 160
    transform = Transform((8, 8), jitter=0.9)
    for seed in range(8):
        kept = transform(red, ["a red wall"], np.random.default_rng(seed)).float().mean((1, 2))
        assert kept.argmax() == 0
        assert (kept[1] - kept[2]).abs() < 2
    changed = [
        transform(red, ["a wall"], np.random.default_rng(seed)).float().mean((1, 2)) for seed in range(8)
    ]
    assert max((c[1] - c[2]).abs().item() for c in changed) > 5


@pytest.mark.parametrize("smallest", [0.3, 0.8])
def test_a_crop_keeps_its_share_and_stays_inside(smallest: float):
    random = np.random.default_rng(0)
    for _ in range(200):
        top, left, height, width = _window((60, 80), smallest, random.random(4))
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 80 - width
        assert height * width >= 0.8 * smallest * 60 * 80
