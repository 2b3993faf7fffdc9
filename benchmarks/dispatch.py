"""A job from submit to result, durable, beside its floor and beside Celery, Dask and Ray.

The floor is what nobody can go below on this machine: two MQTT round trips through the same broker
and one commit of the store. It takes turns with our jobs, one by one; Celery on a durable Redis
takes turns with both, by rounds; the others follow in the same run, each alone.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import tona
from benchmarks.harness import peers
from benchmarks.harness.bare import Requester, requester
from benchmarks.harness.cell import Cell, cell
from benchmarks.harness.peers import Missing
from benchmarks.harness.processes import Process
from benchmarks.harness.report import Report, median, options, percentile, progress
from controller.decider import Record
from controller.records import JOB, JobRecord
from controller.store import SqliteStore
from protocols.manifest import Dtype
from protocols.messages import JobSubmit
from protocols.messages.invocation import Tensor
from protocols.messages.job import JobState

JOBS: Final = 1000
QUICK_JOBS: Final = 100
MANY: Final = 10_000
QUICK_MANY: Final = 1000
MANY_TIMEOUT_S: Final = 900.0
WARM_UP: Final = 30
ROUNDS: Final = 10
VALUE_BYTES: Final = 100
MESSAGE_BYTES: Final = 300
"""About what a job and its end take on the wire."""
RATIO_CELERY: Final = 0.25
RATIO_FLOOR: Final = 2.5
DASK: Final = "distributed"
RAY: Final = "ray"
CELERY: Final = "celery[redis]"
SERVICE: Final = """
name = "bench"
[[services]]
name = "echo"
kind = "computing"
spares = 0
outputs = { y = "work.y" }
[[services.tasks]]
name = "work"
executor = "wasm"
artifact = { digest = "%s", size_bytes = %d }
limits = { memory_bytes = 1048576, queue = 256 }
demand = { cpu_percent = 0 }
inputs = { x = { from = "request.x", dtype = "uint8", shape = [-1] } }
outputs = { y = { dtype = "uint8", shape = [-1] } }
"""
GUEST: Final = """
(module
  (memory (export "memory") 1)
  (global $top (mut i32) (i32.const 1024))
  (func (export "tona_alloc") (param $size i32) (result i32) (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top
      (i32.and (i32.add (i32.add (global.get $top) (local.get $size)) (i32.const 15))
               (i32.const -16)))
    (local.get $at))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32)
    (memory.copy (local.get $out) (local.get $in) (i32.const 48))
    (i32.const 0)))
