"""The HTTP API and the page behind it, as one FastAPI application; GET /openapi.json lists its routes.

Refused input gets a 4xx with {"error": one sentence}, a full queue or a slow answer 503. Nothing is written to disk,
and no path of the server can be asked for: files are served from a fixed list.
"""

import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, Request, UploadFile, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from phrase_loc import __version__
from phrase_loc.errors import PhraseLocError, nearest
from phrase_loc.files import once, reason
from phrase_loc.localizer import PhraseLocalizer
from phrase_loc.text.splitting import noun_phrases
from phrase_loc.web.answers import Answers, Kept, Limits, Refused, typed_phrases
from phrase_loc.web.export import HELD, PICTURES, Asked, Export, outlined, written
from phrase_loc.web.label_studio import Labeller, Photographs, add_routes
from phrase_loc.web.server import Access, Middleware, plain, sentence, too_large

_HTML, _CSS, _SCRIPT = (f"text/{kind}; charset=utf-8" for kind in ("html", "css", "javascript"))
#: What the page is made of; nothing else can be asked for.
PAGE_FILES = {"/": ("web/page/index.html", _HTML), "/docs": ("web/page/api.html", _HTML)}
PAGE_FILES |= {"/page.css": ("web/page/page.css", _CSS)} | {
    f"/{script.name}": (f"web/page/{script.name}", _SCRIPT)
    for script in files("phrase_loc").joinpath("web/page").iterdir()
    if script.name.endswith(".js")
}
EXAMPLES = ("astronaut.png", "coffee.png", "chelsea.png")
POLICY = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; frame-ancestors 'none'"
PAGE_HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

# it would tell what was sent, a line for each byte
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class WordsAt(BaseModel, extra="forbid"):
    """A point of a photograph that is still held, in pixels of the original from its upper left corner."""

    key: str = Field(description=HELD, max_length=64)
    x: float = Field(description="from the left", ge=0, allow_inf_nan=False)
    y: float = Field(description="from the top", ge=0, allow_inf_nan=False)
    count: int = Field(default=12, ge=1, le=50, description="how many words")


class Text(BaseModel, extra="forbid"):
    """A caption, or what was typed."""

    text: str = Field(max_length=2000)


class ErrorBody(BaseModel):
    """Why a request was refused."""

    error: str


