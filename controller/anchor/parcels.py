"""What goes from anchor to anchor with a service: all that is durable of it, in one message."""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from controller.records import ANCHORED, STORY, TASK, AnchoredRecord, TaskRecord
from protocols.messages.hierarchy import Kept

_encoder = msgspec.msgpack.Encoder()
_anchored = msgspec.msgpack.Decoder(AnchoredRecord)
_task = msgspec.msgpack.Decoder(TaskRecord)
_number = msgspec.msgpack.Decoder(int)


class Parcel(Struct, frozen=True):
    """What a transfer brings."""

    held: AnchoredRecord
    tasks: tuple[TaskRecord, ...]
    stories: dict[str, int]
    """By task, how many entries its story has."""


def age(held: AnchoredRecord) -> tuple[int, int]:
    """Return what only grows while a service goes from anchor to anchor."""
    return held.order.generation, held.number


def packed(parcel: Parcel) -> tuple[Kept, ...]:
    """Return the records that a transfer says; `opened` is its inverse."""
    service = parcel.held.order.service
    records = [Kept(ANCHORED, service, _encoder.encode(parcel.held))]
    for task in parcel.tasks:
        name = task.spec.task
        records.append(Kept(TASK, name, _encoder.encode(task)))
        records.append(Kept(STORY, name, _encoder.encode(parcel.stories.get(name, 0))))
    return tuple(records)


def opened(records: Iterable[Kept]) -> Parcel | None:
    """Return what a transfer brings; None: it is not whole."""
    held: AnchoredRecord | None = None
    tasks: dict[str, TaskRecord] = {}
    stories: dict[str, int] = {}
    try:
        for one in records:
            if one.kind == ANCHORED:
                held = _anchored.decode(one.value)
            elif one.kind == TASK:
                tasks[one.key] = _task.decode(one.value)
            elif one.kind == STORY:
                stories[one.key] = _number.decode(one.value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if held is None or [one.task for one in held.order.tasks] != list(tasks):
        return None
    return Parcel(held, tuple(tasks.values()), stories)
