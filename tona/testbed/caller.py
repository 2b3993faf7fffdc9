"""A client that asks steadily: a request every so often, whatever becomes of those before.

    python -m tona.testbed.caller ASK.json

A process of its own, in the network of its node or of a gateway. It says `ready` when it is
connected, goes with its node where it stands beside one, and writes what became of each request
(`RECORD`) and at the end, told by SIGTERM, its `Sums`.
"""

import asyncio
import contextlib
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from controller.child import READY_PREFIX
from protocols.topics import Speaker
from protocols.transport import tls
from protocols.transport.settings import Settings
from tona.beside import BesideClient
from tona.client import AsyncClient
from tona.errors import InvocationError
from tona.events import Finish
from tona.target import Target
from tona.testbed.figures import Sums

RECORD: Final = struct.Struct("<QqqB3x")
"""Number, sent and answered on the monotonic clock in nanoseconds, and an `Outcome`."""
ANSWERED: Final = 0
LOST: Final = 1
WRONG: Final = 2
"""Answered with another answer than its own."""
NUMBER: Final = struct.Struct("<Q")
CONNECT_S: Final = 60.0
UNDER_WAY_MAX: Final = 4096
"""Requests; beyond, none is sent, which is counted."""
FLUSH_EVERY: Final = 64
WARM: Final = 100
WARM_S: Final = 5.0
"""So many requests one after another, for so long at most, before the steady ones."""


class Ask(Struct, frozen=True):
    """What a caller is to do."""

    service: str
    identity: str
    cell: str
    """In which the service is at the beginning."""
    host: str
    port: int
    records: str
    """File of the records."""
    sums: str
    """File of the sums."""
    per_s: float
    deadline_s: float
    bundle: str = ""
    follow: str = ""
    """File that says where its node is attached; empty: it stands in that cell and stays."""


FAILURES_MAX: Final = 5


class Caller:
    """Asks until told to end."""

    def __init__(self, ask: Ask, records: BinaryIO) -> None:
        self._ask = ask
        self._records = records
        self._finishes: set[str] = set()
        """Requests whose answer was handed over."""
        self._doubled = 0
        self._counts = dict.fromkeys((ANSWERED, LOST, WRONG), 0)
        self._sent = self._skipped = self._written = 0
        self._failures: list[str] = []
        self._loop = asyncio.get_running_loop()
        self.told = asyncio.Event()
        context = tls.client_context(tls.load(ask.bundle)) if ask.bundle else None
        settings = Settings(
            host=ask.host,
            port=ask.port,
            identity=ask.identity,
            speaker=Speaker.CLIENT,
            cell=ask.cell,
            tls=context,
        )
        target = Target(settings, context)
        self.client = BesideClient(target, Path(ask.follow)) if ask.follow else AsyncClient(target)
        # Whatever is handed to an application passes here, and once for each request, or it is told
        # twice; the future that waits would hide that.
        finish = self.client._on[Finish]  # noqa: SLF001 - as above
        self.client._on[Finish] = lambda one: self._finished(one, finish)  # noqa: SLF001 - the same

    async def run(self) -> Sums:
        """Connect, ask, wait for what is under way, and sum up. Raises CannotConnect, UserError."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.told.set)
        try:
            await self.client.open(CONNECT_S)
            await self._warm()
            sys.stdout.write(f"{READY_PREFIX}{self._ask.service}\n")
            sys.stdout.flush()
            async with asyncio.TaskGroup() as group:
                await self._steadily(group)
        finally:
            await self.client.close()
        core = self.client._core  # noqa: SLF001 - what it has dropped is told nowhere else
        return Sums(
            sent=self._sent,
            answered=self._counts[ANSWERED],
            lost=self._counts[LOST],
            wrong=self._counts[WRONG],
            doubled=self._doubled,
            repeated=core.counters.late,
            retries=core.counters.retries,
            skipped=self._skipped,
            failures=tuple(self._failures),
        )

    async def _warm(self) -> None:
        """Ask one at a time: what waits for a service's first steps would wait in all windows."""
        with contextlib.suppress(TimeoutError, InvocationError):
            async with asyncio.timeout(WARM_S):
                for _ in range(WARM):
                    await self.client.invoke(self._ask.service, {"x": NUMBER.pack(0)})

    async def _steadily(self, group: asyncio.TaskGroup) -> None:
        """Send a request at each point in time, however late the last one was."""
        begin_s, number = self._loop.time(), 0
        while not self.told.is_set():
            wait_s = begin_s + number / self._ask.per_s - self._loop.time()
            if wait_s > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.told.wait(), wait_s)
                continue
            if self._sent - sum(self._counts.values()) >= UNDER_WAY_MAX:
                self._skipped += 1
            else:
                self._sent += 1
                group.create_task(self._one(number))
            number += 1

    async def _one(self, number: int) -> None:
        sent_ns, outcome = time.monotonic_ns(), ANSWERED
        asked = NUMBER.pack(number)
        try:
            result = await self.client.invoke(
                self._ask.service, {"x": asked}, deadline_s=self._ask.deadline_s
            )
            if bytes(result.outputs["y"]) != asked:
                outcome = WRONG
        except InvocationError as error:
            outcome = LOST
            if len(self._failures) < FAILURES_MAX:
                self._failures.append(str(error))
        self._counts[outcome] += 1
        self._records.write(RECORD.pack(number, sent_ns, time.monotonic_ns(), outcome))
        self._written += 1
        if self._written % FLUSH_EVERY == 0:
            self._records.flush()

    def _finished(self, one: Finish, hand_over: Callable[[Finish], None]) -> None:
        self._doubled += one.request in self._finishes
        self._finishes.add(one.request)
        hand_over(one)


def main() -> None:
    """Ask as the file says, until told to end."""
    ask = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Ask)

    with Path(ask.records).open("ab") as records:

        async def run() -> Sums:
            return await Caller(ask, records).run()

        sums = asyncio.run(run())
    Path(ask.sums).write_bytes(msgspec.json.encode(sums))


if __name__ == "__main__":
    main()
