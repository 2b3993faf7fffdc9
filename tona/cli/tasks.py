"""`tona task` and `tona artifact`: what runs where and why, and what it runs."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from typer import Argument, Option

from controller.records import ArtifactRecord, StoryRecord, TaskRecord, TaskState
from protocols.errors import UserError
from protocols.messages.task import Deviceless
from tona.bundle import File, check_ends
from tona.cli import accounts, complete
from tona.cli.context import (
    AsJson,
    details,
    listing,
    or_dash,
    show,
    show_json,
    stated,
    table,
    with_api,
)
from tona.cli.draw import moment, size
from tona.cli.usecases import push

app = typer.Typer(help="Tasks: where they run, and why there.", no_args_is_help=True)
artifact_app = typer.Typer(help="Models and modules in the cell's store.", no_args_is_help=True)

Prefix = Annotated[str, Option(help="Only names that begin so.")]
TaskName = Annotated[str, Argument(help="Its name.", autocompletion=complete.tasks)]


@app.command("list")
def list_tasks(
    prefix: Prefix = "",
    service: Annotated[
        str, Option(help="Only of this service.", autocompletion=complete.services)
    ] = "",
    node: Annotated[str, Option(help="Only on this node.", autocompletion=complete.nodes)] = "",
    state: Annotated[TaskState | None, Option(help="Only those in this state.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks and where they run."""

    def draw(found: Sequence[TaskRecord]) -> None:
        made = table("TASK", "STATE", "NODE", "SPARES", ">EPOCH", "EXECUTOR", "REASON")
        for one in found:
            made.add_row(
                one.spec.task,
                one.state,
                or_dash(one.node),
                ", ".join(spare for spare in one.nodes if spare != one.node) or "-",
                str(one.epoch),
                one.spec.manifest.kind,
                or_dash(one.reason),
            )
        show(made)

    named = (("node.show", node), ("service.show", service))
    asked = {"prefix": prefix, "service": service, "node": node, "state": state}
    listing("task.list", as_json, draw, named, **asked)


@app.command("show")
def show_task(name: TaskName, as_json: AsJson = False) -> None:
    """Show a task: its place, limits, inputs and outputs."""

    def draw(one: TaskRecord) -> None:
        manifest, policy = one.spec.manifest, one.spec.policy
        ports = (f"{port.name} {port.dtype}{list(port.shape)}" for port in manifest.outputs)
        rows = (
            ("task", one.spec.task),
            ("service", one.service),
            ("state", stated(one.state, one.reason)),
            ("node", or_dash(one.node)),
            ("envelope", ", ".join(one.nodes) or "-"),
            ("generation, epoch", f"{one.generation}, {one.epoch}"),
            ("executor", manifest.kind + (f", {manifest.called}" if manifest.called else "")),
            ("tenant", one.tenant),
            ("instances", _instances(one.spec.deviceless)),
            ("host functions", ", ".join(manifest.functions) or "-"),
            ("may infer", ", ".join(other.name for other in manifest.infers) or "-"),
            ("linked modules", ", ".join(module.name for module in manifest.modules) or "-"),
            ("artifact", f"{manifest.artifact.digest} ({size(manifest.artifact.size_bytes)})"),
            ("inputs", ", ".join(f"{edge.port}={edge.source}.{edge.source_port}"
                                 for edge in one.spec.inputs) or "-"),
            ("outputs", ", ".join(ports)),
            ("memory", size(manifest.limits.memory_bytes)),
            ("remembers", f"up to {size(manifest.limits.state_bytes)}"
             if manifest.limits.state_bytes else "-"),
            ("deadline", f"{manifest.limits.deadline_ms} ms"),
            ("latency budget", or_dash(one.spec.qos.latency_ms, "{:.0f} ms")),
            ("when its node is lost", f"after {policy.lost_after_ms} ms "
             + ("replaced" if policy.replace else "waited for") + f", {policy.reconcile}"),
        )  # fmt: skip
        show(details(rows))

    listing("task.show", as_json, draw, name=name)


def _instances(deviceless: Deviceless | None) -> str:
    if deviceless is None:
        return "always there"
    if deviceless.fresh:
        return "a fresh one for each run"
    kept_ms = deviceless.keep_alive_ms
    return "while asked, and " + (f"{kept_ms} ms more" if kept_ms else "as long as is learnt")


@app.command()
def explain(name: TaskName, as_json: AsJson = False) -> None:
    """Say why a task is where it is, and why not elsewhere."""
    listing("task.explain", as_json, draw_explanation, name=name)


