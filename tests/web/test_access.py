"""Who may ask: tokens, the server's names, pages of other sites, and the headers of every answer."""

import asyncio
import json

import pytest
from fastapi.testclient import TestClient

from phrase_loc.web.app import create_app
from tests.web.conftest import LIMITS
from tests.web.test_api import refusal


@pytest.fixture(scope="module")
def guarded(tiny_localizer):
    """An application that asks for a token."""
    return create_app(tiny_localizer, LIMITS, token="secret")


@pytest.mark.parametrize(
    "path", ["/api/model", "/api/image/x", "/api/nothing", "/api/../api/model", "//api/model"]
)
@pytest.mark.parametrize("host", ["test", "x?", "a/b", "x#", "[::1"])
def test_a_token_guards_every_path_whatever_the_host(guarded, path, host):
    status, headers, body = in_process(guarded, "GET", path, {"host": host})
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    assert "token" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret", 200),
        ("secret", 401),
        ("Bearer secre", 401),
        ("Basic secret", 401),
        ("Bearer  ", 401),
        ("", 401),
        ("Bearer s\u00e9cret", 401),
    ],
)
def test_token(guarded, given, status):
    with TestClient(guarded) as client:
        assert client.get("/").status_code == 200
        headers = {"Authorization": given.encode("latin-1")}
        assert client.get("/api/model", headers=headers).status_code == status
        assert client.get("/api/model?token=secret").status_code == 401


def in_process(app, method, path, headers) -> tuple[int, dict[str, str], bytes]:
    """What the application sends for a path and headers that no client would let pass."""
    sent = []
    head = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": head,
        "scheme": "http",
    }

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope | {"server": ("127.0.0.1", 80), "http_version": "1.1"}, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(m.get("body", b"") for m in sent[1:])


@pytest.fixture(scope="module")
def named(tiny_localizer):
    """Applications of known names; of this machine's addresses too, or not."""
    known = {"localhost", "127.0.0.1", "[::1]"}
    return [create_app(tiny_localizer, LIMITS, hosts=known, addresses=also) for also in (False, True)]


@pytest.mark.parametrize(
    ("host", "addresses", "accepted"),
    [
        ("localhost", False, True),
        ("LOCALHOST:8000", False, True),
        ("127.0.0.1:8000", False, True),
        ("[::1]:8000", False, True),
        ("evil.example", False, False),
        ("localhost.evil.example:8000", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("localhost@evil.example", False, False),
        ("localhost:80:80", False, False),
        ("localhost?", False, False),
        ("local host", False, False),
        ("192.168.0.7:8000", False, False),
        ("192.168.0.7:8000", True, True),
        ("[fe80::1]:8000", True, True),
        ("192.168.0.7.evil.example", True, False),
        ("", False, False),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/model", "/healthz"])
def test_a_server_knows_its_names(named, host, addresses, accepted, path):
    status, _, body = in_process(named[addresses], "GET", path, {"host": host})
    assert status == (200 if accepted else 403)
    assert accepted or "--allowed-host" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("headers", "page", "api"),
    [
        ({}, 200, 200),
        ({"sec-fetch-site": "same-origin"}, 200, 200),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 200, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200, 403),  # a link to the page
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403, 403),  # another port of this machine
        ({"sec-fetch-site": "cross-site"}, 403, 403),
        ({"origin": "http://testserver"}, 200, 200),
        ({"origin": "http://evil.example"}, 403, 403),
        ({"origin": "null"}, 403, 403),
        ({"origin": "http://testserver:81"}, 403, 403),
    ],
)
def test_pages_of_other_sites_may_not_ask(client, photo, headers, page, api):
    assert client.get("/", headers=headers).status_code == page
    assert client.get("/api/model", headers=headers).status_code == api
    answer = client.post("/api/look", files={"image": photo}, headers=headers)
    assert answer.status_code == api
    if api == 403:
        assert client.get("/healthz").json()["scenes"] == 0
        assert "other sites" in refusal(answer)


def test_the_headers_of_every_answer(client, photo):
    key = client.post("/api/look", files={"image": photo}).json()["key"]
    for path in ("/", "/page.js", f"/api/image/{key}", "/api/model", "/api/none"):
        headers = client.get(path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == ("no-store" if "/api" in path else "no-cache")
