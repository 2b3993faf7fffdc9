"""The link as reported: kind, speed, signal, rates, and the way to the broker."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.sensing.link import SPEED_EVERY_MS, LinkSensor, link_kind, signal_dbm
from device_agent.sensing.netlink import Change
from device_agent.sensing.path_monitor import TIMEOUT_MS, WINDOW, PathFigures, PathMonitor
from device_agent.sensing.rtnetlink import Interface, RouteSeen

Put = Callable[[str, str], Path]
WIRELESS = (
    b"Inter-| sta-|   Quality        |   Discarded packets\n"
    b" face | tus | link level noise |  nwid  crypt   frag\n"
    b" wlan0: 0000   58.  -52.  -256        0      0      0\n"
    b" wlan1: 0000   58.  40.  0        0      0      0\n"
)


class FakeMonitor:
    """Interfaces by index, and what has changed since the last read."""

    def __init__(self, *interfaces: Interface) -> None:
        self.interfaces = {one.index: one for one in interfaces}
        self.changes: tuple[Change, ...] = ()

    def fileno(self) -> int:
        return -1

    def read(self) -> tuple[Change, ...]:
        changes, self.changes = self.changes, ()
        return changes

    def get(self, index: int) -> Interface | None:
        return self.interfaces.get(index)

    def set(self, index: int, after: Interface | None) -> None:
        self.changes += (Change(self.interfaces.pop(index, None), after),)
        if after:
            self.interfaces[index] = after

    def close(self) -> None:
        self.interfaces.clear()


WLAN = Interface(3, "wlan0", 1, True, True, ("192.0.2.3",))
ETH = Interface(2, "eth0", 1, True, True, ("192.0.2.2",))


def test_a_wifi_link_is_read_whole(tmp_path: Path, put: Put) -> None:
    put("sys/class/net/wlan0/uevent", "DEVTYPE=wlan\nINTERFACE=wlan0\n")
    put("sys/class/net/wlan0/speed", "-1\n")
    put("proc/net/wireless", WIRELESS.decode())
    received = put("sys/class/net/wlan0/statistics/rx_bytes", "1000\n")
    put("sys/class/net/wlan0/statistics/tx_bytes", "500\n")
    sensor = LinkSensor(tmp_path, FakeMonitor(WLAN), lambda _: RouteSeen(3, "192.0.2.3"))
    sensor.attach("192.0.2.1")
    first = sensor.sample(0)
    assert (first.interface, first.kind, first.carrier) == ("wlan0", "wifi", True)
    assert first.addresses == ("192.0.2.3",)
    assert first.signal_dbm == -52.0
    assert first.speed_mbit_per_s is None
    assert (first.rx_bytes_per_s, first.tx_bytes_per_s) == (None, None)
    received.write_text("3000\n")
    second = sensor.sample(2000)
    assert (second.rx_bytes_per_s, second.tx_bytes_per_s) == (1000.0, 0.0)
    sensor.close()


def test_the_way_moves_to_another_interface_and_old_probes_are_forgotten(tmp_path: Path) -> None:
    ways = [RouteSeen(3, "192.0.2.3")]
    monitor = FakeMonitor(WLAN, ETH)
    sensor = LinkSensor(tmp_path, monitor, lambda _: ways[0])
    sensor.attach("192.0.2.1")
    sensor.path.sent(1, 0.0)
    sensor.path.returned(1, 4.0)
    assert sensor.sample(10).round_trip_ms == 4.0
    ways[0] = RouteSeen(2, "192.0.2.2")
    monitor.set(2, ETH)
    assert sensor.read()
    assert not sensor.read()
    report = sensor.sample(20)
    assert (report.interface, report.kind, report.round_trip_ms) == ("eth0", "wired", None)
    sensor.close()


def test_a_connection_is_broken_with_its_carrier_or_its_route(tmp_path: Path) -> None:
    ways: list[RouteSeen | None] = [RouteSeen(3, "192.0.2.3")]
    monitor = FakeMonitor(WLAN, ETH)
    sensor = LinkSensor(tmp_path, monitor, lambda _: ways[0])
    assert sensor.broken == ""
    sensor.attach("192.0.2.1")
    assert sensor.broken == ""
    # The kernel leads elsewhere at once: the connection does not go there with it.
    monitor.set(3, Interface(3, "wlan0", 1, True, False, ()))
    ways[0] = RouteSeen(2, "192.0.2.2")
    assert sensor.read()
    assert sensor.broken == "wlan0 has lost its carrier"
    sensor.attach("192.0.2.1")
    assert sensor.broken == ""
    ways[0] = None
    assert sensor.sample(1).carrier
    assert sensor.broken == "no route leads to 192.0.2.1 any more"
    sensor.close()


def test_an_interface_that_tells_no_carrier_is_no_reason(tmp_path: Path) -> None:
    quiet = Interface(3, "tun0", 1, True, False, ())
    sensor = LinkSensor(tmp_path, FakeMonitor(quiet), lambda _: RouteSeen(3, "192.0.2.3"))
    sensor.attach("192.0.2.1")
    sensor.sample(0)
    assert sensor.broken == ""
    sensor.close()


def test_probes_in_a_row_without_an_answer() -> None:
    path = PathMonitor(timeout_ms=1000.0)
    assert path.unanswered(0.0) == (0, 0.0)
    for number in range(1, 5):
        path.sent(number, number * 1000.0)
    path.returned(1, 1001.0)
    assert path.unanswered(4500.0) == (2, 2000.0), "the last one may still come"
    assert path.unanswered(5001.0) == (3, 2000.0)
    assert path.answered_since(1000.0)
    assert not path.answered_since(1001.0)
    path.returned(4, 4900.0)
    assert path.unanswered(5001.0) == (0, 5001.0)


def test_without_a_way_the_last_interface_is_reported_as_it_is_now(tmp_path: Path) -> None:
    ways: list[RouteSeen | None] = [RouteSeen(2, "192.0.2.2")]
    monitor = FakeMonitor(ETH)
    sensor = LinkSensor(tmp_path, monitor, lambda _: ways[0])
    assert sensor.sample(0).interface == ""
    sensor.attach("192.0.2.1")
    ways[0] = None
    monitor.set(2, Interface(2, "eth0", 1, True, False, ()))
    assert sensor.read()
    report = sensor.sample(1)
    assert (report.interface, report.carrier) == ("eth0", False)
    monitor.set(2, None)
    assert sensor.read()
    report = sensor.sample(2)
    assert (report.interface, report.carrier, report.addresses) == ("eth0", False, ())
    monitor.set(2, ETH)
    ways[0] = RouteSeen(2, "192.0.2.2")
    assert sensor.read()
    assert sensor.sample(3).carrier
    sensor.close()


def test_the_driver_is_asked_for_its_speed_only_now_and_then(tmp_path: Path, put: Put) -> None:
    speed = put("sys/class/net/eth0/speed", "1000\n")
    sensor = LinkSensor(tmp_path, FakeMonitor(ETH), lambda _: RouteSeen(2, ""))
    sensor.attach("192.0.2.1")
    assert sensor.sample(0).speed_mbit_per_s == 1000.0
    speed.write_text("100\n")
    assert sensor.sample(1000).speed_mbit_per_s == 1000.0
    assert sensor.sample(SPEED_EVERY_MS).speed_mbit_per_s == 100.0
    sensor.close()


@pytest.mark.parametrize(
    ("arp_type", "name", "uevent", "kind"),
    [
        (772, "lo", "", "loopback"),
        (1, "eth0", "", "wired"),
        (1, "wlp2s0", "DEVTYPE=wlan", "wifi"),
        (1, "wwan0", "", "cellular"),
        (1, "usb0", "DEVTYPE=wwan", "cellular"),
        (519, "rmnet0", "", "cellular"),
        (65534, "tun0", "", "other"),
    ],
)
def test_kinds_of_links(
    tmp_path: Path, put: Put, arp_type: int, name: str, uevent: str, kind: str
) -> None:
    put(f"sys/class/net/{name}/uevent", f"INTERFACE={name}\n{uevent}\n")
    assert link_kind(tmp_path, Interface(5, name, arp_type, True, True)) == kind


def test_signal_is_in_dbm_or_none() -> None:
    assert signal_dbm(WIRELESS, "wlan0") == -52.0
    assert signal_dbm(WIRELESS, "wlan1") is None  # a scale of its own
    assert signal_dbm(WIRELESS, "wlan2") is None
    assert signal_dbm(b"", "wlan0") is None


def test_median_jitter_and_loss() -> None:
    path = PathMonitor()
    assert path.figures(0) == PathFigures()
    for number, trip in enumerate((2.0, 4.0, 3.0, 50.0)):
        path.sent(number, number * 100.0)
        path.returned(number, number * 100.0 + trip)
    path.sent(4, 400.0)
    assert path.figures(500) == PathFigures(3.5, (2 + 1 + 47) / 3, 0.0)
    assert path.figures(400 + TIMEOUT_MS + 1).loss_percent == 20.0
    path.returned(4, 400 + TIMEOUT_MS + 2)  # too late: it stays lost
    assert path.figures(400 + TIMEOUT_MS + 3).loss_percent == 20.0


def test_strange_probes_are_passed_over() -> None:
    path = PathMonitor()
    path.returned(7, 1.0)
    path.sent(1, 10.0)
    path.sent(1, 11.0)
    path.returned(1, 12.0)
    path.returned(1, 15.0)
    path.sent(2, 20.0)
    path.returned(2, 19.0)
    assert path.figures(21) == PathFigures(2.0, None, 0.0)


EVENTS = st.lists(st.tuples(st.booleans(), st.integers(0, 200), st.floats(0, 10_000)), max_size=300)


@given(EVENTS)
def test_whatever_comes_the_figures_are_bounded(events: list[tuple[bool, int, float]]) -> None:
    path = PathMonitor()
    now_ms = 0.0
    for sent, number, passed in events:
        now_ms += passed
        (path.sent if sent else path.returned)(number, now_ms)
        assert len(path._sent) <= WINDOW
        assert set(path._round_trips) <= set(path._sent)
    figures = path.figures(now_ms)
    for value in (figures.round_trip_ms, figures.jitter_ms):
        assert value is None or 0 <= value <= TIMEOUT_MS
    assert figures.loss_percent is None or 0 <= figures.loss_percent <= 100
