"""From tagged photographs to labels: classes and their phrases, thresholds, boxes without doubles, a summary.

    DIR/answers.jsonl          all that the model said (`streaming.answer_many`): resumed, shared by all formats
    DIR/coco.json, yolo/, ...  the labels, each written anew at the end by `label_formats`
    DIR/summary.json           what was labelled, by class, and what was left out and why
    DIR/sheet.html             the photographs with their boxes, the most doubtful first

A threshold is on `present`, the probability that the photograph shows a phrase, and says nothing of the box.
"""

import heapq
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import torch

from phrase_loc import files
from phrase_loc.boxes import area, iou
from phrase_loc.config import parsed_yaml
from phrase_loc.display import answers_in, utf8
from phrase_loc.distributed import World
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.gallery import MOST, write_page
from phrase_loc.images import VIDEO_ENDINGS, frames
from phrase_loc.label_formats import FORMATS, Label, LabelledImage, Place, distinct, labelling_interface
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.streaming import Question, answer_many, questions_of, read_record, record_path
from phrase_loc.structures import ABSENT_BELOW, FOUND_AT
from phrase_loc.tables import is_table, listed_lines
from phrase_loc.text.splitting import split_phrases

CANDIDATES = 10  # boxes of a phrase among which further instances are looked for
INSTANCE = 0.5  # share of the best box's mass per area**gamma that a further instance has at least
OVERLAP = 0.5  # greatest IoU of two boxes of a class
INSIDE = 0.7  # greatest share of the smaller of two boxes of a class that may lie in the other
SHOWN = 10  # photographs that were left out that a summary names
SHARE = 0.05  # of the photographs that show a class, where nothing better is known
#: what words mean in a file of classes
_CLASSES = dict[str, str | dict[str, Any] | list[str] | None] | list[str]


class LabelClass(NamedTuple):
    """A class, what is asked for it, its threshold on `present`, its share of the photographs (None: as for all)."""

    name: str
    phrases: tuple[str, ...]
    threshold: float | None = None
    share: float | None = None


class Rules(NamedTuple):
    """Which boxes become labels: see `thresholds_of`; `instances` is the most of a class in a photograph."""

    precision: float | None = None
    threshold: float | None = None
    share: float = SHARE
    instances: int = 1


def read_classes(path: Path) -> list[LabelClass]:
    """The classes of a file: YAML or JSON by its ending, else lines `name: phrase, phrase` or `name`; '#' is comment.

    In YAML a class is `name: phrase`, `name: [phrase, ...]` or `name: {phrases: ..., threshold: 0.6, share: 0.1}`, or
    the file is a list of names. Raises a DataError that says which class is wrong, a ConfigError where it is no YAML.
    """
    what = "the file of classes"
    if path.suffix.lower() in {".yaml", ".yml", ".json"}:
        content = parsed_yaml(files.read_text(path, what), f"{what} {path}", _CLASSES)
        if isinstance(content, dict) and "names" in content:
            raise DataError(f"{what} {path} has `names`, as of YOLO; write the names alone, a line each")
        pairs = [(name, None) for name in content] if isinstance(content, list) else content
        pairs = list(pairs.items()) if isinstance(pairs, dict) else pairs or []
    else:
        pairs = [line.partition(":")[::2] for line in listed_lines(path, what) if line[0] != "#"]
    if not isinstance(pairs, list) or not pairs:
        raise DataError(f"{what} {path} names no class; write a line `name: phrase, phrase` for each")
    classes = [_class(name, value, f"{what} {path}") for name, value in pairs]
    twice = [name for name, n in Counter(c.name for c in classes).items() if n > 1]
    if twice:
        raise DataError(f"{what} {path} names {twice[0]!r} twice; put all its phrases on one line")
    return classes


