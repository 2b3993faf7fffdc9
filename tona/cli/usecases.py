"""`tona usecase` and `tona service`: what was asked for, and what serves it."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from typer import Argument, Option

from controller.records import UseCaseRecord, UseCaseState
from protocols.errors import UserError
from protocols.messages.hierarchy import ServiceState
from tona.cli import complete
from tona.cli.context import (
    AsJson,
    console,
    listing,
    or_dash,
    progress,
    show,
    show_json,
    stated,
    table,
    with_api,
)

WAIT_S: Final = 120.0
BLOB_MAX_BYTES: Final = 1 << 30
"""What the store of a cell takes as one value."""

app = typer.Typer(help="Use cases: submit, list, show, delete.", no_args_is_help=True)
service_app = typer.Typer(help="Services of the use cases.", no_args_is_help=True)

Prefix = Annotated[str, Option(help="Only names that begin so.")]
UseCaseName = Annotated[str, Argument(help="Its name.", autocompletion=complete.use_cases)]
ServiceName = Annotated[str, Argument(help="Its name.", autocompletion=complete.services)]


@app.command()
def submit(
    file: Annotated[Path, Argument(help="Use case, TOML or JSON.")],
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be done.")] = False,
    wait: Annotated[bool, Option("--wait", help="Wait until every service runs.")] = False,
    timeout: Annotated[float, Option(help="How long to wait, in seconds.", min=0.1)] = WAIT_S,
    as_json: AsJson = False,
) -> None:
    """Submit a use case; the artifacts that it names as files are pushed first."""
    from tona.bundle import bundle  # noqa: PLC0415 - only here

    made = bundle(file)

    async def work(api: Any) -> Any:
        if not dry_run:
            await push(api, made.files)
            await _sign(api, made.files)
        answer = await api.call(
            "usecase.submit", document=made.document, format=made.notation, dry_run=dry_run
        )
        if wait and not dry_run and not answer.dormant:
            from tona.cli.served import served  # noqa: PLC0415 - slow to import

            await served(api, answer, timeout)
        return answer

    answer = with_api(work)
    if as_json:
        show_json(msgspec.json.encode(answer))
        return
    would = "would be " if dry_run else ""
    show(f"use case {answer.name} {would}{answer.change}, generation {answer.generation}")
    tasks = table("TASK", ">LATENCY BUDGET")
    for name, budget_ms in answer.tasks.items():
        tasks.add_row(name, or_dash(budget_ms, "{:.0f} ms"))
    show(tasks)
    if answer.dormant:
        show("it is dormant: its trigger has not been pulled")
    for note in answer.notes:
        show(f"note: {note}")
    if answer.removed:
        show(f"no longer in it: {', '.join(answer.removed)}")


async def _sign(api: Any, files: Sequence[Any]) -> None:
    """Sign what was pushed, where that is asked for. Raises UserError."""
    if files and (await api.call("trust.show")).required:
        from tona.cli.artifacts import sign_files  # noqa: PLC0415 - it imports this module

        await sign_files(api, files)


async def push(api: Any, files: Sequence[Any]) -> list[Any]:
    """Push artifacts, with a progress bar where there is a terminal."""
    with progress() as shown:
        bars = [shown.add_task(one.name, total=one.size_bytes) for one in files]
        return [
            await api.push(file, lambda count, bar=bar: shown.advance(bar, count))
            for file, bar in zip(files, bars, strict=True)
        ]


@app.command("list")
def list_use_cases(
    prefix: Prefix = "",
    state: Annotated[UseCaseState | None, Option(help="Only those in this state.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the use cases."""

    def draw(found: Sequence[UseCaseRecord]) -> None:
        made = table("USE CASE", "STATE", ">GENERATION", "SERVICES", "SUBMITTED", "REASON")
        for one in found:
            at = datetime.fromtimestamp(one.submitted_unix_ms / 1000).astimezone()
            made.add_row(
                one.name,
                one.state,
                str(one.generation),
                ", ".join(one.services),
                f"{at:%Y-%m-%d %H:%M:%S}" if one.submitted_unix_ms else "-",
                or_dash(one.reason),
            )
        show(made)

    listing("usecase.list", as_json, draw, prefix=prefix, state=state)


