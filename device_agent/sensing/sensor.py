"""One quantity, read where the profile says: sources in order, files kept open."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from device_agent.sensing.files import KernelFile, expand, fits, open_all
from device_agent.sensing.parsing import Reader, number, reader
from firmware_profiles import Parse, Source

RESCAN_SAMPLES: Final = 300
"""A sensor that gives nothing for so many samples is looked for again (a driver came late)."""
MAX_CHANNELS: Final = 16
_MICROWATT: Final = 1e-6

Combine = Callable[[list[float]], float]


class _File:
    """One file of a source."""

    __slots__ = ("_file", "_reader")

    def __init__(self, file: KernelFile, read: Reader) -> None:
        self._file = file
        self._reader = read

    def read(self, now_ms: float) -> float | None:
        text = self._file.read()
        return None if text is None else self._reader(text, now_ms)

    def close(self) -> None:
        self._file.close()


class _Rail:
    """One channel of a power monitor: millivolt and milliampere."""

    __slots__ = ("_current", "_voltage")

    def __init__(self, voltage: KernelFile, current: KernelFile) -> None:
        self._voltage = voltage
        self._current = current

    def read(self, now_ms: float) -> float | None:  # noqa: ARG002 - as every file of a source
        voltage, current = self._voltage.read(), self._current.read()
        if voltage is None or current is None:
            return None
        millivolt, milliampere = number(voltage), number(current)
        if millivolt is None or milliampere is None:
            return None
        return millivolt * milliampere * _MICROWATT

    def close(self) -> None:
        self._voltage.close()
        self._current.close()


class _Resolved:
    """A source with its open files."""

    __slots__ = ("_combine", "_every", "files")

    def __init__(self, files: list[_File | _Rail], combine: Combine, *, every: bool) -> None:
        self.files = files
        self._combine = combine
        self._every = every

    def read(self, now_ms: float) -> float | None:
        values = [value for file in self.files if (value := file.read(now_ms)) is not None]
        if not values or (self._every and len(values) < len(self.files)):
            return None  # a sum that lacks a part would be a wrong sum
        return values[0] if len(values) == 1 else self._combine(values)


class Sensor:
    """A quantity with its alternatives. Reading returns None where there is none, never 0."""

    def __init__(
        self,
        root: Path,
        sources: tuple[Source, ...],
        combine: Combine = max,
        *,
        base: Path | None = None,
        union: bool = False,
        low: float = float("-inf"),
        high: float = float("inf"),
    ) -> None:
        """Find the files. `union` asks every source and combines; else the first one counts.

        A value outside of `low` and `high` is none: it is how drivers say "not now".
        """
        self._root = root
        self._sources = sources
        self._combine = combine
        self._base = base
        self._union = union
        self._low = low
        self._high = high
        self._empty = 0
        self.refused: tuple[str, ...] = ()
        """Files that are there and not ours to read."""
        self._resolved: list[_Resolved] = []
        self._resolve()

    @property
    def found(self) -> bool:
        """Whether any source has a file."""
        return bool(self._resolved)

    def read(self, now_ms: float) -> float | None:
        """Return the value at this (monotonic) time, or None."""
        if not self._sources:
            return None
        value = self._all(now_ms) if self._union else self._first(now_ms)
        if value is None:
            self._empty += 1
            if self._empty >= RESCAN_SAMPLES:
                self.close()
                self._resolve()
        else:
            self._empty = 0
        return value

    def close(self) -> None:
        """Close every file."""
        for one in self._resolved:
            for file in one.files:
                file.close()
        self._resolved = []

    def _first(self, now_ms: float) -> float | None:
        for one in self._resolved:
            value = one.read(now_ms)
            if value is not None and self._low <= value <= self._high:
                return value
        return None

    def _all(self, now_ms: float) -> float | None:
        values = [value for one in self._resolved if (value := one.read(now_ms)) is not None]
        return self._combine(values) if values else None

    def _resolve(self) -> None:
        self._empty = 0
        refused: list[str] = []
        for source in self._sources:
            if source.parse is Parse.RAILS:
                files: list[_File | _Rail] = self._rails(source)
            else:
                paths = tuple(
                    path
                    for path in expand(self._root, source.path, self._base)
                    if fits(path.parent, source.where)
                )
                found = open_all(paths, self._root)
                refused.extend(found.refused)
                files = [_File(file, reader(source)) for file in found.files]
            if files:
                rails = source.parse is Parse.RAILS
                combine = sum if rails else self._combine
                self._resolved.append(_Resolved(files, combine, every=rails))
        self.refused = tuple(refused)

    def _rails(self, source: Source) -> list[_File | _Rail]:
        """Find the labelled channels; all of them or none."""
        wanted = set(source.rails)
        rails: list[_File | _Rail] = []
        for folder in expand(self._root, source.path, self._base):
            if not fits(folder, source.where):
                continue
            for channel in range(1, MAX_CHANNELS + 1):
                label = next(
                    (one for one in wanted if fits(folder, {f"in{channel}_label": one})), None
                )
                if label is None:
                    continue
                pair = open_all(
                    (folder / f"in{channel}_input", folder / f"curr{channel}_input"), self._root
                ).files
                if len(pair) == 2:  # noqa: PLR2004 - voltage and current
                    rails.append(_Rail(*pair))
                    wanted.discard(label)
                else:
                    for file in pair:
                        file.close()
        if wanted:
            for rail in rails:
                rail.close()
            return []
        return rails
