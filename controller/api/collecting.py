"""Which artifacts of the cell's store nobody needs any more. Pure.

Needed is what a use case names, in its present document and in the one it can be gone back to, and
what a task runs. What was needed once is kept for a while after; what never was, for much longer:
it was put there by hand, to be used one day.
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct

from controller.records import SERVICE, TASK, USE_CASE, TaskState, UseCaseState
from controller.registry import Registry
from protocols.messages.hierarchy import ServiceState

AFTER_S: Final = 600.0
"""What was needed goes when nobody has needed it, or put it there again, for so long."""
UNUSED_S: Final = 7 * 24 * 3600.0
"""What was never needed goes after this."""
_DIGEST: Final = re.compile(rb"sha256:([0-9a-f]{64})")
_OVER: Final = frozenset({UseCaseState.DELETED, TaskState.DELETED, ServiceState.DELETED})


def alive(registry: Registry) -> list[Struct]:
    """Return every record that may name an artifact that is needed."""
    return [
        record
        for kind in (USE_CASE, SERVICE, TASK)
        for record in registry.list(kind)
        if record.state not in _OVER
    ]


def needed(records: Iterable[Struct]) -> set[str]:
    """Return the digests, in hexadecimal, that records name wherever in them."""
    found: set[str] = set()
    for record in records:
        found.update(one.decode() for one in _DIGEST.findall(msgspec.json.encode(record)))
    return found


class Collector:
    """Remembers what was needed, in this life of the controller."""

    def __init__(self) -> None:
        self._needed_s: dict[str, float] = {}

    def look(
        self, held: Iterable[tuple[str, int, float]], used: set[str], now_s: float
    ) -> list[str]:
        """Return what has to go, of contents by name, bytes and the time they were last put."""
        self._needed_s.update(dict.fromkeys(used, now_s))
        gone = []
        for name, _, put_s in held:
            if name in used:
                continue
            last_s = self._needed_s.get(name)
            bound_s = UNUSED_S if last_s is None else AFTER_S
            if now_s - max(put_s, last_s or put_s) > bound_s:
                gone.append(name)
                self._needed_s.pop(name, None)
        return gone
