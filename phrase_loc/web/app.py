"""The HTTP API and the page behind it, as one FastAPI application.

    POST /api/localize   multipart: image (file) or key (of a photograph that is still held), phrases (JSON list)
    POST /api/words-at   JSON: key, x, y -> the words of the vocabulary that look there
    POST /api/chips      JSON: text -> its noun phrases
    GET  /api/image/KEY  a photograph that is still held
    GET  /api/model      what the model is
    GET  /healthz        alive, and how busy
    GET  /openapi.json   this, for programs

The answer to /api/localize is the object of `phrase-loc query --json` with, for the page, `key` and on demand
`maps` and `proposals`. Refused input gets a 4xx with {"error": one sentence}; a full queue or a slow answer 503.
Nothing is written to disk, and no path of the server can be asked for: files are served from a fixed list.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from phrase_loc import __version__
from phrase_loc.errors import PhraseLocError
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.web.answers import Answers
from phrase_loc.web.batching import Batcher, Busy
from phrase_loc.web.limits import Limits

T = TypeVar("T")

#: What the page is made of; nothing else can be asked for.
PAGE_FILES = {
    "/": ("page/index.html", "text/html; charset=utf-8"),
    "/page.css": ("page/page.css", "text/css; charset=utf-8"),
    "/page.js": ("page/page.js", "text/javascript; charset=utf-8"),
    "/ranking.js": ("page/ranking.js", "text/javascript; charset=utf-8"),
    "/docs": ("page/api.html", "text/html; charset=utf-8"),
}
EXAMPLES = ("astronaut.png", "coffee.png", "chelsea.png")
POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'"


class Refused(Exception):
    """A request that cannot be served, with its status and one sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class WordsAt(BaseModel):
    """A point of a photograph that is still held."""

    key: str = Field(description="from the answer to /api/localize", max_length=64)
    x: float = Field(
        description="pixels of the original photograph, from the left", ge=0, allow_inf_nan=False
    )
    y: float = Field(description="pixels of the original photograph, from the top", ge=0, allow_inf_nan=False)
    count: int = Field(default=12, ge=1, le=50, description="how many words")


class Text(BaseModel):
    """A caption."""

    text: str = Field(max_length=2000)


class ErrorBody(BaseModel):
    """Why a request was refused."""

    error: str


