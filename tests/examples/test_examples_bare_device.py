"""The bare device: against a real cell, and against a bench that plays the scheduler."""

import asyncio
import os
import signal
from typing import TypeVar

import aiomqtt
import msgpack
from examples_world import DEVICE, Cell, Connect, Start

from controller.broker.embedded import EmbeddedBroker
from protocols import codec, topics
from protocols.messages import Birth, Death, LinkReport, LoadReport, Status
from protocols.messages.hierarchy import NodeState
from protocols.topics import CONTROL_MAX_BYTES

T = TypeVar("T")
NODE = "tona/1/cell/node/bare"
BUSY_PERCENT = 100.0


def checked(message: aiomqtt.Message, kind: type[T]) -> T:
    """Hold a message against the codec and the topics; return its body."""
    frame = codec.decode(bytes(message.payload), CONTROL_MAX_BYTES)
    codec.check_sender(frame, topics.parse(str(message.topic)))
    assert isinstance(frame.body, kind)
    return frame.body


async def test_it_joins_a_cell_reports_and_leaves_in_order(cell: Cell, start: Start) -> None:
    one = await start(DEVICE, "--node", "bare", "--broker", cell.broker)
    node = await cell.until("fleet", "bare", lambda it: it.load and it.link)
    assert node.state is NodeState.ONLINE
    assert node.inventory.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert node.inventory.cpu_count == os.cpu_count()
    assert node.inventory.executors == ()
    assert 0 < node.load.memory_used_bytes < node.inventory.memory_bytes
    assert (node.link.interface, node.link.kind) == ("lo", "loopback")
    await cell.until("fleet", "bare", lambda it: it.link.round_trip_ms is not None)
    one.process.send_signal(signal.SIGTERM)
    gone = await cell.until("fleet", "bare", lambda it: it.state is NodeState.LOST)
    assert gone.reason == "stopped by a signal"
    assert await one.ends() == 0
    assert "dropped: {}" in one.lines[-1]


async def test_a_killed_one_is_lost_by_its_will_and_comes_back_under_a_higher_incarnation(
    cell: Cell, start: Start
) -> None:
    one = await start(DEVICE, "--node", "bare", "--broker", cell.broker)
    assert "incarnation 1" in await one.says("welcomed")
    one.process.kill()
    await cell.until("fleet", "bare", lambda it: it.state is NodeState.LOST)
    again = await start(DEVICE, "--node", "bare", "--broker", cell.broker)
    assert "incarnation 2" in await again.says("welcomed")
    await cell.until("fleet", "bare", lambda it: it.state is NodeState.ONLINE)


async def test_what_a_device_says_wrong_is_counted_and_the_cell_goes_on(
    cell: Cell, start: Start, connect: Connect
) -> None:
    async with connect(cell.broker) as stranger:
        load = ["load", 1, 5.0]
        await stranger.says_bytes(f"{NODE}/load", b"\xc1garbage")
        await stranger.says_bytes(f"{NODE}/load", b"")
        await stranger.says_bytes(f"{NODE}/presence", msgpack.packb([1, "bare", 1]))
        await stranger.says_bytes(
            f"{NODE}/load", msgpack.packb([1, "bare", 1, 0, "d", "", load[:2]])
        )
        await stranger.says_bytes(
            f"{NODE}/load", msgpack.packb([2, "bare", 1, 0, "d", "", ["new"]])
        )
        await stranger.says(f"{NODE}/load", load, sender="other")
        await stranger.says_bytes(f"{NODE}/load", bytes(CONTROL_MAX_BYTES + 1))
        await stranger.says(f"{NODE}/load", ["release", "t", 1], sender="bare")
        wanted = {
            "mqtt_dropped_malformed": 4,
            "mqtt_dropped_version": 1,
            "mqtt_dropped_foreign": 1,
            "mqtt_dropped_oversized": 1,
            "ts_main_unexpected_message": 1,
        }
        for name, count in wanted.items():
            await cell.counts(name, count)
        await start(DEVICE, "--node", "bare", "--broker", cell.broker)
        await cell.until("fleet", "bare", lambda it: it.state is NodeState.ONLINE)
        counters = await cell.counters()
        assert {name: counters[name] for name in wanted} == wanted