def _class(name: Any, value: Any, where: str) -> LabelClass:
    own: dict[str, Any] = value if isinstance(value, dict) else {"phrases": value}
    if unknown := sorted(map(str, own.keys() - {"phrases", "threshold", "share"})):
        raise DataError(
            f"{where}: {name!r} has {unknown[0]!r}; a class has `phrases`, `threshold` and `share`"
        )
    for key in ("threshold", "share"):
        number = own.get(key)
        if number is not None and not (type(number) in (int, float) and 0 <= number <= 1):
            raise DataError(f"{where}: the {key} of {name!r} is a number from 0 to 1, got {number!r}")
    if not isinstance(name, str) or not (name := name.strip()):
        raise DataError(f"{where}: a class has a name in letters, got {name!r}; put it in quotes")
    value = own.get("phrases")
    given = value if isinstance(value, list) else [value]
    if not all(phrase is None or isinstance(phrase, str) for phrase in given):
        raise DataError(f"{where}: the phrases of {name!r} are texts, got {value!r:.80}; put them in quotes")
    phrases = [phrase for text in given for phrase in split_phrases(text or "")]
    return LabelClass(name, tuple(dict.fromkeys(phrases)) or (name,), own.get("threshold"), own.get("share"))


def phrases_of(classes: Sequence[LabelClass]) -> list[str]:
    """Each phrase once, in order."""
    return list(dict.fromkeys(phrase for c in classes for phrase in c.phrases))


def check_classes(localizer: PhraseLocalizer, classes: Sequence[LabelClass], rules: Rules) -> list[str]:
    """Notes on classes and phrases that the model does not know; a ConfigError where there is nothing to label."""
    calibrated = bool(localizer.model.config.calibration)
    if not calibrated and rules.threshold != 0:
        raise ConfigError(
            "labels need a model that says probabilities, and this one is not calibrated; run `phrase-loc calibrate` "
            "on it, or give --threshold 0 to label every phrase in every photograph"
        )
    phrases = phrases_of(classes)
    encoded = dict(zip(phrases, localizer.encode(phrases), strict=True))
    known = {p: e.known and e.head_known for p, e in encoded.items()}
    without = [c.name for c in classes if not any(known[phrase] for phrase in c.phrases)]
    if len(without) == len(classes):
        raise ConfigError(
            f"the model knows no noun of the phrases ({', '.join(phrases[:5])}); use other words, or --synonyms"
        )
    notes = [f"class {name!r} gets no label: the model does not know its nouns" for name in without]
    passed = [p for c in classes if c.name not in without for p in c.phrases if not known[p]]
    notes += [f"{p!r} is not labelled: the model does not know its noun" for p in dict.fromkeys(passed)]
    return notes + [f"{p!r}: {e.note}" for p, e in encoded.items() if known[p] and e.note]  # otherwise read


def thresholds_of(
    present: np.ndarray, classes: Sequence[LabelClass], rules: Rules, calibration: dict[str, Any]
) -> list[float]:
    """The probability from which each class is labelled; 2 where no photograph reaches the wanted precision.

    A class's own threshold goes first, then `rules.precision` or `rules.threshold`, else the model's `found_at`.
    For a precision: `present` (N photographs, C classes; NaN where unknown) is calibrated where half of the pairs are
    true. At another share of photographs with the class, its own or `rules.share`, its odds change by
    share / (1 - share) (Elkan 2001, theorem 2). The threshold is the lowest from which on the mean of these, the
    expected share of true labels, is at least the precision, but never below `absent_below`.
    """
    absent = float(calibration.get("absent_below", ABSENT_BELOW))
    found = float(calibration.get("found_at", FOUND_AT)) if rules.threshold is None else rules.threshold
    chosen = []
    for column, c in zip(present.T, classes, strict=True):
        level = found
        if rules.precision is not None:
            said = np.sort(column[~np.isnan(column)].astype(np.float64))[::-1]
            share = rules.share if c.share is None else c.share
            true, false = share * said, (1 - share) * (1 - said)
            expected = true / np.maximum(true + false, 1e-12)  # both are 0 of a share 0 and a probability 1
            precise = np.flatnonzero(expected.cumsum() >= rules.precision * np.arange(1, len(said) + 1))
            level = max(absent, float(said[precise[-1]])) if len(precise) else 2.0
        chosen.append(level if c.threshold is None else c.threshold)
    return chosen


