"""`phrase-loc query IMAGE PHRASE ...`: boxes on the terminal, as JSON, or drawn on the picture.

A folder or a table of (image, phrase) pairs streams through `phrase_loc.streaming` into a file instead.
"""

import argparse
import ctypes
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from phrase_loc.cli import COUNT, DEFAULT, PROBABILITY, note, parsed, whole_number
from phrase_loc.errors import ConfigError, DataError
from phrase_loc.files import lock, refuse_foreign, same_file
from phrase_loc.tables import is_table, listed_lines

if TYPE_CHECKING:
    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.structures import Prediction

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8  # of malloc.h
#: glibc keeps the memory of a photograph for the next: to fetch it anew costs a quarter of the time.
KEEP_MEMORY = {TRIM_THRESHOLD: 2**31 - 1, MMAP_MAX: 0}
#: It gives back what photographs took: 885 MB instead of 1,333 are left of 200 (docs/serving.md).
RETURN_MEMORY = {MMAP_THRESHOLD: 4 << 20, ARENA_MAX: 2}


def run_query(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Answer, print, draw."""
    add = parser.add_argument
    text = "photographs, a folder of them, or a table (.csv, .parquet, ...) with the columns image and phrase"
    add("image", metavar="IMAGE ...", help=text)
    add("phrases", metavar="PHRASE", nargs="*", help="what to look for, such as 'a red hat'")
    model_arguments(parser)
    add("--method", help="attention method (default: the model's own, contrastive_mwp)")
    text = "boxes per phrase (default: 5, of which text shows the first)"
    add("--top-k", type=COUNT, metavar="K", help=text)
    text = "no box for a phrase that is in the photograph with a probability below T"
    add("--threshold", type=PROBABILITY, metavar="T", help=text)
    add("--json", action="store_true", help="print one JSON object instead of text")
    add("--masks", action="store_true", help="outlines of the things as well, in JSON and in overlays")
    text = "also draw maps and boxes over the photograph, or over each of many into the folder OUT"
    add("--overlay", metavar="OUT.png|OUT", help=text)
    add("--profile", action="store_true", help="print on stderr where the time went")
    group = parser.add_argument_group("many images")
    add = group.add_argument
    add("--phrases", dest="phrase_file", metavar="FILE", help="one phrase a line, asked of every image")
    text = "answers as .jsonl, .csv or .parquet (default: predictions.jsonl); an interrupted run continues"
    add("--output", metavar="OUT", help=text)
    add("--gallery", metavar="OUT.html", help="also write a page that shows the photographs and their boxes")
    add("--overwrite", action="store_true", help="replace an OUT that holds something else, or these answers")
    batch_arguments(group)
    args = parsed(parser, given)
    _check(args)
    images = _images(args)
    phrases = _phrases(args)
    many = len(images) > 1 or os.path.isdir(args.image) or args.output or args.gallery
    if many or is_table(args.image):
        _query_many(args, images, phrases)
    elif not phrases:
        raise ConfigError(f"expected at least one phrase after {args.image}, such as 'a red hat'; got none")
    elif args.overwrite:
        raise ConfigError("--overwrite is for the file of --output; leave it out")
    else:
        _query_one(args, phrases)


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """What `localizer_of` loads, and where it computes."""
    add = parser.add_argument
    add("--model", default="default", help=f"'default', a model or image-text folder, or a hub id {DEFAULT}")
    add("--device", default="auto", help=f"auto, cpu, cuda, cuda:N or mps {DEFAULT}")
    text = "lines `word: known word`: how to read words that the model does not know"
    add("--synonyms", metavar="FILE", help=text)


def batch_arguments(parser: argparse._ActionsContainer) -> None:
    """How `streaming.answer_many` reads photographs."""
    add = parser.add_argument
    add("--batch-size", type=COUNT, default=8, metavar="N", help=f"images at once {DEFAULT}")
    add("--workers", type=whole_number(0, 256), default=1, metavar="N", help=f"decoding processes {DEFAULT}")


def _check(args: argparse.Namespace) -> None:
    """What can be said before anything slow is imported."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", args.image):
        raise ConfigError(f"{args.image} is an address; download the photograph and name its file")
    for phrase in args.phrases:
        if not phrase.strip():
            raise ConfigError("expected phrases such as 'a red hat', got an empty one; leave it out")
        if any("\ud800" <= letter <= "\udfff" for letter in phrase):  # bytes that Python could not decode
            raise ConfigError(f"expected phrases in UTF-8, got {phrase!r}; set the terminal to UTF-8")