async def test_it_obeys_a_scheduler(broker: EmbeddedBroker, start: Start, connect: Connect) -> None:
    at = f"127.0.0.1:{broker._port}"
    heard = [f"tona/1/cell/node/+/{one}" for one in ("presence", "load", "link", "status")]
    async with connect(at, *heard) as scheduler:
        one = await start(DEVICE, "--node", "bare", "--broker", at)
        command = f"{NODE}/command"
        frame, message = await scheduler.hears("birth")
        assert checked(message, Birth).holdings == ()
        assert frame[:4] == [1, "bare", 1, 0]
        # A welcome of another connection does not count: the birth comes again.
        await scheduler.says(command, ["welcome", "ts-main", 7, 99, 50, 50])
        await scheduler.hears("birth")
        await scheduler.says(
            command, ["welcome", "ts-main", 7, 1, 50, 50, [], "of a newer protocol"]
        )
        loads = [checked((await scheduler.hears("load"))[1], LoadReport) for _ in range(3)]
        assert loads[0].sampled_ms < loads[1].sampled_ms < loads[2].sampled_ms
        assert checked((await scheduler.hears("link"))[1], LinkReport).carrier

        # An assignment is refused, and said again until it is acknowledged.
        await scheduler.says(command, ["assign", "t", "s", 4, 1, [], 1])
        said, message = await scheduler.hears("status")
        status = checked(message, Status)
        assert (status.task, status.epoch, status.state) == ("t", 4, "failed")
        assert "no executor" in status.reason
        again, _ = await scheduler.hears("status")
        assert again[6] == said[6]
        assert again[3] > said[3]
        await scheduler.says(command, ["ack", status.number, 1, "status"])
        await scheduler.says(command, ["release", "t", 4, ""])
        while (last := checked((await scheduler.hears("status"))[1], Status)) == status:
            pass
        assert (last.number, last.state) == (status.number + 1, "stopped")
        await scheduler.says(command, ["ack", last.number, 1])

        # Garbage, another version and an unknown message change nothing.
        await scheduler.says_bytes(command, b"\xc1garbage")
        await scheduler.says_bytes(command, msgpack.packb([9, "x"]))
        await scheduler.says(command, ["dance"])
        await scheduler.says(command, ["set-sensing", 100, 100, 0.001])
        # On a machine whose every core is busy nothing moves.
        while True:
            frame, message = await scheduler.hears("load")
            if (
                frame[5] == "cpu_percent"
                or checked(message, LoadReport).cpu_percent == BUSY_PERCENT
            ):
                break
        await scheduler.says(command, ["rebirth", "ts-main", 8, "who are you?"])
        await scheduler.hears("birth")
        one.process.send_signal(signal.SIGTERM)
        assert checked((await scheduler.hears("death"))[1], Death).orderly
        assert await one.ends() == 0
        assert "'malformed': 1, 'version': 1" in one.lines[-1]


async def test_it_comes_back_when_the_broker_does(
    broker: EmbeddedBroker, start: Start, connect: Connect
) -> None:
    at = f"127.0.0.1:{broker._port}"
    await start(DEVICE, "--node", "bare", "--broker", at)
    async with connect(at, "tona/1/cell/node/+/presence") as scheduler:
        assert (await scheduler.hears("birth"))[0][2] == 1
        pid = await broker.wait_up()
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while await broker.wait_up() == pid:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0.01)
    async with connect(at, "tona/1/cell/node/+/presence") as scheduler:
        frame, message = await scheduler.hears("birth")
        assert checked(message, Birth).inventory.profile == "bare"
        assert frame[2] > 1