def create_app(localizer: PhraseLocalizer, limits: Limits = Limits(), token: str | None = None) -> FastAPI:  # noqa: B008
    """The application for one model.

    Args:
        localizer: answers the questions.
        limits: what is accepted and kept.
        token: when given, every API request must bring it as `Authorization: Bearer TOKEN`.
    """
    batcher = Batcher(localizer, limits.queue, limits.batch)
    answers = Answers(localizer, batcher, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    app = FastAPI(
        title="phrase_loc",
        version=__version__,
        description="Type a phrase, get the region of the photograph it names.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={code: {"model": ErrorBody} for code in (400, 401, 404, 413, 422, 503)},
    )
    _add_guards(app, limits, token)
    _add_api(app, answers, limits)
    _add_files(app)
    return app


def _add_api(app: FastAPI, answers: Answers, limits: Limits) -> None:
    @app.post("/api/localize", summary="Find phrases in a photograph")
    async def localize(
        phrases: Annotated[str, Form(description='JSON list of strings, such as ["a red hat"]')],
        image: Annotated[UploadFile | None, File(description="a photograph")] = None,
        key: Annotated[
            str | None, Form(description="of a photograph that is still held", max_length=64)
        ] = None,
        top_k: Annotated[int, Form(ge=1, le=limits.top_k)] = 5,
        method: Annotated[str | None, Form(max_length=64, description="attention method")] = None,
        maps: Annotated[bool, Form(description="also send maps and proposals")] = False,
        words: Annotated[bool, Form(description="also send the map of every word")] = False,
    ) -> dict[str, Any]:
        asked = _phrases(phrases, limits)
        kept = await _upload(answers, image, key, limits)
        return await _patiently(answers.localize(kept, asked, top_k, method, maps, words), limits)

    @app.post("/api/words-at", summary="Which words look at this point?")
    async def words_at(point: WordsAt) -> dict[str, Any]:
        kept = answers.kept(point.key)
        if kept is None:
            raise Refused(404, "that photograph has left the server's memory; send it again")
        return await _patiently(answers.words_at(kept, point.x, point.y, point.count), limits)

    @app.post("/api/chips", summary="The noun phrases of a caption")
    async def chips(text: Text) -> dict[str, list[str]]:
        return {"phrases": answers.chips(text.text)[: limits.phrases]}

    @app.get("/api/image/{key}", summary="A photograph that is still held", response_class=Response)
    async def image_of(key: str) -> Response:
        kept = answers.kept(key)
        if kept is None:
            raise Refused(404, "that photograph has left the server's memory; send it again")
        return Response(kept.content, media_type=kept.kind, headers={"Cache-Control": "private, max-age=600"})

    @app.get("/api/model", summary="What the model is")
    async def model() -> dict[str, Any]:
        return answers.about() | {"examples": list(EXAMPLES)}

    @app.get("/healthz", summary="Alive?")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": answers.batcher.waiting(), "scenes": len(answers.scenes)}


def _add_files(app: FastAPI) -> None:
    web, package = files("phrase_loc.web"), files("phrase_loc")
    for route, (name, kind) in PAGE_FILES.items():
        app.add_api_route(route, _sender(web.joinpath(name).read_bytes(), kind), include_in_schema=False)
    for name in EXAMPLES:
        content = package.joinpath("examples", name).read_bytes()
        app.add_api_route(f"/examples/{name}", _sender(content, "image/png"), include_in_schema=False)


def _sender(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=kind, headers={"Content-Security-Policy": POLICY})

    return send


def _add_guards(app: FastAPI, limits: Limits, token: str | None) -> None:
    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": error.sentence}, error.status)

    @app.exception_handler(PhraseLocError)
    async def mended_by_user(_: Request, error: PhraseLocError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503, headers={"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return JSONResponse({"error": f"{where}: {first['msg'].lower()}"}, 422)

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        if token is not None and request.url.path.startswith("/api/"):
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), token.encode()):
                sentence = "this server wants a token: send `Authorization: Bearer TOKEN`"
                return JSONResponse({"error": sentence}, 401)
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > limits.upload_bytes + 65536:
            return JSONResponse({"error": _too_large(limits)}, 413)
        response = await proceed(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response


def _phrases(text: str, limits: Limits) -> list[str]:
    try:
        phrases = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        phrases = None
    if not isinstance(phrases, list) or not all(isinstance(p, str) for p in phrases):
        raise Refused(422, 'phrases must be a JSON list of strings, such as ["a red hat"]')
    phrases = [p.strip() for p in phrases if p.strip()]
    if not 1 <= len(phrases) <= limits.phrases:
        raise Refused(422, f"expected 1 to {limits.phrases} phrases, got {len(phrases)}")
    if long := [p for p in phrases if len(p) > limits.phrase_length]:
        raise Refused(422, f"a phrase may have {limits.phrase_length} characters, one has {len(long[0])}")
    return phrases


async def _upload(answers: Answers, image: UploadFile | None, key: str | None, limits: Limits) -> Any:
    if image is not None:
        content = await image.read(limits.upload_bytes + 1)
        if len(content) > limits.upload_bytes:
            raise Refused(413, _too_large(limits))
        return await _patiently(answers.look(content, image.filename or "image"), limits)
    if key is None:
        raise Refused(422, "expected a photograph in the field image, or the key of one sent before")
    kept = answers.kept(key)
    if kept is None:
        raise Refused(404, "that photograph has left the server's memory; send it again")
    return kept


async def _patiently(work: "Awaitable[T] | Future[T]", limits: Limits) -> T:
    waiting = asyncio.wrap_future(work) if isinstance(work, Future) else work
    try:
        return await asyncio.wait_for(waiting, limits.seconds)
    except TimeoutError:
        raise Refused(
            503, f"no answer within {limits.seconds:g} seconds; the server is busy, try again"
        ) from None


def _too_large(limits: Limits) -> str:
    return (
        f"the photograph is larger than the {limits.upload_bytes / 2**20:g} MB that are accepted; shrink it"
    )
