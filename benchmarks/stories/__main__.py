"""Tell the stories, with the loops and without, and draw them."""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.harness.report import RESULTS, Report, options, percentile, progress
from benchmarks.stories import work
from benchmarks.stories.stage import Run, stage, told
from benchmarks.stories.tales import (
    CAUSE_S,
    END_S,
    SERVICE,
    SPAN_S,
    TARGET_MS,
    Tale,
    cast,
    prepare_camera,
    silenced,
    tales,
)
from controller.twin.svg import Chart, Line, Mark, Panel

SETTLE_S: Final = 4.0
"""After the cause: what is met meanwhile belongs to the reaction."""
PHASES: Final = {
    "before": (0.0, CAUSE_S),
    "reaction": (CAUSE_S, CAUSE_S + SETTLE_S),
    "during": (CAUSE_S + SETTLE_S, END_S),
    "after": (END_S + SETTLE_S / 2, SPAN_S),
}
WINDOW_S: Final = 1.0
MARKS: Final = 12
"""Events of a picture."""


async def tell(tale: Tale, folder: Path, turns_per_ms: float, *, loops: bool) -> Run:
    """Tell one tale once, on a cell of its own."""
    flags = [f"--files={folder / 'files'}"] if tale.name == "data" else []
    prepare_camera(folder / "files")
    async with stage(folder, dict(tale.nodes), flags, tale.users_apart) as one:
        document = tale.document(await cast(one, turns_per_ms))
        await one.submit(document if loops else silenced(document))
        return await told(one, SERVICE, SPAN_S, tale.acts)


def satisfaction(run: Run, target_ms: float, start_s: float, end_s: float) -> float | None:
    """Return the share of users and seconds inside the zone: each user's p95 within each second.

    Without users of our own, the mean of what the controller says.
    """
    if not run.met:
        ratios = [
            one.satisfaction_ratio
            for one in run.seen
            if start_s <= one.at_s < end_s and one.satisfaction_ratio is not None
        ]
        return sum(ratios) / len(ratios) if ratios else None
    windows: dict[tuple[str, int], list[float]] = {}
    for one in run.met:
        if start_s <= one.at_s < end_s:
            met_ms = float("inf") if one.latency_ms is None else one.latency_ms
            windows.setdefault((one.user, int(one.at_s / WINDOW_S)), []).append(met_ms)
    if not windows:
        return None
    good = sum(percentile(met, 95) <= target_ms for met in windows.values())
    return good / len(windows)


def draw(tale: Tale, runs: dict[str, Run], path: Path) -> None:
    """Draw what users met and how satisfied they were, with the marks of the telling."""
    seconds = range(int(SPAN_S))
    ratio = [
        Line(
            f"loops {name}",
            [(at + 0.5, satisfaction(run, TARGET_MS, at, at + 1)) for at in seconds],
        )
        for name, run in runs.items()
    ]
    latency = [
        Line(
            f"loops {name}",
            sorted((one.at_s, one.latency_ms) for one in run.met if one.latency_ms is not None)
            if run.met
            else [(one.at_s, one.latency_ms) for one in run.seen if one.latency_ms is not None],
        )
        for name, run in runs.items()
    ]
    marks = [Mark(CAUSE_S, f"cause: {tale.cause}"), Mark(END_S, "the cause ends")]
    marks += [
        Mark(one.at_s, f"{one.layer} {one.event}: {one.detail}")
        for one in runs["on"].events
        if one.at_s > CAUSE_S / 2
    ][:MARKS]
    panels = [
        Panel("latency of requests, ms", latency, TARGET_MS, 5 * TARGET_MS),
        Panel("satisfaction ratio", ratio, None, 1.0),
    ]
    marks.sort(key=lambda one: one.at)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = Chart(tale.title, "seconds", panels, (0.0, SPAN_S), marks).svg()
    path.write_text(drawn, encoding="utf-8")


def report_on(report: Report, tale: Tale, runs: dict[str, Run]) -> None:
    """Take the figures of one tale in."""
    for name, run in runs.items():
        for phase, (start_s, end_s) in PHASES.items():
            found = satisfaction(run, TARGET_MS, start_s, end_s)
            if found is not None:
                report.figure(f"{tale.name}_{name}_{phase}_ratio", found)
        report.figure(f"{tale.name}_{name}_answered_count", run.answered)
        report.figure(f"{tale.name}_{name}_refused_count", run.refused)
    answers = [
        one
        for one in runs["on"].events
        if one.at_s >= CAUSE_S
        and (one.layer == tale.layer or (tale.layer == "namo" and "decomposition" in one.detail))
    ]
    said = "; ".join(f"{one.at_s - CAUSE_S:.1f} s {one.event}: {one.detail}" for one in answers[:4])
    report.note(f"{tale.name}: {tale.cause}; {tale.layer} answered after the cause: {said or 'no'}")


async def main() -> None:
    """Run the stories."""
    parser = options("stories", __doc__ or "")
    parser.add_argument("names", nargs="*", help="which; without any, all")
    parser.add_argument("--plots", type=Path, default=RESULTS, help="where the pictures go")
    asked = parser.parse_args()
    report = Report("stories")
    turns = work.turns_per_ms()
    chosen = [one for one in tales() if not asked.names or one.name in asked.names]
    if not chosen:
        sys.exit(
            f"stories: there is none of {', '.join(asked.names)}; there are "
            + ", ".join(one.name for one in tales())
        )
    for tale in chosen:
        runs = {}
        for name in ("on", "off"):
            progress(f"{tale.name}, loops {name}")
            with tempfile.TemporaryDirectory(prefix="tona-story-") as folder:
                runs[name] = await tell(tale, Path(folder), turns, loops=name == "on")
        report_on(report, tale, runs)
        draw(tale, runs, asked.plots / f"story-{tale.name}.svg")
        raw = {name: [one._asdict() for one in run.events] for name, run in runs.items()}
        path = RESULTS / f"story-{tale.name}.json"
        path.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    report.note(
        "Ratio: share of users and seconds with the user's p95 inside the zone, as the users met "
        "it (data: as the controller measured it). Loops off: the same use case with autonomy "
        "`manual`, and nobody there to approve."
    )
    report.close()


if __name__ == "__main__":
    asyncio.run(main())
