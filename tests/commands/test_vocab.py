import pytest

from phrase_loc.__main__ import main
from phrase_loc.text.vocabulary import Vocabulary


def written(tmp_path):
    source = tmp_path / "captions.txt"
    source.write_text("1\tTwo dogs and a man\n2\tA man with a red hat\n" * 5, encoding="utf-8")
    return source


def test_vocab_writes_and_reports(tmp_path, capsys):
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("the dogs\na zorgle\nit\na red zorgle\n", encoding="utf-8")
    output = tmp_path / "vocab.txt"
    code = main(
        [
            "vocab",
            str(written(tmp_path)),
            "--output",
            str(output),
            "--pair-share",
            "0",
            "--coverage",
            str(phrases),
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert Vocabulary.load(output).words == ("man", "dog", "hat", "red", "two")
    assert "5 units (0 pairs) of 10 texts, rarest seen 5 times" in printed
    assert "with a known word 2 (50.0 %)" in printed
    assert "with a known head 1 (25.0 %)" in printed
    assert "without a content word 1 (25.0 %)" in printed
    assert "unknown: zorgle 2" in printed


def test_vocab_says_what_is_wrong_in_one_sentence(tmp_path, capsys):
    source, output = str(written(tmp_path)), str(tmp_path / "vocab.txt")
    cases = [
        [source, "--output", str(tmp_path / "no" / "vocab.txt")],
        [source, "--output", output, "--coverage", str(tmp_path / "none.txt")],
        [source, "--output", output, "--min-count", "99"],
        [str(tmp_path / "none.txt"), "--output", output],
        [source, "--output", str(tmp_path / "notes.txt")],
        [source, "--output", str(tmp_path / ("a" * 300))],
    ]
    (tmp_path / "notes.txt").write_text("somebody's own")
    for arguments in cases:
        assert main(["vocab", *arguments]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    for option, value in [
        ("--size", "0"),
        ("--min-count", "0"),
        ("--pair-share", "2"),
        ("--min-association", "nan"),
    ]:
        with pytest.raises(SystemExit):
            main(["vocab", source, "--output", output, option, value])
        assert f"argument {option}: expected" in capsys.readouterr().err
    assert not (tmp_path / "vocab.txt").exists()
    assert main(["vocab", source, "--output", output, "--min-count", "1", "--min-association", "-1"]) == 0
    assert (tmp_path / "notes.txt").read_text() == "somebody's own"
