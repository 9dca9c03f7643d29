"""`phrase-loc serve`: the query page and its API on this machine.

phrase-loc serve                         http://127.0.0.1:8000/, for this machine alone
phrase-loc serve --host 0.0.0.0 --token SECRET
"""

import argparse
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from phrase_loc.errors import ConfigError

if TYPE_CHECKING:
    from uvicorn import Config, Server

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine alone)"
    )
    parser.add_argument(
        "--port", type=_port, default=8000, help="0 takes any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--model", default="default", help="'default', a model folder or a hub id (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)"
    )
    parser.add_argument("--token", help="asked of everybody who uses the API (default: none)")


def run(args: argparse.Namespace) -> int:
    """Listen, load the model, serve until Ctrl-C."""
    if args.token is not None and not (args.token.isascii() and args.token.isprintable() and args.token):
        raise ConfigError(
            "expected a token of printable ASCII characters, as HTTP headers carry; choose another"
        )
    with listen(args.host, args.port) as bound:  # before the model is loaded: a taken port is said at once
        server_of(args).run(sockets=[bound])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        ConfigError: the port is taken or forbidden, or the address is empty or none of this machine's.
    """
    if (
        not host
    ):  # the system would read it as "every address", an unset variable of a shell would open the door
        raise ConfigError("expected an address in --host, got an empty one; 0.0.0.0 listens on all")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
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


def server_of(args: argparse.Namespace) -> "Server":
    """The server with its model loaded; it prints its address when it is ready."""
    import uvicorn

    from phrase_loc.localizer import PhraseLocalizer
    from phrase_loc.web.app import create_app

    localizer = PhraseLocalizer.from_pretrained(args.model, device=args.device)
    config = uvicorn.Config(
        create_app(localizer, token=args.token), log_level="warning", timeout_graceful_shutdown=5
    )
    return _announcing(config, lambda port: _announce(args.host, port, args.token))


def _announcing(config: "Config", announce: Callable[[int], None]) -> "Server":
    import uvicorn

    class Announcing(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if sockets and not self.should_exit:
                announce(sockets[0].getsockname()[1])

    return Announcing(config)


def _announce(host: str, port: int, token: str | None) -> None:
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        host, host
    )  # all addresses: name one that can be opened
    shown = f"[{shown}]" if ":" in shown else shown
    ending = "" if token is None else f"#token={quote(token, safe='')}"
    print(f"phrase_loc is ready: http://{shown}:{port}/{ending}  (stop with Ctrl-C)", flush=True)
    if host not in LOOPBACK and token is None:
        print("note: other machines can reach this address; --token keeps strangers out", flush=True)


def _port(text: str) -> int:
    value = int(text) if text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port number from 0 to 65535, got {text!r}")
    return value
