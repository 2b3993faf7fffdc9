"""A thin server behind the broker that answers a case: what the ways without a platform have.

    python -m benchmarks.programs.case_server HOST PORT TOPIC STORE WAY CASE FOLDER LIMIT

WAY: `process`, a fresh process for each request; `container`, the same in a container; `pool`,
LIMIT processes that stay, with everything loaded. At most LIMIT requests are under way, the others
wait in order. Large values come and go by digest through the cell's store, as the platform's do.
"""

import asyncio
import contextlib
import fcntl
import io
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

from gmqtt import Client

from benchmarks.harness.lines import say, serve
from benchmarks.programs import case_program
from benchmarks.programs.case_program import Tensors
from benchmarks.programs.case_values import pack, unpack
from device_agent.executors import programs
from tona.store import Store

KEEPALIVE_S: Final = 3600
PIPE_BYTES: Final = 1 << 20
PROGRAM: Final = str(Path(case_program.__file__))
BINDING: Final = programs.__path__[0]
"""Where what speaks to ONNX Runtime lies."""
READ_BYTES: Final = 1 << 26
WORDS_BYTES: Final = 300


def command_of(folder: str, case: str, when: str = "first") -> list[str]:
    """Return the leanest start of the program: no site, its packages named."""
    return [sys.executable, "-I", "-S", PROGRAM, folder, case, when, *_packages()]


def _packages() -> list[str]:
    return [BINDING, *(one for one in sys.path if one.endswith("site-packages"))]


class Process:
    """One process that answers frames."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, inputs: Tensors) -> Tensors:
        """Run once. Raises RuntimeError when the program fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        frame = io.BytesIO()
        case_program.write_tensors(frame, inputs)
        self._process.stdin.write(frame.getbuffer())
        found = await _frame(self._process.stdout)
        if found is None:
            raise RuntimeError(f"the program has ended without an answer: {await self._words()}")
        return found

    async def _words(self) -> str:
        """Return how it ended, and the last that it said."""
        status = await self._process.wait()
        said = b"" if self._process.stderr is None else await self._process.stderr.read()
        return f"status {status}, {said[-WORDS_BYTES:].decode(errors='replace').strip()}"

    async def end(self) -> None:
        """Close its input, at which it ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


async def _frame(source: asyncio.StreamReader) -> Tensors | None:
    try:
        number = case_program.HEAD.unpack(await source.readexactly(case_program.HEAD.size))[0]
        found: Tensors = {}
        for _ in range(number):
            head = await source.readexactly(case_program.TENSOR.size)
            length, dtype, rank, *dims, size = case_program.TENSOR.unpack(head)
            name = (await source.readexactly(length)).decode()
            found[name] = (dtype, tuple(dims[:rank]), await source.readexactly(size))
    except asyncio.IncompleteReadError:
        return None
    return found


async def _start(command: list[str], *, once: bool) -> Process:
    """Start the program; what runs `once` has its last words kept."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if once else None,
        limit=READ_BYTES,
    )
    assert process.stdin is not None
    pipe = process.stdin.transport.get_extra_info("pipe")
    # A program that has ended by then has a closed pipe, which has no number.
    with contextlib.suppress(OSError, ValueError):
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return Process(process)


class Fresh:
    """A new process, or container, for each request."""

    def __init__(self, command: list[str], limit: int) -> None:
        self._command = command
        self._free = asyncio.Semaphore(limit)
        self._numbers = count()

    async def run(self, inputs: Tensors) -> Tensors:
        """Start, ask, end."""
        async with self._free:
            number = str(next(self._numbers))
            process = await _start([one.replace("@", number) for one in self._command], once=True)
            try:
                return await process.ask(inputs)
            finally:
                await process.end()


