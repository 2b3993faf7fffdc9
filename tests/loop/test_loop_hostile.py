"""Valid frames that mean harm, silent connections, cleared folders: the same processes serve on."""

import asyncio
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pytest
from loop_cell import PATIENCE_S, Loop, running_loop
from paho.mqtt.enums import CallbackAPIVersion

import tona
from device_agent.run import blobs_folder
from protocols.codec import VERSION, Frame, encode
from protocols.manifest import Dtype
from protocols.messages import Birth, Body, Deliver, Invoke, LoadReport, RouteRequest, Status
from protocols.messages.invocation import Blob, Edge, Plan, Step, Tensor, Value
from protocols.messages.presence import Inventory
from protocols.messages.task import InstanceState
from protocols.topics import INVOCATION_MAX_BYTES, Channel, Party, build

pytestmark = pytest.mark.timeout(240)
TASK = "echo.step0"
REPLY = str(build("cell", Party.CLIENT, "evil", Channel.REPLY))
HOUR_MS = 3_600_000
STRANGERS = 500
SILENT = 50


def step(epoch: int, *inputs: Edge, task: str = TASK) -> Step:
    return Step(task, "node-1", epoch, inputs, ("y",))


def plans(epoch: int) -> Iterator[Plan]:
    """Yield plans that lead nowhere, in circles, or to what is not there."""
    end = Edge("y", TASK, "y")
    fed = Edge("x", "request", "x")
    for steps, out in (
        ((step(epoch, Edge("x", TASK, "y")),), end),
        ((step(epoch, Edge("x", "b", "y")), step(epoch, Edge("x", TASK, "y"), task="b")), end),
        ((step(epoch, Edge("\x1b[2J\n", "request", "x")),), end),
        ((step(epoch, Edge("x", "request", "nothing")),), end),
        ((step(epoch),), end),
        ((step(epoch, fed),) * 64, end),
        ((step(epoch + 9, fed),), end),
        ((step(epoch, fed, task="\x00"),), end),
        ((step(epoch, fed),), Edge("y", "ghost", "y")),
        ((step(epoch, fed),), Edge("y", TASK, "ghost")),
    ):
        yield Plan("echo", 1, steps, (out,))


def values() -> Iterator[Value]:
    """Yield inputs that are not what they say, or nowhere."""
    ghost = "sha256:" + "0" * 64
    yield Tensor(Dtype.UINT8, (7,), b"short")
    yield Tensor(Dtype.FLOAT64, (1,), bytes(8))
    yield Tensor(Dtype.UINT8, (-1,), b"a")
    yield Blob(Dtype.UINT8, (2**31 - 1,), ghost, 2**31 - 1)
    yield Blob(Dtype.UINT8, (2**31 - 1,) * 8, ghost, 2**53)
    yield Blob(Dtype.UINT8, (100_000,), ghost, 100_000)


def requests(epoch: int) -> Iterator[Body]:
    """Yield requests that a node has to refuse, to wait with, or to drop."""
    good = Plan("echo", 1, (step(epoch, Edge("x", "request", "x")),), (Edge("y", TASK, "y"),))
    hello: dict[str, Value] = {"x": Tensor(Dtype.UINT8, (2,), b"hi")}
    for number, plan in enumerate(plans(epoch)):
        yield Invoke(f"plan {number}", "echo", 2000, hello, REPLY, plan=plan)
    for number, value in enumerate(values()):
        yield Invoke(f"value {number}", "echo", 2000, {"x": value}, REPLY, plan=good)
    for number, topic in enumerate(("#", "tona/1/cell/node/node-1/command", "x" * 60_000, "")):
        yield Invoke(f"topic {number}", "echo", 2000, hello, topic, plan=good)
    fed_twice = step(epoch, Edge("x", "b", "y"), Edge("z", "c", "y"))
    half = Plan("echo", 1, (Step("b", "far", 1), Step("c", "far", 1), fed_twice), good.outputs)
    for number in range(300):
        # Half fed, for an hour: what the other half waits for is never sent.
        yield Deliver(f"half {number}", 1, "b", HOUR_MS, {"y": hello["x"]}, REPLY, half)
    yield Invoke("again", "echo", 2000, hello, REPLY, plan=good)
    yield Invoke("again", "echo", 2000, hello, REPLY.replace("evil", "other"), plan=good)


def frames(epoch: int) -> Iterator[tuple[str, bytes]]:
    """Yield topics and the valid frames on them."""
    inventory = Inventory("generic", "\x1b[31m", "linux", 1, 1, 1)

    def said(body: Body, party: Party, name: str, channel: Channel) -> tuple[str, bytes]:
        sender = name if party is Party.NODE and channel is not Channel.INVOKE else "evil"
        frame = Frame(VERSION, sender, 1, 1, "default", "evil", body)
        return str(build("cell", party, name, channel)), encode(frame, INVOCATION_MAX_BYTES)

    for body in requests(epoch):
        yield said(body, Party.NODE, "node-1", Channel.INVOKE)
    for number in range(STRANGERS):
        name = f"stranger-{number}"
        yield said(Birth("0", "boot", inventory), Party.NODE, name, Channel.PRESENCE)
        yield said(LoadReport(1, 1.0), Party.NODE, name, Channel.LOAD)
    for number, state in enumerate(InstanceState):
        status = Status(number, "ghost.task", 1, state, "\x1b[2J")
        yield said(status, Party.NODE, "stranger-0", Channel.STATUS)
    for number in range(STRANGERS):
        service = f"nothing-{number}" if number % 2 else "echo"
        ask = RouteRequest("r", service, REPLY)
        yield said(ask, Party.SERVICE, service, Channel.REQUEST)


async def test_who_means_harm_stops_nobody_else(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 1, "embedded") as loop:
        [task] = await loop.submit("echo", 1)
        pids = _pids(loop)
        shutil.rmtree(blobs_folder("node-1", tmp_path / "node-1"))
        shutil.rmtree(tmp_path / "node-1" / "artifacts")
        url = urlsplit(loop.running.api_url)
        silent = [socket.create_connection((url.hostname, url.port)) for _ in range(SILENT)]
        try:
            await asyncio.to_thread(_publish, loop, list(frames(task["epoch"])))
            async with tona.connect(loop.running.api_url) as client:
                for payload in (b"small", os.urandom(200_000)):
                    answer = await client.invoke("echo", {"x": payload}, deadline_s=PATIENCE_S)
                    assert bytes(answer.outputs["y"]) == payload
        finally:
            for one in silent:
                one.close()
        await loop.until("/v1/fleet", lambda fleet: len(fleet) == STRANGERS + 1)
        [task] = await loop.get("/v1/tasks")
        assert (task["state"], task["node"]) == ("running", "node-1")
        assert _pids(loop) == pids


def _pids(loop: Loop) -> list[int]:
    return [loop.cell.pid(name) for name in ("controller", "node-1")]


def _publish(loop: Loop, said: list[tuple[str, bytes]]) -> None:
    broker = urlsplit(loop.running.broker)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(100)
    client.connect(broker.hostname or "", broker.port or 0)
    client.loop_start()
    try:
        for topic, payload in said:
            sent = client.publish(topic, payload, qos=1)
        sent.wait_for_publish(PATIENCE_S)
        assert sent.is_published()
    finally:
        client.disconnect()
        client.loop_stop()
