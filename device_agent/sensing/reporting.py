"""Whether a sample is worth a message, and for what cause. Pure.

Each figure is compared with the one *reported* last, so that a value that flutters inside its step
never speaks and one that drifts away does. A sensor that comes or goes waits for the heartbeat:
some drivers answer only now and then.
"""

from typing import Final

import msgspec

from protocols.messages.sense import LinkReport, LoadReport, SetSensing

HEARTBEAT: Final = "heartbeat"
LOSS_STEP_PERCENT: Final = 10.0
ROUND_TRIP_FLOOR_MS: Final = 1.0
"""A change below it is the machine's own noise, whatever its share."""
DELIVERY_STEP: Final = 1.5
"""By what factor what a link carries has to change..."""
DELIVERY_MATTERS_MBIT_PER_S: Final = 100.0
"""...unless it was and is above this: then hardly anything waits for it."""
WHOLE_MS: Final = 500
"""However fast the pace is, only the processor is read at every sample; all else so often."""


def whole_every(sample_ms: int) -> int:
    """Return how many samples it is from one that reads all to the next."""
    return max(1, round(WHOLE_MS / sample_ms))


def due_load(last: LoadReport | None, new: LoadReport, sensing: SetSensing) -> LoadReport | None:
    """Return the report to send now, with its cause, or None to stay silent.

    `last` is the report sent last. The clock is `sampled_ms`.
    """
    cause = _load_cause(last, new, sensing) if last else HEARTBEAT
    if cause is None and last:
        since_ms = new.sampled_ms - last.sampled_ms
        cause = HEARTBEAT if _nearest(since_ms, sensing.heartbeat_ms, sensing.sample_ms) else None
    return msgspec.structs.replace(new, cause=cause) if cause else None


def due_link(last: LinkReport | None, new: LinkReport, sensing: SetSensing) -> LinkReport | None:
    """Return the report to send now, with its cause, or None to stay silent."""
    cause = _link_cause(last, new, sensing) if last else HEARTBEAT
    if cause is None and last:
        since_ms = new.sampled_ms - last.sampled_ms
        every_ms = whole_every(sensing.sample_ms) * sensing.sample_ms
        cause = HEARTBEAT if _nearest(since_ms, sensing.heartbeat_ms, every_ms) else None
    return msgspec.structs.replace(new, cause=cause) if cause else None


def _nearest(since_ms: int, due_ms: int, every_ms: int) -> bool:
    """Whether a sample is nearer to what is due than the next one, `every_ms` later.

    Timers are a hair early or late: waiting for the next sample then would double the silence.
    """
    return since_ms + every_ms / 2 >= due_ms


def _load_cause(last: LoadReport, new: LoadReport, sensing: SetSensing) -> str | None:
    total = new.memory_used_bytes + new.memory_available_bytes
    memory_step = max(1.0, total * sensing.memory_step_percent / 100.0)
    moved = (
        ("cpu_percent", _stepped(last.cpu_percent, new.cpu_percent, sensing.cpu_step_percent)),
        (
            "memory_used_bytes",
            _stepped(last.memory_used_bytes, new.memory_used_bytes, memory_step),
        ),
        ("throttled", _toggled(last.throttled, new.throttled)),
        (
            "temperature_c",
            _stepped(last.temperature_c, new.temperature_c, sensing.temperature_step_c),
        ),
        (
            "accelerators",
            any(
                _stepped(before.load_percent, after.load_percent, sensing.accelerator_step_percent)
                or _stepped(before.temperature_c, after.temperature_c, sensing.temperature_step_c)
                for before, after in zip(last.accelerators, new.accelerators, strict=False)
            ),
        ),
    )
    return next((name for name, speaks in moved if speaks), None)


def _link_cause(last: LinkReport, new: LinkReport, sensing: SetSensing) -> str | None:
    step_ms = (last.round_trip_ms or 0.0) * sensing.round_trip_step_percent / 100.0
    moved = (
        ("interface", last.interface != new.interface),
        ("carrier", last.carrier != new.carrier),
        ("kind", last.kind != new.kind),
        ("addresses", set(last.addresses) != set(new.addresses)),
        ("signal_dbm", _stepped(last.signal_dbm, new.signal_dbm, sensing.signal_step_db)),
        (
            "round_trip_ms",
            _stepped(last.round_trip_ms, new.round_trip_ms, max(step_ms, ROUND_TRIP_FLOOR_MS)),
        ),
        ("loss_percent", _stepped(last.loss_percent, new.loss_percent, LOSS_STEP_PERCENT)),
        ("delivery_mbit_per_s", _scaled(last.delivery_mbit_per_s, new.delivery_mbit_per_s)),
    )
    return next((name for name, speaks in moved if speaks), None)


def _stepped(last: float | None, new: float | None, step: float) -> bool:
    return last is not None and new is not None and abs(new - last) >= step


def _scaled(last: float | None, new: float | None) -> bool:
    if last is None or new is None:
        return False
    low, high = sorted((last, new))
    return low < DELIVERY_MATTERS_MBIT_PER_S and high >= DELIVERY_STEP * low


def _toggled(last: bool | None, new: bool | None) -> bool:
    return last is not None and new is not None and last != new
