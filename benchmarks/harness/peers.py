"""Other systems beside ours: installed into virtual environments of their own, run from there."""

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

from benchmarks.harness.processes import ROOT, Process, running
from benchmarks.harness.report import progress
from controller.broker.lease import PortLease

PROGRAMS: Final = ROOT / "benchmarks" / "programs"
INSTALL_TIMEOUT_S: Final = 900.0
REDIS_READY: Final = b"+PONG"
REDIS_TIMEOUT_S: Final = 20.0


class Missing(Exception):
    """A peer cannot be measured here; the text says why."""


async def venv(folder: Path, name: str, requirement: str) -> Path:
    """Return the interpreter of a peer's environment, made and filled when it is not there yet.

    Raises Missing with what the installer said.
    """
    home = folder / name
    python = home / "bin" / "python"
    done = home / "installed"
    if done.exists():
        return python
    progress(f"installing {requirement} into {home}")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(python), "-m", "pip", "install", "--quiet", requirement],
    ):
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(INSTALL_TIMEOUT_S):
                said, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            raise Missing(f"{requirement} was not installed in time") from None
        if process.returncode != 0:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
            raise Missing(f"{requirement} does not install: {last[0][:300]}")
    done.touch()
    return python


@asynccontextmanager
async def client(
    python: Path, program: str, folder: Path, more: Mapping[str, str]
) -> AsyncIterator[Process]:
    """Run a peer's client, and yield it when it is ready."""
    command = [str(python), str(PROGRAMS / f"{program}.py")]
    async with running(command, folder / f"{program}.log", more) as one:
        await one.line()
        yield one


def redis_server() -> str:
    """Return where Redis is. Raises Missing."""
    server = shutil.which("redis-server")
    if server is None:
        raise Missing("redis-server is not installed")
    return server


@asynccontextmanager
async def redis(folder: Path, *, durable: bool) -> AsyncIterator[str]:
    """Run a Redis of our own, and yield its URL: as shipped, or each write on the disk first."""
    server = redis_server()
    with closing(PortLease("127.0.0.1", 0, "Redis")) as lease:
        home = folder / f"redis-{lease.port}"
        home.mkdir()
        options = ["--port", str(lease.port), "--bind", "127.0.0.1", "--dir", str(home)]
        if durable:
            options += ["--appendonly", "yes", "--appendfsync", "always"]
        async with running([server, *options], folder / "redis.log"):
            await _answers(lease.port)
            yield f"redis://127.0.0.1:{lease.port}/0"


async def _answers(port: int) -> None:
    async with asyncio.timeout(REDIS_TIMEOUT_S):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.write(b"PING\r\n")
            said = await reader.readline()
            writer.close()
            if said.startswith(REDIS_READY):
                return


@asynccontextmanager
async def celery(folder: Path, python: Path, *, durable: bool) -> AsyncIterator[Process]:
    """Run Redis, a Celery worker and a client of it, and yield the client."""
    async with redis(folder, durable=durable) as url:
        more = {"DISPATCH_REDIS": url, "DISPATCH_DURABLE": str(int(durable))}
        command = [str(python), "-m", "celery", "-A", "celery_app", "worker", "--loglevel=ERROR"]
        more |= {"PYTHONPATH": str(PROGRAMS)}
        async with (
            running(command, folder / "celery.log", more),
            client(python, "peer_celery", folder, more) as one,
        ):
            # The first tasks wait for the worker and are not measured.
            await one.ask({"one": 20})
            yield one
