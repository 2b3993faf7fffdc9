"""The session against both brokers, as real processes."""

import asyncio
import random
import socket
from collections.abc import Callable

import pytest
from real_brokers import Broker
from transport_peers import WAIT_S, Peer, topic

from protocols import codec
from protocols.codec import Frame
from protocols.errors import TonaBug
from protocols.messages import Death, Drain, Probe
from protocols.topics import (
    CONTROL_MAX_BYTES,
    Channel,
    Party,
    Speaker,
    wildcard,
)
from protocols.transport import packets
from protocols.transport.outbox import Parcel
from protocols.transport.session import WILL_NUMBER, Session
from protocols.transport.settings import Settings
from protocols.transport.sockets import open_socket

Make = Callable[..., Peer]

COMMAND = topic(Party.NODE, "node-1", Channel.COMMAND)
PRESENCE = topic(Party.NODE, "node-1", Channel.PRESENCE)
PROBE = topic(Party.NODE, "node-1", Channel.PROBE)
INVOKE = topic(Party.NODE, "node-1", Channel.INVOKE)
EVERY_PRESENCE = wildcard("cell-1", Party.NODE, Channel.PRESENCE)


def node(peer: Make, broker: Broker, **more: object) -> Peer:
    filters = [str(COMMAND), str(PROBE), str(INVOKE)]
    return peer(broker.port, "node-1", Speaker.NODE, filters, **more)


def controller(peer: Make, broker: Broker, **more: object) -> Peer:
    return peer(broker.port, "ts-1", Speaker.CONTROLLER, [EVERY_PRESENCE], **more)


def raw(speaker: Peer, name: bytes, payload: bytes) -> bool:
    """Publish any bytes at QoS 1 through a peer's connection."""
    link = speaker.session._link
    assert link is not None
    link._max_packet_bytes = 2**28
    return link.publish(Parcel(packets.text(name), payload, 1, b"\x00"))


async def test_frames_arrive_in_order_and_whole(broker: Broker, peer: Make) -> None:
    one, other = node(peer, broker), controller(peer, broker)
    assert (await one.up(), await other.up()) == (1, 1)
    big = Drain("x" * 2000)
    for number in range(200):
        body = big if number % 7 == 0 else Drain(str(number))
        assert other.session.send(
            COMMAND, body, cause="c", tenant="t", response_topic="a/b", correlation=b"\x00\xff"
        )
    for number in range(200):
        heard = await one.hear()
        assert heard.topic == COMMAND
        expected = big if number % 7 == 0 else Drain(str(number))
        assert heard.frame == Frame(1, "ts-1", 1, number, "t", "c", expected)
        assert (heard.response_topic, heard.correlation) == ("a/b", b"\x00\xff")
    assert await other.session.drained(30_000)
    assert other.session.counters.sent == one.session.counters.received == 200


async def test_qos_0_comes_back_to_its_speaker(broker: Broker, peer: Make) -> None:
    one = node(peer, broker)
    await one.up()
    assert one.session.send(PROBE, Probe(7), cause="path")
    assert (await one.hear()).frame.body == Probe(7)
    assert await one.session.drained(30_000)


async def test_a_killed_broker_is_found_again_on_its_port(broker: Broker, peer: Make) -> None:
    one, other = node(peer, broker), controller(peer, broker)
    await one.up()
    await other.up()
    assert other.session.send(COMMAND, Drain("before"), cause="c")
    await one.hear()
    await broker.kill()
    for gone in (one, other):
        assert "127.0.0.1" in await gone.down()
        assert not gone.session.connected
    assert not other.session.send(COMMAND, Drain("lost"), cause="c")
    await broker.start()
    again = [await one.up(), await other.up()]
    assert min(again) > 1
    assert other.session.send(COMMAND, Drain("after"), cause="c")
    heard = await one.hear()
    assert (heard.frame.body, heard.frame.number) == (Drain("after"), 0)
    assert heard.frame.incarnation == other.session.incarnation == again[1]
    counters = other.session.counters
    assert (counters.connects, counters.disconnects, counters.send_refused) == (2, 1, 1)