class StrictRequest(Request):
    """A request whose JSON has each key once, as in all our files: of two the last would win without a word."""

    async def json(self) -> Any:
        """The value of the body."""
        try:
            return json.loads(await self.body(), object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            why = f"the request holds no JSON that can be read ({reason(error)}); send an object"
            raise Refused(422, why) from None


class StrictRoute(APIRoute):
    """A route that refuses what it would otherwise overlook: unknown or repeated fields, and queries."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind those checks."""
        handle = super().get_route_handler()
        known = [f.alias for f in self.dependant.body_params if isinstance(f.field_info, params.Form)]

        async def handler(request: Request) -> Response:
            if request.query_params:
                raise Refused(422, f"{self.path} takes nothing after a question mark; send it in the body")
            try:
                if known:
                    request._form = await _form(request)  # where FastAPI looks for it
                    _check_fields(request._form, known)
                return await handle(request if known else StrictRequest(request.scope, request.receive))
            finally:
                await request.close()

        return handler


def _check_fields(form: FormData, known: list[str]) -> None:
    names = [name for name, _ in form.multi_items()]
    for place, name in enumerate(names):
        if name not in known:
            raise Refused(422, f"unknown field {name!r}{nearest(name, known)}; known: {', '.join(known)}")
        if name in names[:place]:
            raise Refused(422, f"the field {name} came more than once; send it once")


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
            for file in self._files_to_close_on_error:  # the form does not know that of its last part
                file.close()
            raise MultiPartException("It ends before its last boundary; send it again")
        return form


async def _form(request: Request) -> FormData:
    """The fields of a form, which never touches the disk."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return FormData()
    try:
        async with aclosing(request.stream()) as stream:
            return await InMemoryParser(request.headers, stream, max_files=4, max_fields=16).parse()
    except MultiPartException as error:
        why = error.message.rstrip(".").lower()
        raise Refused(400, f"the form cannot be read: {why}") from None
    except (LookupError, ValueError):  # of an encoding that it claims
        raise Refused(400, "the form cannot be read; send it in UTF-8") from None


def create_app(
    localizer: PhraseLocalizer,
    limits: Limits = Limits(),  # noqa: B008
    token: str | None = None,
    hosts: Iterable[str] | None = None,
    addresses: bool = False,
    photographs: Photographs | None = None,
) -> FastAPI:
    """The application for one model; its `state.stopping` says that the server stops.

    With a token every API request must bring it as `Authorization: Bearer TOKEN`. See `Access` for the names of the
    server (`hosts`, None for any; numeric `addresses` beside them). `photographs` says what may be fetched for a
    labelling tool, None for nothing.
    """
    answers = Answers(localizer, limits)
    labeller = Labeller(answers, photographs or Photographs(most=limits.upload_bytes))

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
        exception_handlers=dict.fromkeys((PhraseLocError, HTTPException, RequestValidationError), _in_words),
    )
    app.state.stopping = False
    router = APIRouter(route_class=StrictRoute)
    _photographs(router, answers)
    _questions(router, answers)
    add_routes(router, labeller)
    app.include_router(router)
    static = PAGE_FILES | {f"/examples/{name}": (f"examples/{name}", "image/png") for name in EXAMPLES}
    for route, (name, kind) in static.items():
        _add_file(app, route, name, kind)
    names = None if hosts is None else {name.lower() for name in hosts}
    access = Access(token, names, addresses, {*static, "/openapi.json", "/healthz"})
    app.add_middleware(Middleware, limits=limits, access=access)
    return app


async def _in_words(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in an exception that a sentence answers."""
    if isinstance(error, PhraseLocError):
        return sentence(400, str(error))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return sentence(422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}")
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return sentence(error.status_code, error.detail)
    asked = f"{request.method} {request.scope['path'][:200]}: {error.detail.lower()}"
    answer = sentence(error.status_code, f"{asked}; /openapi.json lists what there is")
    answer.headers.update(error.headers or {})
    return answer


def _photographs(router: APIRouter, answers: Answers) -> None:
    limits = answers.limits

    @router.post("/api/look", summary="Send a photograph, to ask about it by its key")
    async def look(image: Annotated[UploadFile, File(description="a photograph")]) -> dict[str, Any]:
        kept = await _upload(answers, image)
        return {"image": _name(image), "key": kept.key, "size": [kept.scene.size[1], kept.scene.size[0]]}

    @router.post("/api/localize", summary="Find phrases in a photograph")
    async def localize(
        phrases: Annotated[str, Form(description='JSON list of strings, such as ["a red hat"]')],
        image: Annotated[UploadFile | None, File(description="a photograph")] = None,
        key: Annotated[str | None, Form(description=HELD, max_length=64)] = None,
        top_k: Annotated[int, Form(ge=1, le=limits.top_k)] = 5,
        method: Annotated[str | None, Form(max_length=64, description="attention method")] = None,
        maps: Annotated[bool, Form(description="also send maps and proposals")] = False,
        words: Annotated[bool, Form(description="also send the map of every word")] = False,
    ) -> dict[str, Any]:
        asked = _phrases(phrases, limits)
        if (image is None) == (key is None):
            got = "neither" if key is None else "both; send one"
            raise Refused(
                422, f"expected a photograph in the field image or the key of one sent before, got {got}"
            )
        kept = _held(answers, key) if image is None else await _upload(answers, image)
        answer = await answers.ask(answers.localize, kept, asked, top_k, method, maps, words)
        return answer if image is None else answer | {"image": _name(image)}

    @router.get("/api/image/{key}", summary="A photograph that is still held", response_class=Response)
    async def image_of(key: str) -> Response:
        kept = _held(answers, key)
        return Response(kept.content, media_type=kept.kind)


def _questions(router: APIRouter, answers: Answers) -> None:
    limits = answers.limits

    @router.post("/api/words-at", summary="Which words look at this point?")
    async def words_at(point: WordsAt) -> dict[str, Any]:
        kept = _held(answers, point.key)
        return await answers.ask(answers.words_at, kept.scene, point.x, point.y, point.count)

    @router.post("/api/export", summary="Labels in the format of another tool", response_class=Response)
    async def export(labels: Export) -> Response:
        sent = labels.photographs if labels.format in PICTURES else []
        held = {photo.key: _held(answers, photo.key) for photo in sent}
        return Response(await answers.beside(written, labels, held), media_type="application/octet-stream")

    @router.post("/api/masks", summary="The outlines of a phrase in boxes of a photograph")
    async def masks(asked: Asked) -> dict[str, Any]:
        phrases = _phrases(json.dumps([asked.phrase]), limits)
        return await answers.ask(outlined, answers.localizer, _held(answers, asked.key).scene, phrases, asked)

    @router.post("/api/chips", summary="The noun phrases of a caption")
    async def chips(text: Text) -> dict[str, list[str]]:
        found = await answers.beside(noun_phrases, text.text)
        return {"phrases": list(dict.fromkeys(found))[: limits.phrases]}

    @router.post("/api/phrases", summary="The phrases of a typed text")
    async def phrases(text: Text) -> dict[str, list[str]]:
        return {"phrases": (await answers.beside(typed_phrases, text.text))[: limits.phrases]}

    @router.get("/api/model", summary="What the model is")
    async def model() -> dict[str, Any]:
        return answers.about() | {"examples": list(EXAMPLES)}

    @router.get("/healthz", summary="Alive?")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": answers.batcher.waiting(), "scenes": len(answers.scenes)}


def _add_file(app: FastAPI, route: str, name: str, kind: str) -> None:
    content = files("phrase_loc").joinpath(name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind, headers=PAGE_HEADERS)

    app.add_api_route(route, send, include_in_schema=False)


def _phrases(text: str, limits: Limits) -> list[str]:
    phrases = None
    with suppress(ValueError, RecursionError):  # also a number of too many digits
        phrases = json.loads(text)
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
    kept = None if key is None else answers.scenes.read(key)
    if kept is None:
        raise Refused(404, "that photograph has left the server's memory; send it again")
    return kept


async def _upload(answers: Answers, image: UploadFile) -> Kept:
    content = await image.read(answers.limits.upload_bytes + 1)
    await image.close()  # its copy is not needed while the photograph waits
    if len(content) > answers.limits.upload_bytes:
        raise Refused(413, too_large(answers.limits.upload_bytes))
    return await answers.look(content)


def _name(image: UploadFile) -> str:
    """What the sender calls a photograph; repeated to nobody else."""
    return plain(image.filename or "image")[:200]
