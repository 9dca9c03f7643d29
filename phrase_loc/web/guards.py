"""What stands before the API: the token, the size of a request, forms that stay in memory, one-sentence errors."""

import hmac
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from phrase_loc.errors import PhraseLocError
from phrase_loc.web.batching import Busy
from phrase_loc.web.limits import Limits

OVERHEAD = 1 << 20  # bytes of a request beside the photograph: phrases, names, boundaries


class Refused(HTTPException):
    """A request that cannot be served, with its status and one sentence.

    It is an HTTPException since FastAPI turns whatever else a form's parser raises into a 400 of its own.
    """

    def __init__(self, status: int, sentence: str):
        super().__init__(status, sentence)


def too_large(limits: Limits) -> str:
    """The sentence of a 413."""
    accepted = f"{limits.upload_bytes / 2**20:g} MB"
    return f"the photograph is larger than the {accepted} that are accepted; shrink it"


class InMemoryParser(MultiPartParser):
    """Starlette's parser, which moves files above a megabyte to disk, with that moved off."""

    spool_max_size = 0  # SpooledTemporaryFile reads 0 as "never roll over to a file"


def in_memory_route(limits: Limits) -> type[APIRoute]:
    """A route whose forms never touch the disk and are cut off at the size limit, declared length or not."""

    class InMemoryRequest(Request):
        async def form(self, **_: Any) -> FormData:  # type: ignore[override]
            if self._form is None:
                multipart = self.headers.get("content-type", "").lower().startswith("multipart/form-data")
                self._form = await self._multipart() if multipart else FormData()
            return self._form

        async def _multipart(self) -> FormData:
            async with aclosing(_counted(self.stream(), limits)) as stream:
                parser = InMemoryParser(self.headers, stream, max_files=4, max_fields=16)
                try:
                    return await parser.parse()
                except MultiPartException as error:
                    raise Refused(
                        400, f"the form cannot be read: {error.message.rstrip('.').lower()}"
                    ) from None

    class InMemoryRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                return await handle(InMemoryRequest(request.scope, request.receive))

            return handler

    return InMemoryRoute


async def _counted(stream: AsyncGenerator[bytes, None], limits: Limits) -> AsyncGenerator[bytes, None]:
    total = 0
    async for chunk in stream:
        total += len(chunk)
        if total > limits.upload_bytes + OVERHEAD:
            raise Refused(413, too_large(limits))
        yield chunk


def add_guards(app: FastAPI, limits: Limits, token: str | None) -> None:
    """Check the token and the declared length of every request, and word every refusal."""
    _add_sentences(app)

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _refusal(request, limits, token) or await proceed(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def _refusal(request: Request, limits: Limits, token: str | None) -> Response | None:
    if token is not None and request.url.path.startswith("/api/"):
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.encode()):
            return _sentence(401, "this server wants a token: send `Authorization: Bearer TOKEN`")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.upload_bytes + OVERHEAD:
        return _sentence(413, too_large(limits))
    return None


def _add_sentences(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _sentence(error.status_code, error.detail)

    @app.exception_handler(PhraseLocError)
    async def mended_by_user(_: Request, error: PhraseLocError) -> JSONResponse:
        return _sentence(400, str(error))

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, headers={"Retry-After": "1"})

    @app.exception_handler(HTTPException)
    async def routed(request: Request, error: HTTPException) -> JSONResponse:
        text = f"{request.method} {request.url.path}: {str(error.detail).lower()}; /openapi.json lists what there is"
        return JSONResponse({"error": text}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return _sentence(422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}")

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return _sentence(500, f"the server failed ({type(error).__name__}); its log says more")


def _sentence(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)
