"""A server's application over the tiny model, and photographs as bytes."""

import http.client
import socket
import threading
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from phrase_loc.cli.commands import listen
from phrase_loc.web.answers import Limits
from phrase_loc.web.app import create_app
from phrase_loc.web.server import Server
from tests.conftest import encoded
from tests.web.browser import chromium, serving, until

LIMITS = Limits(
    upload_bytes=3 * 2**20,
    pixels=2_000_000,
    phrases=8,
    phrase_length=60,
    words=40,
    top_k=20,
    seconds=60,
    scenes=3,
)


@pytest.fixture
def photo(drawn_image) -> bytes:
    return encoded(drawn_image)


@pytest.fixture
def client(tiny_localizer):
    with TestClient(create_app(tiny_localizer, LIMITS), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def raw(tiny_localizer):
    """Starts real servers on a free port of this machine, spoken to through sockets: raw(**limits) -> Raw."""
    with ExitStack() as stack:
        yield lambda localizer=tiny_localizer, **limits: stack.enter_context(Raw(localizer, **limits))


class Raw:
    """A running server and what is sent to it byte by byte."""

    def __init__(self, localizer, token=None, **limits):
        self.limits = replace(LIMITS, **limits)
        self.server = Server(create_app(localizer, self.limits, token), self.limits, lambda port: None)
        self.bound = listen("127.0.0.1", 0)
        self.port = self.bound.getsockname()[1]
        self.opened: list[socket.socket] = []
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, daemon=True)

    def __enter__(self):
        self.thread.start()
        until(lambda: self.server.started, "the server starts")
        return self

    def __exit__(self, *_):
        for connection in self.opened:
            connection.close()
        self.server.should_exit = True
        self.thread.join(30)
        self.bound.close()
        assert not self.thread.is_alive()

    def connect(self):
        self.opened.append(socket.create_connection(("127.0.0.1", self.port), timeout=30))
        return self.opened[-1]

    def answer(self, connection) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer, read to its declared length; status 0 when closed."""
        with connection.makefile("rb") as stream:
            first = stream.readline()
            if not first:
                return 0, {}, b""
            head = http.client.parse_headers(stream)
            body = stream.read(int(head["content-length"]))
        return int(first.split()[1]), {k.lower(): v for k, v in head.items()}, body

    def ask(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        with self.connect() as connection:
            with suppress(OSError):  # refused before all of it was sent
                connection.sendall(content)
            return self.answer(connection)


def request(path, body=b"", method="POST", kind="application/json", **headers) -> bytes:
    """A request as bytes; `_` stands for `-` in the names of headers."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def upload(path, content, **fields) -> bytes:
    """A multipart request as bytes."""
    parts = [
        f'--xx\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode()
        for k, v in fields.items()
    ]
    head = b'--xx\r\nContent-Disposition: form-data; name="image"; filename="i.png"\r\n\r\n'
    body = b"".join(parts) + head + content + b"\r\n--xx--\r\n"
    return request(path, body, kind="multipart/form-data; boundary=xx")


@pytest.fixture(scope="session")
def shipped():
    """The shipped model."""
    from phrase_loc.localizer import PhraseLocalizer

    return PhraseLocalizer.from_pretrained("default", device="cpu")


@pytest.fixture(scope="session")
def address(shipped):
    """Where a server with the shipped model listens."""
    with serving(create_app(shipped)) as address:
        yield address


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(downloads):
    with chromium(downloads) as browser:
        yield browser


@pytest.fixture
def page_browser(browser, address):
    """The browser with the page open, empty."""
    browser.get("about:blank")
    browser.get(address)
    return browser
