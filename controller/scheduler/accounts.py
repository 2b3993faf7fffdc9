"""Figures of every version of every task, as the nodes of the cell report them: bounded, durable.

A report holds the sums of a node's life: the newest one replaces the one before, so that none is
counted twice or missed. When the node begins a new life, the sums of the one before are kept beside
them. What is kept is written at most every `KEEP_MS` for each version and node; a crash costs the
figures since then, until the node's next report.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import replace

from controller.accounts import HEADS, PROFILE, HeadsRecord, ProfileRecord, profile_key, summed
from controller.decider import Record
from controller.desk import Desk
from controller.scheduler.anomalies import Anomalies, Flag
from protocols.messages import ProfileReport
from protocols.messages.profile import VersionProfile

KEEP_MS: Final = 60_000
VERSIONS_MAX: Final = 6
"""Versions of a task whose figures are kept; the one that was heard of longest ago goes."""
NODES_MAX: Final = 32
"""Nodes of a version that are told apart; those heard of longest ago are added together."""
PROFILES_MAX: Final = 50_000
HEADS_MAX: Final = 16
"""Heads of a node's log that are kept."""
SANE_ENERGY_J: Final = 1e12


class Accounts:
    """The figures of the cell."""

    def __init__(self, desk: Desk, counters: dict[str, int]) -> None:
        self._desk = desk
        self._counters = counters
        counters |= dict.fromkeys(("absurd_profile", "foreign_profile", "log_replaced"), 0)
        self._profiles: dict[str, dict[tuple[str, str], ProfileRecord]] = {}
        """By task, then digest and node; what was heard of last stands last."""
        self._count = 0
        self._kept_ms: dict[str, int] = {}
        self.heads: dict[str, HeadsRecord] = {}
        self._anomalies = Anomalies()

    def restore(self, record: Record) -> None:
        """Take in what is durable."""
        if isinstance(record.value, ProfileRecord):
            one = record.value
            self._profiles.setdefault(one.now.task, {})[one.now.digest, one.node] = one
            self._count += 1
            self._anomalies.restore(one.node, one.whole)
        elif isinstance(record.value, HeadsRecord):
            self.heads[record.key] = record.value

    def of(self, task: str) -> list[ProfileRecord]:
        """Return what is kept of a task, the version that was heard of last at the end."""
        return list(self._profiles.get(task, {}).values())

    def nodes(self, task: str) -> list[str]:
        """Return the nodes that have run a task, as far as is known."""
        return list(dict.fromkeys(one.node for one in self.of(task) if one.node))

    def take(
        self, node: str, report: ProfileReport, cause: str, runs: Callable[[str], bool]
    ) -> list[tuple[Flag, str, str]]:
        """Take in what a node reports; returns what is odd about it: of which task and digest.

        `runs` says whether a task may be on that node: of others it can tell nothing new.
        """
        self._take_head(node, report, cause)
        odd = []
        for profile in report.versions:
            if not _sane(profile):
                self._counters["absurd_profile"] += 1
                continue
            before = self._profiles.get(profile.task, {}).get((profile.digest, node))
            if before is None and not runs(profile.task):
                self._counters["foreign_profile"] += 1
                continue
            if before is not None and report.life < before.life:
                continue
            after = _continued(before, node, report.life, profile)
            same = before is not None and before.life == report.life
            then = before.now if before is not None and same else None
            flags = self._anomalies.take(node, then, profile, report.sampled_ms)
            if flags:
                after = replace(after, flags=_flagged(after.flags, flags))
            self.put(after, cause, at_once=bool(flags) or not same)
            odd += [(flag, profile.task, profile.digest) for flag in flags]
        return odd

    def put(self, record: ProfileRecord, cause: str, *, at_once: bool) -> None:
        """Keep and show the newest figures of a version on a node."""
        now, node = record.now, record.node
        held = self._profiles.setdefault(now.task, {})
        self._count += (now.digest, node) not in held
        held.pop((now.digest, node), None)
        held[now.digest, node] = record
        self._write(record, cause, at_once=at_once)
        self._trim(now.task, now.digest, cause)

    def _write(self, record: ProfileRecord, cause: str, *, at_once: bool) -> None:
        key, now_ms = (
            profile_key(record.now.task, record.now.digest, record.node),
            self._desk.now_ms,
        )
        if at_once or now_ms - self._kept_ms.get(key, 0) >= KEEP_MS:
            self._kept_ms[key] = now_ms
            self._desk.keep(PROFILE, key, record, cause)
        else:
            self._desk.show(PROFILE, key, record)

    def _trim(self, task: str, digest: str, cause: str) -> None:
        """Keep a task, and all of them, within bounds."""
        held = self._profiles[task]
        digests = list(dict.fromkeys(one for one, _ in reversed(held)))
        for key in [key for key in held if key[0] in digests[VERSIONS_MAX:]]:
            self._drop(task, key, cause)
        nodes = [node for one, node in held if one == digest and node]
        if len(nodes) > NODES_MAX:
            oldest = self._drop(task, (digest, nodes[0]), cause)
            rest = held.get((digest, ""))
            whole = oldest.whole if rest is None else summed(rest.whole, oldest.whole)
            self._count += rest is None
            held[digest, ""] = folded = ProfileRecord("", 0, whole)
            self._write(folded, cause, at_once=True)
        if self._count > PROFILES_MAX:
            first = next(iter(self._profiles))
            self.forget(first, cause)

    def forget(self, task: str, cause: str) -> None:
        """Forget all figures of a task."""
        for key in list(self._profiles.get(task, ())):
            self._drop(task, key, cause)

    def _drop(self, task: str, key: tuple[str, str], cause: str) -> ProfileRecord:
        record = self._profiles[task].pop(key)
        if not self._profiles[task]:
            del self._profiles[task]
        self._count -= 1
        self._anomalies.forget(task, *key)
        name = profile_key(task, *key)
        self._kept_ms.pop(name, None)
        self._desk.keep(PROFILE, name, None, cause)
        return record

    # Logs.

    def _take_head(self, node: str, report: ProfileReport, cause: str) -> None:
        """Keep the head of a node's log: whoever changes what is before it cannot lead to it."""
        if not report.logged or not report.head:
            return
        before = self.heads.get(node, HeadsRecord(node))
        newest = before.heads[-1] if before.heads else (0, b"")
        if (report.logged, report.head) == newest:
            return
        after = replace(before, heads=_thinned((*before.heads, (report.logged, report.head))))
        replaced = report.logged < newest[0] or report.logged == newest[0]
        if replaced:
            self._counters["log_replaced"] += 1
            problem = f"the log had {newest[0]} records and then other {report.logged}"
            after = HeadsRecord(node, ((report.logged, report.head),), problem)
        self.heads[node] = after
        key = f"{HEADS}/{node}"
        now_ms = self._desk.now_ms
        if replaced or not before.heads or now_ms - self._kept_ms.get(key, 0) >= KEEP_MS:
            self._kept_ms[key] = now_ms
            self._desk.keep(HEADS, node, after, cause)


def _continued(
    before: ProfileRecord | None, node: str, life: int, now: VersionProfile
) -> ProfileRecord:
    if before is None:
        return ProfileRecord(node, life, now)
    if before.life == life:
        return replace(before, now=now)
    return ProfileRecord(node, life, now, before.whole, before.flags)


def _thinned(heads: tuple[tuple[int, bytes], ...]) -> tuple[tuple[int, bytes], ...]:
    """Let every second of the older heads go when there are too many."""
    if len(heads) <= HEADS_MAX:
        return heads
    half = HEADS_MAX // 2
    return (*heads[:half:2], *heads[half:])


def _sane(profile: VersionProfile) -> bool:
    """Whether a profile can be reckoned with."""
    energy = profile.energy_j
    return energy is None or 0.0 <= energy <= SANE_ENERGY_J


def _flagged(flags: dict[str, str], fresh: Iterable[Flag]) -> dict[str, str]:
    """Return what is odd about a version, after what has come to light or is over."""
    kept = dict(flags)
    for one in fresh:
        kept.pop(one.what, None)
        if not one.over:
            kept[one.what] = one.detail
    return kept
