"""Radio traces: which cell served a moving device, how strong it and its best neighbour were.

A trace names its serving cell but not the neighbour. The neighbour is taken for the cell that
served before, up to the middle of a stay, and for the one that serves next afterwards: those are
the two between which the device must have been. A cell that is reported no more is weaker than the
neighbour that is: it falls from there by `FADE_DB_PER_S`. Spells on networks of the third
generation, whose figures are others, and pauses are left out; what lies between two reports is on
the line between.
"""

import csv
import gzip
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from msgspec import Struct

from protocols.errors import UserError

MODES: Final = frozenset({"LTE", "5G"})
PAUSE_S: Final = 5.0
"""A longer silence of the trace ends a stretch."""
LEAST_S: Final = 10.0
"""A shorter stretch says nothing."""
FADE_DB_PER_S: Final = 1.0
FADED_DB: Final = 20.0
"""A cell that has fallen so far below the neighbour that is reported is not heard any more."""
MAX_ROWS: Final = 200_000
_COLUMNS: Final = ("Timestamp", "NetworkMode", "RSRP", "RAWCELLID", "NRxRSRP")
UNNAMED: Final = "unnamed"
"""The neighbour of a stretch that never leaves its cell."""


class Sample(Struct, frozen=True):
    """One report of the device."""

    at_s: float
    """Since the stretch began."""
    cell: str
    rsrp_dbm: float
    neighbour_dbm: float | None