@app.command("show")
def show_use_case(name: UseCaseName, as_json: AsJson = False) -> None:
    """Show a use case and its document."""

    def draw(one: UseCaseRecord) -> None:
        where = f"{one.state}, generation {one.generation}"
        show(f"use case {one.name}: {stated(where, one.reason)}")
        if one.former:
            show(f"on probation: `tona usecase rollback {one.name}` goes back to the one before")
        console().print_json(one.document)

    listing("usecase.show", as_json, draw, name=name)


@app.command()
def rollback(
    name: UseCaseName,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would be done.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go back to the version before, while the present one has not proved itself."""
    would = "would go" if dry_run else "goes"
    listing(
        "usecase.rollback",
        as_json,
        lambda one: show(
            f"use case {one.name} {would} back to the version before, as generation "
            f"{one.generation}"
        ),
        name=name,
        dry_run=dry_run,
    )


@app.command()
def delete(name: UseCaseName, as_json: AsJson = False) -> None:
    """End a use case, its services and their tasks."""
    listing(
        "usecase.delete",
        as_json,
        lambda one: show(f"use case {one.name} is {one.state}"),
        name=name,
    )


@service_app.command("list")
def list_services(
    prefix: Prefix = "",
    use_case: Annotated[
        str, Option(help="Only of this use case.", autocompletion=complete.use_cases)
    ] = "",
    state: Annotated[ServiceState | None, Option(help="Only those in this state.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the services."""

    def draw(found: Sequence[Any]) -> None:
        made = table(
            "SERVICE", "USE CASE", "STATE", "KIND", ">TASKS", "INPUTS", "OUTPUTS", "REASON"
        )
        for one in found:
            order = one.order
            made.add_row(
                order.service,
                order.use_case,
                one.state,
                order.kind,
                str(len(order.tasks)),
                ", ".join(_inputs(order)) or "-",
                ", ".join(edge.port for edge in order.outputs),
                or_dash(one.reason),
            )
        show(made)

    named = (("usecase.show", use_case),)
    asked = {"prefix": prefix, "use_case": use_case, "state": state}
    listing("service.list", as_json, draw, named, **asked)


@service_app.command("show")
def show_service(name: ServiceName, as_json: AsJson = False) -> None:
    """Show a service: its tasks, what feeds them, its inputs and outputs."""

    def draw(one: Any) -> None:
        order = one.order
        where = f"{one.state}, generation {order.generation}"
        of = f"service {order.service} of use case {order.use_case}"
        show(f"{of}: {stated(where, one.reason)}")
        made = table("TASK", "EXECUTOR", ">LATENCY BUDGET", "INPUTS", "OUTPUTS")
        for task in order.tasks:
            made.add_row(
                task.task,
                task.manifest.kind,
                or_dash(task.qos.latency_ms, "{:.0f} ms"),
                ", ".join(f"{edge.port}={edge.source}.{edge.source_port}" for edge in task.inputs),
                ", ".join(port.name for port in task.manifest.outputs),
            )
        show(made)
        show(f"inputs: {', '.join(_inputs(order)) or '-'}")
        outputs = (f"{edge.port}={edge.source}.{edge.source_port}" for edge in order.outputs)
        show(f"outputs: {', '.join(outputs)}")

    listing("service.show", as_json, draw, name=name)


def _inputs(order: Any) -> list[str]:
    """Return the inputs that a client gives, in order and once."""
    ports = (edge for task in order.tasks for edge in task.inputs if edge.source == "request")
    return list(dict.fromkeys(edge.source_port for edge in ports))


def read_file(path: Path) -> bytes:
    """Return a file's content. Raises UserError."""
    try:
        with path.open("rb") as file:
            content = file.read(BLOB_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(content) > BLOB_MAX_BYTES:
        raise UserError(f"{path} is larger than {BLOB_MAX_BYTES} bytes, the most of one value")
    return content
