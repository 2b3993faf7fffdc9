"""`tona testbed run`: nodes driven through radio traces, and what their clients notice."""

import asyncio
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Option

from protocols.errors import TonaError
from tona.cli import errors
from tona.cli.context import AsJson, console, or_dash, show, show_json, table
from tona.cli.signals import Told, told_to_end, unless
from tona.cli.testbed import complain, folder_of
from tona.cli.testbed import make_ground as ground
from tona.cli.testbed_options import (
    CELLS,
    NODES,
    Control,
    Folder,
    InAddress,
    InAsk,
    InMode,
    InRadios,
    Mode,
    Nodes,
    Seed,
    SwitchMs,
    WhoMoves,
    spec_of,
)
from tona.testbed.choices import SWITCH_MS, Address, Ask, By, Radios

if TYPE_CHECKING:
    from tona.testbed.figures import Gaps, Verdict
    from tona.testbed.plan import Spec
    from tona.testbed.run import Given, Phase

HANDOVERS: Final = 1000
HANDOVERS_MAX: Final = 1_000_000
COMPARED: Final = 200
PER_S: Final = 50.0
SAID_EVERY: Final = 10
"""Where there is no bar: a line for each such part of the windows."""
STAGES: Final = ("radio", "preparing", "attaching", "switching", "parting")
"""As in `tona.testbed.stages`, which is slow to import."""
KINDS: Final = ("handover", "matched", "steady")
"""Of windows whose radio is told: how many, delay, the largest rise of it, loss."""
NAMES: Final = {"two_radios": "two radios", "one_radio": "one radio"}


