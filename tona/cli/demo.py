"""`tona demo`: the demonstration on the terminal."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.status import Status
from rich.text import Text
from typer import Option

from controller.broker.spec import check_spec
from controller.records import NodeView
from protocols.errors import TonaError
from tona.bundle import File
from tona.cli import draw, errors
from tona.cli.context import AsJson, console, details, or_dash, put
from tona.cli.signals import told_to_end, unless
from tona.demo import material
from tona.demo.summary import Failover, Latency, Placed, Reading, Summary
from tona.local.cell import Plan

if TYPE_CHECKING:
    from tona.demo.story import Given

SIGNALLED: Final = 128
"""What a shell adds to the number of the signal that ended a process."""
NODES: Final = 3
NODES_MIN: Final = 2
NODES_MAX: Final = 8


def demo(
    images: Annotated[
        Path | None, Option(help="Read every image of this folder instead of the two pages.")
    ] = None,
    nodes: Annotated[int, Option(min=NODES_MIN, max=NODES_MAX, help="Device agents.")] = NODES,
    broker: Annotated[str, Option(help="embedded, or mosquitto where it is installed.")] = (
        "embedded"
    ),
    keep: Annotated[bool, Option("--keep", help="Keep the folder with data and logs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the whole loop on this machine: a cell, a chain that reads text, a node that dies."""
    from tona.demo.story import Given  # noqa: PLC0415 - slow to import

    check_spec(broker)
    use_case = material.use_case()
    page, text = material.pictures()
    chosen = (page, text) if images is None else tuple(material.images_in(images))
    stage = Stage(console(stderr=True) if as_json else console(), printing=not as_json)
    with _folder(keep, stage) as folder:
        plan = Plan(folder=folder, nodes=nodes, broker=broker)
        try:
            summary = asyncio.run(_shown(Given(use_case, page, chosen, plan), stage))
        except TonaError:
            if not keep:
                stage.said("run it again with --keep to look at the logs")
            raise
        finally:
            stage.close()
    if as_json:
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    else:
        stage.summary(summary)
    if not summary.ok:
        raise typer.Exit(errors.UNAVAILABLE)


async def _shown(given: "Given", stage: "Stage") -> Summary:
    """Run the demonstration unless a signal ends it; every process ends with it."""
    from tona.demo.story import run  # noqa: PLC0415 - slow to import

    told = told_to_end()
    summary = await unless(told, run(given, stage))
    if summary is None:
        raise typer.Exit(SIGNALLED + told.result())
    return summary


@contextmanager
def _folder(keep: bool, stage: "Stage") -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tona-demo-"))
    try:
        yield folder
    finally:
        if keep:
            stage.said(f"data and logs are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


class Stage:
    """Shows a run: a spinner where there is a terminal, plain lines where there is none."""

    def __init__(self, out: Console, *, printing: bool) -> None:
        self._out = out
        self._printing = printing
        self._status: Status | None = None
        self._progress: Progress | None = None
        self._task = None

    def step(self, text: str) -> None:
        """Say what happens now."""
        self.close()
        self._out.print(f"→ {text}", style="bold", soft_wrap=True)
        if self._out.is_terminal:
            self._status = self._out.status(text)
            self._status.start()

    def said(self, text: str) -> None:
        """Say what came of it."""
        self._out.print(f"  {text}", soft_wrap=True)

    def reading(self, one: Reading) -> None:
        """Print FILE, a tab and TEXT; an error goes to the standard error output."""
        self.close()
        if one.error:
            print(f"{one.file}: {one.error}", file=sys.stderr)  # noqa: T201 - what we are for
        elif self._printing:
            sys.stdout.write(f"{one.file}\t{one.text}\n")
            sys.stdout.flush()

    def pushing(self, files: Sequence[File]) -> None:
        """Begin a progress bar."""
        self.close()
        if self._out.is_terminal:
            columns = (TextColumn("  pushing"), BarColumn(), DownloadColumn())
            self._progress = Progress(*columns, console=self._out, transient=True)
            self._progress.add_task("", total=sum(file.size_bytes for file in files))
            self._progress.start()

    def pushed(self, count: int) -> None:
        """Move the progress bar."""
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0], count)

    def fleet(self, nodes: Sequence[NodeView]) -> None:
        """Print the table of the fleet."""
        self.close()
        put(self._out, draw.fleet(nodes, self._out.width))

    def placed(self, tasks: Sequence[Placed]) -> None:
        """Print a line for each task."""
        self.close()
        length = max((len(one.task) for one in tasks), default=0)
        for one in tasks:
            line = f"  {one.task.ljust(length)} on {one.node or '-'}: {one.why}"
            self._out.print(line, soft_wrap=True)

    def close(self) -> None:
        """End what moves on the screen."""
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def summary(self, summary: Summary) -> None:
        """Print how it went."""
        unread = len(summary.images) - summary.images_read
        rows = (
            ("images read", f"{summary.images_read}" + (f", {unread} not" if unread else "")),
            ("words of the page found", f"{summary.words_found} of {summary.words_known}"),
            ("latency cold", _latency(summary.cold)),
            ("latency warm", _latency(summary.warm)),
            (
                "requests",
                f"{summary.sent} sent, {summary.answered} answered, {summary.failed} failed",
            ),
            (
                "failover",
                _failover(summary.failover),
            ),
            ("elapsed", f"{summary.elapsed_s:.0f} s since the service ran"),
        )
        put(self._out, details(rows))
        for failure in summary.failures:
            self.said(f"failed: {failure}")
        verdict = ("ok", "green") if summary.ok else ("not ok", "red")
        self._out.print(Text("demo: ").append(*verdict))


def _latency(one: Latency) -> str:
    p50, p99 = or_dash(one.p50_ms, "{:.0f} ms"), or_dash(one.p99_ms, "{:.0f} ms")
    return f"p50 {p50}, p99 {p99} ({one.count} requests)"


def _failover(one: Failover) -> str:
    return (
        f"{len(one.tasks)} tasks of {one.node}: first answer {_seconds(one.first_answer_ms)} "
        f"after the kill, all tasks run again after {_seconds(one.tasks_again_ms)}"
    )


def _seconds(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds / 1000:.1f} s"
