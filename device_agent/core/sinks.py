"""Where answers go beside the client: the output topic of the service, or the cell's store.

A stored output is a large value like any other; its digest is then published as a small record.
What cannot leave waits, within a bound of number and time, and is counted when it is given up. Of a
lost link nobody knows what it has carried: what was said last is said again, under the same names.
"""

from itertools import count
from typing import Final

from msgspec import Struct, structs

from device_agent.core.box import Box
from device_agent.core.commands import Publish, StoreValue
from device_agent.core.events import Stored, StoreFailed
from device_agent.core.turn import Turn
from device_agent.core.values import MESSAGE_MAX_BYTES, value_bytes
from protocols.messages.invocation import Result, Tensor, Value
from protocols.messages.quality import Sink, SinkKind

STORING_MAX: Final = 64
"""Outputs on their way to the store."""
KEPT_MAX: Final = 512
KEPT_MAX_BYTES: Final = 4 << 20
"""Records that wait for a connection, and their inline tensors; the oldest make room."""
SAID_MAX: Final = 512
SAID_MAX_BYTES: Final = 1 << 20
"""The last records said, and their inline tensors."""
SAID_MS: Final = 10_000
"""That long a dead link may go unnoticed."""
PAUSE_FIRST_MS: Final = 500
PAUSE_MAX_MS: Final = 30_000


class _Storing(Struct, eq=False):
    """One output on its way to the store."""

    service: str
    record: Result
    output: str
    value: Tensor
    cause: str
    tenant: str
    until_ms: float
    pauses: int = 0


class Sinks:
    """Answers on their way to where nobody waits for them."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self.online = False
        """Whether anybody is reached."""
        self._kept: Box[tuple[Publish, int, float]] = Box(KEPT_MAX, KEPT_MAX_BYTES)
        self._said: Box[tuple[Publish, int, float]] = Box(SAID_MAX, SAID_MAX_BYTES)
        self._storing: dict[str, _Storing] = {}
        self._keys = count(1)

    def connected(self) -> None:
        """Publish what has waited and is not too old."""
        self.online = True
        waited, late = self._kept.take(self._turn.now_ms)
        self._turn.dropped(late)
        for one in waited:
            self._say(*one)

    def disconnected(self) -> None:
        """Keep records from now on."""
        self.online = False

    def doubted(self) -> None:
        """Say again what a lost link may not have carried, now or with the next one."""
        again, _ = self._said.take(self._turn.now_ms)
        self._turn.counts["said again"] += len(again)
        for one in again:
            self._say(*one)

    def give(
        self,
        sinks: tuple[Sink, ...],
        service: str,
        result: Result,
        cause: str,
        tenant: str,
        until_ms: float,
    ) -> None:
        """Bring the outputs of an answer where they are wanted, until a time."""
        wanted = {kind: [one.output for one in sinks if one.kind is kind] for kind in SinkKind}
        outputs, record = result.outputs, structs.replace(result, outputs={})
        topic = {one: outputs[one] for one in wanted[SinkKind.TOPIC] if one in outputs}
        if topic:
            self._publish(service, record, topic, cause, tenant, until_ms)
        for output in wanted[SinkKind.STORE]:
            value = outputs.get(output)
            if isinstance(value, Tensor):
                self._store(_Storing(service, record, output, value, cause, tenant, until_ms))
            elif value is not None:
                # A large value lies in the store already: its answer names it there.
                self._publish(service, record, {output: value}, cause, tenant, until_ms)

    def stored(self, event: Stored) -> None:
        """Publish the record of an output that the store has."""
        one = self._storing.pop(event.key, None)
        if one is not None:
            outputs: dict[str, Value] = {one.output: event.blob}
            self._publish(one.service, one.record, outputs, one.cause, one.tenant, one.until_ms)

    def failed(self, event: StoreFailed) -> None:
        """Try again after a while, as long as there is time."""
        one = self._storing.get(event.key)
        if one is None:
            return
        one.pauses += 1
        wait_ms = min(PAUSE_FIRST_MS * 2 ** min(one.pauses - 1, 16), PAUSE_MAX_MS)
        due_ms = self._turn.now_ms + self._turn.spread(wait_ms)
        if due_ms >= one.until_ms:
            del self._storing[event.key]
            self._turn.counts["sink failed"] += 1
        else:
            self._turn.timers.set(("sink", event.key), due_ms)

    def on_timer(self, key: str) -> None:
        """Store again what could not be stored."""
        one = self._storing.get(key)
        if one is not None:
            self._turn.out.append(StoreValue(key, one.value, self._turn.store_urls, one.cause))

    def _store(self, one: _Storing) -> None:
        if len(self._storing) >= STORING_MAX:
            self._turn.counts["sink failed"] += 1
            return
        key = str(next(self._keys))
        self._storing[key] = one
        self._turn.out.append(StoreValue(key, one.value, self._turn.store_urls, one.cause))

    def _publish(
        self,
        service: str,
        record: Result,
        outputs: dict[str, Value],
        cause: str,
        tenant: str,
        until_ms: float,
    ) -> None:
        """Publish outputs together, or in several records: unpacked they may exceed a message."""
        part: dict[str, Value] = {}
        size = 0
        for name, value in outputs.items():
            more = value_bytes(value) if isinstance(value, Tensor) else 0
            if part and size + more > MESSAGE_MAX_BYTES:
                said = structs.replace(record, outputs=part)
                self._say(Publish(service, said, cause, tenant), size, until_ms)
                part, size = {}, 0
            part[name] = value
            size += more
        said = structs.replace(record, outputs=part)
        self._say(Publish(service, said, cause, tenant), size, until_ms)

    def _say(self, said: Publish, size_bytes: int, until_ms: float) -> None:
        one = said, size_bytes, until_ms
        if self.online:
            self._turn.out.append(said)
            self._said.put(one, size_bytes, min(until_ms, self._turn.now_ms + SAID_MS))
        else:
            self._turn.kept(self._kept.put(one, size_bytes, until_ms))