async def test_an_unreachable_broker_uses_up_no_incarnation(broker: Broker, peer: Make) -> None:
    await broker.kill()
    one = node(peer, broker)
    await one.reaches(lambda: one.session.counters.connect_failures > 4)
    await broker.start()
    assert await one.up() <= 2
    assert "refused, no broker listens there" in one.session.last_failure


async def test_the_will_of_a_dead_connection_is_delivered(broker: Broker, peer: Make) -> None:
    watcher = controller(peer, broker)
    await watcher.up()
    one = node(peer, broker, will=lambda n: (PRESENCE, Death(f"end of {n}")))
    await one.up()
    one.session.abort("its interface is gone")
    assert await one.down() == f"127.0.0.1:{broker.port}: its interface is gone"
    heard = await watcher.hear()
    assert heard.frame.body == Death("end of 1")
    assert (heard.frame.incarnation, heard.frame.number) == (1, WILL_NUMBER)
    assert await one.up() == 2
    await one.stop()
    assert (await watcher.hear()).frame.body == Death("end of 2")


async def test_an_orderly_close_says_farewell_and_leaves_no_will(
    broker: Broker, peer: Make
) -> None:
    watcher = controller(peer, broker)
    await watcher.up()
    one = node(peer, broker, will=lambda _: (PRESENCE, Death("will")))
    await one.up()
    assert await one.session.close((PRESENCE, Death("farewell", orderly=True)))
    await one.run
    assert "closed by us" in await one.down()
    assert (await watcher.hear()).frame.body == Death("farewell", orderly=True)
    successor = node(peer, broker)
    await successor.up()
    assert successor.session.send(PRESENCE, Death("next"), cause="c")
    assert (await watcher.hear()).frame.body == Death("next")


async def test_a_message_above_its_topics_bound_is_our_bug(broker: Broker, peer: Make) -> None:
    one = node(peer, broker)
    await one.up()
    with pytest.raises(TonaBug, match="exceeds its channel's 65536"):
        one.session.send(PRESENCE, Death("x" * CONTROL_MAX_BYTES), cause="c")
    assert one.session.send(PROBE, Probe(1), cause="c")
    heard = await one.hear()
    assert (heard.frame.body, heard.frame.number) == (Probe(1), 0)


async def test_a_frame_above_its_channels_bound_is_counted(broker: Broker, peer: Make) -> None:
    one, other = node(peer, broker), controller(peer, broker)
    await one.up()
    await other.up()
    assert raw(other, str(COMMAND).encode(), bytes(CONTROL_MAX_BYTES + 1))
    assert other.session.send(COMMAND, Drain("after"), cause="c")
    assert (await one.hear()).frame.body == Drain("after")
    assert one.session.counters.dropped_oversized == 1


async def test_a_packet_above_every_bound_cuts_nobody_off(broker: Broker, peer: Make) -> None:
    """The broker may keep it (we announce our bound) or pass it on; the line stands."""
    one, other = node(peer, broker), controller(peer, broker)
    await one.up()
    await other.up()
    assert raw(other, str(COMMAND).encode(), bytes(1_000_000))
    assert other.session.send(COMMAND, Drain("after"), cause="c")
    assert (await one.hear()).frame.body == Drain("after")
    assert one.session.counters.disconnects == 0


async def test_ten_thousand_bad_frames_are_counted_and_dropped(broker: Broker, peer: Make) -> None:
    one = node(peer, broker)
    other = controller(peer, broker, queue_max=20_000)
    await one.up()
    await other.up()
    good = codec.encode(Frame(1, "ts-1", 1, 0, "t", "c", Drain("x")), 65536)
    foreign = codec.encode(Frame(1, "ts-1", 1, 0, "t", "c", Probe(1)), 256)
    fuzz = random.Random(7)
    bad = (
        lambda: (COMMAND, good[: fuzz.randrange(len(good))]),
        lambda: (COMMAND, b"\xc1" + fuzz.randbytes(fuzz.randrange(100))),
        lambda: (COMMAND, good[:1] + b"\x02" + good[2:]),
        lambda: (PROBE, bytes(257)),
        lambda: (PROBE, foreign),
    )
    for number in range(10_000):
        name, payload = bad[number % len(bad)]()
        assert raw(other, str(name).encode(), payload)
    assert other.session.send(COMMAND, Drain("after"), cause="c")
    assert (await one.hear()).frame.body == Drain("after")
    counted = one.session.counters
    # The embedded broker keeps the order of a filter, not that between two of them.
    await one.reaches(lambda: counted.dropped_oversized + counted.dropped_foreign >= 4000)
    assert counted.dropped_malformed == 4000
    assert counted.dropped_version == 2000
    assert counted.dropped_oversized == 2000
    assert counted.dropped_foreign == 2000
    assert (counted.received, counted.disconnects) == (1, 0)


