"""What a gateway keeps for nodes that were attached nowhere, and hands 10,000 that ask at once."""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Final, NamedTuple

from benchmarks.harness.report import Report, options, percentile, progress
from controller.host.missed import KEPT_MS, Lately
from protocols.codec import VERSION, Frame
from protocols.manifest import Dtype
from protocols.messages import CatchUp, Invoke
from protocols.messages.invocation import Tensor
from protocols.messages.mobility import Followed
from protocols.topics import Channel, Party, build

NODES: Final = 10_000
QUICK_NODES: Final = 1000
AFTER_S: Final = 2
"""So long values go on being published when all have asked."""
AWAY_MS: Final = 2000.0
_US: Final = 1e-3
"""Microseconds in a nanosecond."""
_MB: Final = 1 << 20


class Case(NamedTuple):
    """A cell: its topics, what is published on them, and how much of it each node takes in."""

    name: str
    topics: int
    values_per_s: int
    value_bytes: int
    topics_per_node: int


CASES: Final = (
    Case("one_topic", 1, 10, 64, 1),
    Case("many_topics", 1024, 1024, 64, 1),
    Case("many_each", 1024, 1024, 64, 16),
    Case("large_values", 1024, 1024, 30_000, 4),
    Case("full", 1024, 8192, 64, 4),
)


def main() -> None:
    """Run the benchmark."""
    asked = options("missed", __doc__ or "").parse_args()
    report = Report("missed")
    nodes = QUICK_NODES if asked.quick else NODES
    for case in CASES:
        progress(f"{case.name}: {nodes} nodes, {case.topics} topics")
        _measure(report, case, nodes)
    for case in CASES:
        report.note(
            f"{case.name}: {case.topics} topics, {case.values_per_s} values of {case.value_bytes} "
            f"bytes a second on all of them, each of {nodes} nodes takes in {case.topics_per_node}."
        )
    report.note("Processor time of the decider alone: no broker, no codec, no sending.")
    report.close()


def _measure(report: Report, case: Case, nodes: int) -> None:
    topics = [build("a", Party.SERVICE, f"s{one}", Channel.INPUT) for one in range(case.topics)]
    followed = frozenset((one.name, one.channel) for one in topics)
    lately, number = Lately("a"), 0

    def publish(seconds: float, since_ms: int) -> list[float]:
        nonlocal number
        took = []
        for one in range(int(case.values_per_s * seconds)):
            frame = _frame(number, case.value_bytes)
            now_ms, topic = since_ms + one * 1000 // case.values_per_s, topics[number % len(topics)]
            took.append(_timed(lambda: lately.keep(topic, frame, now_ms)))  # noqa: B023 - called at once
            number += 1
        return took

    gc.collect()
    before = _resident_bytes()
    kept = publish(KEPT_MS / 1000, 0)
    full = _resident_bytes()
    took = []
    for one in range(nodes):
        first = one * case.topics_per_node
        wanted = (topics[at % len(topics)] for at in range(first, first + case.topics_per_node))
        body = CatchUp("b", AWAY_MS, tuple(Followed(each.name, each.channel) for each in wanted))
        now_ms = KEPT_MS + one * 1000 // nodes
        took.append(_timed(lambda: lately.asked(f"n{one}", body, followed, now_ms)))  # noqa: B023 - called at once
    asked = _resident_bytes()
    after = publish(AFTER_S, KEPT_MS + 1000)
    report.figure(f"{case.name}_keep_us", mean(kept))
    report.figure(f"{case.name}_kept_mb", (full - before) / _MB)
    report.figure(f"{case.name}_ask_us", mean(took))
    report.figure(f"{case.name}_ask_p99_us", percentile(took, 99))
    report.figure(f"{case.name}_nodes_mb", (asked - full) / _MB)
    report.figure(f"{case.name}_keep_asked_us", mean(after))
    report.figure(f"{case.name}_keep_asked_p99_us", percentile(after, 99))


def _frame(number: int, size: int) -> Frame:
    value = Tensor(Dtype.UINT8, (size,), bytes(bytearray(size)))
    return Frame(
        VERSION, "app", 1, 0, "default", "why", Invoke(f"r{number}", "s", 1000, {"x": value})
    )


def _timed(work: Callable[[], object]) -> float:
    """Return the processor time of a call in microseconds."""
    before = time.process_time_ns()
    work()
    return (time.process_time_ns() - before) * _US


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
