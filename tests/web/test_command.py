"""`phrase-loc serve`: what is refused at once, and what a running server says and does."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from phrase_loc.__main__ import main
from phrase_loc.cli.commands import TOKEN, _announce, listen, names_of, token_of


def said(capsys) -> str:
    """The one sentence on stderr."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("port", ["-1", "65536", "http", "80.5"])
def test_a_bad_port(port, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", f"--port={port}"])
    assert stopped.value.code == 2
    assert f"expected a port number from 0 to 65535, got {port!r}" in capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_model_is_loaded(capsys):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port), "--model", "/no/such/model"]) == 2
    assert f"cannot listen on 127.0.0.1:{port} (address already in use)" in said(capsys)


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid", ""])
def test_an_address_that_is_not_ours(host, capsys):
    code = main(["serve", "--host", host, "--port", "0", "--model", "/no/such/model"])
    assert code == 2
    assert "--host" in said(capsys)


@pytest.mark.parametrize("option", ["--allowed-host", "--image-host"])
def test_a_host_is_no_address(option, capsys):
    with pytest.raises(SystemExit):
        main(["serve", option, "http://example.org/", "--port", "0", "--model", "/no/such/model"])
    assert "expected a host's name without http://" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["--token", ""], ["--port="], ["--model", ""]])
def test_an_option_that_is_empty_is_named(given, capsys):
    assert main(["serve", *given]) == 2
    assert said(capsys).startswith(f"error: {given[0].rstrip('=')} is empty")


def test_a_missing_model(capsys, tmp_path):
    assert main(["serve", "--port", "0", "--model", str(tmp_path / "none")]) == 2
    assert "none" in said(capsys)


def test_an_unknown_device(capsys, tiny_model):
    assert main(["serve", "--port", "0", "--model", str(tiny_model), "--device", "abacus"]) == 2
    assert "abacus" in said(capsys)


ODD_TOKENS = ["", " ", "caf\u00e9", "two\nlines", " secret"]


@pytest.mark.parametrize("token", ODD_TOKENS[1:])
def test_a_token_that_no_header_can_carry(token, capsys):
    assert main(["serve", "--port", "0", "--token", token]) == 2
    out, err = capsys.readouterr()
    note, error = err.splitlines()
    assert out == ""
    assert note.startswith("note: --token can be read in the process list")
    assert error.startswith("error: expected a token of printable ASCII characters in --token")


@pytest.mark.parametrize("token", ODD_TOKENS)
def test_a_hidden_token_that_no_header_can_carry(token, capsys, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    assert main(["serve", "--port", "0", "--token-file", str(file)]) == 2
    assert f"printable ASCII characters in {file}" in said(capsys)
    monkeypatch.setenv(TOKEN, token)
    assert main(["serve", "--port", "0"]) == 2
    assert f"printable ASCII characters in {TOKEN}" in said(capsys)


def test_a_token_file_that_is_missing(capsys, tmp_path):
    assert main(["serve", "--port", "0", "--token-file", str(tmp_path / "none")]) == 2
    assert "the token file" in said(capsys)


def test_where_the_token_comes_from(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(TOKEN, raising=False)
    assert token_of(None, None) is None
    monkeypatch.setenv(TOKEN, "of the environment")
    assert token_of(None, None) == "of the environment"
    file = tmp_path / "token"
    file.write_bytes(b"\xef\xbb\xbfof the file\r\n")
    assert token_of(None, str(file)) == "of the file"
    assert capsys.readouterr().err == ""
    assert token_of("of the option", None) == "of the option"
    with pytest.raises(SystemExit):
        main(["serve", "--token", "a", "--token-file", str(file)])


@pytest.mark.parametrize(
    ("host", "allowed", "token", "named", "addresses"),
    [
        ("127.0.0.1", [], None, {"localhost", "127.0.0.1", "[::1]"}, False),
        ("::1", [], "t", {"localhost", "127.0.0.1", "[::1]"}, False),
        ("127.0.0.7", ["Demo.example"], None, {"localhost", "127.0.0.7", "demo.example"}, False),
        ("0.0.0.0", [], None, {"localhost", socket.gethostname().lower()}, True),
        ("0.0.0.0", ["gpu.lab"], "t", {"localhost", "gpu.lab"}, True),
    ],
)
def test_the_names_of_a_server(host, allowed, token, named, addresses):
    names, numeric = names_of(host, allowed, token)
    assert named <= names
    assert "evil.example" not in names
    assert numeric is addresses


def test_a_server_for_others_with_a_token_may_have_any_name():
    assert names_of("0.0.0.0", [], "t")[0] is None


@pytest.mark.parametrize(
    ("host", "token", "address", "warned"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:81/ ", False),
        ("localhost", None, "http://localhost:81/ ", False),
        ("::1", None, "http://[::1]:81/ ", False),
        ("0.0.0.0", None, "http://127.0.0.1:81/ ", True),
        ("::", None, "http://[::1]:81/ ", True),
        ("0.0.0.0", "a b&c", "http://127.0.0.1:81/ ", False),
    ],
)
def test_what_is_announced(host, token, address, warned, capsys):
    _announce(host, 81, token)
    out = capsys.readouterr().out
    assert f"phrase_loc is ready: {address}" in out
    assert ("other machines can reach this address" in out) is warned


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent by a signal of POSIX")
def test_a_server_starts_answers_and_stops_by_ctrl_c(tiny_model):
    command = [sys.executable, "-m", "phrase_loc", "serve", "--port", "0", "--model", str(tiny_model)]
    with subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            ready = server.stdout.readline()
            address = next(word for word in ready.split() if word.startswith("http://127.0.0.1:"))
            with urllib.request.urlopen(f"{address}healthz") as answer:
                assert answer.status == 200
            other = urllib.request.Request(f"{address}healthz", headers={"Host": "evil.example"})
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(other)
            with urllib.request.urlopen(address) as answer:
                assert b"phrase_loc" in answer.read()
        finally:
            server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    assert "Traceback" not in errors
    assert server.returncode in {0, 130}


def test_an_address_of_version_six():
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with listen("::1", 0) as bound:
        assert bound.getsockname()[0] == "::1"
    if socket.has_dualstack_ipv6():
        with listen("::", 0) as bound, socket.create_connection(("127.0.0.1", bound.getsockname()[1]), 5):
            pass
