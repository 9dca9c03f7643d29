"""Self-training: maps of the model itself say where the words of an image are, and its scores learn to say the same.

A teacher, the model as the phase begins, looks at every training photograph as a query does: several input sizes,
excitation backprop, proposals. For each word said of the photograph it gives, on a GRID x GRID grid, either

    heat                the map, of maximum 1
    inside              sum over boxes of p(box) [cell in box],  p = softmax(score / temperature):
                        the probability that the cell lies in the word's box

The student, at one smaller input size, is drawn to it by `losses.at_locations`. So what the student learns is what
the teacher's larger inputs and the boxes add; no annotation is used. Maps are kept on disk in the files of
chunks.py, a byte a cell.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from phrase_loc.datasets.web import WebImages
from phrase_loc.distributed import World
from phrase_loc.errors import DataError
from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer, prepare
from phrase_loc.ranking import score_boxes
from phrase_loc.structures import Scene
from phrase_loc.training.chunks import CHUNK, Chunks, cache_folder, missing_chunks, write_chunk

GRID = 20
TEMPERATURE = 0.1  # of a teacher that is asked without a vote of boxes


def maps_folder(parent: Path, teacher: PhraseLocalizer, kind: str, data: dict, labels: dict) -> Path:
    """A folder of its own for each teacher, way of asking it, data and way of labelling it."""
    facts = {
        "kind": [kind, GRID],
        "asked": asdict(teacher.settings),
        "words": list(teacher.vocabulary.words),
        "labels": labels,
        "data": data,
    }
    return cache_folder(parent, teacher.model, facts, "maps")


def fill_maps(folder: Path, teacher: PhraseLocalizer, kind: str, images: WebImages, world: World) -> None:
    """Computes the chunks that are missing, each process every size-th of them.

    Args:
        folder: of the maps.
        teacher: asked as its settings say; a location prior would be learned.
        kind: inside or heat.
        images: whose labels name the words.
        world: the processes that share the work.

    Raises:
        DataError: the disk is full.
    """
    missing = missing_chunks(folder, len(images), world)
    for chunk, numbers in tqdm(
        missing, desc="own maps", disable=None if world.is_main else True, leave=False
    ):
        found = [_maps_of(teacher, kind, images, number) for number in numbers]
        starts = np.cumsum([0] + [len(maps) for maps in found])
        write_chunk(folder, chunk, [torch.cat(found).numpy(), starts])
    world.barrier()


def _maps_of(teacher: PhraseLocalizer, kind: str, images: WebImages, number: int) -> Tensor:
    """(T, GRID, GRID) uint8 of the words of an image in the order of its labels; 0 for an unusable image."""
    source, words = images.source, []
    try:
        words = [teacher.vocabulary.words[i] for i in images.labeller(source.texts(number)).ids]
        picture = load_image(source.image(number))
    except (OSError, UnicodeDecodeError, DataError):  # the loader counts and names it
        return torch.zeros(len(words), GRID, GRID, dtype=torch.uint8)
    if not words:
        return torch.zeros(0, GRID, GRID, dtype=torch.uint8)
    scene = teacher.look_at([prepare(picture, teacher.settings, None, teacher.source)])[0]
    maps = map_targets(teacher, scene, words, kind)
    return (255 * maps).round().clamp(0, 255).byte().cpu()


def map_targets(teacher: PhraseLocalizer, scene: Scene, words: Sequence[str], kind: str) -> Tensor:
    """What the teacher says of some words in a scene: (T, GRID, GRID) in 0..1."""
    settings = teacher.settings
    heats = teacher.heat(teacher.attend(scene, words), (settings.grid, settings.grid)).clamp(min=0)
    if kind == "heat" or scene.proposals is None or len(scene.proposals) == 0:
        coarse = F.adaptive_avg_pool2d(heats[:, None], GRID)[:, 0]
        return coarse / coarse.amax((1, 2), keepdim=True).clamp_min(1e-6)
    boxes = scene.proposals.to(heats.device)
    scores = score_boxes(heats, boxes, scene.size, settings.score, settings.gamma)
    chance = (scores / (settings.temperature or TEMPERATURE)).softmax(-1)  # (T, R)
    return (chance @ _cells(boxes, scene.size).flatten(1)).unflatten(1, (GRID, GRID))


def _cells(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which cells have their centre in each box: (R, 4) -> (R, GRID, GRID) of 0 and 1."""
    centres = (torch.arange(GRID, device=boxes.device) + 0.5) / GRID
    x, y = centres * size[1], centres * size[0]
    within_x = (x >= boxes[:, :1]) & (x <= boxes[:, 2:3])
    within_y = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:])
    return (within_y[:, :, None] & within_x[:, None, :]).to(boxes)


class OwnMaps:
    """The maps that `fill_maps` kept.

    Args:
        folder: of the maps.
    """

    def __init__(self, folder: Path):
        self.chunks = Chunks(folder)

    def __call__(self, number: int, mirrored: bool) -> Tensor:
        """(T, GRID, GRID) uint8 of sample `number`, in the order of its labels."""
        chunk, place = divmod(number, CHUNK)
        maps, starts = self.chunks(chunk)
        found = torch.from_numpy(np.array(maps[starts[place] : starts[place + 1]]))
        return found.flip(-1) if mirrored else found