def run(  # noqa: PLR0917 - options
    traces: Annotated[Path, Option(help="Folder of radio traces: CSV, packed or not.")],
    handovers: Annotated[
        int, Option(min=1, max=HANDOVERS_MAX, help="Windows around a change of the cell.")
    ] = HANDOVERS,
    cells: Annotated[int, Option(min=2, max=16, help="Cells.")] = CELLS,
    nodes: Nodes = NODES,
    radios: InRadios = Radios.BOTH,
    address: InAddress = Address.KEEP,
    switch_ms: SwitchMs = SWITCH_MS,
    make_before_break: Annotated[
        bool | None, Option(help="With it, or without; else a run with and a run without.")
    ] = None,
    compare: Annotated[
        int,
        Option(min=1, max=HANDOVERS_MAX, help="Windows at most without, after the run with it."),
    ] = COMPARED,
    control: Control = False,
    ask: InAsk = Ask.DEVICE,
    per_s: Annotated[float, Option(min=0.1, max=1000, help="Requests of each client.")] = PER_S,
    by: WhoMoves = By.TRACE,
    minutes: Annotated[
        float | None, Option(min=0.1, help="End each run after so long, with what it has.")
    ] = None,
    seed: Seed = 0,
    mode: InMode = Mode.NETNS,
    data: Folder = None,
    keep: Annotated[
        bool, Option("--keep", help="Keep the folder with logs until the next testbed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Drive nodes through radio traces and measure what their clients notice."""
    from tona.testbed.run import Given  # noqa: PLC0415 - slow to import
    from tona.testbed.timetable import timetable  # noqa: PLC0415 - the same
    from tona.testbed.tracefiles import read  # noqa: PLC0415 - the same

    spec = spec_of(cells, nodes, radios, address, by, seed, mode, switch_ms)
    found = read(traces.expanduser())
    counts = {True: handovers, False: min(handovers, compare)}
    if make_before_break is not None:
        counts = {make_before_break: handovers}
    runs = []
    for way, count in counts.items():
        table = timetable(found, spec.node_names, count, seed, control=control)
        given = Given(table, ask, per_s, by, minutes and minutes * 60)
        runs.append((msgspec.structs.replace(spec, make_before_break=way), given))
    phases, end = asyncio.run(_phases(runs, mode, folder_of(data), keep))
    if as_json:
        said = {"mode": mode.value, "spec": spec, "seed": seed, "per_s": per_s, "phases": phases}
        show_json(msgspec.json.encode(said))
    else:
        draw(phases)
    if end is not None:
        raise end if isinstance(end, TonaError) else typer.Exit(errors.INTERRUPTED)


async def _phases(
    runs: "list[tuple[Spec, Given]]", mode: Mode, folder: Path, keep: bool
) -> "tuple[list[Phase], signal.Signals | TonaError | None]":
    """Run one after the other, until the last, a signal or a failure; those before it count."""
    from tona.testbed.bed import clear  # noqa: PLC0415 - slow to import

    told = told_to_end()
    phases: list[Phase] = []
    for spec, given in runs:
        with Stage(sum(map(len, given.timetable.values()))) as stage:
            try:
                phase = await _phase(spec, given, mode, folder, told, stage)
            except TonaError as error:
                return phases, error
        if not keep:
            clear(folder)
        phases += [phase] if phase is not None else []
        if told.done():
            return phases, told.result()
    return phases, None


async def _phase(
    spec: "Spec", given: "Given", mode: Mode, folder: Path, told: Told, stage: "Stage"
) -> "Phase | None":
    """Run on a testbed of its own, and take that down; None: nothing was driven yet."""
    from tona.testbed.bed import Bed, hold  # noqa: PLC0415 - slow to import
    from tona.testbed.run import Run  # noqa: PLC0415 - the same

    lock = hold(folder)
    try:
        bed = Bed(ground(spec, mode, folder), folder, complain, measured=True)
        one = Run(bed, given, complain, stage)
        try:
            await unless(told, one.run())
        finally:
            stage.step("it is taken down")
            await one.stop()
        return one.phase() if one.began else None
    finally:
        lock.close()


class Stage:
    """Shows a run on the standard error output: a bar on a terminal, lines elsewhere."""

    def __init__(self, windows: int) -> None:
        self._out = console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=self._out, transient=True)
        self._all = self._bar.add_task("windows", total=windows)
        self._windows = windows
        self._passed = 0
        self._begun_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._out.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, text: str) -> None:
        """Say what happens now."""
        self._out.print(f"→ {text}", soft_wrap=True)

    def advanced(self) -> None:
        """Move the bar; say from time to time how far it is."""
        self._bar.advance(self._all)
        if self._out.is_terminal:
            return
        self._passed += 1
        part = self._windows / SAID_EVERY
        if self._passed // part > (self._passed - 1) // part:
            since_s = time.monotonic() - self._begun_s
            left_min = since_s * (self._windows / self._passed - 1) / 60
            self.step(f"{self._passed} of {self._windows} windows, {left_min:.0f} min to go")


def draw(phases: "list[Phase]") -> None:
    """Print what came of the runs, side by side."""
    columns = [
        (phase, name, one) for phase in phases for name, one in sorted(phase.verdicts.items())
    ]
    if not columns:
        show("nothing was measured")
        return
    heads = [f">{NAMES[name].upper()}" for _, name, _ in columns]
    made = table("", *heads)
    ways = [
        "make before break" if one.make_before_break else "break first" for one, _, _ in columns
    ]
    made.add_row("", *ways)
    for label, value in _ROWS:
        made.add_row(label, *(value(one) for _, _, one in columns))
    show(made)
    for phase in phases:
        rest = "" if phase.whole else ", cut short"
        how = f"asked {phase.ask}, moved by {phase.by}, {phase.elapsed_s:.0f} s"
        show(f"{_way(phase)}: {how}, load {phase.load:.1f}{rest}")
        for reason in phase.reasons:
            show(f"  {reason}")


def _way(phase: "Phase") -> str:
    return "make before break" if phase.make_before_break else "break first"


def _ms(value: float | None) -> str:
    return or_dash(value, "{:.1f} ms")


def _radio(one: "Verdict", kind: str) -> str:
    gaps: Gaps | None = getattr(one, kind)
    if gaps is None or gaps.radio is None:
        return "-"
    delay_ms, rise_ms, loss = gaps.radio.delay_ms, gaps.radio.rise_ms, gaps.radio.loss_percent
    return f"{gaps.different}: {delay_ms:.1f}, {rise_ms:.1f} ms, {loss:.3f} %"


def _longer(one: "Verdict", stage: str) -> str:
    share = {str(at): found for at, found in one.stages.items()}.get(stage)
    return "-" if share is None else f"{share.longer} of {share.gaps}, {share.max_ms:.1f} ms"


_ROWS: Final[tuple[tuple[str, Any], ...]] = (
    ("nodes", lambda one: str(one.nodes)),
    ("requests", lambda one: str(one.sent)),
    ("lost", lambda one: str(one.lost)),
    ("doubled", lambda one: str(one.doubled)),
    ("repeated, dropped by the client", lambda one: str(one.repeated)),
    ("asked again", lambda one: str(one.retries)),
    ("handovers", lambda one: str(one.handovers)),
    ("failed", lambda one: str(one.failed)),
    ("latency p50", lambda one: _ms(one.latency_p50_ms)),
    ("latency p99", lambda one: _ms(one.latency_p99_ms)),
    ("windows of each kind", lambda one: f"{one.handover.windows}, {one.steady.windows}"),
    ("gap p50, handover", lambda one: _ms(one.handover.p50_ms)),
    ("gap p50, steady", lambda one: _ms(one.steady.p50_ms)),
    ("gap p99.9, handover", lambda one: _ms(one.handover.p999_ms)),
    ("gap p99.9, steady", lambda one: _ms(one.steady.p999_ms)),
    ("gap p99.9, matched", lambda one: _ms(one.matched and one.matched.p999_ms)),
    ("gap p99.9, control", lambda one: _ms(one.control and one.control.p999_ms)),
    ("longest gap, handover", lambda one: _ms(one.handover.max_ms)),
    ("longest gap, steady", lambda one: _ms(one.steady.max_ms)),
    ("gap_ratio", lambda one: or_dash(one.gap_ratio, "{:.2f}")),
    ("matched_ratio", lambda one: or_dash(one.matched_ratio, "{:.2f}")),
    ("radio_ratio", lambda one: or_dash(one.radio_ratio, "{:.2f}")),
    *((f"radio, {kind}", lambda one, kind=kind: _radio(one, kind)) for kind in KINDS),
    *(
        (f"longer than steady p99.9: {stage}", lambda one, at=stage: _longer(one, at))
        for stage in STAGES
    ),
)