async def test_a_topic_outside_the_table_is_counted(broker: Broker, peer: Make) -> None:
    one = peer(broker.port, "node-1", Speaker.NODE, ["tona/#"])
    other = controller(peer, broker)
    await one.up()
    await other.up()
    assert raw(other, b"tona/1/cell-1/node/node-1/nonsense", b"x")
    assert other.session.send(COMMAND, Drain("after"), cause="c")
    assert (await one.hear()).frame.body == Drain("after")
    assert one.session.counters.dropped_topic == 1


async def test_a_broker_that_stands_still_is_not_waited_for(broker: Broker, peer: Make) -> None:
    one = node(peer, broker, queue_max=50, inflight_max=20)
    await one.up()
    broker.pause()
    try:
        accepted = 0
        while one.session.send(PRESENCE, Death(str(accepted)), cause="c"):
            accepted += 1
            assert accepted <= 70
        assert accepted == 70
        assert one.session.counters.send_refused == 1
        assert not await one.session.drained(50)
    finally:
        broker.resume()
    assert await one.session.drained(30_000)
    assert one.session.send(PRESENCE, Death("again"), cause="c")
    assert one.session.counters.sent == 71


async def test_a_full_line_queues_and_nothing_is_lost(broker: Broker, peer: Make) -> None:
    """QoS 0 has no window: only the socket's own back-pressure holds it."""
    one = node(peer, broker, queue_max=100_000)
    await one.up()
    link = one.session._link
    assert link is not None
    broker.pause()
    try:
        accepted = 0
        while link.outbox.queued < 100:
            assert one.session.send(PROBE, Probe(accepted), cause="c" * 100)
            accepted += 1
            assert accepted < 500_000, "the line never fills"
        assert not link.outbox.open
    finally:
        broker.resume()
    await one.reaches(lambda: link.outbox.empty)
    assert one.session.counters.sent == accepted


async def test_a_silent_broker_is_left_and_found_again(broker: Broker, peer: Make) -> None:
    one = node(peer, broker, heartbeat_ms=200, connect_timeout_ms=2000)
    await one.up()
    broker.pause()
    try:
        assert "silent for 600 ms" in await one.down()
    finally:
        broker.resume()
    assert await one.up() > 1


async def test_an_idle_line_is_kept_alive(broker: Broker, peer: Make) -> None:
    one = node(peer, broker, heartbeat_ms=50, silent_heartbeats=100)
    await one.up()
    link = one.session._link
    assert link is not None
    heard = 0

    def pinged() -> bool:
        nonlocal heard
        heard += link._heard
        link._heard = False
        return heard >= 5

    await one.reaches(pinged)
    assert one.session.connected
    # What it took is known.
    assert 0 < (one.session.ping() or 0.0) < WAIT_S * 1000


async def test_a_bug_in_a_handler_does_not_deafen_the_session(broker: Broker, peer: Make) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()

    def stumble(message: object) -> None:
        heard.put_nowait(message)
        raise ZeroDivisionError

    one = node(peer, broker, on_message=stumble)
    await one.up()
    async with asyncio.timeout(WAIT_S):
        for number in range(3):
            assert one.session.send(PROBE, Probe(number), cause="c")
            await heard.get()
    assert one.session.counters.handler_faults == 3
    assert one.session.connected


async def test_a_bug_in_a_callback_ends_the_session_loudly(broker: Broker, peer: Make) -> None:
    def stumble(_: int) -> None:
        raise ZeroDivisionError

    one = node(peer, broker, on_connected=stumble)
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(ZeroDivisionError):
            await asyncio.shield(one.run)
    one.run = asyncio.create_task(asyncio.sleep(0))


