"""Supervision of a stand-in process, and the embedded child's way with sockets."""

import asyncio
import os
import socket
import threading
from contextlib import suppress
from typing import Any

import pytest

from controller.broker import embedded_child, restarts
from controller.broker.supervisor import Supervisor
from controller.child import READY_PREFIX, Child
from protocols.errors import EnvironmentFailure

SLEEPER = ["/bin/sleep", "600"]


async def no_probe() -> None:
    """Answers."""


async def test_what_keeps_failing_is_given_up_and_says_why(monkeypatch: Any) -> None:
    monkeypatch.setattr(restarts, "FAILURES_MAX", 2)
    monkeypatch.setattr(restarts, "BASE_S", 0.001)

    async def launch() -> Child:
        return await Child.spawn(["/bin/sh", "-c", "exit 3"])

    one = Supervisor("stand-in", launch, no_probe)
    await one.start()
    async with asyncio.timeout(60):
        failure = await one.wait_failed()
    assert "keeps failing" in str(failure)
    assert "exit 3" in str(failure)
    assert one.pid is None
    await one.stop()


async def test_a_first_start_that_fails_is_told_at_once() -> None:
    async def launch() -> Child:
        return await Child.spawn(["/nonexistent/broker"])

    one = Supervisor("stand-in", launch, no_probe)
    with pytest.raises(EnvironmentFailure, match="cannot start /nonexistent/broker"):
        await one.start()
    await one.stop()


async def test_renewal_is_no_failure_and_gives_a_fresh_process(monkeypatch: Any) -> None:
    monkeypatch.setattr(restarts, "FAILURES_MAX", 0)

    async def launch() -> Child:
        return await Child.spawn(SLEEPER)

    one = Supervisor("stand-in", launch, no_probe)
    await one.start()
    before = one.pid
    async with asyncio.timeout(60):
        for _ in range(3):
            await one.renew()
    assert one.pid not in {None, before}
    await one.stop()


async def test_a_child_that_ends_before_it_is_ready_leaves_its_last_words() -> None:
    child = await Child.spawn(["/bin/sh", "-c", "echo no such broker; exit 1"])
    with pytest.raises(EnvironmentFailure, match="no such broker"):
        await child.said(READY_PREFIX)
    await child.stop()


async def test_a_flood_of_output_is_bounded() -> None:
    flood = "head -c 300000 /dev/zero | tr '\\0' x; echo; seq 1000; echo ready yes"
    child = await Child.spawn(["/bin/sh", "-c", flood])
    assert await child.said(READY_PREFIX) == "yes"
    await child.wait()
    assert child.last_words.endswith("1000 / ready yes")
    assert len(child.last_words) < 2000


def serve(listener: socket.socket, accepted: list[socket.socket], early: threading.Event) -> None:
    """Accept an early client and then a session, as a broker without TCP_NODELAY would."""
    for _ in range(2):
        while True:
            with suppress(BlockingIOError):
                accepted.append(listener.accept()[0])
                break
        early.set()
    accepted[1].recv(200)
    accepted[1].sendall(b"\x20\x03\x00\x00\x00")


async def test_the_child_makes_all_sockets_prompt_and_leaves_their_mode_alone() -> None:
    accepted: list[socket.socket] = []
    early = threading.Event()
    nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        server = threading.Thread(target=serve, args=(listener, accepted, early))
        server.start()
        host, port = listener.getsockname()
        with socket.create_connection((host, port)):
            assert await asyncio.to_thread(early.wait, 30)
            assert not accepted[0].getsockopt(*nodelay)
            report = await embedded_child.make_prompt(host, port)
        await asyncio.to_thread(server.join, 30)
        assert report == {"listener_nodelay": True, "accepted_nodelay": True}
        assert listener.getsockopt(*nodelay)
        # Blocking mode is shared with the broker's own descriptor: touched, its loop would hang.
        assert not os.get_blocking(listener.fileno())
        for one in accepted:
            assert one.getsockopt(*nodelay)
            one.close()
