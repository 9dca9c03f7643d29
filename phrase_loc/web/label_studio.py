"""What labelling tools ask for: the ML backend of Label Studio and the functions that CVAT calls.

Label Studio is given the address http://HOST:PORT/api/label-studio and asks below it for `health`, `setup`,
`versions` and `predict` (the API of its label-studio-ml-backend). What is sought are the labels of its project.
CVAT's functions take one frame in base64 with a threshold and answer with a list of shapes.
"""

import asyncio
import base64
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from json import loads
from typing import Any
from urllib import request
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring
from fastapi import APIRouter
from pydantic import BaseModel, Field

from phrase_loc import __version__
from phrase_loc.errors import ConfigError, DataError, PhraseLocError
from phrase_loc.evaluation.methods import fingerprint
from phrase_loc.label_formats import CONTROLS, Label, region
from phrase_loc.labelling import apart
from phrase_loc.masks import encoded
from phrase_loc.structures import Scene
from phrase_loc.web.answers import Answers, Limits, Refused
from phrase_loc.web.server import plain, too_large

ROOT = "/api/label-studio"  # of the ML backend's address, which Label Studio is told
KEY = "LABEL_STUDIO_API_KEY"  # the environment variable of the label-studio-sdk
TIMEOUT = 10.0  # seconds of silence after which a server is given up
TOKEN_SECONDS = 200.0  # seconds for which an access token of Label Studio, good for 300, is used

#: For each label of a result some phrases by which it is sought.
Labels = dict[str, list[str]]


class Task(BaseModel):
    """A task of Label Studio, of which two fields are read."""

    id: int | str | None = None
    data: dict[str, Any]


class Asked(BaseModel):
    """What Label Studio sends to `predict`."""

    tasks: list[Task]
    label_config: str = Field(description="XML of the project's labelling interface")


class Project(BaseModel):
    """What Label Studio sends to `setup`."""

    scheme: str = Field(alias="schema", description="XML of the project's labelling interface")


class Frame(BaseModel):
    """What CVAT sends to a function, and the labels to be sought."""

    image: str = Field(description="a photograph in base64")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="on the chance that a thing is there"
    )
    labels: Labels | list[str] = Field(description="labels, or the phrases of each label")


@dataclass(frozen=True, slots=True)
class Control:
    """A tag of `CONTROLS`."""

    kind: str
    name: str
    image: str  # the name of the Image tag on which it draws
    key: str  # where a task's data holds that image
    threshold: float | None  # its `model_score_threshold`, on the chance that a thing is there
    labels: Labels