class Pool:
    """Processes that stay."""

    def __init__(self, processes: list[Process]) -> None:
        self._idle: asyncio.LifoQueue[Process] = asyncio.LifoQueue()
        for one in processes:
            self._idle.put_nowait(one)

    async def run(self, inputs: Tensors) -> Tensors:
        """Ask the one that was busy last: its memory is warm."""
        one = await self._idle.get()
        try:
            return await one.ask(inputs)
        finally:
            self._idle.put_nowait(one)


def bundle(folder: Path, native: str, case: str) -> list[str]:
    """Write an OCI bundle that sees the host's interpreter and libraries; return how it is run.

    No image is unpacked: code and libraries are the host's files, mounted read-only, so that a
    container shares their pages with everyone.
    """
    (folder / "rootfs" / "dev").mkdir(parents=True)
    seen = ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(Path(PROGRAM).parent))
    places = [one for one in dict.fromkeys((*seen, BINDING, native)) if Path(one).exists()]
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        # Of its own: runtimes make its nodes and links, in each other's way where two share it.
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]
    mounts += [
        {"destination": one, "source": one, "type": "bind", "options": ["rbind", "ro"]}
        for one in places
    ]
    config = {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": command_of(native, case),
            "env": ["PATH=/usr/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": False},
        "hostname": "case",
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": one} for one in ("pid", "mount", "ipc", "uts", "network")]
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = f"--root={folder / 'state'}"
    if shutil.which("crun"):
        runtime = ["crun", state, "--cgroup-manager=disabled"]
    else:
        runtime = ["runc", state]
    return [*runtime, "run", f"--bundle={folder}", "case-@"]


@asynccontextmanager
async def way(name: str, case: str, folder: str, limit: int) -> AsyncIterator[Fresh | Pool]:
    """Yield what runs requests."""
    command = command_of(folder, case)
    if name == "process":
        yield Fresh(command, limit)
    elif name == "container":
        with tempfile.TemporaryDirectory(prefix="tona-bundle-") as place:
            yield Fresh(bundle(Path(place), folder, case), limit)
    else:
        async with AsyncExitStack() as stack:
            command = command_of(folder, case, case_program.AT_ONCE)
            processes = [await _start(command, once=False) for _ in range(limit)]
            for one in processes:
                stack.push_async_callback(one.end)
            yield Pool(processes)


class Server:
    """Takes requests from the broker, one task each."""

    def __init__(self, client: Client, store: Store, url: str, runs: Fresh | Pool) -> None:
        self._client = client
        self._store = store
        self._urls = (url,)
        self._runs = runs
        self._tasks: set[asyncio.Task[None]] = set()
        client.on_message = self._heard

    def _heard(self, _client: Any, _topic: str, payload: bytes, _qos: int, about: Any) -> int:
        task = asyncio.get_running_loop().create_task(self._answer(payload, about))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return 0

    async def _answer(self, payload: bytes, about: Any) -> None:
        try:
            inputs = await unpack(payload, self._store, self._urls)
            answer = await pack(await self._runs.run(inputs), self._store, self._urls)
        except Exception as error:  # noqa: BLE001 - the edge: the client is told whatever it was
            answer = repr(error).encode()
        self._client.publish(
            about["response_topic"][0],
            answer,
            qos=0,
            correlation_data=about["correlation_data"][0],
        )


async def main() -> None:
    """Serve until our parent hangs up."""
    host, port, topic, url, name, case, folder, limit = sys.argv[1:]
    client = Client(f"case-{name}")
    subscribed = asyncio.get_running_loop().create_future()
    client.on_subscribe = lambda *_: subscribed.set_result(None)
    store = Store()
    async with way(name, case, folder, int(limit)) as runs:
        Server(client, store, url, runs)
        await client.connect(host, int(port), keepalive=KEEPALIVE_S)
        client.subscribe(topic, qos=0)
        await subscribed
        say({})

        async def nothing(_question: Any) -> dict[str, int]:
            return {}

        await serve(nothing)
        await client.disconnect()
        store.close()


if __name__ == "__main__":
    asyncio.run(main())
