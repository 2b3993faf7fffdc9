"""A client of a TONA cell in one file: aiomqtt and msgpack, nothing else.

    python bare_client.py --service echo x=hello        prints y: uint8[5] b'hello'

It sends a request to the topic of the service, without a route: the scheduler adds the plan. The
answer comes to the MQTT 5 response topic with the same correlation data. Until then, or until the
deadline, the request is sent again under the same id. Written from docs/protocol.md; the positions
of fields are those of the tables there.
"""

import argparse
import asyncio
import math
import os
import socket
import struct
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Final

import aiomqtt
import msgpack
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

VERSION: Final = 1
INLINE_MAX_BYTES: Final = 65_536
FIRST_WAIT_S: Final = 1.0
MAX_WAIT_S: Final = 8.0
"""A node accepts a request within 20 ms: a longer silence means that a message was lost."""
PAUSE_S: Final = 0.1
"""After a failure that may be mended by itself."""
FAILED: Final = 1
FORMATS: Final = {"float32": "f", "float64": "d", "int32": "i", "int64": "q", "uint8": "B"}


class RequestFailed(Exception):
    """There is no answer, or it is a failure."""


class Client:
    """One request, over as many attempts and connections as it takes."""

    def __init__(self, options: argparse.Namespace, inputs: dict[str, list[Any]]) -> None:
        self._options = options
        self._inputs = inputs
        self._request = str(uuid.uuid4())
        self._correlation = os.urandom(8)
        self._root = f"tona/1/{options.cell}"
        self._reply = f"{self._root}/client/{options.client}/reply"
        self._incarnation = 0
        self._number = 0
        self._attempt = 0
        self._deadline = time.monotonic() + options.budget_ms / 1000
        self._parts: dict[tuple[int, int], dict[str, list[Any]]] = {}
        self._why = "nobody has answered"

    async def run(self) -> dict[str, list[Any]]:
        """Return the outputs, by name. Raises RequestFailed."""
        try:
            async with asyncio.timeout(self._options.budget_ms / 1000):
                while True:
                    try:
                        return await self._connection()
                    except aiomqtt.MqttError as error:
                        self._why = f"the broker {self._options.broker}: {error}"
                        await asyncio.sleep(FIRST_WAIT_S)
        except TimeoutError:
            text = f"no answer within {self._options.budget_ms} ms; the last that is known: "
            raise RequestFailed(text + self._why) from None

    async def _connection(self) -> dict[str, list[Any]]:
        """Ask and listen on one connection."""
        # Any number that grows from connection to connection: here the clock is good enough.
        self._incarnation, self._number = time.time_ns() // 1_000_000, 0
        host, _, port = self._options.broker.rpartition(":")
        name = f"{self._options.client}-{os.urandom(6).hex()}"
        tls = None
        if self._options.ca:
            options = self._options
            tls = aiomqtt.TLSParameters(options.ca, options.certificate, options.key)
        async with aiomqtt.Client(
            host,
            int(port),
            identifier=name,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_params=tls,
            # Without it, small messages wait for each other: 40 ms and more.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        ) as broker:
            await broker.subscribe(self._reply, qos=1)
            messages, wait_s, due = aiter(broker.messages), FIRST_WAIT_S, time.monotonic()
            while True:
                if time.monotonic() >= due:
                    await self._ask(broker)
                    due, wait_s = time.monotonic() + wait_s, min(2 * wait_s, MAX_WAIT_S)
                try:
                    message = await asyncio.wait_for(anext(messages), due - time.monotonic())
                except TimeoutError:
                    continue
                outputs, pause_s = self._hear(message)
                if outputs is not None:
                    return outputs
                if pause_s is not None:
                    due = time.monotonic() + pause_s

    async def _ask(self, broker: aiomqtt.Client) -> None:
        """Send the request: the same id, the next attempt, what is left of the time."""
        self._attempt += 1
        left_ms = math.ceil(1000 * max(0.0, self._deadline - time.monotonic()))
        invoke = ["invoke", self._request, self._options.service, left_ms, self._inputs]
        head = [VERSION, self._options.client, self._incarnation, self._number, "default"]
        frame = [*head, f"request {self._request}", [*invoke, "", self._attempt]]
        self._number += 1
        properties = Properties(PacketTypes.PUBLISH)
        properties.ResponseTopic = self._reply
        properties.CorrelationData = self._correlation
        topic = f"{self._root}/service/{self._options.service}/request"
        await broker.publish(topic, msgpack.packb(frame), qos=1, properties=properties)

    def _hear(self, message: aiomqtt.Message) -> tuple[dict[str, list[Any]] | None, float | None]:
        """Return the outputs when they are whole, and after which pause to ask again, if at all."""
        if getattr(message.properties, "CorrelationData", b"") != self._correlation:
            return None, None
        try:
            frame = msgpack.unpackb(message.payload)
            body = frame[6] if frame[0] == VERSION else []
            match body:
                case ["accepted", self._request, _, node, *_]:
                    self._why = f"node {node} works on it"
                    return None, MAX_WAIT_S
                case ["result", self._request, attempt, outputs, None, *rest]:
                    part, parts = rest[1:3] if len(rest) > 2 else (0, 1)  # noqa: PLR2004 - timings
                    return self._collect(attempt, outputs, part, parts), None
                case ["result", self._request, _, _, [code, _, text, retryable, *_], *_]:
                    self._why = f"{code}: {text}"
                    if not retryable:
                        raise RequestFailed(self._why)
                    return None, PAUSE_S
        except (ValueError, TypeError, IndexError):
            print("dropped what is no frame", file=sys.stderr)
        return None, None

    def _collect(
        self, attempt: int, outputs: dict[str, list[Any]], part: int, parts: int
    ) -> dict[str, list[Any]] | None:
        """Return all outputs once every part of one attempt is there."""
        self._parts[attempt, part] = outputs
        there = [one for (of, _), one in self._parts.items() if of == attempt]
        if len(there) < parts:
            return None
        return {name: value for one in there for name, value in one.items()}


def value_of(text: str) -> tuple[str, list[Any]]:
    """Return name and Tensor of NAME=TEXT, NAME=@FILE (uint8) or NAME:DTYPE=NUMBER,NUMBER..."""
    name, equals, given = text.partition("=")
    name, _, dtype = name.partition(":")
    if not equals or (dtype and dtype not in FORMATS):
        raise RequestFailed(f"{text!r} is no input: write NAME=TEXT, NAME=@FILE or NAME:float32=1")
    if dtype:
        numbers = [
            float(one) if dtype.startswith("float") else int(one) for one in given.split(",")
        ]
        shape, data = [len(numbers)], struct.pack(f"<{len(numbers)}{FORMATS[dtype]}", *numbers)
    else:
        data = Path(given[1:]).read_bytes() if given.startswith("@") else given.encode()
        dtype, shape = "uint8", [len(data)]
    if len(data) > INLINE_MAX_BYTES:
        raise RequestFailed(f"input {name} has {len(data)} bytes: larger ones go by HTTP (Blob)")
    return name, ["tensor", dtype, shape, data]


def told(name: str, value: list[Any]) -> str:
    """Return one line on an output."""
    kind, dtype, shape, content, *_ = value
    if kind == "blob":
        return f"{name}: {dtype}{shape} GET /v1/blobs/{content.removeprefix('sha256:')}"
    if dtype in FORMATS and dtype != "uint8":
        content = struct.unpack(f"<{math.prod(shape)}{FORMATS[dtype]}", content)
    return f"{name}: {dtype}{shape} {content}"


def main() -> int:
    """Send one request and print its outputs."""
    parser = argparse.ArgumentParser(description="A client of a TONA cell in one file.")
    parser.add_argument("--broker", default="127.0.0.1:1883", help="HOST:PORT")
    parser.add_argument("--cell", default="cell")
    parser.add_argument("--client", default="bare-client", help="name of this client")
    parser.add_argument("--service", required=True)
    parser.add_argument("--budget-ms", type=int, default=10_000, help="until the answer")
    for name in ("--ca", "--certificate", "--key"):
        parser.add_argument(name, help="PEM file; all three where the broker has TLS")
    parser.add_argument("inputs", nargs="*", metavar="NAME=TEXT", help="or NAME=@FILE, ...")
    options = parser.parse_args()
    try:
        inputs = dict(value_of(one) for one in options.inputs)
        outputs = asyncio.run(Client(options, inputs).run())
    except (RequestFailed, OSError, ValueError, struct.error) as error:
        print(f"bare_client: {error}", file=sys.stderr)
        return FAILED
    for name, value in sorted(outputs.items()):
        print(told(name, value))
    return 0


if __name__ == "__main__":
    sys.exit(main())
