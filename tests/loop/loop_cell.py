"""A cell of real processes for the tests of the whole loop, and a stream of requests through it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import wasmtime

import tona
from tona.local.cell import Cell, Plan

PATIENCE_S = 60.0
ECHO = """
(module
  (memory (export "memory") 64)
  (global $top (mut i32) (i32.const 1024))
  (func (export "tona_alloc") (param $size i32) (result i32) (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top
      (i32.and (i32.add (i32.add (global.get $top) (local.get $size)) (i32.const 15))
               (i32.const -16)))
    (local.get $at))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32)
    (memory.copy (local.get $out) (local.get $in) (i32.const 48))
    (i32.const 0)))
"""


def echo_module() -> bytes:
    return bytes(wasmtime.wat2wasm(ECHO))


def chain(name: str, steps: int, module: bytes, **policy: Any) -> str:
    """Return a use case of one service: an echo of `steps` tasks in a row."""
    port = {"dtype": "uint8", "shape": [-1]}
    digest = "sha256:" + hashlib.sha256(module).hexdigest()
    tasks = [
        {
            "name": f"step{at}",
            "executor": "wasm",
            "artifact": {"digest": digest, "size_bytes": len(module)},
            "limits": {"memory_bytes": 32 << 20},
            "policy": policy,
            "inputs": {
                "x": {"from": "request.x", **port} if at == 0 else {"from": f"step{at - 1}.y"}
            },
            "outputs": {"y": port},
        }
        for at in range(steps)
    ]
    service = {
        "name": name,
        "kind": "computing",
        "outputs": {"y": f"step{steps - 1}.y"},
        "tasks": tasks,
    }
    return json.dumps({"name": name, "services": [service]})


class Loop:
    """A running cell and the ways to look into it."""

    def __init__(self, cell: Cell, running: Any, http: httpx.AsyncClient) -> None:
        self.cell = cell
        self.running = running
        self.http = http

    async def get(self, path: str) -> Any:
        """Read from the API, waiting for a controller that is just being restarted."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    answer = await self.http.get(path)
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                    continue
                if "retry-after" in answer.headers:
                    await asyncio.sleep(0.05)
                    continue
                answer.raise_for_status()
                return answer.json()

    async def until(self, path: str, good: Any) -> Any:
        """Wait until what a path shows is good."""
        end_s = asyncio.get_running_loop().time() + PATIENCE_S
        while not good(seen := await self.get(path)):
            assert asyncio.get_running_loop().time() < end_s, f"{path} never became good: {seen}"
            await asyncio.sleep(0.05)
        return seen

    async def submit(self, name: str, steps: int, **policy: Any) -> list[dict[str, Any]]:
        """Submit an echo chain and wait until it runs; returns its tasks."""
        module = echo_module()
        path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=echo&media=wasm"
        (await self.http.put(path, content=module)).raise_for_status()
        body = {"document": chain(name, steps, module, **policy), "format": "json"}
        (await self.http.post("/v1/usecases", json=body)).raise_for_status()
        tasks: list[dict[str, Any]] = await self.until(
            "/v1/tasks",
            lambda tasks: len(tasks) == steps and all(one["state"] == "running" for one in tasks),
        )
        return tasks

    def children(self, name: str, word: str) -> list[int]:
        """Return the process ids below a process of the cell whose command line has a word."""
        return [pid for pid in below(self.cell.pid(name)) if word in command_line(pid)]


def below(pid: int) -> Iterator[int]:
    """Yield every descendant of a process."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except FileNotFoundError:
        return
    for child in map(int, text.split()):
        yield child
        yield from below(child)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""


@asynccontextmanager
async def running_loop(folder: Path, nodes: int, broker: str) -> AsyncIterator[Loop]:
    said: list[str] = []
    plan = Plan(folder=folder, nodes=nodes, broker=broker)
    cell = Cell(plan, lambda name, text: said.append(f"{name} {text}"))
    try:
        running = await cell.start()
        async with httpx.AsyncClient(base_url=running.api_url, timeout=PATIENCE_S) as http:
            loop = Loop(cell, running, http)
            await loop.until(
                "/v1/fleet", lambda fleet: sum(one["state"] == "online" for one in fleet) == nodes
            )
            yield loop
    finally:
        await cell.stop()


class Stream:
    """Requests one after another from several workers; every outcome is kept."""

    def __init__(self, client: tona.AsyncClient, service: str, deadline_s: float) -> None:
        self.client = client
        self.service = service
        self.deadline_s = deadline_s
        self.sent = 0
        self.answered = 0
        self.wrong = 0
        self.failures: list[str] = []
        self._more = asyncio.Condition()
        self._end = False

    async def work(self) -> None:
        while not self._end:
            self.sent += 1
            payload = f"request {self.sent}".encode()
            try:
                result = await self.client.invoke(
                    self.service, {"x": payload}, deadline_s=self.deadline_s
                )
            except tona.InvocationError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            else:
                self.answered += 1
                self.wrong += bytes(result.outputs["y"]) != payload
            async with self._more:
                self._more.notify_all()

    async def more(self, count: int) -> None:
        """Wait until so many more are answered."""
        goal = self.answered + count
        async with asyncio.timeout(PATIENCE_S), self._more:
            await self._more.wait_for(lambda: self.answered >= goal)

    def stop(self) -> None:
        self._end = True


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Name what was waited for when a wait ends without it."""
    try:
        yield
    except TimeoutError:
        raise AssertionError(f"no answers after: {what}") from None