class Labeller:
    """Labels sought in photographs by the model of `answers`."""

    def __init__(self, answers: Answers, photographs: "Photographs"):
        self.answers, self.photographs = answers, photographs
        #: another model gets another name, so that Label Studio asks it again
        self.version = f"phrase_loc {__version__} {fingerprint(answers.localizer)[:8]}"

    def knows(self, phrases: list[str]) -> bool:
        """Whether the noun of one of them is known."""
        return any(e.known and e.head_known for e in self.answers.localizer.encode(phrases))

    def controls(self, xml: str) -> list[Control]:
        """The controls of a labelling interface; a DataError where it has none that can be filled."""
        try:
            root = fromstring(xml)
        except (ParseError, ValueError, RecursionError) as error:  # a ValueError is what defusedxml raises
            said = f"expected the labelling interface as XML, got none that can be read ({error})"
            raise DataError(said) from None
        images = {tag.get("name", ""): tag.get("value", "").lstrip("$") for tag in root.iter("Image")}
        found = []
        for tag in (tag for tag in root.iter() if tag.tag in CONTROLS):
            name, image = tag.get("name", ""), tag.get("toName", "").split(",")[0].strip()
            labels = dict(filter(None, map(self._label, tag.iter("Label"))))
            if name and image in images and labels:
                found.append(Control(tag.tag, name, image, images[image], _threshold(tag), labels))
        if not found:
            said = f"the labelling interface holds no {' or '.join(CONTROLS)} with a Label on an Image"
            raise DataError(f"{said}; add one to the project")
        return found

    def _label(self, tag: Element) -> tuple[str, list[str]] | None:
        """Its name in results (alias or value, as Label Studio has it) and the phrases.

        These are its `predicted_values`, which Label Studio's own backends read too, or else the first of value,
        alias and hint whose noun is known.
        """
        value, alias, hint = (tag.get(name, "").strip() for name in ("value", "alias", "hint"))
        readings = [[text] for text in (value, alias, hint) if text]
        if wanted := list(filter(None, map(str.strip, tag.get("predicted_values", "").split(",")))):
            readings = [wanted]
        return (alias or value, next(filter(self.knows, readings), readings[0])) if alias or value else None

    async def find(
        self, content: bytes, labels: Labels, threshold: float | None, masks: bool = False
    ) -> tuple[tuple[int, int], list[Label]]:
        """(H, W) of a photograph and the boxes of the labels, at most one of each phrase; `score` is its chance.

        Of a label no box shows the same thing as another one of a greater chance.
        """
        kept = await self.answers.look(content)
        asked = [(number, phrase) for number, phrases in enumerate(labels.values()) for phrase in phrases]
        boxes: list[Label] = []
        for at in range(0, len(asked), some := self.answers.limits.phrases):
            boxes += await self.answers.ask(self._locate, kept.scene, asked[at : at + some], threshold, masks)
        groups = ([box for box in boxes if box.category == number] for number in range(len(labels)))
        return kept.scene.size, [box for group in groups for box in apart(group)]

    def _locate(
        self, scene: Scene, asked: list[tuple[int, str]], threshold: float | None, masks: bool
    ) -> list[Label]:
        localizer, found = self.answers.localizer, []
        answers = localizer.locate(scene, [phrase for _, phrase in asked], top_k=1, threshold=threshold)
        for (number, phrase), p in zip(asked, answers, strict=True):
            if p.present is None:
                there = not localizer.model.config.calibration
            else:
                there = p.state == "found" if threshold is None else p.present >= threshold
            if there and len(p.boxes):
                mask = p.mask if masks else None
                runs = None if mask is None else encoded(mask.numpy())
                box = tuple(round(v, 2) for v in p.boxes[0].tolist())
                found.append(Label(number, box, p.present or 0.0, phrase, p.present, runs))
        return found

    async def predict(self, asked: Asked) -> dict[str, Any]:
        """A prediction for each task, in order; of one that failed an empty list, so that Label Studio asks it again.

        Raises Refused when none could be done. After four fifths of `Limits.labelling_seconds` none is begun.
        """
        controls, limits = self.controls(asked.label_config), self.answers.limits
        gate, until = asyncio.Semaphore(limits.batch), time.monotonic() + 0.8 * limits.labelling_seconds

        async def one(task: Task) -> dict[str, Any]:
            why = "the time was up before its turn; ask again for the tasks without a prediction"
            async with gate:
                try:
                    if time.monotonic() <= until:
                        return await self._prediction(task, controls)
                except (PhraseLocError, Refused) as error:
                    why = error.detail if isinstance(error, Refused) else str(error)
            return {"task": task.id, "error": plain(why)}

        found = await asyncio.gather(*map(one, asked.tasks))
        errors = [answer for answer in found if "error" in answer]
        if errors and len(errors) == len(found):
            raise Refused(400, errors[0]["error"])
        results = [[] if "error" in answer else answer for answer in found]
        return {"results": results, "model_version": self.version, "errors": errors}

    async def _prediction(self, task: Task, controls: list[Control]) -> dict[str, Any]:
        regions = []
        for control in controls:
            content = await asyncio.to_thread(self.photographs.read, task.data.get(control.key))
            masks = control.kind != "RectangleLabels"
            size, boxes = await self.find(content, control.labels, control.threshold, masks)
            names = list(control.labels)
            for i, box in enumerate(boxes):
                drawn = region(f"{control.name}-{i}", box, size[::-1], names[box.category], control.kind)
                regions.append(drawn | {"from_name": control.name, "to_name": control.image})
        score = sum(region["score"] for region in regions) / max(len(regions), 1)
        return {"result": regions, "score": score, "model_version": self.version}


def _threshold(tag: Element) -> float | None:
    given = tag.get("model_score_threshold", "")
    with suppress(ValueError):
        if not given or 0 <= float(given) <= 1:
            return float(given) if given else None
    expected = "a model_score_threshold from 0 to 1 in the labelling interface"
    raise DataError(f"expected {expected}, got {given[:40]!r}")


