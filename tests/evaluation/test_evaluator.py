"""The pass over the images: many processes, resuming, bad images, what is opened and imported."""

import json
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image

from phrase_loc.__main__ import main
from phrase_loc.distributed import World, session
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.evaluation import evaluator
from phrase_loc.evaluation.methods import CACHE_VARIABLE, cache_folder
from phrase_loc.evaluation.protocols import DataConfig, EvaluateConfig
from phrase_loc.evaluation.report import reserved, write
from phrase_loc.evaluation.run import evaluate, report
from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.structures import GroundingSample
from tests.datasets.flickr_tree import annotation, thing, tree
from tests.evaluation.fakes import FakeLocalizer
from tests.evaluation.small_models import text_localizer

WORDS = ("man", "dog", "hat", "zzz", "tree")


def images(count):
    """Images with one to four phrases of five words."""
    found = {}
    for i in range(count):
        names = [WORDS[(i + j) % 5] for j in range(i % 4 + 1)]
        caption = " ".join(f"[/EN#{j + 1}/people a {name}]" for j, name in enumerate(names))
        boxes = [(1 + 9 * j, 1 + 7 * j, 40 + 10 * j + i, 60 + j) for j in range(len(names))]
        found[f"im{i}"] = (
            [caption],
            annotation(100, 80, *(thing(str(j + 1), box) for j, box in enumerate(boxes))),
        )
    return found


def config_of(root, **settings):
    return EvaluateConfig(
        data=DataConfig(root=root, split="val"), output=root / "out/report.json", bootstrap=50, **settings
    )


def run(root, world=None, localizer=None, **settings):
    config = config_of(root, **settings)
    return write(evaluate(config, world or World(), localizer or FakeLocalizer()))[0]


def _worker(rank, size, root, port):
    import os

    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with session("cpu") as world:
        evaluation = evaluate(config_of(root), world, FakeLocalizer())
        if world.is_main:
            write(evaluation)
        world.barrier()


def test_distributed_evaluation_gives_the_identical_report(tmp_path):
    """Seven images on two processes: one of them has one more; the report is the same byte for byte."""
    tree(tmp_path, images(7))
    run(tmp_path)
    output = tmp_path / "out/report.json"
    alone = [output.with_suffix(s).read_bytes() for s in (".json", ".csv", ".md")]
    for suffix in (".json", ".csv", ".md"):
        output.with_suffix(suffix).unlink()
    mp.spawn(_worker, args=(2, tmp_path, 29500 + hash(str(tmp_path)) % 2000), nprocs=2)
    assert [output.with_suffix(s).read_bytes() for s in (".json", ".csv", ".md")] == alone
    assert not output.with_name("report.progress").exists()


def test_distributed_evaluation_shares_images_without_padding(tmp_path):
    """Each of three processes, run alone, does its own third and no image twice."""
    tree(tmp_path, images(8))
    seen = []
    for rank in range(3):
        localizer = FakeLocalizer()
        world = _Lonely(rank, 3)
        with pytest.raises(KeyError):  # the others' images never come
            evaluate(config_of(tmp_path, resume=True), world, localizer)
        seen.append([path.rsplit("/", 1)[-1] for path in localizer.looks])
        for part in (tmp_path / "out/report.progress").glob("*"):
            part.unlink()
    assert [len(part) for part in seen] == [3, 3, 2]
    assert len({name for part in seen for name in part}) == 8


class _Lonely(World):
    def gather(self, value):
        return [value]

    def barrier(self):
        return None


class Interrupted(Exception):
    """Stands for a killed process."""


def test_an_interrupted_run_goes_on_and_gives_the_identical_report(tmp_path, monkeypatch):
    tree(tmp_path, images(7))
    whole = run(tmp_path)
    examined, real = [], evaluator.examine

    def failing(sample, plan):
        examined.append(sample.image_id)
        if len(examined) == 4:
            raise Interrupted
        return real(sample, plan)

    monkeypatch.setattr(evaluator, "examine", failing)
    with pytest.raises(Interrupted):
        run(tmp_path)
    (part,) = (tmp_path / "out/report.progress").glob("*.jsonl")
    part.write_bytes(part.read_bytes()[:-40])  # the last line was torn
    assert run(tmp_path) == whole
    assert examined == ["im0", "im1", "im2", "im3", "im2", "im3", "im4", "im5", "im6"]
    assert not part.exists()


