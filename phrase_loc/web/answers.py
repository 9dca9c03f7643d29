"""What the API answers, made from the model: the JSON of `query --json`, maps for the page, words at a point.

Maps travel as 16-bit levels of a square grid over the whole photograph, in base64; the page colours them and
ranks the proposals itself when a slider moves (page/ranking.js does what ranking.py does).
"""

import asyncio
import base64
import hmac
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from phrase_loc.attention import METHODS
from phrase_loc.display import to_dict
from phrase_loc.errors import DataError, choose
from phrase_loc.images import load_image
from phrase_loc.localizer import PhraseLocalizer, Prepared, prepare
from phrase_loc.maps import min_max
from phrase_loc.structures import Prediction, Scene
from phrase_loc.text.splitting import noun_phrases, split_phrases


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on a request, on all of them together, and on what is kept.

    Attributes:
        upload_bytes: largest image file.
        pixels: largest width times height, refused before decoding.
        phrases: most phrases of one request.
        phrase_length: most characters of one phrase.
        words: most words of all phrases of one request together; each is a seed of its own.
        top_k: most boxes of one phrase.
        seconds: longest wait for an answer once the request is there; then 503.
        queue: requests waiting at once; one more is refused with 503.
        batch: images looked at together.
        decoders: photographs decoded at once.
        scenes: photographs kept in memory for further questions, the least recently used leaves first.
        kept_bytes: of the files of those photographs together.
        uploading_bytes: of all requests that are read or wait for their answer; what goes beyond is refused with 503.
        connections: open at once (fewer where the system allows few open files); then the one that has been idle
            for longest is closed.
        header_seconds: in which a connection must have sent the head of a request.
        body_seconds: in which the rest must have come; every `body_rate` bytes that come give one second more.
        body_rate: bytes a second of the slowest sender that is waited for.
        leaving_seconds: in which what was asked is still answered when the server is stopped; then 503.
    """

    upload_bytes: int = 20 * 1024 * 1024
    pixels: int = 40_000_000
    phrases: int = 64
    phrase_length: int = 200
    words: int = 400
    top_k: int = 50
    seconds: float = 30.0
    queue: int = 64
    batch: int = 8
    decoders: int = 2
    scenes: int = 64
    kept_bytes: int = 128 * 1024 * 1024
    uploading_bytes: int = 256 * 1024 * 1024
    connections: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    body_rate: float = 50_000.0
    leaving_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A photograph as it was uploaded and what the network saw in it; not what somebody called it."""

    key: str
    content: bytes
    kind: str  # its media type
    scene: Scene


def content_key(content: bytes, secret: bytes) -> str:
    """Name of a photograph: 32 hexadecimal digits that nobody can compute who lacks the server's secret."""
    return hmac.digest(secret, content, "sha256").hex()[:32]


