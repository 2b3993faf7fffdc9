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
from benchmarks.harness.kernel import children
from benchmarks.harness.packages import in_package
from benchmarks.harness.processes import ROOT
from benchmarks.harness.report import Report, between, options, percentile, progress
from controller.twin.svg import Chart, Line, Panel
from device_agent.executors.process import pss_bytes

FUNCTIONS: Final = 16
CLASS_TOKENS: Final = 320
"""Context tokens of requests that are one function's."""
TOKENS: Final = 2048
PADDING: Final = 256
SPEED: Final = 5.0
"""Seconds of the trace in one of ours."""
SECONDS: Final = 120.0
QUICK_SECONDS: Final = 20.0
SAMPLE_S: Final = 0.5
SHORT_MS: Final = 1000
"""The fixed time after which an idle instance leaves, and the shortest one that is learnt."""
DEADLINE_S: Final = 30.0
WORKER_LEVEL: Final = 3
MB: Final = float(1 << 20)
PAGE: Final = ROOT / "docs" / "casestudy.md"
HEAD: Final = (
    "| instances stay | requests | failed | p50 ms | p99 ms | first requests | p50 ms | p99 ms "
    "| memory mean MB | most MB | instances in the mean |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|\n"
)
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
limits = {{ memory_bytes = 134217728 }}
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
    first: bool
    """Whether its function had been idle for `SHORT_MS`: only then may it have found nothing."""
    failure: str


class Way(NamedTuple):
    """How long idle instances stay."""

    name: str
    label: str
    deviceless: str
    """Of the task's document."""


class Run(NamedTuple):
    """All answers; memory of the device agent and all below it, and who runs models, over time."""

    answers: list[Answer]
    memory_mb: list[tuple[float, float]]
    instances: list[tuple[float, float]]


WAYS: Final = (
    Way("learnt", "learnt keep-alive", "deviceless = {}\n"),
    Way("short", "fixed keep-alive of 1 s", f"deviceless = {{ keep_alive_ms = {SHORT_MS} }}\n"),
    Way("always", "always there", ""),
)


