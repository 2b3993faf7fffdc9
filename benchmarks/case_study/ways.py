"""The ways to do a case, each a cell of its own: a controller with its broker, a device agent."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.case_study import measure
from benchmarks.case_study.measure import Answer, Run
from benchmarks.harness.cell import NAME, Cell, cell
from benchmarks.harness.kernel import cpu_of_all_s
from benchmarks.harness.processes import ROOT, Process, module, running
from protocols import topics
from protocols.topics import Channel, Party
from tona.bundle import bundle

DRIVING: Final = ROOT / "examples" / "driving"
NODE: Final = "node-1"
HYBRID: Final = Path("/sys/fs/cgroup/unified")
"""Debian's crun refuses a machine with this mount."""
CASES: Final = ("plates", "traffic", "surround")
CORES: Final = os.cpu_count() or 1
RUN_SPARE_S: Final = 120.0


class Way(NamedTuple):
    """How a case is done."""

    name: str
    text: str
    server: str = ""
    """Mode of the thin server; empty: tona itself."""
    document: str = ""
    """Of the use case, in examples/driving; `{}` is the case."""
    whole: bool = False
    """Whether it is one module, which serves as many requests side by side as there are cores."""
    fresh_models: bool = False
    """Whether the models that a module has run are started for each of their runs."""
    settle_s: float = 6.0
    """After the warm-up: what fetched the artifacts leaves when nothing is to be fetched."""
    workers: int = CORES
    cases: tuple[str, ...] = CASES


WAYS: Final = {
    one.name: one
    for one in (
        Way("process", "a fresh process for each request", server="process"),
        Way("container", "a fresh container for each request", server="container"),
        Way(
            "wasm",
            "one Wasm instance for each request, and one of each model that it infers with",
            document="{}_whole.toml",
            whole=True,
            fresh_models=True,
            # What measured the models when they were deployed is kept for 20 s.
            settle_s=22.0,
        ),
        Way(
            "wasm-resident",
            "one Wasm instance for each request, models that stay",
            document="{}_whole.toml",
            whole=True,
            cases=("plates", "traffic"),
        ),
        Way("pool", "processes that stay", server="pool"),
        Way("ours", "the forms that fit best, on tona", document="{}.toml"),
    )
}
BASES: Final = ("process", "container", "wasm")
"""What ours is held against: each isolation alone, nothing kept between requests."""
MODEL: Final = 'executor = "onnx"\n'
FRESH: Final = MODEL + "deviceless = { fresh = true }\n"
TASK: Final = "[[services.tasks]]\n"
REPLICAS: Final = TASK + f"replicas = {CORES}\n"
"""As many requests side by side as the ways without a platform have processes."""


class Stand(NamedTuple):
    """A way that is up."""

    roots: list[int]
    """Its processes: with all below them they are what it takes of the memory..."""
    gateway: int
    """... and with that of the controller, its broker and its store, of the processor."""
    load: Process

    async def ask(self, question: Any, seconds: float) -> list[Answer]:
        """Have requests sent; return what became of them."""
        found = await self.load.ask(question, seconds + RUN_SPARE_S)
        return [Answer(*one) for one in found]

    async def cost_ms(self, count: int) -> float:
        """Return what processor time a request takes, one after another."""
        before_s = self._cpu_s()
        answers = await self.ask(count, 0)
        failed = next((one.failure for one in answers if one.failure), "")
        if failed:
            raise RuntimeError(f"a request has failed: {failed}")
        return 1000 * (self._cpu_s() - before_s) / count

    def _cpu_s(self) -> float:
        return cpu_of_all_s([*self.roots, self.gateway])

    async def run(self, due: list[float], seconds: float) -> Run:
        """Send requests when they are due, and measure meanwhile."""
        async with measure.sampled(lambda: self.roots) as memory:
            before_s = self._cpu_s()
            answering = asyncio.create_task(self.ask(due, seconds))
            await asyncio.sleep(seconds)
            answers = await answering
            taken_s = self._cpu_s() - before_s
        return Run(answers, [one for one in memory if one.at_s <= seconds], seconds, taken_s)


def missing(way: Way) -> str:
    """Say why a way cannot be had on this machine; empty: it can."""
    if way.server == "container":
        if not (shutil.which("crun") or shutil.which("runc")):
            return "neither crun nor runc is installed"
        if os.geteuid() != 0:
            return "containers are started here by root alone"
    return ""


@asynccontextmanager
async def stand(way: Way, case: str, inputs: Path, native: Path) -> AsyncIterator[Stand]:
    """Bring a way up for a case, warm it up, and yield it."""
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(cell(Path(name)))
            agent = await stack.enter_async_context(one.agent(NODE))
            topic = str(topics.build(NAME, Party.NODE, "case-server", Channel.INVOKE))
            roots = [agent.pid]
            if way.server:
                server = await stack.enter_async_context(_server(one, way, case, native, topic))
                roots.append(server.pid)
            else:
                path = DRIVING / way.document.format(case)
                await _submit(one, path, way)
            kind = "bare" if way.server else "tona"
            where = (one.api_url, one.host, str(one.port), topic, case, str(inputs))
            command = module("benchmarks.programs.case_load", kind, *where)
            load = await stack.enter_async_context(running(command, Path(name, "load.log")))
            await load.line()
            yield Stand(roots, one.controller.pid, load)


@asynccontextmanager
async def _server(
    one: Cell, way: Way, case: str, native: Path, topic: str
) -> AsyncIterator[Process]:
    command = module(
        "benchmarks.programs.case_server",
        *(one.host, str(one.port), topic, one.api_url, way.server, case, str(native)),
        str(way.workers),
    )
    if way.server == "container" and HYBRID.exists() and shutil.which("crun"):
        script = f'umount {HYBRID}; exec "$@"'
        command = [
            shutil.which("unshare") or "unshare",
            "--mount",
            "/bin/sh",
            "-c",
            script,
            "sh",
            *command,
        ]
    async with running(command, one.folder / "server.log") as process:
        await process.line()
        yield process


async def _submit(one: Cell, path: Path, way: Way) -> None:
    found = bundle(path)
    document = found.document
    if way.whole:
        document = document.replace(TASK, REPLICAS)
    if way.fresh_models:
        document = document.replace(MODEL, FRESH)
    for file in found.files:
        await one.put(file.path.read_bytes(), file.name)
    await one.call("usecase.submit", document=document, format=found.notation)
    await one.serving(1)
