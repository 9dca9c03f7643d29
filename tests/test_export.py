"""The exported graphs answer as the torch path does, without torch."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from phrase_loc.errors import ConfigError, DataError
from phrase_loc.export import GRAPHS, ManyPhrases, export
from phrase_loc.images import to_tensor
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.store import save_model
from tests.models.test_model import extended, tiny_model

onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="the extra `onnx` is not installed"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # the exporters warn of their own code
PHRASES = ["dog", "red hat", "zebra", "qwertz", "man tree zebra"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small trained-like model that knows words outside its vocabulary."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(pool="log_sum_exp", image_size=64)
    with torch.no_grad():
        model.head.project.weight.mul_(10)
        torch.nn.init.normal_(model.head.word_bias.weight)
    model.config = replace(
        model.config,
        inference={"image_sizes": [64, 48], "grid": 24},
        calibration={"slope": 2.0, "offset": 0.5},
    )
    return save_model(extended(model), folder)


@pytest.fixture(scope="module")
def localizer(saved):
    return PhraseLocalizer.from_pretrained(saved, device="cpu")


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((200, 120), Image.Resampling.BICUBIC)


def torch_inputs(localizer, photo, words, weights):
    model = localizer.model
    rows = {word: row for row, word in enumerate((*model.vocabulary.words, *model.extra))}
    ids = torch.tensor([rows[word] for word in words])
    squares = [
        to_tensor(photo.resize((side, side), Image.Resampling.BICUBIC))[None]
        for side in localizer.settings.image_sizes
    ]
    return squares, ids, torch.tensor(weights)


@pytest.mark.parametrize("changes", [{}, {"image_sizes": [64]}], ids=str)
def test_graph_is_the_localizers_attention(localizer, photo, changes):
    asked = localizer.with_settings(method="contrastive_mwp", stage="features", **changes)
    phrases = ["dog", "a red hat", "zebra"]
    encoded = asked.encode(phrases)
    words = ["dog", "red", "hat", "zebra"]
    weights = [
        [1.0, 0, 0, 0],
        [0, *[{w.text: w.weight for w in encoded[1].words}[t] for t in words[1:3]], 0],
        [0, 0, 0, 1.0],
    ]
    with torch.no_grad():
        maps, scores = ManyPhrases(asked.model, asked.settings)(*torch_inputs(asked, photo, words, weights))
    scene = asked.look(photo)
    expected = asked.attend(scene, phrases)
    assert expected.max() > 0
    assert torch.allclose(maps, expected, atol=1e-5 * float(expected.max()))
    assert torch.allclose(scores, torch.tensor(asked.presence(scene, phrases)), atol=1e-5)


def test_torch_export_has_parity_for_any_number_of_words(saved, localizer, photo, tmp_path):
    folder = export(saved, tmp_path, "torch")
    graph = torch.export.load(folder / GRAPHS["torch"]).module()
    for words, weights in ((["dog"], [[1.0]]), (["dog", "red", "hat", "zebra"], [[0.0, 0.3, 0.7, 0.0]] * 5)):
        inputs = torch_inputs(localizer, photo, words, weights)
        with torch.no_grad():
            expected = ManyPhrases(localizer.model, localizer.settings)(*inputs)
            found = graph(*inputs)
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    return export(saved, tmp_path_factory.mktemp("exported"), "onnx")


def maps_of(model, picture, phrases) -> np.ndarray:
    return np.stack([answer.map for answer in model(picture, phrases)])


@onnx
def test_onnx_runtime_has_parity_with_torch(exported, localizer, photo):
    from phrase_loc.runtime import ExportedModel

    model = ExportedModel(exported, threads=1)
    answers = model(photo, PHRASES)
    maps, scores = model.maps(photo, PHRASES)
    asked = localizer.with_settings(method="contrastive_mwp", stage="features")
    scene = asked.look(photo)
    expected, wanted = asked.attend(scene, PHRASES), torch.tensor(asked.presence(scene, PHRASES))
    assert maps.shape == (5, 24, 24)
    assert expected[0].max() > 0
    assert np.abs(maps - expected.numpy()).max() <= 1e-4 * float(expected.max())
    assert np.allclose(scores[[0, 1, 2, 4]], wanted.numpy()[[0, 1, 2, 4]], atol=1e-3)
    assert scores[3] == -np.inf
    assert not maps[3].any()
    for a in answers:
        assert a.present is None or a.present == pytest.approx(1 / (1 + np.exp(-2 * a.score - 0.5)), abs=1e-6)


@onnx
def test_an_exported_model_says_what_a_query_says(exported, localizer, photo):
    from phrase_loc.runtime import ExportedModel

    model = ExportedModel(exported, threads=1)
    phrases = [*PHRASES, "a red qwertz", "a dog on the left", "no dog", ""]
    found, wanted = model(photo, phrases), localizer(photo, phrases)
    assert [a.state for a in found] == [p.state for p in wanted]
    assert {a.state for a in found} >= {None, "found"}
    assert [a.phrase for a in found] == phrases
    assert [a.note for a in found] == [e.note for e in localizer.encode(phrases)]
    for a, p in zip(found, wanted, strict=True):
        assert (a.present is None) == (p.present is None)
        assert a.present is None or abs(a.present - p.present) < 1e-3
    thresholds = model.facts["calibration"]
    model.facts["calibration"] = thresholds | {"absent_below": 0.9999, "found_at": 1.0}
    assert model(photo, ["dog"])[0].state == "not there"
    model.facts["calibration"] = None
    assert model(photo, ["dog"])[0].state is None


@onnx
def test_words_are_found_in_their_dictionary_form(exported):
    from phrase_loc.runtime import ExportedModel

    model = ExportedModel(exported, threads=1)
    assert [model.rows(word) for word in ("the Dogs", "dog", "qwertz")] == [(1,), (1,), ()]
    assert model.encoder.encode("kite").known


@onnx
def test_pictures_are_read_as_by_queries(exported, photo):
    from phrase_loc.runtime import ExportedModel

    model = ExportedModel(exported, threads=1)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = io.BytesIO(), io.BytesIO()
    photo.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    photo.save(plain, "PNG")
    expected = maps_of(model, photo, ["dog"])
    for given in (Image.open(turned), turned.getvalue(), plain, np.asarray(photo)):
        assert np.array_equal(maps_of(model, given, ["dog"]), expected)
    grey = np.asarray(photo.convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(maps_of(model, deep, ["dog"]), maps_of(model, grey, ["dog"]))
    clear = photo.convert("RGBA")
    clear.putalpha(0)
    assert np.array_equal(
        maps_of(model, clear, ["dog"]), maps_of(model, Image.new("RGB", photo.size, "white"), ["dog"])
    )
    with pytest.raises(DataError, match="expected a photograph"):
        model([photo], ["dog"])


@onnx
def test_phrases_are_read_as_by_queries(exported, photo):
    from phrase_loc.runtime import ExportedModel

    model = ExportedModel(exported, threads=1)
    answers = model(photo, (p for p in ["red hat", "a red hat", "The red hat,", "red"]))
    maps, scores = [a.map for a in answers], [a.score for a in answers]
    assert np.array_equal(maps[0], maps[1])
    assert np.array_equal(maps[0], maps[2])
    assert scores[0] == scores[1] == scores[2] != scores[3]
    with pytest.raises(ConfigError, match="got a string"):
        model(photo, "dog")


@onnx
def test_answers_without_importing_torch(exported):
    code = (
        "import sys; from PIL import Image; from phrase_loc.runtime import ExportedModel; "
        "answers = ExportedModel(sys.argv[1])(Image.new('RGB', (90, 60), 'red'), ['red hat', 'dogs']); "
        "print([a.map.shape for a in answers], 'torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[(24, 24), (24, 24)] False"


def test_errors_are_one_sentence(saved, tmp_path, monkeypatch):
    from phrase_loc import export as module
    from phrase_loc.runtime import ExportedModel

    with pytest.raises(ConfigError, match="choose from onnx, torch"):
        export(saved, tmp_path / "a", "onxx")
    with pytest.raises(DataError, match="no model at"):
        export(tmp_path / "nowhere" / "x" / "y", tmp_path / "a", "torch")
    with pytest.raises(ConfigError, match=r"holds a config\.json that is of no whole export"):
        export(saved, saved, "torch")
    mine = tmp_path / "mine" / "vocabulary.txt"
    mine.parent.mkdir()
    mine.write_text("dog\t7\n")
    with pytest.raises(ConfigError, match=r"holds a vocabulary\.txt that is of no whole export"):
        export(saved, mine.parent, "torch")
    assert mine.read_text() == "dog\t7\n"
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[onnx\]' in a clone"):
        export(saved, tmp_path / "a", "onnx")
    with pytest.raises(DataError, match="holds no exported model"):
        ExportedModel(tmp_path)


def test_words_of_classes_are_exported_with_the_others(saved, tmp_path):
    from phrase_loc.runtime import ExportedModel

    config = json.loads((saved / "config.json").read_text())
    shutil.copytree(saved, tmp_path / "learned")
    (tmp_path / "learned" / "config.json").write_text(json.dumps(config | {"class_words": ["zebra"]}))
    path = export(tmp_path / "learned", tmp_path / "out", "torch") / "export.json"
    facts = json.loads(path.read_text())
    assert facts["class_words"] == ["zebra"]
    path.write_text(json.dumps(facts | {"class_words": 5}))
    with pytest.raises(DataError, match=r"export\.json is none of `phrase-loc export`"):
        ExportedModel(path.parent)


def test_files_of_two_exports_do_not_mix(saved, tmp_path):
    """Exchanged lines of the vocabulary would make one word answer for another."""
    from phrase_loc.runtime import ExportedModel

    folder = export(saved, tmp_path / "out", "torch")
    for name in ("vocabulary.txt", "extra_words.txt"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(b"".join(content.splitlines(True)[::-1]))
        with pytest.raises(DataError, match=rf"{name} is not the file that export\.json was written with"):
            ExportedModel(folder)
        (folder / name).write_bytes(content)