def test_a_changed_bit_of_a_kept_result_is_computed_again(tmp_path, monkeypatch, capsys):
    tree(tmp_path, images(3))
    whole, real, examined = run(tmp_path), evaluator.examine, []
    monkeypatch.setattr(evaluator, "examine", lambda s, p: 1 / 0 if s.image_id == "im2" else real(s, p))
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    (part,) = (tmp_path / "out/report.progress").glob("*.jsonl")
    content = part.read_bytes()
    place = content.index(b'"accuracy": [') + len(b'"accuracy": [')
    part.write_bytes(
        content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    )  # a hit becomes a miss
    monkeypatch.setattr(evaluator, "examine", lambda s, p: examined.append(s.image_id) or real(s, p))
    assert run(tmp_path) == whole
    assert examined == ["im0", "im2"]
    assert "1 damaged lines are computed again" in capsys.readouterr().err


def test_two_evaluations_into_one_output(tmp_path, capsys):
    tree(tmp_path, images(2))
    config = config_of(tmp_path)
    with reserved(config), pytest.raises(DataError, match="another evaluation is writing"), reserved(config):
        pass
    with reserved(config):
        pass
    assert not list(config.output.parent.iterdir())


def test_other_settings_or_another_model_start_afresh(tmp_path, monkeypatch):
    tree(tmp_path, images(3))
    real = evaluator.examine
    monkeypatch.setattr(evaluator, "examine", lambda s, p: 1 / 0 if s.image_id == "im2" else real(s, p))
    with pytest.raises(ZeroDivisionError):
        run(tmp_path)
    examined = []
    monkeypatch.setattr(evaluator, "examine", lambda s, p: examined.append(s.image_id) or real(s, p))
    run(tmp_path, localizer=FakeLocalizer(model=torch.nn.Linear(1, 1)))
    run(tmp_path, protocols=["pointing_any"])
    assert examined == ["im0", "im1", "im2"] * 2
    run(tmp_path)
    assert examined[6:] == ["im2"]


def test_an_unreadable_photograph_leaves_every_count_and_is_named(tmp_path):
    tree(tmp_path, images(4), photographs=True)
    (tmp_path / "flickr30k-images/im1.jpg").unlink()
    (tmp_path / "flickr30k-images/im3.jpg").write_bytes(b"no image")
    content = run(tmp_path, localizer=FakeLocalizer(opens=True), method=["contrastive_mwp", "centre"])
    sentences = content["skipped"]["images"]["sentences"]
    assert content["skipped"]["images"]["count"] == 2
    assert "im1.jpg does not exist" in sentences[0]
    assert sentences[1].startswith("im3: ")
    assert "neither a hit nor a miss" in content["skipped"]["policy"]
    rows = {row["method"]: row for row in content["rows"] if row["protocol"] == "pointing_any"}
    assert rows["contrastive_mwp"]["images"] == rows["centre"]["images"] == 2
    assert rows["contrastive_mwp"]["count"] == 1 + 3


def test_a_photograph_whose_name_is_too_long_is_named(tmp_path):
    """Whoever only looks whether it is there must not end the run."""
    sample = GroundingSample("a", tmp_path / ("x" * 300), (4, 4), (), ())
    with pytest.raises(DataError, match="File name too long"):
        load_image(evaluator.framed(sample).picture)


def test_no_readable_photograph_is_an_error(tmp_path):
    tree(tmp_path, images(2))
    with pytest.raises(DataError, match="nothing that can be evaluated; the first of 2 problems: im0"):
        run(tmp_path, localizer=FakeLocalizer(opens=True))


def test_every_row_has_the_schema(tmp_path):
    tree(tmp_path, images(6))
    content = run(tmp_path, method="contrastive_mwp,cam")
    names = {"protocol", "method", "metric", "value", "count", "images", "ci95", "baselines", "by_type"}
    keys = [(row["protocol"], row["method"], row["metric"]) for row in content["rows"]]
    assert len(keys) == len(set(keys))
    for row in content["rows"]:
        assert names <= set(row)
        assert {"centre", "random", "whole_image"} <= set(row["baselines"])
        assert ("fixed_boxes" in row["baselines"]) == (row["protocol"] not in POINTING)
        if row["value"] is not None:
            assert row["ci95"][0] <= row["ci95"][1]
            assert 0 <= row["value"] <= 100
    assert content["config"]["data"]["split"] == "val"
    assert {d["method"] for d in content["differences"]} == {"cam"}
    assert json.loads((tmp_path / "out/report.json").read_text()) == json.loads(json.dumps(content))


POINTING = {
    "pointing_any",
    "pointing_any_small",
    "pointing_area_filtered",
    "pointing_area_filtered_border",
    "entity_pointing",
}


def test_every_phrase_is_in_the_csv(tmp_path):
    tree(tmp_path, images(6))
    content = run(tmp_path, protocols=["pointing_any", "recall_union"])
    lines = (tmp_path / "out/report.csv").read_text().splitlines()
    assert lines[0].startswith("image,protocol,method,phrase,type,")
    assert len(lines) - 1 == sum(
        row["count"] for row in content["rows"] if row["metric"] in {"accuracy", "R@1"}
    )
    unknown = next(line for line in lines if "a zzz" in line).split(",")
    assert unknown[7:] == ["0", "0", *[""] * 9]


