"""`tona sim`: the twin as simulator, for faults and for capacity."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from typer import Argument, Option

from protocols.errors import UserError
from tona.cli import errors, sim_mobility
from tona.cli.context import (
    AsJson,
    console,
    details,
    or_dash,
    progress,
    show,
    show_json,
    table,
    with_api,
)
from tona.cli.errors import INTERRUPTED

if TYPE_CHECKING:
    from controller.twin.handover_tally import Failure
    from controller.twin.handover_tally import Tally as HandoverTally
    from controller.twin.schedule import Tally

app = typer.Typer(
    name="sim",
    help="Simulate: the production deciders on simulated nodes, from one seed.",
    no_args_is_help=True,
)

app.command(name="mobility")(sim_mobility.mobility)

BROKEN: Final = 1
"""Exit code when a rule was broken."""

Cores = Annotated[int | None, Option("--jobs", "-j", min=1, help="Processes; else all cores.")]


@app.command()
def faults(
    schedules: Annotated[int, Option(min=1, help="How many; the seeds are consecutive.")] = 1000,
    seed: Annotated[int, Option(min=0, help="The first seed.")] = 1,
    jobs: Cores = None,
    as_json: AsJson = False,
) -> None:
    """Run fault schedules and check that nothing is lost, doubled or left over; 1 when it is."""
    from controller.twin.pool import cores, run_many  # noqa: PLC0415 - as above

    began_s = time.monotonic()
    with progress() as shown:
        bar = shown.add_task("schedules", total=schedules)
        told: set[int] = set()

        def follow(total: "Tally") -> None:
            shown.update(bar, completed=total.schedules)
            for one in total.first:
                if one.seed not in told:
                    told.add(one.seed)
                    shown.console.print(
                        f"tona: {one.text}\n      again: tona sim replay --seed {one.seed} "
                        "--trace FILE"
                    )

        tally = run_many(seed, schedules, jobs or cores(), follow)
    seconds = time.monotonic() - began_s
    if as_json:
        figures = msgspec.to_builtins(tally) | {"seed": seed, "seconds": round(seconds, 3)}
        show_json(msgspec.json.encode(figures))
    else:
        show(_tally(tally, seconds))
        show(details((name, str(count)) for name, count in sorted(tally.faults.items())))
    if tally.schedules < schedules:
        raise typer.Exit(INTERRUPTED)
    if tally.broken:
        raise typer.Exit(BROKEN)


def _tally(tally: Any, seconds: float) -> Any:
    return details(
        (
            ("schedules", f"{tally.schedules} in {seconds:.1f} s"),
            ("jobs", f"{tally.tasks}, {tally.tasks_failed} of them ended with a reason"),
            ("invocations", f"{tally.invocations}, {tally.answered} of them answered in time"),
            ("tasks of services", str(tally.placed)),
            ("executions", str(tally.executions)),
            ("messages", str(tally.messages)),
            ("simulated", f"{tally.simulated_s:.0f} s"),
            ("lost", str(tally.lost)),
            ("doubled", str(tally.doubled)),
            ("violations", str(tally.violations)),
        )
    )


@app.command()
def handovers(
    handovers: Annotated[int, Option(min=1, help="How many, 50 of them from each seed.")] = 1000,
    seed: Annotated[int, Option(min=0, help="The first seed; they are consecutive.")] = 1,
    jobs: Cores = None,
    trace: Annotated[
        Path | None, Option(help="Write all that happens to this file; 50 handovers at most.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hand nodes over with crashes at every step, and check who owns what; 1 when a rule broke.

    A broken rule ends the handovers of its seed; those of the others go on.
    """
    from controller.twin.handovers import PART  # noqa: PLC0415 - as above
    from controller.twin.pool import cores, run_handovers, trace_handovers  # noqa: PLC0415 - same

    if trace is not None and handovers > PART:
        raise UserError(f"--trace is for one seed: say --handovers {PART} or less")
    _check_folder(trace)
    began_s = time.monotonic()
    if trace is not None:
        tally, lines = trace_handovers(seed, handovers)
        _write(trace, "".join(f"{line}\n" for line in lines).encode())
    else:
        with progress() as shown:
            bar = shown.add_task("handovers", total=handovers)
            told: set[int] = set()

            def follow(total: "HandoverTally") -> None:
                shown.update(bar, completed=total.handovers)
                for one in total.failures:
                    if one.seed not in told:
                        told.add(one.seed)
                        shown.console.print(_again(one))

            tally = run_handovers(seed, handovers, jobs or cores(), follow)
    _show_handovers(tally, time.monotonic() - began_s, as_json=as_json)
    if tally.broken:
        raise typer.Exit(BROKEN)
    if tally.handovers < handovers:
        raise typer.Exit(INTERRUPTED)


