"""A story as a picture: what users met over time, with the loops and without, and what was done."""

from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 900
LEFT: Final = 64
RIGHT: Final = 16
PLOT_HEIGHT: Final = 180
GAP: Final = 56
TOP: Final = 46
_COLOURS: Final = {"on": "#0a6ebd", "off": "#b0413e"}
_NAMES: Final = {"on": "loops on", "off": "loops off"}


class Series(NamedTuple):
    """Points of one run: seconds and a value."""

    run: str
    """`on` or `off`."""
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """One diagram."""

    title: str
    series: Sequence[Series]
    target: float | None = None
    top: float | None = None
    """Highest value shown; None: the highest there is."""


def draw(
    title: str,
    panels: Sequence[Panel],
    marks: Sequence[tuple[float, str]],
    span_s: float,
) -> str:
    """Return an SVG of panels over one time axis; `marks` are moments with a word each."""
    rows = [_clip(text) for _, text in marks]
    notes_top = TOP + len(panels) * (PLOT_HEIGHT + GAP)
    height = notes_top + 18 * len(rows) + 16
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#222">'
    )
    parts = [
        head,
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for at, panel in enumerate(panels):
        parts += _panel(panel, TOP + at * (PLOT_HEIGHT + GAP), marks, span_s)
    for at, ((second, _), text) in enumerate(zip(marks, rows, strict=True)):
        y = notes_top + 18 * at
        parts.append(f'<text x="{LEFT}" y="{y}">{at + 1}: {second:.1f} s, {escape(text)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _panel(panel: Panel, top: int, marks: Sequence[tuple[float, str]], span_s: float) -> list[str]:
    values = [value for one in panel.series for _, value in one.points]
    high = panel.top if panel.top is not None else max([*values, panel.target or 0.0, 1e-9]) * 1.05
    wide, low = WIDTH - LEFT - RIGHT, top + 16 + PLOT_HEIGHT

    def place(second: float, value: float) -> str:
        x = LEFT + wide * min(second, span_s) / span_s
        return f"{x:.1f},{low - PLOT_HEIGHT * min(value, high) / high:.1f}"

    parts = [f'<text x="{LEFT}" y="{top + 8}">{escape(panel.title)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = low - PLOT_HEIGHT * share
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{high * share:.3g}</text>'
        )
    for second in range(0, int(span_s) + 1, 5):
        x = LEFT + wide * second / span_s
        parts.append(f'<text x="{x:.1f}" y="{low + 15}" text-anchor="middle">{second} s</text>')
    if panel.target is not None:
        start, end = place(0, panel.target), place(span_s, panel.target)
        parts.append(
            f'<polyline points="{start} {end}" stroke="#777" stroke-dasharray="5 4" fill="none"/>'
        )
    for at, (second, _) in enumerate(marks):
        x = LEFT + wide * min(second, span_s) / span_s
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + 16}" y2="{low}" stroke="#888" '
            f'stroke-dasharray="2 3"/><text x="{x + 3:.1f}" y="{top + 26}">{at + 1}</text>'
        )
    for at, one in enumerate(panel.series):
        colour, points = _COLOURS[one.run], " ".join(place(*point) for point in one.points)
        parts.append(
            f'<polyline points="{points}" stroke="{colour}" fill="none" stroke-width="1.6"/>'
            f'<text x="{WIDTH - RIGHT - 150 + 76 * at}" y="{top + 8}" fill="{colour}">'
            f"{_NAMES[one.run]}</text>"
        )
    return parts


def _clip(text: str, longest: int = 130) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
