"""200 jobs on real processes, kill -9 of the agent and of the controller: each completes once."""

import asyncio
import hashlib
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import wasmtime
from loop_cell import PATIENCE_S, Loop, chain, echo_module, expecting, running_loop

import tona

pytestmark = pytest.mark.timeout(300)
JOBS = 200
SLOW = """
    (local $spins i32)
    (loop $again
      (local.set $spins (i32.add (local.get $spins) (i32.const 1)))
      (br_if $again (i32.lt_u (local.get $spins) (i32.const 20000000))))
"""
"""What makes a call last some milliseconds, so that there is something to kill."""


def slow_module() -> bytes:
    from loop_cell import ECHO  # noqa: PLC0415 - beside what it becomes

    body = "(result i32)\n    (memory.copy"
    assert body in ECHO
    return bytes(wasmtime.wat2wasm(ECHO.replace(body, f"(result i32)\n{SLOW}\n    (memory.copy")))


class Tally:
    """What the application was told of each job."""

    def __init__(self) -> None:
        self.accepted: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.wrong = 0
        self._more = asyncio.Condition()

    async def one(self, client: tona.AsyncClient, at: int) -> None:
        value = f"value {at}".encode()
        name = f"job-{at}"
        job = await client.submit("echo", {"x": value}, job=name, accept_s=PATIENCE_S)
        self.accepted[name] += 1
        result = await job.result()
        self.wrong += result.data("y") != value
        async with self._more:
            self.ended[name] += 1
            self._more.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S), self._more:
            await self._more.wait_for(lambda: len(self.ended) >= count)


async def test_jobs_complete_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    tally = Tally()
    async with running_loop(tmp_path, 1, "embedded") as loop:
        await _serve(loop)
        async with tona.connect(loop.running.api_url) as client:
            running = [asyncio.create_task(tally.one(client, at)) for at in range(JOBS)]
            for what, victim, at in (
                ("the controller", "controller", 20),
                ("the device agent", "node-1", 60),
                ("the controller again", "controller", 100),
            ):
                await tally.until(at)
                os.kill(loop.cell.pid(victim), signal.SIGKILL)
                with expecting(f"killing {what}"):
                    await tally.until(at + 20)
            await asyncio.gather(*running)
        records = await loop.get("/v1/jobs")
    names = {f"job-{at}" for at in range(JOBS)}
    assert tally.wrong == 0
    assert set(tally.accepted) == set(tally.ended) == names
    assert set(tally.ended.values()) == {1}
    assert {one["job"] for one in records} == names
    assert {one["state"] for one in records} == {"done"}


async def _serve(loop: Loop) -> None:
    module = slow_module()
    path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=slow&media=wasm"
    (await loop.http.put(path, content=module)).raise_for_status()
    body = {"document": chain("echo", 1, module), "format": "json"}
    (await loop.http.post("/v1/usecases", json=body)).raise_for_status()
    await loop.until("/v1/tasks", lambda tasks: tasks and tasks[0]["state"] == "running")


def test_the_slow_module_is_the_echo_with_a_loop() -> None:
    assert slow_module() != echo_module()
