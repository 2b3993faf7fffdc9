"""What people watch here, shown on another process: every key at most once in a while. Pure.

Only which keys have changed is remembered; values are read when they are sent, so that what waits
is bounded by what there is, and a slow line gets the newest alone.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import Struct

from controller.accounts import PROFILE, ProfileRecord
from controller.decider import Record, View
from controller.handover_records import CrossingRecord, HandoverRecord
from controller.records import (
    CELL,
    CROSSING,
    FLEET,
    HANDOVER,
    JOB,
    NODE,
    QUALITY,
    STORY,
    TASK,
    CellView,
    JobRecord,
    NodeRecord,
    NodeView,
    ServiceQuality,
    StoryRecord,
    TaskRecord,
)
from controller.registry.model import Registry
from protocols.messages import Mirror
from protocols.messages.host import BODY_MAX_BYTES

EVERY_MS: Final = 200
"""The pace of each key."""
SCORES_MAX: Final = 200
"""Nodes of a placement that are shown afar; the first are the best."""
JOB_MAX_BYTES: Final = 16 * 1024
"""A job with larger outputs is shown without them."""
KINDS: Final[dict[str, type[Struct]]] = {
    CELL: CellView,
    NODE: NodeRecord,
    FLEET: NodeView,
    TASK: TaskRecord,
    STORY: StoryRecord,
    QUALITY: ServiceQuality,
    JOB: JobRecord,
    PROFILE: ProfileRecord,
    HANDOVER: HandoverRecord,
    CROSSING: CrossingRecord,
}

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(struct) for kind, struct in KINDS.items()}


class Outgoing:
    """What one listener elsewhere has not been shown yet of the kinds it wants."""

    def __init__(self, registry: Registry, kinds: Iterable[str]) -> None:
        self.counters = {"mirror_too_large": 0}
        self._registry = registry
        self._kinds = frozenset(kinds)
        self._dirty: dict[tuple[str, str], None] = {}
        self._old = -1
        """How many of the dirty ones are from the beginning; below 0: it is over."""
        self._first = False
        self._heard = False

    def begin(self) -> None:
        """Show everything: the listener has begun anew."""
        self._dirty = {
            (kind, key): None
            for kind in KINDS
            if kind in self._kinds
            for key in self._registry.keys(kind)
        }
        self._first, self._old, self._heard = True, len(self._dirty), True

    def changed(self, changes: Iterable[Record | View]) -> bool:
        """Note what has changed; return whether there is anything to show."""
        if not self._heard:
            return False
        for one in changes:
            if one.kind in self._kinds:
                self._dirty.setdefault((one.kind, one.key))
        return bool(self._dirty)

    @property
    def pending(self) -> int:
        """How much there is to show."""
        return len(self._dirty) + self._first + (self._old >= 0) if self._heard else 0

    @property
    def waiting(self) -> bool:
        """Whether there is anything to show."""
        return self.pending > 0

    def take(self, most: int) -> list[Mirror]:
        """Return up to `most` things to show, in the order of their first change."""
        out: list[Mirror] = []
        if self._first and most:
            self._first = False
            out.append(Mirror("", "", first=True))
        while self._dirty and len(out) < most and self._old != 0:
            out += self._row(*self._pop())
        if self._old == 0 and len(out) < most:
            self._old = -1
            out.append(Mirror("", ""))
            while self._dirty and len(out) < most:
                out += self._row(*self._pop())
        return out

    def _pop(self) -> tuple[str, str]:
        key = next(iter(self._dirty))
        del self._dirty[key]
        if self._old > 0:
            self._old -= 1
        return key

    def _row(self, kind: str, key: str) -> list[Mirror]:
        value = self._registry.get(kind, key)
        if value is None:
            return [Mirror(kind, key)]
        body = _encoder.encode(_light(value))
        if len(body) > BODY_MAX_BYTES:
            self.counters["mirror_too_large"] += 1
            return []
        return [Mirror(kind, key, body)]


def change(mirror: Mirror) -> View | None:
    """Return what a mirror shows; None for a kind or a form that this version does not know."""
    decoder = _decoders.get(mirror.kind)
    if decoder is None:
        return None
    if not mirror.value:
        return View(mirror.kind, mirror.key, None)
    try:
        return View(mirror.kind, mirror.key, decoder.decode(mirror.value))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _light(value: Any) -> Any:
    """Return a thing without what is too much afar: large values of jobs, scores of many nodes."""
    match value:
        case JobRecord():
            submit = msgspec.structs.replace(value.submit, inputs={})
            light = msgspec.structs.replace(value, submit=submit)
            if len(_encoder.encode(light)) > JOB_MAX_BYTES:
                light = msgspec.structs.replace(light, parts={})
            return light
        case TaskRecord(placement=placement) if placement and len(placement.scores) > SCORES_MAX:
            scores = dict(list(placement.scores.items())[:SCORES_MAX])
            rejected = placement.rejected[:SCORES_MAX]
            few = msgspec.structs.replace(placement, scores=scores, rejected=rejected)
            return msgspec.structs.replace(value, placement=few)
    return value
