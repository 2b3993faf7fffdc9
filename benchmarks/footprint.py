"""What an idle device agent takes: TLS, 1 Hz, settled; beside bare Python and a node exporter."""

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks.harness import kernel
from benchmarks.harness.cell import Cell, cell
from benchmarks.harness.processes import module, running
from benchmarks.harness.report import Report, median, options, progress
from controller.broker.lease import PortLease
from protocols.topics import Speaker

HOST: Final = "127.0.0.1"
SETTLE_S: Final = 60.0
WINDOW_S: Final = 60.0
QUICK_S: Final = 5.0
PSS_BOUND_MB: Final = 26.0
CPU_BOUND_PERCENT: Final = 0.5
SCRAPE_S: Final = 1.0
EXPORTER: Final = "prometheus-node-exporter"
NOTES: Final = """
*_pss_mb count every page as the process's own but those of the C library and the loader: the \
proportional set size of a lone one. agent_pss_shared_mb is what the kernel said during the run, \
among the other Python processes of the benchmark, and is smaller for that.
Byte code is cached (one start before the measured one): a first start compiles, and keeps more.
MB are 1024 x 1024 bytes. Processor time is utime + stime over the window, of one core.
"""


async def main() -> None:
    """Run the benchmark."""
    parser = options("footprint", __doc__ or "")
    parser.add_argument(
        "--agent-python",
        default=sys.executable,
        help="interpreter of an installation with the agent's extras alone, as on a device",
    )
    asked = parser.parse_args()
    settle_s = window_s = QUICK_S if asked.quick else SETTLE_S
    if not asked.quick:
        window_s = WINDOW_S
    report = Report("footprint")
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        identities = dict.fromkeys(("node-0", "node-1", "bare"), Speaker.NODE)
        async with (
            cell(Path(name), trusted_host=HOST, identities=identities) as one,
            AsyncExitStack() as stack,
        ):
            progress("a first start, which caches byte code")
            async with one.agent("node-0"):
                pass
            subjects = await _start(one, stack, asked.agent_python)
            progress(f"settling for {settle_s:.0f} s, then measuring for {window_s:.0f} s")
            await asyncio.sleep(settle_s)
            before = {what: kernel.cpu_of_all_s([pid]) for what, pid in subjects.items()}
            began = asyncio.get_running_loop().time()
            samples = await _sample(subjects, window_s)
            took_s = asyncio.get_running_loop().time() - began
            cpu = {
                what: 100 * (kernel.cpu_of_all_s([pid]) - before[what]) / took_s
                for what, pid in subjects.items()
            }
            _tell(report, subjects, samples, cpu)
    report.close()


async def _start(one: Cell, stack: AsyncExitStack, agent_python: str) -> dict[str, int]:
    """Start everything that is measured; return process ids by name."""
    agent = await stack.enter_async_context(
        one.agent("node-1", lambda command: [agent_python, *command[1:]])
    )
    subjects = {"agent": agent.pid}
    assert one.trust is not None
    bundle = str(one.trust.bundle("bare"))
    for what, arguments in {"python": (), "gmqtt": (bundle,)}.items():
        command = module("benchmarks.programs.idle", *arguments)
        log = one.folder / f"{what}.log"
        async with running(command, log) as first:
            await first.line()
        process = await stack.enter_async_context(running(command, log))
        await process.line()
        subjects[what] = process.pid
    if shutil.which(EXPORTER):
        subjects["exporter"] = await stack.enter_async_context(_exporter(one.folder))
    return subjects


@asynccontextmanager
async def _exporter(folder: Path) -> AsyncIterator[int]:
    """Run a node exporter that is asked for its metrics once a second."""
    with contextlib.closing(PortLease(HOST, 0, EXPORTER)) as lease:
        command = [str(shutil.which(EXPORTER)), f"--web.listen-address={HOST}:{lease.port}"]
        async with running(command, folder / "exporter.log") as process:
            scraping = asyncio.create_task(_scrape(lease.port))
            try:
                yield process.pid
            finally:
                scraping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await scraping


async def _scrape(port: int) -> None:
    request = f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    while True:
        with contextlib.suppress(ConnectionError):  # it has not opened its port yet
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(request)
            await reader.read(-1)
            writer.close()
        await asyncio.sleep(SCRAPE_S)


async def _sample(
    subjects: dict[str, int], window_s: float
) -> dict[str, list[Sequence[kernel.Memory]]]:
    """Return, for each subject, what its processes take at ten moments of the window."""
    found: dict[str, list[Sequence[kernel.Memory]]] = {what: [] for what in subjects}
    for _ in range(10):
        await asyncio.sleep(window_s / 10)
        for what, pid in subjects.items():
            found[what].append(list(_memories(pid)))
    return found


def _memories(pid: int) -> Iterator[kernel.Memory]:
    """Read a process and all below it; of those one may end meanwhile."""
    yield kernel.memory(pid)
    for one in kernel.tree(pid)[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield kernel.memory(one)


def _tell(
    report: Report,
    subjects: dict[str, int],
    samples: dict[str, list[Sequence[kernel.Memory]]],
    cpu: dict[str, float],
) -> None:
    for what in subjects:
        own = [moment[0] for moment in samples[what]]
        bound = PSS_BOUND_MB if what == "agent" else None
        report.figure(f"{what}_pss_mb", median([one.lone for one in own]), bound)
        if what == "agent":
            whole = [sum(one.lone for one in moment) for moment in samples[what]]
            report.figure("tree_pss_mb", median(whole))
            count = median([len(moment) for moment in samples[what]])
            report.figure("tree_processes_count", count)
            for name in ("pss", "uss", "rss"):
                shown = "pss_shared" if name == "pss" else name
                report.figure(
                    f"agent_{shown}_mb", median([float(getattr(one, name)) for one in own])
                )
        bound = CPU_BOUND_PERCENT if what == "agent" else None
        report.figure(f"{what}_cpu_percent", cpu[what], bound)
    bare = median([moment[0].lone for moment in samples["python"]])
    agent = median([moment[0].lone for moment in samples["agent"]])
    report.figure("pss_over_bare_python_ratio", agent / bare)
    for note in NOTES.strip().splitlines():
        report.note(note)
    if "exporter" not in subjects:
        report.note(f"{EXPORTER} is not installed here, so it was not measured.")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
