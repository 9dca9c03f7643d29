"""Controls ask other words, or shuffled units, with everything else as it was."""

import numpy as np
import pytest
import torch

from phrase_loc.attention import METHODS
from phrase_loc.errors import ConfigError
from phrase_loc.evaluation.methods import (
    build,
    check,
    random_word,
    randomised,
    same_peak,
    same_peak_rows,
    shuffled_words,
)
from phrase_loc.evaluation.protocols import CLASS_PROTOCOLS, PROTOCOLS, DataConfig, EvaluateConfig
from phrase_loc.evaluation.rows import Rows, Table, Thing
from phrase_loc.structures import GroundingSample, Phrase
from tests.evaluation.small_models import WORDS, classifier, text_localizer


@pytest.fixture
def sample(tmp_path, drawn_image):
    path = tmp_path / "drawn.png"
    drawn_image.save(path)
    phrases = tuple(Phrase(text) for text in ("a dog", "the dog", "a red hat", "a zzyzx"))
    return GroundingSample("drawn", path, (80, 120), phrases, tuple(torch.zeros(0, 4) for _ in phrases))


def test_shuffled_words_never_share_a_word(sample):
    localizer = text_localizer()
    chosen = shuffled_words(localizer, sample, ["a dog", "the dog", "a red hat"])
    assert chosen[0] == chosen[1] == "a red hat"
    assert chosen[2] in {"a dog", "the dog"}
    assert chosen == shuffled_words(localizer, sample, ["a dog", "the dog", "a red hat"])


def test_a_lonely_phrase_gets_a_word_from_elsewhere(sample):
    lonely = GroundingSample("x", sample.path, sample.size, (Phrase("a dog"),), (torch.zeros(0, 4),))
    (word,) = shuffled_words(text_localizer(), lonely, ["a dog"])
    assert word in set(WORDS) - {"dog"}


def test_random_words_are_known_and_not_said(sample):
    for word in random_word(text_localizer(), sample, ["a dog", "a red hat"]):
        assert word in set(WORDS) - {"dog", "hat"}


def built(names, localizer):
    config = EvaluateConfig(data=DataConfig(root="."), method=names)
    return build(config, [], [], localizer.device, localizer)[0]


def test_a_control_answers_with_the_other_words_map(sample):
    localizer = text_localizer()
    (control,) = built(["contrastive_mwp@shuffled_words"], localizer)
    scene = localizer.look(sample.path, size=sample.size)
    expected = localizer.rank_all(scene, localizer.attend(scene, ["a red hat"]), 3, torch.zeros(1, 8))[0][0]
    tests = [PROTOCOLS["pointing_any"], PROTOCOLS["recall_any"].but("first three", "", top_k=3)]
    answers = control.answer(sample, [("a dog",), ("a zzyzx",)], tests)
    assert answers.known.tolist() == [True, False]  # known by its own words, not by what is asked instead
    assert answers.peaks[0][1].isnan().all()
    torch.testing.assert_close(answers.boxes[0], expected)
    assert answers.boxes[1].isnan().all()
    assert control.name == "contrastive_mwp@shuffled_words"


@pytest.mark.parametrize("make", [text_localizer, lambda: classifier({"dog": (1,), "hat": (2, 3)})])
def test_a_random_top_keeps_the_network_and_the_values(make, drawn_image):
    localizer = make()
    control = randomised(localizer)
    scene, other = localizer.look(drawn_image), control.look(drawn_image)
    torch.testing.assert_close(scene.activations[0], other.activations[0])
    before, after = localizer.attend(scene, ["dog"]), control.attend(other, ["dog"])
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, randomised(localizer).attend(other, ["dog"]))  # the same each time


def test_shuffled_units_keep_their_values():
    localizer = text_localizer()
    ids = torch.tensor([0, 3])
    units, mixed = localizer.model.units(ids), randomised(localizer).model.units(ids)
    assert not torch.equal(units, mixed)
    torch.testing.assert_close(units.sort(1).values, mixed.sort(1).values)


def test_every_method_has_every_control():
    names = [f"{m}@{c}" for m in METHODS for c in ("shuffled_words", "random_word", "random_top")]
    check(names)
    assert [method.name for method in built(names, text_localizer())] == names
    with pytest.raises(ConfigError, match="unknown method 'cam@random'"):
        check(["cam@random"])


def test_same_peak_by_hand():
    sizes = [GroundingSample(str(i), "x", (100, 200), (), ()) for i in range(4)]
    own = _pointing_table(sizes, [[10, 10], [10, 10], [10, 10], [np.nan, np.nan]])
    other = _pointing_table(sizes, [[10, 20], [10, 21], [10, 10], [10, 10]])  # 5 % of 200 is 10 pixels
    assert same_peak(own, other).tolist() == [1, 0, 1, 0]
    protocol = CLASS_PROTOCOLS["voc_pointing"]
    tables = {(protocol.name, "cam"): own, (protocol.name, "cam@random_top"): other}
    (row,) = same_peak_rows(Rows(tables, 4, 50), (protocol,), ("cam", "cam@random_top", "mwp@random_top"))
    assert row["metric"] == "same_peak"
    assert row["count"] == 3  # a phrase without an answer cannot stay where it was
    assert row["value"] == pytest.approx(66.67)


def _pointing_table(samples, peaks):
    things = [Thing(i, sample, None, "x", ("x",), None) for i, sample in enumerate(samples)]
    peak = np.array(peaks, dtype=np.float64)
    return Table(things, {"known": (~np.isnan(peak[:, 0])).astype(float), "peak": peak})
