"""Between the socket and the application: connections, who may ask, how much may be sent, one end for every request.

A request ends when it is answered, refused or late, when its sender has left, or when the server stops. Written for
ASGI itself, since the middleware of Starlette hides who has left, and on uvicorn, whose `limit_concurrency` counts
idle connections and whose `timeout_keep_alive` begins with the first answer.
"""

import asyncio
import hmac
import logging
import re
import socket
import time
import traceback
from base64 import b64decode
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from phrase_loc.web.answers import Limits, Refused

LOG = logging.getLogger("phrase_loc.web")
PACKAGE = Path(__file__).resolve().parents[1]
LONGEST = 400  # characters of a sentence: it may repeat what was asked
OVERHEAD = 1 << 20  # bytes of a request beside the photograph: phrases, names, boundaries
STOPPING = "the server is stopping; try again later"
LABELLING = ("/api/label-studio/", "/api/cvat")  # where labelling tools ask
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ACCEPTED = 32  # connections that asyncio takes in one go, so many may be open beyond the bound for a moment
OTHER_FILES = 128  # that the process has open beside its connections, and what is accepted in one go
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")


def plain(text: str) -> str:
    """One line of at most `LONGEST` characters that UTF-8 can carry."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def sentence(status: int, text: str) -> JSONResponse:
    """The answer to a refused request."""
    headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    return JSONResponse({"error": plain(text)}, status, headers)


def too_large(most: int, what: str = "the photograph") -> str:
    """The sentence for a photograph of more than so many bytes."""
    return f"{what} is larger than the {most / 2**20:g} MB that are accepted; shrink it"


def failure(error: BaseException) -> str:
    """Kind of an exception and the line of ours where it arose; its message may hold what somebody sent."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if PACKAGE in Path(f.filename).parents]
    place = f" at {Path(ours[-1].filename).relative_to(PACKAGE.parent)}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}"


@dataclass(frozen=True)
class Access:
    """Who may ask. A page elsewhere can give the server a name of its own (DNS rebinding), none of its `hosts`."""

    token: str | None = None  # that a request must bring, None for none
    hosts: Collection[str] | None = None  # names by which the server may be called, None for any
    addresses: bool = False  # whether it may also be called by any numeric address, which nobody can rebind
    pages: Collection[str] = ()  # paths that need no token and that a link elsewhere may lead to

    def check(self, scope: Scope) -> None:
        """Raises Refused for a request that is not let in."""
        headers, public = Headers(scope=scope), scope["path"] in self.pages
        host = headers.get("host", "")
        if not self._is_named(host):
            raise Refused(403, f"this server is not called {host[:100]!r}; start it with --allowed-host NAME")
        if self._is_of_another_site(headers) and not (public and headers.get("sec-fetch-mode") == "navigate"):
            raise Refused(403, "pages of other sites may not use this server; open its own page")
        if self.token is not None and not public:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() == "basic" and scope["path"].startswith(LABELLING):
                with suppress(ValueError):  # the password, since Label Studio knows no other authentication
                    user = b64decode(given, validate=True).decode("utf-8", "replace")
                    scheme, given = "bearer", user.partition(":")[2]
            same = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if not same or scheme.lower() != "bearer":
                raise Refused(401, "this server wants a token: send `Authorization: Bearer TOKEN`")

    def _is_named(self, host: str) -> bool:
        if self.hosts is None:
            return True
        if (read := _HOST.fullmatch(host.lower())) is None:
            return False
        with suppress(ValueError):
            return read[1] in self.hosts or (self.addresses and bool(ip_address(read[1].strip("[]"))))
        return False

    def _is_of_another_site(self, headers: Headers) -> bool:
        if (site := headers.get("sec-fetch-site")) is not None:
            return site not in {"same-origin", "none"}
        if (origin := headers.get("origin")) is None:
            return False
        # browsers leave Sec-Fetch-Site out on plain HTTP to another machine
        return origin.partition("://")[2].lower() not in {
            headers.get("host", "").lower(),
            *(self.hosts or ()),
        }


