"""The pictures of a study: memory over time, mean latencies; Figures 3 and 4 of the paper."""

from collections.abc import Callable, Iterator, Mapping
from html import escape
from math import log10
from pathlib import Path
from typing import Final

from benchmarks.case_study.measure import Run
from controller.twin.svg import COLOURS, Chart, Line, Panel

WIDTH, HEIGHT = 860, 300
LEFT, TOP, LOW = 74, 48, 250
BAR: Final = 32
GAP: Final = 20

Key = tuple[str, str, str, int]


def pictures(runs: Mapping[Key, Run], folder: Path) -> None:
    """Write every picture that the runs give into a folder."""
    loads = {(trace, speed) for _, _, trace, speed in runs}
    for trace, speed in loads:
        found = {
            (case, way): run for (case, way, *load), run in runs.items() if load == [trace, speed]
        }
        suffix = f"{trace}-{speed}x"
        path = folder / f"case-latency-{suffix}.svg"
        path.write_text(latencies(found, f"{trace} at {speed}x time"), encoding="utf-8")
        for case in {case for case, _ in found}:
            ways = {way: run for (one, way), run in found.items() if one == case}
            path = folder / f"case-memory-{case}-{suffix}.svg"
            path.write_text(memory(case, ways, f"{trace} at {speed}x time"), encoding="utf-8")


def memory(case: str, ways: Mapping[str, Run], load: str) -> str:
    """Return the memory of one case over time, and its arrivals."""
    seconds = max(run.seconds for run in ways.values())
    lines = [
        Line(way, [(one.at_s, one.memory_mb) for one in run.memory]) for way, run in ways.items()
    ]
    counts = [0.0] * (int(seconds) + 1)
    for answer in next(iter(ways.values())).answers:
        counts[int(answer.at_s)] += 1
    arrivals = Line("requests", [(float(at), count) for at, count in enumerate(counts)])
    panels = (
        Panel("memory of the device agent and all that a way has (PSS), MB", lines),
        Panel("requests a second", (arrivals,)),
    )
    return Chart(f"{case}, {load}", "seconds", panels, (0.0, seconds)).svg()


def latencies(found: Mapping[tuple[str, str], Run], load: str) -> str:
    """Return the mean latencies as bars, a group for each case, over a logarithmic axis."""
    cases = list(dict.fromkeys(case for case, _ in found))
    ways = list(dict.fromkeys(way for _, way in found))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">mean latency, ms, {escape(load)}</text>',
    ]
    powers = (1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0)
    highest = max((run.mean_ms() for run in found.values()), default=1.0)
    top = next((one for one in powers[1:] if one >= highest), powers[-1])
    steps = powers.index(top)

    def y(value: float) -> float:
        return LOW - max(0.0, min(1.0, log10(max(value, 1.0)) / steps)) * (LOW - TOP)

    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - 130}" y1="{y(one):.1f}" y2="{y(one):.1f}" '
        f'stroke="#ddd"/><text x="{LEFT - 6}" y="{y(one) + 4:.1f}" text-anchor="end" '
        f'fill="#444">{one:g}</text>'
        for one in powers[: steps + 1]
    ]
    for number, case in enumerate(cases):
        start = LEFT + 10 + number * (len(ways) * BAR + GAP)
        parts += _group(found, case, ways, start, y)
    for at, way in enumerate(ways):
        parts.append(
            f'<text x="{WIDTH - 122}" y="{TOP + 14 + 15 * at}" '
            f'fill="{COLOURS[at % len(COLOURS)]}">{escape(way)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _group(
    found: Mapping[tuple[str, str], Run],
    case: str,
    ways: list[str],
    start: int,
    y: Callable[[float], float],
) -> Iterator[str]:
    for at, way in enumerate(ways):
        run = found.get((case, way))
        if run is None:
            continue
        top, x = y(run.mean_ms()), start + at * BAR
        yield (
            f'<rect x="{x}" y="{top:.1f}" width="{BAR - 4}" height="{LOW - top:.1f}" '
            f'fill="{COLOURS[at % len(COLOURS)]}"/><text x="{x + BAR / 2 - 2}" '
            f'y="{top - 4:.1f}" text-anchor="middle">{run.mean_ms():.0f}</text>'
        )
    middle = start + len(ways) * BAR / 2
    yield f'<text x="{middle}" y="{LOW + 18}" text-anchor="middle">{escape(case)}</text>'
