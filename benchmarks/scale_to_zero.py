"""Real arrivals on functions that scale to zero, beside the same ones that are always there."""

import asyncio
import csv
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

import tona
from benchmarks.harness.cell import Cell, cell
from benchmarks.harness.kernel import tree
from benchmarks.harness.packages import in_package
from benchmarks.harness.report import Report, options, percentile, progress
from controller.twin.svg import Chart, Line, Panel
from device_agent.executors.process import pss_bytes

FUNCTIONS: Final = 12
TOKENS: Final = 2048
PADDING: Final = 256
SPEED: Final = 6.0
"""Seconds of the trace in one of ours."""
SECONDS: Final = 300.0
QUICK_SECONDS: Final = 30.0
SAMPLE_S: Final = 0.5
PAUSE_S: Final = 1.0
"""The shortest time after which an idle instance leaves: only requests after that may be first."""
DEADLINE_S: Final = 30.0
MB: Final = float(1 << 20)
TASK: Final = """
[[services]]
name = "f{number}"
kind = "inference"
spares = 0
outputs = {{ kind = "model.target_label" }}
[[services.tasks]]
name = "model"
executor = "onnx"
artifact = {{ digest = "{digest}", size_bytes = {size} }}
limits = {{ memory_bytes = 268435456 }}
demand = {{ cpu_percent = 0 }}
{deviceless}inputs = {{ bytes = {{ from = "request.bytes", dtype = "int32", shape = [1, 2048] }} }}
outputs = {{ target_label = {{ dtype = "float32", shape = [1, 214] }} }}
"""


class Arrival(NamedTuple):
    """One request of the trace."""

    at_s: float
    """In our time."""
    function: int


class Answer(NamedTuple):
    """What became of one."""

    latency_ms: float
    paused: bool
    """Whether its function had been idle for `PAUSE_S`."""
    failure: str


class Run(NamedTuple):
    """All answers, and the memory of the device agent with everything below it over time."""

    answers: list[Answer]
    memory_mb: list[tuple[float, float]]


def arrivals(path: Path, seconds: float) -> list[Arrival]:
    """Return the requests of the first part of the trace, each with its function.

    Which function a request is for the trace does not say: the number of its context tokens stands
    for that, so that equal requests are one function's.
    """
    found: list[Arrival] = []
    first = 0.0
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            told = datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC)
            at_s = told.timestamp() / SPEED
            first = first or at_s
            if at_s - first > seconds:
                break
            found.append(Arrival(at_s - first, int(row["ContextTokens"]) % FUNCTIONS))
    return found


def main() -> None:
    """Run the benchmark."""
    parser = options("scale_to_zero", __doc__ or "")
    parser.add_argument("--trace", type=Path, required=True, help="CSV of arrivals, as Azure's")
    parser.add_argument("--plot", type=Path, help="write memory and arrivals as an SVG file")
    asked = parser.parse_args()
    seconds = QUICK_SECONDS if asked.quick else SECONDS
    due = arrivals(asked.trace, seconds)
    report = Report("scale_to_zero")
    ours = asyncio.run(_run(due, seconds, deviceless=True))
    always = asyncio.run(_run(due, seconds, deviceless=False))
    _tell(report, "", ours)
    _tell(report, "_always", always)
    ratio = _mean(ours.memory_mb) / _mean(always.memory_mb)
    report.figure("memory_ratio", ratio)
    report.note(
        f"{len(due)} requests of {asked.trace.name} in {seconds:.0f} s, {SPEED:g} times as fast as "
        f"they came, over {FUNCTIONS} functions (context tokens modulo {FUNCTIONS}); each is "
        "Magika, a task of its own. always: the same without `deviceless`, in a second cell. "
        f"paused: requests whose function had been idle for {PAUSE_S:g} s, the only ones that may "
        "find nothing there. memory: PSS of the device agent and all below it."
    )
    if asked.plot:
        asked.plot.write_text(_chart(due, seconds, ours, always), encoding="utf-8")
    report.close()


