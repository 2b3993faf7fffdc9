"""Ten thousand bad frames to each side: counted, dropped, alive, the next request served."""

import asyncio
import random
from pathlib import Path
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pytest
from loop_cell import PATIENCE_S, running_loop
from paho.mqtt.enums import CallbackAPIVersion

import tona
from protocols.codec import VERSION, Frame, encode
from protocols.messages import LoadReport, Probe
from protocols.topics import CONTROL_MAX_BYTES, Channel, Party, build

pytestmark = pytest.mark.timeout(240)
FRAMES = 10_000


def bad_frames() -> list[bytes]:
    """Return frames that no side may take: fuzzed, cut, oversized, of another version, forged."""
    dice = random.Random(7)
    good = encode(
        Frame(VERSION, "node-1", 1, 1, "default", "c", LoadReport(1, 5.0)), CONTROL_MAX_BYTES
    )
    frames: list[bytes] = []
    for number in range(FRAMES):
        match number % 5:
            case 0:
                frames.append(dice.randbytes(dice.randint(0, 200)))
            case 1:
                frames.append(good[: dice.randint(0, len(good) - 1)])
            case 2:
                frames.append(b"\x97\x02" + good[2:])
            case 3:
                frames.append(b"\x97\x01\xc1" + good[3:])
            case 4:
                # Whole and valid, but its sender is not whom the topic names.
                forged = Frame(VERSION, "stranger", 1, 1, "default", "c", Probe(number))
                frames.append(encode(forged, CONTROL_MAX_BYTES))
    for at in range(0, FRAMES, 500):
        frames[at] = bytes(CONTROL_MAX_BYTES + 1)
    return frames


async def test_both_sides_drop_what_is_no_frame(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 1, "embedded") as loop:
        await loop.submit("echo", 1)
        before = await _dropped(loop)
        topics = [
            build("cell", Party.NODE, "node-1", Channel.LOAD),
            build("cell", Party.NODE, "node-1", Channel.PRESENCE),
            build("cell", Party.NODE, "node-1", Channel.STATUS),
        ]
        inboxes = [
            build("cell", Party.NODE, "node-1", Channel.COMMAND),
            build("cell", Party.NODE, "node-1", Channel.INVOKE),
        ]
        broker = urlsplit(loop.running.broker)
        await asyncio.to_thread(
            _publish, broker.hostname, broker.port, [str(one) for one in topics]
        )
        await loop.until(
            "/v1/system",
            lambda system: _sum(system) - before >= FRAMES,
        )
        await asyncio.to_thread(
            _publish, broker.hostname, broker.port, [str(one) for one in inboxes]
        )
        async with tona.connect(loop.running.api_url) as client:
            result = await client.invoke("echo", {"x": b"still here"}, deadline_s=PATIENCE_S)
        assert bytes(result.outputs["y"]) == b"still here"
        [node] = await loop.get("/v1/fleet")
        assert node["state"] == "online"
        assert await _dropped(loop) - before == FRAMES
        system = await loop.get("/v1/system")
        assert system["counters"]["mqtt_disconnects"] == 0


async def _dropped(loop: object) -> int:
    return _sum(await loop.get("/v1/system"))  # type: ignore[attr-defined]


def _sum(system: dict[str, dict[str, float]]) -> int:
    return sum(
        int(value) for name, value in system["counters"].items() if name.startswith("mqtt_dropped_")
    )


def _publish(host: str, port: int, topics: list[str]) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(100)
    client.connect(host, port)
    client.loop_start()
    try:
        for number, payload in enumerate(bad_frames()):
            sent = client.publish(topics[number % len(topics)], payload, qos=1)
        sent.wait_for_publish(PATIENCE_S)
        assert sent.is_published()
    finally:
        client.disconnect()
        client.loop_stop()
