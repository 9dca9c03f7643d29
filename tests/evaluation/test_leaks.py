"""The leak audit finds what was planted, and nothing else."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image, ImageOps

from phrase_loc.cli import main
from phrase_loc.errors import DataError
from phrase_loc.evaluation.leaks import audit, duplicates, image_ids, prints


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of a few soft blobs: photographs share this much structure, and no two seeds a scene."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[1], : size[0]]
    total = np.zeros((size[1], size[0], 3))
    for _ in range(12):
        y, x, width = rng.uniform(0, size[1]), rng.uniform(0, size[0]), rng.uniform(8, 40)
        blob = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))
        total += blob[..., None] * rng.uniform(0, 120, 3)
    return Image.fromarray(np.clip(total, 0, 255).astype(np.uint8))


def shard(path, pictures: dict[str, Image.Image], broken: bool = False):
    with tarfile.open(path, "w") as archive:
        for name, picture in pictures.items():
            data = io.BytesIO()
            picture.save(data, format="JPEG", quality=60)
            info = tarfile.TarInfo(name)
            info.size = data.tell()
            archive.addfile(info, io.BytesIO(data.getvalue()))
        if broken:
            info = tarfile.TarInfo("broken.jpg")
            info.size = 4
            archive.addfile(info, io.BytesIO(b"JPEG"))
    return path


@pytest.fixture
def evaluation(tmp_path):
    folder = tmp_path / "eval" / "images"
    folder.mkdir(parents=True)
    for i in range(8):
        scene(i).save(folder / f"{1000000 + i}.jpg")
    return tmp_path / "eval"


def test_planted_copies_are_found(tmp_path, evaluation):
    pictures = {f"train_{i}.jpg": scene(100 + i) for i in range(20)}
    pictures["squashed.jpg"] = scene(1).resize((224, 224))
    pictures["mirrored.jpg"] = ImageOps.mirror(scene(2)).resize((80, 60))
    pictures["1000003.jpg"] = scene(200)  # the number of an evaluation image, other content
    found = audit([str(shard(tmp_path / "a.tar", pictures, broken=True))], evaluation)
    near = {(p["train"], p["evaluation"], p["mirrored"]) for p in found["near_duplicates"]}
    assert near == {
        ("squashed.jpg", "images/1000001.jpg", False),
        ("mirrored.jpg", "images/1000002.jpg", True),
    }
    assert found["shared_ids"] == [{"train": "1000003.jpg", "evaluation": "images/1000003.jpg"}]
    assert found["train"]["images"] == 23
    assert len(found["train"]["unreadable"]) == 1
    assert "3 evaluation images (37.5 %)" in found["summary"]


def test_nothing_planted_nothing_found(tmp_path, evaluation):
    folder = tmp_path / "train"
    folder.mkdir()
    for i in range(20):
        scene(100 + i).save(folder / f"{i}.jpg")
    found = audit([str(folder)], evaluation)
    assert found["near_duplicates"] == found["shared_ids"] == []
    assert "No leak was found" in found["summary"]


def test_flat_pictures_do_not_count():
    flat = prints([Image.new("RGB", (64, 64), "grey"), Image.new("RGB", (64, 64), "white")])
    assert duplicates(flat, flat, 6) == []


@pytest.mark.parametrize("distance", [0, 3, 7])
def test_duplicates_equal_a_plain_loop(distance):
    rng = np.random.default_rng(distance)
    thumbs = np.eye(256, dtype=np.float32)[rng.integers(0, 4, 100)]
    hashes = rng.integers(0, 2**64, 100, dtype=np.uint64)
    flips = np.array([sum(1 << bit for bit in range(i % 10)) for i in range(100)], dtype=np.uint64)
    known, asked = (hashes, thumbs), (hashes ^ flips, np.roll(thumbs, 1, axis=0) if distance == 3 else thumbs)
    expected = [
        (a, b, bits, 1.0)
        for a in range(100)
        for b in range(100)
        if (bits := (int(asked[0][a]) ^ int(known[0][b])).bit_count()) <= distance
        and (asked[1][a] == known[1][b]).all()
    ]
    assert duplicates(known, asked, distance) == expected != []


def test_ids_of_downloaders_are_no_coco_numbers():
    assert image_ids("val2014/COCO_val2014_000000391895.jpg") & image_ids("000000391895.png")
    assert not image_ids("COCO_val2014_000000391895.jpg") & image_ids("000391895.jpg")
    assert not image_ids("val_12.JPEG") & image_ids("train_12.JPEG")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "1.png",
            "0001.jpg",
            "image1.png",
            "IMG_0001.JPG",
            "DSC00012.jpg",
            "photo (3).jpg",
            "frame_000123.png",
        ),
        *("000000123.jpg", "00012.jpg", "IMG_20200131_123456.jpg", "20200131.jpg", "2020-01-31 12.00.00.jpg"),
        *("IMG-20200131-WA0001.jpg", "PXL_20210228_101112123.jpg", "cat.jpg", "val_12.JPEG", "deadbeef.jpg"),
    ],
)
def test_counters_dates_and_words_are_no_ids(name):
    assert image_ids(name) == set()


@pytest.mark.parametrize(
    "one, other",
    [
        ("1000268201.jpg", "a/1000268201_693b08cb0e_z.jpg"),
        ("COCO_train2014_000000000009.jpg", "000000000009.jpg"),
        ("n01443537_10007.JPEG", "train/n01443537_10007.jpg"),
        ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001.png"),
        ("0a1b2c3d4e5f6071.jpg", "0A1B2C3D4E5F6071.jpg"),
        ("123e4567-e89b-12d3-a456-426614174000.jpg", "x_123e4567-e89b-12d3-a456-426614174000.png"),
    ],
)
def test_ids_are_found_under_other_names(one, other):
    assert image_ids(one) & image_ids(other)


def test_counters_under_other_pictures_are_no_leak_and_copies_are(tmp_path):
    for folder, seeds in (("train", (1, 2, 3)), ("eval", (11, 12, 3))):
        (tmp_path / folder).mkdir()
        for number, seed in enumerate(seeds):
            scene(seed).save(tmp_path / folder / f"IMG_{number:04d}.jpg")
    found = audit([str(tmp_path / "train")], tmp_path / "eval")
    assert found["shared_ids"] == []
    assert [pair["evaluation"] for pair in found["near_duplicates"]] == ["IMG_0002.jpg"]


def test_no_part_of_a_folder_is_passed_over(tmp_path, evaluation):
    """Photographs behind a link, beside shards and in shards of subfolders are compared; a HEIC is counted."""
    for name in ("elsewhere", "train", "train/sub"):
        (tmp_path / name).mkdir()
    copies = sorted(evaluation.glob("images/*"))[:3]
    Image.open(copies[0]).save(tmp_path / "elsewhere/behind.png")
    (tmp_path / "train/link").symlink_to(tmp_path / "elsewhere")
    Image.open(copies[1]).save(tmp_path / "train/beside.png")
    shard(tmp_path / "train/a.tar", {"other.jpg": scene(50)})
    shard(tmp_path / "train/sub/b.tar", {"within.jpg": Image.open(copies[2]).convert("RGB")})
    (tmp_path / "train/c.HEIC").write_bytes(b"")
    found = audit([str(tmp_path / "train")], evaluation)
    assert {p["train"] for p in found["near_duplicates"]} == {"link/behind.png", "beside.png", "within.jpg"}
    assert found["train"]["unreadable"] == ["c.HEIC: is of a format that is not read"]
    shutil.copy(tmp_path / "train/a.tar", evaluation)
    with tarfile.open(tmp_path / "train/a.tar", "a") as tar:
        tar.add(tmp_path / "train/c.HEIC", "d.heic")
    found = audit([str(tmp_path / "train/a.tar")], evaluation)
    assert found["train"]["unreadable"] == ["d.heic: is of a format that is not read"]
    assert found["evaluation"]["unreadable"] == ["a.tar: is of a format that is not read"]


def test_a_broken_shard_is_one_sentence_and_what_it_gives_is_compared(tmp_path, evaluation):
    whole = shard(tmp_path / "a.tar", {f"{i}.jpg": scene(100 + i) for i in range(4)})
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:-12_000])
    found = audit([str(tmp_path / "cut.tar")], evaluation)
    assert 0 < found["train"]["images"] < 4
    assert any("cut.tar:byte" in sentence for sentence in found["train"]["unreadable"])
    (tmp_path / "junk.tar").write_bytes(b"junk")
    with pytest.raises(DataError) as caught:
        audit([str(tmp_path / "junk.tar")], evaluation)
    assert "\n" not in str(caught.value)


def test_bad_input(tmp_path, evaluation):
    with pytest.raises(DataError, match="no folder"):
        audit([str(evaluation)], tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no readable image"):
        audit([str(evaluation)], tmp_path / "empty")
    with pytest.raises(DataError, match="no readable image"):
        audit([str(tmp_path / "empty")], evaluation)
    with pytest.raises(DataError, match="no file matches"):
        audit([str(tmp_path / "*.tar")], evaluation)
    (tmp_path / "cut.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"cut\.tar cannot be read"):
        audit([str(tmp_path / "cut.tar")], evaluation)
    with pytest.raises(SystemExit):
        main(["leaks", "--train", str(evaluation), "--eval", str(evaluation), "--distance", "8"])


def test_the_command_prints_the_summary_and_says_by_its_code(tmp_path, evaluation, capsys):
    output = tmp_path / "leaks.json"
    leak = ["leaks", "--train", str(evaluation), "--eval", str(evaluation), "--output", str(output)]
    assert main(leak) == 1
    assert "8 share an id, 8 have a near duplicate" in capsys.readouterr().out
    assert len(json.loads(output.read_text())["shared_ids"]) == 8
    assert main(leak) == 1  # replaces what it wrote, and nothing else
    assert main([*leak[:-1], str(tmp_path / "leaks.TXT")]) == 1
    for name in ("photo.png", "labels.json"):
        (tmp_path / name).write_text("{}")
        assert main([*leak[:-1], str(tmp_path / name)]) == 2
        assert (tmp_path / name).read_text() == "{}"
