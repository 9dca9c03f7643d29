"""Several word models as one: a student learns the mean of its teachers' maps and scores.

    python benchmarks/distil.py 'SHARDS' OUT --teachers A B C --start default --texts captions_train.txt.gz

Teachers are folders of models made by `train.py configs/default.yaml` with other seeds and backbones, such as `seed=1
model.backbone=efficientnet_lite1`, or `default` itself. All must have the vocabulary of the student, which the same
photographs with the same `vocabulary` settings give. No true box is seen.

1. Of each photograph and up to 16 distinct noun phrases of its captions, the teachers' c-MWP maps at the features, at
   384 and 640 pixels, are min-max normalised and averaged on a grid of 24 x 24; so are their word scores at 384.
2. The student, at first `--start`, is trained from stage 3 upwards. Its loss is

       logistic(word scores, captions / 2 + sigmoid(teachers' mean scores) / 2) + 2 KL(teachers' map || student's)

   with maps that sum to 1, the student's being softplus(4 * signed map * cells) + 1e-4, normalised.
3. The result in OUT is the mean of the weights of the student, averaged over its steps, and of `--start`. Its
   out-of-vocabulary words are placed again. It has neither calibration nor box ranker, which were of another network:
   `phrase-loc calibrate` and `phrase-loc learn-ranker` make them.

Nine teachers and three students took eight minutes of one H200, by research code: the teachers (the shipped model of
that time, five more of Lite0 and three of Lite1) had the same recipe as train.py's, the chosen student that of this
file, its cleaned form, which itself was run on a CPU alone, on 48 photographs. Figures: docs/experiments.md.
"""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from phrase_loc.cli import COUNT, guarded
from phrase_loc.distributed import pick_device
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import make_folder
from phrase_loc.images import load_tensor
from phrase_loc.maps import min_max, resize
from phrase_loc.models.model import TextToRegion
from phrase_loc.models.store import load_model, save_model
from phrase_loc.pairs.dataset import Item, Order, StepSampler, Transform, names_a_side
from phrase_loc.pairs.sources import Source, open_source
from phrase_loc.skipped import Fault, Skipped
from phrase_loc.text.phrases import EncodedPhrase, PhraseEncoder
from phrase_loc.text.splitting import noun_phrases
from phrase_loc.text.vocabulary import Vocabulary, WordLabeller
from phrase_loc.training.config import FurtherConfig, PhaseConfig
from phrase_loc.training.phase import Average, parameter_groups, phase_steps, schedule
from phrase_loc.training.run import mean_weights
from phrase_loc.training.setup import add_further_words, read_texts

PHRASES, WORDS = 16, 8  # of a photograph, of a phrase, at most
GRID, SIZES = 24, (384, 640)  # of the teachers' maps, and of their inputs; the scores are of the first size
SOFT, DIVERGENCE = 0.5, 2.0  # the teachers' share in the labels, the weight of the maps in the loss
SHARPNESS = 4.0  # of the student's maps in the loss
ASKED = 8  # phrases of a photograph in a step
EMA = 0.998
STUDENT = PhaseConfig(
    name="student", epochs=7, batch=64, sizes=(320, 448, 640), train_from="stage3", lr=7e-4, trunk_lr=0.3,
    layer_decay=1.0, weight_decay=0.01, warmup=100, clip=10.0, dropout=0.1, mirror=0.5,
)  # fmt: skip