def arrivals(path: Path, seconds: float) -> list[Arrival]:
    """Return the requests of the first part of the trace, each with its function.

    Which function a request is for the trace does not say: its class of context tokens stands for
    that. So some functions are asked often and most seldom, as it is with real ones.
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
            found.append(
                Arrival(at_s - first, min(FUNCTIONS - 1, int(row["ContextTokens"]) // CLASS_TOKENS))
            )
    return found


def main() -> None:
    """Run the benchmark."""
    parser = options("scale_to_zero", __doc__ or "")
    parser.add_argument("--trace", type=Path, required=True, help="CSV of arrivals, as Azure's")
    parser.add_argument("--plot", type=Path, help="write memory and arrivals as an SVG file")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each of the three runs")
    parser.add_argument("--docs", action="store_true", help=f"renew docs/{PAGE.name}")
    asked = parser.parse_args()
    seconds = QUICK_SECONDS if asked.quick else asked.seconds
    due = arrivals(asked.trace, seconds)
    report = Report("scale_to_zero")
    found = {way.name: asyncio.run(_run(due, seconds, way)) for way in WAYS}
    for name, run in found.items():
        _tell(report, f"_{name}", run)
    for name in ("learnt", "short"):
        ratio = _mean(found[name].memory_mb) / _mean(found["always"].memory_mb)
        report.figure(f"memory_ratio_{name}", ratio)
    report.note(
        f"{len(due)} requests of {asked.trace.name} in {seconds:.0f} s, {SPEED:g} times as fast as "
        f"they came, over {FUNCTIONS} functions: classes of {CLASS_TOKENS} context tokens. Each is "
        "a task with a model file of its own (Magika, told apart by its metadata), at a cell and "
        "one device agent that are made anew for each way. learnt: deviceless, the keep-alive "
        f"learnt (60 s until it is); short: {SHORT_MS} ms; always: not deviceless. Times that are "
        "compressed make idle times short: that favours nobody who lets instances leave. first: "
        f"requests whose function had been idle for {SHORT_MS} ms, the only ones that may find "
        "nothing there. memory: PSS of the device agent and all below it."
    )
    told = _table(found)
    print(told)
    if asked.plot:
        asked.plot.write_text(_chart(due, seconds, found), encoding="utf-8")
    if asked.docs:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(between(text, "scale to zero", told), encoding="utf-8")
    report.close()


async def _run(due: list[Arrival], seconds: float, way: Way) -> Run:
    progress(f"{len(due)} requests, {way.label}")
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        async with cell(Path(name)) as one, one.agent("node-1") as agent:
            await _submit(one, way)
            async with tona.connect(one.api_url) as client:
                found = Run([], [], [])
                began_s = time.monotonic()
                sampling = asyncio.create_task(_sample(agent.pid, began_s, found))
                found.answers.extend(await _replay(client, due, began_s))
                await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began_s)))
                sampling.cancel()
                return found


async def _submit(one: Cell, way: Way) -> None:
    model = in_package("magika", "models/standard_v3_3/model.onnx").read_bytes()
    tasks = []
    for number in range(FUNCTIONS):
        own = model + _metadata(b"function", b"%d" % number)
        digest = await one.put(own, f"magika-{number}.onnx")
        tasks.append(
            TASK.format(number=number, digest=digest, size=len(own), deviceless=way.deviceless)
        )
    await one.call("usecase.submit", document='name = "u"\n' + "".join(tasks))
    await one.serving(FUNCTIONS)


def _metadata(key: bytes, value: bytes) -> bytes:
    """Return an entry of `ModelProto.metadata_props` to append to a model: protobuf adds them."""
    entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(value)]) + value
    return b"\x72" + bytes([len(entry)]) + entry


async def _replay(client: tona.AsyncClient, due: list[Arrival], began_s: float) -> list[Answer]:
    """Send each request when it is due, whatever became of those before."""
    tokens = np.full((1, TOKENS), PADDING, np.int32)
    over_s = dict.fromkeys(range(FUNCTIONS), 0.0)
    under_way = dict.fromkeys(range(FUNCTIONS), 0)

    async def ask(function: int) -> Answer:
        now_s = time.monotonic()
        first = under_way[function] == 0 and now_s - over_s[function] > SHORT_MS / 1000
        under_way[function] += 1
        failure = ""
        try:
            await client.invoke(f"f{function}", {"bytes": tokens}, deadline_s=DEADLINE_S)
        except tona.InvocationError as error:
            failure = str(error)
        under_way[function] -= 1
        over_s[function] = time.monotonic()
        return Answer((over_s[function] - now_s) * 1000, first, failure)

    asked = []
    for one in due:
        await asyncio.sleep(max(0.0, began_s + one.at_s - time.monotonic()))
        asked.append(asyncio.create_task(ask(one.function)))
    return await asyncio.gather(*asked)


async def _sample(pid: int, began_s: float, found: Run) -> None:
    while True:
        levels = _levels(pid)
        at_s = time.monotonic() - began_s
        found.memory_mb.append((at_s, sum(pss_bytes(one) for one, _ in levels) / MB))
        # The agent, the ONNX zygote, the models that it has loaded, and those who run each.
        found.instances.append((at_s, float(sum(level == WORKER_LEVEL for _, level in levels))))
        await asyncio.sleep(SAMPLE_S)


def _levels(pid: int, level: int = 0) -> list[tuple[int, int]]:
    """Return a process and all below it, each with how far below."""
    found = [(pid, level)]
    for one in children(pid):
        found += _levels(one, level + 1)
    return found


def _mean(points: list[tuple[float, float]]) -> float:
    return sum(value for _, value in points) / max(1, len(points))


def _tell(report: Report, suffix: str, found: Run) -> None:
    failed = [one.failure for one in found.answers if one.failure]
    report.figure(f"failed_count{suffix}", len(failed), 0)
    for failure in dict.fromkeys(failed):
        report.note(f"failed{suffix}: {failure}")
    for name, values in (
        ("", [one.latency_ms for one in found.answers]),
        ("first_", [one.latency_ms for one in found.answers if one.first]),
    ):
        report.figure(f"{name}requests_count{suffix}", len(values))
        for share in (50, 99) if values else ():
            report.figure(f"{name}p{share}_ms{suffix}", percentile(values, share))
    report.figure(f"memory_mean_mb{suffix}", _mean(found.memory_mb))
    report.figure(f"memory_most_mb{suffix}", max(value for _, value in found.memory_mb))
    report.figure(f"instances_mean_count{suffix}", _mean(found.instances))


def _table(found: dict[str, Run]) -> str:
    parts = [HEAD]
    for way in WAYS:
        run = found[way.name]
        every = [one.latency_ms for one in run.answers] or [0.0]
        first = [one.latency_ms for one in run.answers if one.first] or [0.0]
        failed = sum(bool(one.failure) for one in run.answers)
        parts.append(
            f"| {way.label} | {len(run.answers)} | {failed} | {percentile(every, 50):.1f} "
            f"| {percentile(every, 99):.1f} | {sum(one.first for one in run.answers)} "
            f"| {percentile(first, 50):.1f} | {percentile(first, 99):.1f} "
            f"| {_mean(run.memory_mb):.0f} | {max(value for _, value in run.memory_mb):.0f} "
            f"| {_mean(run.instances):.1f} |\n"
        )
    return "".join(parts)


def _per_second(due: list[Arrival], seconds: float) -> Iterator[tuple[float, float]]:
    counts = [0] * (int(seconds) + 1)
    for one in due:
        counts[int(one.at_s)] += 1
    yield from ((float(at), float(count)) for at, count in enumerate(counts))


def _chart(due: list[Arrival], seconds: float, found: dict[str, Run]) -> str:
    memory = Panel(
        "memory of the device agent and its executors, MB",
        tuple(Line(way.label, found[way.name].memory_mb) for way in WAYS),
    )
    instances = Panel(
        f"instances that hold memory, of {FUNCTIONS} functions",
        tuple(Line(way.label, found[way.name].instances) for way in WAYS),
    )
    load = Panel("requests a second", (Line("arrivals", list(_per_second(due, seconds))),))
    title = f"{FUNCTIONS} functions under real arrivals, {SPEED:g} times as fast"
    return Chart(title, "seconds", (memory, instances, load), (0.0, seconds)).svg()


if __name__ == "__main__":
    main()
