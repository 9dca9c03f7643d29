"""What a phase reads: photographs, or the output of a trunk's frozen stages, kept on disk.

On what is kept a head trains in minutes, many times over. It is stored in half precision, for the image as it is and
mirrored, in chunks: a file for CHUNK samples, written whole or not at all, a SHA-256 before arrays in NumPy's format.
The folder's name is a digest of all that makes its content, and a chunk whose bits have changed is made anew, so what
is kept never stands for something else. No text has a part in it: runs with other words can share it.
"""

import hashlib
import io
import json
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from phrase_loc import __version__
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.files import SEAL, read_bytes, refusing, remove_leftovers, sealed, unsealed, writing
from phrase_loc.models.model import last_frozen, run_stages
from phrase_loc.pairs.dataset import (
    FILLER,
    Item,
    Sample,
    Transform,
    WebImages,
    in_order,
    names_a_side,
    unlabelled,
)
from phrase_loc.skipped import Fault
from phrase_loc.text.vocabulary import WordLabels
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.setup import Setup

log = logging.getLogger(__name__)

CHUNK = 256
BATCH = 32
#: Chunks that a reader keeps open: each costs a file descriptor, of which a process often has 1,024.
OPEN = 64
_ABANDONED = 86_400.0  # seconds after which a half-written file has no writer any more


def samples(config: TrainConfig, phase: PhaseConfig, setup: Setup, world: World) -> Dataset[Sample]:
    """The samples of a phase; features that are missing on disk are computed first (DataError: the disk is full)."""
    sizes = phase.sizes or (setup.model.config.image_size,)
    drawn = [Transform((s, s), phase.crop, phase.mirror, phase.jitter) for s in sizes]
    images = WebImages(setup.source, setup.labeller, drawn, config.seed, phase.new_words_only)
    if not phase.cache:
        return images
    folders = [kept_features(config, phase, setup, world, size) for size in sizes]
    return CachedImages(folders, images, phase.mirror)


class CachedImages(Dataset[Sample]):
    """The samples of `images` with the frozen stages' output in place of the image, from a folder for each size."""

    def __init__(self, folders: Sequence[Path], images: WebImages, mirror: float):
        self.chunks, self.images, self.mirror = list(map(Chunks, folders)), images, mirror

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> Sample:
        """The features of that number, mirrored or not as that epoch wants it, for that input size."""
        epoch, number, choice = item
        chunk, place = divmod(max(number, 0), CHUNK)
        outputs, usable = self.chunks[choice](chunk)
        nothing = Sample(torch.zeros(outputs.shape[2:], dtype=torch.float16))
        if number == FILLER:
            return nothing
        name = self.images.source.name(number)
        try:
            texts = self.images.source.texts(number)
        except DataError as error:
            return nothing._replace(fault=Fault("image", name, str(error)))
        labels = self.images.labeller(texts)
        if not labels.ids and not (texts and self.images.negatives):
            return nothing._replace(fault=unlabelled(name, texts))
        if not usable[place]:
            return nothing._replace(fault=Fault("image", name))
        random = np.random.default_rng([self.images.seed, epoch, number])
        view = int(random.random() < self.mirror and not names_a_side(texts))
        return Sample(torch.from_numpy(np.array(outputs[place, view])), labels, 1.0)


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
        write_chunk(folder, number, [torch.cat(found).numpy(), torch.cat(usable).numpy()])
    world.barrier()
    return folder


def _folder(config: TrainConfig, phase: PhaseConfig, setup: Setup, size: int, until: str, half: bool) -> Path:
    """A folder of its own for each set of frozen weights, of photographs, and of versions of what reads them."""
    model, kind = setup.model, setup.model.config
    facts = {
        "model": [kind.backbone, kind.mean, kind.std, until],
        "size": [size, phase.mirror > 0, half],
        "images": setup.identity.stamp,
        "versions": [__version__, *(version(name) for name in ("torch", "torchvision", "pillow"))],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    frozen = model.trunk[: model.stage_index(until) + 1]
    for tensor in frozen.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return Path(config.data.features or config.out) / f"features-{digest.hexdigest()[:16]}"


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


def write_chunk(folder: Path, number: int, arrays: Sequence[np.ndarray]) -> None:
    """Writes a chunk whole or not at all; raises DataError when the disk is full."""
    with writing(_path(folder, number), "free space there or give another data.features") as temporary:
        content = io.BytesIO()
        for array in arrays:
            np.save(content, array)
        temporary.write_bytes(sealed(content.getvalue()))


class Chunks:
    """Reads chunks of a folder, read-only; the OPEN ones that were used last stay open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[int, list[np.ndarray]] = {}

    def __call__(self, number: int) -> list[np.ndarray]:
        """The arrays of a chunk; raises DataError when its file is gone."""
        arrays = self._open.pop(number, None) or _arrays(_path(self.folder, number))
        self._open[number] = arrays
        while len(self._open) > OPEN:
            del self._open[next(iter(self._open))]
        return arrays

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.chunk"


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    with suppress(DataError):
        if unsealed(read_bytes(path)) is not None:
            return True
    log.warning("%s has changed since it was written; it is made anew", path)
    return False


def _arrays(path: Path) -> list[np.ndarray]:
    """Memory maps of the arrays behind the digest."""
    arrays = []
    try:
        mapped = np.memmap(path, np.uint8, "r")
        with path.open("rb") as file:
            file.seek(SEAL)
            while file.tell() < len(mapped):
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
                begin = file.tell()
                end = file.seek(begin + dtype.itemsize * math.prod(shape))
                arrays.append(mapped[begin:end].view(dtype).reshape(shape))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); start again, and it is computed anew") from None
    return arrays