def _images(args: argparse.Namespace) -> list[str]:
    """The leading arguments that are image files; what is left of `args.phrases` are phrases."""
    from phrase_loc.images import IMAGE_ENDINGS

    named = [Path(phrase).suffix.lower() in IMAGE_ENDINGS for phrase in args.phrases]
    count = [*named, False].index(False)
    for phrase, is_image in zip(args.phrases, named, strict=True):
        if is_image and not os.path.exists(phrase):
            raise DataError(f"image file {phrase} does not exist; check the path")
    if any(named[count:]):
        late = args.phrases[named.index(True, count)]
        raise ConfigError(f"{late} is an image file behind a phrase; name all photographs before the phrases")
    images, args.phrases = [args.image, *args.phrases[:count]], args.phrases[count:]
    return images


def _phrases(args: argparse.Namespace) -> list[str]:
    """Those of the command line, separated as on the page (which is said), and those of the file."""
    from phrase_loc.text.splitting import split_phrases

    phrases = []
    for argument in args.phrases:
        found = split_phrases(argument)
        if os.path.isdir(argument):
            note(f"{argument!r} is asked as a phrase, and is a folder too; of folders one is asked at a time")
        if len(found) > 1:
            shown = ", ".join(map(repr, found[:5])) + (", ..." if len(found) > 5 else "")
            note(f"{len(found)} phrases are asked for: {shown}")
        phrases += found
    return phrases + (read_phrases(Path(args.phrase_file)) if args.phrase_file else [])


def read_phrases(path: Path) -> list[str]:
    """One phrase a line, as it stands; empty lines are passed over."""
    what = "the file of phrases"
    if not (phrases := listed_lines(path, what)):
        raise DataError(f"{what} {path} is empty; write one phrase a line")
    return phrases


def _query_one(args: argparse.Namespace, phrases: Sequence[str]) -> None:
    from phrase_loc.images import load_image
    from phrase_loc.profiling import lap, watching

    with watching() as watch, _overlay_place(args) as place:
        image = load_image(args.image)
        with lap("import and load"):
            localizer = _localizer(args, args.device)
        scene = localizer.look(image)
        predictions = localizer.locate(scene, phrases, top_k=args.top_k or 5, threshold=args.threshold)
        _print(args, scene.size, predictions)
        if place is not None:  # after the answers, which a full disk does not take away
            with lap("draw"):
                from phrase_loc.gallery import write_overlay

                write_overlay(localizer, image, predictions, place, args.masks)
            if not args.json:
                print(f"overlay written to {args.overlay}")
        if args.profile:
            print(watch.table(), file=sys.stderr)


def _query_many(args: argparse.Namespace, images: Sequence[str], phrases: Sequence[str]) -> None:
    if option := next((name for name in ("json", "profile") if getattr(args, name)), None):
        where = "one photograph without --output and --gallery"
        raise ConfigError(f"--{option} is for {where}; the answers go to a file here")
    from phrase_loc.distributed import session
    from phrase_loc.gallery import overlay_places, write_gallery, write_overlays
    from phrase_loc.streaming import answer_many, check_place, questions_of

    output = _behind_link(args.output or "predictions.jsonl")
    check_place(output)
    gallery = _behind_link(args.gallery) if args.gallery else None
    if gallery:
        check_place(gallery, [".html"])
        refuse_foreign(gallery, "<title>phrase_loc: ", "page of answers", "give another --gallery")
    set_malloc(KEEP_MEMORY)
    with session(args.device) as world:
        # the first process looks: a photograph may come or go between two looks
        notes: list[str] = []
        questions = world.from_main(
            lambda: list({q: 0 for i in images for q in questions_of(Path(i), phrases, notes.append)})
        )
        for text in notes:
            note(text)
        asked = [q.image for q in questions]
        overlays = overlay_places(Path(args.overlay), asked, images) if args.overlay else {}
        for place in filter(None, (output, gallery)):
            _refuse_input(place, [args.phrase_file, *images, *asked])
        localizer = _localizer(args, str(world.device))
        if world.is_main:
            _tell_notes(localizer, list({phrase: 0 for q in questions for phrase in q.phrases}))
        names = ("batch_size", "workers", "overwrite", "threshold", "masks")
        options = {name: getattr(args, name) for name in names}
        counts = answer_many(localizer, questions, output, top_k=args.top_k or 5, world=world, **options)
        if world.is_main:
            said = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
            print(f"{len(questions)} images: {said}; written to {output}")
        if overlays:
            mine = questions[world.rank :: world.size]
            write_overlays(localizer, mine, overlays, args.threshold, args.masks)
        if world.is_main:
            if overlays:
                print(f"overlays written to {args.overlay}")
            if gallery:
                print(f"gallery of {write_gallery(output, gallery, note)} photographs written to {gallery}")


