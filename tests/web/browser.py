"""A headless Chromium and the page in it, as a person would use them.

Debian's packages `chromium` and `chromium-driver` bring both; nothing is downloaded.
"""

import base64
import io
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from phrase_loc.cli.commands import listen
from phrase_loc.web.answers import Limits
from phrase_loc.web.server import Server

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
    "--no-first-run",
    "--disable-extensions",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a free port of this machine, in a thread: its address."""
    server = Server(app, Limits(leaving_seconds=0.5), lambda port: None)
    with listen("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        until(lambda: server.started, "the server starts")
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@contextmanager
def chromium(downloads: Path) -> Iterator[Any]:
    """A Selenium driver of the installed Chromium; the test is skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium here (Debian packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_script_timeout(120)  # a busy machine is slow, not wrong
    try:
        yield browser
    finally:
        browser.quit()


def until(ready: Callable[[], Any], what: str, seconds: float = 90.0) -> Any:
    """What `ready` returns once it is true; fails after a while, naming what was waited for.

    An element that is not there yet, or that was replaced while it was read, is read again.
    """
    end = time.monotonic() + seconds
    while not (found := _read(ready)):
        assert time.monotonic() < end, f"waited {seconds:g} seconds and it never happened: {what}"
        time.sleep(0.02)
    return found


def equals(read: Callable[[], Any], expected: Any, seconds: float = 90.0) -> None:
    """Waits until what is read equals (or is approximately) what is expected."""
    end = time.monotonic() + seconds
    while (found := _read(read)) != expected:
        assert time.monotonic() < end, f"waited {seconds:g} seconds for {expected!r}, it is {found!r}"
        time.sleep(0.02)


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        if type(error).__name__ in {
            "StaleElementReferenceException",
            "NoSuchElementException",
            "StopIteration",
        }:
            return None
        raise


class Page:
    """The query page in a browser, asked and read as a person does."""

    def __init__(self, driver: Any, address: str):
        self.driver, self.address = driver, address

    def open(self, fragment: str = "") -> "Page":
        """Load the page anew; `fragment` is what follows # in a link."""
        self.driver.get("about:blank")
        self.driver.get(self.address + fragment)
        until(lambda: self.all("#examples button"), "the page starts")
        self.run(COUNT)
        return self.idle()

    def run(self, script: str, *values: Any) -> Any:
        """What a piece of JavaScript returns."""
        return self.driver.execute_script(script, *values)

    def all(self, css: str) -> list[Any]:
        """The elements of a selector."""
        return self.driver.find_elements("css selector", css)

    def one(self, css: str) -> Any:
        """The first element of a selector."""
        return self.driver.find_element("css selector", css)

    def idle(self) -> "Page":
        """Wait until no request is under way."""
        until(lambda: not self.text("#busy"), "the page has its answers")
        return self

    def text(self, css: str) -> str:
        """The text of an element, seen or not."""
        return self.run("return document.querySelector(arguments[0]).textContent", css)

    def choose(self, path: Path) -> "Page":
        """Choose a photograph by the file dialog, and wait until it is shown or refused."""
        self.one("#file").send_keys(str(path))
        until(lambda: path.name in self.text("#caption") or self.shown("#message"), f"{path.name} is taken")
        return self.idle()

    def hand(self, path: Path, event: str) -> "Page":
        """Paste or drop a file: the event that a browser makes of it."""
        data = base64.b64encode(path.read_bytes()).decode()
        self.run(HAND, data, path.name, event)
        return self.idle()

    def ask(self, text: str) -> "Page":
        """Type into the field and press the button."""
        self.one("#phrase").send_keys(text)
        self.one("#ask button").click()
        return self.idle()

    def words_of(self, phrase: str) -> "Page":
        """Press the button that shows the words of a phrase."""
        buttons = self.card(phrase).find_elements("css selector", "button")
        next(b for b in buttons if b.text == "words").click()
        until(lambda: self.all(".card .chips"), "its words")
        return self.idle()

    def slide(self, name: str, value: float) -> None:
        """Move a slider."""
        self.run(SLIDE, name, value)

    def phrases(self) -> list[str]:
        """What the cards ask."""
        return self.run("return [...document.querySelectorAll('.card')].map((c) => c.dataset.phrase)")

    def card(self, phrase: str) -> Any:
        """The card of a phrase."""
        return next(c for c in self.all(".card") if c.get_attribute("data-phrase") == phrase)

    def asked(self) -> int:
        """How many questions the page has begun to ask since it was opened."""
        return self.run("return window.asked")

    def shown(self, css: str) -> bool:
        """Whether an element can be seen."""
        return self.one(css).is_displayed()

    def answered(self, *phrases: str) -> "Page":
        """Wait until these are the cards, each with its answer."""
        equals(self.phrases, list(phrases))
        until(lambda: not any("…" in self.card(p).text for p in phrases), f"answers to {phrases}")
        return self.idle()

    def spoken_box(self, phrase: str) -> list[float] | None:
        """The best box of a phrase as the canvas tells it to those who do not see it."""
        spoken = self.one("#canvas").get_attribute("aria-label")
        found = re.search(re.escape(phrase) + r"\??: box from ([\d.]+),([\d.]+) to ([\d.]+),([\d.]+)", spoken)
        return [float(v) for v in found.groups()] if found else None

    def pixels(self) -> Any:
        """What is painted: (H, W, 3) of the canvas."""
        data = self.run("return document.getElementById('canvas').toDataURL('image/png')")
        with Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))) as picture:
            return np.asarray(picture.convert("RGB")).astype(int)

    def framed(self, box: list[float], phrase: str, size: tuple[int, int]) -> int:
        """How many of the left, right and lower edges of a box are drawn in the colour of its phrase."""
        colour = self.run("return arguments[0].style.getPropertyValue('--colour')", self.card(phrase)).strip()
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
        painted = np.abs(self.pixels() - rgb).max(-1) < 24
        scale = painted.shape[1] / size[0]
        x1, y1, x2, y2 = (round(v * scale) for v in box)
        near = round(10 * scale * size[0] / 900)  # the line lies within the box by half its width
        rows, columns = slice(y1 + (y2 - y1) // 3, y2 - near), slice(x1 + near, x2 - near)
        edges = [
            painted[rows, max(x1 - near, 0) : x1 + near].any(1),
            painted[rows, x2 - near : x2 + near].any(1),
        ]
        edges.append(painted[y2 - near : y2 + near, columns].any(0))
        return sum(edge.mean() > 0.7 for edge in edges)


COUNT = """
const ask = window.fetch;
window.asked = 0;
window.fetch = (...what) => { window.asked += 1; return ask(...what); };
"""
HAND = """
const [data, name, event] = arguments;
const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
const given = new DataTransfer();
given.items.add(new File([bytes], name, { type: "image/png" }));
const target = document.getElementById("stage");
const options = { bubbles: true, cancelable: true };
if (event === "drop") target.dispatchEvent(new DragEvent("dragover", { ...options, dataTransfer: given }));
target.dispatchEvent(event === "drop" ? new DragEvent("drop", { ...options, dataTransfer: given })
  : new ClipboardEvent("paste", { ...options, clipboardData: given }));
"""
SLIDE = """
const slider = document.getElementById(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input", { bubbles: true }));
"""
