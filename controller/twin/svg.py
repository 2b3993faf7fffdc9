"""Line charts as SVG, one panel below the other over a common axis; nothing but text."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from msgspec import Struct

WIDTH: Final = 860
PANEL: Final = 150
LEFT, RIGHT, TOP, BOTTOM = 74, 130, 34, 40
HEAD: Final = 18
"""Of a panel, for its title."""
NOTE: Final = 16
GRID: Final = 4
COLOURS: Final = ("#2463b4", "#c8502d", "#3d8b50", "#8a5fb0", "#b08c1e", "#20242a")
LONGEST_NOTE: Final = 118


class Line(Struct, frozen=True):
    """One curve through points of place on the axis and value; a value of None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


class Panel(Struct, frozen=True):
    """Curves on one axis; higher than `top` is drawn at `top`."""

    title: str
    lines: Sequence[Line]
    target: float | None = None
    """Drawn as a dashed line."""
    top: float | None = None
    """None: a round number above everything."""


class Mark(Struct, frozen=True):
    """A place on the axis, numbered in the panels and told below them."""

    at: float
    text: str


class Chart(Struct, frozen=True):
    """A picture; `axis` names what the panels have in common."""

    title: str
    axis: str
    panels: Sequence[Panel]
    span: tuple[float, float]
    """First and last place on the axis."""
    marks: Sequence[Mark] = ()

    def svg(self) -> str:
        """Return the picture's text."""
        low = TOP + len(self.panels) * (PANEL + BOTTOM)
        height = low + NOTE * len(self.marks)
        parts = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
                f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">'
            ),
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{LEFT}" y="18" font-size="14">{escape(self.title)}</text>',
        ]
        for at, panel in enumerate(self.panels):
            parts += self._panel(panel, TOP + at * (PANEL + BOTTOM))
        parts.append(f'<text x="{LEFT}" y="{low - 8}" fill="#444">{escape(self.axis)}</text>')
        for at, mark in enumerate(self.marks):
            y = low + NOTE * at + 8
            text = escape(_clip(f"{at + 1}: {mark.at:.1f}, {mark.text}"))
            parts.append(f'<text x="{LEFT}" y="{y}">{text}</text>')
        return "\n".join([*parts, "</svg>\n"])

    def _x(self, at: float) -> float:
        first, last = self.span
        inside = min(max(at, first), last)
        return LEFT + (inside - first) / ((last - first) or 1.0) * (WIDTH - LEFT - RIGHT)

    def _panel(self, panel: Panel, top: int) -> Iterator[str]:
        highest = panel.top or _round_up(_highest(panel))
        left, right, low = LEFT, WIDTH - RIGHT, top + PANEL

        def y(value: float) -> float:
            return low - min(value, highest) / highest * (PANEL - HEAD)

        yield f'<text x="{LEFT}" y="{top + 10}" fill="#222">{escape(panel.title)}</text>'
        for step in range(GRID + 1):
            value = highest * step / GRID
            yield (
                f'<line x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                f'stroke="#ddd"/><text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end" '
                f'fill="#444">{value:g}</text>'
            )
            at = self.span[0] + (self.span[1] - self.span[0]) * step / GRID
            yield (
                f'<text x="{self._x(at):.1f}" y="{low + 14}" text-anchor="middle" '
                f'fill="#444">{at:g}</text>'
            )
        if panel.target is not None:
            yield (
                f'<line x1="{left}" x2="{right}" y1="{y(panel.target):.1f}" '
                f'y2="{y(panel.target):.1f}" stroke="#777" stroke-dasharray="5 4"/>'
            )
        for number, mark in enumerate(self.marks, 1):
            x = self._x(mark.at)
            yield (
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + HEAD}" y2="{low}" stroke="#888" '
                f'stroke-dasharray="2 3"/><text x="{x + 3:.1f}" y="{top + HEAD + 8}" '
                f'fill="#666">{number}</text>'
            )
        for at, line in enumerate(panel.lines):
            colour = COLOURS[at % len(COLOURS)]
            for piece in _pieces(line.points):
                points = " ".join(f"{self._x(one):.1f},{y(value):.1f}" for one, value in piece)
                yield (
                    f'<polyline points="{points}" fill="none" stroke="{colour}" '
                    'stroke-width="1.4"/>'
                )
            yield (
                f'<text x="{right + 8}" y="{top + 30 + 15 * at}" fill="{colour}">'
                f"{escape(line.name)}</text>"
            )


def _highest(panel: Panel) -> float:
    values = [value or 0.0 for line in panel.lines for _, value in line.points]
    return max([*values, panel.target or 0.0], default=1.0)


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    pieces: list[list[tuple[float, float]]] = [[]]
    for at, value in points:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append((at, value))
    return [piece for piece in pieces if piece]


def _clip(text: str) -> str:
    return text if len(text) <= LONGEST_NOTE else text[: LONGEST_NOTE - 1] + "…"


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 4, 5, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** (len(str(int(value))) - 1) if value >= 1 else 1.0
    while power > value:
        power /= 10
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * 0.999)