async def test_a_new_list_of_subscriptions_takes_hold(broker: Broker, peer: Make) -> None:
    filters = [str(PROBE)]
    one = peer(broker.port, "node-1", Speaker.NODE, lambda: filters)
    other = controller(peer, broker)
    await one.up()
    await other.up()
    filters.append(str(COMMAND))
    one.session.resubscribe()
    filters.append(str(INVOKE))
    one.session.resubscribe()
    assert one.session.send(PROBE, Probe(1), cause="behind the subscription")
    assert (await one.hear()).frame.body == Probe(1)
    assert other.session.send(COMMAND, Drain("heard"), cause="c")
    assert (await one.hear()).frame.body == Drain("heard")


async def test_what_the_new_list_leaves_out_comes_no_more(broker: Broker, peer: Make) -> None:
    filters = [str(PROBE), str(COMMAND), str(INVOKE)]
    one = peer(broker.port, "node-1", Speaker.NODE, lambda: list(filters))
    other = controller(peer, broker)
    await one.up()
    await other.up()
    filters.remove(str(COMMAND))
    one.session.resubscribe()
    # Each change waits for the answer to the one before: when the last stands, so do all.
    filters.remove(str(INVOKE))
    one.session.resubscribe()
    link = one.session._link
    assert link is not None
    await one.reaches(lambda: link._granted == set(filters) and not link._leaving)
    received = one.session.counters.received
    assert other.session.send(COMMAND, Drain("unheard"), cause="c")
    assert await other.session.drained(WAIT_S * 1000)
    assert one.session.send(PROBE, Probe(2), cause="behind it")
    assert (await one.hear()).frame.body == Probe(2)
    assert one.session.counters.received == received + 1
    filters.append(str(COMMAND))
    one.session.resubscribe()
    assert one.session.send(PROBE, Probe(3), cause="behind the subscription")
    assert (await one.hear()).frame.body == Probe(3)
    assert other.session.send(COMMAND, Drain("heard"), cause="c")
    assert (await one.hear()).frame.body == Drain("heard")


async def test_who_may_not_publish_is_told_at_once(broker: Broker, peer: Make) -> None:
    one = node(peer, broker)
    await one.up()
    other = topic(Party.NODE, "node-2", Channel.PRESENCE)
    for foreign in (COMMAND, other):
        with pytest.raises(TonaBug, match="node-1 may not publish on"):
            one.session.send(foreign, Death("x"), cause="c")


async def test_a_session_runs_once(broker: Broker, peer: Make) -> None:
    one = node(peer, broker)
    await one.up()
    with pytest.raises(TonaBug, match="already runs"):
        await one.session.run()


async def test_the_socket_is_prepared(broker: Broker, peer: Make) -> None:
    made: list[socket.socket] = []

    async def keep(settings: Settings) -> socket.socket:
        made.append(await open_socket(settings))
        return made[-1]

    more = {"host": "localhost", "source_address": "127.0.0.2", "interface": "lo"}
    one = node(peer, broker, open_socket=keep, **more)
    await one.up()
    assert made[-1].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert made[-1].getsockname()[0] == "127.0.0.2"
    device = made[-1].getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
    assert device.rstrip(b"\x00") == b"lo"


async def test_an_absent_interface_is_said_clearly(peer: Make, broker: Broker) -> None:
    one = node(peer, broker, interface="nowhere0")
    await one.reaches(lambda: one.session.counters.connect_failures > 0)
    await one.reaches(lambda: bool(one.session.last_failure))
    assert "cannot bind to nowhere0: No such device" in one.session.last_failure


async def test_close_before_run_and_without_a_broker_ends_soon(peer: Make) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        one = peer(port, "node-1", Speaker.NODE)
        await one.reaches(lambda: one.session.counters.connect_failures > 0)
        assert await one.session.close()
        async with asyncio.timeout(WAIT_S):
            await one.run
        idle = Session(
            one.session.settings,
            subscriptions=(),
            on_message=one.inbox.put_nowait,
            on_connected=one.ups.put_nowait,
            on_disconnected=one.downs.put_nowait,
            next_incarnation=lambda: 1,
        )
        assert await idle.close()
        await idle.run()
