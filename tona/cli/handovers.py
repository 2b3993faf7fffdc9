"""`tona handover` and `tona node handover`: nodes that go from cell to cell."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from controller.handover_records import (
    OWNERLESS,
    CrossingRecord,
    HandoverRecord,
    HandoverState,
)
from tona.cli import complete
from tona.cli.context import AsJson, details, listing, or_dash, show, table
from tona.cli.draw import moment

app = typer.Typer(help="Nodes that have gone from cell to cell.", no_args_is_help=True)


def hand_over(
    node: Annotated[str, Argument(help="Name of the node.", autocompletion=complete.nodes)],
    cell: Annotated[str, Argument(help="The cell that is to serve it.")],
    as_json: AsJson = False,
) -> None:
    """Have a node served by another cell; its tasks go on."""
    listing(
        "node.handover",
        as_json,
        lambda one: show(f"{one.node} is on its way from {one.source} to {one.target}; "
                         f"'tona handover show {one.handover}' tells how it went"),
        name=node,
        cell=cell,
    )  # fmt: skip


@app.command("list")
def list_handovers(
    node: Annotated[str, Option(help="Only of this node.", autocompletion=complete.nodes)] = "",
    cell: Annotated[str, Option(help="Only from or to this cell.")] = "",
    state: Annotated[HandoverState | None, Option(help="Only in this state.")] = None,
    limit: Annotated[int, Option(min=1, max=10_000, help="At most so many.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the handovers, the newest first."""
    listing(
        "handover.list",
        as_json,
        lambda found: show(_rows(found)),
        (("node.show", node),),
        node=node,
        cell=cell,
        state=state,
        limit=limit,
    )


@app.command("show")
def show_handover(
    name: Annotated[str, Argument(help="Its name, or a node for the node's last one.")],
    as_json: AsJson = False,
) -> None:
    """Show a handover: its cause, when each phase began, how long answers stayed away."""
    listing("handover.show", as_json, lambda one: show(_details(one)), name=name)


@app.command()
def cells(as_json: AsJson = False) -> None:
    """Count the handovers from each cell to each other, and those that went to and fro."""
    listing("handover.cells", as_json, lambda found: show(_crossings(found)))


def _rows(found: Sequence[HandoverRecord]) -> Table:
    made = table(
        "HANDOVER", "NODE", "FROM", "TO", "STATE", "PING-PONG", ">TOOK", ">NODE GAP", ">CLIENT GAP",
        ">SENT AGAIN", ">OWNERLESS", "STARTED", "CAUSE",
    )  # fmt: skip
    for one in found:
        made.add_row(
            one.handover,
            one.node,
            one.source,
            one.target,
            one.state.value,
            "yes" if one.ping_pong else "-",
            or_dash(one.phases.get(HandoverState.COMPLETED.value), "{} ms"),
            or_dash(one.gap_ms, "{:.0f} ms"),
            or_dash(one.client_gap_ms, "{:.0f} ms"),
            or_dash(_again(one)),
            or_dash(one.phases.get(OWNERLESS), "{} ms"),
            moment(one.started_unix_ms),
            one.reason or one.cause,
        )
    return made


def _details(one: HandoverRecord) -> Table:
    ownerless_ms = one.phases.get(OWNERLESS)
    phases = [
        (f"  {name}", f"{at_ms} ms") for name, at_ms in one.phases.items() if name != OWNERLESS
    ]
    rows: list[tuple[str, str | Text]] = [
        ("handover", one.handover),
        ("node", one.node),
        ("from", one.source),
        ("to", one.target),
        ("state", one.state.value),
        ("cause", one.cause or "-"),
        ("reason", one.reason or "-"),
        ("ping-pong", "yes: back in the cell that it had just left" if one.ping_pong else "no"),
        ("asked for", "by an operator" if one.by_hand else "by the network"),
        ("executed", "by the node, on its condition" if one.conditional else "on command"),
        ("attached", _attached(one)),
        ("tasks", ", ".join(one.tasks) or "-"),
        ("at the edge", "" if one.edge else "-"),
        *((f"  {task}", verdict) for task, verdict in one.edge.items()),
        ("started", moment(one.started_unix_ms)),
        ("phases", "since the start"),
        *phases,
        ("ownerless", or_dash(ownerless_ms, "{} ms at most")),
        ("node gap", _gap(one)),
        ("client gap", or_dash(one.client_gap_ms, "{:.1f} ms stood a client's request at most")),
        ("sent again", or_dash(one.asked_again, "{} requests by clients")),
        ("", or_dash(one.said_again, "{} answers, values and requests by the node")),
        ("times", "as the node has measured them" if one.times else "-"),
        *((f"  {name.removesuffix('_ms')}", f"{ms:.1f} ms") for name, ms in one.times.items()),
    ]
    return details(rows)


def _attached(one: HandoverRecord) -> str:
    if not one.arrived:
        return "-"
    return "to both cells at once" if one.attached else "to one cell at a time"


def _again(one: HandoverRecord) -> int | None:
    """Return how much was sent once more, by whomever."""
    if one.asked_again is None or one.said_again is None:
        return None
    return one.asked_again + one.said_again


def _gap(one: HandoverRecord) -> str:
    if one.gap_ms is None:
        return "- (nobody was answered around it)" if one.times else "-"
    return f"{one.gap_ms:.1f} ms between two answers; {one.spacing_ms:.1f} ms before it"


def _crossings(found: Sequence[CrossingRecord]) -> Table:
    made = table(
        "FROM", "TO", ">COMPLETED", ">FAILED", ">REFUSED", ">TO AND FRO", ">MEAN", ">LONGEST",
        ">OWNERLESS", ">GAP P50", ">P99", ">AGAIN",
    )  # fmt: skip
    for one in found:
        mean_ms = one.total_ms / one.completed if one.completed else None
        made.add_row(
            one.source,
            one.target,
            str(one.completed),
            str(one.failed),
            str(one.refused),
            str(one.ping_pongs),
            or_dash(mean_ms, "{:.0f} ms"),
            f"{one.longest_ms:.0f} ms" if one.completed else "-",
            f"{one.ownerless_longest_ms:.0f} ms" if one.completed else "-",
            or_dash(one.gap_p50_ms, "{:.0f} ms"),
            or_dash(one.gap_p99_ms, "{:.0f} ms"),
            str(one.asked_again + one.said_again),
        )
    return made
