"""The HTTP API and the page behind it, as one FastAPI application.

    POST /api/look       multipart: image -> its key, under which it is held for further questions
    POST /api/localize   multipart: image, or the key of one that is still held; phrases (JSON list)
    POST /api/words-at   JSON: key, x, y -> the words of the vocabulary that look there
    POST /api/chips      JSON: text -> its noun phrases
    POST /api/phrases    JSON: typed text -> its phrases, as the command line separates them
    GET  /api/image/KEY  a photograph that is still held
    GET  /api/model      what the model is
    GET  /healthz        alive, and how busy
    GET  /openapi.json   this, for programs

The answer to /api/localize is the object of `phrase-loc query --json` with `key` and, on demand, what the page
needs to draw and rank by itself: `proposals` and the `map` and `word_maps` of each phrase. Refused input gets a
4xx with {"error": one sentence}; a full queue or a slow answer 503. Nothing is written to disk, and no path of
the server can be asked for: files are served from a fixed list.

FastAPI with a page of ours and no Gradio: the page is made for one job, works offline, sends a map once and
colours and ranks it in the browser, and the same few routes are the API.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, UploadFile
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from phrase_loc import __version__
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.web.answers import Answers, Batcher, Kept, Limits
from phrase_loc.web.door import Access, Door, Leaving, too_large
from phrase_loc.web.forms import Refused, StrictRoute, add_sentences, plain

SCRIPTS = [
    "page",
    "state",
    "server",
    "messages",
    "ranking",
    "painting",
    "labels",
    "results",
    "compare",
    "pointing",
    "keeping",
]
#: What the page is made of; nothing else can be asked for.
PAGE_FILES = {
    "/": ("page/index.html", "text/html; charset=utf-8"),
    "/docs": ("page/api.html", "text/html; charset=utf-8"),
    "/page.css": ("page/page.css", "text/css; charset=utf-8"),
} | {f"/{name}.js": (f"page/{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS}
EXAMPLES = ("astronaut.png", "coffee.png", "chelsea.png")
POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; frame-ancestors 'none'"
GONE = "that photograph has left the server's memory; send it again"
KEY = Field(description="of a photograph that is still held", max_length=64)


class WordsAt(BaseModel):
    """A point of a photograph that is still held, in pixels of the original from its upper left corner."""

    model_config = ConfigDict(extra="forbid")

    key: str = KEY
    x: float = Field(description="from the left", ge=0, allow_inf_nan=False)
    y: float = Field(description="from the top", ge=0, allow_inf_nan=False)
    count: int = Field(default=12, ge=1, le=50, description="how many words")


class Text(BaseModel):
    """A caption, or what was typed."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=2000)


class ErrorBody(BaseModel):
    """Why a request was refused."""

    error: str


