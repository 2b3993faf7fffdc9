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
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

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


Floats = NDArray[np.float64]


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
        known: dict[str, list[tuple[float, float]]] = {}
        weakest: list[float] = []
        """Of the serving cell and the neighbour that are reported."""
        for sample, neighbour in _named(stretch):
            known.setdefault(sample.cell, []).append((sample.at_s, sample.rsrp_dbm))
            weakest.append(sample.rsrp_dbm)
            if sample.neighbour_dbm is not None:
                known.setdefault(neighbour, []).append((sample.at_s, sample.neighbour_dbm))
                weakest[-1] = min(weakest[-1], sample.neighbour_dbm)
        self._known = {cell: np.array(points).T for cell, points in known.items()}
        self._times_s = np.array([one.at_s for one in stretch.samples])
        self._weakest = np.array(weakest)

    @property
    def cells(self) -> tuple[str, ...]:
        """Every cell that is ever heard."""
        return tuple(self._known)

    def levels(self, at_s: Sequence[float]) -> list[dict[str, float]]:
        """Return the cells that are heard at each of these times, in dBm."""
        times_s = np.asarray(at_s, dtype=float)
        reported = np.interp(times_s, self._times_s, self._weakest)
        out: list[dict[str, float]] = [{} for _ in at_s]
        for cell in self._known:
            levels = self._levels(cell, times_s, reported)
            for at in np.flatnonzero(np.isfinite(levels)):
                out[at][cell] = float(levels[at])
        return out

    def _levels(self, cell: str, times_s: Floats, reported: Floats) -> Floats:
        """Return one cell's level at each time; minus infinity while it is not heard."""
        known_s, known_dbm = self._known[cell]
        after = np.searchsorted(known_s, times_s, side="right")
        before = np.maximum(after - 1, 0)
        following = np.minimum(after, len(known_s) - 1)
        between = known_s[following] - known_s[before] <= PAUSE_S
        silent_s = times_s - known_s[before]
        faded = np.minimum(known_dbm[before], reported) - FADE_DB_PER_S * silent_s
        faded[faded < reported - FADED_DB] = -np.inf
        on_line = np.interp(times_s, known_s, known_dbm)
        levels: Floats = np.where(between & (silent_s <= PAUSE_S), on_line, faded)
        levels[after == 0] = -np.inf
        return levels


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
