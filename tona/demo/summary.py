"""What a run of the demonstration came to, and the arithmetic behind it. Pure."""

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct


class Latency(Struct, frozen=True):
    """Percentiles of a number of requests, in milliseconds; None without any."""

    count: int
    p50_ms: float | None
    p99_ms: float | None


class Reading(Struct, frozen=True):
    """One image, and what was read in it or why not."""

    file: str
    text: str = ""
    error: str = ""
    latency_ms: float = 0.0


class Placed(Struct, frozen=True):
    """Where a task runs and why."""

    task: str
    node: str
    why: str


class Answer(Struct, frozen=True):
    """One request of the traffic that flows while a node is killed; times of one clock."""

    sent_s: float
    ended_s: float
    nodes: frozenset[str] = frozenset()
    error: str = ""


class Failover(Struct, frozen=True):
    """What the kill of a device agent did."""

    node: str
    tasks: tuple[str, ...]
    """That ran there."""
    first_answer_ms: float | None
    """From the kill to the first answer without that node."""
    tasks_again_ms: float | None
    """From the kill until every task ran elsewhere, as the controller said."""


class Summary(Struct, frozen=True, kw_only=True):
    """A whole run; `ok` says whether it showed what it is meant to show."""

    ok: bool
    images: tuple[Reading, ...]
    images_read: int
    words_found: int
    words_known: int
    cold: Latency
    warm: Latency
    sent: int
    answered: int
    failed: int
    failures: tuple[str, ...]
    placed: tuple[Placed, ...]
    placed_after: tuple[Placed, ...]
    failover: Failover
    elapsed_s: float


def latency(samples_ms: Sequence[float]) -> Latency:
    """Return the percentiles of these samples."""
    return Latency(len(samples_ms), percentile(samples_ms, 50), percentile(samples_ms, 99))


def percentile(samples: Sequence[float], percent: float) -> float | None:
    """Return the smallest sample that at least `percent` of all do not exceed (nearest rank)."""
    if not samples:
        return None
    rank = math.ceil(percent / 100 * len(samples))
    return sorted(samples)[max(rank, 1) - 1]


def first_answer_ms(answers: Iterable[Answer], killed_s: float, node: str) -> float | None:
    """Return the time from the kill to the first answer in which the node had no part."""
    later = [
        one.ended_s - killed_s
        for one in answers
        if not one.error and one.ended_s > killed_s and node not in one.nodes
    ]
    return min(later) * 1000 if later else None