class Examples(NamedTuple):
    """What the captions of N photographs say, in rows of the vocabulary of V words."""

    source: Source
    numbers: list[int]  # of the photographs in it
    said: Tensor  # (N, V) 1 where a caption has the word
    words: Tensor  # (N, PHRASES, WORDS) rows
    weights: Tensor  # (N, PHRASES, WORDS), of a phrase with the sum 1, or all 0 where there is none
    sided: Tensor  # (N,) whether a caption names a side, so that the photograph is not mirrored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--teachers", nargs="+", required=True, metavar="MODEL")
    parser.add_argument("--start", default="default", metavar="MODEL", help="where the student starts")
    parser.add_argument("--texts", nargs="*", default=[], help="for out-of-vocabulary words")
    parser.add_argument("--epochs", type=COUNT, default=STUDENT.epochs)
    parser.add_argument("--batch", type=COUNT, default=STUDENT.batch)
    parser.add_argument("--limit", type=COUNT, help="photographs, the first ones; all when left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device, further = pick_device(args.device), FurtherConfig(words=12_000, texts=tuple(args.texts))
    next(read_texts(further.texts), None)  # before the work: they are there
    make_folder(args.out, "choose another place for the model")
    start, teachers = load_models(args.start, args.teachers)
    source = open_source(args.shards)
    examples = read(source, start.vocabulary, args.limit or len(source), Random(args.seed))
    settings = replace(STUDENT, epochs=args.epochs, batch=args.batch)
    asked = ask(teachers, examples, device, args.batch, args.workers)
    student = deepcopy(start).to(device)
    losses = learn(student, examples, *asked, settings, args.seed, args.workers)
    student.cpu().requires_grad_(False)
    student.load_state_dict(mean_weights([student.state_dict(), start.state_dict()]))
    add_further_words(student, further, 0)
    count, phrases = len(examples.numbers), int(examples.weights.any(-1).sum())
    recipe = f"{len(teachers)} models distilled into one on {count:,} photographs by benchmarks/distil.py."
    facts = {"summary": "Not measured yet.", "recipe": recipe}
    facts |= {key: value for key, value in start.config.card.items() if key == "license_note"}
    student.config = replace(student.config, tuned=True, calibration={}, card=facts)
    save_model(student, args.out)
    print(f"{count} photographs, {phrases} phrases, {len(teachers)} teachers; losses at the end: {losses}")


def load_models(start: str, names: Sequence[str]) -> tuple[TextToRegion, list[TextToRegion]]:
    """The start, without its box ranker, and the teachers; a ConfigError where their words are not the same."""
    first, *teachers = (load_model(name) for name in (start, *names))
    first.drop_ranker()
    for name, teacher in zip(names, teachers, strict=True):
        if teacher.vocabulary.words != first.vocabulary.words:
            sizes = f"{len(teacher.vocabulary):,} and {len(first.vocabulary):,} words"
            raise ConfigError(
                f"teachers need the words of the student in one order, and those of {name} are not those of {start} "
                f"({sizes}); train it with vocabulary.file= the student's"
            )
    return first, teachers


def read(source: Source, vocabulary: Vocabulary, limit: int, random: Random) -> Examples:
    """The first photographs that can be read and of whose captions a word is known; a DataError for none.

    Phrases are encoded without out-of-vocabulary words, whose rows may be other words in each model.
    """
    encoder, labeller = PhraseEncoder(vocabulary), WordLabeller(vocabulary, last_word=0.0)
    rows, numbers, skipped = [], [], Skipped()
    for number in tqdm(range(min(limit, len(source))), "captions", unit="image", disable=None, leave=False):
        try:
            texts = source.texts(number)
            load_tensor(source.image(number))
        except DataError as error:
            skipped.add(Fault("image", source.name(number), str(error)))
            continue
        if not (labels := labeller(texts).ids):
            skipped.add(Fault("words", source.name(number)))
            continue
        said, words, weights = torch.zeros(len(vocabulary)), *torch.zeros(2, PHRASES, WORDS)
        said[list(labels)] = 1.0
        found = phrases(encoder, texts)
        for place, phrase in enumerate(random.sample(found, min(PHRASES, len(found)))):
            words[place, : len(phrase.ids)] = torch.tensor(phrase.ids[:WORDS])
            weights[place, : len(phrase.ids)] = torch.tensor(phrase.weights[:WORDS])
        numbers.append(number)
        rows.append((said, words.long(), weights, torch.tensor(names_a_side(texts))))
    if not rows:
        raise DataError(f"no photograph can be learned from ({skipped.summary()}); name other shards")
    return Examples(source, numbers, *map(torch.stack, zip(*rows, strict=True)))


def phrases(encoder: PhraseEncoder, texts: Sequence[str]) -> list[EncodedPhrase]:
    """The noun phrases whose noun is known, of those with the same words the first."""
    encoded = [encoder.encode(phrase) for text in texts for phrase in noun_phrases(text)]
    return list({e.ids: e for e in reversed(encoded) if e.head_known}.values())


class Photographs(Dataset):
    """Items of the product's sampler, numbers of examples -> the number and (3, S, S) uint8."""

    def __init__(self, examples: Examples, sizes: Sequence[int]) -> None:
        self.source, self.numbers = examples.source, examples.numbers
        self.transforms = [Transform((side, side)) for side in sizes]

    def __getitem__(self, item: Item) -> tuple[int, Tensor]:
        _, place, size = item
        image = load_tensor(self.source.image(self.numbers[place]))
        return place, self.transforms[size](image, (), np.random.default_rng(0))


def half_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def ask(
    teachers: Sequence[TextToRegion], examples: Examples, device: torch.device, batch: int, workers: int
) -> tuple[Tensor, Tensor]:
    """The teachers' mean maps, (N, PHRASES, GRID, GRID) float16 within 0..1, and mean word scores, (N, V)."""
    maps = torch.zeros(*examples.words.shape[:2], GRID, GRID, dtype=torch.float16)
    scores = torch.zeros_like(examples.said)
    parts = [part.tolist() for part in torch.arange(len(maps)).split(batch)]
    sampler = [[(0, place, size) for place in part] for size in range(len(SIZES)) for part in parts]
    loader = DataLoader(Photographs(examples, SIZES), batch_sampler=sampler, num_workers=workers)
    for chosen, images in tqdm(loader, "teachers", unit="batch", disable=None, leave=False):
        phrases = examples.words[chosen].to(device), examples.weights[chosen].to(device)
        for teacher in teachers:
            with half_precision(device):
                features = teacher.to(device).features(images.to(device)).float()
            found = resize(signed_maps(teacher, features, *phrases).clamp(min=0), (GRID, GRID))
            maps[chosen] += (min_max(found) / (len(teachers) * len(SIZES))).half().cpu()
            if images.shape[-1] == SIZES[0]:
                scores[chosen] += word_scores(teacher, features).cpu() / len(teachers)
    return maps, scores


def rows_of(model: TextToRegion) -> Tensor:
    """The rows of the trained words, (V,)."""
    return torch.arange(len(model.vocabulary), device=model.words.vectors.device)


def word_scores(model: TextToRegion, features: Tensor) -> Tensor:
    """(N, D, h, w) -> (N, V), pooled in float32."""
    pooled: Tensor = model.head.pool(model.location_scores(features, rows_of(model)).float())
    return pooled


def signed_maps(model: TextToRegion, features: Tensor, words: Tensor, weights: Tensor) -> Tensor:
    """Features (N, D, h, w), of each photograph its own phrases (N, P, W) -> their c-MWP maps before the clamp.

    The closed form of `attention.excitation.contrastive_map`, whose steps in place have no derivative: (N, P, h, w).
    """
    units = model.units(rows_of(model))[words]  # (N, P, W, D)

    def won(units: Tensor) -> Tensor:
        found = torch.einsum("npwd,ndyx->npwyx", units.clamp(min=0), features)
        return found / found.sum((-2, -1), keepdim=True).clamp(min=1e-12)

    return torch.einsum("npw,npwyx->npyx", weights, won(units) - won(-units))


def learn(
    student: TextToRegion, examples: Examples, maps: Tensor, scores: Tensor, settings: PhaseConfig, seed: int,
    workers: int,
) -> str:  # fmt: skip
    """Trains the student and leaves it with the average of its weights; says the last losses."""
    torch.manual_seed(seed)
    device, total = student.words.vectors.device, phase_steps(settings, len(maps))
    student.requires_grad_(True)
    student.head.log_scale.requires_grad_(not student.config.free)
    optimizer = torch.optim.AdamW(parameter_groups(student, settings))
    average = Average(student, EMA)
    order = Order(np.zeros(len(maps), np.int64), seed)
    sampler = StepSampler(order, settings.batch, 1, 0, total, 0, 1, len(settings.sizes))
    loader = DataLoader(Photographs(examples, settings.sizes), batch_sampler=sampler, num_workers=workers)
    labels = torch.lerp(examples.said, scores.sigmoid(), SOFT)
    bar, told = tqdm(loader, "student", unit="step", disable=None, leave=False), ""
    for step, (chosen, images) in enumerate(bar):
        mirrored = (torch.rand(len(chosen)) < settings.mirror) & ~examples.sided[chosen]
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        phrases = [x.to(device) for x in drawn(examples, maps, chosen, mirrored)]
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * schedule(settings, step, total)
        with half_precision(device):
            features = student.features(images.to(device))
            found = word_scores(student, F.dropout(features, settings.dropout))
        wanted = labels[chosen].to(device)
        by_words = F.binary_cross_entropy_with_logits(found, wanted, reduction="none").sum(1).mean()
        by_maps = divergence(student, features.float(), *phrases)
        loss = by_words + DIVERGENCE * by_maps
        told = f"words {by_words.item():.2f}, maps {by_maps.item():.3f}"
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is not finite at step {step} ({told}); take other teachers or a larger batch"
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), settings.clip)
        optimizer.step()
        average.update_parameters(student)
        bar.set_postfix_str(told)
    average.swap(student)
    return told


