"""What a phase reads: photographs, or the output of a trunk's frozen stages, kept on disk.

On what is kept a head trains in minutes, many times over. It is stored in half precision for the image as it is and
mirrored, in the files of chunks.py: a killed run goes on with the next one. No text has a part in it, so runs with
other words can share what is kept.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from phrase_loc.distributed import World
from phrase_loc.models.model import TextToRegion, last_frozen, run_stages
from phrase_loc.pairs.dataset import (
    Labeller,
    Sample,
    Transform,
    WebImages,
    collate,
    draw_caption,
    names_a_side,
    unlabelled,
)
from phrase_loc.pairs.sampler import FILLER, Item
from phrase_loc.skipped import Fault
from phrase_loc.text.labels import WordLabels
from phrase_loc.training.chunks import CHUNK, Chunks, cache_folder, missing_chunks, write_chunk
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.setup import Materials

BATCH = 32


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
        images: unaugmented, labelled by `any_word`.
        world: the processes that share the work.
        mirrored: keep the output of the mirrored image as well.
        workers: decoding processes.
        half: run the trunk under bfloat16 autocast.

    Raises:
        DataError: the disk is full.
    """
    missing = missing_chunks(folder, len(images), world)
    items = [[(0, i, 0) for i in numbers] for _, numbers in missing]
    parts = [chunk[i : i + BATCH] for chunk in items for i in range(0, len(chunk), BATCH)]
    loader = iter(
        DataLoader(images, batch_sampler=parts, collate_fn=collate, num_workers=workers)  # type: ignore[arg-type]
    )
    was_training = model.training
    model.eval()
    bar = tqdm(missing, desc="features", disable=None if world.is_main else True, leave=False)
    for (number, _), chunk in zip(bar, items, strict=True):
        found: list[Tensor] = []
        usable: list[Tensor] = []
        for _ in range(0, len(chunk), BATCH):
            loaded = next(loader).to(world.device)
            views = [loaded.images, loaded.images.flip(-1)][: 1 + mirrored]
            with torch.no_grad(), torch.autocast(world.device.type, torch.bfloat16, enabled=half):
                outputs = [run_stages(model, view, None, until) for view in views]
            found.append(torch.stack(outputs, 1).half().cpu())
            usable.append(loaded.weights.cpu() > 0)
        write_chunk(folder, number, [torch.cat(found).numpy(), torch.cat(usable).numpy()])
    model.train(was_training)
    world.barrier()


class CachedImages(Dataset[Sample]):
    """The samples of a WebImages with the output of the frozen stages for the image.

    Args:
        folders: filled by `fill_cache`, one for each input size.
        images: whose texts and labels are used.
        mirror: probability of the mirrored image, where no text says left or right.
    """

    def __init__(self, folders: Sequence[Path], images: WebImages, mirror: float):
        self.chunks, self.images, self.mirror = list(map(Chunks, folders)), images, mirror

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> Sample:
        """The features of that number, mirrored or not as that epoch wants it, for that input size."""
        epoch, number, choice = item
        chunk, place = divmod(max(number, 0), CHUNK)
        outputs, usable = self.chunks[choice](chunk)
        if number == FILLER:
            return _nothing(outputs, None)
        name = self.images.source.name(number)
        try:
            texts = self.images.source.texts(number)
        except (OSError, UnicodeDecodeError) as error:
            return _nothing(outputs, Fault("image", name, str(error)))
        labels = self.images.labeller(texts)
        if not labels.ids:
            return _nothing(outputs, unlabelled(name, texts))
        if not usable[place]:
            return _nothing(outputs, Fault("image", name))
        random = np.random.default_rng([self.images.seed, epoch, number])
        view = int(random.random() < self.mirror and not names_a_side(texts))
        features = torch.from_numpy(np.array(outputs[place, view]))
        return Sample(features, labels, 1.0, draw_caption(labels, random))


def any_word(texts: Sequence[str]) -> WordLabels:
    """A label for every photograph, whatever is said of it."""
    return WordLabels((0,), (1.0,))


def _nothing(outputs: np.ndarray, fault: Fault | None) -> Sample:
    blank = torch.zeros(outputs.shape[2:], dtype=torch.float16)
    return Sample(blank, WordLabels((), ()), 0.0, (), fault)


class PhaseData:
    """Makes the samples of a phase, and what is kept on disk for them.

    Args:
        config: of the run.
        settings: of the phase.
        materials: of the run, the model as the phase begins or goes on.
        world: the processes, which share the work.
    """

    def __init__(self, config: TrainConfig, settings: PhaseConfig, materials: Materials, world: World):
        self.config, self.settings, self.materials, self.world = config, settings, materials, world
        self.sizes = settings.sizes or (materials.model.image_size,)
        self.kept = Path(config.data.features or config.out)

    def dataset(self) -> Dataset[Sample]:
        """The samples; features that are missing on disk are computed first.

        Raises:
            DataError: the disk is full.
        """
        settings = self.settings
        if not settings.cache:
            return self.images(
                [Transform((s, s), settings.crop, settings.mirror, settings.jitter) for s in self.sizes]
            )
        folders = [self._features(size) for size in self.sizes]
        images = self.images([Transform((self.sizes[0],) * 2)])
        return CachedImages(folders, images, settings.mirror)

    def images(self, transforms: Sequence[Transform], labeller: Labeller | None = None) -> WebImages:
        """The photographs and their labels, a transform for each input size; without a labeller the run's."""
        labeller = labeller or self.materials.labeller
        return WebImages(self.materials.source, labeller, transforms, self.config.seed)

    def _features(self, size: int) -> Path:
        """Where this phase keeps features: other phases with the same frozen weights and size share it."""
        model = self.materials.model
        until = last_frozen(model.trunk, self.settings.train_from)
        mirrored, half = self.settings.mirror > 0, self.config.precision in ("bf16", "fp16")
        kind = model.config
        facts = {
            "model": [kind.backbone, kind.mean, kind.std, until],
            "size": [size, mirrored, half],
            "images": self.materials.identity.stamp,
        }
        names = [name for name, _ in model.trunk.named_children()]
        frozen = model.trunk[: names.index(until) + 1]
        folder = self.world.from_main(lambda: cache_folder(self.kept, frozen, facts))
        images = self.images([Transform((size, size))], any_word)
        fill_cache(folder, model, until, images, self.world, mirrored, self.config.data.workers, half)
        return folder
