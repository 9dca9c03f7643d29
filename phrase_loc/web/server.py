"""Uvicorn, bearing who connects and says nothing, who reads nothing, and who is still asking when it stops.

Uvicorn's `limit_concurrency` counts idle connections, and its `timeout_keep_alive` begins with the first answer.
"""

import asyncio
import json
import logging
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from phrase_loc.web.answers import Limits
from phrase_loc.web.middleware import LOG, Shutdown, failure

ACCEPTED = 32  # connections that asyncio takes in one go, so many may be open beyond the bound for a moment
OTHER_FILES = 128  # that the process has open beside its connections, and what is accepted in one go


class Server(uvicorn.Server):
    """A server that answers, or tells 503, everybody who asks while it stops.

    `app` is one of `create_app`; `announce` is called with the port when it listens.
    """

    def __init__(self, app: FastAPI, limits: Limits, announce: Callable[[int], None]):
        super().__init__(
            uvicorn.Config(
                app,
                http=connection_class(limits),
                ws="none",
                log_level=logging.CRITICAL,  # its own lines repeat what was sent, one for each bad request
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=ACCEPTED,
                timeout_graceful_shutdown=2,  # after `leaving_seconds`, in which all were answered
            )
        )
        self._limits, self._announce = limits, announce
        self._shutdown: Shutdown = app.state.shutdown

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
        self._shutdown.begun = True
        end = time.monotonic() + self._limits.leaving_seconds
        await asyncio.sleep(0.1)  # what lies in the sockets already is read and refused
        while self.server_state.tasks and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.05)
        self._shutdown.ended.set()
        await super().shutdown(sockets)


class Connection(H11Protocol):
    """A connection that must say something, must read what it is told, and gives way to a newer one when idle."""

    limits: Limits
    most: int
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for it, or refuse it; then watch it."""
        super().connection_made(transport)
        self._since, self._unsent = self.loop.time(), 0
        others = [c for c in self.connections if c is not self]
        if len(others) >= self.most:
            idle = [c for c in others if isinstance(c, Connection) and c.idle]
            if not idle:
                self.refuse(503, "too many connections are open; try again in a moment")
                return
            min(idle, key=lambda c: c._since).drop()
        self._watch = self.loop.call_later(self.limits.header_seconds / 2, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to watch."""
        super().connection_lost(exc)
        if self._watch is not None:
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
        body = json.dumps({"error": text}).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        head |= {"X-Content-Type-Options": "nosniff"} | ({"Retry-After": "1"} if status == 503 else {})
        response = h11.Response(status_code=status, headers=list(head.items()))
        with suppress(h11.LocalProtocolError):  # an answer has begun already
            events = [response, h11.Data(data=body), h11.EndOfMessage()]
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
        unsent, patience = self.transport.get_write_buffer_size(), self.limits.header_seconds
        reads_nothing = 0 < unsent >= self._unsent > 0
        says_nothing = unsent == 0 and self.idle and self.loop.time() - self._since >= patience
        self._unsent = unsent
        if says_nothing and self.cycle is None:
            self.refuse(408, "no request came in time; send it again")
        elif says_nothing or reads_nothing:
            self.drop()
        else:
            self._watch = self.loop.call_later(patience / 2, self._look)


def connection_class(limits: Limits) -> type[Connection]:
    """What uvicorn makes for each connection, fewer than there may be open files."""
    most = min(limits.connections, max(_open_files() - OTHER_FILES, 8))
    return type("Connection", (Connection,), {"limits": limits, "most": most})


def _open_files() -> int:
    """How many files a process may have open here."""
    if sys.platform == "win32":
        return 512  # of select, with which asyncio waits for nothing here, but a bound all the same
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def _complain(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What the event loop complains of, in one line with nothing of a request in it."""
    error = context.get("exception")
    line = f"{context.get('message', '')} {failure(error) if error is not None else ''}".strip()
    _say(line, int(loop.time() // 60))


@lru_cache(maxsize=1000)
def _say(line: str, minute: int) -> None:
    """Each line once a minute."""
    LOG.error("%s", line)
