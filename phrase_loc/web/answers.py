"""What the API answers: the JSON of `query --json`, maps for the page, words at a point.

Maps travel as 16-bit levels of a square grid over the whole photograph; the page colours them and ranks the proposals
itself when a slider moves (page/ranking.js does what ranking.py does).
"""

import asyncio
import base64
import hmac
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from starlette.exceptions import HTTPException
from torch import Tensor

from phrase_loc.display import answer_dict
from phrase_loc.errors import DataError, choose
from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer, Prepared, prepare
from phrase_loc.maps import min_max
from phrase_loc.structures import Scene
from phrase_loc.text.splitting import noun_phrases, split_phrases

#: Methods that need nothing beyond the package, quick enough for a page.
PAGE_METHODS = ("contrastive_mwp", "mwp", "grad_cam", "cam", "gradient")
LONGEST_PHRASE = 6  # words; more are a sentence
COMMON_WORDS = 4000  # of the vocabulary, asked by `words_at`

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on a request, on all of them together, and on what is kept."""

    upload_bytes: int = 20 * 1024 * 1024  # of an image file
    pixels: int = 40_000_000  # width times height, refused before decoding
    phrases: int = 64  # of one request
    phrase_length: int = 200  # characters
    words: int = 400  # of all phrases of one request together; each is a seed of its own
    top_k: int = 50  # boxes of one phrase
    seconds: float = 30.0  # longest wait for an answer once the request is there; then 503
    labelling_seconds: float = 100.0  # the same for a labelling tool, which sends many photographs at once
    queue: int = 64  # requests waiting at once; one more is refused with 503
    batch: int = 8  # images encoded together
    decoders: int = 2  # photographs decoded at once
    scenes: int = 64  # photographs kept for further questions, the least recently used leaves first
    kept_bytes: int = 128 * 1024 * 1024  # of the files of those photographs together
    uploading_bytes: int = 256 * 1024 * 1024  # of all requests that are read or wait for an answer; then 503
    connections: int = 256  # fewer where the system allows few open files; the longest idle one gives way
    header_seconds: float = 10.0  # in which a connection must have sent the head of a request
    body_seconds: float = 20.0  # in which the rest must have come; `body_rate` bytes give one second more
    body_rate: float = 50_000.0  # bytes a second of the slowest sender that is waited for
    leaving_seconds: float = 5.0  # in which what was asked is still answered when the server stops; then 503


@dataclass(frozen=True, slots=True)
class Kept:
    """A photograph as it was uploaded and what the network saw in it; not what somebody called it."""

    key: str
    content: bytes
    kind: str  # its media type
    scene: Scene


class SceneCache(OrderedDict[str, Kept]):
    """At most `capacity` photographs and `most_bytes` of their files; used by the event loop alone."""

    def __init__(self, capacity: int, most_bytes: int):
        super().__init__()
        self.capacity, self.most_bytes = capacity, most_bytes

    def read(self, key: str) -> Kept | None:
        """The photograph of that name, which becomes the youngest; None when it has left."""
        if key in self:
            self.move_to_end(key)
        return self.get(key)

    def put(self, kept: Kept) -> None:
        """Keep a photograph; the least recently read leave when there are too many, or too large ones."""
        self[kept.key] = kept
        self.move_to_end(kept.key)
        while len(self) > self.capacity or (
            len(self) > 1 and sum(len(k.content) for k in self.values()) > self.most_bytes
        ):
            self.popitem(last=False)


class Refused(HTTPException):
    """A request that cannot be served, with its status and one sentence.

    It is an HTTPException since FastAPI turns whatever else a form's parser raises into a 400 of its own.
    """


class Batcher:
    """One thread that owns the model while the server runs: at most `capacity` jobs wait for it.

    Photographs that wait are encoded together, `batch` in one pass.
    """

    def __init__(self, localizer: PhraseLocalizer, capacity: int, batch: int):
        self.localizer, self.capacity, self.batch = localizer, capacity, batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="phrase-loc-model")
        self._jobs: set[Future] = set()  # that are not done
        self._pictures: deque[tuple[Future, Prepared]] = deque()  # not encoded yet, or given up

    def put(self, job: Prepared | Callable[[], Any]) -> Future:
        """The scene of a photograph, or what an action gives, run on the model's thread."""
        if max(self.waiting(), len(self._pictures)) >= self.capacity:
            raise Refused(503, f"{self.capacity} requests are waiting already; try again in a moment")
        if isinstance(job, Prepared):
            future: Future = Future()
            self._pictures.append((future, job))
            self._thread.submit(self._encode)
        else:
            future = self._thread.submit(job)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return future

    def waiting(self) -> int:
        """How many jobs wait."""
        return sum(not job.running() for job in list(self._jobs))

    def close(self) -> None:
        """Finish what runs, give up what waits, then stop."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        for job in list(self._jobs):
            job.cancel()

    def _encode(self) -> None:
        """Encodes what waits, if an earlier photograph has not taken it along: the thread must live on."""
        found = [self._pictures.popleft() for _ in range(min(self.batch, len(self._pictures)))]
        found = [(future, picture) for future, picture in found if future.set_running_or_notify_cancel()]
        try:
            scenes = self.localizer.look_at([picture for _, picture in found]) if found else []
            for (future, _), scene in zip(found, scenes, strict=True):
                future.set_result(scene)
        except Exception as error:
            for future, _ in found:
                if not future.done():
                    future.set_exception(error)


class Answers:
    """The questions of the API, asked of one model through one queue."""

    def __init__(self, localizer: PhraseLocalizer, limits: Limits):
        self.localizer, self.limits = localizer, limits
        self.batcher = Batcher(localizer, limits.queue, limits.batch)
        self.scenes = SceneCache(limits.scenes, limits.kept_bytes)
        self._secret = secrets.token_bytes(32)
        self._decoders = ThreadPoolExecutor(limits.decoders, thread_name_prefix="phrase-loc-decoder")
        self._looking: dict[str, asyncio.Task[Kept]] = {}  # photographs that are being encoded
        self._waiting: Counter[str] = Counter()  # how many wait for each

    def close(self) -> None:
        """Start nothing more."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()

    async def look(self, content: bytes) -> Kept:
        """Decode an upload beside the event loop, encode it once, keep it by a name that nobody else can compute.

        Who sends a photograph that is being encoded waits for that; it is given up when nobody waits any more.
        """
        key = hmac.digest(self._secret, content, "sha256").hex()[:32]
        if (known := self.scenes.read(key)) is not None:
            return known
        if key not in self._looking:
            if len(self._looking) >= self.limits.queue:
                raise Refused(
                    503, f"{len(self._looking)} photographs are waiting already; try again in a moment"
                )
            self._looking[key] = asyncio.create_task(self._look(key, content))
        self._waiting[key] += 1
        try:
            return await asyncio.shield(self._looking[key])
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                self._looking.pop(key).cancel()

    async def _look(self, key: str, content: bytes) -> Kept:
        prepared, kind = await self.beside(self._prepare, content)
        scene = await asyncio.wrap_future(self.batcher.put(prepared))
        kept = Kept(key, content, kind, scene)
        self.scenes.put(kept)
        return kept

    async def beside(self, action: Callable[..., T], *given: Any) -> T:
        """What a function gives, run on one of the few threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, action, *given)

    async def ask(self, action: Callable[..., T], *given: Any) -> T:
        """What `localize` or `words_at` gives, run on the model's thread."""
        return await asyncio.wrap_future(self.batcher.put(partial(action, *given)))

    def about(self) -> dict[str, Any]:
        """Facts about the model and the limits, for GET /api/model."""
        model, settings = self.localizer.model, self.localizer.settings
        return {
            "backbone": model.config.backbone,
            "words": len(model.vocabulary),
            "further_words": len(model.extra),
            "calibrated": bool(model.config.calibration),
            "method": settings.method,
            "methods": list(PAGE_METHODS),
            "ranking": {"score": "mass"}
            | {k: getattr(settings, k) for k in ("gamma", "spread", "nms", "temperature")},
            "limits": {"phrases": self.limits.phrases, "upload_bytes": self.limits.upload_bytes},
        }

    def _prepare(self, content: bytes) -> tuple[Prepared, str]:
        picture = load_image(content, self.limits.pixels)
        prepared = prepare(picture, self.localizer.settings, None, self.localizer.source, keep=True)
        kinds = {b"\x89P": "image/png", b"\xff\xd8": "image/jpeg", b"GI": "image/gif", b"RI": "image/webp"}
        return prepared, kinds.get(content[:2], "application/octet-stream")

    def localize(
        self, kept: Kept, phrases: list[str], top_k: int, method: str | None, maps: bool, words: bool
    ) -> dict[str, Any]:
        """The answer of `query --json` with the photograph's key and, where asked for, maps and proposals."""
        if method is not None:
            choose(dict.fromkeys(PAGE_METHODS), method, "attention method")
        predictions = self.localizer.locate(kept.scene, phrases, top_k=top_k, method=method)
        answer = answer_dict(kept.key, kept.scene.size, predictions) | {"key": kept.key}
        if maps:
            answer["proposals"] = _flat(kept.scene.proposals)
            units = self.localizer.phrase_units(self.localizer.encode(phrases))
            added = self.localizer.box_scores(kept.scene, kept.scene.proposals, units)
        for i, (shown, prediction) in enumerate(zip(answer["predictions"], predictions, strict=True)):
            if maps:
                heat = self._heats(prediction.attention[None])[0] if prediction.peak is not None else None
                own = None if heat is None else self.localizer.source.of_map(heat, kept.scene.size)
                shown |= {"map": None if heat is None else encoded_map(heat), "proposals": _flat(own)}
                further = self.localizer.box_scores(kept.scene, own, units[i, None])
                shown["added"] = _flat(None if added is None else added[i], 4) + _flat(further, 4)
            if words:
                known = [w for w in prediction.words if w.known]
                asked = self.localizer.attend(kept.scene, [w.text for w in known], method) if known else None
                heats = () if asked is None else self._heats(asked.cpu())
                found = zip(known, heats, strict=True)
                shown["word_maps"] = [{"word": w.written, "map": encoded_map(heat)} for w, heat in found]
        return answer

    def _heats(self, attention: Tensor) -> Tensor:
        grid = self.localizer.settings.grid
        return self.localizer.heat(attention, (grid, grid))

    @torch.inference_mode()
    def words_at(self, scene: Scene, x: float, y: float, count: int) -> dict[str, Any]:
        """The words whose score at a point most exceeds their mean score over the photograph."""
        height, width = scene.size
        if x > width or y > height:
            raise DataError(
                f"the point ({x:g}, {y:g}) lies outside the photograph of {width} x {height} pixels"
            )
        model = self.localizer.model
        features = self.localizer.features(scene)[None]
        ids = torch.arange(min(len(model.vocabulary), COMMON_WORDS), device=features.device)
        scores = model.location_scores(features, ids)[0]  # (V, h, w)
        row = min(int(y / height * scores.shape[1]), scores.shape[1] - 1)
        column = min(int(x / width * scores.shape[2]), scores.shape[2] - 1)
        here = scores[:, row, column]
        best = (here + (here - scores.mean((1, 2)))).topk(min(count, len(ids)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"words": [{"word": model.vocabulary.words[i], "score": round(s, 3)} for i, s in found]}


def typed_phrases(text: str) -> list[str]:
    """What is asked when somebody types a text: as the command line reads it, long sentences cut into phrases."""
    parts = split_phrases(text)
    found = [noun_phrases(part) if len(part.split()) > LONGEST_PHRASE else [part] for part in parts]
    return list(dict.fromkeys(chain.from_iterable(found)))


def encoded_map(heat: Tensor) -> dict[str, Any]:
    """A square map as {"side", "data"}: 0..65535 from its minimum to its maximum, 16 bits each, little-endian,
    rows from the top, in base64. The ranking takes the minimum off anyway.
    """
    level = min_max(heat.float()).cpu().mul(65535).round().numpy().astype("<u2")
    return {"side": heat.shape[-1], "data": base64.b64encode(level.tobytes()).decode()}


def _flat(values: Tensor | None, digits: int = 2) -> list[float]:
    """Numbers one after the other, such as the corners of boxes in hundredths of pixels."""
    return [] if values is None else [round(v, digits) for v in values.flatten().tolist()]
