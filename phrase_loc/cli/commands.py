"""The commands around the query: train, evaluate, compare, calibrate, leaks, export, serve.

Each says its options, reads them (settings may stand on both sides of an option), imports what is slow, and acts.
"""

import argparse
import json
import os
import socket
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phrase_loc.cli import COUNT, DEFAULT, PROBABILITY, SEED, host_name, note, parsed, query, whole_number
from phrase_loc.config import fields_of, load_config, value_of
from phrase_loc.errors import ConfigError, extra
from phrase_loc.files import lock, make_folder, read_text, refuse_foreign, write_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from phrase_loc.localizer import PhraseLocalizer

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
TOKEN, KEY = "PHRASE_LOC_TOKEN", "LABEL_STUDIO_API_KEY"  # the environment's own, and label-studio-sdk's
_SETTINGS = "CONFIG.yaml | key=value"


def run_train(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Check the config, then import torch, join the other processes and train; prints the model's folder."""
    parser.add_argument("settings", nargs="*", metavar=_SETTINGS, help="see configs/train_web.yaml")
    args = parsed(parser, given)
    from phrase_loc.training.config import TrainConfig

    config = load_config(TrainConfig, args.settings)
    from phrase_loc.distributed import session
    from phrase_loc.training.run import log_to_stderr, train

    with session(config.device) as world:
        log_to_stderr(world)
        folder = train(config, world)
        if world.is_main:
            print(folder)


def run_evaluate(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Check the config, join the other processes, evaluate, write the report, print its table."""
    parser.add_argument("settings", nargs="*", metavar=_SETTINGS, help="see configs/flickr30k.yaml")
    text = "reproduce the known bugs of the published scripts (docs/evaluation.md)"
    parser.add_argument("--faithful", action="store_true", help=text)
    parser.add_argument("--profile", action="store_true", help="print on stderr where the time went")
    args = parsed(parser, given)
    from phrase_loc.profiling import watching

    with watching() as watch:
        from phrase_loc.evaluation.protocols import EvaluateConfig

        faithful = ["faithful=true"] if args.faithful else []
        config = load_config(EvaluateConfig, [*args.settings, *faithful])
        from phrase_loc.distributed import session
        from phrase_loc.evaluation.report import markdown, reserved, write
        from phrase_loc.evaluation.run import evaluate

        with session(config.device) as world, reserved(config) if world.is_main else nullcontext():
            evaluation = evaluate(config, world)
            if world.is_main:
                content, files = write(evaluation)
                print(markdown(content))
                print("written:", *files, file=sys.stderr)
            world.barrier()
        if args.profile:
            print(watch.table(), file=sys.stderr)


def run_label(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Check, answer, write, print the summary."""
    add = parser.add_argument
    add("photos", metavar="PHOTOS", nargs="+", help="a folder of photographs, photographs, or a video")
    text = "classes: a line `name: phrase, phrase` for each, or .yaml"
    add("--phrases", required=True, type=Path, metavar="FILE", help=text)
    text = "folder for answers, labels, summary and contact sheet"
    add("--output", required=True, type=Path, metavar="DIR", help=text)
    text = "coco, yolo, labelstudio, cvat, fiftyone, voc, jsonl, parquet, or several with commas"
    add("--format", action="append", metavar="NAME", help=f"{text} (default: jsonl)")
    choice = parser.add_mutually_exclusive_group().add_argument
    text = "label a class where it can be expected in a share P of the photographs that get it"
    choice("--precision", type=PROBABILITY, metavar="P", help=text)
    text = "label where `present` is at least T (default: the model's own for 'found')"
    choice("--threshold", type=PROBABILITY, metavar="T", help=text)
    text = "of the photographs that show a class, as you expect, for --precision"
    add("--share", type=PROBABILITY, default=0.05, metavar="S", help=f"share {text} {DEFAULT}")
    text = f"boxes of a class in a photograph, at most {DEFAULT}"
    add("--instances", type=COUNT, default=1, metavar="K", help=text)
    add("--masks", action="store_true", help="outlines as well, in the formats that have them")
    add("--every", type=COUNT, metavar="N", help="of a video each N-th frame (default: one a second)")
    text = "before a photograph's name in Label Studio's tasks (default: its local files)"
    add("--url", metavar="PREFIX", help=text)
    add("--overwrite", action="store_true", help="replace answers in DIR to other photographs or phrases")
    query.model_arguments(parser)
    query.batch_arguments(parser)
    args = parsed(parser, given)
    from phrase_loc.distributed import session
    from phrase_loc.label_formats import formats_of
    from phrase_loc.labelling import Rules, check_classes, label, photographs, read_classes, summary_text

    formats = formats_of(",".join(args.format or ["jsonl"]))
    classes = read_classes(args.phrases)
    rules = Rules(args.precision, args.threshold, args.share, args.instances)
    make_folder(args.output)
    query.set_malloc(query.KEEP_MEMORY)
    with session(args.device) as world:
        localizer = query.localizer_of(args, str(world.device))
        notes = check_classes(localizer, classes, rules)
        images = world.from_main(
            lambda: photographs(args.photos, classes, args.output, args.every, notes.append, args.overwrite)
        )
        for text in notes if world.is_main else ():
            note(text)
        options = {name: getattr(args, name) for name in ("masks", "batch_size", "workers", "overwrite")}
        found = label(localizer, images, classes, args.output, formats, rules, args.url, world, **options)
        if found:
            print(summary_text(found, args.output))


def run_predictions_template(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Write the list of what is asked, or the answers of a method."""
    parser.add_argument("out", type=Path, metavar="OUT", help="file to be written, .csv, .jsonl or .parquet")
    parser.add_argument("settings", nargs="*", metavar=_SETTINGS, help="as of evaluate")
    text = "write the answers of this method, as the example of a file that is filled in"
    parser.add_argument("--fill", metavar="METHOD", help=text)
    args = parsed(parser, given)
    from phrase_loc.evaluation.protocols import EvaluateConfig

    if args.out.suffix not in (".csv", ".jsonl", ".parquet"):
        raise ConfigError(f"OUT ends in .csv, .jsonl or .parquet, got {args.out}")
    config = load_config(EvaluateConfig, [*args.settings, *([f"method={args.fill}"] if args.fill else [])])
    from phrase_loc.evaluation.external import write_template
    from phrase_loc.evaluation.run import template

    count = write_template(args.out, template(config, bool(args.fill)))
    print(f"{args.out}: {count:,} rows; read it back with evaluate method=predictions:{args.out}")


def run_compare(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Print the paired differences."""
    parser.add_argument("a", type=Path, help="report.json")
    parser.add_argument("b", type=Path, help="report.json on the same images; differences are a - b")
    parser.add_argument("--method", metavar="A[,B]", help="the method of each report, where it holds several")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parsed(parser, given)
    from phrase_loc.evaluation.statistics import compare, table

    names = (args.method or "").split(",")
    if len(names) > 2:
        raise ConfigError(f"--method takes one name, or two for the two reports, got {args.method!r}")
    found = compare(args.a, args.b, names[0] or None, names[-1] or None)
    print(json.dumps(found, indent=1) if args.json else table(found))


def run_calibrate(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Fit the probability that a phrase is shown, save it with the model, print the figures."""
    add = parser.add_argument
    _changed_arguments(parser, "gamma=0.45")
    add("--root", type=Path, required=True, help="tree of Flickr30k Entities")
    add("--split", default="val", help=f"split to fit on, never test {DEFAULT}")
    add("--seed", type=SEED, default=0, help=f"of the negative pairs {DEFAULT}")
    args = parsed(parser, given)
    from phrase_loc.datasets.flickr30k import Flickr30kEntities
    from phrase_loc.evaluation.calibration import calibrate

    with _to_change(args, "calibrate", "cpu") as localizer:
        fit = calibrate(localizer, Flickr30kEntities(args.root, args.split), args.seed)
        localizer.model.config = replace(localizer.model.config, calibration=fit)
        localizer.save_pretrained(args.output or args.model)
    print(json.dumps(fit, indent=1))


def run_learn_ranker(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Teach a box ranker, save it with the model, print from how much it learned."""
    add = parser.add_argument
    _changed_arguments(parser, "ranker=0.2, instead of those of the shipped model's ranker")
    _captioned_arguments(parser, 4000)
    add("--seed", type=SEED, default=0, help=f"of which photographs, and of the weights {DEFAULT}")
    args = parsed(parser, given)
    from phrase_loc.pairs.sources import open_source
    from phrase_loc.training.box_ranker import WITH, teach

    with _to_change(args, "learn-ranker", "auto", **WITH) as localizer:
        taught, said = teach(localizer, open_source(args.shards), args.photographs, args.seed)
        taught.save_pretrained(args.output or args.model)
    print(json.dumps(said, indent=1))


def run_learn_classes(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Give words the units of the trunk's classes, save them with the model, print how many."""
    _changed_arguments(parser, "gamma=0.45")
    _captioned_arguments(parser, 2000)
    parser.add_argument("--seed", type=SEED, default=0, help=f"of which photographs {DEFAULT}")
    args = parsed(parser, given)
    from phrase_loc.pairs.sources import open_source
    from phrase_loc.training.class_words import learn_classes

    with _to_change(args, "learn-classes", "auto") as localizer:
        taught, said = learn_classes(localizer, open_source(args.shards), args.photographs, args.seed)
        folder = taught.save_pretrained(args.output or args.model)
    print(json.dumps(said, indent=1))
    note(f"answers have no `present` until `phrase-loc calibrate {folder}` was run: these are other words")


def _captioned_arguments(parser: argparse.ArgumentParser, photographs: int) -> None:
    """Of a command that learns from so many photographs with captions."""
    text = "photographs with captions, as `data.shards` of training"
    parser.add_argument("--shards", nargs="+", required=True, metavar="SHARDS", help=text)
    text = f"how many of them are looked at {DEFAULT}"
    parser.add_argument("--photographs", type=COUNT, default=photographs, metavar="N", help=text)


def _changed_arguments(parser: argparse.ArgumentParser, example: str) -> None:
    """Of a command that saves more with a model."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder, changed in place, or with --output any model")
    add("--output", metavar="FOLDER", type=Path, help="save the changed model there instead")
    text = f"inference setting to store, such as {example}"
    add("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help=text)


@contextmanager
def _to_change(
    args: argparse.Namespace, command: str, device: str, **settings: Any
) -> "Iterator[PhraseLocalizer]":
    """The model with these settings and those of --set; its folder is locked, as of two changes one would be lost.

    Raises a ConfigError where it can be saved at no place.
    """
    from phrase_loc.localizer import Inference, PhraseLocalizer
    from phrase_loc.models.store import make_model_folder

    if not args.output and not Path(args.model).is_dir():
        raise ConfigError(
            f"{command} changes a model folder in place, and {args.model} is none; name an --output folder"
        )
    if wrong := [pair for pair in args.changes if "=" not in pair]:
        raise ConfigError(f"--set takes KEY=VALUE, got {wrong[0]!r}")
    for key, value in (pair.split("=", 1) for pair in args.changes):
        settings[key] = value_of(value, key, fields_of(Inference).get(key, Any))
    folder = args.output or Path(args.model)
    make_folder(folder)
    sentence = f"another process is changing the model in {folder}; wait for it, or give another --output"
    with lock(folder / ".change.lock", sentence):
        localizer = PhraseLocalizer.from_pretrained(args.model, device).with_settings(**settings)
        if args.output:  # which hours of work must not find to be impossible
            make_model_folder(args.output, localizer.model)
        yield localizer


def run_leaks(parser: argparse.ArgumentParser, given: list[str]) -> int:
    """Print the summary; exit 1 when there is a leak, so that a script can stop on it."""
    add = parser.add_argument
    text = "training shards (.tar; {000..009} and * are expanded) or folders of images"
    add("--train", nargs="+", required=True, metavar="SHARDS", help=text)
    add("--eval", required=True, dest="evaluation", metavar="ROOT", help="folder with the evaluation images")
    text = f"bits of 64 in which perceptual hashes may differ, 0 to 7 {DEFAULT}"
    add("--distance", type=whole_number(0, 7), default=6, metavar="BITS", help=text)
    add("--output", metavar="OUT.json", help="write every pair found as JSON")
    args = parsed(parser, given)
    from phrase_loc.evaluation.leaks import audit
    from phrase_loc.streaming import check_place

    if args.output:  # which a long search must not find to be impossible
        check_place(Path(args.output), [Path(args.output).suffix])  # of any ending
        refuse_foreign(args.output, r'\A{\n "train": {', "list of leaks", "choose another --output")
    found = audit(args.train, args.evaluation, args.distance)
    if args.output:
        write_text(args.output, json.dumps(found, indent=1) + "\n", "choose another --output")
    print(found["summary"])
    return 1 if found["shared_ids"] or found["near_duplicates"] else 0


def run_export(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Write the folder, print its size."""
    parser.add_argument("out", type=Path, help="folder to be made")
    parser.add_argument("--model", default="default", help="'default', a folder or a hub id")
    text = f"onnx (needs {extra('onnx')}) or torch (torch.export)"
    parser.add_argument("--format", default="onnx", help=text)
    args = parsed(parser, given)
    from phrase_loc.export import GRAPHS, export

    graph = export(args.model, args.out, args.format) / GRAPHS[args.format]
    print(f"{graph} ({graph.stat().st_size / 1e6:.1f} MB) with its words; see phrase_loc/runtime.py")


def run_serve(parser: argparse.ArgumentParser, given: list[str]) -> None:
    """Listen, load the model, serve until Ctrl-C."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)")
    port = whole_number(0, 65535, "a port number from 0 to 65535")
    add("--port", type=port, default=8000, help=f"0 takes any that is free {DEFAULT}")
    query.model_arguments(parser)
    text = "a further name by which the server is called, as of a proxy before it; may be repeated"
    add("--allowed-host", type=host_name, action="append", default=[], metavar="NAME", help=text)
    text = f"Label Studio's address, whose photographs may be fetched, with the access token in {KEY}"
    add("--label-studio-url", metavar="URL", default=os.environ.get("LABEL_STUDIO_URL", ""), help=text)
    text = "a further host from which its photographs may be fetched; may be repeated"
    add("--image-host", type=host_name, action="append", default=[], metavar="NAME", help=text)
    add = parser.add_mutually_exclusive_group().add_argument
    text = f"holds the token that is asked of everybody who uses the API (default: the variable {TOKEN}, or none)"
    add("--token-file", metavar="FILE", help=text)
    add("--token", help="the same; every user of this machine can read it in its process list")
    args = parsed(parser, given)
    token = token_of(args.token, args.token_file)
    with listen(args.host, args.port) as bound:  # before the model is loaded: a taken port is said at once
        from phrase_loc.web.answers import Limits
        from phrase_loc.web.app import create_app
        from phrase_loc.web.label_studio import Photographs
        from phrase_loc.web.server import Server

        fetched = Photographs(args.label_studio_url, os.environ.get(KEY, ""), frozenset(args.image_host))
        query.set_malloc(query.RETURN_MEMORY)
        localizer = query.localizer_of(args, args.device)
        app = create_app(localizer, Limits(), token, *names_of(args.host, args.allowed_host, token), fetched)
        server = Server(app, Limits(), lambda port: _announce(args.host, port, token))
        server.run(sockets=[bound])


def token_of(given: str | None, file: str | None) -> str | None:
    """The token of the option, the file or the environment; a ConfigError for one that no header can carry."""
    token, where = os.environ.get(TOKEN), f"in {TOKEN}"
    if given is not None:
        token, where = given, "in --token"
        note(f"--token can be read in the process list; --token-file or {TOKEN} hide it")
    if file is not None:
        token, where = read_text(file, "the token file").strip("\r\n"), f"in {file}"
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise ConfigError(
            f"expected a token of printable ASCII characters {where}, as HTTP headers carry; choose another"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; a ConfigError when the port is taken, or the address is empty or none of this machine's."""
    if not host:  # the system would take an unset variable of a shell for "every address"
        raise ConfigError("expected an address in --host, got an empty one; 0.0.0.0 listens on all")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # :: hears IPv4 as well
    try:
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)
    except OSError as error:  # includes names that do not resolve
        why = str(error.strerror or error).partition(" (while")[0].lower()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({why}); choose another --port or --host, --port 0 takes a free one"
        ) from None


def names_of(host: str, allowed: list[str], token: str | None) -> tuple[set[str] | None, bool]:
    """The names by which a server may be called (None for any), and whether any numeric address is one.

    A page elsewhere could otherwise give it a name of its own and read the answers as if they were its own; from a
    server with a token it reads nothing, and one for many machines may have names that it does not know.
    """
    local = host in LOOPBACK or host.startswith("127.")
    if not local and token is not None and not allowed:
        return None, True
    machine = socket.gethostname().lower()
    own = {f"[{host}]" if ":" in host else host} if local else {machine, f"{machine}.local"}
    return {"localhost", "127.0.0.1", "[::1]", *own, *(name.lower() for name in allowed)}, not local


def _announce(host: str, port: int, token: str | None) -> None:
    # all addresses: name one that can be opened
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"phrase_loc is ready: http://{shown}:{port}/  (stop with Ctrl-C)", flush=True)
    if host not in LOOPBACK and token is None:
        print("note: other machines can reach this address; --token-file keeps strangers out", flush=True)
