"""A new version that cannot come leaves the old one serving, and can be gone back from."""

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import pytest
from loop_cell import Loop, Stream, below, chain, echo_module, expecting, running_loop

import tona

pytestmark = pytest.mark.timeout(180)


async def test_a_version_that_cannot_come_disturbs_nobody_and_is_gone_back_from(
    tmp_path: Path,
) -> None:
    absent = echo_module() + b"\0\x05\x04gone"
    digest = hashlib.sha256(absent).hexdigest()
    async with running_loop(tmp_path, 1, "embedded") as loop:
        await loop.submit("echo", 1)
        async with tona.connect(loop.running.api_url) as client:
            stream = Stream(client, "echo", 30.0)
            workers = [asyncio.create_task(stream.work()) for _ in range(2)]
            await stream.more(20)
            body = {"document": chain("echo", 1, absent), "format": "json"}
            (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
            await loop.until("/v1/tasks", lambda tasks: "404" in tasks[0]["reason"])
            await stream.more(20)
            _reboot(loop, "node-1")
            with expecting("the reboot of a node whose new version cannot come"):
                await stream.more(20)
            await loop.until("/v1/tasks", lambda tasks: "404" in tasks[0]["reason"])
            assert digest in (await loop.get("/v1/usecases/echo"))["document"]
            answer = await loop.http.post("/v1/usecases/echo/rollback", json={})
            assert answer.json()["generation"] == 3
            await loop.until("/v1/usecases/echo", lambda one: one["state"] == "running")
            await stream.more(20)
            again = await loop.http.post("/v1/usecases/echo/rollback", json={})
            assert (again.status_code, "no version to go back to" in again.text) == (400, True)
            stream.stop()
            await asyncio.gather(*workers)
        assert stream.failures == []
        assert stream.wrong == 0


def _reboot(loop: Loop, node: str) -> None:
    """End all that runs on a node at once; what it has written stays."""
    agent = loop.cell.pid(node)
    for pid in [*below(agent), agent]:
        os.kill(pid, signal.SIGKILL)
