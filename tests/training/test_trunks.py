"""Training over networks of transformers, open_clip and timm: frozen with kept features, and tuned."""

import pytest

from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.models.store import load_model
from tests.models import tiny_towers
from tests.training.pairs import write_shard
from tests.training.runs import run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
FROZEN = "{name: head, steps: 3, batch: 8, cache: true, mirror: 0, sizes: [32]}"
TUNED = (
    "{name: top, steps: 2, batch: 8, train_from: block4, cache: true, mirror: 0, sizes: [32], lr: 0.05, "
    "trunk_lr: 1, layer_decay: 1, warmup: 0}"
)


@pytest.mark.parametrize(("library", "kind"), [("hf", "clip"), ("hf", "dinov3_vit"), ("open_clip", "vit")])
def test_a_word_head_over_a_transformer(library, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make = tiny_towers.pair if kind == "clip" else tiny_towers.open_clip_pair
    make = tiny_towers.image_network if kind == "dinov3_vit" else make
    backbone = f"{library}:{make(tmp_path / 'net', kind)}"
    shards = str(write_shard(tmp_path / "train.tar", range(24)))
    changes = [
        f"model.backbone={backbone}",
        "model.weights=imagenet",
        "model.start=none",
        "model.image_size=32",
    ]
    out = run(tmp_path / "out", shards, *changes, f"phases=[{FROZEN}, {TUNED}]")
    assert (
        len(list((tmp_path / "out").glob("features-*"))) == 2
    )  # of the whole trunk, and of what is below block4
    model, start = load_model(out), load_model_trunk(backbone)
    moved = {
        name.partition(".")[0]
        for name, value in model.trunk.state_dict().items()
        if (value.float() - start[name]).abs().max() > 2e-3
    }
    assert moved == {"block4", "top"}
    localizer = PhraseLocalizer.from_pretrained(out, device="cpu").with_settings(
        method="grad_cam", stage=["block2", "features"], image_sizes=[32, 48]
    )
    picture = tiny_towers.torch.randint(0, 256, (3, 40, 60), dtype=tiny_towers.torch.uint8)
    assert localizer(picture, ["a red square"])[0].attention.shape == (64, 64)
    assert localizer.ranker_plane(localizer.look(picture)).shape == (16, 4, 4)  # patches, no class token


def load_model_trunk(backbone: str) -> dict:
    from phrase_loc.models.backbones import IMAGENET, build

    return build(backbone, IMAGENET).state_dict()