def door(root, *more):
    settings = [f"data.root={root}", "data.split=val", f"output={root}/report.json", "bootstrap=10", *more]
    return main(["evaluate", *settings])


def test_the_command_on_baselines(tmp_path, capsys):
    tree(tmp_path, images(5))
    assert door(tmp_path, "method=centre") == 0
    assert "| pointing_any | centre | accuracy |" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["method"] == "centre"


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["data.root=/nowhere"], "no folder Annotations"),
        (["data.split=tset"], "splits in this tree: val"),
        (["data.name=flickr"], "did you mean 'flickr30k'?"),
        (["protocols=[pointing_anny]"], "did you mean 'pointing_any'?"),
        (["metod=centre"], "did you mean 'method'?"),
        (["method=[]"], "method is empty"),
        (["bootstrap=0"], "error: config key bootstrap: input should be greater than or equal to 1, got 0"),
        (["sample=-1"], "error: config key sample: input should be greater than or equal to 0, got -1"),
        (["output=a_file/report.json"], "choose another output"),
        (["output=rep.csv"], "ends in .json, got rep.csv"),
        (["output=README.json"], "would overwrite README.md, which is no report"),
        (["output=truth.json"], "would overwrite truth.json, which is no report"),
        (["output=folder.json"], "is a folder"),
        (["output=a\0.json"], "ends in .json"),
        (["method=mwp", "inference.gama=1"], "unknown inference setting 'gama' (did you mean 'gamma'?)"),
        (["method=mwp", "inference.nms='0.5'"], "inference setting 'nms'"),
        (["bootstrap=100001"], "bootstrap: input should be less than or equal to 100000"),
        (["bootstrap=true"], "bootstrap takes a number, got true"),
        (["limit=-1"], "error: config key limit: input should be"),
        (["method=mpw"], "unknown method 'mpw' (did you mean 'mwp'?)"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(tmp_path, capsys, monkeypatch, more, sentence):
    tree(tmp_path, images(2))
    for name in ("a_file", "README.md", "truth.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder.json").mkdir()
    monkeypatch.chdir(tmp_path)
    assert door(tmp_path, "method=centre", *more) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert not (tmp_path / "README.json").exists()
    assert (tmp_path / "truth.json").read_text() == (tmp_path / "README.md").read_text() == "{}"
    assert error.count("\n") == 1


def test_an_unknown_method_is_named_before_anything_runs(tmp_path):
    tree(tmp_path, images(2))
    with pytest.raises(
        ConfigError, match=r"unknown method 'contrastive_mvp'.*did you mean 'contrastive_mwp'"
    ):
        run(tmp_path, method="contrastive_mvp")


def test_baselines_import_no_model_and_open_no_image(tmp_path):
    tree(tmp_path, images(3))
    code = (
        "import sys; from phrase_loc.__main__ import main\n"
        f"code = main(['evaluate', 'data.root={tmp_path}', 'data.split=val', 'method=[centre,random]',"
        f" 'output={tmp_path}/report.json', 'bootstrap=5'])\n"
        "slow = {'torchvision', 'timm', 'transformers', 'phrase_loc.models', 'phrase_loc.localizer', 'nltk'}\n"
        "sys.exit(code or ' '.join(sorted(slow & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_shipped_model_finds_what_the_examples_show(root, tmp_path):
    """A tree of our own: the three shipped photographs with boxes drawn by hand; blind baselines beside it."""
    shown = {
        "astronaut": (
            (512, 512),
            {"a smiling woman": (25, 5, 370, 512), "an orange suit": (20, 190, 370, 512)},
        ),
        "chelsea": ((451, 300), {"a cat": (10, 2, 450, 299)}),
        "coffee": ((600, 400), {"a cup": (130, 60, 500, 350)}),
    }
    trees = {}
    for name, ((width, height), things) in shown.items():
        marked = [f"[/EN#{number}/other {phrase}] ." for number, phrase in enumerate(things, 1)]
        boxes = [thing(str(number), box) for number, box in enumerate(things.values(), 1)]
        trees[name] = (marked, annotation(width, height, *boxes))
    tree(tmp_path / "tree", trees)
    for name in shown:
        Image.open(root / f"phrase_loc/examples/{name}.png").convert("RGB").save(
            tmp_path / "tree/flickr30k-images" / f"{name}.jpg", quality=95
        )
    config = EvaluateConfig(
        data=DataConfig(root=tmp_path / "tree", split="val"),
        method=["contrastive_mwp", "centre", "whole_image"],
        protocols=["pointing_any", "recall_union"],
        output=tmp_path / "report.json",
        bootstrap=10,
    )
    localizer = PhraseLocalizer.from_pretrained("default", device="cpu")
    rows = {(r["method"], r["metric"]): r for r in report(evaluate(config, World(), localizer))["rows"]}
    assert rows["contrastive_mwp", "accuracy"]["count"] == 4
    assert rows["contrastive_mwp", "accuracy"]["value"] == 100.0
    assert rows["contrastive_mwp", "R@1"]["value"] >= 75.0  # her head and not all of her
    assert rows["whole_image", "R@1"]["value"] == 50.0


def test_figures_of_the_real_val_images(shared_dir, tmp_path):
    """protocols.md: counts, centre, whole image, and the ten boxes chosen blind."""
    config = EvaluateConfig(
        data=DataConfig(root=shared_dir / "data/flickr30k_entities_val", split="val"),
        method=["centre", "whole_image", "fixed_boxes"],
        protocols=["pointing_any", "recall_union"],
        output=tmp_path / "report.json",
        bootstrap=100,
    )
    rows = {(r["method"], r["metric"]): r for r in report(evaluate(config, World()))["rows"]}
    assert {(row["count"], row["images"]) for row in rows.values()} == {(3239, 247)}
    assert rows["centre", "accuracy"]["value"] == 54.77
    assert rows["whole_image", "R@1"]["value"] == 23.96
    assert [rows["fixed_boxes", f"R@{k}"]["value"] for k in (1, 5, 10)] == [30.04, 49.83, 59.4]
    low, high = rows["centre", "accuracy"]["ci95"]
    assert low < 54.77 < high


def test_values_by_word_count_every_phrase_that_names_it(tmp_path):
    tree(tmp_path, images(12))
    content = run(tmp_path, protocols=["pointing_any"], method="centre")
    words = {line["word"]: line for line in content["by_word"]}
    row = content["rows"][0]
    assert sum(line["count"] for line in words.values()) == row["count"]
    assert sum(line["count"] * line["value"] for line in words.values()) == pytest.approx(
        row["count"] * row["value"], abs=0.01 * row["count"]
    )
    assert words["man"]["seen"] is True
    assert words["hat"]["seen"] is False


def test_a_sample_is_drawn_by_the_names_alone(tmp_path):
    tree(tmp_path, images(12))
    content = run(tmp_path, protocols=["pointing_any"], method="centre", sample=5)
    drawn = content["by_image"]["images"]
    assert len(drawn) == 5
    assert drawn == sorted(drawn, key=lambda name: int(name[2:]))  # in the order of the dataset
    again = run(tmp_path, protocols=["pointing_any"], method="centre", sample=5)
    assert again["by_image"]["images"] == drawn
    larger = run(tmp_path, protocols=["pointing_any"], method="centre", sample=8)
    assert set(drawn) < set(larger["by_image"]["images"])
    assert "drawn by a hash" in (tmp_path / "out/report.md").read_text()
    assert len(run(tmp_path, method="centre", sample=99)["by_image"]["images"]) == 12


def test_proposals_are_kept_in_the_users_cache_folder_or_where_one_says(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    assert cache_folder("auto") == tmp_path / "own/proposals"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder("auto") == tmp_path / "xdg/phrase_loc/proposals"
    assert cache_folder(str(tmp_path / "here")) == tmp_path / "here"
    assert cache_folder("none") is None


def test_a_second_evaluation_finds_the_proposals_and_gives_the_identical_report(tmp_path, monkeypatch):
    """Cold, cached and without a cache; a test without ranked boxes proposes none."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    text_localizer().save_pretrained(tmp_path / "model")
    tree(tmp_path, images(3), photographs=True)
    kept = tmp_path / "cache/proposals"
    asked = {"model": str(tmp_path / "model"), "method": "mwp"}
    run_model(tmp_path, protocols=["pointing_any"], **asked)
    assert not kept.exists()
    plain = run_model(tmp_path, protocols=["recall_union"], proposal_cache="none", **asked)
    assert not kept.exists()
    cold = run_model(tmp_path, protocols=["recall_union"], **asked)
    assert len(list(kept.iterdir())) == 1  # the photographs of this tree are the same picture
    monkeypatch.setattr("phrase_loc.proposals.Regions.of_image", lambda *_: 1 / 0)
    cached = run_model(tmp_path, protocols=["recall_union"], **asked)
    assert plain["rows"] == cold["rows"] == cached["rows"]


def run_model(root, **settings):
    config = config_of(root, **settings)
    return write(evaluate(config, World()))[0]
