"""Every refusal as {"error": one sentence}, and failures of ours in the log without anything of a request."""

import logging
import traceback
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from phrase_loc.errors import PhraseLocError
from phrase_loc.web.batching import Busy

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
