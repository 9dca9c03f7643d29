"""The output of a trunk's frozen stages kept on disk: a head then trains on it in minutes, many times over.

What the rest of the network reads (the last frozen stage, and the stage that the head fuses where that lies below)
is stored in half precision for the image as it is and mirrored, in files of CHUNK images that are written whole or
not at all: a killed run goes on with the next chunk.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from phrase_loc.datasets.web import Sample, WebImages, collate, draw_captions
from phrase_loc.datasets.web_faults import Fault
from phrase_loc.datasets.web_sampler import FILLER, Item
from phrase_loc.datasets.web_transforms import names_a_side
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.models.text_to_region import TextToRegion
from phrase_loc.text.labels import WordLabels
from phrase_loc.training.stages import run_stages

CHUNK, BATCH = 256, 32


def cache_folder(parent: Path, frozen: nn.Module, facts: dict, kind: str = "features") -> Path:
    """A folder of its own for each set of frozen weights, size and data."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for tensor in frozen.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return parent / f"{kind}-{digest.hexdigest()[:16]}"


def missing_chunks(folder: Path, last: str, count: int, world: World) -> list[tuple[int, range]]:
    """The chunks that this process shall compute, every size-th of those missing, with their samples' numbers.

    Args:
        folder: of the cache; made if it is not there.
        last: ending of the file that is written last of a chunk.
        count: of samples.
        world: the processes that share the work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = range(-(-count // CHUNK))
    missing = [c for c in chunks if not (folder / f"{c:06d}.{last}.npy").is_file()]
    return [(c, range(c * CHUNK, min(count, (c + 1) * CHUNK))) for c in missing[world.rank :: world.size]]


def fill_cache(
    folder: Path,
    model: TextToRegion,
    until: str,
    images: WebImages,
    world: World,
    mirrored: bool,
    workers: int,
    half: bool,
) -> None:
    """Computes the chunks that are missing, each process every size-th of them.

    Args:
        folder: of the cache.
        model: its trunk runs in eval mode.
        until: the last stage whose output is kept.
        images: unaugmented.
        world: the processes that share the work.
        mirrored: keep the output of the mirrored image as well.
        workers: decoding processes.
        half: run the trunk under bfloat16 autocast.

    Raises:
        DataError: the disk is full.
    """
    missing = missing_chunks(folder, "ok", len(images), world)
    items = [[(0, i, 0) for i in numbers] for _, numbers in missing]
    parts = [chunk[i : i + BATCH] for chunk in items for i in range(0, len(chunk), BATCH)]
    loader = iter(
        DataLoader(images, batch_sampler=parts, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]
    )
    was_training = model.training
    model.eval()
    bar = tqdm(missing, desc="features", disable=not world.is_main, leave=False)
    for (number, _), chunk in zip(bar, items, strict=True):
        found: list[tuple[Tensor, ...]] = []
        usable: list[Tensor] = []
        for _ in range(0, len(chunk), BATCH):
            loaded = next(loader).to(world.device)
            views = [loaded.images[0], loaded.images[0].flip(-1)][: 1 + mirrored]
            with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=half):
                outputs = [run_stages(model, view, None, until) for view in views]
            found.append(tuple(torch.stack(t, 1).half().cpu() for t in zip(*outputs, strict=True)))
            usable.append(loaded.weights.cpu() > 0)
        for i, stage in enumerate(zip(*found, strict=True)):
            write_array(folder / f"{number:06d}.{i}.npy", torch.cat(stage).numpy())
        write_array(folder / f"{number:06d}.ok.npy", torch.cat(usable).numpy())
    model.train(was_training)
    world.barrier()


class CachedImages(Dataset[Sample]):
    """The samples of a WebImages with the output of the frozen stages for the image.

    Args:
        folders: filled by `fill_cache`, one for each input size.
        images: whose texts and labels are used.
        mirror: probability of the mirrored image, where no text says left or right.
        maps: (number, mirrored) -> (T,g,g) uint8 for the T words of a sample, see own_maps.py.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        images: WebImages,
        mirror: float,
        maps: Callable[[int, bool], Tensor] | None = None,
    ):
        self.folders, self.images, self.mirror, self.maps = list(folders), images, mirror, maps
        self._open: dict[tuple[int, int], tuple[np.ndarray, list[np.ndarray]]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> Sample:
        """The features of that number, mirrored or not as that epoch wants it, for that input size."""
        epoch, number, choice = item
        usable, stages = self._chunk(choice, max(number, 0) // CHUNK)
        place = max(number, 0) % CHUNK
        if number == FILLER or not usable[place]:
            return self._nothing(stages, number)
        source = self.images.source
        texts = source.texts(number)
        labels = self.images.labeller(texts)
        random = np.random.default_rng([self.images.seed, epoch, number])
        view = int(random.random() < self.mirror and not names_a_side(texts))
        features = tuple(torch.from_numpy(np.array(stage[place, view])) for stage in stages)
        maps = self.maps(number, bool(view)) if self.maps else None
        caption, other = draw_captions(labels, random)
        return Sample(features, labels, 1.0, caption, paraphrase=other, maps=maps)

    def _nothing(self, stages: Sequence[np.ndarray], number: int) -> Sample:
        blank = tuple(torch.zeros(stage.shape[2:], dtype=torch.float16) for stage in stages)
        fault = None if number == FILLER else Fault("image", self.images.source.name(number), "")
        return Sample(blank, WordLabels((), ()), 0.0, (), fault)

    def _chunk(self, choice: int, number: int) -> tuple[np.ndarray, list[np.ndarray]]:
        if (choice, number) not in self._open:
            folder = self.folders[choice]
            usable = np.load(folder / f"{number:06d}.ok.npy")
            paths = sorted(folder.glob(f"{number:06d}.[0-9].npy"))
            self._open[choice, number] = (usable, [np.load(path, mmap_mode="r") for path in paths])
        return self._open[choice, number]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a file whole or not at all; raises DataError when the disk is full."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"the feature cache {path.parent} cannot be written ({error}); free space there"
        ) from None
