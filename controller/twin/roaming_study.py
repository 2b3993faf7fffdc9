"""All rules of mobility on all traces, on all cores; and the table of docs/mobility.md."""

from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Final

from msgspec import Struct

from controller.mobility.settings import MobilitySettings
from controller.twin.pool import workers
from controller.twin.radio import Stretch, read
from controller.twin.roaming import SIGNAL, WEIGHED, Figures, Model, as_driven, try_rules
from protocols.errors import UserError

BEGIN: Final = "<!-- rules on traces -->\n"
END: Final = "<!-- end -->"


class Row(Struct, frozen=True):
    """What one rule came to on all traces."""

    rule: str
    radios: int
    noise_db: float
    """Standard deviation of what was added to all that was measured."""
    handovers: int
    by_itself: int
    """Of these, executed by the node on its condition."""
    failed: int
    lost: int
    """Links that were lost before a handover."""
    failure_percent: float | None
    """Failed and lost ones, of handovers and lost ones; null: the traces do not say."""
    moves: int
    ping_pongs: int
    ping_pongs_1s: int
    """Returns within a second, as TR 36.839 counts them."""
    ping_pong_percent: float
    """Of the moves."""
    outage_percent: float | None
    """Of the time."""
    gaps: int | None
    gap_p50_ms: int | None
    gap_p99_ms: int | None
    gap_p999_ms: int | None
    late_percent: float | None = None
    """Of the time: served by a cell that is busy; null: cells are alike."""


class Study(Struct, frozen=True):
    """What the rules came to, and on what."""

    stretches: int
    hours: float
    changes: int
    """Of the serving cell, as driven."""
    settings: MobilitySettings
    model: Model
    rows: tuple[Row, ...]


def study(
    folder: Path,
    model: Model,
    settings: MobilitySettings,
    cores: int,
    progress: Callable[[float], None] = lambda _: None,
) -> Study:
    """Try every rule on every trace of a folder, with one radio and with two. Raises UserError.

    `progress` is told the share of the work that is done.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name one with radio traces")
    stretches = read(folder)
    models = models_of(model)
    found: list[list[Figures]] = [[] for _ in stretches]
    whole = sum(one.seconds for one in stretches)
    done_s = 0.0
    with workers(min(cores, len(stretches))) as pool:
        # The longest first, so that none is left to one core at the end.
        order = sorted(range(len(stretches)), key=lambda at: -stretches[at].seconds)
        running = {pool.submit(try_rules, stretches[at], models, settings): at for at in order}
        for one in as_completed(running):
            found[running[one]] = one.result()
            done_s += stretches[running[one]].seconds
            progress(done_s / whole)
    return summed(stretches, found, model, settings)


def models_of(model: Model) -> tuple[Model, ...]:
    """Return the same model with one radio and with two."""
    return tuple(
        Model(
            model.command_ms,
            model.attach_ms,
            model.find_ms,
            model.noise_db,
            radios,
            model.back_ms,
            model.seed,
        )
        for radios in (1, 2)
    )


def summed(
    stretches: Sequence[Stretch],
    found: Sequence[Sequence[Figures]],
    model: Model,
    settings: MobilitySettings,
) -> Study:
    """Return the sums over all stretches."""
    sums = [Figures(one.rule, one.radios, one.noise_db) for one in found[0]]
    for figures in found:
        for into, one in zip(sums, figures, strict=True):
            into.add(one)
    driven = as_driven(stretches, model)
    rows = (_row(driven, told=False), *(_row(one, told=True) for one in sums))
    return Study(len(stretches), driven.seconds / 3600, driven.moves, settings, model, rows)


def _row(one: Figures, *, told: bool) -> Row:
    return Row(
        one.rule,
        one.radios,
        one.noise_db,
        one.handovers,
        one.by_itself,
        one.failed,
        one.lost,
        round(one.failure_percent, 2) if told else None,
        one.moves,
        one.ping_pongs,
        one.ping_pongs_1s,
        round(one.ping_pong_percent, 2),
        round(one.outage_percent, 3) if told else None,
        len(one.gaps_ms) if told else None,
        one.gap_ms(0.5) if told else None,
        one.gap_ms(0.99) if told else None,
        one.gap_ms(0.999) if told else None,
        round(one.late_percent, 2) if one.rule in (SIGNAL, WEIGHED) else None,
    )


def markdown(made: Study) -> str:
    """Return the table as it stands in docs/mobility.md."""
    told = "handovers", "failed + lost", "ping-pong", "gap p50, p99, p99.9", "no link", "late"
    lines = [f"| rule | radios | {' | '.join(told)} |", "|---|---|---|---|---|---|---|---|"]
    for row in made.rows:
        if row.failure_percent is None:
            cells = f"| {row.rule} | | {row.moves} | | {row.ping_pong_percent:.1f} % | | | |"
        else:
            failed = f"{row.failure_percent:.1f} % ({row.failed} + {row.lost})"
            gaps = f"{row.gap_p50_ms}, {row.gap_p99_ms}, {row.gap_p999_ms} ms"
            cells = (
                f"| {row.rule} | {row.radios} | {row.handovers} | {failed} "
                f"| {row.ping_pong_percent:.1f} % | {gaps} | {row.outage_percent:.2f} % |"
                + (" |" if row.late_percent is None else f" {row.late_percent:.1f} % |")
            )
        lines.append(cells)
    return "\n".join(lines) + "\n"


def renewed(page: str, made: Study) -> str:
    """Return a page with the table between its markers made anew. Raises UserError."""
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise UserError(f"the page has no {BEGIN.strip()} with {END} after it")
    return f"{before}{BEGIN}{markdown(made)}{END}{after}"
