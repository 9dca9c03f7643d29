"""The command line: `phrase-loc COMMAND ...` (also `python -m phrase_loc COMMAND ...`).

A command's module is imported when the command is chosen, so `phrase-loc --help` imports nothing slow.
Exit codes: 0 done, 2 something of the user's to mend (one sentence on stderr), 130 interrupted; any other
failure is a bug of ours and keeps its traceback.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from phrase_loc import __version__
from phrase_loc.errors import PhraseLocError, nearest

#: name -> (module with add_arguments(parser) and run(args) -> int | None, one line of help)
COMMANDS = {
    "query": ("phrase_loc.commands.query", "find phrases in a photograph, or in a folder of photographs"),
    "serve": ("phrase_loc.web.command", "open the query page in a browser"),
    "train": ("phrase_loc.commands.train", "train on weakly labelled images (what train.py does)"),
    "evaluate": ("phrase_loc.commands.evaluate", "score on a dataset (what evaluate.py does)"),
    "compare": ("phrase_loc.commands.compare", "paired difference of two evaluation reports"),
    "vocab": ("phrase_loc.commands.vocab", "build a vocabulary from texts"),
    "leaks": ("phrase_loc.commands.leaks", "look for evaluation images in training shards"),
    "calibrate": (
        "phrase_loc.commands.calibrate",
        "fit the probability that a phrase is shown, save it with a model",
    ),
    "export": ("phrase_loc.commands.export", "write the model as ONNX or torch.export"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn the user's errors into one sentence and exit code 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(arguments))


def guarded(action: Callable[[], int | None]) -> int:
    """Run a door's action: PhraseLocError -> one sentence and 2; Ctrl-C -> 130; a closed pipe -> 0.

    What is printed reaches the reader within it: a pipe that was closed is no error, a full disk is one sentence.
    Characters that a terminal lacks are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        try:
            code = _ended(action)
        except SystemExit:  # of argparse, which has said why
            _flush()
            raise
        _flush()
        return code
    except OSError as error:
        if not _is_of_the_output():
            raise
        if isinstance(error, BrokenPipeError):
            return code
        _say(f"error: the output cannot be printed ({error.strerror}); free space there or print elsewhere")
        return 2


def _ended(action: Callable[[], int | None]) -> int:
    """The exit code of an action; what it refuses is said on stderr."""
    try:
        return action() or 0
    except PhraseLocError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _flush() -> None:
    if sys.stdout is not None:  # as it is without a terminal
        sys.stdout.flush()


def _is_of_the_output() -> bool:
    """Whether stdout or stderr fails; it is turned away then, so that it does not fail again at Python's end."""
    failed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            failed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return failed


def _say(sentence: str) -> None:
    with suppress(OSError):  # nobody reads it
        print(sentence, file=sys.stderr, flush=True)


def _dispatch(arguments: list[str]) -> int | None:
    top = _top_parser()
    if not arguments or arguments[0].startswith("-"):
        top.parse_args(arguments)
        top.print_help()
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        top.error(f"unknown command {name!r}{nearest(name, COMMANDS)}; choose from {', '.join(COMMANDS)}")
    module, summary = COMMANDS[name]
    command = import_module(module)
    parser = argparse.ArgumentParser(prog=f"phrase-loc {name}", description=summary)
    command.add_arguments(parser)
    return command.run(parser.parse_args(rest))


def _top_parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<10}{summary}" for name, (_, summary) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="phrase-loc",
        description="Type a phrase, get the region of the photograph it names.",
        epilog=f"commands:\n{lines}\n\n`phrase-loc COMMAND --help` says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="phrase-loc [--help] [--version] COMMAND ...",
    )
    parser.add_argument("--version", action="version", version=f"phrase-loc {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
