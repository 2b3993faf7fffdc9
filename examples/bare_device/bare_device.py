"""A device of a TONA cell in one file: paho-mqtt and msgpack, nothing else.

    python bare_device.py --node sensor-1 --cell cell --broker 127.0.0.1:1883

It joins the cell, reports its load and its link, and leaves in order. It has no executor and says
so: no task is placed on it, and whoever assigns one all the same is told that it failed. Written
from docs/protocol.md; the positions of fields are those of the tables there.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgpack
import paho.mqtt.client as mqtt

VERSION: Final = 1
WILL_NUMBER: Final = 2**53
CONTROL_MAX_BYTES: Final = 65_536
KEEPALIVE_S: Final = 6
LOOP_S: Final = 0.1
ANSWER_S: Final = 2.0
FIRST_WAIT_S: Final = 1.0
MAX_WAIT_S: Final = 30.0


def _memory() -> tuple[int, int]:  # total and available, in bytes
    lines = (one.split() for one in Path("/proc/meminfo").read_text().splitlines())
    sizes = {one[0]: int(one[1]) << 10 for one in lines}
    return sizes["MemTotal:"], sizes["MemAvailable:"]


def _ticks() -> tuple[int, int]:  # idle and all, of all cores together
    ticks = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


class Device:
    """One node, from birth to farewell, over any number of connections."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.stop = threading.Event()
        self.dropped: Counter[str] = Counter()
        self._options = options
        self._base = f"tona/1/{options.cell}/node/{options.node}"
        self._ticks = _ticks()
        self._scheduler_epoch: int | None = None
        self._statuses = 0
        self._unacknowledged: dict[str, list[Any]] = {}
        self._heartbeat_s = self._sample_s = 1.0
        self._cpu_step_percent = 10.0

    def run(self) -> None:
        """Connect, and connect again with growing waits, until told to stop."""
        wait_s = FIRST_WAIT_S
        while not self.stop.is_set():
            try:
                self._connection()
            except OSError as error:
                print(f"no connection to {self._options.broker}: {error}", flush=True)
            wait_s = FIRST_WAIT_S if self._welcomed else min(2 * wait_s, MAX_WAIT_S)
            self.stop.wait(wait_s * random.uniform(0.5, 1))  # noqa: S311 - spreads a fleet

    def _connection(self) -> None:
        """Live through one connection; what it knows begins anew, its will too."""
        self._number = 0
        self._welcomed = False
        self._birth_wait_s = FIRST_WAIT_S
        self._birth_due = self._sample_due = self._status_due = 0.0
        self._reported = self._cpu_reported = 0.0
        self._round_trip_ms: float | None = None
        self._incarnation = self._next_incarnation()
        # A client id of its own: at a takeover some brokers say the new connection's will.
        name = f"{self._options.node}-{os.urandom(6).hex()}"
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, name, protocol=mqtt.MQTTv5)
        self._client = client
        will = self._frame(["death", "the connection was lost", False], "will", WILL_NUMBER)
        client.will_set(f"{self._base}/presence", will, qos=1)
        client.on_connect, client.on_message = self._on_connect, self._on_message
        if self._options.ca:
            client.tls_set(self._options.ca, self._options.certificate, self._options.key)
        host, _, port = self._options.broker.rpartition(":")
        client.connect(host, int(port), KEEPALIVE_S)
        # Without it, small messages wait for each other: 40 ms and more.
        client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._address = client.socket().getsockname()[0]
        while client.loop(min(LOOP_S, self._sample_s / 2)) == 0:
            if self.stop.is_set():
                self._farewell()
                return
            if client.is_connected():
                self._tick(time.monotonic())
        print("the connection is lost", flush=True)

    def _next_incarnation(self) -> int:
        """Return a number that grows with every connection, also over restarts."""
        path = Path(self._options.state)
        number = int(path.read_text()) + 1 if path.exists() else 1
        draft = path.with_suffix(".draft")
        draft.write_text(str(number))
        draft.replace(path)
        return number

    def _farewell(self) -> None:
        said = self._say("presence", ["death", "stopped by a signal", True], "farewell", qos=1)
        until = time.monotonic() + ANSWER_S
        while not said.is_published() and time.monotonic() < until:
            if self._client.loop(LOOP_S):
                return
        self._client.disconnect()
        self._client.loop(LOOP_S)

    def _on_connect(self, client: mqtt.Client, _d: Any, _f: Any, code: Any, _p: Any) -> None:
        # Listen before the first word, so that no answer is missed.
        if not code.is_failure:
            client.subscribe([(f"{self._base}/{one}", 1) for one in ("command", "probe")])

    def _frame(self, body: list[Any], cause: str, number: int) -> bytes:
        head = [VERSION, self._options.node, self._incarnation, number, "default", cause]
        return bytes(msgpack.packb([*head, body]))

    def _say(self, channel: str, body: list[Any], cause: str, qos: int = 0) -> mqtt.MQTTMessageInfo:
        payload = self._frame(body, cause, self._number)
        self._number += 1
        return self._client.publish(f"{self._base}/{channel}", payload, qos)

    def _tick(self, now: float) -> None:
        if not self._welcomed and now >= self._birth_due:
            self._say("presence", self._birth(), "no welcome", qos=1)
            self._birth_due = now + self._birth_wait_s
            self._birth_wait_s = min(2 * self._birth_wait_s, MAX_WAIT_S)
        if self._welcomed and now >= self._sample_due:
            self._sample_due = now + self._sample_s
            self._sample(now)
        if self._welcomed and self._unacknowledged and now >= self._status_due:
            self._status_due = now + ANSWER_S
            for status in self._unacknowledged.values():
                self._say("status", status, "repeat", qos=1)

    def _sample(self, now: float) -> None:
        """Report when the load has moved by its step, or was not reported for a heartbeat."""
        self._say("probe", ["probe", time.monotonic_ns() // 1000], "probe")
        (idle_0, all_0), self._ticks = self._ticks, _ticks()
        idle_share = (self._ticks[0] - idle_0) / max(1, self._ticks[1] - all_0)
        cpu_percent = min(100.0, max(0.0, 100 * (1 - idle_share)))
        moved = abs(cpu_percent - self._cpu_reported) >= self._cpu_step_percent
        if moved or now - self._reported >= self._heartbeat_s - LOOP_S:
            self._reported, self._cpu_reported = now, cpu_percent
            cause = "cpu_percent" if moved else "heartbeat"
            self._say("load", self._load(cpu_percent, cause), cause)
            self._say("link", self._link(), "heartbeat")

    def _birth(self) -> list[Any]:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        own = [os.uname().machine, "linux", os.cpu_count(), _memory()[0], shutil.disk_usage("/")[0]]
        return ["birth", "bare-device", boot, ["bare", *own, [], [], [], 0, 0]]  # no executors

    def _load(self, cpu_percent: float, cause: str) -> list[Any]:
        """Return a LoadReport; null where there is no sensor."""
        memory, available = _memory()
        report = ["load", time.monotonic_ns() // 1_000_000, cpu_percent, [], memory - available]
        report += [available, None, shutil.disk_usage("/").free, None, None, None, None, None]
        return [*report, [], 0, 0, cause]

    def _link(self) -> list[Any]:
        link = ["link", time.monotonic_ns() // 1_000_000, *self._options.link.split(":", 1), True]
        return [*link, [self._address], None, None, None, None, self._round_trip_ms]

    def _status(self, task: str, epoch: int, state: str, reason: str, cause: str) -> None:
        """Say what became of an assignment, and again until it is acknowledged."""
        self._statuses += 1
        blame = "environment" if reason else None
        self._unacknowledged[task] = ["status", self._statuses, task, epoch, state, reason, blame]
        self._status_due = time.monotonic() + ANSWER_S
        self._say("status", self._unacknowledged[task], cause, qos=1)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        """Take a frame apart; what is not of this protocol is counted and dropped."""
        try:
            frame = msgpack.unpackb(message.payload[:CONTROL_MAX_BYTES])
            if frame[0] == VERSION:
                self._hear(frame[6], frame[5])
            else:
                self.dropped["version"] += 1
        except (ValueError, TypeError, IndexError, KeyError):
            self.dropped["malformed"] += 1

    def _hear(self, body: list[Any], cause: str) -> None:
        """Act on a command; what stands behind the fields that we know is of a newer protocol."""
        match body:
            case ["probe", sent_us, *_]:
                self._round_trip_ms = (time.monotonic_ns() // 1000 - sent_us) / 1000
            case ["welcome", _, epoch, incarnation, *rest] if incarnation == self._incarnation:
                forgot = self._scheduler_epoch not in (None, epoch)
                self._scheduler_epoch = epoch
                self._welcomed, self._birth_wait_s = not forgot, FIRST_WAIT_S
                self._pace(rest)
                print(f"welcomed as incarnation {incarnation}", flush=True)
            case ["rebirth", _, epoch, *_]:
                # `_birth_due` still stands a while after the last birth: no flood of them.
                self._scheduler_epoch, self._welcomed = epoch, False
            case ["set-sensing", *rest]:
                self._pace(rest)
                self._cpu_step_percent = rest[2] if len(rest) > 2 else 10.0  # noqa: PLR2004 - a third word
            case ["assign", task, _, epoch, *_]:
                self._status(task, epoch, "failed", "this device has no executor", cause)
            case ["release", task, epoch, *_]:
                self._status(task, epoch, "stopped", "", cause)
            case ["ack", number, incarnation, *_] if incarnation == self._incarnation:
                held = self._unacknowledged.items()
                self._unacknowledged = {task: one for task, one in held if one[1] != number}
            case ["drain", *_]:
                pass  # Nothing runs here that could be finished.
            case _:
                self.dropped["unexpected"] += 1

    def _pace(self, asked: list[Any]) -> None:
        self._heartbeat_s = asked[0] / 1000 if asked else 1.0
        self._sample_s = min(self._heartbeat_s, asked[1] / 1000 if len(asked) > 1 else 1.0)
        self._sample_due = self._reported = 0.0


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A device of a TONA cell in one file.")
    parser.add_argument("--node", default=socket.gethostname(), help="name of this device")
    parser.add_argument("--cell", default="cell")
    parser.add_argument("--broker", default="127.0.0.1:1883", help="HOST:PORT")
    parser.add_argument("--state", default="incarnation", help="file that counts connections")
    parser.add_argument("--link", default="lo:loopback", help="INTERFACE:KIND, as eth0:wired")
    for name in ("--ca", "--certificate", "--key"):
        parser.add_argument(name, help="PEM file; all three where the broker has TLS")
    device = Device(parser.parse_args())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: device.stop.set())
    device.run()
    print(f"ended; dropped: {dict(device.dropped)}", flush=True)


if __name__ == "__main__":
    main()
