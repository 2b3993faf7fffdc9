"""What the tasks of a node would take through another cell. Pure."""

from collections.abc import Iterable

from protocols.messages.mobility import CellMeasure, TaskLatency


def use(
    tasks: Iterable[TaskLatency],
    here: CellMeasure,
    there: CellMeasure,
    usual_ms: tuple[float, float] = (0.0, 0.0),
) -> float | None:
    """Return the latency of the most endangered task over its bound, through a cell; None: unknown.

    It is as measured, longer or shorter by the difference of both paths: as the node has measured
    them, else as they usually are for the nodes of both cells (`usual_ms`, 0: not known).
    """
    if there is here:
        longer_ms = 0.0
    elif here.round_trip_ms is not None and there.round_trip_ms is not None:
        longer_ms = there.round_trip_ms - here.round_trip_ms
    elif all(usual_ms):
        longer_ms = usual_ms[1] - usual_ms[0]
    else:
        return None
    found = (max(0.0, one.measured_ms + longer_ms) / one.bound_ms for one in tasks)
    return max(found, default=None)
