"""`tona task stats` and `tona task audit`: what versions of a task have done, and every call."""

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from rich.table import Table
from typer import Argument, Option

from controller.accounts import Call, OperationRecord, Quarantined, TaskAudit
from controller.api.noting import broken
from controller.api.stats import Spread, TaskStats, VersionStats
from protocols.errors import UserError
from protocols.messages.invocation import FailureCode
from tona.cli import complete
from tona.cli.context import AsJson, listing, or_dash, show, show_json, table, with_api
from tona.cli.draw import moment, size

TaskName = Annotated[str, Argument(help="Its name.", autocompletion=complete.tasks)]
OnNode = Annotated[str, Option(help="Only on this node.", autocompletion=complete.nodes)]
FOLLOW_S: Final = 1.0
FOLLOW_LIMIT: Final = 1000
SHORT: Final = 12
"""Hexadecimal digits of a digest that people see."""
VERDICTS: Final = ("ok", "flagged", *(one.value for one in FailureCode))
"""How a call may have ended."""
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


def stats(
    name: TaskName,
    version: Annotated[str, Option(help="Only versions whose digest begins so.")] = "",
    node: OnNode = "",
    by_node: Annotated[bool, Option("--by-node", help="A line for each node.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what each version of a task has done, side by side."""
    listing(
        "task.stats", as_json, _draw_stats, name=name, version=version, node=node, by_node=by_node
    )


def _draw_stats(found: TaskStats) -> None:
    if not found.versions:
        show(f"{found.task}: no such call has been reported yet")
        return
    show(stats_table(found.versions))
    for one in found.versions:
        for what, words in one.flags.items():
            show(f"{short(one.digest)}: {what} {words}")


def stats_table(versions: Sequence[VersionStats]) -> Table:
    """Return the versions as columns, so that old and new stand side by side."""
    made = table("", *(f">{short(one.digest)}" for one in versions))
    made.add_row("generation", *(str(one.generation) for one in versions))
    if any(one.variant for one in versions):
        made.add_row("variant", *(or_dash(one.variant) for one in versions))
    made.add_row("nodes", *(" ".join(one.nodes) for one in versions))
    made.add_row("calls", *(str(one.calls) for one in versions))
    for code in sorted({code for one in versions for code in one.failures}):
        made.add_row(f"  {code}", *(str(one.failures.get(code, 0)) for one in versions))
    for name, field in (("run", "run_ms"), ("wait", "queue_ms"), ("processor", "cpu_ms")):
        _spread(made, f"{name} ms", [getattr(one, field) for one in versions], _ms)
    for name, field in (
        ("memory", "memory_bytes"),
        ("bytes in", "input_bytes"),
        ("bytes out", "output_bytes"),
    ):
        _spread(made, name, [getattr(one, field) for one in versions], _size)
    made.add_row("peak memory", *(size(one.peak_bytes) for one in versions))
    made.add_row("energy of a call", *(or_dash(one.energy_j, "{:.3g} J") for one in versions))
    made.add_row("callers", *(_callers(one.callers) for one in versions))
    return made


def _spread(made: Table, name: str, spreads: Sequence[Spread], say: Any) -> None:
    for point in ("mean", "p50", "p90", "p99"):
        values = [getattr(one, point) for one in spreads]
        if any(one is not None for one in values):
            made.add_row(f"{name} {point}", *(say(one) for one in values))


def _ms(value: float | None) -> str:
    return or_dash(value, "{:.3g}" if value is None or value < 1000 else "{:.0f}")  # noqa: PLR2004 - a second


def _size(value: float | None) -> str:
    return size(None if value is None else round(value))


def _callers(callers: dict[str, int]) -> str:
    ranked = sorted(callers, key=lambda one: -callers[one])[:3]
    more = len(callers) - len(ranked)
    said = ", ".join(one or "others" for one in ranked)
    return or_dash(f"{said} and {more} more" if more > 0 else said)


def short(digest: str) -> str:
    """Return a digest as people see it."""
    return digest.removeprefix("sha256:")[:SHORT]


def audit(
    name: TaskName,
    since: Annotated[
        str, Option(help="Not older: 90s, 10m, 2h, 1d, or a time such as 2026-05-01T12:00.")
    ] = "",
    verdict: Annotated[str, Option(help="Only those that ended so: ok, flagged, shed, ...")] = "",
    user: Annotated[str, Option(help="Only of this caller.")] = "",
    node: OnNode = "",
    limit: Annotated[int, Option(min=1, max=1000, help="At most so many, the newest.")] = 100,
    follow: Annotated[bool, Option("--follow", "-f", help="Go on with new ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read the newest calls of a task from the logs of its nodes, checked for changes."""
    if verdict and verdict not in VERDICTS:
        raise UserError(f"--verdict {verdict!r} is none: one of {', '.join(VERDICTS)}")
    asked: dict[str, Any] = {"name": name, "verdict": verdict, "user": user, "node": node}
    since_unix_ms = _since(since)
    if not follow:
        asked |= {"limit": limit, "since_unix_ms": since_unix_ms}
        listing("task.audit", as_json, _draw_audit, (), **asked)
        return

    async def work(api: Any) -> None:
        await _follow(api, asked, since_unix_ms or _now_ms(), as_json=as_json)

    with_api(work)


async def _follow(api: Any, asked: dict[str, Any], since_ms: int, *, as_json: bool) -> None:
    """Print calls as they come, the oldest first, until interrupted."""
    seen: dict[str, int] = {}
    while True:
        found: TaskAudit = await api.call(
            "task.audit", since_unix_ms=since_ms, limit=FOLLOW_LIMIT, **asked
        )
        for one in reversed(found.calls):
            if one.number <= seen.get(one.node, -1):
                continue
            seen[one.node] = one.number
            # A node's clock may be behind: what it logs next may be older than what others did.
            since_ms = max(since_ms, one.unix_ms - _UNITS_MS["m"])
            if as_json:
                show_json(msgspec.json.encode(one))
            else:
                show(" ".join((moment(one.unix_ms), one.node, *_row(one))))
        await asyncio.sleep(FOLLOW_S)


def _draw_audit(found: TaskAudit) -> None:
    made = table(
        "TIME", "NODE", "VERDICT", "USER", "AGENT", "TENANT", "VERSION", ">WAIT MS", ">RUN MS",
        ">IN", ">OUT", "REQUEST", "REASON",
    )  # fmt: skip
    for one in found.calls:
        made.add_row(moment(one.unix_ms), one.node, *_row(one))
    if found.calls:
        show(made)
    else:
        show("no such call is in the logs")
    if found.checked:
        show(f"checked: {', '.join(found.checked)}")
    for node, problem in found.problems.items():
        show(f"{node}: {problem}")


def _row(one: Call) -> tuple[str, ...]:
    version = short(one.digest) + (f" g{one.generation}" if one.generation else "")
    return (
        one.verdict, or_dash(one.user), or_dash(one.agent), one.tenant, or_dash(version),
        f"{one.queue_us / 1000:.1f}", f"{one.run_us / 1000:.1f}", size(one.input_bytes),
        size(one.output_bytes), one.request, or_dash(one.reason),
    )  # fmt: skip


def quarantine(
    name: TaskName,
    version: Annotated[
        str, Option(help="How its digest begins; else the one that runs, or is in quarantine.")
    ] = "",
    release: Annotated[bool, Option("--release", help="Let it run again.")] = False,
    reason: Annotated[str, Option(help="Why, for people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Have a version of a task run no more: it goes back to the one before, if there is one."""
    asked = {"version": version, "release": release, "reason": reason}
    listing("task.quarantine", as_json, _draw_quarantine, (), name=name, **asked)


def _draw_quarantine(found: Quarantined) -> None:
    for digest, why in found.quarantined.items():
        show(f"{found.task}: version {short(digest)} is in quarantine: {why}")
    if not found.quarantined:
        show(f"{found.task}: no version is in quarantine")
    show(found.reason or f"it runs version {short(found.runs)}")


def operations(
    operation: Annotated[str, Option(help="Only this one, such as usecase.submit.")] = "",
    who: Annotated[str, Option(help="Only of this identity.")] = "",
    verdict: Annotated[str, Option(help="Only those that ended so: ok, user, ...")] = "",
    since: Annotated[str, Option(help="Not older: 90s, 10m, 2h, 1d, or a time.")] = "",
    limit: Annotated[int, Option(min=1, max=4096, help="At most so many, the newest.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List who asked what of the network, and what came of it."""
    asked: dict[str, Any] = {"operation": operation, "who": who, "verdict": verdict}
    asked |= {"since_unix_ms": _since(since), "limit": limit}
    # Only what was not picked out of the chain can be held against it.
    draw = _draw_operations if operation or who or verdict else _draw_chain
    listing("audit.list", as_json, draw, (), **asked)


def _draw_chain(found: Sequence[OperationRecord]) -> None:
    _draw_operations(found)
    problem = broken(sorted(found, key=lambda one: one.number))
    show(f"the log of operations was changed: {problem}" if problem else "checked: the chain holds")


def _draw_operations(found: Sequence[OperationRecord]) -> None:
    made = table(
        "TIME", "WHO", "TENANT", "PLANE", "OPERATION", "TARGET", "VERDICT", "CAUSE", "REASON"
    )
    for one in found:
        made.add_row(
            moment(one.unix_ms), or_dash(one.who), or_dash(one.tenant), one.plane, one.operation,
            or_dash(one.target or short(one.digest)), one.verdict, one.cause, or_dash(one.reason),
        )  # fmt: skip
    show(made)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _since(text: str) -> int:
    """Return the time that a person means, in ms since 1970; 0 of nothing. Raises UserError."""
    if not text:
        return 0
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, _now_ms() - int(float(ago[1]) * _UNITS_MS[ago[2]]))
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        raise UserError(
            f"--since {text!r} is no time: write 90s, 10m, 2h, 1d or 2026-05-01T12:00"
        ) from None
