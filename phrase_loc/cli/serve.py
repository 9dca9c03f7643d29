"""`phrase-loc serve`: the query page and its API on this machine."""

import argparse
import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from phrase_loc.errors import ConfigError
from phrase_loc.files import read_text

if TYPE_CHECKING:
    from phrase_loc.web.server import Server

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
TOKEN = "PHRASE_LOC_TOKEN"  # the environment's own


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, what to load, who may ask."""
    add, default = parser.add_argument, "(default: %(default)s)"
    text = "address to listen on (default: %(default)s, this machine alone)"
    add("--host", default="127.0.0.1", help=text)
    add("--port", type=_port, default=8000, help=f"0 takes any that is free {default}")
    add("--model", default="default", help=f"'default', a model folder or a hub id {default}")
    add("--device", default="auto", help=f"auto, cpu, cuda, cuda:N or mps {default}")
    text = "a further name by which the server is called, as of a proxy before it; may be repeated"
    add("--allowed-host", action="append", default=[], metavar="NAME", help=text)
    add = parser.add_mutually_exclusive_group().add_argument
    text = f"holds the token that is asked of everybody who uses the API (default: the variable {TOKEN}, or none)"
    add("--token-file", metavar="FILE", help=text)
    add("--token", help="the same; every user of this machine can read it in its process list")


def run_serve(args: argparse.Namespace) -> int:
    """Listen, load the model, serve until Ctrl-C."""
    token = token_of(args)
    with listen(args.host, args.port) as bound:  # before the model is loaded: a taken port is said at once
        server_of(args, token).run(sockets=[bound])
    return 0


def token_of(args: argparse.Namespace) -> str | None:
    """The token of the file, the option or the environment; None for none.

    Raises:
        ConfigError: it is empty, or no header can carry it.
        DataError: the file cannot be read.
    """
    token, where = os.environ.get(TOKEN), f"in {TOKEN}"
    if args.token is not None:
        token, where = args.token, "in --token"
        said = f"note: --token can be read in the process list; --token-file or {TOKEN} hide it"
        print(said, file=sys.stderr)
    if args.token_file is not None:
        token, where = read_text(args.token_file, "the token file").strip("\r\n"), f"in {args.token_file}"
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token != ""):
        raise ConfigError(
            f"expected a token of printable ASCII characters {where}, as HTTP headers carry; choose another"
        )
    return token


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; a ConfigError when the port is taken, or the address is empty or none of this machine's."""
    if not host:  # the system would take an unset variable of a shell for "every address"
        raise ConfigError("expected an address in --host, got an empty one; 0.0.0.0 listens on all")
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(128)
    except OSError as error:  # includes names that do not resolve
        bound.close()
        why = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({why}); choose another --port or --host, --port 0 takes a free one"
        ) from None
    return bound


def server_of(args: argparse.Namespace, token: str | None) -> "Server":
    """The server with its model loaded; it prints its address when it is ready."""
    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.web.answers import Limits
    from phrase_loc.web.app import create_app
    from phrase_loc.web.server import Server

    _return_memory()
    localizer = PhraseLocalizer.from_pretrained(args.model, device=args.device)
    hosts, addresses = names_of(args.host, args.allowed_host, token)
    app = create_app(localizer, Limits(), token, hosts, addresses)
    return Server(app, Limits(), lambda port: _announce(args.host, port, token))


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


def _return_memory() -> None:
    """Let the C library give back what photographs took: glibc would keep it, in one heap for each thread.

    Without it 200 photographs of 12 million pixels leave 1,333 MB behind instead of 885 (docs/serving.md).
    """
    if sys.platform != "linux":
        return
    import ctypes

    mmap_threshold, arena_max = -3, -8  # of malloc.h
    with suppress(AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 4 << 20)
        mallopt(arena_max, 2)


def _announce(host: str, port: int, token: str | None) -> None:
    # all addresses: name one that can be opened
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    print(f"phrase_loc is ready: http://{shown}:{port}/  (stop with Ctrl-C)", flush=True)
    if host not in LOOPBACK and token is None:
        print("note: other machines can reach this address; --token-file keeps strangers out", flush=True)


def _port(text: str) -> int:
    value = int(text) if text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port number from 0 to 65535, got {text!r}")
    return value
