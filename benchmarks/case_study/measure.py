"""What a run takes: memory of a way's processes over time, their processor time, latencies."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from benchmarks.harness.kernel import everyone
from benchmarks.harness.report import percentile
from device_agent.executors.process import pss_bytes

SAMPLE_S: Final = 0.25
MB: Final = float(1 << 20)


class Answer(NamedTuple):
    """What became of one request."""

    at_s: float
    latency_ms: float
    failure: str


class Sample(NamedTuple):
    """Memory at a moment, MB."""

    at_s: float
    memory_mb: float


class Run(NamedTuple):
    """One way under one load."""

    answers: list[Answer]
    memory: list[Sample]
    seconds: float
    cpu_s: float

    def latency(self) -> list[float]:
        """Return all latencies, ms."""
        return [one.latency_ms for one in self.answers]

    def mean_ms(self) -> float:
        """Return the mean latency."""
        values = self.latency()
        return sum(values) / max(1, len(values))

    def memory_mean_mb(self) -> float:
        """Return the memory integral over its time."""
        pairs = list(zip(self.memory, self.memory[1:], strict=False))
        area = sum((b.at_s - a.at_s) * (a.memory_mb + b.memory_mb) / 2 for a, b in pairs)
        return area / max(1e-9, self.memory[-1].at_s - self.memory[0].at_s)

    def figures(self) -> dict[str, float]:
        """Return everything that the tables tell."""
        values = self.latency() or [0.0]
        failed = sum(bool(one.failure) for one in self.answers)
        return {
            "requests": len(self.answers),
            "failed": failed,
            "mean_ms": self.mean_ms(),
            "p50_ms": percentile(values, 50),
            "p99_ms": percentile(values, 99),
            "memory_integral_mb_s": self.memory_mean_mb() * self.seconds,
            "memory_mean_mb": self.memory_mean_mb(),
            "memory_peak_mb": max(one.memory_mb for one in self.memory),
            "cpu_ms_per_request": 1000 * self.cpu_s / max(1, len(self.answers)),
            "cpu_percent": 100 * self.cpu_s / self.seconds / (os.cpu_count() or 1),
        }


def memory_mb(roots: list[int]) -> float:
    """Return the PSS of these processes and all below them."""
    total = 0
    for pid in everyone(roots):
        with suppress(OSError):
            total += pss_bytes(pid)
    return total / MB


@asynccontextmanager
async def sampled(roots: Callable[[], list[int]]) -> AsyncIterator[list[Sample]]:
    """Sample memory as long as the context."""
    found: list[Sample] = []
    began_s = time.monotonic()

    async def sample() -> None:
        while True:
            at_s = time.monotonic() - began_s
            found.append(Sample(at_s, memory_mb(roots())))
            await asyncio.sleep(max(0.0, began_s + at_s + SAMPLE_S - time.monotonic()))

    task = asyncio.create_task(sample())
    try:
        yield found
    finally:
        task.cancel()
