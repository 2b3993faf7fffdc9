"""The container executor with real containers of a real runtime."""

import asyncio
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path

import pytest
from container_guests import FLAGS, PYTHON, Image, floats, layout_tar, rootfs_tar, task
from executor_exits import Exits
from executor_guests import Shelf

from device_agent.executors.container import ContainerExecutor
from device_agent.executors.door import Bytes, Done, ExecutorFailure, Failed, File, Setup, Value
from device_agent.executors.process import PROGRAMS
from protocols.errors import Blame
from protocols.manifest import Constant, Dtype, Interface, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

Gone = Callable[[int], Awaitable[None]]
BUDGET_MS = 60_000
LOOK = (Port("y", Dtype.UINT8, (-1,)),)
ROOMY = Limits(memory_bytes=256 << 20, deadline_ms=30_000)
NOBODY = 65_534
CGROUP = Path("/sys/fs/cgroup")


@cache
def runtimes() -> dict[str, dict[str, object]]:
    """Which runtimes can run a container here, and what the program says of each."""
    found = {}
    for name in ("crun", "runc"):
        path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if path is not None:
            command = [sys.executable, "-s", str(PROGRAMS / "container_host.py"), "--probe", path]
            said = subprocess.run(
                [*command, f"tona-try-{os.getpid()}", ""], capture_output=True, check=True
            )
            about = json.loads(said.stdout)
            if about["runtime"]:
                found[path] = about
    return found


RUNTIME = next(iter(runtimes()), "")
ISOLATED = RUNTIME and runtimes()[RUNTIME]["security"] == "strong"
pytestmark = pytest.mark.skipif(not RUNTIME, reason="no container runtime can run here")
bounded = pytest.mark.skipif(not ISOLATED, reason="no control groups for containers here")


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
    executor = ContainerExecutor(blobs=blobs, images=unpacked, runtime=RUNTIME, on_exit=exits)
    yield executor
    await executor.close()
    assert groups(executor) == []


def groups(executor: ContainerExecutor) -> list[Path]:
    return [*CGROUP.glob(executor._prefix), *CGROUP.glob(f"*/{executor._prefix}")]


async def ready(
    containers: ContainerExecutor, artifact: Path, manifest: Manifest, name: str = "t"
) -> None:
    await containers.deploy(artifact, manifest)
    await containers.start(name, artifact, manifest, {})


async def ask(
    containers: ContainerExecutor, value: Value | None = None, call: str = "c", name: str = "t"
) -> Done | Failed:
    return await containers.invoke(name, call, {"x": value or floats(1.5, 2.5)}, BUDGET_MS)


def may_bind_oom_score() -> bool:
    """Whether we have CAP_SYS_RESOURCE, which root may lack."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return bool(int(effective, 16) >> 24 & 1)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(one) for one in text.split()]


def first_process(containers: ContainerExecutor) -> int:
    """The host's process 1, whose death takes every container along."""
    return children(containers._host.pid)[0]


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
    assert result.outputs == {"y": value}
    assert (blobs / path.name).read_bytes() == data
    assert sorted(one.name for one in blobs.iterdir()) == [path.name]
    missing = File(Dtype.FLOAT32, (1,), "sha256:" + "0" * 64, 4)
    lost = await ask(containers, missing)
    assert (lost.code, lost.retryable) == (FailureCode.FETCH, True)
    assert isinstance(await ask(containers, value), Done)