def _tell_notes(localizer: "PhraseLocalizer", phrases: Sequence[str], most: int = 20) -> None:
    """What of the phrases is not asked as it is written, which is the same for all photographs."""
    notes = [(p, e.note) for p, e in zip(phrases, localizer.encode(phrases), strict=True) if e.note]
    for phrase, said in notes[:most]:
        note(f"{phrase!r}: {said}")
    if len(notes) > most:
        note(f"{len(notes) - most} more phrases have a note, which stands in the answers")


def localizer_of(args: argparse.Namespace, device: str) -> "PhraseLocalizer":
    """The localizer of --model, with the --synonyms."""
    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.text.phrases import read_synonyms

    synonyms = read_synonyms(Path(args.synonyms)) if args.synonyms else None
    localizer = PhraseLocalizer.from_pretrained(args.model, device=device)
    return localizer.with_synonyms(synonyms) if synonyms else localizer


def set_malloc(options: dict[int, int]) -> None:
    """Options of glibc's mallopt; nothing with another C library."""
    with suppress(AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


def _localizer(args: argparse.Namespace, device: str) -> "PhraseLocalizer":
    localizer = localizer_of(args, device)
    if args.threshold is not None and not localizer.model.config.calibration:
        raise ConfigError(
            "--threshold needs a model that says probabilities, and this one is not calibrated; "
            "run `phrase-loc calibrate` on it, or leave --threshold out"
        )
    return localizer.with_settings(method=args.method) if args.method else localizer


@contextmanager
def _overlay_place(args: argparse.Namespace) -> Iterator[Path | None]:
    """Where the overlay goes, held against other processes; None without one."""
    if not args.overlay:
        yield None
        return
    from phrase_loc.drawing import OVERLAY, picture_format

    place = _behind_link(args.overlay)
    picture_format(place)
    _refuse_input(place, [args.image, args.phrase_file])
    refuse_foreign(place, *OVERLAY)
    sentence = f"another process is writing {place}; wait for it, or give another --overlay"
    writable = os.access(place.parent, os.W_OK)  # where it is not, that is said after the answers
    with lock(place.with_name(f".{place.name}.lock"), sentence) if writable else nullcontext():
        yield place


def _behind_link(path: str) -> Path:
    """The file itself: a new one is renamed into its place, and the link stays."""
    place, named = Path(os.path.realpath(path)), Path(path)
    return place if os.path.islink(path) and place.suffix == named.suffix else named


def _refuse_input(file: Path, inputs: Iterable[str | None]) -> None:
    for path in inputs if os.path.exists(file) else ():
        if path and same_file(file, path):
            raise ConfigError(f"{file} is read by this command and would be overwritten; give another output")


def _print(args: argparse.Namespace, size: tuple[int, int], predictions: "Sequence[Prediction]") -> None:
    from phrase_loc.display import answer_dict
    from phrase_loc.structures import corners

    for p in predictions:
        if p.note:
            note(f"{p.phrase!r}: {p.note}")
    if args.json:
        # escapes for what the terminal lacks are JSON's own
        unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
        answer = answer_dict(args.image, size, predictions, args.masks)
        print(json.dumps(answer, ensure_ascii=not unicode, allow_nan=False))
        return
    print(f"{args.image}  {size[1]} x {size[0]} pixels")
    for p in predictions:
        print(f"  {p.phrase!r}: {_found(p)}")
        for box, score in list(zip(p.boxes.tolist(), p.scores.tolist(), strict=True))[1 : args.top_k or 1]:
            print(f"    box {corners(box)}  score {score:.3f}")


def _found(prediction: "Prediction") -> str:
    present = prediction.present
    sure = prediction.verdict if present is None else f"present {present:.2f}  {prediction.state}"
    if not len(prediction.boxes) or prediction.peak is None:
        return f"{prediction.place}  {sure}".rstrip() if prediction.known else prediction.place
    x, y = prediction.peak.tolist()
    return f"box {prediction.place}  peak ({x:.0f}, {y:.0f})  {sure}".rstrip()
