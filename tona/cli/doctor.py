"""`tona doctor`: what on this machine works, what is missing, and how to get it."""

from typing import TYPE_CHECKING, Final

import msgspec
import typer
from rich.text import Text

from tona.cli import errors
from tona.cli.context import AsJson, settings, show, show_json, table

if TYPE_CHECKING:
    from tona.cli.checks import Finding

_STYLE: Final = {"ok": "green", "absent": "yellow", "failed": "red"}


def doctor(as_json: AsJson = False) -> None:
    """Look at this machine: what works, what is missing and how to get it."""
    from tona.cli.checks import State, examine  # noqa: PLC0415 - slow to import

    findings = examine(settings())
    if as_json:
        show_json(msgspec.json.encode(findings))
    else:
        _draw(findings)
    if any(one.state is State.FAILED for one in findings):
        raise typer.Exit(errors.UNAVAILABLE)


def _draw(findings: "list[Finding]") -> None:
    made = table("WHAT", "STATE", "FOUND", "HOW TO GET IT")
    for one in findings:
        state = Text(one.state, style=_STYLE[one.state])
        made.add_row(one.what, state, one.found or "-", one.hint or "-")
    show(made)