async def test_a_container_sees_nothing_of_the_machine_and_can_do_little(
    containers: ContainerExecutor, image: Image
) -> None:
    artifact, manifest = task(image, "look", outputs=LOOK, limits=ROOMY)
    await ready(containers, artifact, manifest, "a")
    await ready(containers, artifact, manifest, "b")
    result = await ask(containers, name="a")
    seen = json.loads(result.outputs["y"].data)
    status = seen["status"]
    assert {status[one] for one in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert (seen["host"], seen["interfaces"], seen["processes"]) == ("tona", ["lo"], [seen["pid"]])
    assert (seen["in"], seen["out"], seen["tona"]) == (["x.npy"], [], ["in", "out"])
    done = {name for name, said in seen.items() if said == "done"}
    assert done - ({"outlive the agent"} if not may_bind_oom_score() else set()) == {"write tmp"}
    assert seen["fill tmp"] == "No space left on device"
    assert seen["connect out"] == "Network is unreachable"


async def test_an_endless_loop_ends_at_its_deadline_and_its_neighbour_stays(
    containers: ContainerExecutor, image: Image, exits: Exits
) -> None:
    short = Limits(memory_bytes=64 << 20, deadline_ms=300)
    for interface in Interface.ONCE, Interface.SERVE:
        await ready(containers, *task(image, "echo", interface), name="good")
        spin = task(image, "spin", interface, limits=short)
        await ready(containers, *spin, name="bad")
        host = containers._host.pid
        late = await ask(containers, name="bad")
        assert (late.code, late.blame) == (FailureCode.DEADLINE, Blame.USER)
        assert "300 ms" in late.text
        assert isinstance(await ask(containers, name="good"), Done)
        # Its container went, its slot did not: the next call is served, and ends, too.
        assert (await ask(containers, name="bad")).code is FailureCode.DEADLINE
        assert containers._host.pid == host
    assert exits == []


async def test_a_cancelled_call_frees_its_slot(containers: ContainerExecutor, image: Image) -> None:
    await ready(containers, *task(image, "spin", Interface.SERVE))
    calls = [asyncio.create_task(ask(containers, call=str(one))) for one in range(3)]
    await asyncio.sleep(0)
    for one in range(3):
        await containers.cancel("t", str(one))
    assert {one.code for one in await asyncio.gather(*calls)} == {FailureCode.CANCELLED}
    await containers.stop("t")
    await ready(containers, *task(image, "echo", Interface.SERVE))
    assert isinstance(await ask(containers), Done)


@bounded
@pytest.mark.parametrize("interface", [Interface.ONCE, Interface.SERVE])
async def test_memory_ends_at_its_limit(
    containers: ContainerExecutor, image: Image, interface: Interface
) -> None:
    await ready(containers, *task(image, "memory", interface))
    result = await ask(containers)
    assert (result.code, result.blame) == (FailureCode.LIMIT, Blame.USER)
    assert result.text == "the container took more than the 67108864 bytes of its manifest"


@bounded
async def test_a_limit_that_is_too_small_to_start_with_is_said_so(
    containers: ContainerExecutor, image: Image
) -> None:
    artifact, manifest = task(image, "echo", limits=Limits(memory_bytes=1 << 20))
    try:
        await ready(containers, artifact, manifest)
        failure = await ask(containers)
    except ExecutorFailure as error:
        failure = error.failed
    assert (failure.code, failure.blame) == (FailureCode.LIMIT, Blame.USER)


async def test_a_fork_bomb_ends_at_its_bound_and_goes_with_its_call(
    containers: ContainerExecutor, image: Image
) -> None:
    await ready(containers, *task(image, "forks", limits=ROOMY))
    result = await ask(containers)
    assert isinstance(result, Done), result
    assert 10 < struct.unpack("<f", result.outputs["y"].data)[0] < 256
    inner = first_process(containers)
    assert len(children(inner)) <= 1


@pytest.mark.parametrize(
    ("deed", "code", "said"),
    [
        ("fail", FailureCode.EXECUTOR, "the picture has no plate"),
        ("large", FailureCode.LIMIT, "have filled the 4096 bytes"),
        ("missing", FailureCode.EXECUTOR, "output 'y' is missing"),
        ("wrong", FailureCode.EXECUTOR, r"is float64[1], the manifest says float32[-1]"),
        ("link", FailureCode.EXECUTOR, "output 'y' cannot be read"),
        ("pipe", FailureCode.EXECUTOR, "output 'y' is no file"),
    ],
)
@pytest.mark.parametrize("interface", [Interface.ONCE, Interface.SERVE])
async def test_outputs_that_are_not_what_was_agreed_are_refused(
    containers: ContainerExecutor,
    image: Image,
    interface: Interface,
    deed: str,
    code: FailureCode,
    said: str,
) -> None:
    limits = Limits(memory_bytes=64 << 20, deadline_ms=30_000, output_bytes=4096)
    await ready(containers, *task(image, deed, interface, limits=limits))
    for number in range(2):
        result = await ask(containers, call=str(number))
        assert (result.code, result.blame) == (code, Blame.USER), result
        assert said in result.text


async def test_outputs_beyond_their_limit_are_refused(
    containers: ContainerExecutor, image: Image
) -> None:
    limits = Limits(memory_bytes=64 << 20, deadline_ms=30_000, output_bytes=7)
    await ready(containers, *task(image, "echo", limits=limits))
    result = await ask(containers)
    assert result.code is FailureCode.LIMIT
    assert result.text == "the outputs take more than the task's limit of 7 bytes"


async def test_whatever_lies_in_the_outputs_is_gone_at_the_next_call(
    containers: ContainerExecutor, image: Image
) -> None:
    await ready(containers, *task(image, "deep", Interface.SERVE))
    for number in range(2):
        result = await ask(containers, call=str(number))
        assert isinstance(result, Done), result


async def test_a_program_that_says_something_else_is_started_anew(
    containers: ContainerExecutor, image: Image, exits: Exits
) -> None:
    await ready(containers, *task(image, "garbage", Interface.SERVE))
    for number in range(2):
        result = await ask(containers, call=str(number))
        assert (result.code, result.blame) == (FailureCode.EXECUTOR, Blame.USER)
        assert "'this is no answer'" in result.text
    assert exits == []


async def test_words_that_are_no_text_reach_the_client_as_far_as_they_are(
    containers: ContainerExecutor, image: Image
) -> None:
    await ready(containers, *task(image, "babble", Interface.SERVE))
    host = containers._host.pid
    result = await ask(containers)
    assert (result.code, result.blame) == (FailureCode.EXECUTOR, Blame.USER)
    assert result.text.isprintable()
    assert result.text.split() == ["half", "a", "[31mred", "pair"]
    assert containers._host.pid == host


async def test_an_input_that_is_kept_open_holds_no_memory(
    containers: ContainerExecutor, image: Image
) -> None:
    await ready(containers, *task(image, "hold", Interface.SERVE))
    for number in range(3):
        result = await ask(containers, call=str(number))
        assert result.outputs == {"y": floats(0.0)}


async def test_a_runtime_that_hangs_costs_its_own_task_alone(
    tmp_path: Path, unpacked: Path, blobs: Path, exits: Exits, image: Image
) -> None:
    hangs = tmp_path / "hangs"
    slow = tmp_path / Path(RUNTIME).name
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *" create "*) test -e {hangs} && sleep 1000;; esac\n'
        f'exec {RUNTIME} "$@"\n',
        encoding="ascii",
    )
    slow.chmod(0o755)
    executor = ContainerExecutor(blobs=blobs, images=unpacked, runtime=str(slow), on_exit=exits)
    try:
        short = Limits(memory_bytes=64 << 20, deadline_ms=300)
        await ready(executor, *task(image, "echo", Interface.SERVE), name="good")
        await ready(executor, *task(image, "echo", limits=short), name="bad")
        host = executor._host.pid
        hangs.touch()
        assert isinstance(await ask(executor, call="ready", name="bad"), Done)
        for number in range(2):
            late = await ask(executor, call=str(number), name="bad")
            assert late.code is FailureCode.DEADLINE
        await executor.stop("bad")
        assert isinstance(await ask(executor, name="good"), Done)
        assert (executor._host.pid, exits) == (host, [])
        # Nothing of it is left beside the good one.
        assert len(children(first_process(executor))) == 1
    finally:
        await executor.close()


async def test_a_program_that_ends_is_reported_in_its_own_words(
    containers: ContainerExecutor, image: Image, exits: Exits
) -> None:
    await ready(containers, *task(image, "die", Interface.SERVE))
    result = await ask(containers)
    assert (result.code, result.text) == (FailureCode.EXECUTOR, "out of luck")
    assert await exits.first() == ("t", "its container ended with exit code 1")


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
