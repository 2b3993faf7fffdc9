"""Bare MQTT request and response: gmqtt at both ends, through the broker of a cell."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from gmqtt import Client

from benchmarks.harness.cell import NAME, Cell
from benchmarks.harness.processes import module, running
from protocols import topics
from protocols.topics import Channel, Party, Speaker

TIMEOUT_S: Final = 30.0
KEEPALIVE_S: Final = 3600


class Requester:
    """One client; `ask` is one round trip."""

    def __init__(self, client: Client, topic: str, reply: str, qos: int) -> None:
        self._client = client
        self._topic = topic
        self._reply = reply
        self._qos = qos
        self._answer: asyncio.Future[bytes] | None = None
        client.on_message = self._heard

    def _heard(self, _client: Any, _topic: str, payload: bytes, _qos: int, _more: Any) -> int:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(payload)
        return 0

    async def ask(self, request: bytes) -> float:
        """Send a request, wait for its answer, and return the round trip in microseconds."""
        began = time.perf_counter_ns()
        self._answer = asyncio.get_running_loop().create_future()
        self._client.publish(
            self._topic,
            request,
            qos=self._qos,
            response_topic=self._reply,
            correlation_data=b"bench",
        )
        async with asyncio.timeout(TIMEOUT_S):
            await self._answer
        return (time.perf_counter_ns() - began) / 1000


@asynccontextmanager
async def requester(
    cell: Cell, name: str, answer_bytes: int, *, qos: int, answer_qos: int
) -> AsyncIterator[Requester]:
    """Connect a requester and, in a process of its own, a responder to it.

    Each way has its own QoS, which is also that of its subscription. On a cell with trust they
    are the identities NAME-requester, a client, and NAME-responder, a node.
    """
    inbox = str(topics.build(NAME, Party.NODE, f"{name}-responder", Channel.INVOKE))
    reply = str(topics.build(NAME, Party.CLIENT, f"{name}-requester", Channel.REPLY))
    bundle: tuple[str, ...] = ()
    if cell.trust is not None:
        bundle = (str(cell.trust.bundle(f"{name}-responder")),)
    settings = cell.settings(f"{name}-requester", Speaker.CLIENT)
    command = module(
        "benchmarks.programs.responder",
        *(cell.host, str(cell.port), inbox, str(answer_bytes), str(qos), str(answer_qos), *bundle),
    )
    async with running(command, Path(cell.folder, f"{name}-responder.log")) as process:
        await process.line()
        client = Client(f"requester-{os.getpid()}-{name}")
        subscribed = asyncio.get_running_loop().create_future()
        client.on_subscribe = lambda *_: subscribed.set_result(None)
        one = Requester(client, inbox, reply, qos)
        await client.connect(cell.host, cell.port, ssl=settings.tls, keepalive=KEEPALIVE_S)
        try:
            client.subscribe(reply, qos=answer_qos)
            async with asyncio.timeout(TIMEOUT_S):
                await subscribed
            yield one
        finally:
            await client.disconnect()
