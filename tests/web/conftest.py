"""A server's application over the tiny model, and photographs as bytes."""

import io

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from phrase_loc.web.app import create_app
from phrase_loc.web.limits import Limits

LIMITS = Limits(
    upload_bytes=3 * 2**20, pixels=2_000_000, phrases=8, phrase_length=60, top_k=20, seconds=60, scenes=3
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