"""


class Ours(NamedTuple):
    """Of each job in microseconds, of all at once in seconds."""

    results: list[float]
    accepted: list[float]
    floor: list[float]
    trips: list[float]
    commits: list[float]
    many_s: float


async def _serve(one: Cell) -> None:
    from wasmtime import wat2wasm  # noqa: PLC0415 - an executor's library, for this alone

    code = bytes(wat2wasm(GUEST))
    digest = await one.put(code, "echo.wasm")
    await one.call("usecase.submit", document=SERVICE % (digest, len(code)))
    await one.serving(1)


class Floor:
    """What nobody can go below: two round trips and a commit, one after another."""

    def __init__(self, asking: Requester, store: SqliteStore, epoch: int) -> None:
        self._asking = asking
        self._store = store
        self._epoch = epoch
        self._number = 0

    async def once(self) -> tuple[float, float]:
        """Return the times of both round trips, and of the commit, in microseconds."""
        trips = await self._asking.ask(bytes(MESSAGE_BYTES))
        trips += await self._asking.ask(bytes(MESSAGE_BYTES))
        self._number += 1
        name = f"floor-{self._number}"
        value = Tensor(Dtype.UINT8, (VALUE_BYTES,), bytes(VALUE_BYTES))
        submit = JobSubmit(name, "echo", {}, "tona/1/cell/client/bench/reply")
        record = JobRecord(submit, "bench", "default", JobState.DONE, 1, {0: {"y": value}})
        began = time.perf_counter_ns()
        await self._store.append(self._epoch, None, [Record(JOB, name, record, name)])
        return trips, (time.perf_counter_ns() - began) / 1000


@asynccontextmanager
async def floor(one: Cell, folder: Path) -> AsyncIterator[Floor]:
    """Make the floor ready: a bare responder, and a store beside that of the cell."""
    store = await SqliteStore.open(folder / "floor" / "store.sqlite")
    try:
        epoch = await store.acquire("bench")
        async with requester(one, "bare", MESSAGE_BYTES, qos=0, answer_qos=0) as asking:
            yield Floor(asking, store, epoch)
    finally:
        await store.close()


async def _job(client: tona.AsyncClient, value: bytes) -> tuple[float, float]:
    """Have one job done; return when it was accepted and when it was over, in microseconds."""
    began = time.perf_counter_ns()
    job = await client.submit("echo", {"x": value})
    accepted = time.perf_counter_ns()
    result = await job.result()
    ended = time.perf_counter_ns()
    assert result.data("y") == value, "a wrong answer"
    return (accepted - began) / 1000, (ended - began) / 1000


@asynccontextmanager
async def our_cell() -> AsyncIterator[tuple[tona.AsyncClient, Floor]]:
    """Run a cell of one node that serves the echo, with a client and the floor beside it."""
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        folder = Path(name)
        async with (
            cell(folder) as one,
            one.agent("node-1"),
            floor(one, folder) as below,
            tona.connect(one.api_url) as client,
        ):
            await _serve(one)
            for at in range(WARM_UP):
                await _job(client, b"%0100d" % at)
                await below.once()
            yield client, below


async def _one_by_one(found: Ours, client: tona.AsyncClient, below: Floor, jobs: int) -> None:
    """Have jobs done one after another, in turns with the floor."""
    for at in range(jobs):
        accepted, ended = await _job(client, b"%0100d" % at)
        trips, commit = await below.once()
        found.accepted.append(accepted)
        found.results.append(ended)
        found.trips.append(trips)
        found.commits.append(commit)
        found.floor.append(trips + commit)


async def _at_once(client: tona.AsyncClient, many: int) -> float:
    began = time.perf_counter_ns()
    await asyncio.gather(*(_job(client, b"%0100d" % at) for at in range(many)))
    return (time.perf_counter_ns() - began) / 1e9


class Peer(NamedTuple):
    """What another system did."""

    results: list[float]
    many_s: float


async def beside(python: Path | None, jobs: int, many: int) -> tuple[Ours, Peer | None]:
    """Measure ours, in turns with its floor and, by rounds, with Celery on a durable Redis."""
    own, theirs, theirs_s = Ours([], [], [], [], [], 0.0), list[float](), 0.0
    async with AsyncExitStack() as stack:
        process = None
        if python is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tona-bench-")))
            celery_there = peers.celery(folder, python, durable=True)
            process = await stack.enter_async_context(celery_there)
        client, below = await stack.enter_async_context(our_cell())
        beside_whom = "its floor" if process is None else "its floor and durable Celery"
        progress(f"{jobs} jobs one after another, in turns with {beside_whom}")
        for _ in range(ROUNDS):
            await _one_by_one(own, client, below, jobs // ROUNDS)
            if process is not None:
                theirs += (await process.ask({"one": jobs // ROUNDS}))["us"]
        progress(f"{many} jobs at once")
        own = own._replace(many_s=await _at_once(client, many))
        if process is not None:
            theirs_s = (await process.ask({"many": many}, MANY_TIMEOUT_S))["s"]
    return own, Peer(theirs, theirs_s) if process is not None else None


async def _measure(process: Process, jobs: int, many: int) -> Peer:
    await process.ask({"one": WARM_UP})
    times = (await process.ask({"one": jobs}))["us"]
    return Peer(times, (await process.ask({"many": many}, MANY_TIMEOUT_S))["s"])


async def as_shipped(python: Path, jobs: int, many: int) -> Peer:
    """Measure Celery with a Redis as both are shipped."""
    progress("Celery with Redis, as shipped")
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        async with peers.celery(Path(name), python, durable=False) as process:
            return await _measure(process, jobs, many)


async def other(cache: Path, name: str, requirement: str, jobs: int, many: int) -> Peer:
    """Measure Dask or Ray."""
    python = await peers.venv(cache, name, requirement)
    progress(name)
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as folder:
        async with peers.client(python, f"peer_{name}", Path(folder), {}) as process:
            return await _measure(process, jobs, many)


def _tell(report: Report, found: Ours, many: int) -> None:
    report.figure(
        "p50_ratio_floor", percentile(found.results, 50) / percentile(found.floor, 50), RATIO_FLOOR
    )
    for share in (50, 99):
        report.figure(f"p{share}_us", percentile(found.results, share))
        report.figure(f"accepted_p{share}_us", percentile(found.accepted, share))
        report.figure(f"floor_p{share}_us", percentile(found.floor, share))
    report.figure("floor_trips_p50_us", median(found.trips))
    report.figure("floor_commit_p50_us", median(found.commits))
    report.figure("jobs_per_s", many / found.many_s)


def _tell_peer(report: Report, name: str, found: Peer, own: Ours, many: int) -> None:
    bound = RATIO_CELERY if name == "celery" else None
    ratio = percentile(own.results, 50) / percentile(found.results, 50)
    report.figure(f"p50_ratio_{name}", ratio, bound)
    for share in (50, 99):
        report.figure(f"{name}_p{share}_us", percentile(found.results, share))
    report.figure(f"{name}_jobs_per_s", many / found.many_s)
    report.figure(f"jobs_per_s_ratio_{name}", found.many_s / own.many_s)


async def _others(report: Report, cache: Path, own: Ours, jobs: int, many: int) -> None:
    """Measure what is not durable, each alone."""
    ways: dict[str, Callable[[], Awaitable[Peer]]] = {
        "celery_as_shipped": lambda: _celery_as_shipped(cache, jobs, many),
        "dask": lambda: other(cache, "dask", DASK, jobs, many),
        "ray": lambda: other(cache, "ray", RAY, jobs, many),
    }
    for name, way in ways.items():
        try:
            found = await way()
        except Missing as reason:
            report.note(f"{name} was left out: {reason}.")
        else:
            _tell_peer(report, name, found, own, many)


async def _celery_as_shipped(cache: Path, jobs: int, many: int) -> Peer:
    return await as_shipped(await peers.venv(cache, "celery", CELERY), jobs, many)


async def _celery(report: Report, cache: Path | None) -> Path | None:
    """Return the interpreter of Celery when it can be measured durably."""
    if cache is None:
        report.note("Without --peers FOLDER the other systems are left out.")
        return None
    try:
        peers.redis_server()
        return await peers.venv(cache, "celery", CELERY)
    except Missing as reason:
        report.note(f"celery was left out: {reason}.")
        return None


async def main() -> None:
    """Run the benchmark."""
    parser = options("dispatch", __doc__ or "")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="measure Celery, Dask and Ray too, installed into environments in this folder",
    )
    asked = parser.parse_args()
    jobs, many = (QUICK_JOBS, QUICK_MANY) if asked.quick else (JOBS, MANY)
    report = Report("dispatch")
    cache = asked.peers.expanduser().absolute() if asked.peers else None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    python = await _celery(report, cache)
    own, theirs = await beside(python, jobs, many)
    _tell(report, own, many)
    if theirs is not None:
        _tell_peer(report, "celery", theirs, own, many)
    if cache is not None:
        await _others(report, cache, own, jobs, many)
    report.note(
        "celery: Redis with appendfsync always, acks_late; celery_as_shipped: neither is durable "
        "against the loss of the machine. Dask and Ray keep nothing on the disk."
    )
    report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
