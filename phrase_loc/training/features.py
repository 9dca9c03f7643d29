"""What a phase reads: photographs, or the output of a trunk's frozen stages, kept on disk.

On what is kept a head trains in minutes, many times over. It is stored in half precision, for the image as it is and
mirrored, in chunks: a safetensors file for CHUNK samples, written whole or not at all, with the SHA-256 of them.
The folder's name is a digest of all that makes its content, and a chunk whose bits have changed is made anew, so what
is kept never stands for something else. No text has a part in it: runs with other words can share it.
"""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from phrase_loc import __version__
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.files import digest, refusing, remove_leftovers, told, writing
from phrase_loc.models.model import last_frozen, run_stages
from phrase_loc.pairs.dataset import Sample, Transform, WebImages, in_order, names_a_side
from phrase_loc.text.vocabulary import WordLabels
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.setup import Setup

log = logging.getLogger(__name__)

CHUNK = 256
BATCH = 32
#: Chunks that a process keeps open, those that were used last.
OPEN = 64
_ABANDONED = 86_400.0  # seconds after which a half-written file has no writer any more


def samples(config: TrainConfig, phase: PhaseConfig, setup: Setup, world: World) -> Dataset[Sample]:
    """The samples of a phase; features that are missing on disk are computed first (DataError: the disk is full)."""
    sizes = phase.sizes or (setup.model.config.image_size,)
    drawn = [Transform((s, s), phase.crop, phase.mirror, phase.jitter) for s in sizes]
    images = (setup.source, setup.labeller, drawn, config.seed, phase.new_words_only)
    if not phase.cache:
        return WebImages(*images)
    folders = [kept_features(config, phase, setup, world, size) for size in sizes]
    return CachedImages(folders, phase.mirror, *images)


class CachedImages(WebImages):
    """The samples with the frozen stages' output in place of the image, from a folder for each size."""

    def __init__(self, folders: Sequence[Path], mirror: float, *images: Any):
        super().__init__(*images)
        self.folders, self.mirror = folders, mirror

    def nothing(self, number: int, choice: int) -> Tensor:
        """Features that are all 0; a DataError where those of that number cannot be read."""
        return torch.zeros_like(read_chunk(self.folders[choice], max(number, 0) // CHUNK)[0][0, 0])

    def image(self, number: int, choice: int, texts: Sequence[str], random: np.random.Generator) -> Tensor:
        """The features of that number, mirrored or not as that epoch wants it; a DataError of a broken image."""
        chunk, place = divmod(number, CHUNK)
        outputs, usable = read_chunk(self.folders[choice], chunk)
        if not usable[place]:
            raise DataError("")
        return outputs[place, int(random.random() < self.mirror and not names_a_side(texts))]


def any_word(texts: Sequence[str]) -> WordLabels:
    """A label for every photograph, whatever is said of it."""
    return WordLabels((0,), (1.0,))


def kept_features(config: TrainConfig, phase: PhaseConfig, setup: Setup, world: World, size: int) -> Path:
    """The folder with the frozen stages' output for images of a size; what is missing there is computed.

    Phases with the same frozen weights share it, and the processes share the work.
    """
    model, workers = setup.model, config.data.workers
    until = last_frozen(model.trunk, phase.train_from)
    half = config.precision in ("bf16", "fp16")
    folder = world.from_main(lambda: _folder(config, phase, setup, size, until, half))
    images = WebImages(setup.source, any_word, [Transform((size, size))], config.seed)
    missing = missing_chunks(folder, len(images), world)
    # the last chunk alone may be no multiple of BATCH
    numbers = [number for _, chunk in missing for number in chunk]
    loader = iter(in_order(images, numbers, BATCH, workers))
    model.eval()
    for number, chunk in tqdm(missing, "features", disable=None if world.is_main else True, leave=False):
        found, usable = [], []
        for _ in range(0, len(chunk), BATCH):
            loaded = next(loader).to(world.device)
            views = [loaded.images, loaded.images.flip(-1)] if phase.mirror else [loaded.images]
            with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=half):
                outputs = [run_stages(model, view, None, until) for view in views]
            found.append(torch.stack(outputs, 1).half().cpu())
            usable.append(loaded.weights.cpu() > 0)
        write_chunk(folder, number, torch.cat(found), torch.cat(usable))
    world.barrier()
    return folder


def _folder(config: TrainConfig, phase: PhaseConfig, setup: Setup, size: int, until: str, half: bool) -> Path:
    """A folder of its own for each set of frozen weights, of photographs, and of versions of what reads them."""
    model, kind = setup.model, setup.model.config
    frozen = model.trunk[: model.stage_index(until) + 1].state_dict().values()
    facts = {
        "model": [kind.backbone, kind.mean, kind.std, until, _digest(*frozen)],
        "size": [size, phase.mirror > 0, half],
        "images": setup.identity.stamp,
        "versions": [__version__, *(version(name) for name in ("torch", "torchvision", "pillow"))],
    }
    name = digest(json.dumps(facts, sort_keys=True).encode())[:16]
    return Path(config.data.features or config.out) / f"features-{name}"


def missing_chunks(folder: Path, count: int, world: World) -> list[tuple[int, range]]:
    """The chunks of `count` samples that this process shall compute, every size-th of those missing.

    Each process looks at its share of the files, and all share out one list: what one found missing cannot depend on
    how far another has come since. Raises DataError when the folder cannot be made.
    """
    with refusing(f"the folder {folder}", "give another data.features"):
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_main:
            remove_leftovers(folder, _ABANDONED)
    chunks = range(-(-count // CHUNK))
    absent = [chunk for chunk in chunks[world.rank :: world.size] if not _is_whole(_path(folder, chunk))]
    missing = sorted(chunk for rank in world.gather(absent) for chunk in rank)
    return [(c, range(c * CHUNK, min(count, (c + 1) * CHUNK))) for c in missing[world.rank :: world.size]]


def write_chunk(folder: Path, number: int, outputs: Tensor, usable: Tensor) -> None:
    """Writes a chunk whole or not at all; raises DataError when the disk is full."""
    with writing(_path(folder, number), "free space there or give another data.features") as temporary:
        told = {"sha256": _digest(outputs, usable)}
        temporary.write_bytes(save({"outputs": outputs, "usable": usable}, told))


@lru_cache(OPEN)
def read_chunk(folder: Path, number: int) -> tuple[Tensor, Tensor]:
    """Outputs (n,2,C,h,w), or (n,1,C,h,w) where nothing is mirrored, and which of them are usable, (n,).

    They are mapped into memory, not read. Raises DataError when the file is gone.
    """
    path = _path(folder, number)
    advice = "start again, and it is computed anew"
    with told(path, "the chunk", advice), safe_open(path, "pt") as file:
        return file.get_tensor("outputs"), file.get_tensor("usable")


def _digest(*tensors: Tensor) -> str:
    return digest(b"".join(tensor.cpu().contiguous().numpy().tobytes() for tensor in tensors))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.chunk"


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    with suppress(OSError, SafetensorError, KeyError), safe_open(path, "pt") as file:
        if _digest(file.get_tensor("outputs"), file.get_tensor("usable")) == file.metadata()["sha256"]:
            return True
    log.warning("%s has changed since it was written; it is made anew", path)
    return False