class Labels:
    """The labels of a finished file of answers, read anew for each who goes through them: nothing piles up."""

    def __init__(
        self, answers: Path, classes: Sequence[LabelClass], rules: Rules, calibration: dict[str, Any]
    ):
        self.answers, self.classes, self.rules = answers, classes, rules
        rows = [self.present(answer) for answer in answers_in(answers) if "error" not in answer]
        present = np.array(rows, np.float32).reshape(-1, len(classes))
        self.thresholds = thresholds_of(present, classes, rules, calibration)

    def present(self, answer: dict[str, Any]) -> np.ndarray:
        """The greatest probability of a class's phrases: (C,), NaN where there is none."""
        found = {p["phrase"]: p["present"] for p in answer["predictions"] if p["present"] is not None}
        said = ([found[phrase] for phrase in c.phrases if phrase in found] for c in self.classes)
        return np.array([max(values, default=np.nan) for values in said], np.float32)

    def __iter__(self) -> Iterator[LabelledImage]:
        return map(self.labelled, answers_in(self.answers))

    def labelled(self, answer: dict[str, Any]) -> LabelledImage:
        """The labels of one answer, by class and score; boxes of a class that overlap are one."""
        if "error" in answer:
            return LabelledImage(answer["image"], (0, 0), (), answer["error"])
        found, labels = {p["phrase"]: p for p in answer["predictions"]}, list[Label]()
        for number, (c, level) in enumerate(zip(self.classes, self.thresholds, strict=True)):
            asked = [found[phrase] for phrase in c.phrases if phrase in found]
            there = [label for p in asked for label in _candidates(number, p, level)]
            labels += apart(there, self.rules.instances)
        return LabelledImage(answer["image"], tuple(answer["size"]), tuple(labels))

    def doubt(self, answer: dict[str, Any]) -> float:
        """How near to its threshold the nearest class is, 0 nearest; infinite where nothing was asked."""
        gaps = np.abs(self.present(answer) - np.minimum(self.thresholds, 1)) if "error" not in answer else []
        return float(np.nanmin(gaps)) if np.isfinite(gaps).any() else math.inf


def _candidates(number: int, p: dict[str, Any], least: float) -> Iterator[Label]:
    """A phrase's boxes as labels: `present` times the box's mass per area**gamma as a share of the best one's."""
    if least and (p["present"] is None or p["present"] < least):
        return
    present = 1.0 if p["present"] is None else p["present"]  # of a model without calibration, at threshold 0
    for box in p["boxes"]:
        share = math.exp(min(0.0, box["score"] - p["boxes"][0]["score"]))
        if share >= INSTANCE:
            score = round(present * share, 4)
            yield Label(number, tuple(box["xyxy"]), score, p["phrase"], p["present"], box.get("mask"))


