"""`tona job`: durable invocations, submitted once and completed once, whatever fails meanwhile."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import typer
from typer import Argument, Option

from controller.job_view import JobOutput, JobView
from protocols.errors import UserError
from protocols.messages.job import JobState
from protocols.submission import check_job_id
from tona.cli import complete
from tona.cli.context import AsJson, details, listing, or_dash, settings, show, show_json, table
from tona.cli.draw import moment, size
from tona.cli.invoke import (
    Inputs,
    Outputs,
    fitting,
    read_inputs,
    read_outputs,
    show_result,
)

app = typer.Typer(help="Jobs: durable invocations, run until they are done.", no_args_is_help=True)

JobId = Annotated[str, Argument(help="Its identifier, as `submit` and `list` print it.")]


@app.command()
def submit(
    service: Annotated[str, Argument(help="Its name.", autocompletion=complete.services)],
    inputs: Inputs = None,
    outputs: Outputs = None,
    job: Annotated[
        str, Option("--id", help="An identifier of your own: the same one again is the same job.")
    ] = "",
    deadline: Annotated[float, Option(min=0, help="In seconds from acceptance; 0: none.")] = 0.0,
    run: Annotated[float, Option(min=0.001, help="Seconds that one run may take.")] = 60.0,
    priority: Annotated[int, Option(min=0, max=9, help="Higher ones run first.")] = 4,
    wait: Annotated[bool, Option(help="Wait for the end and print what it gives.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job; returns when it can no more be lost, or with --wait when it is over."""
    if job:
        try:
            check_job_id(job)
        except ValueError as error:
            raise UserError(f"--id: {error}") from None
    given, files = read_inputs(inputs), read_outputs(outputs)
    asked = {"job": job, "deadline_s": deadline, "run_s": run, "priority": priority}
    name, result = asyncio.run(_submit(service, given, asked, wait=wait or bool(files)))
    if result is not None:
        show_result(service, result, files, as_json=as_json)
    elif as_json:
        show_json(msgspec.json.encode({"job": name, "service": service}))
    else:
        show(name)


async def _submit(
    service: str, given: list[tuple[str, Any]], asked: dict[str, Any], *, wait: bool
) -> tuple[str, Any]:
    from tona.cli.api import target  # noqa: PLC0415 - slow to import
    from tona.client import connect  # noqa: PLC0415 - the same

    found = settings()
    inputs = await fitting(service, given)
    async with connect(found.bundle.value or target(found).url) as client:
        job = await client.submit(service, inputs, **asked)
        return job.id, await job.result() if wait else None


@app.command("list")
def list_jobs(
    prefix: Annotated[str, Option(help="Only identifiers that begin so.")] = "",
    service: Annotated[
        str, Option(help="Only of this service.", autocompletion=complete.services)
    ] = "",
    state: Annotated[JobState | None, Option(help="Only those in this state.")] = None,
    limit: Annotated[int, Option(min=1, max=10_000, help="At most so many.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List the jobs that are open, and those that are remembered."""

    def draw(found: Sequence[JobView]) -> None:
        made = table("JOB", "SERVICE", "STATE", ">PRIORITY", ">ATTEMPTS", "CLIENT", "REASON")
        for one in found:
            made.add_row(
                one.job, one.service, one.state, str(one.priority), str(one.attempts),
                or_dash(one.client), _reason(one),
            )  # fmt: skip
        show(made)

    asked = {"prefix": prefix, "service": service, "state": state, "limit": limit}
    listing("job.list", as_json, draw, (), **asked)


@app.command("show")
def show_job(job: JobId, as_json: AsJson = False) -> None:
    """Show a job, and what it gave."""
    listing("job.show", as_json, _draw, name=job)


@app.command()
def cancel(job: JobId, as_json: AsJson = False) -> None:
    """End a job, if it is not over."""
    listing("job.cancel", as_json, _draw, name=job)


def _draw(one: JobView) -> None:
    rows = [
        ("job", one.job),
        ("service", one.service),
        ("state", str(one.state)),
        ("attempts", str(one.attempts)),
        ("priority", str(one.priority)),
        ("deadline", f"{one.deadline_ms} ms" if one.deadline_ms else "-"),
        ("client", or_dash(one.client)),
        ("accepted", moment(one.accepted_unix_ms)),
        ("started", moment(one.started_unix_ms)),
        ("ended", moment(one.ended_unix_ms)),
        ("reason", _reason(one)),
        ("nodes", " ".join(dict.fromkeys(step.node for step in one.timings)) or "-"),
    ]
    rows += [(name, _output(value)) for name, value in sorted(one.outputs.items())]
    show(details(rows))


def _reason(one: JobView) -> str:
    return or_dash(one.failure.text if one.failure is not None else "")


def _output(value: JobOutput) -> str:
    """Return an output as text where it is text, else what it is."""
    if value.dtype == "uint8" and len(value.shape) == 1 and not value.digest:
        try:
            return value.data.decode()
        except UnicodeDecodeError:
            pass
    where = f" {value.digest}" if value.digest else ""
    return f"{value.dtype} {list(value.shape)} ({size(value.size_bytes)}){where}"
