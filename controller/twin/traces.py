"""Traces of load over time: files with columns, or a day as most services see it."""

import csv
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from math import cos, pi
from pathlib import Path
from typing import Final

from protocols.errors import UserError

ARRIVALS_S: Final = 60
"""Arrivals are counted over so long."""
MAX_ROWS: Final = 5_000_000
_LOADS: Final = ("load", "value")
DAY_S: Final = 86_400
NIGHT_SHARE: Final = 0.15
"""Of the busiest hour, what the quietest one has."""

Trace = list[tuple[float, float]]
"""Seconds from its beginning, and the load; 1 is its top."""


def diurnal(hours: float) -> Trace:
    """Return days with one top each, at 15:00, beginning at midnight."""
    points = []
    for step in range(int(hours * 12) + 1):
        at_s = step * 300.0
        wave = (1 - cos(2 * pi * (at_s / DAY_S - 3 / 24))) / 2
        points.append((at_s, NIGHT_SHARE + (1 - NIGHT_SHARE) * wave))
    return points


def read(path: Path, hours: float) -> Trace:
    """Read a trace, its first column a time; repeated when it is shorter. Raises UserError.

    A column `load` or `value` is the load. Without one, each row is an arrival.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            head = [name.strip().lower() for name in next(rows, [])]
            column = next((head.index(name) for name in _LOADS if name in head), None)
            points = _points(path, rows, column)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {error}") from None
    if column is None:
        points = _counted(points)
    if not points or max(load for _, load in points) <= 0:
        raise UserError(f"{path}: no load in it: give columns time and load, or a row an arrival")
    return _repeated(points, hours * 3600)


def _points(path: Path, rows: Iterable[list[str]], column: int | None) -> Trace:
    points: Trace = []
    for number, row in enumerate(rows, 2):
        if not row:
            continue
        try:
            load = 1.0 if column is None else float(row[column])
            points.append((_seconds(row[0]), max(0.0, load)))
        except (ValueError, IndexError):
            raise UserError(f"{path}:{number}: {row!r} is no time and load") from None
        if len(points) > MAX_ROWS:
            raise UserError(f"{path}: more than {MAX_ROWS} rows; shorten it")
    points.sort()
    first = points[0][0] if points else 0.0
    return [(at - first, load) for at, load in points]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        # Fractions finer than a microsecond are not for `fromisoformat`.
        return datetime.fromisoformat(text.strip()[:26]).replace(tzinfo=UTC).timestamp()


def _counted(points: Trace) -> Trace:
    counts = Counter(int(at // ARRIVALS_S) for at, _ in points)
    last = max(counts, default=0)
    return [(slot * float(ARRIVALS_S), float(counts[slot])) for slot in range(last + 1)]


def _repeated(points: Trace, until_s: float) -> Trace:
    until = [one for one in points if one[0] <= until_s]
    top = max((load for _, load in until), default=0.0) or max(load for _, load in points)
    length = points[-1][0] + (points[1][0] - points[0][0] if len(points) > 1 else ARRIVALS_S)
    out: Trace = []
    start = 0.0
    while start <= until_s:
        out += [(start + at, load / top) for at, load in points]
        start += max(length, 1.0)
    return [one for one in out if one[0] <= until_s] or out[:1]
