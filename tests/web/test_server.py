"""A running server, spoken to through sockets: silence, floods, those who leave, and its own end."""

import json
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from phrase_loc.web import server as server_module
from phrase_loc.web.answers import Limits
from tests.web.browser import until
from tests.web.conftest import request, upload

HEALTH = request("/healthz", method="GET")


def sentence(answer) -> str:
    """The sentence of a refusal."""
    return json.loads(answer[2])["error"]


def send_for_ever(connection, content) -> None:
    """Ends by an exception of the socket."""
    while True:
        connection.send(content)


def test_a_connection_that_says_nothing_is_closed(raw):
    server = raw(header_seconds=0.2)
    with server.connect() as connection:
        assert server.answer(connection)[0] == 408
        assert connection.recv(1) == b""


@pytest.mark.parametrize("begun", [b"GET /heal", HEALTH + b"GET /heal"], ids=["first", "after an answer"])
def test_half_a_head_is_not_waited_for(raw, begun):
    server = raw(header_seconds=0.2)
    with server.connect() as connection:
        connection.sendall(begun)
        while connection.recv(1000):
            pass


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_half_a_body_is_not_waited_for(raw, framing):
    server = raw(body_seconds=0.2)
    head = (
        f"POST /api/chips HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    )
    answer = server.ask(head.encode() + b'5\r\n{"tex')
    assert answer[0] == 408
    assert "did not come to its end" in sentence(answer)


def test_a_slow_sender_that_goes_on_is_waited_for(raw):
    server = raw(body_seconds=1.0, body_rate=1.0)  # a byte is worth a second
    body = json.dumps({"text": "a dog"}).encode()
    with server.connect() as connection:
        connection.sendall(request("/api/chips", body)[: -len(body)])
        for byte in body:
            connection.sendall(bytes([byte]))
            time.sleep(0.08)
        assert server.answer(connection)[0] == 200


@pytest.mark.parametrize("path", ["/api/chips", "/api/look", "/healthz", "/nothing"])
def test_an_endless_body_is_cut_off_whatever_it_is_sent_to(raw, path):
    server = raw(header_seconds=0.2)
    connection = server.connect()
    head = request(path, kind="multipart/form-data; boundary=xx", Transfer_Encoding="chunked")
    connection.sendall(head.replace(b"Content-Length: 0\r\n", b""))
    with pytest.raises(ConnectionError):
        send_for_ever(connection, b"10000\r\n" + bytes(65536) + b"\r\n")
    assert server.ask(HEALTH)[0] == 200


def test_who_reads_nothing_is_dropped(raw):
    server = raw(header_seconds=0.2)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):  # the server stops reading as well
            send_for_ever(connection, request("/examples/astronaut.png", method="GET") * 20)
        until(lambda: not server.server.server_state.connections, "the connection is dropped")


def test_idle_connections_give_way(raw, monkeypatch):
    monkeypatch.setattr(server_module, "_open_files", lambda: server_module.OTHER_FILES + 20)
    server = raw()
    silent = [server.connect() for _ in range(60)]
    for _ in range(3):
        assert server.ask(HEALTH)[0] == 200
    until(lambda: len(server.server.server_state.connections) <= 20, "the oldest are closed")
    assert silent[0].recv(1) == b""


