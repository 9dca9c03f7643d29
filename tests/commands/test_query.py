"""`phrase-loc query` as a person or a program uses it; in one process, since each start costs seconds."""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from phrase_loc import files
from phrase_loc.cli import COMMANDS, main
from phrase_loc.errors import DataError
from phrase_loc.gallery import overlay_places, write_gallery
from phrase_loc.localizer import PhraseLocalizer


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
    assert set(known) == {"phrase", "words", "note", "present", "state", "peak", "boxes"}
    assert known["state"] in {"found", "not sure", "not there"}
    assert [w["word"] for w in known["words"]] == ["red", "hat"]
    assert sum(w["weight"] for w in known["words"]) == pytest.approx(1, abs=1e-3)
    assert 1 <= len(known["boxes"]) <= 2
    assert set(known["boxes"][0]) == {"xyxy", "score"}
    assert unknown["present"] is unknown["state"] is None
    assert unknown["peak"] is None
    assert unknown["boxes"] == []
    assert "'zorglub': no word of it is known to the model (zorglub)" in err


def test_text_overlay_and_profile(photo, tiny_model, tmp_path, capsys):
    overlay = tmp_path / "overlay.png"
    assert query(photo, "dog", "hat", "--overlay", overlay, "--profile", model=tiny_model) == 0
    out, err = capsys.readouterr()
    assert "'dog': box [" in out
    assert all(
        stage in err for stage in ("decode", "resize", "propose", "trunk", "maps", "peaks", "ranking", "draw")
    )
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
        (["{photo}", "dog", "--overlay", "{photo}.xyz"], "must end like an image"),
        (["{photo}", "dog", "--overlay", "o.psd"], "must end like an image that can be written"),
        (["{photo}", "{photo}"], "expected phrases for"),
        (
            ["{photo}", "dog", "{photo}"],
            "photo.png is an image file behind a phrase; name all photographs before",
        ),
        (["{photo}", "no.jpg", "dog"], "image file no.jpg does not exist"),
        (["{photo}", "dog", "--gallery", "a.png"], "must end in .html, got 'a.png'"),
        (["{photo}", "dog", "--gallery", "mine.html"], "mine.html, which is no page of answers"),
        (["{photo}", "dog", "--gallery", "no/a.html"], "cannot write in no: No such file"),
        (["{photo}", "{photo}", "dog", "--overlay", "a.png"], "go to a folder, got a.png"),
        (["{photo}", "caf\udce9"], "expected phrases in UTF-8, got 'caf\\udce9'"),
        (["{photo}", "dog", "--overwrite"], "--overwrite is for the file of --output"),
        (["missing.jpg", "dog", "--output", "a.jsonl"], "image file missing.jpg does not exist"),
        (["{photo}", "dog", "--output", "a.txt"], "must end in .jsonl or .csv or .parquet"),
        (["{photo}", "dog", "--output", "folder.jsonl"], "is a folder or a device"),
        (["{photo}", "dog", "--output", "full.jsonl"], "is a folder or a device"),
        (["{photo}", "dog", "--output", "a" * 250 + ".jsonl"], "has more than 200 bytes"),
        (["{photo}", "dog", "--overlay", "a" * 300 + ".png"], "File name too long"),
        (["{photo}", "dog", "--output", "a" * 300 + "/a.jsonl"], "choose a folder"),
        (["a" * 300 + ".png", "dog"], "File name too long"),
        (["a" * 300, "dog", "--output", "a.jsonl"], "does not exist"),
        (["{photo}", "--phrases", "a" * 300], "File name too long"),
        (["{photo}", "a" * 300 + ".png", " "], "got an empty one"),
        (["{photo}", "dog", "--device", "gpu"], "device must be"),
        (["{photo}", "dog", "--overlay", "."], "must end like an image"),
        (["{photo}", "--phrases", "none.txt"], "file of phrases none.txt does not exist"),
        (["{photo}", "--phrases", "latin.txt"], "is not UTF-8 text"),
        (["{photo}", "dog", ""], "an argument is empty"),
        (["", "dog"], "an argument is empty"),
        (["{photo}", "dog", "--output", ""], "--output is empty"),
        (["{photo}", "dog", "--synonyms="], "--synonyms is empty"),
        (["https://example.org/a.jpg", "dog"], "is an address; download"),
        (["{photo}", "dog", "--json", "--output", "a.jsonl"], "--json is for one photograph"),
        (["{photo}", "dog", "--output", "no/a.jsonl"], "cannot write in no: No such file"),
        (["pairs.csv"], "row 2 of the table pairs.csv lacks its image or its phrase"),
        (["pairs.csv", "dog"], "brings its own phrases"),
        (["photo.csv"], "the table photo.csv does not exist"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    arguments, sentence, photo, tiny_model, capsys, monkeypatch
):
    monkeypatch.chdir(photo.parent)
    (photo.parent / "latin.txt").write_bytes("café".encode("latin-1"))
    (photo.parent / "pairs.csv").write_text("image,phrase\nphoto.png,dog\nphoto.png,\n", encoding="utf-8")
    (photo.parent / "folder.jsonl").mkdir()
    (photo.parent / "mine.html").write_text("<title>mine</title>")
    (photo.parent / "full.jsonl").symlink_to(os.devnull)
    words = [a.format(photo=photo) for a in arguments]
    assert main(["query", *words, "--model", str(tiny_model)]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".gif"])
