"""Requests and jobs that flow while processes die, and the exact account of them."""

import asyncio
import hashlib
import json
from collections import Counter
from typing import Final, Self

from deployment_world import World
from loop_cell import chain, echo_module

import tona

DEADLINE_S: Final = 60.0
WORKERS: Final = 2
"""Of each service; each sends its next request when the last one is over."""
PAUSE_S: Final = 0.05
"""Between two requests of a worker: the machine is small, and mending needs some of it."""
JOB_PAUSE_S: Final = 0.5
SETTLE_S: Final = 120.0


class Load:
    """Sends until it is left; every request and every job ends in the tally."""

    def __init__(self, client: tona.AsyncClient, world: World) -> None:
        self.client = client
        self.world = world
        self.services: list[str] = []
        self.reasons: Counter[str] = Counter()
        self._count: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        self._followed: dict[str, asyncio.Task[None]] = {}
        self._more = asyncio.Condition()
        self._ends = False
        self._tasks: list[asyncio.Task[None]] = []

    async def submit(self, name: str, nodes: list[str]) -> None:
        """Submit an echo of two steps that runs on these nodes alone, and wait until it does."""
        module = echo_module()
        path = f"/v1/artifacts/{hashlib.sha256(module).hexdigest()}?name=echo&media=wasm"
        (await self.world.http.put(path, content=module)).raise_for_status()
        document = json.loads(chain(name, 2, module, lost_after_ms=1500))
        for task in document["services"][0]["tasks"]:
            task["nodes"] = nodes
        body = {"document": json.dumps(document), "format": "json"}
        (await self.world.http.post("/v1/usecases", json=body)).raise_for_status()
        self.services.append(name)
        await self.world.until(
            f"/v1/tasks?service={name}",
            lambda tasks: len(tasks) == 2 and all(one["state"] == "running" for one in tasks),
        )

    async def __aenter__(self) -> Self:
        for service in self.services:
            for _ in range(WORKERS):
                self._tasks.append(asyncio.create_task(self._requests(service)))
            self._tasks.append(asyncio.create_task(self._jobs(service)))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Send no more, and wait for the end of all that was sent."""
        self._ends = True
        await asyncio.gather(*self._tasks)

    # For the rounds.

    def mark(self) -> None:
        """Count the answers from here on anew."""
        self._since.clear()

    async def answered(self, count: int) -> None:
        """Wait until each service has answered so often since the mark."""
        async with self._more:
            await self._more.wait_for(
                lambda: all(self._since[one] >= count for one in self.services)
            )

    async def settle(self) -> None:
        """Wait for the end of every job that was accepted."""
        async with asyncio.timeout(SETTLE_S):
            await asyncio.gather(*self._followed.values())

    def tally(self) -> dict[str, int]:
        """Return the account so far."""
        names = ("sent", "answered", "refused", "wrong", "jobs_accepted", "jobs_done")
        return {name: self._count[name] for name in names}

    def exact(self) -> bool:
        """Whether everything sent is accounted for, once."""
        count = self._count
        return (
            count["wrong"] == 0
            and count["sent"] == count["answered"] + count["refused"]
            and all(self.reasons)
            and count["jobs_accepted"] == count["jobs_done"] == len(self._followed)
        )

    # The flow.

    async def _requests(self, service: str) -> None:
        while not self._ends:
            self._count["sent"] += 1
            payload = f"{service} request {self._count['sent']}".encode()
            try:
                result = await self.client.invoke(service, {"x": payload}, deadline_s=DEADLINE_S)
            except tona.InvocationError as error:
                self._count["refused"] += 1
                self.reasons[f"{type(error).__name__}: {error}"] += 1
            else:
                self._count["answered"] += 1
                self._since[service] += 1
                self._count["wrong"] += bytes(result.outputs["y"]) != payload
            async with self._more:
                self._more.notify_all()
            await asyncio.sleep(PAUSE_S)

    async def _jobs(self, service: str) -> None:
        number = 0
        while not self._ends:
            number += 1
            name = f"{service}-{number}"
            payload = f"job {name}".encode()
            while True:
                # Whether a submission that was not acknowledged has been taken is not known: the
                # same one again is the same job.
                try:
                    job = await self.client.submit(service, {"x": payload}, job=name)
                except tona.ServiceUnavailable as error:
                    self.reasons[f"submitted again: {type(error).__name__}"] += 1
                else:
                    break
            self._count["jobs_accepted"] += 1
            self._followed[name] = asyncio.create_task(self._follow(job, payload))
            await asyncio.sleep(JOB_PAUSE_S)

    async def _follow(self, job: tona.Job, payload: bytes) -> None:
        result = await job.result()
        self._count["jobs_done"] += 1
        self._count["wrong"] += bytes(result.outputs["y"]) != payload
