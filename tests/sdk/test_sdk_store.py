"""The store's client against a server that closes what is idle, and one that refuses early."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from http.client import HTTPConnection
from threading import Barrier, BrokenBarrierError, Event, Thread

import pytest

from protocols.errors import EnvironmentFailure
from tona.store import IDLE_MAX, THREADS, Store

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
        # A client that is closed hangs up at any point.
        with connection, suppress(OSError):
            connection.recv(1024)
            connection.sendall(REFUSAL)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass


def in_threads(answer: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    """Return a server that answers each connection in a thread of its own."""

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    return accept


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


async def test_values_are_sent_side_by_side(listener: socket.socket) -> None:
    together = Barrier(THREADS)

    def meet(connection: socket.socket) -> None:
        with connection, suppress(BrokenBarrierError):
            connection.recv(65536)
            together.wait(20)
            connection.sendall(OK)

    url = serve(listener, in_threads(meet))
    with closing(Store()) as store:
        await store.put_all((url,), {f"sha256:{at:064}": b"value" for at in range(THREADS)})


async def test_one_value_that_cannot_be_sent_is_told_and_the_others_given_up(
    listener: socket.socket,
) -> None:
    url = serve(listener, refuse_early)
    with closing(Store()) as store:
        with pytest.raises(EnvironmentFailure, match="answers 503: try"):
            await store.put_all((url,), {f"sha256:{at:064}": LARGE for at in range(3 * THREADS)})
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.wait(others, timeout=20)
        assert all(one.cancelled() for one in others)


async def test_what_comes_in_does_not_wait_for_what_goes_out(listener: socket.socket) -> None:
    done = Event()

    def hold_what_comes(connection: socket.socket) -> None:
        with connection:
            if connection.recv(65536).startswith(b"PUT"):
                done.wait(60)
            connection.sendall(OK)

    url = serve(listener, in_threads(hold_what_comes))
    with closing(Store()) as store:
        puts = asyncio.ensure_future(
            store.put_all((url,), {f"sha256:{at:064}": b"value" for at in range(2 * THREADS)})
        )
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(20):
                digest = f"sha256:{sha256(b'ok').hexdigest()}"
                assert await store.get((url,), digest, 2) == b"ok"
            assert not puts.done()
        finally:
            done.set()
        await puts


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n"]
)
async def test_closing_gives_up_what_a_store_that_hangs_does_not_answer(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr("tona.store.TIMEOUT_S", 3600.0)
    asked, done = Event(), Event()
    came = []

    def hang(connection: socket.socket) -> None:
        with connection:
            came.append(connection.recv(65536))
            connection.sendall(head)
            asked.set()
            done.wait(60)

    url = serve(listener, in_threads(hang))
    store = Store()
    put = asyncio.ensure_future(store.put((url,), "sha256:" + "0" * 64, b"value"))
    try:
        assert await asyncio.to_thread(asked.wait, 20)
        store.close()
        async with asyncio.timeout(20):
            with pytest.raises(EnvironmentFailure, match="closed"):
                await put
    finally:
        done.set()
    assert len(came) == 1


async def test_a_connection_that_stands_only_after_closing_carries_nothing(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects, closed = Event(), Event()
    came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()
    connect = HTTPConnection.connect

    def slowly(connection: HTTPConnection) -> None:
        connects.set()
        closed.wait(20)
        connect(connection)

    def note(connection: socket.socket) -> None:
        with connection:
            loop.call_soon_threadsafe(came.set_result, connection.recv(65536))

    monkeypatch.setattr(HTTPConnection, "connect", slowly)
    url = serve(listener, in_threads(note))
    store = Store()
    text = asyncio.ensure_future(store.text(url, "/"))
    assert await asyncio.to_thread(connects.wait, 20)
    store.close()
    closed.set()
    async with asyncio.timeout(20):
        with pytest.raises(EnvironmentFailure, match="closed"):
            await text
        assert await came == b""
