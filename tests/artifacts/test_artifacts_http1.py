"""HTTP as transfers speak it, against answers as they come and as they should not."""

import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from device_agent.artifacts import http1
from device_agent.artifacts.http1 import (
    ANSWER_S,
    HEAD_MAX_LINES,
    LINE_MAX_BYTES,
    Address,
    Connection,
    HttpError,
    Response,
)

TIMEOUT_S = 10.0


class Server:
    """Answers each request on one connection with the next of these, and closes it after them."""

    def __init__(self, *answers: bytes) -> None:
        self.heard: list[bytes] = []
        self._answers = answers
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/a?b=c"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection, connection.makefile("rb") as file:
            for answer in self._answers:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += file.readline()
                length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
                self.heard.append(head + file.read(int(length or 0)))
                connection.sendall(answer)

    def close(self) -> None:
        self._listening.close()
        self._thread.join(TIMEOUT_S)


@pytest.fixture
def asked() -> Iterator[Any]:
    opened: list[Any] = []

    def ask(*answers: bytes) -> tuple[Server, Connection]:
        server = Server(*answers)
        connection = Connection(Address(server.url), TIMEOUT_S, None)
        opened.extend((connection, server))
        return server, connection

    yield ask
    for one in opened:
        one.close()


def said(data: bytes) -> Response:
    file: Any = BytesIO(data)
    return Response(file)


def test_a_connection_takes_one_request_after_another(asked: Any, tmp_path: Path) -> None:
    server, connection = asked(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:  b \r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    )
    response = connection.ask("GET", "/a?b=c", {"Range": "bytes=7-"})
    assert (response.status, response.reason, response.headers["x-a"]) == (200, "OK", "b")
    assert not connection.free
    assert response.read(100) == b"hello"
    assert connection.free
    body = tmp_path / "body"
    body.write_bytes(bytes(300_000))
    with body.open("rb") as file:
        answer = connection.ask("PUT", "/d", {"Content-Length": "300000"}, file)
    assert (answer.status, answer.length) == (204, 0)
    first, second = server.heard
    host = server.url.split("/")[2].encode()
    assert first == b"GET /a?b=c HTTP/1.1\r\nHost: " + host + b"\r\nRange: bytes=7-\r\n\r\n"
    assert second.endswith(b"\r\n\r\n" + bytes(300_000))


def test_a_body_without_a_length_ends_with_its_connection(asked: Any) -> None:
    _, connection = asked(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(70_000))
    response = connection.ask("GET", "/", {})
    assert response.read(100_000) == bytes(70_000)
    assert response.length == 0
    assert not connection.free


def test_who_says_that_it_closes_is_asked_no_more(asked: Any) -> None:
    _, connection = asked(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert connection.ask("GET", "/", {}).length == 0
    assert not connection.free


@pytest.mark.parametrize(
    ("answer", "in_time"),
    [(b"HTTP/1.1 200 OK\r\n", 2), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", 3)],
)
def test_an_answer_that_drips_is_given_up(
    asked: Any, monkeypatch: pytest.MonkeyPatch, answer: bytes, in_time: int
) -> None:
    _, connection = asked(answer)
    times = iter([0.0] * in_time)
    monkeypatch.setattr(http1, "monotonic", lambda: next(times, ANSWER_S))
    with pytest.raises(HttpError, match="takes longer than"):
        connection.ask("GET", "/", {}).read(100)


def test_what_comes_before_the_answer_is_passed_over() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert said(early + b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").status == 404


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + b"HTTP/1.1 204 None\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 " + b"x" * LINE_MAX_BYTES + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * HEAD_MAX_LINES + b"\r\n",
    ],
)
def test_what_is_no_answer_is_refused(answer: bytes) -> None:
    with pytest.raises(HttpError):
        said(answer)


def test_an_answer_that_ends_too_early_is_no_end(asked: Any) -> None:
    _, connection = asked(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
    response = connection.ask("GET", "/", {})
    with pytest.raises(HttpError, match="too early"):
        response.read(9)
    assert not connection.free


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://a/b?c", ("a", 80, "/b?c")),
        ("https://a.b", ("a.b", 443, "/")),
        ("https://[::1]:8/x", ("::1", 8, "/x")),
        ("http://[::1]/", ("::1", 80, "/")),
    ],
)
def test_an_address_is_taken_apart(url: str, found: tuple[str, int, str]) -> None:
    address = Address(url)
    assert (address.host, address.port, address.target) == found


@pytest.mark.parametrize(
    "url", ["ftp://a/", "a", "http:///x", "http://a:b/", "http://a:70000/", "http://a/\r\nX: y"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Address(url)
