"""The session against a broker that does what no real one would do on request."""

import asyncio
import struct
from collections.abc import Callable

import pytest
from transport_fake import ACCEPT, FakeBroker, Line
from transport_peers import WAIT_S, Peer, topic

from protocols import codec
from protocols.codec import Frame
from protocols.messages import Death, Drain
from protocols.topics import Channel, Party, Speaker
from protocols.transport import backoff, packets
from protocols.transport.settings import PACKET_MAX_BYTES

Make = Callable[..., Peer]

COMMAND = topic(Party.NODE, "node-1", Channel.COMMAND)
PRESENCE = topic(Party.NODE, "node-1", Channel.PRESENCE)


def node(peer: Make, broker: FakeBroker, **more: object) -> Peer:
    return peer(broker.port, "node-1", Speaker.NODE, [str(COMMAND)], **more)


def command(text: str, packet_id: int) -> bytes:
    frame = Frame(1, "ts-1", 1, 0, "t", "c", Drain(text))
    payload = codec.encode(frame, 65536)
    return packets.publish(packets.text(str(COMMAND).encode()), payload, packet_id, b"\x00")


async def test_a_broker_that_drops_us_at_once_is_approached_ever_more_slowly(
    peer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    step = backoff.step

    def spy(policy: backoff.Policy, failures: int, up_ms: int, draw: float) -> backoff.Retry:
        retry = step(policy, failures, up_ms, draw)
        waits.append(retry.failures)
        return retry

    monkeypatch.setattr(backoff, "step", spy)

    async def drop(line: Line) -> None:
        await line.greet()

    async with FakeBroker(drop) as broker:
        one = node(peer, broker)
        for incarnation in range(1, 9):
            assert await one.up() == incarnation
            assert "closed the connection" in await one.down()
        await one.stop()
    assert waits[:7] == [1, 2, 3, 4, 5, 6, 7]
    assert one.session.counters.disconnects == one.session.counters.connects


async def test_a_broker_that_drops_us_before_connack_counts_as_failure(peer: Make) -> None:
    async def drop(line: Line) -> None:
        await line.packet()

    async with FakeBroker(drop) as broker:
        one = node(peer, broker)
        await one.reaches(lambda: one.session.counters.connect_failures >= 3)
        assert one.session.counters.connects == 0
        await one.stop()


@pytest.mark.parametrize(
    ("connack", "reason"),
    [
        (b"\x20\x03\x00\x87\x00", "refuses us: code 135 (Connection Refused: Not authorized)"),
        (b"\x20\x01\x00", "CONNACK that is none"),
        (b"\x30\xff\xff\xff\xff\x7f", "a packet length of more than four bytes"),
        (b"\xd0\xff\xff\x7f" + bytes(5000), "an endless packet"),
        (b"\x60\x02\x00\x01", "an unexpected packet 0x60"),
        (b"\xe0\x01\x8e", "session taken over (code 0x8e)"),
        (ACCEPT + b"\x90\x04\xff\xff\x00\x87", "refuses the subscription to tona/1/cell-1"),
    ],
)
async def test_why_there_is_no_connection_is_one_sentence(
    peer: Make, connack: bytes, reason: str
) -> None:
    async def answer(line: Line) -> None:
        await line.packet()
        await line.say(connack)
        await line.until_closed()

    async with FakeBroker(answer) as broker:
        one = node(peer, broker)
        await one.reaches(lambda: one.session.counters.connect_failures >= 2)
        assert reason in one.session.last_failure
        await one.stop()


async def test_a_broker_that_never_answers_is_left(peer: Make) -> None:
    async def mute(line: Line) -> None:
        await line.until_closed()

    async with FakeBroker(mute) as broker:
        one = node(peer, broker, connect_timeout_ms=100)
        await one.reaches(lambda: one.session.counters.connect_failures >= 2)
        assert "no answer to CONNECT within 100 ms" in one.session.last_failure
        await one.stop()


async def test_close_does_not_wait_for_a_mute_broker(peer: Make) -> None:
    met = asyncio.Event()

    async def mute(line: Line) -> None:
        await line.packet()
        met.set()
        await line.until_closed()

    async with FakeBroker(mute) as broker, asyncio.timeout(WAIT_S):
        one = node(peer, broker, connect_timeout_ms=3_600_000)
        await met.wait()
        await one.session.close()
        await one.run


async def test_an_oversized_packet_is_acknowledged_skipped_and_counted(peer: Make) -> None:
    acknowledged: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    async def flood(line: Line) -> None:
        await line.greet()
        name = packets.text(str(COMMAND).encode())
        for packet_id in (1, 2, 3):
            await line.say(packets.publish(name, bytes(PACKET_MAX_BYTES * 10), packet_id, b"\x00"))
        await line.say(command("after", 4))
        while True:
            acknowledged.put_nowait(await line.packet())

    async with FakeBroker(flood) as broker:
        one = node(peer, broker)
        assert (await one.hear()).frame.body == Drain("after")
        async with asyncio.timeout(WAIT_S):
            for packet_id in (1, 2, 3, 4):
                assert await acknowledged.get() == (0x40, struct.pack("!H", packet_id))
        assert one.session.counters.dropped_oversized == 3
        link = one.session._link
        assert link is not None
        assert len(link._reader._buffer) == packets.READ_BYTES
        await one.stop()


async def test_the_servers_receive_maximum_bounds_what_is_in_flight(peer: Make) -> None:
    heard: asyncio.Queue[int] = asyncio.Queue()
    release = asyncio.Event()

    async def slow(line: Line) -> None:
        await line.greet(b"\x20\x06\x00\x00\x03\x21\x00\x03")
        for _ in range(3):
            first, body = await line.packet()
            heard.put_nowait(packets.head(first, body).packet_id)
        await release.wait()
        await line.say(packets.puback(1))
        waiting = [2, 3]
        while True:
            first, body = await line.packet()
            waiting.append(packets.head(first, body).packet_id)
            heard.put_nowait(waiting[-1])
            await line.say(packets.puback(waiting.pop(0)))

    async with FakeBroker(slow) as broker:
        one = node(peer, broker)
        await one.up()
        for number in range(10):
            assert one.session.send(PRESENCE, Death(str(number)), cause="c")
        link = one.session._link
        assert link is not None
        async with asyncio.timeout(WAIT_S):
            assert [await heard.get() for _ in range(3)] == [1, 2, 3]
            assert (link.outbox.inflight, link.outbox.queued) == (3, 7)
            release.set()
            assert [await heard.get() for _ in range(7)] == list(range(4, 11))
        await one.stop()


async def test_what_waits_is_gone_with_its_connection(peer: Make) -> None:
    async def never_acknowledge(line: Line) -> None:
        await line.greet(b"\x20\x06\x00\x00\x03\x21\x00\x02")
        await line.until_closed()

    async with FakeBroker(never_acknowledge) as broker:
        one = node(peer, broker)
        await one.up()
        for number in range(5):
            assert one.session.send(PRESENCE, Death(str(number)), cause="c")
        waiter = asyncio.create_task(one.session.drained(60_000))
        await asyncio.sleep(0)
        one.session.abort("test")
        await one.down()
        assert not await waiter
        assert one.session.counters.send_abandoned == 5
        await one.up()
        link = one.session._link
        assert link is not None
        assert link.outbox.empty
        await one.stop()


async def test_what_the_server_would_not_take_is_refused_here(peer: Make) -> None:
    async def small(line: Line) -> None:
        await line.greet(b"\x20\x08\x00\x00\x05\x27\x00\x00\x01\x00")
        await line.until_closed()

    async with FakeBroker(small) as broker:
        one = node(peer, broker)
        await one.up()
        assert not one.session.send(PRESENCE, Death("x" * 300), cause="c")
        assert one.session.send(PRESENCE, Death("x" * 100), cause="c")
        assert one.session.counters.send_refused == 1
        await one.stop()


async def test_a_refused_frame_is_counted(peer: Make) -> None:
    async def refuse(line: Line) -> None:
        await line.greet()
        first, body = await line.packet()
        packet_id = packets.head(first, body).packet_id
        await line.say(b"\x40\x03" + struct.pack("!HB", packet_id, 0x87))
        await line.until_closed()

    async with FakeBroker(refuse) as broker:
        one = node(peer, broker)
        await one.up()
        assert one.session.send(PRESENCE, Death("x"), cause="c")
        assert await one.session.drained(30_000)
        assert one.session.counters.send_rejected == 1
        await one.stop()


async def test_each_connection_has_a_client_id_of_its_own(peer: Make) -> None:
    names: asyncio.Queue[str] = asyncio.Queue()

    async def note(line: Line) -> None:
        _, body = await line.packet()
        at = 11 + body[10]
        size = int.from_bytes(body[at : at + 2])
        names.put_nowait(body[at + 2 : at + 2 + size].decode())

    async with FakeBroker(note) as broker, asyncio.timeout(WAIT_S):
        one = node(peer, broker)
        seen = [await names.get() for _ in range(3)]
        assert len(set(seen)) == 3
        assert all(name.startswith("node-1-") for name in seen)
        await one.stop()


async def test_retry_now_ends_the_wait(peer: Make) -> None:
    async def drop(line: Line) -> None:
        await line.packet()

    async with FakeBroker(drop) as broker:
        patient = backoff.Policy(first_ms=3_600_000, cap_ms=3_600_000)
        one = node(peer, broker, backoff=patient)
        for count in (1, 2, 3):
            await one.reaches(lambda count=count: one.session.counters.connect_failures == count)
            one.session.retry_now()
        await one.reaches(lambda: one.session.counters.connect_failures >= 4)
        await one.stop()