def drawn(
    examples: Examples, maps: Tensor, chosen: Tensor, mirrored: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each photograph ASKED phrases, those with a map first: words, weights (n, p, WORDS), maps (n, p, h, w)."""
    maps = maps[chosen].float()
    order = (torch.rand(maps.shape[:2]) + maps.flatten(2).any(-1)).topk(ASKED, 1).indices
    maps = torch.where(mirrored[:, None, None, None], maps.flip(-1), maps)
    rows = torch.arange(len(chosen))[:, None]
    return examples.words[chosen][rows, order], examples.weights[chosen][rows, order], maps[rows, order]


def divergence(
    student: TextToRegion, features: Tensor, words: Tensor, weights: Tensor, maps: Tensor
) -> Tensor:
    """The mean over phrases with a map of KL(teachers' || student's), on the student's grid."""
    own = signed_maps(student, features, words, weights).flatten(2)
    own = F.softplus(SHARPNESS * own.shape[-1] * own) + 1e-4
    own = own / own.sum(-1, keepdim=True)
    theirs = F.adaptive_avg_pool2d(maps, features.shape[-2:]).flatten(2)
    there = theirs.any(-1)
    theirs = theirs / theirs.sum(-1, keepdim=True).clamp(min=1e-6)
    each = (theirs * ((theirs + 1e-6).log() - own.log())).sum(-1)
    return (each * there).sum() / there.sum().clamp(min=1)


if __name__ == "__main__":
    sys.exit(guarded(main))
