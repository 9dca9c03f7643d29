"""Mutated HTTP requests to the server: each is answered, or refused with a 4xx or 503 and one sentence.

Nineteen of twenty go to the application itself, the others byte by byte to a running server. What must be refused
(another site's page, a wrong token, a field that nobody knows) is wrong when answered, and so is a good request whose
answer changes in between, and a line in the log.
"""

import asyncio
import io
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from fastapi import FastAPI
from PIL import Image

from benchmarks.attacks.tally import Tally
from phrase_loc.cli.commands import listen
from phrase_loc.localizer import Inference, PhraseLocalizer
from phrase_loc.models.build import create, folded
from phrase_loc.text.vocabulary import Vocabulary
from phrase_loc.web.answers import Limits
from phrase_loc.web.app import create_app
from phrase_loc.web.server import Server

LOOPBACK = {"localhost", "127.0.0.1", "[::1]"}
LIMITS = Limits(header_seconds=0.4, body_seconds=0.4, leaving_seconds=0.2, upload_bytes=1 << 20)
PATIENCE = 30.0  # seconds after which a request hangs


@dataclass(frozen=True)
class Asked:
    """A request, and whether it must be refused."""

    method: str
    path: str
    body: bytes = b""
    kind: str = "application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ((b"host", b"localhost"), (b"authorization", b"Bearer secret"))
    query: bytes = b""
    refused: bool = False
    name: str = field(default="good", compare=False)


def attack(count: int, seed: int, folder: Path) -> Tally:
    """Sends `count` requests; `folder` is not used."""
    tally, chance, log = Tally(), random.Random(seed), _Log()
    logging.getLogger().addHandler(log)
    app = create_app(_localizer(), LIMITS, "secret", LOOPBACK)
    good = _good(_photograph())
    raw = count // 20
    asyncio.run(_in_process(app, good, count - raw, chance, tally))
    with _running(create_app(_localizer(), LIMITS, "secret", LOOPBACK)) as port:
        for _ in range(raw):
            _over_a_socket(port, *_broken_bytes(chance.choice(good), chance), tally)
    logging.getLogger().removeHandler(log)
    tally.wrong += [f"logged: {line}" for line in log.lines]
    return tally


async def _in_process(
    app: FastAPI, good: list[Asked], count: int, chance: random.Random, tally: Tally
) -> None:
    expected = {asked: await _sent(app, asked) for asked in good}
    for number in range(count):
        asked = chance.choice(good)
        if number % 20:
            asked = chance.choice(MUTATIONS)(asked, chance)
        try:
            status, body = await asyncio.wait_for(_sent(app, asked), PATIENCE)
        except Exception as error:  # a hang too
            tally.wrong.append(f"{asked.name} {asked.path[:60]}: {type(error).__name__}")
            continue
        _judge(asked, status, body, tally)
        if not number % 20 and (status, body) != expected[asked]:
            tally.wrong.append(f"{asked.path}: a good request is answered otherwise than before ({status})")


def _judge(asked: Asked, status: int, body: bytes, tally: Tally) -> None:
    fault = None
    if 200 <= status < 300:
        fault = "was answered" if asked.refused else None
    elif not (400 <= status < 500 or status == 503):
        fault = f"got {status}"
    else:
        fault = _no_sentence(body)
    if fault:
        tally.wrong.append(f"{asked.name} {asked.method[:20]} {asked.path[:60]!r} {fault}: {body[:120]!r}")
    elif status < 300:
        tally.answered += 1
    else:
        tally.refused += 1


def _no_sentence(body: bytes) -> str | None:
    try:
        said = json.loads(body)
        text = said["error"]
    except (ValueError, KeyError, TypeError):
        return "got no JSON sentence"
    plain = set(said) == {"error"} and "\n" not in text and "Traceback" not in text and 5 < len(text) < 500
    return None if plain else "got more than a sentence"


