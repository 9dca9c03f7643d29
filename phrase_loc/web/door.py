"""What stands before the application: who may ask, how much may be sent, and one end for every request.

A request ends when it is answered, refused or late, when its sender has left, or when the server stops; whatever of
it is still under way is cancelled then. Written for ASGI itself: the middleware of Starlette hides who has left.
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phrase_loc.web.answers import Limits
from phrase_loc.web.forms import Refused, failed, sentence

OVERHEAD = 1 << 20  # bytes of a request beside the photograph: phrases, names, boundaries
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")


def too_large(limits: Limits) -> str:
    """The sentence of a 413 for a photograph."""
    return (
        f"the photograph is larger than the {limits.upload_bytes / 2**20:g} MB that are accepted; shrink it"
    )


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        token: that a request must bring, None for none.
        hosts: names by which the server may be called, None for any. A page elsewhere can give the server a name of
            its own (DNS rebinding), never one of these.
        addresses: whether it may also be called by any numeric address, which nobody can rebind.
        pages: paths that need no token and that a link elsewhere may lead to.
    """

    token: str | None = None
    hosts: frozenset[str] | None = None
    addresses: bool = False
    pages: Collection[str] = ()

    def refusal(self, scope: Scope) -> Response | None:
        """Why a request is not let in, or None."""
        headers, public = Headers(scope=scope), scope["path"] in self.pages
        if not self._names(headers.get("host", "")):
            return sentence(
                403,
                f"this server is not called {headers.get('host', '')[:100]!r}; start it with --allowed-host NAME",
            )
        if self._elsewhere(headers) and not (public and headers.get("sec-fetch-mode") == "navigate"):
            return sentence(403, "pages of other sites may not use this server; open its own page")
        if self.token is not None and not public:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if not same or scheme.lower() != "bearer":
                return sentence(401, "this server wants a token: send `Authorization: Bearer TOKEN`")
        return None

    def _names(self, host: str) -> bool:
        if self.hosts is None:
            return True
        read = _HOST.fullmatch(host.lower())
        return read is not None and (read[1] in self.hosts or (self.addresses and _is_address(read[1])))

    def _elsewhere(self, headers: Headers) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            return site not in {"same-origin", "none"}
        # browsers leave Sec-Fetch-Site out on plain HTTP to another machine
        host = (origin or "").partition("://")[2].lower()
        return (
            origin is not None and host != headers.get("host", "").lower() and host not in (self.hosts or ())
        )


@dataclass
class Leaving:
    """How far a server is on its way out.

    Attributes:
        begun: new requests are told 503.
        waiting: a future of each request under way, which ends when the request must.
    """

    begun: bool = False
    waiting: set[asyncio.Future[None]] = field(default_factory=set)

    def end(self) -> None:
        """Tell 503 to all who still wait."""
        for stopped in self.waiting:
            if not stopped.done():
                stopped.set_result(None)


class Door:
    """The application behind its guards."""

    def __init__(self, app: ASGIApp, limits: Limits, access: Access, leaving: Leaving):
        self.app, self.limits, self.access, self.leaving = app, limits, access, leaving
        self.uploading = 0  # bytes of all requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.leaving)
        refusal = self.access.refusal(scope)
        if refusal is None and self.leaving.begun:
            refusal = sentence(503, "the server is stopping; try again later")
        if refusal is None:
            body = _Body(scope, receive, self)
            try:
                refusal = await self._end(
                    asyncio.ensure_future(self.app(scope, body.receive, answer.send)), body
                )
            finally:
                self.uploading -= body.size
        if refusal is not None and not answer.begun:
            await refusal(scope, receive, answer.send)

    async def _end(self, work: "asyncio.Future[None]", body: "_Body") -> Response | None:
        """The refusal of a request that is not answered by the application, or None."""
        late = asyncio.ensure_future(body.overdue())
        stopped = asyncio.get_running_loop().create_future()
        self.leaving.waiting.add(stopped)
        try:
            waited: set[asyncio.Future[Any]] = {work, late, stopped}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
                return (
                    late.result() if late.done() else sentence(503, "the server is stopping; try again later")
                )
            if work.cancelled():  # from within: a job that is no more
                return sentence(503, "the server gave this request up; try again")
            error = work.exception()
            return None if error is None or isinstance(error, ClientDisconnect) else failed(error)
        finally:
            self.leaving.waiting.discard(stopped)
            for task in (work, late):
                task.cancel()


class _Answer:
    """Sends with the headers that every answer has."""

    def __init__(self, send: Send, leaving: Leaving):
        self._send, self._leaving, self.begun = send, leaving, False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self._leaving.begun:
                headers["Connection"] = "close"
        await self._send(message)


class _Body:
    """The body of a request, counted and timed as it comes."""

    def __init__(self, scope: Scope, receive: Receive, door: Door):
        headers = Headers(scope=scope)
        self._receive, self._door, self._limits = receive, door, door.limits
        self.size, self._all = 0, asyncio.Event()
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        self._most = OVERHEAD + (self._limits.upload_bytes if form else 0)
        self._sentence = too_large(self._limits) if form else "the request is larger than 1 MB; shorten it"
        length = headers.get("content-length", "0")
        self._declared = int(length) if length.isdecimal() and len(length) < 20 else 0
        self._until = asyncio.get_running_loop().time() + self._limits.body_seconds

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
        self._door.uploading += piece
        if self.size > self._most:
            raise Refused(413, self._sentence)
        if self._door.uploading > self._limits.uploading_bytes:
            raise Refused(503, "too many photographs are being sent at once; try again in a moment")
        if not message.get("more_body", False):
            self._all.set()
        return message

    async def overdue(self) -> Response | None:
        """Returns when the sender has left (None) or the answer to what was received takes too long."""
        await self._all.wait()
        seconds = self._limits.seconds
        try:
            async with asyncio.timeout(seconds):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            return sentence(503, f"no answer within {seconds:g} seconds; the server is busy, try again")
        return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
