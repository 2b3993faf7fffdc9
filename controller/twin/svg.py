"""Line charts as SVG, one panel below the other over a common time axis; nothing but text."""

from collections.abc import Sequence
from html import escape
from typing import Final

from msgspec import Struct

WIDTH: Final = 860
PANEL: Final = 150
LEFT, RIGHT, TOP, BOTTOM = 74, 130, 34, 40
GRID: Final = 4
COLOURS: Final = ("#2463b4", "#c8502d", "#3d8b50", "#8a5fb0", "#b08c1e")


class Line(Struct, frozen=True):
    """One curve; None in it is a gap."""

    name: str
    values: Sequence[float | None]


class Panel(Struct, frozen=True):
    """Curves on one axis."""

    title: str
    lines: Sequence[Line]


def chart(title: str, axis: str, times: Sequence[float], panels: Sequence[Panel]) -> str:
    """Return the SVG text of panels over `times`; `axis` names these."""
    height = TOP + len(panels) * (PANEL + BOTTOM)
    out = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for at, panel in enumerate(panels):
        out += _panel(panel, times, TOP + at * (PANEL + BOTTOM))
    out.append(f'<text x="{LEFT}" y="{height - 8}" fill="#444">{escape(axis)}</text></svg>')
    return "\n".join(out) + "\n"


def _panel(panel: Panel, times: Sequence[float], top: int) -> list[str]:
    first, last = (times[0], times[-1]) if times else (0.0, 1.0)
    span = (last - first) or 1.0
    highest = _round_up(max((v or 0.0 for line in panel.lines for v in line.values), default=1.0))
    width = WIDTH - LEFT - RIGHT

    def x(time: float) -> float:
        return LEFT + (time - first) / span * width

    def y(value: float) -> float:
        return top + PANEL - value / highest * (PANEL - 18)

    out = [f'<text x="{LEFT}" y="{top + 10}" fill="#222">{escape(panel.title)}</text>']
    for step in range(GRID + 1):
        value = highest * step / GRID
        out.append(
            f'<line x1="{LEFT}" x2="{LEFT + width}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
            f'stroke="#ddd"/><text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" '
            f'fill="#444">{value:g}</text>'
        )
        time = first + span * step / GRID
        out.append(
            f'<text x="{x(time):.1f}" y="{top + PANEL + 14}" text-anchor="middle" '
            f'fill="#444">{time:g}</text>'
        )
    for at, line in enumerate(panel.lines):
        colour = COLOURS[at % len(COLOURS)]
        for piece in _pieces(line.values):
            points = " ".join(f"{x(times[i]):.1f},{y(v):.1f}" for i, v in piece)
            out.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>'
            )
        out.append(
            f'<text x="{LEFT + width + 8}" y="{top + 30 + 15 * at}" fill="{colour}">'
            f"{escape(line.name)}</text>"
        )
    return out


def _pieces(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    pieces: list[list[tuple[int, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((at, value))
    return [piece for piece in pieces if piece]


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 5, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 1.0
    while power > value:
        power /= 10
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * 0.999)
