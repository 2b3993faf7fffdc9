"""The store's client against a server that closes what is idle, and one that refuses early."""

import socket
from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest

from protocols.errors import EnvironmentFailure
from tona.store import IDLE_MAX, Store

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REFUSAL = b"HTTP/1.1 503 Busy\r\nContent-Length: 13\r\nConnection: close\r\n\r\ntry again soon"
LARGE = bytes(8 << 20)


def answer_once(listener: socket.socket) -> None:
    """Answer the first request of each connection, then close it without a word."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            if connection.recv(65536):
                connection.sendall(OK)


def refuse_early(listener: socket.socket) -> None:
    """Refuse every request when its head is there."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.recv(1024)
            connection.sendall(REFUSAL)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        yield one
        one.shutdown(socket.SHUT_RDWR)


def serve(listener: socket.socket, how: object) -> str:
    Thread(target=how, args=(listener,), daemon=True).start()  # type: ignore[arg-type]
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_connections_that_were_closed_while_idle_cost_no_request(
    listener: socket.socket,
) -> None:
    url = serve(listener, answer_once)
    with closing(Store()) as store:
        kept = [store._take(url) for _ in range(IDLE_MAX)]
        for connection in kept:
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            store._give_back(url, connection, response)
        assert await store.text(url, "/") == b"ok"


async def test_a_store_that_refuses_before_it_has_read_all_says_why(
    listener: socket.socket,
) -> None:
    url = serve(listener, refuse_early)
    with closing(Store()) as store, pytest.raises(EnvironmentFailure, match="answers 503: try"):
        await store.put((url,), "sha256:" + "0" * 64, LARGE)
