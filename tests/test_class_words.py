"""Class words: each step against a plain twin, where units end in a model, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from phrase_loc.cli import main
from phrase_loc.datasets.annotations import imagenet_classes
from phrase_loc.errors import ConfigError
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models.backbones import build, imagenet_classifier
from phrase_loc.models.build import create, folded
from phrase_loc.pairs.sources import open_source
from phrase_loc.skipped import Skipped
from phrase_loc.text.english import canonical
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.training import class_words as own
from phrase_loc.training.class_words import (
    PENALTY,
    PRIOR,
    learn_classes,
    look,
    names_in_two,
    pooled,
    ridge,
    scaled,
    usual,
    with_units,
)

WORDS, COUNTS = ("man", "dog", "red", "umbrella", "hat", "chest"), (90, 50, 30, 20, 3, 2)
EXTRA = ("zebra", "lionel", "keyboard", "pavel", "zuma")


@pytest.fixture
def localizer(monkeypatch):
    """A free tiny model of six trained words and five others, whose backbone has a classifier of random weights."""
    torch.manual_seed(0)
    weights = torch.randn(1000, 32), torch.randn(1000)
    monkeypatch.setattr(own, "IMAGENET", None)
    monkeypatch.setattr(own, "imagenet_classifier", lambda name: weights)
    vocabulary = Vocabulary(WORDS, COUNTS)
    model = folded(
        create(vocabulary, torch.randn(6, 17), backbone="tiny", weights=None, hidden=16, free=True)
    )
    model.words.set_extra(torch.randn(5, 17))
    model.words.presence_bias.normal_()
    model.config = replace(model.config, calibration={"slope": 1.0, "offset": 0.0}, card={"words": "Six."})
    model.extra = EXTRA
    return PhraseLocalizer(model, Inference(image_sizes=(32, 48), grid=16, proposals="windows"))


@pytest.fixture
def captioned(tmp_path):
    """Thirty pictures of coarse noise, one of them broken, each with a caption of a man."""
    folder = tmp_path / "captioned"
    folder.mkdir()
    for number in range(30):
        pixels = np.random.default_rng(number).integers(0, 255, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 40)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text("a man")
    (folder / "07.png").write_bytes(b"no picture")
    return folder


def looked_at(localizer, captioned):
    torch.manual_seed(1)
    teacher = own._teacher(localizer.model)
    source, skipped = open_source(str(captioned)), Skipped()
    return look(localizer, teacher, source, range(len(source)), skipped), teacher, skipped


def vectors(model) -> dict[str, torch.Tensor]:
    rows = model.words(torch.arange(len(model.words))).detach()
    return dict(zip((*model.vocabulary.words, *model.extra), rows, strict=True))


def test_words_are_the_names_of_classes():
    found = own.class_words()
    assert list(found) == sorted(found)  # in no order of a set
    first = [lemmas.split(", ") for _, lemmas in imagenet_classes()]
    for word, numbers in found.items():
        exact = [i for i, names in enumerate(first) if word in [canonical(n.lower()) for n in names]]
        last = [
            i
            for i, names in enumerate(first)
            if " " in names[0] and canonical(names[0].lower().split()[-1]) == word
        ]
        assert list(numbers) == (exact or last)
    assert found["zebra"] == (340,)
    assert found["camel"] == found["dromedary"] == (354,)  # 'Arabian camel, dromedary, ...'
    assert found["crane"] == (134, 517)  # a bird, and a machine
    assert len(found["dog"]) > 1
    assert "great white shark" not in found
    assert found.keys().isdisjoint({"pj'", "pj", "r.v.", "r.v", "t", "no", ""})


def test_the_regression_is_that_of_stacked_locations(localizer, captioned):
    looked, teacher, skipped = looked_at(localizer, captioned)
    assert skipped.counts == {"image": 1}
    assert [{word for word in own if " " not in word} for own in looked.said] == [{"a", "man"}] * 29
    assert looked.features.dtype == torch.float16
    h, y = [], []
    for path in sorted(captioned.glob("*.png")):
        if path.stem == "07":
            continue
        square = Image.open(path).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]
        h.append(localizer.model.features(image)[0].flatten(1).T)
        logits = torch.einsum("kd,dyx->kyx", teacher.units(torch.arange(1000)), teacher.features(image)[0])
        y.append((logits + teacher.words.vectors[:, -1, None, None]).flatten(1).T)
    rows = torch.cat(h).detach().double()
    penalty = PENALTY * rows.square().sum(0).mean()
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    below = torch.cat([penalty.sqrt() * torch.eye(16), torch.zeros(16, 1)], 1).double()
    targets = torch.cat([torch.cat(y).detach().double(), torch.zeros(16, 1000).double()])
    expected = torch.linalg.lstsq(torch.cat([rows, below]), targets).solution.T
    expected -= expected.mean(0)
    torch.testing.assert_close(looked.units, expected.float(), rtol=1e-3, atol=1e-3)


def test_without_noise_the_regression_finds_its_rows():
    torch.manual_seed(0)
    rows, units = torch.rand(4000, 9).double(), torch.randn(5, 9).double()
    rows[:, -1] = 1
    found = ridge(rows.T @ rows, rows.T @ (rows @ units.T))
    assert not torch.allclose(found, units, atol=0.01)  # the penalty shrinks them
    shift = (found[:, -1] - units[:, -1]) + (found - units)[:, :-1] @ rows[:, :-1].mean(0)
    assert shift.abs().max() < 1e-9  # and a bias is not: means are met


@pytest.mark.parametrize("pool", ["log_sum_exp", "average"])
def test_scores_have_the_mean_and_deviation_of_words_said_seldom(localizer, captioned, pool):
    looked, *_ = looked_at(localizer, captioned)
    model = localizer.model
    if pool == "average":
        model.head.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    mean, std = usual(model, looked.features)
    least = pooled(model, looked.features, torch.tensor([5, 4, 3]))  # the half that is said least
    assert mean == least.mean(0).median()
    assert std == least.std(0).median()
    assert len(set(least.mean(0).tolist())) == 3
    units, scores = scaled(model, looked.features, looked.units[:50], mean, std)
    again = pooled(model, looked.features, units)
    torch.testing.assert_close(scores, again, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again.mean(0), mean.expand(50), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(again.std(0), std.expand(50), rtol=0.02, atol=0)
    direction = torch.cosine_similarity(units[:, :-1], looked.units[:50, :-1])
    assert direction.min() > 0.9999


def test_units_end_where_their_words_are(localizer):
    model, torch_units = localizer.model, torch.randn(5, 17)
    asked = ("chest", "hat", "keyboard", "zuma", "toaster")
    units, before = dict(zip(asked, torch_units, strict=True)), vectors(localizer.model)
    said = {"chest": 0, "hat": 10, "keyboard": 0, "zuma": 2, "toaster": 0}
    made, counts = with_units(model, units, said, {"key board"})
    assert counts == {"trained": 2, "out_of_vocabulary": 2, "new": 1}
    assert made.extra == ("zebra", "lionel", "keyboard", "zuma", "toaster")  # 'pavel' made room
    assert made.config.class_words == ("key board", "keyboard", "toaster", "zuma")
    assert [w.text for w in made.encode(["a key board"])[0].words] == ["keyboard"]
    again, _ = with_units(made, {"zebra": torch_units[0]}, {"zebra": 0})
    assert again.config.class_words == ("keyboard", "toaster", "zebra", "zuma")
    after = vectors(made)
    torch.testing.assert_close(after["chest"], (2 * before["chest"] + PRIOR * units["chest"]) / (2 + PRIOR))
    torch.testing.assert_close(  # ten photographs said it, though the vocabulary counted three
        after["hat"], (10 * before["hat"] + PRIOR * units["hat"]) / (10 + PRIOR)
    )
    for word in ("keyboard", "zuma", "toaster"):  # within half a step of eight bits
        step = units[word].abs().max() / 127
        assert (after[word] - units[word]).abs().max() < 0.6 * step
    for word in ("man", "dog", "red", "umbrella"):
        assert torch.equal(after[word], before[word])
    assert torch.equal(made.words.rows[:2], model.words.rows[:2])  # and their codes
    torch.testing.assert_close(made.words.scale[:2], model.words.scale[:2], rtol=1e-3, atol=0)
    assert torch.equal(made.words.presence_bias[:6], model.words.presence_bias[:6])
    assert not made.words.presence_bias[6:].any()
    assert before.keys() == vectors(model).keys()
    assert all(torch.equal(before[word], row) for word, row in vectors(model).items())  # a copy was changed
    (word,) = made.encode(["a toaster"])[0].words
    assert word.known
    assert not model.encode(["a toaster"])[0].known


def test_a_table_too_small_for_the_new_words_grows(localizer):
    new = {f"new{i}": torch.randn(17) for i in range(6)}
    made, counts = with_units(localizer.model, new, dict.fromkeys(new, 0))
    assert counts["new"] == 6
    assert made.extra == (*EXTRA, *new)
    made, _ = with_units(localizer.model, dict(list(new.items())[:5]), dict.fromkeys(new, 0))
    assert made.extra == tuple(new)[:5]
    none, counts = with_units(localizer.model, {}, {})
    assert none.extra == EXTRA
    assert set(counts.values()) == {0}


def test_captions_check_the_sense(localizer, captioned, monkeypatch):
    """'umbrella' is said where its class scores most, 'chest' and 'red' where theirs score least, 'zebra' nowhere."""
    names = {"chest": (1,), "red": (4,), "toaster": (3, 5), "umbrella": (0,), "zebra": (2,)}
    monkeypatch.setattr(own, "class_words", lambda: names)
    looked, *_ = looked_at(localizer, captioned)
    units = torch.stack([looked.units[list(n)].mean(0) for n in names.values()])
    usually = usual(localizer.model, looked.features)
    units, scores = scaled(localizer.model, looked.features, units, *usually)
    paths = [path for path in sorted(captioned.glob("*.txt")) if path.stem != "07"]
    ranked = scores.argsort(0)
    for text, column, places in (
        ("chests", 0, slice(6)),
        ("red", 1, slice(3)),
        ("umbrella", 3, slice(-6, 29)),
    ):
        for place in ranked[places, column].tolist():
            paths[place].write_text(f"{paths[place].read_text()}, {text}")
    torch.manual_seed(1)
    made, facts = learn_classes(localizer, open_source(str(captioned)), 100)
    assert facts == {
        "photographs": 29,
        **{"trained": 1, "out_of_vocabulary": 1, "new": 1},
        **{"of_another_sense": 2, "such_as": ["chest", "red"]},
        "left_out": {"image": 1},
    }
    before, after = vectors(localizer.model), vectors(made.model)
    for word in ("chest", "red", "man", "dog", "hat"):
        assert torch.equal(before[word], after[word])
    torch.testing.assert_close(after["umbrella"], (20 * before["umbrella"] + PRIOR * units[3]) / (20 + PRIOR))
    torch.testing.assert_close(after["zebra"], units[4], rtol=0, atol=float(units[4].abs().max()) / 200)
    assert made.model.extra == ("zebra", "lionel", "keyboard", "pavel", "toaster")
    assert made.settings == localizer.settings
    assert made.model.config.calibration == {}
    assert localizer.model.config.calibration
    assert made.model.config.card["words"].startswith(
        "Six. 1 trained words, 1 out-of-vocabulary and 1 new ones"
    )


def test_a_pair_that_captions_use_in_another_sense_is_no_name_of_the_joined_word(
    localizer, captioned, monkeypatch
):
    """'tree frog' is said where its class scores most, 'walking stick' where that of the insect scores least."""
    names = {"tree-frog": (1,), "walkingstick": (4,)}
    monkeypatch.setattr(own, "class_words", lambda: names)
    looked, *_ = looked_at(localizer, captioned)
    units = torch.stack([looked.units[list(n)].mean(0) for n in names.values()])
    ranked = scaled(localizer.model, looked.features, units, *usual(localizer.model, looked.features))[
        1
    ].argsort(0)
    paths = [path for path in sorted(captioned.glob("*.txt")) if path.stem != "07"]
    for text, column, places in (("tree frogs", 0, slice(-3, 29)), ("a walking stick", 1, slice(3))):
        for place in ranked[places, column].tolist():
            paths[place].write_text(f"{paths[place].read_text()}\n{text}")
    torch.manual_seed(1)
    made, facts = learn_classes(localizer, open_source(str(captioned)), 100)
    assert facts["of_another_sense"] == 0
    assert made.model.config.class_words == ("tree frog", "tree-frog", "walkingstick")


def test_names_in_two_are_those_that_a_class_has():
    words = {"hotdog", "icecream", "tree-frog", "greenhouse", "ladybug"}
    assert names_in_two(words) == {"hot dog": "hotdog", "ice cream": "icecream", "tree frog": "tree-frog"}


def test_the_seed_draws_photographs(localizer, captioned):
    def rows(seed: int) -> torch.Tensor:
        torch.manual_seed(1)
        return learn_classes(localizer, open_source(str(captioned)), 12, seed)[0].model.words.vectors

    assert torch.equal(rows(0), rows(0))
    assert not torch.equal(rows(0), rows(1))


def test_the_teacher_is_the_pretrained_classifier():
    vocabulary = Vocabulary(("man", "dog"), (9, 5))
    model = create(vocabulary, torch.randn(2, 9), hidden=8, free=True, weights=None)
    teacher = own._teacher(model)
    image = torch.randint(255, (1, 3, 64, 64)).float()
    units, bias = imagenet_classifier("efficientnet_lite0")
    with torch.no_grad():
        expected = build("efficientnet_lite0", "imagenet")((image - 127) / 128).mean((2, 3)) @ units.T + bias
        found = teacher.location_scores(teacher.features(image), torch.arange(1000)).mean((2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_command_teaches_a_folder(localizer, captioned, tmp_path, capsys, drawn_image):
    start = localizer.save_pretrained(tmp_path / "start")
    kept = {path.name: path.read_bytes() for path in start.iterdir()}
    asked = ["learn-classes", str(start), "--shards", str(captioned)]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        torch.manual_seed(1)
        assert main([*asked, "--output", str(folder), "--set", "gamma=0.9"]) == 0
        told = capsys.readouterr()
        facts = json.loads(told.out)
        assert facts["photographs"] == 29
        assert facts["left_out"] == {"image": 1}
        assert facts["trained"] + facts["of_another_sense"] >= 3
        assert f"no `present` until `phrase-loc calibrate {folder}`" in told.err
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two
    assert kept == {path.name: path.read_bytes() for path in start.iterdir()}
    torch.manual_seed(1)
    assert main([*asked, "--photographs", "10", "--seed", "3"]) == 0  # in place
    assert json.loads(capsys.readouterr().out)["photographs"] <= 10
    assert kept != {path.name: path.read_bytes() for path in start.iterdir()}
    taught = PhraseLocalizer.from_pretrained(folders[0], device="cpu")
    assert taught.settings.gamma == 0.9
    assert not taught.model.config.calibration
    (answer,) = taught(drawn_image, ["a teapot"])
    assert answer.present is None
    assert len(answer.boxes)
    assert "ImageNet classes" in (folders[0] / "README.md").read_text()
    assert not localizer(drawn_image, ["a teapot"])[0].words[0].known


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["--photographs", "7"], "from 8 photographs or more that can be read, got "),
        (["--set", "gamma=wide"], "gamma"),
        (["--set", "gamma"], "--set takes KEY=VALUE, got 'gamma'"),
        (["--shards", "nowhere"], "nowhere does not exist"),
    ],
)
def test_the_command_refuses_in_a_sentence(localizer, captioned, tmp_path, capsys, changes, expected):
    start = localizer.save_pretrained(tmp_path / "start")
    asked = ["learn-classes", str(start), "--shards", str(captioned), "--output", str(tmp_path / "out")]
    assert main([*asked, *changes]) == 2
    assert expected in capsys.readouterr().err
    assert not [*tmp_path.glob("out/*")]


def test_the_command_overwrites_no_other_readme(localizer, captioned, tmp_path, capsys):
    start, out = localizer.save_pretrained(tmp_path / "start"), tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    assert main(["learn-classes", str(start), "--shards", str(captioned), "--output", str(out)]) == 2
    assert "and would be replaced" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "mine"
    assert main(["learn-classes", "default", "--shards", str(captioned)]) == 2
    assert "learn-classes changes a model folder in place" in capsys.readouterr().err


def test_photographs_that_are_all_broken_are_told(localizer, captioned, tmp_path, capsys):
    for path in captioned.glob("*.png"):
        path.write_bytes(b"no picture")
    start = localizer.save_pretrained(tmp_path / "start")
    assert main(["learn-classes", str(start), "--shards", str(captioned)]) == 2
    assert "got 0 (left out: 30 x broken image)" in capsys.readouterr().err


def test_a_model_without_classes_is_refused(localizer, tiny_model, captioned, tmp_path, capsys, monkeypatch):
    asked = ["--shards", str(captioned), "--output", str(tmp_path / "out")]
    assert main(["learn-classes", str(tiny_model), *asked]) == 2
    assert "classes are for models whose word vectors are the units" in capsys.readouterr().err
    monkeypatch.setattr(own, "imagenet_classifier", imagenet_classifier)
    start = localizer.save_pretrained(tmp_path / "start")
    assert main(["learn-classes", str(start), *asked]) == 2
    said = capsys.readouterr().err
    assert "'tiny'" in said
    assert "backbone with an ImageNet classifier" in said
    assert said.count("\n") == 1
    monkeypatch.setattr(localizer.model, "reads_phrases", True)
    with pytest.raises(ConfigError, match="for models that read words, this is an image-text pair"):
        learn_classes(localizer, open_source(str(captioned)), 10)
