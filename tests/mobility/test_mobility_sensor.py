"""Measuring on real sockets and files: paths to brokers, what a radio writes, what it costs."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent.sensing import cells, wifi
from device_agent.sensing.cells import CellSensor, modem_signal, read_signals
from protocols.messages.mobility import CellMeasure

LOOPBACK = "127.0.0.1"


async def until(seen: list[dict[str, CellMeasure]], wanted: Callable[..., bool]) -> CellMeasure:
    async with asyncio.timeout(60):
        while True:
            if seen and wanted(seen[-1]):
                return seen[-1]["b"] if "b" in seen[-1] else seen[-1]["a"]
            await asyncio.sleep(0.01)


def sensor(seen: list[dict[str, CellMeasure]], radio: str = "") -> CellSensor:
    return CellSensor(lambda found, _b, _c: seen.append({one.cell: one for one in found}), radio)


def test_paths_to_brokers_are_measured_and_a_dead_one_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells, "TIMEOUT_MS", 100.0)

    async def run() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), LOOPBACK, 0)
        port = server.sockets[0].getsockname()[1]
        with socket.socket() as closed:
            closed.bind((LOOPBACK, 0))
            dead = closed.getsockname()[1]
            seen: list[dict[str, CellMeasure]] = []
            made = sensor(seen)
            made.watch("a", {"a": (LOOPBACK, port), "b": (LOOPBACK, dead)}, 50)
            try:
                await until(
                    seen,
                    lambda one: (
                        "b" in one
                        and one["b"].loss_percent == 100.0
                        and one["a"].loss_percent == 0.0
                        and (one["a"].round_trip_ms or 0) > 0
                    ),
                )
            finally:
                made.close()
                server.close()
        count = len(seen)
        await asyncio.sleep(0.2)
        assert len(seen) == count

    asyncio.run(run())


@pytest.mark.parametrize("neighbour", ["answers", "is dead", "is heard by radio"])
def test_a_serving_broker_that_does_not_answer_counts_while_a_neighbour_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, neighbour: str
) -> None:
    monkeypatch.setattr(cells, "TIMEOUT_MS", 20.0)
    monkeypatch.setattr(cells, "STALE_S", 600.0)
    path = tmp_path / "radio.json"
    counts = neighbour != "is dead"

    async def run() -> int:
        server = await asyncio.start_server(lambda _, writer: writer.close(), LOOPBACK, 0)
        port = server.sockets[0].getsockname()[1]
        with socket.socket() as closed:
            closed.bind((LOOPBACK, 0))
            dead = closed.getsockname()[1]
            seen: list[dict[str, CellMeasure]] = []
            path.write_text(json.dumps({"b": {"rsrp_dbm": -80}}))
            made = sensor(seen, f"file:{path}" if neighbour == "is heard by radio" else "")
            there = port if neighbour == "answers" else dead
            made.watch("a", {"a": (LOOPBACK, dead), "b": (LOOPBACK, there)}, 50)
            try:
                serving = made._paths["a"].monitor
                # On a busy machine a neighbour that answers is late at times, too.
                await until(
                    seen,
                    lambda _: made.unanswered >= 3 if counts else serving.unanswered(1e18)[0] >= 5,
                )
                return made.unanswered
            finally:
                made.close()
                server.close()

    assert (asyncio.run(run()) >= 3) is counts


def test_many_neighbours_slow_the_measuring_down_to_its_bound() -> None:
    async def run() -> float:
        made = sensor([])
        made.watch("c0", {f"c{at}": (LOOPBACK, 9) for at in range(16)}, 50)
        pace_ms = made._pace()
        made.close()
        return pace_ms

    bytes_per_s = 16 * cells.EXCHANGE_BYTES * 1000 / asyncio.run(run())
    assert bytes_per_s <= cells.BYTES_PER_S_MAX * 1.001


@pytest.mark.parametrize("count", [2, 5, 17])
def test_on_battery_measuring_is_bounded_lower(count: int) -> None:
    async def run() -> float:
        made = sensor([])
        made.watch("c0", {f"c{at}": (LOOPBACK, 9) for at in range(count)}, 50)
        made.saving = True
        pace_ms = made._pace()
        made.close()
        return pace_ms

    pace_ms = asyncio.run(run())
    alone = max(0.0, 1 / cells.SAVING_SERVING_MS - 1 / pace_ms)
    bytes_per_s = 1000 * cells.EXCHANGE_BYTES * (count / pace_ms + alone)
    assert bytes_per_s <= cells.SAVING_BYTES_PER_S_MAX * 1.001


def test_a_battery_that_discharges_is_seen(tmp_path: Path) -> None:
    def supply(name: str, **files: str) -> None:
        (tmp_path / name).mkdir()
        for one, text in files.items():
            (tmp_path / name / one).write_text(f"{text}\n")

    assert not cells.on_battery(str(tmp_path / "none"))
    supply("AC", type="Mains", online="1")
    supply("mouse", type="Battery", status="Discharging", scope="Device")
    supply("odd", type="Battery")
    assert not cells.on_battery(str(tmp_path))
    supply("BAT0", type="Battery", status="Discharging")
    assert cells.on_battery(str(tmp_path))


SCAN = """BSS 9c:c7:a6:00:00:01(on wlan0) -- associated
\tlast seen: 2583.312s [boottime]
\tTSF: 1046581246 usec (0d, 00:17:26)
\tfreq: 5180
\tcapability: ESS Privacy (0x0111)
\tsignal: -53.00 dBm
\tlast seen: 1380 ms ago
\tSSID: hall-1
\tSupported rates: 6.0* 9.0 12.0*
BSS 9c:c7:a6:00:00:02(on wlan0)
\tsignal: -61.00 dBm
\tlast seen: 20 ms ago
\tSSID: hall-2
BSS 9c:c7:a6:00:00:03(on wlan0)
\tsignal: -58.00 dBm
\tlast seen: 40 ms ago
\tSSID: hall-2
BSS 9c:c7:a6:00:00:04(on wlan0)
\tsignal: -40.00 dBm
\tlast seen: 90000 ms ago
\tSSID: hall-3
BSS 9c:c7:a6:00:00:05(on wlan0)
\tlast seen: 10 ms ago
\tSSID: hall-4
"""


def test_what_iw_says_of_networks() -> None:
    found = wifi.wifi_signals(SCAN, {})
    assert found == {wifi.ASSOCIATED: {"rsrp_dbm": -53.0}, "hall-2": {"rsrp_dbm": -58.0}}
    named = wifi.wifi_signals(SCAN, {"9c:c7:a6:00:00:02": "b", "hall-3": "c"})
    assert wifi.renamed(named, "a") == {"a": {"rsrp_dbm": -53.0}, "b": {"rsrp_dbm": -61.0}}
    for garbage in (
        "",
        "BSS ",
        "BSS x\n\tsignal: strong",
        "command failed: (-1)\n\nBSS y\n\tsignal:",
    ):
        assert wifi.wifi_signals(garbage, {}) == {}
    listed = "phy#0\n\tInterface mon0\n\t\ttype monitor\n\tInterface wlan0\n\t\ttype managed\n"
    assert (wifi.interface_of(listed), wifi.interface_of("")) == ("wlan0", "")


def test_wifi_is_asked_without_a_privilege_and_a_scan_that_is_refused_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A recorded output, as of a machine whose network manager has scanned."""
    one = SCAN[: SCAN.index("BSS 9c:c7:a6:00:00:02")]
    (tmp_path / "scan.txt").write_text(one)
    (tmp_path / "iw").write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/asked
