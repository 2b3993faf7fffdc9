"""Checks of outputs that a service declares, held where the tensor is, before it leaves.

What breaks a check is told by the number of items, never by their values: the log of calls keeps
the words. numpy does the work where the process has it; without it an item takes 0.1 us or so.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs.stream import Refusal, Value, map_file
else:
    from stream import Refusal, map_file

CODE: Final = "check-failed"
FORMATS: Final = {
    1: "f",
    2: "B",
    3: "b",
    4: "H",
    5: "h",
    6: "i",
    7: "q",
    9: "?",
    10: "e",
    11: "d",
    12: "I",
    13: "Q",
}
"""Of `struct`, by the number of the type."""

Check = "list[Any]"
"""Port, at least, at most, values, finite, fewest items, most items, form, whether to refuse."""


def hold(values: list[Value], checks: list[Any]) -> str:
    """Hold outputs against checks; what is only flagged is returned. Raises Refusal."""
    found = {name: (number, view) for name, number, _, view in values}
    flags = ""
    for port, *asked, refuse in checks:
        wrong = broken(*found[port], asked)
        if wrong and refuse:
            raise Refusal(CODE, "user", f"output {port!r} {wrong}")
        flags = flags or (f"output {port!r} {wrong}" if wrong else "")
    return flags


def hold_described(
    described: list[list[Any]], inline: list[memoryview], blobs: str, checks: list[Any]
) -> str:
    """Do as `hold` for outputs as a frame describes them. Raises Refusal."""
    if not checks:
        return ""
    small = iter(inline)
    values: list[Value] = [
        (name, number, tuple(shape), map_file(f"{blobs}/{file}", size) if file else next(small))
        for name, number, shape, size, file in described
    ]
    return hold(values, checks)


def broken(number: int, view: memoryview, asked: list[Any]) -> str:
    """Say what of a check an output breaks; empty: nothing."""
    low, high, allowed, finite, fewest, most, form = asked
    items = view.nbytes // struct.calcsize(FORMATS[number])
    if items < fewest or (most is not None and items > most):
        return f"has {items} items, {fewest} to {'any' if most is None else most} are declared"
    if form and (wrong := _misformed(bytes(view), form)):
        return wrong
    counted = _counted(number, view, low, high, allowed, finite=finite)
    for words, count in zip(("below", "above", "no number", "not among"), counted):  # noqa: B905 - four
        if count:
            return f"has {count} of {items} items {_declared(words, low, high)}"
    return ""


def _declared(words: str, low: float | None, high: float | None) -> str:
    if words == "below":
        return f"below {low:g}, the declared least"
    if words == "above":
        return f"above {high:g}, the declared most"
    return "that are no finite number" if words == "no number" else "that are not declared"


def _misformed(data: bytes, form: str) -> str:
    try:
        text = data.decode()
        if form == "json":
            json.loads(text)
    except (ValueError, RecursionError):
        return "is no JSON document" if form == "json" else "is no UTF-8 text"
    return ""


def _counted(
    number: int,
    view: memoryview,
    low: float | None,
    high: float | None,
    allowed: list[float],
    *,
    finite: bool,
) -> tuple[int, int, int, int]:
    """Count items below, above, that are no finite numbers, and that are not allowed."""
    if low is None and high is None and not allowed and not finite:
        return 0, 0, 0, 0
    least, greatest = -math.inf if low is None else low, math.inf if high is None else high
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        found = numpy.frombuffer(view, numpy.dtype(FORMATS[number]))
        odd = int(found.size - numpy.isfinite(found).sum()) if finite else int(
            numpy.isnan(found).sum()
        )  # fmt: skip
        others = 0 if not allowed else int(found.size - numpy.isin(found, allowed).sum())
        return int((found < least).sum()), int((found > greatest).sum()), odd, others
    below = above = odd = others = 0
    for (one,) in struct.iter_unpack(f"<{FORMATS[number]}", view):
        below += one < least
        above += one > greatest
        odd += not math.isfinite(one) if finite else one != one  # noqa: PLR0124 - only NaN is not itself
        others += bool(allowed) and one not in allowed
    return below, above, odd, others
