"""Measuring on real sockets and files: paths to brokers, what a radio writes, what it costs."""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from device_agent.sensing import cells
from device_agent.sensing.cells import CellSensor, modem_signal, read_signals
from protocols.messages.mobility import CellMeasure

LOOPBACK = "127.0.0.1"


async def until(seen: list[dict[str, CellMeasure]], wanted: Callable[..., bool]) -> CellMeasure:
    async with asyncio.timeout(10):
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
                await until(seen, lambda one: one["b"].loss_percent == 100.0)
                assert seen[-1]["a"].loss_percent == 0.0
                assert 0 < (seen[-1]["a"].round_trip_ms or 0) < 1000
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
    path = tmp_path / "radio.json"

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
                await until(seen, lambda _: made._paths["a"].monitor.unanswered(1e18)[0] >= 5)
                return made.unanswered
            finally:
                made.close()
                server.close()

    assert (asyncio.run(run()) >= 3) is (neighbour != "is dead")


def test_many_neighbours_slow_the_measuring_down_to_its_bound() -> None:
    async def run() -> float:
        made = sensor([])
        made.watch("c0", {f"c{at}": (LOOPBACK, 9) for at in range(16)}, 50)
        pace_ms = made._pace()
        made.close()
        return pace_ms

    bytes_per_s = 16 * cells.EXCHANGE_BYTES * 1000 / asyncio.run(run())
    assert bytes_per_s <= cells.BYTES_PER_S_MAX * 1.001


def test_a_radio_writes_what_it_hears_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "radio.json"
    path.write_text(json.dumps({"a": {"rsrp_dbm": -91, "rsrq_db": -11.5, "else": 1}, "b": 3}))
    now_s = path.stat().st_mtime
    assert read_signals(str(path), now_s) == {"a": {"rsrp_dbm": -91.0, "rsrq_db": -11.5}}
    assert read_signals(str(path), now_s + cells.STALE_S + 1) == {}

    async def run() -> None:
        seen: list[dict[str, CellMeasure]] = []
        made = sensor(seen, f"file:{path}")
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
