"""A server's application over the tiny model, and photographs as bytes."""

import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from phrase_loc.web.app import create_app
from phrase_loc.web.limits import Limits
from tests.web.browser import chromium, serving

LIMITS = Limits(
    upload_bytes=3 * 2**20,
    pixels=2_000_000,
    phrases=8,
    phrase_length=60,
    words=40,
    top_k=20,
    seconds=60,
    scenes=3,
)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def photo(drawn_image) -> bytes:
    return encoded(drawn_image)


@pytest.fixture
def client(tiny_localizer):
    with TestClient(create_app(tiny_localizer, LIMITS), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def shipped():
    """The shipped model."""
    from phrase_loc.localizer import PhraseLocalizer

    return PhraseLocalizer.from_pretrained("default", device="cpu")


@pytest.fixture(scope="session")
def address(shipped):
    """Where a server with the shipped model listens."""
    with serving(create_app(shipped)) as address:
        yield address


@pytest.fixture(scope="session")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="session")
def browser(downloads):
    with chromium(downloads) as browser:
        yield browser


@pytest.fixture
def page_browser(browser, address):
    """The browser with the page open, empty."""
    browser.get("about:blank")
    browser.get(address)
    return browser
