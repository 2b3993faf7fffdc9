"""`tona service qos|explain` and `tona approve`: what was agreed, what is so, what waits."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.text import Text
from typer import Argument, Option

from controller.api.choices import ServiceExplanation
from controller.api.quality import QosRow, ServiceQos
from controller.records import ApprovalRecord, ApprovalState
from protocols.qoais import Bound
from tona.cli import complete
from tona.cli.context import AsJson, listing, or_dash, show, table
from tona.cli.draw import size
from tona.cli.usecases import ServiceName

approve_app = typer.Typer(help="Decisions that wait for a person.", no_args_is_help=True)

ApprovalNumber = Annotated[
    str, Argument(help="Its number, from the list.", autocompletion=complete.approvals)
]


def qos(name: ServiceName, as_json: AsJson = False) -> None:
    """Show the quality of a service from SLA to resource, target beside measured."""
    listing("service.qos", as_json, draw_qos, name=name)


def draw_qos(one: ServiceQos) -> None:
    """Print the satisfaction ratio, then a row for each indicator at each level."""
    author = "as the paper maps it" if one.paper else "by a map of ours"
    show(f"service {one.service}: {one.state}, {one.kind}, {author}")
    ratio = or_dash(one.satisfaction_ratio, "{:.3f}")
    show(
        f"user satisfaction ratio: {ratio}, {one.target_ratio:g} agreed "
        f"({one.satisfied} of {one.users} users measured)"
    )
    made = table("LEVEL", "OF", "INDICATOR", ">TARGET", ">VALUE", "KEPT", "HOW")
    for row in one.rows:
        made.add_row(
            row.level,
            row.of,
            row.indicator,
            target(row.target, row.unit),
            amount(row.value, row.unit),
            _kept(row),
            or_dash(row.how),
        )
    show(made)


def target(bound: Bound | None, unit: str) -> str:
    """Return a bound as a person says it; a dash where nothing was agreed."""
    if bound is None:
        return "-"
    if bound.level is not None:
        return bound.level
    if bound.at_most is not None:
        return f"≤ {amount(bound.at_most, unit)}"
    return f"≥ {amount(bound.at_least, unit)}"


def amount(value: float | str | None, unit: str) -> str:
    """Return a value with its unit; a dash where there is none."""
    if value is None or isinstance(value, str):
        return or_dash(value)
    if unit == "B":
        return size(round(value))
    return f"{value:.4g} {unit}"


def _kept(row: QosRow) -> Text:
    if row.kept is None:
        return Text("-")
    return Text("yes", style="green") if row.kept else Text("no", style="red")


def explain(name: ServiceName, as_json: AsJson = False) -> None:
    """Say how a service is done, where it is anchored, and why not otherwise."""
    listing("service.explain", as_json, draw_choice, name=name)


def draw_choice(one: ServiceExplanation) -> None:
    """Print what NAMO has weighed, the chosen one first."""
    show(
        f"service {one.service}: {one.state}, {one.decomposition or 'main'} at {one.anchor}, "
        f"autonomy {one.autonomy}"
    )
    if one.reason:
        show(f"reason: {one.reason}")
    if one.leaving:
        show(f"not let go yet by {', '.join(one.leaving)}")
    if not one.candidates:
        show("nothing was weighed: it was ordered before there were candidates")
        return
    made = table("DECOMPOSITION", "ANCHOR", ">LATENCY", ">ACCURACY", ">HOPS", "FITS", "WHY")
    for candidate in one.candidates:
        told = candidate.estimates
        made.add_row(
            candidate.decomposition,
            candidate.anchor,
            or_dash(told.get("latency_ms"), "{:.1f} ms"),
            or_dash(told.get("accuracy_percent"), "{:.2f} %"),
            or_dash(told.get("hops"), "{:.0f}"),
            "yes" if candidate.feasible else "no",
            or_dash(candidate.reason),
        )
    show(made)


@approve_app.command("list")
def list_approvals(
    service: Annotated[
        str, Option(help="Only of this service.", autocompletion=complete.services)
    ] = "",
    state: Annotated[
        ApprovalState | None, Option(help="Only those in this state; else those that wait.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what the network would do and may not without you."""

    def draw(found: Sequence[ApprovalRecord]) -> None:
        made = table("NUMBER", "SERVICE", "STATE", "DECISION", "REASON", "OUTCOME")
        for one in found:
            made.add_row(
                one.number,
                one.service,
                one.state,
                one.decision,
                or_dash(one.reason),
                or_dash(one.outcome),
            )
        show(made)

    listing("approve.list", as_json, draw, service=service, state=state)


@approve_app.command()
def grant(number: ApprovalNumber, as_json: AsJson = False) -> None:
    """Let the network do what it has asked for."""
    listing("approve.grant", as_json, _said, name=number)


@approve_app.command()
def deny(number: ApprovalNumber, as_json: AsJson = False) -> None:
    """Do not let the network do what it has asked for."""
    listing("approve.deny", as_json, _said, name=number)


def _said(one: Any) -> None:
    show(f"approval {one.number} is {one.state}: {one.decision}")
