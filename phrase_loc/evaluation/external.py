"""Methods of other people under our protocols: predictions read from a file, and detectors of transformers.

    predictions:FILE   a table or COCO's JSON of image, phrase, point and / or boxes (datasets/table.py)
    transformers:ID    zero-shot object detection from a folder or a hub: OWL-ViT, OWLv2, Grounding DINO

A row of a file names its photograph, by id or file name, and its phrase: by the text, which answers each mention of
it in that image; by `sentence` and `phrase_index`, both from 0, for one mention; or by `entity` alone for a chain. A
row with a `protocol` answers that protocol alone, and goes before one without. Rows of one phrase that each have a
score are its boxes, best first; of any other two the first counts, and the second is named. A chain without a row of
its own has the boxes of its mentions together and the point of the mention that is surest. A phrase without an answer
is named and is a miss. A file without points, or without boxes, has no value under the protocols that ask for them.

A detector was trained on boxes, which its rows say. It has no map: it points at the centre of its first box.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from phrase_loc.boxes import rescale
from phrase_loc.datasets.annotations import Annotated, Size, fit_box, number, refuse_shares
from phrase_loc.datasets.table import Places, Row, categories, image_numbers, numbered, rows
from phrase_loc.errors import ConfigError, DataError, PhraseLocError, choose
from phrase_loc.evaluation.evaluator import Plan, framed
from phrase_loc.evaluation.protocols import PROTOCOLS, Protocol
from phrase_loc.evaluation.scoring import Answers, Batch, Method, Query, answers_of, gather
from phrase_loc.files import digest, reason, writing
from phrase_loc.images import load_image
from phrase_loc.skipped import Skipped
from phrase_loc.structures import GroundingSample

PREDICTIONS, TRANSFORMERS = PREFIXES = ("predictions:", "transformers:")
#: Columns of a template that are to be filled in.
BLANK = ("point_x", "point_y", "x1", "y1", "x2", "y2", "score")
#: Types of networks -> whether all phrases of an image are asked at once, each of all boxes.
TOGETHER = {"owlvit": True, "owlv2": True, "grounding-dino": False, "mm-grounding-dino": False}
ADVICE = (
    "expected pixels of the annotated image, boxes as x1, y1, x2, y2; mend or drop the row (none is a miss)"
)

#: (image id, index of the phrase in its sample or name of a chain, name of a protocol or '' for all)
Key: TypeAlias = tuple[str, int | str, str]


@dataclass
class Answer:
    """What a file says of one thing."""

    where: str = ""
    point: list[float] | None = None
    boxes: list[tuple[float, ...]] = field(default_factory=list)  # x1, y1, x2, y2, score, best first
    scored: bool = False

    def __post_init__(self) -> None:
        self.boxes.sort(key=lambda box: -box[4])  # equal scores keep their order

    def has(self, kind: str) -> bool:
        """Whether there is a 'point', or a 'box'."""
        return self.point is not None if kind == "point" else bool(self.boxes)


def needed(protocol: Protocol) -> str:
    """What a protocol asks for."""
    return "point" if "pointing" in protocol.kind else "box"


class Predictions(Method):
    """The answers of a file; which row belongs to what stands in the head of this module."""

    needs_image = False

    def __init__(self, name: str, samples: Annotated, protocols: Sequence[Protocol]):
        self.name, self.path = name, Path(name.removeprefix(PREDICTIONS)).expanduser()
        self.notes, self.found, self.places = Skipped(), dict[Key, Answer](), Places(samples)
        for row in rows(self.path, "the predictions", self.notes):
            try:
                protocol = row.text("protocol") and choose(PROTOCOLS, row.text("protocol"), "protocol").name
                sample, things = self.places.of(row, bool(protocol) and PROTOCOLS[protocol].unit == "entity")
                answer = _checked(row, sample.size)
            except LookupError as error:
                self.notes.note("predictions of nothing that is asked", f"{row.where}: {error.args[0]}")
                continue
            except PhraseLocError as error:
                raise DataError(f"{self.path}, {row.where}: {error}; {ADVICE}") from None
            for thing in things if answer.point or answer.boxes else ():  # an empty one was not filled in
                self._add((sample.image_id, thing, protocol), answer)
        what = f"the predictions {self.path} (point_x and point_y, or x1, y1, x2, y2) for the data {samples.name}"
        self.notes.refuse_if_empty(len(self.found), what)
        given = (chain(a.point or (), *(box[:4] for box in a.boxes)) for a in self.found.values())
        refuse_shares(max(chain.from_iterable(given)), f"the file {self.path}")
        self.gives = {(kind, k[2]) for k, a in self.found.items() for kind in ("point", "box") if a.has(kind)}
        if all(self.lacks(protocol) for protocol in protocols):
            why = self.lacks(protocols[0])
            raise ConfigError(f"{why}, and no protocol asks for anything else; choose others")
        self.fingerprint = digest(self.path)

    def _add(self, key: Key, new: Answer) -> None:
        old = self.found.setdefault(key, new)
        if old is new:
            return
        again = new.point not in (None, old.point) or not {*new.boxes}.isdisjoint(old.boxes)
        if again or not (old.scored and new.scored):
            said = f"{new.where}: {key[0]}, {self.places.called(*key[:2])} stands in {old.where} already"
            self.notes.note("doubled predictions (the first counts)", said)
        else:
            self.found[key] = Answer(old.where, old.point, old.boxes + new.boxes, True)

    def lacks(self, protocol: Protocol) -> str:
        """Says that no row has a point, or a box."""
        kind = needed(protocol)
        gives = (kind, "") in self.gives or (kind, protocol.name) in self.gives
        elsewhere = f" under {protocol.name}" if any(kind == given for given, _ in self.gives) else ""
        return "" if gives else f"{self.path.name} has no {kind}{elsewhere}"

    def skipped(self, plan: Plan) -> Skipped:
        """What is wrong with the rows, and the things that are counted and have no answer."""
        for protocol in (p for p in plan.protocols if not self.lacks(p)):
            kind = f"phrases without a {needed(protocol)} (misses)"
            for sample in plan.samples:
                for members in gather(protocol, sample).members:
                    if not self._of(protocol, sample, members).has(needed(protocol)):
                        called = self.places.called(sample.image_id, members[0])
                        self.notes.note(kind, f"{sample.image_id}, {called}")
        return self.notes

    def answer_all(self, asked: Sequence[tuple[Protocol, Batch]]) -> list[Answers]:
        """What the file says of the things that protocols count in an image, of each thing and protocol its own."""
        found = []
        for protocol, batch in asked:
            said = [self._of(protocol, batch.sample, members) for members in batch.members]
            points = torch.tensor([answer.point or [torch.nan] * 2 for answer in said])
            ranked = [torch.tensor(answer.boxes).reshape(-1, 5) for answer in said]
            found.append(answers_of(points, ranked, [protocol]))
        return found

    def _of(self, protocol: Protocol, sample: GroundingSample, members: tuple[int, ...]) -> Answer:
        def own(thing: int | str) -> Answer | None:
            found = (self.found.get((sample.image_id, thing, name)) for name in (protocol.name, ""))
            return next((answer for answer in found if answer and answer.has(needed(protocol))), None)

        if protocol.unit == "entity" and (of_chain := own(sample.phrases[members[0]].entity)):
            return of_chain
        parts = [answer for i in members if (answer := own(i))]
        surest = max(parts, key=lambda a: a.boxes[0][4] if a.boxes else -torch.inf, default=Answer())
        return Answer("", surest.point, [box for answer in parts for box in answer.boxes])


def _checked(row: Row, size: Size) -> Answer:
    """What a row says, in the frame (H, W) of its image; DataError where that can be no answer."""
    point, (boxes, scores) = row.point(), row.boxes()
    for box in boxes:  # what reaches out of the picture is not cut, as in published scripts
        fit_box(box, size, thin=True)
    if point and not all(-1 <= value <= side + 1 for value, side in zip(point, size[::-1], strict=True)):
        shown = f"({point[0]:g}, {point[1]:g})"
        raise DataError(f"its point {shown} lies outside the {size[1]} x {size[0]} image")
    sides = [row.cells.get(short, row.cells.get(long)) for short, long in (("w", "width"), ("h", "height"))]
    sided = point and not boxes and None not in sides
    # sorted, as an image's own may be those before it was turned upright
    if sided and sorted(number(s, "a side") for s in sides) != sorted(size):
        raise DataError("beside its x and y stand sides that are not the image's, as of a box")
    ranked = scores or [1 / rank for rank in range(1, len(boxes) + 1)]
    found = [(*box, score) for box, score in zip(boxes, ranked, strict=True)]
    return Answer(row.where, point, found, scores is not None)


class Detector(Method):
    """Zero-shot object detection of transformers; a phrase's boxes are all that the network has, by its scores."""

    needs_image = True
    marks: ClassVar = {
        "supervision": "trained on boxes",
        "note": "a detector points at the centre of its first box",
    }

    def __init__(self, name: str, device: torch.device):
        from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

        self.name, source = name, name.removeprefix(TRANSFORMERS)
        try:
            kind = AutoConfig.from_pretrained(source).model_type
            if kind not in TOGETHER:
                raise ConfigError(f"{name} is a {kind}, no detector; expected one of {', '.join(TOGETHER)}")
            self.processor = AutoProcessor.from_pretrained(source)
            self.network = AutoModelForZeroShotObjectDetection.from_pretrained(source).to(device).eval()
        except ConfigError:
            raise
        except Exception as error:  # of a broken folder or without a network, transformers raises anything
            why = f"{name} cannot be loaded ({type(error).__name__}: {reason(error)})"
            raise DataError(f"{why}; give a folder with its files, or a hub id and a network") from None
        self.together, self.device = TOGETHER[kind], device
        self.fingerprint = weights_digest(self.network)
        self.last: tuple[GroundingSample | None, dict[str, Tensor]] = (None, {})

    @torch.inference_mode()
    def answer(self, sample: GroundingSample, queries: Sequence[Query], asked: Sequence[Protocol]) -> Answers:
        """Answer distinct queries about one image; a chain has the boxes of its mentions together."""
        if self.last[0] is not sample:
            self.last = (sample, {})
        found = self.last[1]
        if new := [p for p in dict.fromkeys(p for query in queries for p in query) if p not in found]:
            found |= self._detect(load_image(framed(sample).picture), new, sample.size)
        pooled = [torch.cat([found[p] for p in dict.fromkeys(query)]) for query in queries]
        ranked = [boxes[boxes[:, 4].argsort(descending=True, stable=True)] for boxes in pooled]
        centres = torch.stack([(boxes[0, :2] + boxes[0, 2:4]) / 2 for boxes in ranked])
        most = max(1, *(protocol.top_k for protocol in asked))
        return answers_of(centres, [boxes[:most] for boxes in ranked], asked)

    def _detect(self, picture: Image.Image, phrases: list[str], size: Size) -> dict[str, Tensor]:
        """Per phrase (n, 5) boxes in the frame (H, W) and their scores."""
        frame, found = (picture.height, picture.width), dict[str, Tensor]()
        for group in [phrases] if self.together else [[p] for p in phrases]:
            texts: Any = [group] if self.together else f"{group[0].lower().replace('.', ' ').strip()}."
            inputs = self.processor(text=texts, images=picture, return_tensors="pt", truncation=True)
            outputs = self.network(**inputs.to(self.device))
            process = self.processor.post_process_grounded_object_detection
            boxes = process(outputs, threshold=-1.0, target_sizes=[frame])[0]["boxes"]
            scores = outputs.logits[0].sigmoid()  # (n, phrases), or (n, tokens) of the one phrase
            scores = scores if self.together else scores.amax(1, keepdim=True)
            boxes, scores = rescale(boxes.float().cpu(), frame, size), scores.float().cpu()
            found |= {p: torch.cat([boxes, scores[:, [i]]], 1) for i, p in enumerate(group)}
        return found


