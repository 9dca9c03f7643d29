"""The command line: `phrase-loc COMMAND ...`.

A command's module is imported when the command is chosen, so `phrase-loc --help` imports nothing slow.
Exit codes: 0 done, 2 something of the user's to mend (one sentence on stderr), 130 interrupted; any other
failure is a bug of ours and keeps its traceback.
"""

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from typing import Any, TextIO

from phrase_loc import __version__
from phrase_loc.errors import ConfigError, PhraseLocError, nearest
from phrase_loc.files import made_folders, remove_empty_folders

_REST = "phrase_loc.cli.commands"
#: name -> (module with run_NAME(parser, arguments) -> exit code or None, one line of help)
COMMANDS = {
    "query": ("phrase_loc.cli.query", "find phrases in a photograph, or in a folder of photographs"),
    "label": (_REST, "label photographs for COCO, YOLO, Label Studio, CVAT, FiftyOne, VOC"),
    "serve": (_REST, "open the query page in a browser"),
    "train": (_REST, "train on weakly labelled images (what train.py does)"),
    "evaluate": (_REST, "score on a dataset (what evaluate.py does)"),
    "predictions-template": (_REST, "write what a dataset asks, for predictions of your own"),
    "compare": (_REST, "paired difference of two evaluation reports"),
    "vocab": ("phrase_loc.cli.vocab", "build a vocabulary from texts"),
    "leaks": (_REST, "look for evaluation images in training shards"),
    "calibrate": (_REST, "fit the probability that a phrase is shown, save it with a model"),
    "learn-ranker": (_REST, "teach a model from captions which boxes hold whole things"),
    "learn-classes": (_REST, "give a model's words the classes that its trunk was pretrained on"),
    "export": (_REST, "write the model as ONNX or torch.export"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn the user's errors into one sentence and exit code 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(given))


def guarded(action: Callable[[], int | None]) -> int:
    """Run an action: PhraseLocError, OSError of a file -> one sentence and 2; Ctrl-C -> 130; a closed pipe -> 0.

    What is printed reaches the reader within it: a pipe that was closed is no error, a full disk is one sentence.
    """
    out, said, code = _Output(sys.stdout, needed=True), _Output(sys.stderr, needed=False), 0
    made_folders.clear()  # an earlier command of this process, which went well, keeps its folders
    with redirect_stdout(out), redirect_stderr(said):  # type: ignore[type-var]
        try:
            try:
                code = action() or 0
            except PhraseLocError as error:
                code = 2
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                code = 130
                print("interrupted", file=sys.stderr)
            # a name that is too long, a folder that may not be looked into: any reader meets them
            except OSError as error:
                if error is out.failure or error.filename is None:
                    raise
                code, path = 2, error.filename
                path = os.fsdecode(path) if isinstance(path, bytes) else path
                told = PhraseLocError(f"{path} cannot be read or written ({error.strerror}); check the path")
                print(f"error: {told}", file=sys.stderr)
            if code:
                remove_empty_folders()
            out.flush()
        except SystemExit:  # of argparse, which has said why, but passes over what it cannot print
            with suppress(OSError):
                out.flush()
            if out.failure is None:
                raise
        except OSError as error:
            if error is not out.failure:
                raise
        if out.failure is not None and not isinstance(out.failure, BrokenPipeError):
            code, reason = 2, out.failure.strerror
            print(f"error: the output cannot be printed ({reason}); print to another place", file=said)
        out.end()
        said.end()
    return code


class _Output:
    """A stream that remembers why it failed (raised where it is `needed`), and escapes characters that it lacks."""

    def __init__(self, stream: TextIO | None, needed: bool):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        self.stream, self.needed = stream or io.StringIO(), needed
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._try(self.stream.write, text) or 0

    def flush(self) -> None:
        self._try(self.stream.flush)

    def end(self) -> None:
        """Turns a stream that failed away, so that it does not fail again at Python's end."""
        if self.failure is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def _try(self, action: Callable[..., Any], *arguments: str) -> Any:
        try:
            return action(*arguments)
        except OSError as error:
            self.failure = error
            if self.needed:
                raise


def _dispatch(arguments: list[str]) -> int | None:
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items())
    top = argparse.ArgumentParser(
        prog="phrase-loc",
        description="Type a phrase, get the region of the photograph it names.",
        epilog=f"commands:\n{lines}\n\n`phrase-loc COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="phrase-loc [--help] [--version] COMMAND ...",
    )
    top.add_argument("--version", action="version", version=f"phrase-loc {__version__}")
    if not arguments or arguments[0].startswith("-"):
        top.parse_args(arguments)
        top.print_help()
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        top.error(f"unknown command {name!r}{nearest(name, COMMANDS)}; choose from {', '.join(COMMANDS)}")
    for before, argument in zip([name, *rest], rest):
        if argument == "" or re.fullmatch("--[a-z-]+=", argument):
            option = argument or (before if before.startswith("--") else "an argument")
            what = f"{option.rstrip('=')} is empty, perhaps a variable of the shell that is not set"
            raise ConfigError(f"{what}; give it a value or leave it out")
    module, summary = COMMANDS[name]
    command = import_module(module)
    parser = argparse.ArgumentParser(prog=f"phrase-loc {name}", description=summary)
    return getattr(command, f"run_{name.replace('-', '_')}")(parser, rest)


def parsed(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
    """The arguments, options before, between or behind the others; behind `--` all are names, such as -x.jpg."""
    # between the others argparse forgets what `--` said
    return parser.parse_args(given) if "--" in given else parser.parse_intermixed_args(given)


def whole_number(least: int, most: int, expected: str = "") -> Callable[[str], int]:
    """A type for argparse: numbers without signs, exponents and underscores."""
    expected = expected or f"a whole number of at least {least} and at most {most}"

    def read(text: str) -> int:
        value = int(text) if re.fullmatch("[0-9]{1,9}", text) else -1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:60]!r}")
        return value

    return read


def number(least: float, most: float, expected: str) -> Callable[[str], float]:
    """A type for argparse."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if least <= float(text) <= most:
                return float(text)
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text[:60]!r}")

    return read


def host_name(text: str) -> str:
    """A type for argparse."""
    if "/" in text:
        raise argparse.ArgumentTypeError(
            f"expected a host's name without http:// and path, got {text[:60]!r}"
        )
    return text


def note(text: str) -> None:
    """A line on stderr that is no answer."""
    print(f"note: {text}", file=sys.stderr)


COUNT, SEED = whole_number(1, 10**9 - 1), whole_number(0, 10**9 - 1)
PROBABILITY = number(0, 1, "a probability from 0 to 1")
DEFAULT = "(default: %(default)s)"
