"""Radio traces: what a drive measured, once a second or so, and the windows cut out of it. Pure.

A trace is a CSV with a head. Used are `Timestamp`, `RAWCELLID` (the serving cell), `RSRP`, `RSRQ`,
`SNR`, `CQI`, `DL_bitrate`, `UL_bitrate` (kbit/s) and `NRxRSRP`, `NRxRSRQ` (the best neighbour);
`-` is missing. Rows of one second are spread evenly over it. A row without time, serving cell or
RSRP is passed over.
"""

import csv
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby, pairwise
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

WINDOW_S: Final = 10.0
HOLE_MAX_S: Final = 3.0
"""A longer pause between two rows is no part of a window."""
_TIME: Final = "%Y.%m.%d_%H.%M.%S"
_NEEDED: Final = ("Timestamp", "RAWCELLID", "RSRP")


class NoTrace(Exception):
    """What was read is no trace; the text says why."""


class Sample(Struct, frozen=True):
    """One row. Of the serving cell, and of the best of its neighbours."""

    at_s: float
    """Since the beginning of the trace."""
    cell: str
    rsrp_dbm: float
    rsrq_db: float | None = None
    snr_db: float | None = None
    cqi: int | None = None
    down_mbit_per_s: float = 0.0
    """Carried, not possible."""
    up_mbit_per_s: float = 0.0
    neighbour_rsrp_dbm: float | None = None
    neighbour_rsrq_db: float | None = None


class Window(Struct, frozen=True):
    """A piece of a trace; times of samples count from its beginning."""

    trace: str
    samples: tuple[Sample, ...]
    moves: bool
    """Whether the serving cell changes in its middle; else it never does."""
    length_s: float = WINDOW_S
    control: bool = False
    """Whether its radio is that of a window with a change, and nobody is to move; see `unmoved`."""

    @property
    def changes(self) -> int:
        """How often the serving cell changes."""
        return sum(one.cell != other.cell for one, other in pairwise(self.samples))


def parse(lines: Iterable[str]) -> tuple[Sample, ...]:
    """Return the samples of a trace in the order of time. Raises NoTrace."""
    try:
        rows = csv.DictReader(lines)
        missing = [one for one in _NEEDED if one not in (rows.fieldnames or ())]
        if missing:
            raise NoTrace(f"no column {missing[0]}")
        timed = [one for row in rows if (one := _row(row)) is not None]
    except csv.Error as error:
        raise NoTrace(str(error)) from None
    timed.sort(key=lambda one: one.at_s)
    first = timed[0].at_s if timed else 0.0
    spread: list[Sample] = []
    for at_s, same in groupby(timed, key=lambda one: one.at_s):
        together = list(same)
        spread += (
            replace(one, at_s=at_s - first + number / len(together))
            for number, one in enumerate(together)
        )
    return tuple(spread)


def windows(name: str, samples: Sequence[Sample]) -> list[Window]:
    """Return a window around each change of the serving cell, and every steady one between.

    Steady windows touch no other one and no second in which the cell changes.
    """
    changes = [after.at_s for before, after in pairwise(samples) if before.cell != after.cell]
    found = []
    for at_s in changes:
        cut = _cut(name, samples, at_s - WINDOW_S / 2, moves=True)
        if cut is not None:
            found.append(cut)
    borders = [0.0, *changes, samples[-1].at_s if samples else 0.0]
    for begin_s, end_s in pairwise(borders):
        at_s = begin_s + 1.0
        while at_s + WINDOW_S <= end_s - 1.0:
            cut = _cut(name, samples, at_s, moves=False)
            if cut is not None:
                found.append(cut)
            at_s += WINDOW_S
    return found


def unmoved(window: Window) -> Window:
    """Return the control of a window: the same radio, all of it from the cell where it begins."""
    first = window.samples[0].cell
    samples = tuple(replace(one, cell=first) for one in window.samples)
    return replace(window, samples=samples, moves=False, control=True)


def _cut(name: str, samples: Sequence[Sample], begin_s: float, *, moves: bool) -> Window | None:
    """Return what was measured in a window; None where too little was."""
    inside = [one for one in samples if begin_s <= one.at_s < begin_s + WINDOW_S]
    if not inside:
        return None
    times = [begin_s, *(one.at_s for one in inside), begin_s + WINDOW_S]
    if any(after - before > HOLE_MAX_S for before, after in pairwise(times)):
        return None
    moved = tuple(replace(one, at_s=one.at_s - begin_s) for one in inside)
    return Window(name, moved, moves)


def _row(row: dict[str, str]) -> Sample | None:
    try:
        moment = datetime.strptime(row["Timestamp"], _TIME).replace(tzinfo=UTC)
    except (TypeError, ValueError):
        return None
    cell, rsrp = row["RAWCELLID"], _number(row, "RSRP")
    if cell in {None, "", "-"} or rsrp is None:
        return None
    cqi = _number(row, "CQI")
    return Sample(
        at_s=moment.timestamp(),
        cell=cell,
        rsrp_dbm=rsrp,
        rsrq_db=_number(row, "RSRQ"),
        snr_db=_number(row, "SNR"),
        cqi=round(cqi) if cqi is not None else None,
        down_mbit_per_s=(_number(row, "DL_bitrate") or 0.0) / 1000,
        up_mbit_per_s=(_number(row, "UL_bitrate") or 0.0) / 1000,
        neighbour_rsrp_dbm=_number(row, "NRxRSRP"),
        neighbour_rsrq_db=_number(row, "NRxRSRQ"),
    )


def _number(row: dict[str, str], column: str) -> float | None:
    try:
        value = float(row.get(column) or "-")
    except (TypeError, ValueError):
        return None
    return value if abs(value) < 1e9 else None  # noqa: PLR2004 - neither infinite nor absurd
