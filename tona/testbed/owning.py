"""Nodes that ask their own tasks: nobody stands beside, the log of calls says what became of them.

A feed numbers its requests one after another over the life of the device agent, so one that has no
record was not answered. The log is read when the agents have ended, and holds as much as it holds:
what was asked before its first record is not judged.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from device_agent.core.ledger import OK
from device_agent.logread import check, records
from protocols.errors import EnvironmentFailure
from tona.testbed.bed import Bed
from tona.testbed.figures import Called, Sums

CALLS: Final = "calls"
"""Folder of the log in that of a device agent."""
FAILURES_MAX: Final = 5
_REQUEST, _VERDICT, _REASON = 7, 11, 12


class OwnCalls:
    """What `Callers` does, where the nodes ask themselves."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._until_ms = 0

    async def start(self, _homes: Mapping[str, str]) -> None:
        """Do nothing: the service names its source."""

    async def failed(self) -> EnvironmentFailure:
        """Never return."""
        never: asyncio.Future[EnvironmentFailure] = asyncio.get_running_loop().create_future()
        return await never

    async def stop(self) -> None:
        """Judge what was asked until now: agents go on until they end with the testbed."""
        self._until_ms = time.monotonic_ns() // 1_000_000

    def called(self, node: str) -> Called:
        """Return what the log of a node says that has ended. Raises EnvironmentFailure."""
        folder = self._bed.processes.plan.folder / node / CALLS
        try:
            return called(ends(folder), self._until_ms)
        except (OSError, ValueError) as error:
            raise EnvironmentFailure(f"{folder}: the calls of {node}: {error}") from None


def ends(folder: Path) -> Iterator[tuple[int, int, str]]:
    """Yield number, end (ms on the monotonic clock) and failure of each request, in no order.

    Raises OSError, ValueError.
    """
    found, wrong = check(folder, {})
    if wrong:
        raise ValueError(wrong)
    for batch in found:
        for record in records(batch):
            request, verdict = record[_REQUEST], record[_VERDICT]
            failure = "" if verdict == OK else f"{request}: {verdict} {record[_REASON]}"
            yield int(request.rpartition("-")[2]), record[1] - batch.offset_ms, failure


def called(found: Iterable[tuple[int, int, str]], until_ms: int) -> Called:
    """Return what became of requests that are numbered without a hole. Pure.

    Those that follow on the last one which was answered by then are not judged.
    """
    answers_ms: dict[int, int] = {}
    failures: dict[int, str] = {}
    doubled = 0
    for number, at_ms, failure in found:
        if failure:
            failures[number] = failure
        else:
            doubled += number in answers_ms
            answers_ms.setdefault(number, at_ms)
    last = max((one for one, at_ms in answers_ms.items() if at_ms <= until_ms), default=-1)
    first = min((*answers_ms, *failures), default=0)
    judged = range(first, last + 1)
    answered = [answers_ms[one] for one in judged if one in answers_ms]
    told = (failures.get(one, f"request {one} left no record") for one in judged)
    lost = [text for one, text in zip(judged, told, strict=True) if one not in answers_ms]
    sums = Sums(
        sent=len(judged),
        answered=len(answered),
        lost=len(lost),
        wrong=0,
        doubled=doubled,
        repeated=0,
        retries=0,
        skipped=0,
        failures=tuple(lost[:FAILURES_MAX]),
    )
    return Called(sums, sorted(one * 1_000_000 for one in answered), [])