class Middleware:
    """The application, of which every request is let in, measured, timed and brought to an end."""

    def __init__(self, app: ASGIApp, limits: Limits, access: Access):
        self.app, self.limits, self.access = app, limits, access
        self.uploading = 0  # bytes of all requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self)
        try:
            self.access.check(scope)
            if exchange.stopping:
                raise Refused(503, STOPPING)
            await self._run(exchange)
        except Refused as refused:
            if not exchange.answered:
                await sentence(refused.status_code, refused.detail)(scope, receive, exchange.send)
        finally:
            self.uploading -= exchange.size

    async def _run(self, exchange: "_Exchange") -> None:
        """Raises Refused where the application gives no answer."""
        work = asyncio.ensure_future(self.app(exchange.scope, exchange.receive, exchange.send))  # type: ignore[arg-type]
        late = asyncio.ensure_future(exchange.overdue())
        try:
            await asyncio.wait([work, late], return_when=asyncio.FIRST_COMPLETED)
            error = work.exception() if work.done() else late.result()
        except asyncio.CancelledError:  # by a server that stops, or from within: a job that is no more
            why = STOPPING if exchange.stopping else "the server gave this request up; try again"
            error = Refused(503, why)
        finally:
            late.cancel()
            work.cancel()
            await asyncio.wait([work])
        if isinstance(error, Refused):
            raise error
        if error is not None and not isinstance(error, ClientDisconnect):
            LOG.error("a request failed: %s", failure(error))
            raise Refused(500, f"the server failed ({type(error).__name__}); its log says where")


