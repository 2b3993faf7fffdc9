"""The container executor with real containers of a real runtime."""

import asyncio
import json
import os
import shutil
import signal
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from container_guests import Image, floats, task
from container_runs import (
    ISOLATED,
    LOOK,
    ROOMY,
    RUNTIME,
    ask,
    bounded,
    children,
    first_process,
    groups,
    needs_runtime,
    ready,
    runtimes,
)
from executor_exits import Exits
from executor_guests import Shelf

from device_agent.executors.container import ContainerExecutor
from device_agent.executors.contract import file_of
from device_agent.executors.door import Bytes, Done, ExecutorFailure, Failed, File, Setup
from protocols.errors import Blame
from protocols.manifest import Constant, Dtype, Interface, Manifest, Port
from protocols.messages.invocation import FailureCode

Gone = Callable[[int], Awaitable[None]]
NOBODY = 65_534
pytestmark = needs_runtime


@pytest.mark.parametrize("interface", [Interface.ONCE, Interface.SERVE])
async def test_an_echo_comes_back_again_and_again(
    containers: ContainerExecutor, image: Image, interface: Interface
) -> None:
    await ready(containers, *task(image, "echo", interface))
    for number in range(3):
        result = await ask(containers, floats(number), str(number))
        assert isinstance(result, Done), result
        assert result.outputs == {"y": floats(number)}
    stats = await containers.stats("t")
    assert (stats.calls, stats.failures) == (3, 0)
    assert not ISOLATED or stats.memory_bytes > 1 << 20


@pytest.mark.parametrize("runtime", runtimes())
async def test_every_runtime_that_works_here_is_one(
    image: Image, unpacked: Path, blobs: Path, runtime: str
) -> None:
    executor = ContainerExecutor(blobs=blobs, images=unpacked, runtime=runtime)
    try:
        info = await executor.probe()
        assert (info.kind, info.version.split()[0]) == ("container", Path(runtime).name)
        await ready(executor, *task(image, "echo"))
        assert isinstance(await ask(executor), Done)
    finally:
        await executor.close()


async def test_an_agent_without_root_runs_containers_and_says_what_is_weaker(
    image: Image,
) -> None:
    """The agent is root here, its programs are not."""
    setpriv, python = shutil.which("setpriv"), shutil.which("python3", path="/usr/bin")
    if os.geteuid() or setpriv is None or python is None:
        pytest.skip("takes root, setpriv and a Python that everybody may run")
    with tempfile.TemporaryDirectory(prefix="tona-") as name:
        folder = Path(name)
        for one in (folder, folder / "images", folder / "blobs"):
            one.mkdir(exist_ok=True)
            one.chmod(0o755)
            os.chown(one, NOBODY, NOBODY)
        artifact = folder / image[0].name
        shutil.copyfile(image[0], artifact)
        unprivileged = folder / "python"
        unprivileged.write_text(
            f"#!/bin/sh\nexec {setpriv} --reuid={NOBODY} --regid={NOBODY} --clear-groups "
            f'{python} "$@"\n',
            encoding="ascii",
        )
        unprivileged.chmod(0o755)
        executor = ContainerExecutor(
            blobs=folder / "blobs", images=folder / "images", interpreter=str(unprivileged)
        )
        try:
            info = await executor.probe()
            if info is None:
                pytest.skip(f"not without root here: {executor.doubts}")
            assert info.security == "basic"
            for interface in Interface.ONCE, Interface.SERVE:
                _, manifest = task(image, "echo", interface, limits=ROOMY)
                await ready(executor, artifact, manifest)
                for number in range(2):
                    result = await ask(executor, floats(number), str(number))
                    assert isinstance(result, Done), result
            assert "no control group here" in (await executor.stats("t")).remark
            bomb = task(image, "memory")[1]
            await ready(executor, artifact, bomb)
            burst = await ask(executor)
            assert (burst.code, burst.text) == (FailureCode.EXECUTOR, "MemoryError")
            looks = task(image, "look", outputs=LOOK, limits=ROOMY)[1]
            await ready(executor, artifact, looks)
            seen = json.loads((await ask(executor)).outputs["y"].data)
            done = {name for name, said in seen.items() if said == "done"}
            assert done - {"outlive the agent"} == {"write tmp"}
        finally:
            await executor.close()


async def test_a_runtime_that_cannot_run_is_refused_with_its_reason(
    tmp_path: Path, unpacked: Path, blobs: Path, image: Image
) -> None:
    broken = tmp_path / "crun"
    broken.write_text("#!/bin/sh\nexit 3\n", encoding="ascii")
    broken.chmod(0o755)
    executor = ContainerExecutor(blobs=blobs, images=unpacked, runtime=str(broken))
    try:
        assert await executor.probe() is None
        assert executor.doubts == (
            "crun is installed but cannot start a container here: crun create gave 3",
        )
        with pytest.raises(ExecutorFailure, match="cannot start a container here") as caught:
            await ready(executor, *task(image, "echo"))
        assert caught.value.failed.blame is Blame.ENVIRONMENT
    finally:
        await executor.close()
    absent = ContainerExecutor(blobs=blobs, images=unpacked, runtime="/nowhere/crun")
    assert await absent.probe() is None
    assert absent.doubts == ("there is no container runtime at /nowhere/crun",)