def weights_digest(network: torch.nn.Module) -> str:
    """A hash of the weights of a network."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def template(
    samples: Annotated,
    chosen: Sequence[GroundingSample],
    protocols: Sequence[Protocol],
    method: Method | None,
) -> Iterator[dict[str, Any]]:
    """What `predictions:FILE` may answer, a row a mention, its answer empty; or the answers of a method, by protocol.

    `image_id` and `category_id` are the numbers to write in results of COCO's form.
    """
    kinds = {name: number for number, name in categories(samples).items()}
    numbers = image_numbers(samples)
    for sample in chosen:
        (height, width), own = sample.size, numbers[sample.image_id]
        shared = {"image": sample.image_id, "file_name": sample.path.name, "image_id": own}
        shared |= {"width": width, "height": height}
        things = []
        for (sentence, index), p in zip(numbered(sample), sample.phrases, strict=True):
            place = {"sentence": sentence if sentence >= 0 else None, "phrase_index": index, "phrase": p.text}
            things.append(shared | place | {"category_id": kinds.get(p.text), "entity": p.entity or None})
        batches = [(protocol, gather(protocol, sample)) for protocol in protocols]
        if method is None:
            counted = {i for _, batch in batches for members in batch.members for i in members}
            yield from (things[i] | dict.fromkeys(BLANK) for i in sorted(counted))
            continue
        for protocol, batch in (pair for pair in batches if len(pair[1])):
            of_chain = {"sentence": None, "phrase_index": None} if protocol.unit == "entity" else {}
            answered = _answered(method, protocol, batch)
            for members, text, answer in zip(batch.members, batch.texts, answered, strict=True):
                yield things[members[0]] | of_chain | {"phrase": text, "protocol": protocol.name} | answer


def _answered(method: Method, protocol: Protocol, batch: Batch) -> Iterator[dict[str, Any]]:
    """Per thing of a batch its point, or its boxes and their scores."""
    (found,) = method.answer_all([(protocol, batch)])
    empty: dict[str, Any] = {"point_x": None, "point_y": None, "boxes": [], "scores": []}
    if needed(protocol) == "point":
        points = found.peaks[protocol.border].tolist()
        yield from (empty | ({} if x != x else {"point_x": x, "point_y": y}) for x, y in points)
        return
    ranked = found.ranked
    if protocol.map_box:  # the one box is what counts
        ranked = pad(found.map_boxes[protocol.map_box], (0, 1), value=1.0)[:, None]
    for own in ranked:
        there = own[~own.isnan().any(1)]
        yield empty | {"boxes": there[:, :4].tolist(), "scores": there[:, 4].tolist()}


def write_template(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes rows as .csv, .jsonl or .parquet, lists of CSV as JSON; how many."""
    from pandas import DataFrame

    if path.exists():  # perhaps the one that was filled in
        raise ConfigError(f"{path} is there already; choose another file")
    listed = list(records)
    if not listed:
        raise DataError("the protocols count nothing in these images; choose others")
    frame = DataFrame(listed, dtype=object)  # in which no number becomes another
    with writing(path, "choose another file") as part:
        if path.suffix == ".csv":
            frame.to_csv(part, index=False, errors="backslashreplace")
        elif path.suffix == ".parquet":
            frame.to_parquet(part)
        else:
            part.write_text("".join(json.dumps(record) + "\n" for record in listed))
    return len(listed)
