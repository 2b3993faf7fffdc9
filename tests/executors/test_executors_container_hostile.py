"""Programs in containers that mean no good are contained and harm nobody but their own task."""

import asyncio
import gzip
import io
import json
import struct
import tarfile
import tempfile
from pathlib import Path

import pytest
from container_guests import Image, add, floats, task
from container_runs import (
    LOOK,
    ROOMY,
    RUNTIME,
    ask,
    bounded,
    children,
    first_process,
    may_bind_oom_score,
    needs_runtime,
    ready,
)
from executor_exits import Exits
from executor_guests import Shelf

from device_agent.executors.container import Bounds, ContainerExecutor
from device_agent.executors.door import Done, ExecutorFailure
from protocols.errors import Blame
from protocols.manifest import Interface, Limits
from protocols.messages.invocation import FailureCode

pytestmark = needs_runtime


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
        # Whatever it says: it takes the container that stood ready.
        await ask(executor, call="ready", name="bad")
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


async def test_what_a_killed_runtime_leaves_goes_with_the_host(
    tmp_path: Path, unpacked: Path, blobs: Path, image: Image
) -> None:
    mark = f"crun.left-{tmp_path.name}"
    leaving = tmp_path / Path(RUNTIME).name
    leaving.write_text(
        # As crun, which holds its own program there for a moment.
        f'#!/bin/sh\n: > "${{_LIBCONTAINER_STATEDIR:-/tmp}}/{mark}"\nexec {RUNTIME} "$@"\n',
        encoding="ascii",
    )
    leaving.chmod(0o755)
    left = Path(tempfile.gettempdir()) / mark
    executor = ContainerExecutor(blobs=blobs, images=unpacked, runtime=str(leaving))
    try:
        await ready(executor, *task(image, "echo"))
        assert isinstance(await ask(executor), Done)
        assert not left.exists()
    finally:
        await executor.close()
        left.unlink(missing_ok=True)


async def test_a_program_that_ends_is_reported_in_its_own_words(
    containers: ContainerExecutor, image: Image, exits: Exits
) -> None:
    await ready(containers, *task(image, "die", Interface.SERVE))
    result = await ask(containers)
    assert (result.code, result.text) == (FailureCode.EXECUTOR, "out of luck")
    assert await exits.first() == ("t", "its container ended with exit code 1")


def archive(name: str, **fields: object) -> bytes:
    """Return an archive with one member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        add(tar, name, b"" if fields else b"x", **fields)
    return out.getvalue()


async def test_hostile_archives_are_refused_and_their_neighbour_runs_on(
    containers: ContainerExecutor, image: Image, unpacked: Path, tmp_path: Path
) -> None:
    await ready(containers, *task(image, "echo", Interface.SERVE), name="good")
    host = containers._host.pid
    outside = tmp_path / "outside"
    attacks = {
        r"'../../outside' leads out": archive("../../outside"),
        r"is an absolute name": archive(str(outside)),
        r"outside of the image": archive("l", type=tarfile.SYMTYPE, linkname="../outside"),
        r"'../outside' leads out": archive("l", type=tarfile.LNKTYPE, linkname="../outside"),
        r"takes more than \d+ bytes": gzip.compress(bytes(64 << 20)),
    }
    containers._bounds = Bounds(total_bytes=1 << 20)
    for said, data in attacks.items():
        hostile = Shelf(tmp_path).put(data)
        with pytest.raises(ExecutorFailure, match=said) as caught:
            await containers.deploy(*task(hostile, "echo", Interface.SERVE))
        assert caught.value.failed.blame is Blame.USER
        assert isinstance(await ask(containers, name="good"), Done)
        assert [one for one in unpacked.iterdir() if hostile[0].name in one.name] == []
    assert not outside.exists()
    assert containers._host.pid == host
