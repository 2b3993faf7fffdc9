"""The texts of kernel files as numbers. Pure: the clock comes in, state is held per source.

A reader returns None for what it cannot take for a number: an empty file, a word, a counter that
has been set back. 0 is only ever what the kernel said.
"""

import re
from collections.abc import Callable
from typing import Final

from firmware_profiles import Parse, Source

_PERCENT = re.compile(rb"(\d+(?:\.\d+)?)\s*%")
_V3D_FIELDS: Final = 4
_LARGEST: Final = 1e18


Reader = Callable[[bytes, float], float | None]
"""Turns the text of one file, read at a (monotonic) time in ms, into a number."""


def reader(source: Source) -> Reader:
    """Return a reader for a file of this source; each file needs its own."""
    scale = source.scale
    if source.parse is Parse.MASK:
        mask = source.mask
        return lambda text, _: _masked(text, mask)
    if source.parse is Parse.V3D:
        return _V3d()
    simple: dict[Parse, Reader] = {
        Parse.NUMBER: lambda text, _: _scaled(text, scale),
        Parse.LOAD_AT: lambda text, _: _scaled(text.partition(b"@")[0], 1.0),
        Parse.PERCENTS: lambda text, _: _mean_percent(text),
        Parse.NONZERO: lambda text, _: _nonzero(text),
        Parse.RISES: _Rises(),
        Parse.RATE: _Rate(scale),
        Parse.BUSY: _Share(scale, idle=False),
        Parse.IDLE: _Share(scale, idle=True),
    }
    return simple[source.parse]


def number(text: bytes) -> float | None:
    """Return the first word as a number."""
    words = text.split(None, 1)
    if not words:
        return None
    try:
        value = float(words[0])
    except ValueError:
        return None
    return value if -_LARGEST < value < _LARGEST else None  # neither infinite nor NaN


def clamp(value: float) -> float:
    """Return a percentage within 0 and 100: two clocks never agree to the tick."""
    return min(100.0, max(0.0, value))


def _scaled(text: bytes, scale: float) -> float | None:
    value = number(text)
    return None if value is None else value * scale


def _masked(text: bytes, mask: int) -> float | None:
    try:
        return float(bool(int(text, 16) & mask))
    except ValueError:
        return None


def _nonzero(text: bytes) -> float | None:
    value = number(text)
    return None if value is None else float(value > 0)


def _mean_percent(text: bytes) -> float | None:
    values = [float(one) for one in _PERCENT.findall(text)]
    return sum(values) / len(values) if values else None


class _Rises:
    """Whether a counter of events has grown."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: float | None = None

    def __call__(self, text: bytes, now_ms: float) -> float | None:  # noqa: ARG002 - the protocol
        value = number(text)
        before, self._before = self._before, value
        return None if value is None or before is None else float(value > before)


class _Rate:
    """Growth per second, times a scale."""

    __slots__ = ("_before", "_ms", "_scale")

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._before: float | None = None
        self._ms = 0.0

    def __call__(self, text: bytes, now_ms: float) -> float | None:
        value = number(text)
        before, since = self._before, now_ms - self._ms
        if value is not None and before is not None and since <= 0:
            return None
        self._before, self._ms = value, now_ms
        if value is None or before is None or value < before:
            return None  # the first look, or a counter that started again
        return (value - before) * self._scale * 1000.0 / since


class _Share:
    """A counter of busy or idle milliseconds as a share of the time between two looks."""

    __slots__ = ("_idle", "_rate")

    def __init__(self, scale: float, *, idle: bool) -> None:
        self._rate = _Rate(scale)
        self._idle = idle

    def __call__(self, text: bytes, now_ms: float) -> float | None:
        per_second = self._rate(text, now_ms)
        if per_second is None:
            return None
        share = clamp(per_second / 10.0)
        return 100.0 - share if self._idle else share


class _V3d:
    """Lines of `queue timestamp jobs runtime`, in ns: the busiest queue's share."""

    __slots__ = ("_before",)

    def __init__(self) -> None:
        self._before: dict[bytes, tuple[int, int]] = {}

    def __call__(self, text: bytes, now_ms: float) -> float | None:  # noqa: ARG002 - the protocol
        now: dict[bytes, tuple[int, int]] = {}
        for line in text.splitlines():
            words = line.split()
            if len(words) >= _V3D_FIELDS and words[1].isdigit() and words[3].isdigit():
                now[words[0]] = (int(words[1]), int(words[3]))
        before, self._before = self._before, now
        shares = [
            100.0 * (run - before[queue][1]) / (at - before[queue][0])
            for queue, (at, run) in now.items()
            if queue in before and at > before[queue][0] and run >= before[queue][1]
        ]
        return clamp(max(shares)) if shares else None
