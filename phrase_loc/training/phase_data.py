"""What a phase reads: photographs, or what its frozen stages say of them, kept on disk for every input size."""

from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from phrase_loc.datasets.web import Labeller, Sample, WebImages
from phrase_loc.datasets.web_transforms import Transform
from phrase_loc.distributed import World
from phrase_loc.models.model import last_frozen
from phrase_loc.training.chunks import cache_folder
from phrase_loc.training.config import PhaseConfig, TrainConfig
from phrase_loc.training.features import CachedImages, any_word, fill_cache
from phrase_loc.training.materials import Materials


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