def _again(failure: "Failure") -> str:
    """Say what was broken, and how to see it again."""
    part = f"--seed {failure.seed} --handovers {failure.handovers}"
    return f"tona: {failure.text}\n      again: tona sim handovers {part} --trace FILE"


def _show_handovers(tally: "HandoverTally", seconds: float, *, as_json: bool) -> None:
    if as_json:
        show_json(msgspec.json.encode(msgspec.to_builtins(tally) | {"seconds": round(seconds, 3)}))
        return
    seeds = ", ".join(f"seed {one.seed}: {one.rule}" for one in tally.failures)
    head = ("handovers", f"{tally.handovers} in {seconds:.1f} s")
    show(details((head, *tally.rows(), ("broken", f"{tally.broken} {seeds}".strip()))))
    show(_struck(tally))


def _struck(tally: Any) -> Any:
    """Return who died, or was cut off, at which step."""
    whom = list(next(iter(tally.crashes.values()), {}))
    made = table("STEP", *(f">{one.upper()} DIES" for one in whom), ">CUT OFF")
    for step, row in tally.crashes.items():
        cut = str(sum(tally.cuts.get(step, {}).values()))
        made.add_row(step, *(str(row.get(one, 0)) for one in whom), cut)
    return made


@app.command()
def replay(
    seed: Annotated[int, Option(min=0, help="Of the schedule.")],
    trace: Annotated[Path | None, Option(help="Write all that happens to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run one fault schedule again, twice, and compare what happened; 1 when a rule is broken."""
    from controller.twin.pool import replay as run  # noqa: PLC0415 - slow to import

    _check_folder(trace)
    verdict, hashed, lines = run(seed, traced=trace is not None)
    _, again, _ = run(seed)
    if trace is not None:
        _write(trace, "".join(f"{line}\n" for line in lines).encode())
    told = {"seed": seed, "hash": hashed, "again": again, "verdict": verdict.text or "kept"}
    if as_json:
        show_json(msgspec.json.encode(told | {"rule": verdict.rule, "outcome": verdict.outcome}))
    else:
        show(details((name, str(value)) for name, value in told.items()))
    if hashed != again:
        console(stderr=True).print(f"tona: seed {seed} did not replay: {hashed}, then {again}")
        raise typer.Exit(errors.BUG)
    if verdict.rule is not None:
        raise typer.Exit(BROKEN)


@app.command()
def capacity(  # noqa: PLR0917 - each parameter is an option of its own name
    nodes: Annotated[int, Option(min=1, max=100_000, help="Of the fleet.")] = 10_000,
    hours: Annotated[float, Option(min=0.1, max=24 * 31, help="Simulated.")] = 24.0,
    trace: Annotated[
        Path | None,
        Option(help="CSV with a time and a load, or a row an arrival; else a day's curve."),
    ] = None,
    tasks: Annotated[
        int, Option(min=0, help="At the top of the trace; 0: half as many as nodes.")
    ] = 0,
    cpu_percent: Annotated[
        float, Option(min=0.0, max=10_000.0, help="Of one core, of a task at the top.")
    ] = 60.0,
    memory_mib: Annotated[int, Option(min=1, help="Of a task.")] = 256,
    node_cpus: Annotated[int, Option(min=1, help="Cores of a node.")] = 4,
    node_memory_mib: Annotated[int, Option(min=2, help="Half of it is for tasks.")] = 4096,
    heartbeat_s: Annotated[float, Option(min=1.0, help="The longest silence of a node.")] = 300.0,
    seed: Annotated[int, Option(min=0)] = 1,
    plot: Annotated[Path | None, Option(help="Write the day as an SVG file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask what a fleet that reports on change asks of its controller over a day."""
    from controller.twin import capacity as twin  # noqa: PLC0415 - as above
    from controller.twin import traces  # noqa: PLC0415 - as above

    _check_folder(plot)
    question = twin.Question(
        nodes=nodes,
        hours=hours,
        heartbeat_s=heartbeat_s,
        tasks=tasks,
        task_cpu_percent=cpu_percent,
        task_memory_bytes=memory_mib << 20,
        cpu_count=node_cpus,
        memory_bytes=node_memory_mib << 20,
        seed=seed,
    )
    points = traces.read(trace, hours) if trace is not None else traces.diurnal(hours)
    with progress(quiet=as_json) as shown:
        bar = shown.add_task("hours", total=hours)
        answer = twin.answer(
            question, points, lambda share: shown.update(bar, completed=share * hours)
        )
    if plot is not None:
        _write(plot, twin.picture(answer).encode())
    if as_json:
        show_json(msgspec.json.encode(answer))
    else:
        show(_capacity(answer))


def _capacity(answer: Any) -> Any:
    def pair(values: tuple[float, float], form: str) -> str:
        return f"mean {form.format(values[0])}, most {form.format(values[1])}"

    kinds = ", ".join(f"{kind} {count}" for kind, count in answer.messages.items())
    return details(
        (
            ("messages", pair(answer.messages_per_s, "{:.1f}/s")),
            ("bytes", pair(answer.bytes_per_s, "{:.0f} B/s")),
            ("scheduler", pair(answer.ts_load_percent, "{:.2f} % of a core")),
            ("anchor", pair(answer.ta_load_percent, "{:.2f} % of a core")),
            ("tasks wanted", f"most {answer.peak_wanted}"),
            ("tasks waiting", f"most {answer.peak_waiting}"),
            ("nodes needed", f"{answer.nodes_needed}, for {answer.needed_for}"),
            ("by kind", kinds),
            ("took", f"{answer.seconds:.1f} s"),
        )
    )


@app.command()
def run(
    from_live: Annotated[
        bool, Option("--from-live", help="Take the fleet of the controller as it is now.")
    ] = False,
    save: Annotated[
        Path | None, Option(help="Keep the prediction, for `tona sim compare`.")
    ] = None,
    seed: Annotated[int, Option(min=0)] = 1,
    as_json: AsJson = False,
) -> None:
    """Predict latencies, and where tasks would go if a node were lost."""
    from controller.twin import live  # noqa: PLC0415 - slow to import

    if not from_live:
        raise UserError("say --from-live: there is nothing else to take a fleet from")
    _check_folder(save)
    prediction = live.predict(with_api(_snapshot), seed)
    if save is not None:
        _write(save, msgspec.json.encode(prediction))
    if as_json:
        show_json(msgspec.json.encode(prediction))
        return
    made = table("SERVICE", ">ANSWERED", ">P50", ">P99")
    for name, one in sorted(prediction.latency.items()):
        waits = (or_dash(one.p50_ms, "{:.1f} ms"), or_dash(one.p99_ms, "{:.1f} ms"))
        made.add_row(name, f"{one.answered} of {one.requests}", *waits)
    show(made)
    show(f"Each service is asked {live.REQUESTS} times, every {live.GAP_MS} ms.")
    moves = table("IF LOST", "TASK", "GOES TO")
    for node, tasks in prediction.losses.items():
        for task, where in tasks.items():
            moves.add_row(node, task, where)
    show(moves)


@app.command()
def compare(
    file: Annotated[Path, Argument(help="A prediction that `tona sim run --save` has kept.")],
    as_json: AsJson = False,
) -> None:
    """Hold a prediction against what the fleet measures now."""
    from controller.twin import live  # noqa: PLC0415 - slow to import

    try:
        prediction = msgspec.json.decode(file.read_bytes(), type=live.Prediction)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise UserError(f"{file}: no prediction of `tona sim run --save`: {error}") from None
    rows = live.compare(prediction, with_api(_snapshot))
    if as_json:
        show_json(msgspec.json.encode(rows))
        return
    made = table("WHAT", ">PREDICTED", ">MEASURED", ">APART")
    for row in rows:
        made.add_row(
            row.what,
            _figure(row.predicted),
            _figure(row.measured),
            or_dash(row.error_percent, "{:+.0f} %"),
        )
    show(made)


def _figure(value: float | str | None) -> str:
    return f"{value:.1f}" if isinstance(value, float) else or_dash(value)


def _check_folder(path: Path | None) -> None:
    """Refuse a file that cannot be made before anything is computed for it. Raises UserError."""
    if path is not None and not path.absolute().parent.is_dir():
        raise UserError(f"{path}: cannot be written: there is no folder {path.parent}")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


async def _snapshot(api: Any) -> Any:
    """Return the live fleet."""
    from controller.twin.live import Snapshot  # noqa: PLC0415 - slow to import

    services = await api.call("service.list")
    return Snapshot(
        tuple(await api.call("fleet.status")),
        tuple(await api.call("usecase.list")),
        tuple(services),
        tuple(await api.call("task.list")),
        tuple([await api.call("service.qos", name=one.order.service) for one in services]),
    )
