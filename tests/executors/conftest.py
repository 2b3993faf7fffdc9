"""Executors that are closed at the end, and folders for them."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from device_agent.executors.container import ContainerExecutor
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.wasm import WasmExecutor

sys.path.insert(0, str(Path(__file__).parent))

from container_guests import FLAGS, PYTHON, Image, layout_tar, rootfs_tar
from executor_exits import WAIT_S, Exits
from executor_guests import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return Shelf(folder)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    folder = tmp_path / "blobs"
    (folder / "made").mkdir(parents=True)
    return folder


@pytest.fixture
async def exits() -> Exits:
    return Exits()


@pytest.fixture
async def wasm(tmp_path: Path, blobs: Path, exits: Exits) -> AsyncIterator[WasmExecutor]:
    executor = WasmExecutor(
        blobs=blobs,
        artifacts=tmp_path / "artifacts",
        cache=tmp_path / "cache",
        memories=tmp_path / "memories",
        threads=2,
        on_exit=exits,
    )
    yield executor
    await executor.close()


@pytest.fixture
async def onnx(tmp_path: Path, blobs: Path, exits: Exits) -> AsyncIterator[OnnxExecutor]:
    executor = OnnxExecutor(blobs=blobs, empty=tmp_path / "empty", on_exit=exits)
    yield executor
    await executor.close()


@pytest.fixture
def gone() -> Callable[[int], Awaitable[None]]:
    """Wait until a process has ended; one that nobody reaped counts as ended."""

    async def wait(pid: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
                except (FileNotFoundError, ProcessLookupError):
                    return
                if status.rpartition(")")[2].split()[0] in "ZX":
                    return
                # The kernel offers no event for the end of somebody else's child but a pidfd.
                try:
                    fd = os.pidfd_open(pid)
                except ProcessLookupError:
                    return
                ended = asyncio.Event()
                loop = asyncio.get_running_loop()
                loop.add_reader(fd, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(fd)
                    os.close(fd)

    return wait


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Shelf(tmp_path_factory.mktemp("container")).put(rootfs_tar())


@pytest.fixture(scope="session")
def layout(image: Image) -> Image:
    config = {
        "Entrypoint": [PYTHON, *FLAGS, "/guest.py"],
        "Cmd": ["once", "fail"],
        "Env": ["LANG=C"],
        "WorkingDir": "/srv/here",
    }
    data = layout_tar([image[0].read_bytes()], config, compressed=True, nested=True)
    return Shelf(image[0].parent).put(data)


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of images for all tests: unpacking is tested for itself."""
    return tmp_path_factory.mktemp("container") / "images"


@pytest.fixture
async def containers(unpacked: Path, blobs: Path, exits: Exits) -> AsyncIterator[ContainerExecutor]:
    from container_runs import RUNTIME, groups  # noqa: PLC0415 - it tries the runtimes

    executor = ContainerExecutor(blobs=blobs, images=unpacked, runtime=RUNTIME, on_exit=exits)
    yield executor
    await executor.close()
    assert groups(executor) == []