case "$*" in
dev) printf 'phy#0\\n\\tInterface wlan0\\n\\t\\ttype managed\\n' ;;
*dump) cat {tmp_path}/scan.txt ;;
*) echo 'command failed: Operation not permitted (-1)' >&2; exit 255 ;;
esac
"""
    )
    (tmp_path / "iw").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(wifi, "SCAN_S", 0.05)

    async def run() -> None:
        seen: list[dict[str, CellMeasure]] = []
        made = sensor(seen, "wifi")
        made.watch("a", {}, 50)
        await until(seen, lambda one: one["a"].rsrp_dbm == -53.0)
        (tmp_path / "scan.txt").write_text(SCAN)
        made.watch("a", {"hall-2": (LOOPBACK, 9)}, 50)
        await until(seen, lambda one: "hall-2" in one and one["hall-2"].rsrp_dbm == -58.0)
        monkeypatch.setattr(wifi, "SCAN_S", 1e9)
        assert made._wifi is not None
        assert made._wifi._task is not None
        await made._wifi._task
        made.close()

    asyncio.run(run())
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:3] == ["dev", "dev wlan0 scan dump", "dev wlan0 scan"]
    assert asked.count("dev wlan0 scan") == 1


def test_a_radio_writes_what_it_hears_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "radio.json"
    path.write_text(json.dumps({"a": {"rsrp_dbm": -91, "rsrq_db": -11.5, "else": 1}, "b": 3}))
    now_s = path.stat().st_mtime
    assert read_signals(str(path), now_s) == {"a": {"rsrp_dbm": -91.0, "rsrq_db": -11.5}}
    assert read_signals(str(path), now_s + cells.STALE_S + 1) == {}

    async def run() -> None:
        seen: list[dict[str, CellMeasure]] = []
        made = sensor(seen, f"file:{path}")
        monkeypatch.setattr(cells, "STALE_S", 600.0)
        os.utime(path)
        made.watch("a", {}, 50)
        await until(seen, lambda one: one["a"].rsrp_dbm == -91.0)
        made.close()

    asyncio.run(run())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": null}', '{"a": {"rsrp_dbm": 1e9}}', "\x00"])
def test_garbage_in_the_file_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "radio.json"
    path.write_text(text)
    assert not any(read_signals(str(path), path.stat().st_mtime).values())
    assert read_signals(str(tmp_path / "absent"), 0.0) == {}


def test_what_modemmanager_says() -> None:
    lte = {"rsrp": "-95.00", "rsrq": "-11.00", "snr": "--", "rssi": "-70.00"}
    none = {"rsrp": "--", "rsrq": "--", "snr": "--"}
    said = json.dumps({"modem": {"signal": {"5g": none, "lte": lte}}}).encode()
    assert modem_signal(said) == {"rsrp_dbm": -95.0, "rsrq_db": -11.0}
    for garbage in (b"", b"{}", b"[1]", b'{"modem": {"signal": {"lte": 3}}}', b"error: no modem"):
        assert modem_signal(garbage) == {}


def test_a_modem_that_does_not_measure_is_told_to_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command as ModemManager's, which says `--` until it has been told how often to measure."""
    (tmp_path / "mmcli").write_text(
        f"""#!/bin/sh
echo "$*" >> {tmp_path}/asked
case "$*" in
*--signal-setup=*) [ -e {tmp_path}/refuses ] && exit 1; touch {tmp_path}/measures ;;
*) said=--; [ -e {tmp_path}/measures ] && said=-95.00
   echo '{{"modem": {{"signal": {{"lte": {{"rsrp": "'$said'", "rsrq": "--"}}}}}}}}' ;;
esac
"""
    )
    (tmp_path / "mmcli").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cells, "MODEM_PACE_S", 0.01)
    asked = tmp_path / "asked"

    def said() -> list[str]:
        return [one.split()[-1] for one in asked.read_text().splitlines()] if asked.exists() else []

    async def run() -> None:
        seen: list[dict[str, CellMeasure]] = []
        (tmp_path / "refuses").touch()
        made = sensor(seen, "modem")
        made.watch("a", {}, 50)
        await until(seen, lambda _: said().count("--output-json") >= 4)
        assert said().count("--signal-setup=10") == 1, "who may not is not asked again"
        made.close()
        (tmp_path / "refuses").unlink()
        again = sensor(seen, "modem")
        again.watch("a", {}, 50)
        await until(seen, lambda one: one["a"].rsrp_dbm == -95.0)
        again.close()
        # What was being asked ends its command, and waits for that.
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
    assert said().count("--signal-setup=10") == 2