def create_app(
    localizer: PhraseLocalizer,
    limits: Limits = Limits(),  # noqa: B008
    token: str | None = None,
    hosts: Iterable[str] | None = None,
    addresses: bool = False,
) -> FastAPI:
    """The application for one model; `app.state.leaving` is told when the server stops.

    Args:
        localizer: answers the questions.
        limits: what is accepted and kept.
        token: when given, every API request must bring it as `Authorization: Bearer TOKEN`.
        hosts: names by which the server may be called, None for any; see `Access`.
        addresses: whether numeric addresses are accepted beside those names.
    """
    answers = Answers(localizer, Batcher(localizer, limits.queue, limits.batch), limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        answers.close()

    app = FastAPI(
        title="phrase_loc",
        version=__version__,
        description="Type a phrase, get the region of the photograph it names.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the host that the request claims
        lifespan=lifespan,
        responses={code: {"model": ErrorBody} for code in (400, 401, 403, 404, 408, 413, 422, 503)},
    )
    app.state.leaving = Leaving()
    names = None if hosts is None else frozenset(name.lower() for name in hosts)
    pages = frozenset({*PAGE_FILES, *(f"/examples/{name}" for name in EXAMPLES), "/openapi.json", "/healthz"})
    access = Access(token, names, addresses, pages)
    app.add_middleware(Door, limits=limits, access=access, leaving=app.state.leaving)
    add_sentences(app)
    app.include_router(_photographs(answers, limits))
    app.include_router(_questions(answers, limits))
    _add_files(app)
    return app


def _photographs(answers: Answers, limits: Limits) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post("/api/look", summary="Send a photograph, to ask about it by its key")
    async def look(image: Annotated[UploadFile, File(description="a photograph")]) -> dict[str, Any]:
        kept = await _upload(answers, image, limits)
        return {"image": _name(image), "key": kept.key, "size": [kept.scene.size[1], kept.scene.size[0]]}

    @router.post("/api/localize", summary="Find phrases in a photograph")
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
        if image is None and key is None:
            raise Refused(422, "expected a photograph in the field image, or the key of one sent before")
        if image is not None and key is not None:
            raise Refused(422, "expected a photograph or a key, got both; send one")
        kept = _held(answers, key) if image is None else await _upload(answers, image, limits)
        answer = await answers.localize(kept, asked, top_k, method, maps, words)
        return answer if image is None else answer | {"image": _name(image)}

    @router.get("/api/image/{key}", summary="A photograph that is still held", response_class=Response)
    async def image_of(key: str) -> Response:
        kept = _held(answers, key)
        return Response(kept.content, media_type=kept.kind)

    return router


def _questions(answers: Answers, limits: Limits) -> APIRouter:
    router = APIRouter(route_class=StrictRoute)

    @router.post("/api/words-at", summary="Which words look at this point?")
    async def words_at(point: WordsAt) -> dict[str, Any]:
        kept = _held(answers, point.key)
        return await answers.words_at(kept, point.x, point.y, point.count)

    @router.post("/api/chips", summary="The noun phrases of a caption")
    async def chips(text: Text) -> dict[str, list[str]]:
        return {"phrases": (await answers.chips(text.text))[: limits.phrases]}

    @router.post("/api/phrases", summary="The phrases of a typed text")
    async def phrases(text: Text) -> dict[str, list[str]]:
        return {"phrases": (await answers.phrases(text.text))[: limits.phrases]}

    @router.get("/api/model", summary="What the model is")
    async def model() -> dict[str, Any]:
        return answers.about() | {"examples": list(EXAMPLES)}

    @router.get("/healthz", summary="Alive?")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": answers.batcher.waiting(), "scenes": len(answers.scenes)}

    return router


def _add_files(app: FastAPI) -> None:
    web, package = files("phrase_loc.web"), files("phrase_loc")
    for route, (name, kind) in PAGE_FILES.items():
        app.add_api_route(route, _sender(web.joinpath(name).read_bytes(), kind), include_in_schema=False)
    for name in EXAMPLES:
        content = package.joinpath("examples", name).read_bytes()
        app.add_api_route(f"/examples/{name}", _sender(content, "image/png"), include_in_schema=False)


def _sender(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    async def send() -> Response:
        return Response(content, media_type=kind, headers=headers)

    return send


def _phrases(text: str, limits: Limits) -> list[str]:
    try:
        phrases = json.loads(text)
    except (ValueError, RecursionError):  # also a number of too many digits
        phrases = None
    if not isinstance(phrases, list) or not all(isinstance(p, str) for p in phrases):
        raise Refused(422, 'phrases must be a JSON list of strings, such as ["a red hat"]')
    # a lone surrogate, which JSON allows, could not be sent back
    phrases = [p.encode("utf-8", "replace").decode().strip() for p in phrases]
    phrases = [p for p in phrases if p]
    if not 1 <= len(phrases) <= limits.phrases:
        raise Refused(422, f"expected 1 to {limits.phrases} phrases, got {len(phrases)}")
    if long := [p for p in phrases if len(p) > limits.phrase_length]:
        raise Refused(422, f"a phrase may have {limits.phrase_length} characters, one has {len(long[0])}")
    if (words := sum(len(p.split()) for p in phrases)) > limits.words:
        raise Refused(422, f"the phrases may have {limits.words} words together, they have {words}")
    return phrases


def _held(answers: Answers, key: str | None) -> Kept:
    kept = None if key is None else answers.kept(key)
    if kept is None:
        raise Refused(404, GONE)
    return kept


async def _upload(answers: Answers, image: UploadFile, limits: Limits) -> Kept:
    content = await image.read(limits.upload_bytes + 1)
    await image.close()  # its copy is not needed while the photograph waits
    if len(content) > limits.upload_bytes:
        raise Refused(413, too_large(limits))
    return await answers.look(content)


def _name(image: UploadFile) -> str:
    """What the sender calls a photograph; repeated to nobody else."""
    return plain(image.filename or "image")[:200]
