"""What people have asked of the network, kept: a bounded chain of records of this process."""

import time
from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from controller.accounts import OperationRecord
from controller.api.operation import Effect, Operation, Permission

KEPT: Final = 4096
"""Operations that are kept; the key of one is its number modulo this."""
REASON_LENGTH: Final = 300
_NAMES: Final = ("name", "job", "hex", "service")
_encode = msgspec.msgpack.Encoder().encode

Keep = Callable[[str, OperationRecord], Awaitable[None]]


class Noting:
    """Makes the records of operations; `keep` has one stored under a key."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._number = 0
        self._head = ""

    def restore(self, records: Iterable[Struct | None]) -> None:
        """Go on after the newest of these records."""
        kept = [one for one in records if isinstance(one, OperationRecord)]
        newest = max(kept, key=lambda one: one.number, default=None)
        if newest is not None:
            self._number, self._head = newest.number + 1, newest.head

    async def note(
        self,
        operation: Operation,
        who: tuple[str, str],
        arguments: Struct | None,
        cause: str,
        verdict: str,
        reason: str,
    ) -> None:
        """Keep who (name, tenant) asked for what, and what came of it; reading leaves none."""
        if operation.effect is not Effect.WRITE or operation.permission is Permission.STORE:
            return
        document = getattr(arguments, "document", "")
        record = OperationRecord(
            self._number,
            time.time_ns() // 1_000_000,
            *who,
            operation.plane.value,
            operation.name,
            next((str(one) for name in _NAMES if (one := getattr(arguments, name, ""))), ""),
            cause,
            verdict,
            reason[:REASON_LENGTH],
            digest=f"sha256:{sha256(document.encode()).hexdigest()}" if document else "",
        )
        record = replace(record, head=chained(self._head, record))
        self._number, self._head = record.number + 1, record.head
        await self._keep(str(record.number % KEPT), record)


def chained(head: str, record: OperationRecord) -> str:
    """Return the head of the chain with a record: what is before it cannot be changed unseen."""
    return sha256(head.encode() + _encode(replace(record, head=""))).hexdigest()


def broken(records: Iterable[OperationRecord]) -> str:
    """Say where a chain of records, oldest first, is broken; empty: nowhere."""
    before = None
    for one in records:
        follows = before is None or one.number == before.number + 1
        if not follows or (before is not None and one.head != chained(before.head, one)):
            return f"operation {one.number} does not follow on the one before"
        before = one
    return ""