async def test_where_another_runtime_works_it_is_taken(
    tmp_path: Path, unpacked: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "crun"
    broken.write_text("#!/bin/sh\nexit 3\n", encoding="ascii")
    broken.chmod(0o755)
    (tmp_path / "runc").symlink_to(RUNTIME)
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = ContainerExecutor(blobs=blobs, images=unpacked)
    info = await executor.probe()
    assert info is not None
    assert len(executor.doubts) == 1
    assert executor.doubts[0].startswith("crun is installed but cannot start")


async def test_an_image_layout_brings_its_program_environment_and_folder(
    containers: ContainerExecutor, layout: Image
) -> None:
    artifact, manifest = task(layout, "echo")
    plain = Manifest(manifest.kind, manifest.artifact, manifest.inputs, manifest.outputs)
    await ready(containers, artifact, plain)
    result = await ask(containers)
    assert isinstance(result, Failed)
    assert (result.text, result.blame) == ("the picture has no plate", Blame.USER)


async def test_a_constant_fills_the_port_it_names(
    containers: ContainerExecutor, shelf: Shelf, image: Image
) -> None:
    path, ref = shelf.put(struct.pack("<f", 40.0))
    artifact, manifest = task(image, "add")
    ports = (Port("x", Dtype.FLOAT32, (1,)), Port("c", Dtype.FLOAT32, (1,)))
    manifest = Manifest(
        manifest.kind,
        manifest.artifact,
        ports,
        manifest.outputs,
        constants=(Constant("c", ref),),
        arguments=manifest.arguments,
    )
    await containers.deploy(artifact, manifest)
    await containers.start("t", artifact, manifest, {"c": path})
    for number in range(2):
        result = await ask(containers, floats(2.0), str(number))
        assert result.outputs == {"y": floats(42.0)}


@pytest.mark.parametrize("interface", [Interface.ONCE, Interface.SERVE])
async def test_large_values_go_as_files(
    containers: ContainerExecutor, shelf: Shelf, blobs: Path, image: Image, interface: Interface
) -> None:
    await ready(containers, *task(image, "echo", interface))
    data = os.urandom(4 * 250_000)
    path, ref = shelf.put(data)
    path.rename(blobs / path.name)
    value = File(Dtype.FLOAT32, (250_000,), ref.digest, len(data))
    result = await ask(containers, value)
    assert (blobs / file_of(result.outputs["y"].digest)).read_bytes() == data
    again = await ask(containers, result.outputs["y"])
    assert (blobs / file_of(again.outputs["y"].digest)).read_bytes() == data
    assert (blobs / path.name).read_bytes() == data
    assert len(list(blobs.glob("made/*"))) == 2
    missing = File(Dtype.FLOAT32, (1,), "sha256:" + "0" * 64, 4)
    lost = await ask(containers, missing)
    assert (lost.code, lost.retryable) == (FailureCode.FETCH, True)
    assert isinstance(await ask(containers, value), Done)


async def test_a_program_that_is_not_there_is_the_authors_fault(
    containers: ContainerExecutor, image: Image
) -> None:
    artifact, manifest = task(image, "echo")
    missing = Manifest(
        manifest.kind,
        manifest.artifact,
        manifest.inputs,
        manifest.outputs,
        arguments=("/no/such/program",),
    )
    try:
        await ready(containers, artifact, missing)
        failure = await ask(containers)
    except ExecutorFailure as error:
        failure = error.failed
    assert failure.blame is Blame.USER
    assert "/no/such/program" in failure.text
    nothing = Manifest(manifest.kind, manifest.artifact, (), manifest.outputs)
    with pytest.raises(ExecutorFailure, match="names no program"):
        await ready(containers, artifact, nothing)


async def test_replicas_run_side_by_side(containers: ContainerExecutor, image: Image) -> None:
    artifact, manifest = task(image, "spin_at_zero", Interface.SERVE)
    await containers.deploy(artifact, manifest)
    await containers.start("t", artifact, manifest, {}, Setup(replicas=2))
    endless = asyncio.create_task(ask(containers, floats(0.0), "endless"))
    await asyncio.sleep(0)
    for number in range(3):
        result = await ask(containers, floats(1.0), str(number))
        assert isinstance(result, Done), result
    await containers.cancel("t", "endless")
    assert (await endless).code is FailureCode.CANCELLED


@bounded
async def test_a_tuned_share_reaches_the_control_group_without_a_restart(
    containers: ContainerExecutor, image: Image
) -> None:
    artifact, manifest = task(image, "echo", Interface.SERVE)
    await ready(containers, artifact, manifest)
    assert isinstance(await ask(containers), Done)
    before = [first_process(containers)]
    await containers.tune("t", Setup(cpu_percent=50.0, priority=7, replicas=2))
    bounds = {
        path.read_text(encoding="ascii").split()[0]
        for name in ("cpu.cfs_quota_us", "cpu.max")
        for one in groups(containers)
        for path in one.glob(f"*/{name}")
    }
    assert bounds == {"25000"}
    assert isinstance(await ask(containers), Done)
    assert before == [first_process(containers)]
    await containers.tune("t", Setup())
    assert isinstance(await ask(containers), Done)


async def test_a_resting_instance_has_no_container_until_its_next_call(
    containers: ContainerExecutor, image: Image, gone: Gone
) -> None:
    await ready(containers, *task(image, "echo", Interface.SERVE))
    assert isinstance(await ask(containers), Done)
    inner = first_process(containers)
    (inside,) = children(inner)
    await containers.rest("t")
    await gone(inside)
    assert (await containers.stats("t")).memory_bytes == 0
    assert containers.shared_bytes() > 1 << 20
    assert isinstance(await ask(containers), Done)
    await containers.rest("t")
    await containers.wake("t")
    assert isinstance(await ask(containers), Done)


@pytest.mark.parametrize("victim", ["host", "first process"])
async def test_a_killed_host_leaves_no_container_and_comes_back(
    containers: ContainerExecutor,
    image: Image,
    exits: Exits,
    gone: Gone,
    victim: str,
) -> None:
    await ready(containers, *task(image, "spin", Interface.SERVE), name="bad")
    await ready(containers, *task(image, "echo"), name="good")
    call = asyncio.create_task(ask(containers, name="bad"))
    inner = first_process(containers)
    inside = children(inner)
    assert inside
    os.kill(containers._host.pid if victim == "host" else inner, signal.SIGKILL)
    result = await call
    assert (result.code, result.blame) == (FailureCode.EXECUTOR, Blame.ENVIRONMENT)
    assert result.retryable
    for pid in (inner, *inside):
        await gone(pid)
    await exits.first()
    assert isinstance(await ask(containers, name="good"), Done)


async def test_stop_and_close_leave_nothing(
    containers: ContainerExecutor, image: Image, gone: Gone
) -> None:
    await ready(containers, *task(image, "spin", Interface.SERVE))
    call = asyncio.create_task(ask(containers))
    inner = first_process(containers)
    inside = children(inner)
    await containers.stop("t")
    assert (await call).code is FailureCode.NOT_READY
    for pid in inside:
        await gone(pid)
    assert (await ask(containers)).code is FailureCode.NOT_READY
    await containers.close()
    await gone(inner)


async def test_what_a_killed_unpacking_left_is_removed_and_images_go_with_their_artifact(
    tmp_path: Path, blobs: Path, shelf: Shelf, image: Image, layout: Image
) -> None:
    images = tmp_path / "images"
    executor = ContainerExecutor(blobs=blobs, images=images, runtime=RUNTIME)
    mine = shelf.folder / image[0].name
    mine.hardlink_to(image[0])
    try:
        left = images / (".part-" + "0" * 64) / "rootfs"
        left.mkdir(parents=True)
        await ready(executor, *task((mine, image[1]), "echo"))
        assert [one.name for one in images.iterdir()] == [mine.name]
        mine.unlink()
        await executor.deploy(*task(layout, "echo"))
        # It is in use; then it is not.
        assert len(list(images.iterdir())) == 2
        assert isinstance(await ask(executor), Done)
        await executor.stop("t")
        await executor.close()
        await executor.probe()
        assert [one.name for one in images.iterdir()] == [layout[0].name]
    finally:
        await executor.close()


async def test_images_keep_within_their_bound(
    tmp_path: Path, blobs: Path, image: Image, layout: Image
) -> None:
    images = tmp_path / "images"
    bytes_max = image[1].size_bytes * 3 // 2
    executor = ContainerExecutor(
        blobs=blobs, images=images, runtime=RUNTIME, images_max_bytes=bytes_max
    )
    try:
        await executor.deploy(*task(image, "echo"))
        await executor.deploy(*task(layout, "echo"))
        assert [one.name for one in images.iterdir()] == [layout[0].name]
        await executor.start("t", *task(layout, "echo"), {})
        with pytest.raises(ExecutorFailure, match="do not fit beside those in use"):
            await executor.deploy(*task(image, "echo"))
    finally:
        await executor.close()


async def test_inputs_that_do_not_fit_are_refused_before_the_container(
    containers: ContainerExecutor, image: Image
) -> None:
    await ready(containers, *task(image, "echo"))
    result = await ask(containers, Bytes(Dtype.INT32, (1,), bytes(4)))
    assert (result.code, result.blame) == (FailureCode.BAD_INPUT, Blame.USER)
    assert "is int32" in result.text
