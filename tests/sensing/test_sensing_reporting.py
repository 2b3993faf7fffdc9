"""When a node speaks: on a step, by heartbeat, and never for a flutter."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from device_agent.sensing.link import LinkSensor
from device_agent.sensing.reporting import (
    HEARTBEAT,
    LOSS_STEP_PERCENT,
    ROUND_TRIP_FLOOR_MS,
    due_link,
    due_load,
    whole_every,
)
from device_agent.sensing.rtnetlink import Interface, RouteSeen
from device_agent.sensing.sampler import Sampler
from firmware_profiles import load
from protocols.messages.sense import AcceleratorLoad, LinkReport, LoadReport, SetSensing

DAY = 86_400
WARM_UP = 1000
STEP_SAMPLES = 100
# Half of what losing one block at each step would leave; the test runner's own threads move a few.
LEFT_AT_MOST = (DAY - WARM_UP) // STEP_SAMPLES // 2
SENSING = SetSensing(heartbeat_ms=1000, sample_ms=100)
LOAD = LoadReport(
    sampled_ms=0,
    cpu_percent=40.0,
    memory_used_bytes=40 << 20,
    memory_available_bytes=60 << 20,
    temperature_c=50.0,
    throttled=False,
    accelerators=(AcceleratorLoad(0, 20.0, None, 45.0),),
)
LINK = LinkReport(
    sampled_ms=0,
    interface="wlan0",
    kind="wifi",
    carrier=True,
    addresses=("192.0.2.2", "fe80::1"),
    signal_dbm=-60.0,
    round_trip_ms=10.0,
    loss_percent=0.0,
    delivery_mbit_per_s=8.0,
)


def test_the_first_report_is_sent() -> None:
    first = due_load(None, LOAD, SENSING)
    assert first
    assert first.cause == HEARTBEAT
    assert due_link(None, LINK, SENSING) == replace(LINK, cause=HEARTBEAT)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"cpu_percent": 50.0}, "cpu_percent"),
        ({"cpu_percent": 30.0}, "cpu_percent"),
        ({"memory_used_bytes": 45 << 20, "memory_available_bytes": 55 << 20}, "memory_used_bytes"),
        ({"throttled": True}, "throttled"),
        ({"temperature_c": 53.0}, "temperature_c"),
        ({"accelerators": (AcceleratorLoad(0, 31.0, None, 45.0),)}, "accelerators"),
        ({"accelerators": (AcceleratorLoad(0, 20.0, None, 48.0),)}, "accelerators"),
        ({"cpu_percent": 49.0, "temperature_c": 52.0}, None),
        ({"throttled": None, "temperature_c": None}, None),
        ({"accelerators": (AcceleratorLoad(0),)}, None),
        ({"sampled_ms": 949}, None),
        ({"sampled_ms": 950}, HEARTBEAT),
        ({"sampled_ms": 1000, "cpu_percent": 90.0}, "cpu_percent"),
    ],
)
def test_a_load_speaks_by_its_step(change: dict[str, object], cause: str | None) -> None:
    due = due_load(LOAD, replace(LOAD, **change), SENSING)
    assert (due.cause if due else None) == cause


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"interface": "eth0"}, "interface"),
        ({"carrier": False}, "carrier"),
        ({"addresses": ("192.0.2.2",)}, "addresses"),
        ({"addresses": ("fe80::1", "192.0.2.2")}, None),
        ({"signal_dbm": -64.0}, "signal_dbm"),
        ({"signal_dbm": -63.0}, None),
        ({"round_trip_ms": 15.0}, "round_trip_ms"),
        ({"round_trip_ms": 14.0}, None),
        ({"round_trip_ms": None}, None),
        ({"loss_percent": LOSS_STEP_PERCENT}, "loss_percent"),
        ({"delivery_mbit_per_s": 5.0}, "delivery_mbit_per_s"),
        ({"delivery_mbit_per_s": 12.0}, "delivery_mbit_per_s"),
        ({"delivery_mbit_per_s": 6.0}, None),
        ({"delivery_mbit_per_s": None}, None),
        ({"rx_bytes_per_s": 1e9}, None),
        ({"sampled_ms": 749}, None),
        ({"sampled_ms": 750}, HEARTBEAT),
        ({"sampled_ms": 1000}, HEARTBEAT),
    ],
)
def test_a_link_speaks_by_its_step(change: dict[str, object], cause: str | None) -> None:
    due = due_link(LINK, replace(LINK, **change), SENSING)
    assert (due.cause if due else None) == cause


@pytest.mark.parametrize(
    ("sample_ms", "every"), [(20, 25), (50, 10), (60, 8), (300, 2), (400, 1), (1000, 1)]
)
def test_however_fast_the_pace_all_is_read_twice_a_second(sample_ms: int, every: int) -> None:
    assert whole_every(sample_ms) == every


def test_a_wide_link_may_carry_what_it_likes() -> None:
    wide = replace(LINK, delivery_mbit_per_s=150.0)
    assert due_link(wide, replace(LINK, delivery_mbit_per_s=900.0), SENSING) is None
    due = due_link(wide, LINK, SENSING)
    assert due
    assert due.cause == "delivery_mbit_per_s"


def test_a_short_round_trip_may_double_within_the_noise() -> None:
    fast = replace(LINK, round_trip_ms=0.2)
    assert due_link(fast, replace(LINK, round_trip_ms=0.5), SENSING) is None
    slow = replace(LINK, round_trip_ms=0.2 + ROUND_TRIP_FLOOR_MS)
    assert due_link(fast, slow, SENSING)


SHARES = st.floats(0, 100)


@given(
    st.floats(0, 100),
    st.lists(st.floats(-0.499, 0.499), min_size=1, max_size=60),
    st.floats(0.1, 50),
)
def test_a_value_that_flutters_inside_its_step_speaks_by_heartbeat_alone(
    centre: float, flutter: list[float], step: float
) -> None:
    sensing = SetSensing(heartbeat_ms=1000, sample_ms=100, cpu_step_percent=step)
    last = due_load(None, replace(LOAD, cpu_percent=centre), sensing)
    for tick, part in enumerate(flutter, 1):
        new = replace(LOAD, sampled_ms=tick * 100, cpu_percent=centre + part * step)
        due = due_load(last, new, sensing)
        assert last
        assert (due is not None) == (new.sampled_ms - last.sampled_ms >= 1000)
        if due:
            assert due.cause == HEARTBEAT
            last = due


@given(st.lists(SHARES, min_size=1, max_size=100), st.integers(50, 5000), st.floats(1, 60))
def test_what_was_reported_is_never_older_than_a_heartbeat_nor_off_by_a_step(
    loads: list[float], heartbeat_ms: int, step: float
) -> None:
    sensing = SetSensing(heartbeat_ms=heartbeat_ms, sample_ms=100, cpu_step_percent=step)
    last: LoadReport | None = None
    for tick, share in enumerate(loads):
        new = replace(LOAD, sampled_ms=tick * 100, cpu_percent=share)
        last = due_load(last, new, sensing) or last
        assert last
        assert abs(last.cpu_percent - new.cpu_percent) < step
        assert new.sampled_ms - last.sampled_ms < max(heartbeat_ms, 1)


@given(
    st.lists(st.integers(-20, 20), min_size=10, max_size=100),
    st.sampled_from([(1000, 1000), (1500, 1500), (1000, 500), (1000, 100)]),
)
def test_a_timer_that_is_a_hair_early_does_not_double_the_silence(
    hairs: list[int], pace: tuple[int, int]
) -> None:
    heartbeat_ms, sample_ms = pace
    sensing = SetSensing(heartbeat_ms=heartbeat_ms, sample_ms=sample_ms)
    last = due_load(None, LOAD, sensing)
    for tick, hair in enumerate(hairs, 1):
        at_ms = tick * sample_ms + hair
        assert last
        assert at_ms - last.sampled_ms <= heartbeat_ms + sample_ms / 2 + 20
        last = due_load(last, replace(LOAD, sampled_ms=at_ms), sensing) or last


class OneLink:
    """A monitor with one interface that never changes."""

    def fileno(self) -> int:
        return -1

    def read(self) -> tuple[()]:
        return ()

    def get(self, index: int) -> Interface | None:
        return Interface(index, "eth0", 1, True, True, ("192.0.2.2",))

    def close(self) -> None:
        return


def test_a_days_reports_leave_nothing_behind(
    tmp_path: Path, put: Callable[[str, str], Path]
) -> None:
    """86,400 samples, reports and probes at 1 Hz of simulated time; blocks of memory counted."""
    stat = "cpu  {0} 0 0 {1} 0 0 0 0\ncpu0 {0} 0 0 {1} 0 0 0 0\nintr 1\n"
    ticks = put("proc/stat", stat.format(0, 0))
    put("proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 600000 kB\n")
    put("sys/class/thermal/thermal_zone0/type", "x86_pkg_temp")
    put("sys/class/thermal/thermal_zone0/temp", "50000")
    for name in ("rx_bytes", "tx_bytes"):
        put(f"sys/class/net/eth0/statistics/{name}", "1000")
    sampler = Sampler(tmp_path, load("generic-x86-64"), now_ms=0)
    link = LinkSensor(tmp_path, OneLink(), lambda _: RouteSeen(2, ""))
    link.attach("192.0.2.1")
    last: LoadReport | None = None
    last_link: LinkReport | None = None
    causes = set()

    def run(first: int, count: int) -> None:
        nonlocal last, last_link
        for number in range(first, first + count):
            now_ms = number * 1000
            if number % STEP_SAMPLES == 0:
                ticks.write_text(stat.format(number * 500, number * (500 + number % 7)))
            link.path.sent(number, now_ms)
            if number % 9:
                link.path.returned(number, now_ms + 3)
            due = due_load(last, sampler.sample(now_ms), SENSING)
            assert due
            last = due
            causes.add(due.cause)
            last_link = due_link(last_link, link.sample(now_ms), SENSING) or last_link

    try:
        run(1, WARM_UP)
        gc.collect()
        blocks, objects = sys.getallocatedblocks(), len(gc.get_objects())
        run(WARM_UP + 1, DAY - WARM_UP)
        gc.collect()
        blocks = sys.getallocatedblocks() - blocks
        objects = len(gc.get_objects()) - objects
    finally:
        sampler.close()
        link.close()
    assert HEARTBEAT in causes
    assert "cpu_percent" in causes
    assert last_link
    assert last_link.loss_percent
    assert blocks < LEFT_AT_MOST
    assert objects < LEFT_AT_MOST