def apart(candidates: Iterable[Label], most: int | None = None) -> list[Label]:
    """The best of one class, `most` of them or all, without those that show the same thing as a better one."""
    kept: list[Label] = []
    for label in sorted(candidates, key=lambda label: -label.score):
        if not any(_same(label.box, other.box) for other in kept):
            kept.append(label)
    return kept[:most]


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes are taken for one thing: they overlap, or one lies mostly in the other."""
    a, b = torch.tensor([one]), torch.tensor([other])
    shared = area(torch.cat([torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])], 1))
    return bool(iou(a, b) > OVERLAP) or bool(shared > INSIDE * torch.minimum(area(a), area(b)))


def label(
    localizer: PhraseLocalizer,
    images: Sequence[str],
    classes: Sequence[LabelClass],
    folder: Path,
    formats: Sequence[str],
    rules: Rules,
    url: str | None,
    world: World,
    **options: Any,
) -> dict[str, Any] | None:
    """Answers all photographs into `folder`, then writes labels, sheet and summary; the summary, in the main process.

    The `options` are those of `answer_many`. Answers that are there already are used: other thresholds and formats
    cost seconds. `url` stands before a name in Label Studio's tasks, None for its local files, served from the folder
    above the photographs'. Raises what `answer_many` raises, and a DataError where another process labels into it.
    """
    answers = folder / "answers.jsonl"
    sentence = f"another process is labelling into {folder}; wait for it, or give another --output"
    with ExitStack() as held:
        world.from_main(lambda: held.enter_context(files.lock(folder / ".label.lock", sentence)))
        world.from_main(lambda: _refuse_foreign(answers, formats))
        questions = [Question(image, tuple(phrases_of(classes))) for image in images]
        record = None if options.get("overwrite") else read_record(answers)
        fit = localizer.model.config.calibration
        options["threshold"] = _least(fit, classes, rules, record and record["settings"])
        top_k = 1 if rules.instances == 1 else CANDIDATES
        answer_many(localizer, questions, answers, top_k=top_k, world=world, **options)
        if not world.is_main:
            return None
        labels = Labels(answers, classes, rules, fit)
        root = Path(os.path.commonpath([os.path.dirname(os.path.abspath(image)) for image in images]))
        url = url or f"/data/local-files/?d={quote(os.fsencode(root.name))}/"
        place = Place(root, [c.name for c in classes], url if url.endswith(("/", "=")) else f"{url}/")
        for name in formats:
            with files.writing(folder / FORMATS[name].name) as temporary:
                FORMATS[name].write(labels, place, temporary)
        if "labelstudio" in formats:
            files.write_text(folder / "labelstudio.xml", labelling_interface(place.classes))
        found = summary(labels)
        write_sheet(labels, folder / "sheet.html")
        files.write_text(folder / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return found


def _refuse_foreign(answers: Path, formats: Sequence[str]) -> None:
    """A ConfigError where labels would replace what was there before anything was labelled into a folder."""
    names = [*(FORMATS[name].name for name in formats), "labelstudio.xml", "sheet.html", "summary.json"]
    there = [name for name in names if os.path.lexists(answers.parent / name)]
    if there and not os.path.lexists(record_path(answers)):
        where = f"{answers.parent} holds a {there[0]} that was not labelled there"
        raise ConfigError(f"{where} and would be replaced; give another --output")


def _least(
    calibration: dict[str, Any], classes: Sequence[LabelClass], rules: Rules, held: dict[str, Any] | None
) -> float | None:
    """The probability below which no box is sought: a threshold that was given, else that of "not there".

    Half of what is asked of a folder is not there, and maps cost as much as the network. The settings of answers that
    are `held` stay where they hold enough.
    """
    absent = math.floor(1e4 * calibration.get("absent_below", ABSENT_BELOW)) / 1e4
    usual = absent if rules.threshold is None else rules.threshold
    least = min(usual, *(c.threshold for c in classes if c.threshold is not None), 1.0)
    before = least if held is None else held.get("threshold", 0.0)
    return (min(before, least) or None) if calibration else None


def photographs(
    given: Sequence[str],
    classes: Sequence[LabelClass],
    folder: Path,
    every: int | None,
    note: Callable[[str], None],
    overwrite: bool = False,
) -> list[str]:
    """Photographs, those in folders, and frames of videos, which go to `folder`; `note` is told what is left out."""
    found: list[str] = []
    once: dict[str, str] = {}  # each photograph, however it is named
    own, videos = os.path.realpath(folder) + os.sep, set[str]()
    for path in map(Path, dict.fromkeys(given)):
        if path.suffix.lower() in VIDEO_ENDINGS and path.is_file():
            stills = frames(path, every, folder / "frames" / distinct(path.stem, videos), overwrite)
            note(f"{path}: {len(stills)} frames are labelled, each alone (nothing is tracked)")
            found += stills
        elif is_table(path) and not path.is_dir():
            raise DataError(f"{path} is a table; name a folder of photographs, photographs or a video")
        else:
            seen = [q.image for q in questions_of(path, phrases_of(classes), note)]
            others = [image for image in seen if not os.path.realpath(image).startswith(own)]
            if len(others) < len(seen):
                note(f"left out {len(seen) - len(others)} photographs in {folder}, the output")
            found += others
    if not found:
        raise DataError(f"no photograph is left to label in {', '.join(given)}; name another folder")
    if every and not videos:
        raise ConfigError("--every takes frames of videos, and none is named; leave it out")
    for image in found:
        once.setdefault(os.path.abspath(image), image)
    return list(once.values())


def summary(labels: Labels) -> dict[str, Any]:
    """Photographs, how many have no label, boxes and threshold of each class, and what was left out and why."""
    boxes, counts, left_out = Counter[int](), Counter[str](), []
    for image in labels:
        boxes.update(one.category for one in image.labels)
        counts["photographs"] += 1
        counts["without a label"] += not image.labels and image.error is None
        if image.error is not None:
            left_out.append({"image": utf8(image.image), "why": utf8(image.error)})
    rows = {
        c.name: {"boxes": boxes[number], "threshold": round(level, 4) if level <= 1 else None}
        for number, (c, level) in enumerate(zip(labels.classes, labels.thresholds, strict=True))
    }
    return {**counts, "boxes": boxes.total(), "classes": rows, "left_out": left_out}


def summary_text(found: dict[str, Any], folder: Path) -> str:
    """A summary for people."""
    width = max(map(len, found["classes"]))
    lines = [f"  {'class':<{width}}  labels  where `present` is at least"]
    for name, row in found["classes"].items():
        level = "(the precision is not reached)" if row["threshold"] is None else f"{row['threshold']:.2f}"
        lines.append(f"  {name:<{width}}  {row['boxes']:>6}  {level}")
    left_out = [f"  left out: {entry['why']}" for entry in found["left_out"][:SHOWN]]
    left_out += [f"  and {more} more"] if (more := len(found["left_out"]) - SHOWN) > 0 else []
    counts = ((found["photographs"], "photograph"), (found["boxes"], "label"))
    photographs, labels = (f"{n} {what}{'s' * (n != 1)}" for n, what in counts)
    head = (
        f"{photographs}, {labels}, {found['without a label']} without one, {len(found['left_out'])} left out; "
        f"written to {folder}"
    )
    return "\n".join([head, *lines, *left_out])


def write_sheet(labels: Labels, page: Path) -> None:
    """A page of the photographs with the boxes of their labels; those nearest to a threshold come first."""
    shown = heapq.nsmallest(MOST, answers_in(labels.answers), key=labels.doubt)
    rows = [_sheet_rows(labels, answer) for answer in shown]
    total = sum(1 for _ in answers_in(labels.answers))
    write_page(rows, page, page.parent.name, total, order="most doubtful first")


def _sheet_rows(labels: Labels, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each class, with its boxes where it is labelled, for the page of `gallery`."""
    image = labels.labelled(answer)
    if image.error is not None:
        return [{"image": image.image, "error": image.error}]
    shared = {"image": image.image, "width": image.size[0], "height": image.size[1], "peak": None}
    rows = []
    for number, present in enumerate(labels.present(answer).tolist()):
        boxes = [list(one.box) for one in image.labels if one.category == number]
        level, state = labels.thresholds[number], "labelled" if boxes else "not labelled"
        note = "never labelled" if level > 1 else f"labelled from {level:.0%} on"
        row = {"phrase": labels.classes[number].name, "state": state, "boxes": boxes, "note": note}
        rows.append(shared | row | {"present": None if math.isnan(present) else present})
    return rows
