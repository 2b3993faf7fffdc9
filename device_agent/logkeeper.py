"""The shell around the log of calls: writes in the loop, reads in a child that exits."""

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from device_agent.calllog import CallLog
from device_agent.core import commands, events
from protocols.messages.profile import AuditPage, AuditQuery

READERS_MAX: Final = 2
"""Readings at once; one more is refused."""
READ_TIMEOUT_S: Final = 20.0
PROGRAM: Final = "device_agent.logread"

log = logging.getLogger("tona.node")


class LogKeeper:
    """The log of one node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log: CallLog | None = None
        self._lost = 0
        """Records that came while there was no log to write to."""
        self._problem = ""
        """Why nothing is written now."""
        self._readers = 0

    def write(self, command: commands.WriteLog) -> events.LogWritten:
        """Append records; what the disk does not take is counted, and told with the next batch."""
        try:
            if self._log is None:
                self._log = CallLog(self._folder)
                self._log.dropped, self._lost = self._lost, 0
        except OSError as error:
            self._lost += command.count
            return self._failed(error.strerror or "it cannot be opened")
        # A record has the node's clock: what has to be added to it is the same for a batch.
        offset_ms = (time.time_ns() - time.monotonic_ns()) // 1_000_000
        if not self._log.write(command.records, command.count, offset_ms):
            return self._failed(self._log.problem)
        if self._problem:
            log.warning("%s: calls are logged again", self._folder)
            self._problem = ""
        return events.LogWritten(self._log.logged, self._log.head)

    def _failed(self, why: str) -> events.LogWritten:
        problem = f"calls are not logged in {self._folder}: {why}; make room or mend the disk"
        if problem != self._problem:
            log.warning("%s", problem)
        self._problem = problem
        logged, head = (self._log.logged, self._log.head) if self._log is not None else (0, b"")
        return events.LogWritten(logged, head, problem)

    async def read(self, query: AuditQuery) -> AuditPage:
        """Return the page that was asked for, or why there is none."""
        if self._readers >= READERS_MAX:
            return AuditPage(query.number, problem="the log is being read for others; try again")
        self._readers += 1
        try:
            answer = await self._ask(query)
        finally:
            self._readers -= 1
        if answer is None:
            return AuditPage(query.number, problem=self._problem or "the log could not be read")
        records, following, problem = answer
        problem = "; ".join(one for one in (self._problem, problem) if one)
        logged, head = (self._log.logged, self._log.head) if self._log is not None else (0, b"")
        return AuditPage(query.number, records, following, logged, head, problem[:2000])

    async def _ask(self, query: AuditQuery) -> tuple[bytes, int, str] | None:
        text = msgspec.json.encode(query).decode()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-s", "-m", PROGRAM, str(self._folder), text),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            log.warning("the log of calls cannot be read: %s", error.strerror)
            return None
        try:
            output, _ = await asyncio.wait_for(process.communicate(), READ_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            return None
        if process.returncode:
            return None
        return msgspec.msgpack.decode(output, type=tuple[bytes, int, str])

    def close(self) -> None:
        """Let go of the file."""
        if self._log is not None:
            self._log.close()
