"""Links and addresses as the kernel pushes them, in a namespace of their own."""

import asyncio
import select
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.sensing.link import LinkSensor
from device_agent.sensing.netlink import Change, LinkMonitor, route
from device_agent.sensing.rtnetlink import (
    AddressGone,
    AddressSeen,
    Interface,
    Kind,
    LinkGone,
    LinkSeen,
    Table,
    dump_request,
    parse,
    route_request,
)
from protocols.errors import MalformedFrame

WAIT_S = 60


def await_change(monitor: LinkMonitor, wanted: Callable[[Change], bool]) -> Change:
    """Wait for the kernel to say it; the wait ends with the event, not with a time."""
    while select.select([monitor.fileno()], [], [], WAIT_S)[0]:
        for change in monitor.read():
            if wanted(change):
                return change
    raise AssertionError(f"the kernel said nothing of it within {WAIT_S} s")


def named(monitor: LinkMonitor, name: str) -> Interface | None:
    return next((one for one in monitor.interfaces if one.name == name), None)


@pytest.fixture
def monitor(namespace: Any) -> Any:
    with namespace.inside():
        following = LinkMonitor()
    yield following
    following.close()


def test_the_first_look_has_everything_that_is_there(namespace: Any) -> None:
    namespace.ip("link", "set", "lo", "up")
    namespace.ip("link", "add", "left", "type", "veth", "peer", "name", "right")
    namespace.ip("addr", "add", "192.0.2.7/24", "dev", "left")
    with namespace.inside():
        monitor = LinkMonitor()
    try:
        loopback = named(monitor, "lo")
        left = named(monitor, "left")
        assert loopback
        assert loopback.carrier
        assert loopback.arp_type == 772
        assert set(loopback.addresses) == {"127.0.0.1", "::1"}
        assert left
        assert left.addresses == ("192.0.2.7",)
        assert (left.up, left.carrier) == (False, False)
        assert not monitor.dropped
    finally:
        monitor.close()


def test_carrier_follows_the_other_end(namespace: Any, monitor: LinkMonitor) -> None:
    namespace.ip("link", "add", "left", "type", "veth", "peer", "name", "right")
    await_change(monitor, lambda change: bool(change.after and change.after.name == "left"))
    namespace.ip("link", "set", "left", "up")
    namespace.ip("link", "set", "right", "up")
    await_change(monitor, lambda change: bool(change.after and change.after.carrier))
    while not ((left := named(monitor, "left")) and left.carrier):
        await_change(monitor, lambda change: bool(change.after))
    namespace.ip("link", "set", "right", "down")
    change = await_change(
        monitor,
        lambda change: bool(
            change.after and change.after.name == "left" and not change.after.carrier
        ),
    )
    assert change.before
    assert change.before.carrier
    assert change.after
    assert change.after.up


def test_addresses_come_and_go(namespace: Any, monitor: LinkMonitor) -> None:
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "lo")
    await_change(monitor, lambda c: bool(c.after and "192.0.2.1" in c.after.addresses))
    namespace.ip("addr", "add", "2001:db8::1/64", "dev", "lo", "nodad")
    await_change(monitor, lambda c: bool(c.after and "2001:db8::1" in c.after.addresses))
    namespace.ip("addr", "del", "192.0.2.1/24", "dev", "lo")
    change = await_change(monitor, lambda c: bool(c.after and "192.0.2.1" not in c.after.addresses))
    assert change.after
    assert change.after.addresses == ("2001:db8::1",)


def test_a_deleted_link_is_gone(namespace: Any, monitor: LinkMonitor) -> None:
    namespace.ip("link", "add", "left", "type", "veth", "peer", "name", "right")
    await_change(monitor, lambda change: bool(change.after and change.after.name == "left"))
    namespace.ip("link", "del", "left")
    change = await_change(monitor, lambda c: bool(c.before and c.before.name == "left"))
    assert change.after is None


def test_a_port_that_leaves_a_bridge_keeps_its_carrier(
    namespace: Any, monitor: LinkMonitor
) -> None:
    for words in (
        ("link", "add", "left", "type", "veth", "peer", "name", "right"),
        ("link", "set", "left", "up"),
        ("link", "set", "right", "up"),
    ):
        namespace.ip(*words)
    try:
        namespace.ip("link", "add", "bridge", "type", "bridge")
    except Exception as error:  # noqa: BLE001 - a kernel without bridges
        pytest.skip(f"needs a kernel with bridges: {error}")
    while not ((left := named(monitor, "left")) and left.carrier):
        await_change(monitor, lambda change: bool(change.after))
    namespace.ip("link", "set", "left", "master", "bridge")
    namespace.ip("link", "set", "left", "nomaster")
    namespace.ip("addr", "add", "192.0.2.9/24", "dev", "right")
    lost: list[Change] = []

    def seen(change: Change) -> bool:
        if change.after and change.after.name == "left" and not change.after.carrier:
            lost.append(change)
        return bool(change.after and "192.0.2.9" in change.after.addresses)

    await_change(monitor, seen)
    assert not lost


