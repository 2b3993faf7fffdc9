"""What is kept of calls: figures by version and node, heads of logs; what people ask of them."""

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final

from msgspec import Meta, Struct
from msgspec.structs import replace

from protocols.histogram import add
from protocols.messages.profile import MAX_CALLERS, VersionProfile

PROFILE: Final = "profile"
HEADS: Final = "heads"
OPERATION: Final = "operation"

USER_PLANE: Final = "user"
"""Of a call of a service; operations have the plane of their line in the table."""


class ProfileRecord(Struct, frozen=True):
    """One version of a task on one node (kind `profile`, key `TASK/DIGEST/NODE`)."""

    node: str
    """Empty: of several that made room."""
    life: int
    now: VersionProfile
    """Sums of the life of the node's process that last spoke."""
    before: VersionProfile | None = None
    """Sums of the lives before."""
    flags: dict[str, str] = {}
    """How it behaves unlike the history of its task, by what: in words."""

    @property
    def whole(self) -> VersionProfile:
        """All lives together."""
        return self.now if self.before is None else summed(self.before, self.now)


class HeadsRecord(Struct, frozen=True):
    """What a node has said of its log of calls (kind `heads`, key the node)."""

    node: str
    heads: tuple[tuple[int, bytes], ...] = ()
    """Records and the head of the chain with them: the newest last, older ones ever rarer."""
    problem: str = ""
    """Why the log is not the one that it was."""


class CallRecord(Struct, frozen=True, array_like=True):
    """A record of the log as a page carries it; appended to, never changed."""

    number: int
    unix_ms: int
    task: str
    service: str
    generation: int
    digest: str
    variant: str
    request: str
    tenant: str
    user: str
    agent: str
    verdict: str
    reason: str
    queue_us: int
    run_us: int
    cpu_us: int
    input_bytes: int
    output_bytes: int
    cause: str = ""


class Call(Struct, frozen=True):
    """A call as people see it."""

    node: str
    number: int
    """In the log of its node."""
    unix_ms: int
    plane: str
    service: str
    task: str
    """The tool; empty: refused before it came to one."""
    generation: int
    digest: str
    variant: str
    tenant: str
    user: str
    agent: str
    request: str
    verdict: str
    """`ok`, `flagged`, or the code of the failure."""
    reason: str
    queue_us: int
    run_us: int
    cpu_us: int
    input_bytes: int
    output_bytes: int
    cause: str


class AuditTask(Struct, frozen=True, forbid_unknown_fields=True):
    """Which calls of a task."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    since_unix_ms: Annotated[int, Meta(ge=0)] = 0
    verdict: str = ""
    user: str = ""
    node: str = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class TaskAudit(Struct, frozen=True):
    """The newest calls of a task, and how far they can be trusted."""

    calls: tuple[Call, ...]
    """The newest first."""
    checked: tuple[str, ...] = ()
    """Nodes whose log is whole and leads to the heads that are kept here."""
    problems: dict[str, str] = {}
    """By node: what is wrong with its log, or why it did not answer."""


class QuarantineTask(Struct, frozen=True, forbid_unknown_fields=True):
    """Which version of a task shall not run, or may again."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    version: str = ""
    """How its digest begins; empty: the one that runs, or the one that is in quarantine."""
    reason: Annotated[str, Meta(max_length=400)] = ""
    release: bool = False


class Quarantined(Struct, frozen=True):
    """What of a task may not run, and what runs."""

    task: str
    quarantined: dict[str, str]
    """By digest: why."""
    runs: str
    """Digest of the version that runs, or would."""
    reason: str = ""
    """Why nothing runs; empty: something does."""


class AuditOperations(Struct, frozen=True, forbid_unknown_fields=True):
    """Which operations."""

    operation: str = ""
    who: str = ""
    verdict: str = ""
    since_unix_ms: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=1, le=4096)] = 100


class OperationRecord(Struct, frozen=True):
    """An operation that somebody asked of the network (kind `operation`, key its slot)."""

    number: int
    unix_ms: int
    who: str
    """Name of the identity."""
    tenant: str
    plane: str
    operation: str
    """The tool."""
    target: str
    """What it was about."""
    cause: str
    verdict: str
    """`ok`, or who has to act: `user`, `environment`, `ours`..."""
    reason: str = ""
    node: str = ""
    digest: str = ""
    """Of the document or the content that was given."""
    head: str = ""
    """SHA-256 in hex over the head of the record before it and this one without its head."""


def view(node: str, record: CallRecord) -> Call:
    """Return a record of a node's log as people see it."""
    one = record
    return Call(
        node, one.number, one.unix_ms, USER_PLANE, one.service, one.task, one.generation,
        one.digest, one.variant, one.tenant, one.user, one.agent, one.request, one.verdict,
        one.reason, one.queue_us, one.run_us, one.cpu_us, one.input_bytes, one.output_bytes,
        one.cause,
    )  # fmt: skip


def profile_key(task: str, digest: str, node: str) -> str:
    """Return the key of a profile."""
    return f"{task}/{digest}/{node}"


def summed(one: VersionProfile, other: VersionProfile) -> VersionProfile:
    """Return the sum of two profiles of a version; `other` is the newer one."""
    figures: dict[str, Any] = {
        **{name: add(getattr(one, name), getattr(other, name)) for name in HISTOGRAMS},
        **{name: getattr(one, name) + getattr(other, name) for name in SUMS},
    }
    return replace(
        other,
        generation=max(one.generation, other.generation),
        calls=one.calls + other.calls,
        failures=counted(one.failures, other.failures),
        peak_bytes=_either(max, one.peak_bytes, other.peak_bytes),
        energy_j=_either(operator.add, one.energy_j, other.energy_j),
        callers=_callers(counted(one.callers, other.callers)),
        **figures,
    )


HISTOGRAMS: Final = (
    "queue_us",
    "run_us",
    "cpu_us",
    "memory_bytes",
    "input_bytes",
    "output_bytes",
)
SUMS: Final = ("queue_sum_us", "run_sum_us", "cpu_sum_us", "input_sum_bytes", "output_sum_bytes")


def counted(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """Return the sum of two counts by name."""
    return {name: one.get(name, 0) + other.get(name, 0) for name in (*one, *other)}


def _callers(counts: dict[str, int]) -> dict[str, int]:
    """Keep those who ask most; the others are counted together."""
    if len(counts) <= MAX_CALLERS:
        return counts
    named = sorted((one for one in counts if one), key=lambda one: (-counts[one], one))
    kept = named[:MAX_CALLERS]
    rest = sum(counts[one] for one in counts if one not in kept)
    return {**{one: counts[one] for one in kept}, "": rest}


def _either(join: Callable[..., Any], one: Any, other: Any) -> Any:
    """Join two figures of which either may not be measured."""
    known = [figure for figure in (one, other) if figure is not None]
    return join(*known) if len(known) == 2 else next(iter(known), None)  # noqa: PLR2004 - both


def ends(profile: VersionProfile) -> int:
    """Return how many calls have ended, with outputs or without."""
    return profile.calls + sum(n for code, n in profile.failures.items() if code != "flagged")


def newest_first(calls: Iterable[Call], limit: int) -> tuple[Call, ...]:
    """Return the newest calls of several nodes."""
    ordered = sorted(calls, key=lambda one: (-one.unix_ms, one.node, -one.number))
    return tuple(ordered[:limit])