class SceneCache:
    """At most `capacity` photographs and `most_bytes` of their files; reading one makes it the youngest."""

    def __init__(self, capacity: int, most_bytes: int):
        self.capacity, self.most_bytes, self._bytes = capacity, most_bytes, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Kept | None:
        """The photograph of that name, or None when it has left."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, kept: Kept) -> None:
        """Keep a photograph; the least recently read leave when there are too many, or too large ones."""
        with self._lock:
            old = self._kept.pop(kept.key, None)
            self._bytes += len(kept.content) - (len(old.content) if old else 0)
            self._kept[kept.key] = kept
            while len(self._kept) > self.capacity or (self._bytes > self.most_bytes and len(self._kept) > 1):
                self._bytes -= len(self._kept.popitem(last=False)[1].content)


class Busy(Exception):
    """The queue is full."""


@dataclass(frozen=True, slots=True)
class _Look:
    prepared: Prepared
    future: Future


@dataclass(frozen=True, slots=True)
class _Ask:
    action: Callable[[], Any]
    future: Future


class Batcher:
    """One thread that owns the model while the server runs.

    Args:
        localizer: what looks and answers.
        capacity: jobs that may wait.
        batch: photographs looked at in one pass.
    """

    def __init__(self, localizer: PhraseLocalizer, capacity: int, batch: int):
        self.localizer, self.batch = localizer, batch
        self._jobs: queue.Queue[_Look | _Ask | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="phrase-loc-model", daemon=True)
        self._thread.start()

    def look(self, prepared: Prepared) -> Future:
        """A Future of the Scene of a photograph."""
        return self._put(_Look(prepared, Future()))

    def ask(self, action: Callable[[], Any]) -> Future:
        """A Future of what `action` returns, run on the model's thread."""
        return self._put(_Ask(action, Future()))

    def waiting(self) -> int:
        """How many jobs wait."""
        return self._jobs.qsize()

    def close(self) -> None:
        """Finish what runs, give up what waits, then stop."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.future.cancel()
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _put(self, job: "_Look | _Ask") -> Future:
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise Busy(f"{self._jobs.maxsize} requests are waiting already; try again in a moment") from None
        return job.future

    def _work(self) -> None:
        open_ = True
        while open_:
            jobs = [self._jobs.get()]
            while len(jobs) < self.batch and not self._jobs.empty():
                jobs.append(self._jobs.get())
            open_ = None not in jobs
            self._look([j for j in jobs if isinstance(j, _Look)])
            for question in (j for j in jobs if isinstance(j, _Ask)):
                _settle(question.future, question.action)

    def _look(self, jobs: Sequence[_Look]) -> None:
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if not jobs:
            return
        try:
            scenes: list[Scene] = self.localizer.look_at([job.prepared for job in jobs])
            if len(scenes) != len(jobs):
                raise RuntimeError(f"{len(jobs)} photographs gave {len(scenes)} scenes")
        except Exception as error:  # the waiting request reports it; the worker must live on
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, scene in zip(jobs, scenes, strict=True):
            job.future.set_result(scene)


def _settle(future: Future, action: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(action())
    except Exception as error:
        future.set_exception(error)


#: Methods that need nothing beyond the package, quick enough for a page.
PAGE_METHODS = ("contrastive_mwp", "mwp", "grad_cam", "cam", "gradient")
LONGEST_PHRASE = 6  # words; more are a sentence
COMMON_WORDS = 4000  # of the vocabulary, asked by `words_at`

A = TypeVar("A")
T = TypeVar("T")


@dataclass
class _Looking:
    """A look under way, and how many wait for it."""

    task: "asyncio.Future[Kept]"
    waiting: int = 0


class Answers:
    """The questions of the API, asked of one model through one queue."""

    def __init__(self, localizer: PhraseLocalizer, batcher: Batcher, limits: Limits):
        self.localizer, self.batcher, self.limits = localizer, batcher, limits
        self.scenes = SceneCache(limits.scenes, limits.kept_bytes)
        self._secret = secrets.token_bytes(32)
        self._decoders = ThreadPoolExecutor(limits.decoders, thread_name_prefix="phrase-loc-decoder")
        self._looking: dict[str, _Looking] = {}  # touched by the event loop alone

    def close(self) -> None:
        """Start nothing more."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self.batcher.close()

    def kept(self, key: str) -> Kept | None:
        """A photograph that is still held."""
        return self.scenes.get(key)

    async def look(self, content: bytes) -> Kept:
        """Decode an upload beside the event loop, look at it once, keep it by its hash.

        Who sends a photograph that is being looked at waits for that look; it is given up when nobody waits for it
        any more.
        """
        key = content_key(content, self._secret)
        if (known := self.scenes.get(key)) is not None:
            return known
        if key not in self._looking:
            if len(self._looking) >= self.limits.queue:
                raise Busy(f"{len(self._looking)} photographs are waiting already; try again in a moment")
            self._looking[key] = _Looking(asyncio.ensure_future(self._look(key, content)))
        looking = self._looking[key]
        looking.waiting += 1
        try:
            return await asyncio.shield(looking.task)
        finally:
            looking.waiting -= 1
            if not looking.waiting:
                looking.task.cancel()
                if self._looking.get(key) is looking:
                    del self._looking[key]

    async def _look(self, key: str, content: bytes) -> Kept:
        prepared, kind = await self._beside(self._prepare, content)
        scene = await asyncio.wrap_future(self.batcher.look(prepared))
        kept = Kept(key, content, kind, scene)
        self.scenes.put(kept)
        return kept

    async def _beside(self, action: Callable[[A], T], given: A) -> T:
        """Run an action on one of the few threads that decode."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, action, given)

    async def localize(
        self, kept: Kept, phrases: list[str], top_k: int, method: str | None, maps: bool, words: bool
    ) -> dict[str, Any]:
        """The answer to one question."""
        if method is not None:
            choose({name: METHODS[name] for name in PAGE_METHODS}, method, "attention method")
        return await asyncio.wrap_future(
            self.batcher.ask(lambda: self._localize(kept, phrases, top_k, method, maps, words))
        )

    async def words_at(self, kept: Kept, x: float, y: float, count: int) -> dict[str, Any]:
        """The words that look at a point of a photograph."""
        height, width = kept.scene.size
        if x > width or y > height:
            raise DataError(
                f"the point ({x:g}, {y:g}) lies outside the photograph of {width} x {height} pixels"
            )
        return await asyncio.wrap_future(
            self.batcher.ask(lambda: self._words_at(kept, x / width, y / height, count))
        )

    async def chips(self, text: str) -> list[str]:
        """The noun phrases of a caption, in order, once each."""
        phrases = await self._beside(noun_phrases, text)
        return list(dict.fromkeys(phrases))

    async def phrases(self, text: str) -> list[str]:
        """What is asked when somebody types a text: as the command line reads it, long sentences cut into phrases."""
        return await self._beside(_typed, text)

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
            "ranking": {"score": "mass", "gamma": settings.gamma, "nms": settings.nms}
            | {"temperature": settings.temperature},
            "prior": settings.prior,
            "limits": {"phrases": self.limits.phrases, "upload_bytes": self.limits.upload_bytes},
        }

    def _prepare(self, content: bytes) -> tuple[Prepared, str]:
        picture = load_image(content, self.limits.pixels)
        prepared = prepare(picture, self.localizer.settings, None, self.localizer.source)
        kinds = {b"\x89P": "image/png", b"\xff\xd8": "image/jpeg", b"GI": "image/gif", b"RI": "image/webp"}
        return prepared, kinds.get(content[:2], "application/octet-stream")

    def _localize(
        self, kept: Kept, phrases: list[str], top_k: int, method: str | None, maps: bool, words: bool
    ) -> dict[str, Any]:
        predictions = self.localizer.locate(kept.scene, phrases, top_k=top_k, method=method)
        height, width = kept.scene.size
        answer: dict[str, Any] = {"image": kept.key, "size": [width, height]}
        answer["predictions"] = [to_dict(p) for p in predictions]
        answer["key"] = kept.key
        if maps:
            answer["proposals"] = _flat(kept.scene.proposals)
            for shown, prediction in zip(answer["predictions"], predictions, strict=True):
                shown |= self._map_of(kept, prediction)
        if words:
            for shown, prediction in zip(answer["predictions"], predictions, strict=True):
                shown["word_maps"] = self._word_maps(kept, prediction, method)
        return answer

    def _map_of(self, kept: Kept, prediction: Prediction) -> dict[str, Any]:
        if not prediction.known:
            return {"map": None, "proposals": []}
        grid = self.localizer.settings.grid
        heat = self.localizer.heat(prediction.attention[None], (grid, grid))[0]
        own = self.localizer.source.of_map(heat, kept.scene.size)
        return {"map": encoded_map(heat), "proposals": _flat(own)}

    def _word_maps(self, kept: Kept, prediction: Prediction, method: str | None) -> list[dict[str, Any]]:
        known = [w for w in prediction.words if w.known]
        if not known:
            return []
        grid = self.localizer.settings.grid
        attention = self.localizer.attend(kept.scene, [w.text for w in known], method).cpu()
        heats = self.localizer.heat(attention, (grid, grid))
        return [{"word": w.written, "map": encoded_map(heat)} for w, heat in zip(known, heats, strict=True)]

    @torch.inference_mode()
    def _words_at(self, kept: Kept, u: float, v: float, count: int) -> dict[str, Any]:
        """Words by how much their score at the point exceeds their mean score over the photograph."""
        model = self.localizer.model
        features = self.localizer.features(kept.scene)[None]
        ids = torch.arange(min(len(model.vocabulary), COMMON_WORDS), device=features.device)
        scores = model.location_scores(features, ids)[0]  # (V, h, w)
        row = min(int(v * scores.shape[1]), scores.shape[1] - 1)
        column = min(int(u * scores.shape[2]), scores.shape[2] - 1)
        here = scores[:, row, column]
        best = (here + (here - scores.mean((1, 2)))).topk(min(count, len(ids)))
        words = [model.vocabulary.words[i] for i in best.indices.tolist()]
        return {
            "words": [
                {"word": w, "score": round(s, 3)} for w, s in zip(words, best.values.tolist(), strict=True)
            ]
        }


def _typed(text: str) -> list[str]:
    found: list[str] = []
    for phrase in split_phrases(text):
        sentence = len(phrase.split()) > LONGEST_PHRASE
        found += noun_phrases(phrase) if sentence else [phrase]
    return list(dict.fromkeys(found))


def encoded_map(heat: Tensor) -> dict[str, Any]:
    """A square map as {"side", "data"}: 0..65535 from its minimum to its maximum, 16 bits each, little-endian,
    rows from the top, in base64. The ranking takes the minimum off anyway.
    """
    level = min_max(heat.float()).cpu().mul(65535).round().numpy().astype("<u2")
    return {"side": heat.shape[-1], "data": base64.b64encode(level.tobytes()).decode()}


def _flat(boxes: Tensor | None) -> list[float]:
    """Corners one after the other, in hundredths of pixels."""
    return [] if boxes is None else [round(v, 2) for v in boxes.flatten().tolist()]
