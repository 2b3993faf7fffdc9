"""The tables of a study as Markdown, and the page that holds them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.case_study.measure import Run
from benchmarks.harness.processes import ROOT
from benchmarks.harness.report import between

PAGE: Final = ROOT / "docs" / "casestudy.md"
PICTURES: Final = ROOT / "docs" / "pictures"
HEAD: Final = (
    "| case | trace | way | requests | mean ms | p50 | p99 | memory MB s | mean MB | peak MB "
    "| CPU ms a request | CPU % | failed |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def write(
    runs: Mapping[tuple[str, str, str, int], Run],
    rates: Mapping[str, float],
    cpu_ms: Mapping[tuple[str, str], float],
    bounds: Mapping[str, tuple[float, float, bool]],
    beside: Mapping[str, tuple[float, float]],
) -> str:
    """Return all tables."""
    parts = ["| figure | value | bound | |\n|---|---|---|---|\n"]
    for name, (value, bound, least) in bounds.items():
        met = value >= bound if least else value <= bound
        side = "at least" if least else "at most"
        parts.append(f"| `{name}` | **{value:.2f}** | {side} {bound:g} | {_verdict(met=met)} |\n")
    parts.append("\n| ours / what stays warm too | mean latency | memory |\n|---|---|---|\n")
    for name, (latency, memory) in beside.items():
        parts.append(f"| {name} | {latency:.2f} | {memory:.2f} |\n")
    parts.append("\n| case | requests a second | CPU ms of a request, one after another |\n")
    parts.append("|---|---|---|\n")
    for case, rate in rates.items():
        taken = ", ".join(f"{way} {ms:.0f}" for (one, way), ms in cpu_ms.items() if one == case)
        parts.append(f"| {case} | {rate:.2f} | {taken} |\n")
    return "".join(parts) + "\n" + rows(runs)


def rows(runs: Mapping[tuple[str, str, str, int], Run]) -> str:
    """Return the table of all runs."""
    parts = [HEAD]
    for (case, way, trace, speed), run in sorted(runs.items(), key=lambda one: _place(one[0])):
        told = run.figures()
        parts.append(
            f"| {case} | {trace} {speed}x | {way} | {told['requests']:.0f} | {told['mean_ms']:.1f} "
            f"| {told['p50_ms']:.1f} | {told['p99_ms']:.1f} | {told['memory_integral_mb_s']:.0f} "
            f"| {told['memory_mean_mb']:.0f} | {told['memory_peak_mb']:.0f} "
            f"| {told['cpu_ms_per_request']:.0f} | {told['cpu_percent']:.0f} "
            f"| {told['failed']:.0f} |\n"
        )
    return "".join(parts)


def _verdict(*, met: bool) -> str:
    return "met" if met else "not met"


def _place(key: tuple[str, str, str, int]) -> tuple[str, str, int]:
    case, _, trace, speed = key
    return case, trace, -speed


def renew(told: str, every: str, page: Path = PAGE) -> None:
    """Replace the figures of the page, those of every rate only where there are some."""
    text = between(page.read_text(encoding="utf-8"), "figures", told)
    if every:
        text = between(text, "every rate", every)
    page.write_text(text, encoding="utf-8")