@dataclass(slots=True)
class Photographs:
    """Fetches the photographs of tasks: from Label Studio and the hosts that the command line names, nothing else.

    Raises a ConfigError for an address of Label Studio that is none.
    """

    studio: str = ""  # the address of Label Studio, such as http://localhost:8080
    key: str = field(default="", repr=False)  # its access token
    hosts: frozenset[str] = frozenset()  # further hosts, such as images.example.org
    most: int = Limits().upload_bytes  # of a photograph
    _token: tuple[float, str] = field(default=(-TOKEN_SECONDS, ""), repr=False)  # when it was got

    def __post_init__(self) -> None:
        self.studio = self.studio.rstrip("/")
        if self.studio and not re.match(r"https?://[^/?#]+", self.studio):
            expected = "an address such as http://localhost:8080 for Label Studio"
            raise ConfigError(f"expected {expected}, got {self.studio!r}")

    def read(self, link: Any) -> bytes:
        """The content of a task's image; blocks. A DataError for what may not or cannot be fetched."""
        if not isinstance(link, str) or not (link := link.strip()):
            raise DataError(f"expected the address of an image in the task's data, got {str(link)[:60]!r}")
        if link[:5].lower() == "data:":
            return from_base64(link)
        try:
            url, own = self._allowed(f"/data/{link}" if link.startswith("upload/") else link)
            headers = {"Authorization": self._authorization()} if own and self.key else {}
            content = _get(request.Request(url, headers=headers), self.most + 1)
        except PhraseLocError:
            raise
        except HTTPError as error:
            why = f"answered {error.code}"
            if error.code in {401, 403} or 300 <= error.code < 400:
                why += (
                    f"; it wants an access token in {KEY}, or leads to another address, which is not followed"
                )
        except (OSError, HTTPException, ValueError, KeyError) as error:
            why = f"cannot be asked ({str(error)[:120]})"
        else:
            if len(content) <= self.most:
                return content
            raise DataError(too_large(self.most, link[:120]))
        raise DataError(f"the server of the photograph {link[:120]} {why}")

    def _allowed(self, link: str) -> tuple[str, bool]:
        """The address to ask, quoted, and whether it is Label Studio's."""
        quoted = quote(link, safe="%/:=&?~#+!$,;'@()*[]")
        if link.startswith("/") and not link.startswith("//"):
            if not self.studio:
                advice = f"start the server with --label-studio-url URL and an access token in {KEY}"
                raise DataError(f"{link[:120]} lies in Label Studio, whose address is not known; {advice}")
            return self.studio + quoted, True
        asked = urlsplit(link)
        if asked.scheme not in {"http", "https"}:
            expected = "an address of http, https, Label Studio or data:"
            raise DataError(f"{link[:120]} cannot be read; expected {expected}")
        own = bool(self.studio) and asked[:2] == urlsplit(self.studio)[:2]  # scheme; host and port as written
        if not own and asked.hostname not in self.hosts:
            host = str(asked.hostname)[:80]
            advice = f"start it with --image-host {host}"
            raise DataError(f"this server may not ask {host} for photographs; {advice}")
        return quoted, own

    def _authorization(self) -> str:
        """Its header: a legacy token as it is, a personal one (a JWT) exchanged for one that is good for minutes."""
        if self.key.count(".") != 2:
            return f"Token {self.key}"
        if time.monotonic() - self._token[0] > TOKEN_SECONDS:
            body, kind = f'{{"refresh": "{self.key}"}}'.encode(), {"Content-Type": "application/json"}
            answer = _get(request.Request(f"{self.studio}/api/token/refresh", body, kind), 1 << 16)
            self._token = time.monotonic(), str(loads(answer)["access"])
        return f"Bearer {self._token[1]}"


class _NoRedirects(request.HTTPRedirectHandler):
    """Redirects are errors: they could lead, with the token, to a host that nobody allowed."""

    def redirect_request(self, *_: Any) -> None:
        """No further request."""


def _get(asked: request.Request, most: int) -> bytes:
    with request.build_opener(_NoRedirects).open(asked, timeout=TIMEOUT) as answer:
        return answer.read(most)


def from_base64(text: str) -> bytes:
    """The content of a data: address or of plain base64."""
    head, comma, data = text.partition(",")
    with suppress(ValueError):
        if not comma or head.lower().endswith(";base64"):
            lines = (data if comma else head).split()  # as `base64` and MIME break them
            return base64.b64decode("".join(lines), validate=True)
    raise DataError(f"expected an image in base64, got {text[:40]!r}")


def add_routes(router: APIRouter, labeller: Labeller) -> None:
    """The questions of both tools."""

    @router.get(f"{ROOT}/health", summary="Label Studio: is the ML backend up?")
    async def health() -> dict[str, str]:
        return {"status": "UP", "model_class": "phrase_loc"}

    @router.post(f"{ROOT}/setup", summary="Label Studio: can the project be labelled?")
    async def setup(project: Project) -> dict[str, Any]:
        labels = [label for control in labeller.controls(project.scheme) for label in control.labels.items()]
        unknown = [name for name, phrases in labels if not labeller.knows(phrases)]
        return {"model_version": labeller.version, "unknown_labels": unknown}

    @router.get(f"{ROOT}/versions", summary="Label Studio: which models are there?")
    async def versions() -> dict[str, list[str]]:
        return {"versions": [labeller.version]}

    @router.post(f"{ROOT}/predict", summary="Label Studio: label these tasks")
    async def predict(asked: Asked) -> dict[str, Any]:
        return await labeller.predict(asked)

    @router.post(f"{ROOT}/webhook", summary="Label Studio: something was annotated")
    async def webhook(_: dict[str, Any]) -> dict[str, str]:
        return {"status": "phrase_loc learns nothing from annotations; see docs/training.md"}

    @router.post("/api/cvat", summary="CVAT: label this frame, as its functions do")
    async def frame(asked: Frame) -> list[dict[str, Any]]:
        given = asked.labels if isinstance(asked.labels, dict) else {label: [label] for label in asked.labels}
        labels = {label: phrases for label, phrases in given.items() if phrases}
        _, boxes = await labeller.find(from_base64(asked.image), labels, asked.threshold)
        return [
            {"label": list(labels)[box.category], "points": list(box.box), "type": "rectangle"}
            | {"confidence": str(round(box.score, 4))}  # as text, as CVAT's own functions have it
            for box in boxes
        ]