def test_an_overlay_replaces_an_overlay_alone(ending, photo, tiny_model, tmp_path, capsys):
    own = tmp_path / f"o{ending}"
    (tmp_path / "many").mkdir()
    for place in (own, tmp_path / "many" / f"{photo.name}.jpg"):
        Image.effect_noise((300, 300), 90).convert("RGB").save(place)
        before = place.read_bytes()
        many = () if place == own else ("--output", tmp_path / "a.jsonl")
        asked = (photo, "dog", *many, "--overlay", place if place == own else place.parent)
        assert query(*asked, model=tiny_model) == 2
        assert f"{place}, which is no overlay" in capsys.readouterr().err
        assert place.read_bytes() == before
        place.unlink()
        assert query(*asked, model=tiny_model) == query(*asked, model=tiny_model) == 0


def test_an_overlay_that_cannot_be_written_does_not_take_the_answers_with_it(
    photo, tiny_model, tmp_path, capsys
):
    assert query(photo, "dog", "--overlay", tmp_path / "no" / "o.png", model=tiny_model) == 2
    out, err = capsys.readouterr()
    assert "'dog': box" in out
    assert err.startswith("error: ")
    assert "cannot" in err


def test_phrases_of_a_file_are_asked_of_one_photograph(photo, tiny_model, tmp_path, capsys):
    """As Notepad saves it: with a byte-order mark and carriage returns."""
    phrases = tmp_path / "phrases.txt"
    phrases.write_bytes("\ufeffdog\r\n\r\n red hat \r\n".encode())
    assert query(photo, "man", "--phrases", phrases, "--json", model=tiny_model) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [p["phrase"] for p in answer["predictions"]] == ["man", "dog", "red hat"]


@pytest.mark.parametrize("kind", ["cmyk.jpg", "grey16.png", "grey_alpha.png", "animated.gif", "turned.jpg"])
def test_any_kind_of_picture_is_answered_in_its_upright_frame(
    kind, drawn_image, tiny_model, tmp_path, capsys
):
    path = tmp_path / kind
    if kind == "cmyk.jpg":
        drawn_image.convert("CMYK").save(path)
    elif kind == "grey16.png":
        Image.fromarray(np.asarray(drawn_image.convert("L")).astype(np.uint16) * 257).save(path)
    elif kind == "grey_alpha.png":
        drawn_image.convert("LA").save(path)
    elif kind == "animated.gif":
        drawn_image.save(path, save_all=True, append_images=[drawn_image.rotate(9)])
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        drawn_image.rotate(90, expand=True).save(path, exif=exif)
    assert query(path, "dog", "der Hund 🐕", "女人", "--json", model=tiny_model) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["size"] == [120, 80]
    assert [len(p["boxes"]) > 0 for p in answer["predictions"]] == [True, False, False]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--top-k", "0"), ("--workers", "-1"), ("--workers", "257"), ("--batch-size", "x"), ("--top-k", "1e3")],
)
def test_numbers_that_cannot_be_are_refused(option, value, photo, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["query", str(photo), "dog", option, value])
    assert f"argument {option}: expected a whole number of at least" in capsys.readouterr().err


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

    part = tmp_path / ".answers.jsonl.part0"  # as a kill in the middle of the second line leaves it
    keys = json.loads((tmp_path / "answers.jsonl.run.json").read_text())["questions"]
    lines = zip(keys, whole.decode().splitlines(), strict=True)
    first, second, *_ = (files.sealed_line(f"{key} {line}") for key, line in lines)
    part.write_text(first + second[:80])
    output.unlink()
    assert query(folder, *told, model=tiny_model) == 0
    assert output.read_bytes() == whole
    assert not part.exists()
    assert "2 answered, 1 resumed, 1 refused" in capsys.readouterr().out


