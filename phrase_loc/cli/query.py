"""`phrase-loc query IMAGE PHRASE [PHRASE ...]`: boxes on the terminal, as JSON, or drawn on the picture.

A folder or a table of (image, phrase) pairs streams through `phrase_loc.streaming` into a file instead.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phrase_loc.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.structures import Prediction, Scene

TABLES = (".csv", ".parquet")
_MOST_WORKERS = 256


def query_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "image",
        metavar="IMAGE",
        help="a photograph, a folder of them, or a .csv or .parquet table with the columns image and phrase",
    )
    parser.add_argument("phrases", metavar="PHRASE", nargs="*", help="what to look for, such as 'a red hat'")
    parser.add_argument(
        "--model", default="default", help="'default', a model folder or a hub id (default: %(default)s)"
    )
    parser.add_argument("--method", help="attention method (default: the model's own, contrastive_mwp)")
    parser.add_argument(
        "--top-k", type=_positive, default=5, metavar="K", help="boxes per phrase (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--overlay", metavar="OUT.png", help="also draw maps and boxes over the photograph")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    parser.add_argument("--profile", action="store_true", help="print on stderr where the time went")
    many = parser.add_argument_group("many images")
    many.add_argument(
        "--phrases", dest="phrase_file", metavar="FILE", help="one phrase a line, asked of every image"
    )
    many.add_argument(
        "--output",
        metavar="OUT",
        help="answers as .jsonl or .parquet (default: predictions.jsonl); an interrupted run continues",
    )
    many.add_argument(
        "--overwrite", action="store_true", help="replace an OUT that holds something else, or these answers"
    )
    many.add_argument(
        "--batch-size", type=_positive, default=8, metavar="N", help="images at once (default: %(default)s)"
    )
    many.add_argument(
        "--workers", type=_processes, default=1, metavar="N", help="decoding processes (default: %(default)s)"
    )


def run_query(args: argparse.Namespace) -> int:
    """Answer, print, draw."""
    _check(args)
    phrases = _phrases(args)
    if os.path.isdir(args.image) or Path(args.image).suffix.lower() in TABLES or args.output:
        return _query_many(args, phrases)
    if not phrases:
        raise ConfigError(f"expected at least one phrase after {args.image}, such as 'a red hat'; got none")
    if args.overwrite:
        raise ConfigError("--overwrite is for the file of --output; leave it out")
    return _query_one(args, phrases)


def _check(args: argparse.Namespace) -> None:
    """What can be said before anything slow is imported."""
    if not args.image:
        raise ConfigError("expected an image file or a folder, got an empty name")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", args.image):
        raise ConfigError(f"{args.image} is an address; download the photograph and name its file")
    for phrase in args.phrases:
        if not phrase.strip():
            raise ConfigError("expected phrases such as 'a red hat', got an empty one; leave it out")
        if any("\ud800" <= letter <= "\udfff" for letter in phrase):  # bytes that Python could not decode
            raise ConfigError(f"expected phrases in UTF-8, got {phrase!r}; set the terminal to UTF-8")


def _phrases(args: argparse.Namespace) -> list[str]:
    """Those of the command line, parted as on the page, and those of the file, one a line."""
    from phrase_loc.image_inputs import IMAGE_ENDINGS

    for phrase in args.phrases:
        if Path(phrase).suffix.lower() in IMAGE_ENDINGS and os.path.isfile(phrase):
            raise ConfigError(
                f"{phrase} is an image file, and phrases stand behind the photograph; ask one photograph, "
                "or put them into a folder and name that"
            )
    phrases = _separated(args.phrases)
    if args.phrase_file:
        from phrase_loc.streaming import read_phrases

        phrases += read_phrases(Path(args.phrase_file))
    return phrases


def _separated(arguments: "Sequence[str]") -> list[str]:
    """The phrases of the arguments, separated as on the page; what was separated is said."""
    from phrase_loc.text.splitting import split_phrases

    phrases = []
    for argument in arguments:
        found = split_phrases(argument)
        if len(found) > 1:
            shown = ", ".join(map(repr, found[:5])) + (", ..." if len(found) > 5 else "")
            print(f"note: {len(found)} phrases are asked for: {shown}", file=sys.stderr)
        phrases += found
    return phrases


def _query_one(args: argparse.Namespace, phrases: "Sequence[str]") -> int:
    from phrase_loc.images import load_image
    from phrase_loc.profiling import lap, watching

    with watching() as watch, _overlay_place(args) as place:
        image = load_image(args.image)
        with lap("import and load"):
            from phrase_loc.localizer import PhraseLocalizer

            localizer = PhraseLocalizer.from_pretrained(args.model, device=args.device)
            if args.method:
                localizer = localizer.with_settings(method=args.method)
        scene = localizer.look(image)
        predictions = localizer.locate(scene, phrases, top_k=args.top_k)
        _print(args, image.size, predictions)
        if place is not None:  # after the answers, which a full disk does not take away
            with lap("draw"):
                _draw(localizer, image, scene, predictions, place)
            if not args.json:
                print(f"overlay written to {args.overlay}")
        if args.profile:
            print(watch.table(), file=sys.stderr)
    return 0


def _query_many(args: argparse.Namespace, phrases: "Sequence[str]") -> int:
    for option, given in (("--overlay", args.overlay), ("--json", args.json), ("--profile", args.profile)):
        if given:
            raise ConfigError(
                f"{option} is for one photograph without --output; the answers go to a file here"
            )
    from phrase_loc.answer_file import check_place
    from phrase_loc.distributed import session
    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.streaming import answer_many, questions_of

    output = _behind_link(args.output or "predictions.jsonl")
    check_place(output)
    with session(args.device) as world:
        # the first process looks: a photograph may come or go between two looks
        notes: list[str] = []
        questions = world.from_main(lambda: questions_of(Path(args.image), phrases, notes.append))
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        _refuse_input(output, [args.image, args.phrase_file, *(q.image for q in questions)])
        localizer = PhraseLocalizer.from_pretrained(args.model, device=str(world.device))
        if args.method:
            localizer = localizer.with_settings(method=args.method)
        counts = answer_many(
            localizer,
            questions,
            output,
            top_k=args.top_k,
            batch_size=args.batch_size,
            workers=args.workers,
            overwrite=args.overwrite,
            world=world,
        )
        if world.is_main:
            said = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
            print(f"{len(questions)} images: {said}; written to {output}")
    return 0


@contextmanager
def _overlay_place(args: argparse.Namespace) -> Iterator[Path | None]:
    """Where the overlay goes, held against other processes; None without one."""
    if not args.overlay:
        yield None
        return
    from phrase_loc.drawing import picture_format
    from phrase_loc.files import lock

    place = _behind_link(args.overlay)
    picture_format(place)
    _refuse_input(place, [args.image, args.phrase_file])
    with ExitStack() as held:
        if os.access(place.parent, os.W_OK):  # elsewhere it is said after the answers
            sentence = f"another process is writing {place}; wait for it, or give another --overlay"
            held.enter_context(lock(place.with_name(f".{place.name}.lock"), sentence))
        yield place


def _behind_link(path: str) -> Path:
    """The file itself: a new one is renamed into its place, and the link stays."""
    place, named = Path(os.path.realpath(path)), Path(path)
    return place if os.path.islink(path) and place.suffix == named.suffix else named


def _refuse_input(place: Path, inputs: Iterable[str | None]) -> None:
    from phrase_loc.files import same_file

    for path in inputs if os.path.exists(place) else ():
        if path and same_file(place, path):
            raise ConfigError(
                f"{place} is read by this command and would be overwritten; give another output"
            )


def _draw(
    localizer: "PhraseLocalizer",
    image: "Image",
    scene: "Scene",
    predictions: "Sequence[Prediction]",
    path: Path,
) -> None:
    import torch

    from phrase_loc.drawing import overlay, save_picture

    maps = torch.stack([p.attention for p in predictions])
    grid = (min(scene.size[0], 256), min(scene.size[1], 256))
    save_picture(overlay(image, predictions, localizer.heat(maps, grid)), path)


def to_json(image: str, size: tuple[int, int], predictions: "Sequence[Prediction]") -> dict[str, Any]:
    """The object that `--json` and the HTTP API answer with; `size` is (W, H)."""
    from phrase_loc.display import to_dict

    return {"image": image, "size": list(size), "predictions": [to_dict(p) for p in predictions]}


def _print(args: argparse.Namespace, size: tuple[int, int], predictions: "Sequence[Prediction]") -> None:
    for p in predictions:
        if not p.known:
            words = ", ".join(w.text for w in p.words[:5]) or "nothing to look for"
            print(
                f"note: no word of {p.phrase!r} is known to the model ({words}); try another word",
                file=sys.stderr,
            )
        elif p.note:
            print(f"note: {p.phrase!r}: {p.note}", file=sys.stderr)
    if args.json:
        # escapes for what the terminal lacks are JSON's own
        unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
        answer = to_json(args.image, size, predictions)
        print(json.dumps(answer, ensure_ascii=not unicode, allow_nan=False))
        return
    print(f"{args.image}  {size[0]} x {size[1]} pixels")
    for p in predictions:
        print(f"  {_line(p)}")


def _line(prediction: "Prediction") -> str:
    if not len(prediction.boxes) or prediction.peak is None:
        return f"{prediction.phrase!r}: no known word, no box"
    box = ", ".join(f"{v:.0f}" for v in prediction.boxes[0].tolist())
    x, y = prediction.peak.tolist()
    sure = "" if prediction.present is None else f"  present {prediction.present:.2f}"
    return f"{prediction.phrase!r}: box [{box}]  peak ({x:.0f}, {y:.0f}){sure}"


def _positive(text: str) -> int:
    return _count(text, least=1)


def _processes(text: str) -> int:
    return _count(text, most=_MOST_WORKERS)


def _count(text: str, least: int = 0, most: int = 10**9 - 1) -> int:
    value = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(
            f"expected a whole number of at least {least} and at most {most}, got {text[:60]!r}"
        )
    return value