def test_when_the_kernel_drops_messages_everything_is_asked_anew(namespace: Any) -> None:
    with namespace.inside():
        monitor = LinkMonitor(receive_bytes=4096)
    try:
        there = [f"198.51.100.{number}" for number in range(1, 31)]
        # far more than the socket holds, while nobody reads
        namespace.batch([f"addr add 203.0.113.{n}/32 dev lo" for n in range(1, 200)])
        namespace.batch([f"addr del 203.0.113.{n}/32 dev lo" for n in range(1, 200)])
        namespace.batch([f"addr add {address}/32 dev lo" for address in there])
        namespace.ip("link", "add", "left", "type", "veth", "peer", "name", "right")
        deadline = 100
        while named(monitor, "left") is None and deadline:
            deadline -= 1
            select.select([monitor.fileno()], [], [], WAIT_S)
            monitor.read()
        assert monitor.dropped["overrun"] > 0
        loopback = named(monitor, "lo")
        assert loopback
        while set(loopback.addresses) != set(there) and deadline:
            deadline -= 1
            select.select([monitor.fileno()], [], [], WAIT_S)
            monitor.read()
            loopback = named(monitor, "lo")
            assert loopback
        assert set(loopback.addresses) == set(there)
    finally:
        monitor.close()


async def test_the_daemons_loop_hears_of_the_serving_link(namespace: Any) -> None:
    namespace.ip("link", "add", "left", "type", "veth", "peer", "name", "right")
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "left")
    namespace.ip("link", "set", "left", "up")
    namespace.ip("link", "set", "right", "up")
    with namespace.inside():
        monitor = LinkMonitor()
    left = named(monitor, "left")
    assert left

    def find_route(address: str) -> Any:
        with namespace.inside():
            return route(address)

    from pathlib import Path  # noqa: PLC0415 - only here

    sensor = LinkSensor(Path("/nowhere"), monitor, find_route)
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def heard() -> None:
        if sensor.read():
            changed.set()

    loop.add_reader(sensor.fileno(), heard)
    try:
        sensor.attach("192.0.2.200")
        while not sensor.sample(0).carrier:
            await asyncio.wait_for(changed.wait(), WAIT_S)
            changed.clear()
        report = sensor.sample(1000)
        assert (report.interface, report.kind, report.carrier) == ("left", "wired", True)
        assert "192.0.2.1" in report.addresses
        changed.clear()
        await asyncio.to_thread(namespace.ip, "link", "set", "right", "down")
        while sensor.sample(2000).carrier:
            await asyncio.wait_for(changed.wait(), WAIT_S)
            changed.clear()
        changed.clear()
        await asyncio.to_thread(namespace.ip, "link", "del", "left")
        while sensor.sample(3000).addresses:
            await asyncio.wait_for(changed.wait(), WAIT_S)
            changed.clear()
        gone = sensor.sample(3000)
        assert (gone.interface, gone.carrier, gone.addresses) == ("left", False, ())
    finally:
        loop.remove_reader(sensor.fileno())
        sensor.close()


def test_the_route_names_interface_and_source(namespace: Any) -> None:
    namespace.ip("link", "set", "lo", "up")
    namespace.ip("link", "add", "left", "type", "veth", "peer", "name", "right")
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "left")
    namespace.ip("link", "set", "left", "up")
    namespace.ip("link", "set", "right", "up")
    with namespace.inside():
        monitor = LinkMonitor()
        try:
            out, home, nowhere = route("192.0.2.77"), route("127.0.0.1"), route("203.0.113.1")
            left, loopback = named(monitor, "left"), named(monitor, "lo")
        finally:
            monitor.close()
    assert out
    assert left
    assert (out.index, out.source) == (left.index, "192.0.2.1")
    assert home
    assert loopback
    assert home.index == loopback.index
    assert nowhere is None


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match=r"broker\.example"):
        route_request("broker.example", 1)


@given(st.binary(max_size=400))
def test_any_bytes_are_events_or_malformed(datagram: bytes) -> None:
    try:
        parse(datagram)
    except MalformedFrame:
        return


@given(st.sampled_from([*Kind]), st.binary(max_size=120), st.integers(0, 2**16 - 1))
def test_any_body_is_events_or_malformed(kind: Kind, body: bytes, flags: int) -> None:
    datagram = struct.pack("=IHHII", 16 + len(body), kind, flags, 7, 0) + body
    table = Table()
    try:
        for event in parse(datagram):
            table.apply(event)
    except MalformedFrame:
        return


def test_our_own_requests_are_well_formed() -> None:
    for request in (dump_request(Kind.GET_LINK, 3), route_request("::1", 4)):
        assert parse(request) == []
        assert len(request) == struct.unpack_from("=I", request)[0]


def test_what_a_dump_does_not_name_is_forgotten() -> None:
    table = Table()
    table.apply(LinkSeen(1, "lo", 772, True, True))
    table.apply(LinkSeen(2, "eth0", 1, True, True))
    table.apply(AddressSeen(1, "127.0.0.1"))
    table.apply(AddressSeen(1, "192.0.2.1"))
    table.begin()
    table.apply(LinkSeen(1, "lo", 772, True, True))
    table.apply(AddressSeen(1, "127.0.0.1"))
    table.finish()
    assert [*table.interfaces.values()] == [Interface(1, "lo", 772, True, True, ("127.0.0.1",))]


def test_events_of_an_unknown_interface_change_nothing() -> None:
    table = Table()
    table.apply(AddressSeen(9, "192.0.2.1"))
    table.apply(AddressGone(9, "192.0.2.1"))
    table.apply(LinkGone(9))
    assert table.interfaces == {}


def test_an_address_that_is_not_yet_usable_does_not_count() -> None:
    def message(flags: int) -> bytes:
        attributes = struct.pack("=HH4s", 8, 1, bytes([192, 0, 2, 1]))
        attributes += struct.pack("=HHI", 8, 8, flags)
        body = struct.pack("=BBBBI", 2, 24, 0, 0, 3) + attributes
        return struct.pack("=IHHII", 16 + len(body), Kind.NEW_ADDRESS, 0, 0, 0) + body

    assert parse(message(0x80)) == [AddressSeen(3, "192.0.2.1")]
    assert parse(message(0x40)) == [AddressGone(3, "192.0.2.1")]
