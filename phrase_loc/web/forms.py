"""Forms that stay in memory, and whose every field is one that is known and given once."""

import logging
import traceback
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from phrase_loc.errors import PhraseLocError, nearest
from phrase_loc.web.answers import Busy

LOG = logging.getLogger("phrase_loc.web")
PACKAGE = Path(__file__).resolve().parents[1]
LONGEST = 400  # characters of a sentence: it may repeat what was asked


class Refused(HTTPException):
    """A request that cannot be served, with its status and one sentence.

    It is an HTTPException since FastAPI turns whatever else a form's parser raises into a 400 of its own.
    """


def sentence(status: int, text: str) -> JSONResponse:
    """The answer to a refused request."""
    headers = (
        {"Retry-After": "1"} if status == 503 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    )
    return JSONResponse({"error": plain(text)}, status, headers)


def plain(text: str) -> str:
    """One line of at most `LONGEST` characters that UTF-8 can carry."""
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def failure(error: BaseException) -> str:
    """Kind of an exception and the line of ours where it arose; its message may hold what somebody sent."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if PACKAGE in Path(f.filename).parents]
    place = f" at {Path(ours[-1].filename).relative_to(PACKAGE.parent)}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}"


def failed(error: BaseException) -> JSONResponse:
    """The answer to a request on which the server failed, which is logged."""
    LOG.error("a request failed: %s", failure(error))
    return sentence(500, f"the server failed ({type(error).__name__}); its log says where")


def add_sentences(app: FastAPI) -> None:
    """Word every exception by which a request is refused."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return sentence(error.status_code, error.detail)

    @app.exception_handler(PhraseLocError)
    async def mended_by_user(_: Request, error: PhraseLocError) -> JSONResponse:
        return sentence(400, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return sentence(503, str(error))

    @app.exception_handler(HTTPException)
    async def routed(request: Request, error: HTTPException) -> JSONResponse:
        asked = f"{request.method} {request.scope['path'][:200]}"
        answer = sentence(
            error.status_code, f"{asked}: {error.detail.lower()}; /openapi.json lists what there is"
        )
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return sentence(422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}")


logging.getLogger("python_multipart").setLevel(
    logging.CRITICAL
)  # it would tell what was sent, a line for each byte


class InMemoryParser(MultiPartParser):
    """Starlette's parser, which moves files above a megabyte to disk, with that moved off."""

    spool_max_size = 0  # SpooledTemporaryFile reads 0 as "never roll over to a file"
    ended = False

    def on_end(self) -> None:
        """The last boundary was there."""
        self.ended = True

    async def parse(self) -> FormData:
        """The fields; a form that is cut off would lose its last ones silently."""
        form = await super().parse()
        if not self.ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("It ends before its last boundary; send it again")
        return form


class InMemoryRequest(Request):
    """A request whose form never touches the disk."""

    async def form(self, **_: Any) -> FormData:  # type: ignore[override]
        """The fields of the form, read once."""
        if self._form is None:
            multipart = self.headers.get("content-type", "").lower().startswith("multipart/form-data")
            self._form = await self._multipart() if multipart else FormData()
        return self._form

    async def _multipart(self) -> FormData:
        async with aclosing(self.stream()) as stream:
            parser = InMemoryParser(self.headers, stream, max_files=4, max_fields=16)
            try:
                return await parser.parse()
            except MultiPartException as error:
                raise Refused(400, f"the form cannot be read: {error.message.rstrip('.').lower()}") from None
            except (LookupError, ValueError):  # of an encoding that it claims
                raise Refused(400, "the form cannot be read; send it in UTF-8") from None


class StrictRoute(APIRoute):
    """A route that refuses what it would otherwise overlook: unknown or repeated fields, and queries."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind those checks."""
        handle = super().get_route_handler()
        known = [f.alias for f in self.dependant.body_params if isinstance(f.field_info, params.Form)]

        async def handler(request: Request) -> Response:
            asked = InMemoryRequest(request.scope, request.receive)
            if asked.query_params:
                raise Refused(422, f"{self.path} takes nothing after a question mark; send it in the body")
            try:
                if known:
                    _check(await asked.form(), known)
                return await handle(asked)
            finally:
                await asked.close()

        return handler


def _check(form: FormData, known: list[str]) -> None:
    seen: set[str] = set()
    for name, _ in form.multi_items():
        if name not in known:
            raise Refused(422, f"unknown field {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        if name in seen:
            raise Refused(422, f"the field {name} came more than once; send it once")
        seen.add(name)