def draw_explanation(one: Any) -> None:
    """Print the feasible nodes with the terms of their score, then the others with reasons."""
    show(f"{one.task}: {stated(f'{one.state} on {or_dash(one.node)}', one.reason)}")
    if one.following:
        show(one.following)
    _draw_failures(one.failures)
    placement = one.placement
    if placement is None:
        show("there was no decision about its place yet")
        return
    if placement.reason:
        show(placement.reason)
    terms = list(dict.fromkeys(term for scores in placement.scores.values() for term in scores))
    feasible = table("FEASIBLE NODE", *(f">{term.upper()}" for term in terms), ">SCORE", "")
    ranked = sorted(placement.scores.items(), key=lambda pair: (sum(pair[1].values()), pair[0]))
    for node, scores in ranked:
        place = placement.chosen.index(node) if node in placement.chosen else None
        role = "" if place is None else "chosen" if place == 0 else "spare"
        feasible.add_row(
            node,
            *(or_dash(scores.get(term), "{:.1f}") for term in terms),
            f"{sum(scores.values()):.1f}",
            role,
        )
    if ranked:
        show(feasible)
    if placement.options:
        show(options_table(placement.options))
    refused = table("REJECTED NODE", "STAGE", "REASON")
    for rejection in placement.rejected:
        refused.add_row(rejection.node, rejection.stage, rejection.reason)
    if placement.rejected:
        show(refused)


def _draw_failures(failures: Mapping[str, str]) -> None:
    """Print which nodes were tried in vain."""
    failed = table("NODE THAT COULD NOT RUN IT", "REASON")
    for node, reason in failures.items():
        failed.add_row(node, reason)
    if failures:
        show(failed)


def options_table(options: Sequence[Any]) -> Any:
    """Return each way to run a task on each node, with what it was taken to cost."""
    made = table(
        *("NODE", "FORM", "EXECUTOR", ">RUN MS", "KNOWN", ">COLD MS", ">MEMORY", ">WAITING MS"),
        *(">TOTAL MS", ""),
    )
    for one in options:
        known = one.source
        if known == "measured":
            known = f"{one.runs} runs" if one.runs else "in a calibration"
        cold = f"{one.cold_ms:.1f}" + (f" from {one.warmth}" if one.warmth else "")
        made.add_row(
            one.node,
            one.variant or "own",
            one.executor + (f", {one.provider}" if one.provider else ""),
            f"{one.run_ms:.2f}",
            known,
            cold,
            size(one.memory_bytes),
            f"{one.waiting_ms:.2f}",
            or_dash(one.total_ms, "{:.2f}"),
            "chosen" if one.chosen else one.why,
        )
    return made


@app.command()
def events(name: TaskName, as_json: AsJson = False) -> None:
    """Tell the story of a task, oldest first."""

    def draw(found: Sequence[StoryRecord]) -> None:
        made = table(">#", "TIME", "LAYER", "EVENT", "DETAIL", "CAUSE", "BLAME")
        for one in found:
            made.add_row(
                str(one.number), moment(one.unix_ms), one.layer, one.event, or_dash(one.detail),
                or_dash(one.cause), or_dash(one.blame),
            )  # fmt: skip
        show(made)

    listing("task.events", as_json, draw, name=name)


app.command()(accounts.stats)
app.command()(accounts.audit)
app.command()(accounts.quarantine)


@artifact_app.command("push")
def push_artifacts(
    files: Annotated[list[Path], Argument(help="Files to keep in the cell's store.")],
    as_json: AsJson = False,
) -> None:
    """Push artifacts; prints the digest of each."""
    wanted = read_files(files)

    async def work(api: Any) -> Any:
        return await push(api, wanted)

    records = with_api(work)
    if as_json:
        show_json(msgspec.json.encode(records))
    else:
        _draw_artifacts(records)


@artifact_app.command("list")
def list_artifacts(prefix: Prefix = "", as_json: AsJson = False) -> None:
    """List the artifacts of the cell's store."""
    listing("artifact.list", as_json, _draw_artifacts, prefix=prefix)


def _draw_artifacts(found: Sequence[ArtifactRecord]) -> None:
    made = table("NAME", "MEDIA", ">SIZE", "DIGEST")
    for one in found:
        made.add_row(or_dash(one.name), or_dash(one.media), size(one.size_bytes), one.digest)
    show(made)


def read_files(paths: Sequence[Path]) -> list[File]:
    """Return the files with their digests. Raises UserError."""
    return [_file(path) for path in paths]


def _file(path: Path) -> File:
    check_ends(path)
    try:
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            return File(path, f"sha256:{digest}", content.tell())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
