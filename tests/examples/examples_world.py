"""Real processes of the bare examples, a cell as its users see it, a stranger at a broker."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiomqtt
import httpx
import msgpack
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from controller.api import client as api
from controller.gateway import Running

WAIT_S: Final = 60
ROOT: Final = Path(__file__).resolve().parents[2]
DEVICE: Final = ROOT / "examples" / "bare_device" / "bare_device.py"
CLIENT: Final = ROOT / "examples" / "bare_client" / "bare_client.py"


class Program:
    """A child process whose lines a test waits for."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def says(self, text: str) -> str:
        """Wait for a line with a text."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line)
                if text in line:
                    return line
        raise AssertionError(f"no {text!r} in {self.lines}")

    async def ends(self) -> int:
        """Wait for the end; return the exit code."""
        async with asyncio.timeout(WAIT_S):
            rest, _ = await self.process.communicate()
        self.lines += rest.decode().splitlines(keepends=True)
        assert self.process.returncode is not None
        return self.process.returncode


class Cell:
    """A controller of its own, asked through its HTTP API alone."""

    def __init__(self, running: Running, http: httpx.AsyncClient) -> None:
        self.broker = f"{running.broker.host}:{running.broker.port}"
        self.http = http

    async def ask(self, name: str, **arguments: Any) -> Any:
        request = api.call(name, **arguments)
        headers = {} if request.body is None else {"content-type": "application/json"}
        answer = await self.http.request(
            request.method, request.path, content=request.body, headers=headers
        )
        return api.answer(name, answer.status_code, answer.content)

    async def until(self, kind: str, key: str, condition: Callable[[Any], bool]) -> Any:
        """Wait until a thing is as the condition says; return it."""
        async with asyncio.timeout(WAIT_S):
            async with self.http.stream("GET", f"/v1/watch/{kind}", timeout=None) as stream:
                reader, listed = api.EventReader(), {"fleet": "fleet.status"}
                async for line in stream.aiter_lines():
                    event = reader.feed(line)
                    if event is None:
                        continue
                    if event.event == "resync":
                        for one in await self.ask(listed.get(kind, f"{kind}.list")):
                            name = one.node if kind == "fleet" else one.order.service
                            if name == key and condition(one):
                                return one
                    elif event.event == "change":
                        change = api.change(kind, event)
                        if change.key == key and change.value and condition(change.value):
                            return change.value
        raise AssertionError(f"the watch of {kind} has ended")

    async def counters(self) -> dict[str, float]:
        """Return what the controller counted."""
        return dict((await self.ask("system.info")).counters)

    async def counts(self, name: str, least: float) -> None:
        """Wait for a counter, which no event tells."""
        async with asyncio.timeout(WAIT_S):
            while (await self.counters()).get(name, 0) < least:  # noqa: ASYNC110 - as said
                await asyncio.sleep(0.05)


class Bench:
    """A stranger at a broker, who writes and reads frames by hand."""

    def __init__(self, mqtt: aiomqtt.Client) -> None:
        self._mqtt = mqtt
        self._number = 0

    async def hears(self, tag: str) -> tuple[list[Any], aiomqtt.Message]:
        """Wait for a message by its tag; return its frame, and the message as it came."""
        async with asyncio.timeout(WAIT_S):
            async for message in self._mqtt.messages:
                frame = msgpack.unpackb(bytes(message.payload))
                if frame[6][0] == tag:
                    return frame, message
        raise AssertionError("the bench is cut off")

    async def says(
        self, topic: str, body: list[Any], *, sender: str = "ts-main", correlation: bytes = b""
    ) -> None:
        properties = Properties(PacketTypes.PUBLISH)
        if correlation:
            properties.CorrelationData = correlation
        frame = [1, sender, 1, self._number, "default", "bench", body]
        self._number += 1
        await self._mqtt.publish(topic, msgpack.packb(frame), 1, properties=properties)

    async def says_bytes(self, topic: str, payload: bytes) -> None:
        await self._mqtt.publish(topic, payload, 1)


Start = Callable[..., Awaitable[Program]]
Connect = Callable[..., contextlib.AbstractAsyncContextManager[Bench]]
