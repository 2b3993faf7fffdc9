"""kill -9 of everything, each while requests flow: all answered once, nothing hangs."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest
from loop_cell import Loop, Stream, expecting, running_loop

import tona

pytestmark = pytest.mark.timeout(300)
DEADLINE_S = 45.0
BROKERS = [
    "embedded",
    pytest.param(
        "mosquitto",
        marks=pytest.mark.skipif(
            shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None,
            reason="Mosquitto is not installed: apt-get install mosquitto",
        ),
    ),
]


@pytest.mark.parametrize("broker", BROKERS)
async def test_every_request_is_answered_whatever_is_killed(tmp_path: Path, broker: str) -> None:
    async with running_loop(tmp_path, 2, broker) as loop:
        await loop.submit("echo", 2, lost_after_ms=1500)
        async with tona.connect(loop.running.api_url) as client:
            stream = Stream(client, "echo", DEADLINE_S)
            workers = [asyncio.create_task(stream.work()) for _ in range(4)]
            await stream.more(20)
            for what, victim in (
                ("the executor", _executor),
                ("the device agent", _agent),
                ("the broker", _broker),
                ("the controller", _controller),
            ):
                os.kill(await victim(loop), signal.SIGKILL)
                with expecting(f"killing {what}"):
                    await stream.more(20)
            stream.stop()
            await asyncio.gather(*workers)
    assert stream.failures == []
    assert stream.wrong == 0
    assert stream.answered == stream.sent


async def _serving(loop: Loop) -> str:
    tasks = await loop.until("/v1/tasks", lambda tasks: all(one["node"] for one in tasks))
    return str(tasks[0]["node"])


async def _executor(loop: Loop) -> int:
    # The first is the zygote, whose command line the hosts have too.
    return loop.children(await _serving(loop), "wasm_zygote")[1]


async def _agent(loop: Loop) -> int:
    return loop.cell.pid(await _serving(loop))


async def _broker(loop: Loop) -> int:
    found = loop.children("controller", "embedded_child") or loop.children(
        "controller", "mosquitto"
    )
    return found[-1]


async def _controller(loop: Loop) -> int:
    return loop.cell.pid("controller")
