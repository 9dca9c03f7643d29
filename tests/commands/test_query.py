"""`phrase-loc query` as a person or a program uses it; in one process, since each start costs seconds."""

import json

import pytest
from PIL import Image

from phrase_loc.__main__ import COMMANDS, main


@pytest.fixture
def photo(drawn_image, tmp_path):
    path = tmp_path / "photo.png"
    drawn_image.save(path)
    return path


def query(*arguments, model) -> int:
    return main(["query", *map(str, arguments), "--model", str(model), "--device", "cpu"])


def test_json_has_the_published_keys(photo, tiny_model, capsys):
    assert query(photo, "a red hat", "zorglub", "--json", "--top-k", "2", model=tiny_model) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer["image"] == str(photo)
    assert answer["size"] == [120, 80]
    known, unknown = answer["predictions"]
    assert set(known) == {"phrase", "words", "present", "peak", "boxes"}
    assert [w["word"] for w in known["words"]] == ["red", "hat"]
    assert sum(w["weight"] for w in known["words"]) == pytest.approx(1, abs=1e-3)
    assert 1 <= len(known["boxes"]) <= 2
    assert set(known["boxes"][0]) == {"xyxy", "score"}
    assert unknown["present"] is None
    assert unknown["peak"] is None
    assert unknown["boxes"] == []
    assert "no word of 'zorglub' is known" in err


def test_text_overlay_and_profile(photo, tiny_model, tmp_path, capsys):
    overlay = tmp_path / "overlay.png"
    assert query(photo, "dog", "hat", "--overlay", overlay, "--profile", model=tiny_model) == 0
    out, err = capsys.readouterr()
    assert "'dog': box [" in out
    assert "look" in err
    with Image.open(overlay) as picture:
        assert picture.width == 240
    assert sorted(p.name for p in tmp_path.iterdir()) == ["overlay.png", "photo.png"], (
        "no half-written file stays"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.jpg", "dog"], "image file missing.jpg does not exist"),
        (["{photo}"], "at least one phrase"),
        (["{photo}", "dog", "--method", "mvp"], "unknown attention method 'mvp'"),
        (["{photo}", "dog", "--overlay", "no/such/folder/o.png"], "cannot write no/such/folder/o.png"),
        (["{photo}", "dog", "--overlay", "{photo}.xyz"], "must end like an image"),
        (["{photo}", "dog", "--device", "gpu"], "device must be"),
        (["{photo}", "--phrases", "none.txt"], "file of phrases none.txt"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    arguments, sentence, photo, tiny_model, capsys, monkeypatch
):
    monkeypatch.chdir(photo.parent)
    words = [a.format(photo=photo) for a in arguments]
    assert main(["query", *words, "--model", str(tiny_model)]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


def test_a_missing_model_is_named(photo, capsys):
    assert main(["query", str(photo), "dog", "--model", "no/such/folder/at/all"]) == 2
    assert "no/such/folder/at/all" in capsys.readouterr().err


def test_a_folder_streams_and_resumes(photo, tiny_model, tmp_path, capsys):
    folder, output = tmp_path / "many", tmp_path / "answers.jsonl"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(photo.read_bytes())
    (folder / "broken.jpg").write_bytes(b"no image")
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("dog\n\nred hat\n", encoding="utf-8")
    told = ["--phrases", phrases, "--output", output, "--workers", "0"]
    assert query(folder, *told, model=tiny_model) == 0
    whole = output.read_bytes()
    answers = [json.loads(line) for line in whole.splitlines()]
    assert [a["image"].rsplit("/", 1)[-1] for a in answers] == ["0.png", "1.png", "2.png", "broken.jpg"]
    assert [p["phrase"] for p in answers[0]["predictions"]] == ["dog", "red hat"]
    assert "not an image" in answers[3]["error"]

    part = tmp_path / ".answers.jsonl.part0of1"  # as a kill in the middle of the second line leaves it
    lines = whole.splitlines(keepends=True)
    part.write_bytes(lines[0] + lines[1][:20])
    output.unlink()
    assert query(folder, *told, model=tiny_model) == 0
    assert output.read_bytes() == whole
    assert not part.exists()
    assert "2 answered, 1 resumed, 1 refused" in capsys.readouterr().out


def test_a_table_to_parquet(photo, tiny_model, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = tmp_path / "pairs.csv"
    pd.DataFrame({"image": ["photo.png"] * 2, "phrase": ["dog", "zorglub"]}).to_csv(table, index=False)
    output = tmp_path / "answers.parquet"
    assert query(table, "--output", output, "--workers", "0", model=tiny_model) == 0
    rows = pd.read_parquet(output)
    assert rows["phrase"].tolist() == ["dog", "zorglub"]
    assert len(rows["boxes"][0]) == len(rows["scores"][0]) > 0
    assert len(rows["boxes"][1]) == 0


def test_help_names_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["qurey"])
    assert "did you mean 'query'" in capsys.readouterr().err