def test_busy_connections_do_not_give_way(raw, tiny_localizer, photo, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(server_module, "_open_files", lambda: server_module.OTHER_FILES + 8)
    monkeypatch.setattr(type(tiny_localizer), "look_at", gated(type(tiny_localizer).look_at, gate))
    server = raw()
    busy = [server.connect() for _ in range(8)]
    for number, connection in enumerate(busy):
        connection.sendall(upload("/api/look", photo + bytes(number)))
    until(lambda: len(server.server.server_state.tasks) == 8, "all are under way")
    answer = server.ask(HEALTH)
    assert answer[0] == 503
    assert "too many connections" in sentence(answer)
    gate.set()
    assert [server.answer(connection)[0] for connection in busy] == [200] * 8


def gated(look_at, gate):
    def wait(self, pictures):
        gate.wait(30)
        return look_at(self, pictures)

    return wait


def test_who_leaves_is_not_worked_for(raw, tiny_localizer, photo, monkeypatch):
    gate, looked = threading.Event(), []

    def look_at(self, pictures):
        looked.append(len(pictures))
        gate.wait(30)
        return original(self, pictures)

    original = type(tiny_localizer).look_at
    monkeypatch.setattr(type(tiny_localizer), "look_at", look_at)
    server = raw(batch=1)
    tasks = server.server.server_state.tasks
    with server.connect() as first:
        first.sendall(upload("/api/look", photo))
        until(lambda: looked, "the first is looked at")
        others = [server.connect() for _ in range(5)]
        for number, connection in enumerate(others):
            connection.sendall(upload("/api/look", photo + bytes(number + 1)))
        until(lambda: len(tasks) == 6, "the others wait")
        for connection in others:
            connection.close()
        until(lambda: len(tasks) == 1, "their requests end")
        gate.set()
        assert server.answer(first)[0] == 200
    assert server.ask(upload("/api/look", photo))[0] == 200  # behind whatever waits
    assert looked == [1]


def test_one_of_two_who_wait_for_the_same_photograph_may_leave(raw, tiny_localizer, photo, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(type(tiny_localizer), "look_at", gated(type(tiny_localizer).look_at, gate))
    server = raw()
    tasks = server.server.server_state.tasks
    with server.connect() as stays:
        leaves = server.connect()
        for connection in (leaves, stays):
            connection.sendall(upload("/api/look", photo))
        until(lambda: len(tasks) == 2, "both wait")
        leaves.close()
        until(lambda: len(tasks) == 1, "one has left")
        gate.set()
        assert server.answer(stays)[0] == 200


def test_everybody_is_answered_or_told_503_when_it_stops(raw, tiny_localizer, photo, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(type(tiny_localizer), "look_at", gated(type(tiny_localizer).look_at, gate))
    server = raw(leaving_seconds=0.5)
    waiting = [server.connect() for _ in range(30)]
    for number, connection in enumerate(waiting):
        whole = upload("/api/look", photo + bytes(number))
        connection.sendall(whole if number % 3 else whole[:-20])  # some are still sending
    until(lambda: len(server.server.server_state.tasks) == 30, "all are under way")
    server.server.should_exit = True
    until(lambda: server.server._state.stopping, "the server leaves")
    late = server.ask(HEALTH)
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(server.answer, waiting))
    gate.set()
    assert [answer[0] for answer in found] == [503] * 30
    assert {sentence(answer) for answer in [*found, late]} == {"the server is stopping; try again later"}


def test_what_is_answered_in_time_is_answered_when_it_stops(raw, tiny_localizer, photo, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(type(tiny_localizer), "look_at", gated(type(tiny_localizer).look_at, gate))
    server = raw(leaving_seconds=30.0)
    with server.connect() as connection:
        connection.sendall(upload("/api/look", photo))
        until(lambda: server.server.server_state.tasks, "it is under way")
        server.server.should_exit = True
        until(lambda: server.server._state.stopping, "the server leaves")
        gate.set()
        assert server.answer(connection)[0] == 200


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /api/chips HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/chips HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /api/chips HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_gets_a_sentence(raw, content, caplog):
    with caplog.at_level(logging.DEBUG, "phrase_loc"):
        answer = raw().ask(content)
    assert 400 <= answer[0] < 500
    assert sentence(answer)
    assert not [r for r in caplog.records if r.name.startswith(("uvicorn", "phrase_loc"))]


def test_a_photograph_costs_room_until_it_is_answered(raw, tiny_localizer, photo, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(type(tiny_localizer), "look_at", gated(type(tiny_localizer).look_at, gate))
    server = raw(uploading_bytes=250_000)
    with server.connect() as first:
        first.sendall(upload("/api/look", photo + bytes(150_000)))
        until(lambda: server.server.server_state.tasks, "it is under way")
        time.sleep(0.1)
        answer = server.ask(upload("/api/look", photo + bytes(150_001)))
        assert answer[0] == 503
        assert answer[1]["retry-after"] == "1"
        assert "too many photographs" in sentence(answer)
        gate.set()
        assert server.answer(first)[0] == 200
    assert server.ask(upload("/api/look", photo + bytes(150_001)))[0] == 200


def test_the_loops_complaints_are_said_once(caplog):
    class Loop:
        def time(self):
            return 5.0

    for _ in range(100):
        server_module._complain(
            Loop(),
            {"message": "socket.accept() out of system resource", "exception": OSError(24, "secret.png")},
        )
    assert [r.getMessage() for r in caplog.records] == ["socket.accept() out of system resource OSError"]


def test_connections_stay_below_what_the_system_allows(monkeypatch):
    monkeypatch.setattr(server_module, "_open_files", lambda: 256)
    assert server_module.most_connections(Limits()) == 128
    assert server_module.most_connections(replace(Limits(), connections=5)) == 5