async def _run(due: list[Arrival], seconds: float, *, deviceless: bool) -> Run:
    progress(f"{len(due)} requests, {'to zero' if deviceless else 'always there'}")
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        async with cell(Path(name)) as one, one.agent("node-1") as agent:
            await _submit(one, deviceless=deviceless)
            async with tona.connect(one.api_url) as client:
                memory: list[tuple[float, float]] = []
                began_s = time.monotonic()
                sampling = asyncio.create_task(_sample(agent.pid, began_s, memory))
                answers = await _replay(client, due, began_s)
                await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began_s)))
                sampling.cancel()
                return Run(answers, memory)


async def _submit(one: Cell, *, deviceless: bool) -> None:
    model = in_package("magika", "models/standard_v3_3/model.onnx").read_bytes()
    digest = await one.put(model, "magika.onnx")
    follow = "deviceless = {}\n" if deviceless else ""
    tasks = [
        TASK.format(number=number, digest=digest, size=len(model), deviceless=follow)
        for number in range(FUNCTIONS)
    ]
    await one.call("usecase.submit", document='name = "u"\n' + "".join(tasks))
    await one.serving(FUNCTIONS)


async def _replay(client: tona.AsyncClient, due: list[Arrival], began_s: float) -> list[Answer]:
    """Send each request when it is due, whatever became of those before."""
    tokens = np.full((1, TOKENS), PADDING, np.int32)
    over_s = dict.fromkeys(range(FUNCTIONS), 0.0)
    under_way = dict.fromkeys(range(FUNCTIONS), 0)

    async def ask(function: int) -> Answer:
        now_s = time.monotonic()
        paused = under_way[function] == 0 and now_s - over_s[function] > PAUSE_S
        under_way[function] += 1
        failure = ""
        try:
            await client.invoke(f"f{function}", {"bytes": tokens}, deadline_s=DEADLINE_S)
        except tona.InvocationError as error:
            failure = str(error)
        under_way[function] -= 1
        over_s[function] = time.monotonic()
        return Answer((over_s[function] - now_s) * 1000, paused, failure)

    asked = []
    for one in due:
        await asyncio.sleep(max(0.0, began_s + one.at_s - time.monotonic()))
        asked.append(asyncio.create_task(ask(one.function)))
    return await asyncio.gather(*asked)


async def _sample(pid: int, began_s: float, found: list[tuple[float, float]]) -> None:
    while True:
        taken = sum(map(pss_bytes, _tree(pid))) / MB
        found.append((time.monotonic() - began_s, taken))
        await asyncio.sleep(SAMPLE_S)


def _tree(pid: int) -> list[int]:
    try:
        return tree(pid)
    except FileNotFoundError:
        # A process ended while its children were read: this sample is of the agent alone.
        return [pid]


def _mean(points: list[tuple[float, float]]) -> float:
    return sum(value for _, value in points) / max(1, len(points))


def _tell(report: Report, suffix: str, found: Run) -> None:
    failed = [one.failure for one in found.answers if one.failure]
    report.figure(f"failed_count{suffix}", len(failed), 0)
    for failure in dict.fromkeys(failed):
        report.note(f"failed{suffix}: {failure}")
    for name, values in (
        ("", [one.latency_ms for one in found.answers]),
        ("paused_", [one.latency_ms for one in found.answers if one.paused]),
    ):
        report.figure(f"{name}requests_count{suffix}", len(values))
        for share in (50, 99) if values else ():
            report.figure(f"{name}p{share}_ms{suffix}", percentile(values, share))
    report.figure(f"memory_mean_mb{suffix}", _mean(found.memory_mb))
    report.figure(f"memory_most_mb{suffix}", max(value for _, value in found.memory_mb))


def _per_second(due: list[Arrival], seconds: float) -> Iterator[tuple[float, float]]:
    counts = [0] * (int(seconds) + 1)
    for one in due:
        counts[int(one.at_s)] += 1
    yield from ((float(at), float(count)) for at, count in enumerate(counts))


def _chart(due: list[Arrival], seconds: float, ours: Run, always: Run) -> str:
    memory = Panel(
        "memory of the device agent and its executors, MB",
        (Line("to zero", ours.memory_mb), Line("always there", always.memory_mb)),
    )
    load = Panel("requests a second", (Line("arrivals", list(_per_second(due, seconds))),))
    title = f"{FUNCTIONS} functions under real arrivals"
    return Chart(title, "seconds", (memory, load), (0.0, seconds)).svg()


if __name__ == "__main__":
    main()
