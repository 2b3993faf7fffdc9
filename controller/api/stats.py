"""What a task's versions have done, read from their figures. Pure."""

from collections.abc import Iterable
from functools import reduce
from typing import Any, Final

from msgspec import Struct

from controller.accounts import PROFILE, ProfileRecord, ends, summed
from controller.registry import Registry
from protocols.base import Count
from protocols.histogram import quantile, unpack

_MS: Final = 1000.0
_MEDIAN, _P90, _P99 = 0.5, 0.9, 0.99


class StatsOf(Struct, frozen=True, forbid_unknown_fields=True):
    """Which versions of which task, and where."""

    name: str
    version: str = ""
    """How its digest begins, with or without `sha256:`."""
    node: str = ""
    by_node: bool = False
    """Tell nodes apart."""


class Spread(Struct, frozen=True):
    """How a figure of single calls is spread; null where nothing is measured."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


class VersionStats(Struct, frozen=True):
    """One version of a task, on one node or on all that ran it."""

    digest: str
    generation: Count
    variant: str
    nodes: tuple[str, ...]
    calls: Count
    """With outputs."""
    failures: dict[str, Count]
    """By code of the failure; `flagged`: with outputs that broke a check."""
    queue_ms: Spread
    run_ms: Spread
    cpu_ms: Spread
    memory_bytes: Spread
    input_bytes: Spread
    output_bytes: Spread
    peak_bytes: Count | None = None
    energy_j: float | None = None
    """Of each call, in the mean. Null: no node of it has a sensor."""
    callers: dict[str, Count] = {}
    flags: dict[str, str] = {}
    """How it behaves unlike its task's history."""


class TaskStats(Struct, frozen=True):
    """A task's versions, the one that ran last at the head."""

    task: str
    versions: tuple[VersionStats, ...] = ()


def task_stats(arguments: Any, registry: Registry) -> TaskStats:
    """Add up what is kept of a task."""
    wanted = arguments.version.removeprefix("sha256:")
    found: list[ProfileRecord] = [
        one
        for one in registry.list(PROFILE, f"{arguments.name}/")
        if arguments.node in ("", one.node)
        and one.now.digest.removeprefix("sha256:").startswith(wanted)
    ]
    groups: dict[tuple[str, str], list[ProfileRecord]] = {}
    for one in found:
        node = one.node if arguments.by_node else ""
        groups.setdefault((one.now.digest, node), []).append(one)
    made = [_version(group) for group in groups.values()]
    made.sort(key=lambda one: (-one.generation, one.digest, one.nodes))
    return TaskStats(arguments.name, tuple(made))


def _version(group: Iterable[ProfileRecord]) -> VersionStats:
    records = list(group)
    whole = reduce(summed, (one.whole for one in records))
    calls = ends(whole)
    flags: dict[str, str] = {}
    for one in records:
        flags |= {what: f"on {one.node}: {words}" for what, words in one.flags.items()}
    return VersionStats(
        digest=whole.digest,
        generation=whole.generation,
        variant=whole.variant,
        nodes=tuple(one.node or "others" for one in records),
        calls=whole.calls,
        failures=whole.failures,
        queue_ms=_spread(whole.queue_us, whole.queue_sum_us, _MS),
        run_ms=_spread(whole.run_us, whole.run_sum_us, _MS),
        cpu_ms=_spread(whole.cpu_us, whole.cpu_sum_us, _MS),
        memory_bytes=_spread(whole.memory_bytes, None, 1.0),
        input_bytes=_spread(whole.input_bytes, whole.input_sum_bytes, 1.0),
        output_bytes=_spread(whole.output_bytes, whole.output_sum_bytes, 1.0),
        peak_bytes=whole.peak_bytes,
        energy_j=None if whole.energy_j is None or not calls else whole.energy_j / calls,
        callers=whole.callers,
        flags=flags,
    )


def _spread(packed: tuple[int, ...], total: int | None, unit: float) -> Spread:
    counts = unpack(packed)
    number = sum(counts)
    if not number:
        return Spread()
    points = (quantile(counts, share) for share in (_MEDIAN, _P90, _P99))
    mean = None if total is None else total / number / unit
    return Spread(mean, *(None if one is None else one / unit for one in points))
