"""Sends the requests of a case when they are due, whatever became of those before: an open loop.

    python -m benchmarks.programs.case_load WAY API_URL HOST PORT TOPIC SERVICE FOLDER

WAY: `tona`, through the SDK; `bare`, MQTT request and response to a server at TOPIC. A question is
a list of seconds at which a request is due, or a number: so many, one after another with a pause
before each, so that what rests without requests rests. Answers `[due in s, latency in ms, failure]`
for each; latency counts from when a request was due. An answer that is not that of the reference is
a failure.
"""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from gmqtt import Client

import tona
from benchmarks.harness.lines import say, serve
from benchmarks.programs.case_program import FLOAT32, INT32, UINT8, Tensors, read_tensors
from benchmarks.programs.case_values import pack, unpack
from protocols import topics
from protocols.errors import TonaError
from protocols.topics import Channel, Party
from tona.store import Store

CELL: Final = "cell"
TIMEOUT_S: Final = 60.0
PAUSE_S: Final = 0.3
KEEPALIVE_S: Final = 3600
DTYPES: Final = {FLOAT32: np.float32, UINT8: np.uint8, INT32: np.int32}
TOLERANCE: Final = {FLOAT32: 0.01, UINT8: 0, INT32: 0}
"""Sums of a model depend on how many threads share them."""
PNG: Final = b"\x89PNG"
TAIL_BYTES: Final = 16
"""Behind the end of a picture: no two requests bring the same bytes, so nothing is cached."""

Ask = Callable[[Tensors], Awaitable[Tensors]]


class Bare:
    """MQTT 5 request and response, gmqtt, large values through the cell's store."""

    def __init__(self, client: Client, topic: str, reply: str, url: str) -> None:
        self._client = client
        self._topic = topic
        self._reply = reply
        self._store = Store()
        self._urls = (url,)
        self._answers: dict[bytes, asyncio.Future[bytes]] = {}
        client.on_message = self._heard

    def _heard(self, _client: Any, _topic: str, payload: bytes, _qos: int, about: Any) -> int:
        answer = self._answers.pop(about["correlation_data"][0], None)
        if answer is not None and not answer.done():
            answer.set_result(payload)
        return 0

    async def ask(self, inputs: Tensors) -> Tensors:
        """Send a request and return its answer. Raises ValueError and TimeoutError."""
        key = os.urandom(8)
        message = await pack(inputs, self._store, self._urls)
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        self._client.publish(
            self._topic, message, qos=0, response_topic=self._reply, correlation_data=key
        )
        async with asyncio.timeout(TIMEOUT_S):
            return await unpack(await answer, self._store, self._urls)


class Load:
    """The requests, in turn."""

    def __init__(self, ask: Ask, folder: Path) -> None:
        self._ask = ask
        self._cases = []
        for path in sorted(folder.glob("*.in")):
            with path.open("rb") as given, path.with_suffix(".out").open("rb") as wanted:
                self._cases.append((read_tensors(given), read_tensors(wanted)))
        self._turn = 0

    async def run(self, question: Any) -> list[tuple[float, float, str]]:
        """Send what is asked for."""
        began_s = time.monotonic()
        if isinstance(question, int):
            return [await self._later() for _ in range(question)]
        asked = []
        for at_s in question:
            await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
            asked.append(asyncio.create_task(self._one(at_s, began_s + at_s)))
        return await asyncio.gather(*asked)

    async def _later(self) -> tuple[float, float, str]:
        await asyncio.sleep(PAUSE_S)
        return await self._one(0.0, time.monotonic())

    async def _one(self, at_s: float, due_s: float) -> tuple[float, float, str]:
        given, wanted = self._cases[self._turn % len(self._cases)]
        self._turn += 1
        assert given is not None
        assert wanted is not None
        failure = ""
        try:
            found = await self._ask({name: _unique(one) for name, one in given.items()})
            took_ms = (time.monotonic() - due_s) * 1000
            failure = _differs(found, wanted)
        except (ValueError, TimeoutError, TonaError) as error:
            took_ms = (time.monotonic() - due_s) * 1000
            failure = str(error) or type(error).__name__
        return at_s, took_ms, failure


def _unique(tensor: Any) -> Any:
    dtype, shape, data = tensor
    if data[: len(PNG)] != PNG:
        return tensor
    return dtype, (shape[0] + TAIL_BYTES,), data + os.urandom(TAIL_BYTES)


def _differs(found: Tensors, wanted: Tensors) -> str:
    for name, (dtype, shape, data) in wanted.items():
        _, have_shape, have = found[name]
        if tuple(have_shape) != tuple(shape):
            return f"output {name!r} has the shape {have_shape}, the reference {shape}"
        ours, its = np.frombuffer(have, DTYPES[dtype]), np.frombuffer(data, DTYPES[dtype])
        # What is the same to the last bit needs no arithmetic: the processor is for the ways.
        if np.array_equal(ours, its):
            continue
        if np.abs(ours.astype(np.float32) - its.astype(np.float32)).max() > TOLERANCE[dtype]:
            return f"output {name!r} is not that of the reference"
    return ""


async def _bare(host: str, port: str, topic: str, url: str) -> tuple[Ask, Callable[[], Any]]:
    reply = str(topics.build(CELL, Party.CLIENT, "case-load", Channel.REPLY))
    client = Client("case-load")
    subscribed = asyncio.get_running_loop().create_future()
    client.on_subscribe = lambda *_: subscribed.set_result(None)
    one = Bare(client, topic, reply, url)
    await client.connect(host, int(port), keepalive=KEEPALIVE_S)
    client.subscribe(reply, qos=0)
    await subscribed
    return one.ask, client.disconnect


async def main() -> None:
    """Send as asked until our parent hangs up."""
    way, url, host, port, topic, service, folder = sys.argv[1:]
    if way == "bare":
        ask, leave = await _bare(host, port, topic, url)
        load = Load(ask, Path(folder))
        say({})
        await serve(load.run)
        await leave()
        return
    async with tona.connect(url) as client:

        async def invoke(inputs: Tensors) -> Tensors:
            arrays = {
                name: np.frombuffer(data, DTYPES[dtype]).reshape(shape)
                for name, (dtype, shape, data) in inputs.items()
            }
            found = await client.invoke(service, arrays, deadline_s=TIMEOUT_S)
            return {
                name: (0, one.shape, np.ascontiguousarray(one))
                for name, one in found.outputs.items()
            }

        load = Load(invoke, Path(folder))
        say({})
        await serve(load.run)


if __name__ == "__main__":
    asyncio.run(main())
