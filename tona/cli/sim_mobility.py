"""`tona sim mobility`: rules of mobility on radio traces, beside each other."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from typer import Option

from protocols.errors import UserError
from tona.cli.context import AsJson, or_dash, progress, show, show_json, table


def mobility(
    traces: Annotated[Path, Option(help="Folder with radio traces, CSV or gzipped CSV.")],
    noise_db: Annotated[float, Option(min=0, max=10, help="Error of measurements.")] = 1.0,
    command_ms: Annotated[int, Option(min=0, help="From the report to the command.")] = 200,
    attach_ms: Annotated[
        int, Option(min=0, help="From one cell to being served by the next.")
    ] = 100,
    find_ms: Annotated[int, Option(min=0, help="To find a cell when the link is lost.")] = 500,
    back_ms: Annotated[int, Option(min=1, help="A return within that time is a ping-pong.")] = 5000,
    seed: Annotated[int, Option(min=0)] = 1,
    jobs: Annotated[
        int | None, Option("--jobs", "-j", min=1, help="Processes; else all cores.")
    ] = None,
    page: Annotated[Path | None, Option(help="Renew the table in this page.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare who moves when: the strongest signal, A3, and the choice of this project.

    One row for each rule, with one radio and with two: handovers, those that failed, returns, and
    how long nothing served. The last rows have unlike cells, a third of them busy: what it changes
    that load and latency of tasks are weighed, in time that tasks are late.
    """
    from controller.mobility.settings import MobilitySettings  # noqa: PLC0415 - as above
    from controller.twin import roaming_study as twin  # noqa: PLC0415 - as above
    from controller.twin.pool import cores  # noqa: PLC0415 - as above
    from controller.twin.roaming import Model  # noqa: PLC0415 - as above

    before = _read(page) if page is not None else ""
    model = Model(command_ms, attach_ms, find_ms, noise_db, back_ms=back_ms, seed=seed)
    with progress(quiet=as_json) as shown:
        bar = shown.add_task("traces", total=1.0)
        made = twin.study(
            traces,
            model,
            MobilitySettings(),
            jobs or cores(),
            lambda share: shown.update(bar, completed=share),
        )
    if page is not None:
        page.write_text(twin.renewed(before, made), encoding="utf-8")
    if as_json:
        show_json(msgspec.json.encode(made))
    else:
        show(_table(made))
        show(f"{made.hours:.1f} hours of driving, {made.stretches} stretches.")


def _read(page: Path) -> str:
    try:
        return page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: cannot be read: {error.strerror}") from None


def _table(made: Any) -> Any:
    shown = table(
        *("RULE", ">RADIOS", ">HANDOVERS", ">BY ITSELF", ">FAILED", ">LOST", ">FAILURE"),
        *(">PING-PONG", ">GAP P50", ">P99", ">P99.9", ">NO SERVICE", ">LATE"),
    )
    for row in made.rows:
        shown.add_row(
            row.rule,
            str(row.radios) if row.gaps is not None else "-",
            str(row.handovers),
            str(row.by_itself),
            str(row.failed),
            str(row.lost),
            or_dash(row.failure_percent, "{:.1f} %"),
            f"{row.ping_pong_percent:.1f} %",
            or_dash(row.gap_p50_ms, "{} ms"),
            or_dash(row.gap_p99_ms, "{} ms"),
            or_dash(row.gap_p999_ms, "{} ms"),
            or_dash(row.outage_percent, "{:.2f} %"),
            or_dash(row.late_percent, "{:.1f} %"),
        )
    return shown