class Stretch(Struct, frozen=True):
    """A part of a trace without a pause."""

    name: str
    """File and number."""
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples[-1].at_s

    @property
    def changes(self) -> tuple[tuple[float, str, str], ...]:
        """When the device went from which cell to which."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return tuple(
            (after.at_s, before.cell, after.cell)
            for before, after in pairs
            if before.cell != after.cell
        )


def read(folder: Path) -> list[Stretch]:
    """Read every trace in a folder, its subfolders too. Raises UserError."""
    files = sorted([*folder.rglob("*.csv.gz"), *folder.rglob("*.csv")])
    found = [stretch for file in files for stretch in _stretches(file)]
    if not found:
        names = ", ".join(_COLUMNS)
        raise UserError(f"{folder}: no radio trace in it: CSV files with columns {names}")
    return found


def _stretches(file: Path) -> Iterator[Stretch]:
    """Yield the usable parts of one file; none of a file with other columns."""
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            rows = csv.DictReader(lines)
            if not set(_COLUMNS) <= set(rows.fieldnames or ()):
                return
            taken = list(_seconds(file, rows))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as CSV: {error}") from None
    part: list[Sample] = []
    count = 0
    for sample in [*taken, None]:
        if sample is not None and (not part or sample.at_s - part[-1].at_s <= PAUSE_S):
            part.append(sample)
            continue
        if part and part[-1].at_s - part[0].at_s >= LEAST_S:
            count += 1
            yield Stretch(f"{file.name}#{count}", _begun(part))
        part = [sample] if sample is not None else []


def _seconds(file: Path, rows: Iterable[dict[str, str]]) -> Iterator[Sample]:
    """Yield one sample for each second that has one on a network that counts."""
    last: Sample | None = None
    for number, row in enumerate(rows, 2):
        if number > MAX_ROWS:
            raise UserError(f"{file}: more than {MAX_ROWS} rows; shorten it")
        try:
            at = datetime.strptime(row["Timestamp"], "%Y.%m.%d_%H.%M.%S").replace(tzinfo=UTC)
            mode, rsrp, cell = row["NetworkMode"], float(row["RSRP"]), row["RAWCELLID"]
            said = row["NRxRSRP"]
            neighbour = None if said in {"-", ""} else float(said)
        except (ValueError, TypeError):
            raise UserError(f"{file}:{number}: no time, level or cell that can be read") from None
        if mode not in MODES:
            continue
        sample = Sample(at.timestamp(), cell, rsrp, neighbour)
        if last is not None and sample.at_s > last.at_s:
            yield last
        last = sample
    if last is not None:
        yield last


def _begun(part: list[Sample]) -> tuple[Sample, ...]:
    """Return samples counted from the first; what only repeats the one before is left out."""
    first = part[0].at_s
    out: list[Sample] = []
    for one in part:
        new = Sample(one.at_s - first, one.cell, one.rsrp_dbm, one.neighbour_dbm)
        before = out[-1] if out else None
        if (
            before is None
            or one is part[-1]
            or new.at_s - before.at_s >= PAUSE_S / 2
            or (new.cell, new.rsrp_dbm, new.neighbour_dbm)
            != (before.cell, before.rsrp_dbm, before.neighbour_dbm)
        ):
            out.append(new)
    return tuple(out)


class Field:
    """The level of every cell of one stretch, at any time."""

    def __init__(self, stretch: Stretch) -> None:
        self.stretch = stretch
        self._known: dict[str, list[tuple[float, float]]] = {}
        self._best: list[tuple[float, float]] = []
        """When which neighbour's level was reported, or the serving cell's where none was."""
        for sample, neighbour in _named(stretch):
            self._known.setdefault(sample.cell, []).append((sample.at_s, sample.rsrp_dbm))
            if neighbour and sample.neighbour_dbm is not None:
                one = self._known.setdefault(neighbour, [])
                one.append((sample.at_s, sample.neighbour_dbm))
            weakest = sample.rsrp_dbm
            if sample.neighbour_dbm is not None:
                weakest = min(weakest, sample.neighbour_dbm)
            self._best.append((sample.at_s, weakest))
        self._times = {cell: [at for at, _ in points] for cell, points in self._known.items()}
        self._best_times = [at for at, _ in self._best]

    @property
    def cells(self) -> tuple[str, ...]:
        """Every cell that is ever heard."""
        return tuple(self._known)

    def levels(self, at_s: float) -> dict[str, float]:
        """Return the cells that are heard now, in dBm."""
        found = {cell: self._level(cell, at_s) for cell in self._known}
        return {cell: level for cell, level in found.items() if level is not None}

    def _level(self, cell: str, at_s: float) -> float | None:
        points, times = self._known[cell], self._times[cell]
        after = bisect_right(times, at_s)
        if not after:
            return None
        before = points[after - 1]
        if after < len(points) and points[after][0] - before[0] <= PAUSE_S:
            return _between(before, points[after], at_s)
        silent_s = at_s - before[0]
        if silent_s <= PAUSE_S / 2 and after == len(points):
            return before[1]
        reported = self._reported(at_s)
        level = min(before[1], reported) - FADE_DB_PER_S * silent_s
        return level if level > reported - FADED_DB else None

    def _reported(self, at_s: float) -> float:
        after = bisect_right(self._best_times, at_s)
        before = self._best[max(after - 1, 0)]
        return _between(before, self._best[after], at_s) if after < len(self._best) else before[1]


def _between(before: tuple[float, float], after: tuple[float, float], at_s: float) -> float:
    share = (at_s - before[0]) / max(after[0] - before[0], 1e-9)
    return before[1] + min(max(share, 0.0), 1.0) * (after[1] - before[1])


def _named(stretch: Stretch) -> Iterator[tuple[Sample, str]]:
    """Yield each sample with the name that its neighbour is given."""
    samples = stretch.samples
    changes = stretch.changes
    stays = [0.0, *(at for at, _, _ in changes), stretch.seconds + 1.0]
    cells = [samples[0].cell, *(target for _, _, target in changes)]
    stay = 0
    for sample in samples:
        while sample.at_s >= stays[stay + 1]:
            stay += 1
        before = cells[stay - 1] if stay else ""
        later = cells[stay + 1] if stay + 1 < len(cells) else ""
        early = sample.at_s < (stays[stay] + stays[stay + 1]) / 2
        yield sample, ((before or later) if early else (later or before)) or UNNAMED