def test_a_table_to_parquet(photo, tiny_model, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = tmp_path / "pairs.csv"
    pd.DataFrame({"image": ["photo.png"] * 2, "phrase": ["dog", "null"]}).to_csv(table, index=False)
    output = tmp_path / "answers.parquet"
    assert query(table, "--output", output, "--workers", "0", model=tiny_model) == 0
    rows = pd.read_parquet(output)
    assert rows["phrase"].tolist() == ["dog", "null"]  # no missing value of pandas
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


def test_what_is_not_asked_as_written_is_said(photo, tiny_model, capsys):
    assert query(photo, "a red lorry", "no dog", "a mann", "a red hat", "--json", model=tiny_model) == 0
    out, err = capsys.readouterr()
    lorry, dog, man, hat = json.loads(out)["predictions"]
    assert lorry["present"] is None
    assert lorry["boxes"]
    assert lorry["note"] == "'lorry' is not known; only 'red' was looked for"
    assert f"note: 'a red lorry': {lorry['note']}" in err
    assert dog["note"].startswith("'no' is read as a negation")
    assert dog["present"] is not None
    assert (hat["note"], [w["read_as"] for w in hat["words"]]) == (None, [None, None])
    assert err.count("note:") == 3
    assert not man["boxes"]  # four letters are not corrected


def test_an_argument_of_several_phrases_is_separated(photo, tiny_model, capsys):
    arguments = ["a dog, a man", "a big, red hat", "a man. a hat."]
    assert query(photo, *arguments, "--json", model=tiny_model) == 0
    out, err = capsys.readouterr()
    phrases = [p["phrase"] for p in json.loads(out)["predictions"]]
    assert phrases == ["a dog", "a man", "a big, red hat", "a man", "a hat"]
    assert "note: 2 phrases are asked for: 'a dog', 'a man'" in err


def test_a_folder_behind_a_folder_is_said_to_be_a_phrase(photo, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dog").mkdir()
    assert query(photo.parent, "dog", "hat", "--output", "a.csv", model=tiny_model) == 0
    assert capsys.readouterr().err.count("'dog' is asked as a phrase, and is a folder too") == 1


@pytest.mark.parametrize("written", ["photo.png", "./x/../photo.png", "hard.png", "soft.png"])
def test_an_overlay_over_the_photograph_is_refused(written, photo, tiny_model, capsys, monkeypatch):
    monkeypatch.chdir(photo.parent)
    (photo.parent / "x").mkdir()
    os.link(photo, "hard.png")
    os.symlink(photo, "soft.png")
    before = photo.read_bytes()
    assert query("photo.png", "dog", "--overlay", written, model=tiny_model) == 2
    assert "is read by this command and would be overwritten" in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.parametrize("arguments", [["p.parquet"], ["photo.png", "--phrases", "p.jsonl"]])
def test_an_output_over_what_is_read_is_refused(arguments, photo, tiny_model, capsys, monkeypatch):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(photo.parent)
    pd.DataFrame({"image": ["photo.png"], "phrase": ["dog"]}).to_parquet("p.parquet")
    (photo.parent / "p.jsonl").write_text("dog\n", encoding="utf-8")
    place = photo.parent / arguments[-1]
    before = place.read_bytes()
    assert query(*arguments, "--output", place, "--overwrite", model=tiny_model) == 2
    assert "is read by this command and would be overwritten" in capsys.readouterr().err
    assert place.read_bytes() == before


def test_an_output_behind_a_link_is_written_where_it_leads(photo, tiny_model, tmp_path):
    (tmp_path / "disk").mkdir()
    for link, place in (("o.png", "disk/o.png"), ("o.jsonl", "disk/o.jsonl")):
        (tmp_path / link).symlink_to(place)
    assert query(photo, "dog", "--overlay", tmp_path / "o.png", model=tiny_model) == 0
    assert query(photo, "dog", "--output", tmp_path / "o.jsonl", model=tiny_model) == 0
    assert (tmp_path / "o.jsonl").is_symlink()
    assert {"o.png", "o.jsonl"} <= {p.name for p in (tmp_path / "disk").iterdir()}


def test_two_processes_do_not_write_one_overlay(photo, tiny_model, tmp_path, capsys):
    with files.lock(tmp_path / ".o.png.lock", "held"):
        assert query(photo, "dog", "--overlay", tmp_path / "o.png", model=tiny_model) == 2
    assert "another process is writing" in capsys.readouterr().err


def test_the_same_command_again_is_harmless_and_another_one_is_refused(photo, tiny_model, tmp_path, capsys):
    told = ["--output", tmp_path / "o.jsonl", "--workers", "0"]
    assert query(photo, "dog", *told, model=tiny_model) == 0
    before = (tmp_path / "o.jsonl").read_bytes()
    assert query(photo, "dog", *told, model=tiny_model) == 0
    assert "1 images: 1 resumed" in capsys.readouterr().out
    assert query(photo, "hat", *told, model=tiny_model) == 2
    assert query(photo, "dog", "--top-k", "1", *told, model=tiny_model) == 2
    assert "other settings (top-k 5)" in capsys.readouterr().err
    assert (tmp_path / "o.jsonl").read_bytes() == before
    assert query(photo, "hat", *told, "--overwrite", model=tiny_model) == 0
    assert json.loads((tmp_path / "o.jsonl").read_text())["predictions"][0]["phrase"] == "hat"


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_several_photographs_are_answered_into_a_file_and_a_gallery(
    photo, tiny_model, tmp_path, capsys, ending
):
    pytest.importorskip("pyarrow") if ending == ".parquet" else None
    images = [tmp_path / name for name in ("a.png", "<b>.png", "broken.jpg")]
    images[0].write_bytes(photo.read_bytes())
    images[1].write_bytes(photo.read_bytes())
    images[2].write_bytes(b"no image")
    output, gallery = tmp_path / f"o{ending}", tmp_path / "g.html"
    told = ["--output", output, "--gallery", gallery, "--workers", "0"]
    asked = [*images, "a <dog>", "zorglub", "dog", "dog"]
    for resumed in (False, True):
        assert query(*asked, *told, model=tiny_model) == 0
        said = "3 resumed" if resumed else "2 answered, 1 refused"
        assert f"3 images: {said}" in (out := capsys.readouterr().out)
        assert "gallery of 3 photographs written" in out
        page = gallery.read_text(encoding="utf-8")
        assert page.count("data:image/jpeg;base64,") == 2
        assert page.count("<rect x=") + page.count('<rect class="unsure"') == 2 * 3
        assert page.count('class="peak"') == 2 * 3
        assert page.count("a &lt;dog&gt;") >= 2
        assert "<b>" not in page
        assert "not an image" in page
        assert "http" not in page
        gallery.unlink()


def test_each_photograph_has_an_overlay_of_its_own(tmp_path):
    places = overlay_places(tmp_path / "out", ["p/1.png", "p/1.png.jpg"], [])
    assert [place.name for place in places.values()] == ["1.png.jpg", "1.png.jpg.jpg"]
    twice = overlay_places(tmp_path / "out", ["p/1.jpg", "./p/1.jpg"], [])
    assert [place.name for place in twice.values()] == ["1.jpg", "1.jpg"]


@pytest.mark.parametrize("line", ["5", "{}", "junk"])
def test_no_page_is_made_of_what_are_no_answers(line, tmp_path):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=r"the file of answers .* cannot be read"):
        write_gallery(tmp_path / "a.jsonl", tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_overlays_of_a_folder_have_its_names(photo, tiny_model, tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "out"
    (folder / "below").mkdir(parents=True)
    with Image.open(photo) as picture:
        picture.save(folder / "below" / "a.jpg")
        picture.save(folder / "b.png")
    (folder / "c.png").write_bytes(b"no picture")
    told = [folder, "dog", "zorglub", "--workers", "0", "--output", tmp_path / "a.jsonl"]
    for done in ("2 answered, 1 refused", "3 resumed"):  # answered before, drawn all the same
        assert query(*told, "--overlay", out, model=tiny_model) == 0
        said, err = capsys.readouterr()
        assert done in said
        assert f"overlays written to {out}" in said
        assert err.count("'zorglub': no word of it is known") == 1
        names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        assert names == ["b.png.jpg", os.path.join("below", "a.jpg")]
        with Image.open(out / "b.png.jpg") as sheet:
            assert sheet.size == (240, 106)
        (out / "b.png.jpg").unlink()
    before = sorted(folder.rglob("*"))
    for wrong in (folder, folder / "below", folder / "new", photo):
        assert query(*told, "--overlay", wrong, model=tiny_model) == 2
    given = (folder / "below" / "a.jpg", "dog", "--output", "o.jsonl")
    assert query(*given, "--overlay", folder / "below", model=tiny_model) == 2
    assert capsys.readouterr().err.count("name another folder") == 4
    assert sorted(folder.rglob("*")) == before


def test_a_gallery_has_a_greatest_size(photo, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("phrase_loc.gallery.MOST", 1)
    other = tmp_path / "other.png"
    other.write_bytes(photo.read_bytes())
    told = ["--output", tmp_path / "o.jsonl", "--gallery", tmp_path / "g.html", "--workers", "0"]
    assert query(photo, other, "dog", *told, model=tiny_model) == 0
    assert "g.html shows the first 1 of 2 photographs; all answers are in" in capsys.readouterr().err
    assert "The first 1 of 2 photographs" in (tmp_path / "g.html").read_text()


def test_csv_has_a_row_for_each_box(photo, tiny_model, tmp_path):
    outputs = [tmp_path / "o.csv", tmp_path / "o.jsonl"]
    for output in outputs:
        asked = [photo, "dog", "zorglub", "--output", output, "--top-k", "3", "--workers", "0"]
        assert query(*asked, model=tiny_model) == 0
    with outputs[0].open(encoding="utf-8", newline="") as file:
        *boxes, none = csv.DictReader(file)
    dog = json.loads(outputs[1].read_text())["predictions"][0]
    assert [[float(row[side]) for side in ("x1", "y1", "x2", "y2")] for row in boxes] == [
        box["xyxy"] for box in dog["boxes"]
    ]
    assert [row["rank"] for row in boxes] == [str(i + 1) for i in range(len(boxes))]
    assert {(float(row["peak_x"]), float(row["peak_y"])) for row in boxes} == {tuple(dog["peak"])}
    assert (none["phrase"], none["rank"], none["present"]) == ("zorglub", "", "")


def test_other_phrases_never_erase_the_default_file(photo, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert query(photo, photo, "dog", "--workers", "0", model=tiny_model) == 0
    before = (tmp_path / "predictions.jsonl").read_bytes()
    assert query(photo, photo, "hat", "--workers", "0", model=tiny_model) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "error: predictions.jsonl holds answers about other photographs or phrases; "
        "give another --output, or --overwrite to replace it"
    )
    assert (tmp_path / "predictions.jsonl").read_bytes() == before


def test_text_shows_as_many_boxes_as_are_asked_for(photo, tiny_model, capsys):
    assert query(photo, "dog", "--json", model=tiny_model) == 0
    count = len(json.loads(capsys.readouterr().out)["predictions"][0]["boxes"])
    for told, further in (([], 0), (["--top-k", 1], 0), (["--top-k", 2], 1), (["--top-k", 5], count - 1)):
        assert query(photo, "dog", *told, model=tiny_model) == 0
        assert capsys.readouterr().out.count("\n    box [") == further


def test_below_the_threshold_is_no_box(photo, tiny_model, tmp_path, capsys):
    output = tmp_path / "o.jsonl"
    for threshold, kept in ((0, True), (1, False)):
        told = ["--threshold", threshold]
        assert query(photo, "dog", "a red lorry", *told, "--json", model=tiny_model) == 0
        out, err = capsys.readouterr()
        dog, lorry = json.loads(out)["predictions"]
        assert bool(dog["boxes"]) == bool(dog["peak"]) == kept
        assert lorry["boxes"], "nobody knows whether it is there"
        assert ("is below the threshold 1" in err) != kept
        assert query(photo, "dog", *told, "--overlay", tmp_path / "o.png", model=tiny_model) == 0
        assert ("'dog': box" in (text := capsys.readouterr().out)) == kept
        assert ("'dog': no box  present" in text) != kept
        told += ["--output", output, "--workers", "0"]
        assert query(photo, "dog", *told, model=tiny_model) == (0 if kept else 2)
        error = capsys.readouterr().err
    assert "other settings (threshold 0.0)" in error


@pytest.mark.parametrize("value", ["nan", "-1", "1.5", "x"])
def test_a_threshold_is_a_probability(value, photo, capsys):
    with pytest.raises(SystemExit):
        main(["query", str(photo), "dog", f"--threshold={value}"])
    assert f"expected a probability from 0 to 1, got '{value}'" in capsys.readouterr().err


def test_a_threshold_needs_calibration(photo, tiny_model, tmp_path, capsys):
    localizer = PhraseLocalizer.from_pretrained(tiny_model, device="cpu")
    localizer.model.config = replace(localizer.model.config, calibration={})
    localizer.save_pretrained(tmp_path / "plain")
    assert query(photo, "dog", "--threshold", "0.5", model=tmp_path / "plain") == 2
    assert "this one is not calibrated" in capsys.readouterr().err
