"""The result of a benchmark: figures, a table for people, a file for programs."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

RESULTS: Final = Path(__file__).parents[1] / "results"


def options(benchmark: str, text: str) -> argparse.ArgumentParser:
    """Return the parser that every benchmark begins with."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}", description=text)
    parser.add_argument("--quick", action="store_true", help="a short run, for a first look")
    return parser


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile (`share` in percent) of a sample, between its neighbours linearly."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median(values: Sequence[float]) -> float:
    """Return the 50th percentile."""
    return percentile(values, 50)


def machine() -> dict[str, str | int | float]:
    """Return what the figures were measured on."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "arch": platform.machine(),
        "system": _pretty_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": memory_bytes >> 20,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _pretty_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


class Report:
    """Figures in the order they come; a name ends in its unit."""

    def __init__(self, benchmark: str) -> None:
        self._benchmark = benchmark
        self._machine = machine()
        self._figures: dict[str, float] = {}
        self._bounds: dict[str, tuple[float, bool]] = {}
        self._notes: list[str] = []

    def figure(
        self, name: str, value: float, bound: float | None = None, *, least: bool = False
    ) -> None:
        """Take a figure in; with a bound it should be at most that, with `least` at least."""
        self._figures[name] = round(value, 4)
        if bound is not None:
            self._bounds[name] = (bound, least)

    def note(self, text: str) -> None:
        """Take in what a reader must know of the figures."""
        self._notes.append(text)

    def close(self) -> Path:
        """Print the table, write the file and return where it lies."""
        self._print()
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self._benchmark}.json"
        said = {
            "benchmark": self._benchmark,
            "machine": self._machine,
            "figures": self._figures,
            "notes": self._notes,
        }
        path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        print(f"\n{path}")
        return path

    def _print(self) -> None:
        said = ", ".join(f"{name} {value}" for name, value in self._machine.items())
        print(f"\n{self._benchmark}: {said}\n")
        width = max(map(len, self._figures), default=0)
        for name, value in self._figures.items():
            line = f"  {name:<{width}}  {value:>12,.3f}"
            if name in self._bounds:
                bound, least = self._bounds[name]
                met = value >= bound if least else value <= bound
                line += f"   bound {bound:g}, {'met' if met else 'NOT met'}"
            print(line)
        for note in self._notes:
            print(f"  - {note}")


def progress(text: str) -> None:
    """Say on stderr what happens now."""
    print(f"  ... {text}", file=sys.stderr, flush=True)


def between(page: str, name: str, text: str) -> str:
    """Return a page of Markdown with this text between its marks of a name. Raises ValueError."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no marks of {name!r}")
    return f"{before}{begin}\n{text}\n{end}{after}"