class _Exchange:
    """A request, counted and timed as it comes, and its answer with the headers that every answer has."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, server: Middleware):
        self.scope, self._receive, self._send, self._server = scope, receive, send, server
        self.answered, self.size, self._all = False, 0, asyncio.Event()
        headers, self._limits = Headers(scope=scope), server.limits
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        self._tool = scope["path"].startswith(LABELLING)
        share = 4 / 3 if self._tool else int(form)  # base64 takes four bytes for three
        self._most = OVERHEAD + int(share * self._limits.upload_bytes)
        large = too_large(self._limits.upload_bytes)
        self._sentence = large if share else "the request is larger than 1 MB; shorten it"
        length = headers.get("content-length", "0")
        self._declared = int(length) if length.isdecimal() and len(length) < 20 else 0
        self._until = asyncio.get_running_loop().time() + self._limits.body_seconds

    @property
    def stopping(self) -> bool:
        """Whether the server is on its way out."""
        return self.scope["app"].state.stopping

    async def receive(self) -> Message:
        """The next piece; a Refused when it is too much or too late."""
        if self._declared > self._most:
            raise Refused(413, self._sentence)
        try:
            async with asyncio.timeout_at(self._until + self.size / self._limits.body_rate):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the request did not come to its end in time; send it again") from None
        piece = len(message.get("body", b""))
        self.size += piece
        self._server.uploading += piece
        if self.size > self._most:
            raise Refused(413, self._sentence)
        if self._server.uploading > self._limits.uploading_bytes:
            raise Refused(503, "too many photographs are being sent at once; try again in a moment")
        if not message.get("more_body", False):
            self._all.set()
        return message

    async def overdue(self) -> Refused | None:
        """Returns when the sender has left (None) or the answer to what was received takes too long."""
        await self._all.wait()
        seconds = self._limits.labelling_seconds if self._tool else self._limits.seconds
        try:
            async with asyncio.timeout(seconds):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return Refused(503, f"no answer within {seconds:g} seconds; the server is busy, try again")
        return None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self.stopping:
                headers["Connection"] = "close"
        await self._send(message)


class Server(uvicorn.Server):
    """A server that answers, or tells 503, everybody who asks while it stops.

    `app` is one of `create_app`; `announce` is called with the port when it listens.
    """

    def __init__(self, app: FastAPI, limits: Limits, announce: Callable[[int], None]):
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, limits),  # type: ignore[arg-type]
                ws="none",
                log_level=logging.CRITICAL,  # its own lines repeat what was sent, one for each bad request
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=ACCEPTED,
                timeout_graceful_shutdown=2,  # after `leaving_seconds`, in which all were answered
            )
        )
        self._limits, self._announce, self._state = limits, announce, app.state

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then announce."""
        asyncio.get_running_loop().set_exception_handler(_complain)
        await super().startup(sockets)
        for bound in sockets or []:
            bound.listen(128)  # may wait in the system, of which ACCEPTED are taken at once
        if sockets and not self.should_exit:
            self._announce(sockets[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new questions, answer those that were asked, tell 503 to the rest, close."""
        self._state.stopping = True
        end = time.monotonic() + self._limits.leaving_seconds
        await asyncio.sleep(0.1)  # what lies in the sockets already is read and refused
        while self.server_state.tasks and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.05)
        for task in self.server_state.tasks:
            task.cancel()
        await super().shutdown(sockets)


class Connection(H11Protocol):
    """A connection that must say something, must read what it is told, and gives way to a newer one when idle."""

    def __init__(self, limits: Limits, **given: Any):
        super().__init__(**given)
        self._limits, self._since, self._unsent = limits, self.loop.time(), 0
        self._watch = self.loop.call_later(limits.header_seconds / 2, self._look)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, or refuse it."""
        super().connection_made(transport)
        others = [c for c in self.connections if c is not self]
        if len(others) >= most_connections(self._limits):
            idle = [c for c in others if isinstance(c, Connection) and c.idle]
            if idle:
                min(idle, key=lambda c: c._since).drop()
            else:
                self.refuse(503, "too many connections are open; try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to watch."""
        super().connection_lost(exc)
        self._watch.cancel()

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def drop(self) -> None:
        """Close it at once, whatever is still to be sent."""
        self.connections.discard(self)
        self.transport.abort()

    def refuse(self, status: int, text: str) -> None:
        """Send one sentence, if a response can still be sent, and close."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application sends nothing more
            self.cycle.message_event.set()
        answer = sentence(status, text)
        answer.headers.update(HEADERS | {"Connection": "close"})
        with suppress(h11.LocalProtocolError):  # an answer has begun already
            head = h11.Response(status_code=status, headers=answer.raw_headers)
            events = [head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()]
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.connections.discard(self)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls when it cannot read a request."""
        self.refuse(400, "this is no HTTP request that can be read; send HTTP/1.1")

    def on_response_complete(self) -> None:
        """From now on it is idle."""
        self._since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        unsent, patience = self.transport.get_write_buffer_size(), self._limits.header_seconds
        reads_nothing = 0 < unsent >= self._unsent > 0
        says_nothing = unsent == 0 and self.idle and self.loop.time() - self._since >= patience
        self._unsent = unsent
        if says_nothing and self.cycle is None:
            self.refuse(408, "no request came in time; send it again")
        elif says_nothing or reads_nothing:
            self.drop()
        else:
            self._watch = self.loop.call_later(patience / 2, self._look)


def most_connections(limits: Limits) -> int:
    """Fewer than there may be open files."""
    return min(limits.connections, max(_open_files() - OTHER_FILES, 8))


@cache
def _open_files() -> int:
    """How many files a process may have open here."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the event loop complains of, in one line with nothing of a request in it."""
    error = context.get("exception")
    _say(f"{context.get('message', '')} {failure(error) if error else ''}".strip(), int(loop.time() // 60))


@lru_cache(maxsize=1000)
def _say(line: str, minute: int) -> None:
    """Each line once a minute."""
    LOG.error("%s", line)