async def _sent(app: FastAPI, asked: Asked) -> tuple[int, bytes]:
    """Status and body of the answer of an application."""
    head = [*asked.headers, (b"content-type", asked.kind.encode("latin-1", "replace"))]
    if not any(name == b"content-length" for name, _ in head):
        head.append((b"content-length", str(len(asked.body)).encode()))
    scope = {"type": "http", "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 80)}
    scope |= {"method": asked.method, "path": asked.path, "query_string": asked.query, "headers": head}
    pieces = [asked.body[at : at + 7000] for at in range(0, len(asked.body), 7000)] or [b""]
    sent: list = []
    done = asyncio.Event()

    async def receive() -> dict:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[arg-type]
    done.set()
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


# good requests


def _photograph() -> bytes:
    stream = io.BytesIO()
    Image.radial_gradient("L").resize((60, 40)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _good(photo: bytes) -> list[Asked]:
    phrases = ("phrases", None, b'["a red hat", "the dog"]')
    image = ("image", "photo.png", photo)
    return [
        _form("/api/look", [image]),
        _form("/api/localize", [image, phrases]),
        _form("/api/localize", [image, phrases, ("top_k", None, b"3"), ("maps", None, b"true")]),
        _form("/api/localize", [image, ("phrases", None, b'["dog"]'), ("words", None, b"true")]),
        Asked("POST", "/api/chips", b'{"text": "A man in a red hat walks a dog."}'),
        Asked("POST", "/api/phrases", b'{"text": "a red hat, a dog"}'),
        Asked("GET", "/api/model"),
        Asked("GET", "/"),
        Asked("GET", "/page.js"),
    ]


def _form(path: str, fields: list[tuple[str, str | None, bytes]], boundary: str = "xx") -> Asked:
    parts = []
    for name, file, content in fields:
        named = f'form-data; name="{name}"' + (f'; filename="{file}"' if file is not None else "")
        head = f"--{boundary}\r\nContent-Disposition: {named}\r\n\r\n".encode("utf-8", "surrogatepass")
        parts.append(head + content + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return Asked("POST", path, body, f"multipart/form-data; boundary={boundary}")


# mutations


def _flipped(asked: Asked, chance: random.Random) -> Asked:
    body = bytearray(asked.body or b"{}")
    for _ in range(chance.choice((1, 1, 3, 30))):
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return replace(asked, body=bytes(body), name="flipped")


def _cut(asked: Asked, chance: random.Random) -> Asked:
    return replace(asked, body=asked.body[: chance.randrange(len(asked.body) + 1)], name="cut")


def _grown(asked: Asked, chance: random.Random) -> Asked:
    at = chance.randrange(len(asked.body) + 1)
    more = chance.choice(
        (chance.randbytes(200), b"\r\n" * 2000, b"-" * 5000, asked.body * 3, b"\x00" * 3_000_000)
    )
    return replace(asked, body=asked.body[:at] + more + asked.body[at:], name="grown")


def _other_kind(asked: Asked, chance: random.Random) -> Asked:
    kinds = (
        "",
        "text/plain",
        "application/json; charset=utf-16",
        "multipart/form-data",
        "a" * 9000,
        "\xe9\xff",
    )
    kinds += (
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "b" * 300,
        "multipart/mixed",
    )
    kinds += tuple(
        f"{asked.kind}; charset={c}" for c in ("unicode_escape", "utf-7", "hex", "undefined", "idna")
    )
    kinds += ("application/x-www-form-urlencoded", "multipart/form-data; boundary=xx; boundary=yy")
    return replace(asked, kind=chance.choice(kinds), name="another content type")


def _other_method(asked: Asked, chance: random.Random) -> Asked:
    method = chance.choice(
        ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW", "get", "P\u00d6ST")
    )
    return replace(asked, method=method, refused=True, name="another method")


def _other_path(asked: Asked, chance: random.Random) -> Asked:
    odd = ("//", "/..", "/%2e%2e/", "/\x00", "/\n", "/\ud800", "/" + "a" * 20000, "?", "#", "\\", "/" * 500)
    path = chance.choice(
        (asked.path + chance.choice(odd), chance.choice(odd) + asked.path, asked.path.upper() + "x")
    )
    return replace(asked, path=path, refused=True, name="another path")


def _odd_header(asked: Asked, chance: random.Random) -> Asked:
    names = (
        b"accept",
        b"range",
        b"cookie",
        b"expect",
        b"x-forwarded-for",
        b"if-none-match",
        b"content-encoding",
    )
    names += (
        b"transfer-encoding",
        b"upgrade",
        b"origin2",
        b"accept-encoding",
        b"content-range",
        b"te",
        b"date",
    )
    values = (
        b"",
        b"a" * 9000,
        b"\xff\xfe",
        b"bytes=0-,1-,2-",
        b"gzip",
        b"chunked",
        b"websocket",
        b"100-continue",
    )
    more = tuple((chance.choice(names), chance.choice(values)) for _ in range(chance.choice((1, 3, 90))))
    return replace(asked, headers=asked.headers + more, name="odd headers")


def _odd_length(asked: Asked, chance: random.Random) -> Asked:
    length = chance.choice(
        (b"", b"-1", b"x", b"1e9", b"9" * 30, b"\xb2", b"3000000000", b" 5 ", b"0x10", b"0")
    )
    return replace(asked, headers=(*asked.headers, (b"content-length", length)), name="odd length")


def _stranger(asked: Asked, chance: random.Random) -> Asked:
    host, token = (b"host", b"localhost"), (b"authorization", b"Bearer secret")
    hosts = (
        b"evil.example",
        b"localhost.evil.example",
        b"x?",
        b"localhost@evil.example",
        b"",
        b"127.0.0.1:80:80",
    )
    tokens = (
        b"Bearer secre",
        b"secret",
        b"Basic secret",
        b"Bearer " + b"s" * 9000,
        b"",
        b"Bearer secret\xe9",
    )
    sites = (
        (b"sec-fetch-site", b"cross-site"),
        (b"sec-fetch-site", b"same-site"),
        (b"origin", b"http://evil.example"),
    )
    heads = [((b"host", h), token) for h in hosts] + [(host, token, site) for site in sites]
    if asked.path.startswith("/api/"):
        heads += [(host, (b"authorization", t)) for t in tokens] + [(host,)]
    return replace(asked, headers=chance.choice(heads), refused=True, name="a stranger")


def _with_query(asked: Asked, chance: random.Random) -> Asked:
    query = chance.choice((b"top_k=3", b"a=b&a=c", b"token=secret", b"%ff=%ff", b"x" * 9000, b"x=\xff"))
    return replace(asked, query=query, refused=asked.path.startswith("/api/"), name="a query")


ODD = (
    "null",
    "NaN",
    "Infinity",
    "1e400",
    "-1",
    "9" * 5000,
    "true",
    '""',
    "[]",
    "{}",
    '"\\ud800"',
    "[" * 50000,
    "1.5",
)
ODD += (
    '"' + "\u0130" * 3000 + '"',
    '"a\\u0000b"',
    "[[[]]]",
    '["a"',
    '[1, "a"]',
    '{"a": 1}',
    '["' + "x" * 300 + '"]',
)


def _odd_json(asked: Asked, chance: random.Random) -> Asked:
    name = chance.choice(("text", "key", "x", "y", "count", "texts", "\\ud800", ""))
    value = chance.choice(ODD)
    path = chance.choice(("/api/chips", "/api/phrases", "/api/words-at"))
    whole = chance.choice((f'{{"{name}": {value}}}', value, f'{{"text": "a dog", "{name}": {value}}}'))
    point = '{"key": "%s", "x": %s, "y": %s, "count": %s}'
    whole = chance.choice(
        (whole, point % ("0" * 32, chance.choice(ODD), chance.choice(ODD), chance.choice(ODD)))
    )
    return Asked("POST", path, whole.encode("utf-8", "replace"), name="odd JSON")


def _odd_field(asked: Asked, chance: random.Random) -> Asked:
    names = ("phrases", "top_k", "maps", "words", "method", "key", "image", "topk", "", "\u00e9", "a" * 5000)
    fields = [("image", chance.choice(("i.png", "", "../../x", "\u202e", "a" * 5000)), _photograph())]
    fields.append(
        ("phrases", None, chance.choice((b'["dog"]', chance.choice(ODD).encode("utf-8", "replace"))))
    )
    for _ in range(chance.choice((1, 1, 2, 40))):
        value = chance.choice((*ODD, "mwp", "mvp", "on", "\u00b2", " 3 ", "0x3"))
        fields.append((chance.choice(names), chance.choice((None, "f")), value.encode("utf-8", "replace")))
    chance.shuffle(fields)
    given = [name for name, *_ in fields]
    unknown = not set(given) <= set(names[:7])
    return replace(
        _form("/api/localize", fields), refused=unknown or len(set(given)) < len(given), name="odd fields"
    )


def _odd_phrases(asked: Asked, chance: random.Random) -> Asked:
    pool = [*["a", "red", "dog", "zorglub", "the", "not"], *"\u72ac\U0001f415\u0301\u202e\ufeff\u200d'\"\\,."]
    phrases = [
        " ".join(chance.choices(pool, k=chance.randrange(9))) for _ in range(chance.choice((1, 2, 5, 80)))
    ]
    fields = [("image", "i.png", _photograph()), ("phrases", None, json.dumps(phrases).encode())]
    return replace(_form("/api/localize", fields), refused=len(phrases) > LIMITS.phrases, name="odd phrases")


MUTATIONS: list[Callable[[Asked, random.Random], Asked]] = [
    _flipped, _flipped, _cut, _grown, _other_kind, _other_method, _other_path, _odd_header, _odd_length, _stranger,
    _with_query, _odd_json, _odd_json, _odd_field, _odd_field, _odd_phrases,
]  # fmt: skip


# over a socket


def _broken_bytes(asked: Asked, chance: random.Random) -> tuple[str, bytes]:
    head = f"{asked.method} {asked.path} HTTP/1.1\r\n".encode()
    head += b"".join(name + b": " + value + b"\r\n" for name, value in asked.headers)
    head += f"Content-Type: {asked.kind}\r\n".encode()
    whole = head + f"Content-Length: {len(asked.body)}\r\n\r\n".encode() + asked.body
    kind = chance.choice(("flipped", "cut", "twice", "garbage", "chunked", "long", "spaces", "no host"))
    if kind == "flipped":
        broken = bytearray(whole)
        broken[chance.randrange(len(head))] ^= 1 << chance.randrange(8)
        return kind, bytes(broken)
    chunk = chance.choice(
        (b"zz\r\n", b"-5\r\n", b"ffffffffffffffffff\r\n", b"5\r\nab\r\n0\r\n\r\n", b"0\r\n\r\n")
    )
    return kind, {
        "cut": whole[: chance.randrange(1, len(whole))],
        "twice": whole * 2,
        "garbage": chance.randbytes(400) + b"\r\n\r\n",
        "chunked": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk,
        "long": head + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
        "spaces": whole.replace(b": ", b" : ", 2),
        "no host": whole.replace(b"host: localhost\r\n", b""),
    }[kind]


def _over_a_socket(port: int, kind: str, content: bytes, tally: Tally) -> None:
    """A connection must end with an answer, or by being closed where the request never came to its end."""
    begin, heard = time.monotonic(), b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection,
        suppress(ConnectionError),
    ):
        connection.sendall(content)
        while time.monotonic() - begin < PATIENCE and (piece := connection.recv(1 << 16)):
            heard += piece
    status = int(heard[9:12]) if heard[:9] == b"HTTP/1.1 " else 0
    if time.monotonic() - begin >= PATIENCE:
        tally.wrong.append(f"over a socket, {kind}: it hangs")
    elif heard and not (200 <= status < 300 or 400 <= status < 500 or status == 503):
        tally.wrong.append(f"over a socket, {kind}: {heard[:100]!r}")
    elif (
        status
        and status >= 400
        and (fault := _no_sentence(heard.split(b"\r\n\r\n", 1)[1].split(b"HTTP/1.1 ")[0]))
    ):
        tally.wrong.append(f"over a socket, {kind}: {fault}: {heard[:300]!r}")
    elif 200 <= status < 300:
        tally.answered += 1
    else:
        tally.refused += 1


class _Log(logging.Handler):
    """What the log holds of requests."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage()[:200])


@contextmanager
def _running(app: FastAPI) -> Iterator[int]:
    server = Server(app, LIMITS, lambda port: None)
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield bound.getsockname()[1]
        server.should_exit = True
        thread.join(30)


def _localizer() -> PhraseLocalizer:
    """Random convolutions on 32 pixels: what is answered does not matter here."""
    torch.manual_seed(0)
    vocabulary = Vocabulary(("man", "red", "hat", "dog"), (90, 50, 30, 20))
    model = folded(create(vocabulary, torch.randn(4, 16), backbone="tiny", weights=None, hidden=32))
    return PhraseLocalizer(model, Inference(image_sizes=(32,), grid=16, proposals="level_sets"))
