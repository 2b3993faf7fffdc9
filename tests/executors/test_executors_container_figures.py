"""What containers' runs take, how their outputs are checked, and whose image waits for whose."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from container_guests import Image, floats, layout_tar, rootfs_tar, task
from container_runs import ROOMY, ask, needs_runtime, ready
from executor_guests import Shelf
from msgspec import structs

from device_agent.artifacts.blobs import BlobFolder
from device_agent.executors import container
from device_agent.executors.container import ContainerExecutor
from device_agent.executors.door import Bytes, Done, Failed
from device_agent.reference import Prover
from protocols.errors import Blame
from protocols.manifest import (
    ArtifactRef,
    Check,
    Dtype,
    Form,
    Interface,
    Manifest,
    Port,
    Reference,
    Sample,
)
from protocols.messages.invocation import FailureCode

pytestmark = needs_runtime
HALF_S = 500_000
BOTH = [Interface.ONCE, Interface.SERVE]
BYTES = Port("x", Dtype.UINT8, (-1,))


@pytest.mark.parametrize("interface", BOTH)
async def test_a_run_says_what_processor_time_its_processes_took(
    containers: ContainerExecutor, image: Image, interface: Interface
) -> None:
    await ready(containers, *task(image, "work", interface, limits=ROOMY))
    for number in range(2):
        done = await ask(containers, call=str(number))
        assert isinstance(done, Done), done
        assert 0.8 * HALF_S < done.cpu_us < 10 * HALF_S, "of this run alone"
        assert done.peak_bytes > 40 << 20
    await ready(containers, *task(image, "echo", interface, limits=ROOMY))
    cheap = await ask(containers)
    assert isinstance(cheap, Done)
    assert 0 < cheap.cpu_us < done.cpu_us
    assert 1 << 20 < cheap.peak_bytes < done.peak_bytes


def checked(manifest: Manifest, **bounds: object) -> Manifest:
    return structs.replace(manifest, checks=(Check("y", **bounds),))


@pytest.mark.parametrize("interface", BOTH)
async def test_an_output_is_held_against_its_checks(
    containers: ContainerExecutor, image: Image, interface: Interface
) -> None:
    artifact, manifest = task(image, "echo", interface, limits=ROOMY)
    await ready(containers, artifact, checked(manifest, at_most=5.0, items_at_most=2))
    assert isinstance(await ask(containers, floats(5.0)), Done)
    wrong = await ask(containers, floats(1.0, 6.0))
    assert isinstance(wrong, Failed)
    assert (wrong.code, wrong.blame) == (FailureCode.CHECK, Blame.USER)
    assert wrong.text == "output 'y' has 1 of 2 items above 5, the declared most"
    assert (await ask(containers, floats(1.0, 2.0, 3.0))).code is FailureCode.CHECK
    again = await ask(containers, floats(4.0))
    assert isinstance(again, Done), "the next one is served"
    await ready(containers, artifact, checked(manifest, at_most=5.0, refuse=False))
    flagged = await ask(containers, floats(6.0))
    assert isinstance(flagged, Done)
    assert flagged.flags == "output 'y' has 1 of 1 items above 5, the declared most"


@pytest.mark.parametrize("interface", BOTH)
async def test_bytes_of_a_container_are_of_their_form(
    containers: ContainerExecutor, image: Image, interface: Interface
) -> None:
    artifact, manifest = task(image, "letters", interface, limits=ROOMY)
    ports = {"inputs": (BYTES,), "outputs": (structs.replace(BYTES, name="y"),)}
    manifest = structs.replace(manifest, **ports)
    await ready(containers, artifact, checked(manifest, form=Form.JSON))
    assert isinstance(await ask(containers, document(b'{"plates": []}')), Done)
    wrong = await ask(containers, document(b'{"plates": '))
    assert isinstance(wrong, Failed)
    assert (wrong.code, wrong.blame) == (FailureCode.CHECK, Blame.USER)
    assert wrong.text == "output 'y' is no JSON document"
    assert isinstance(await ask(containers, document(b"[]")), Done), "the next one is served"


def document(data: bytes) -> Bytes:
    return Bytes(Dtype.UINT8, (len(data),), data)


async def test_a_container_is_held_against_its_reference_sample(
    containers: ContainerExecutor, image: Image, tmp_path: Path
) -> None:
    paths: dict[str, Path] = {}

    def sample(port: str, *values: float) -> Sample:
        data = floats(*values).data
        ref = ArtifactRef(f"sha256:{len(paths):064x}", len(data))
        paths[ref.digest] = tmp_path / f"sample{len(paths)}"
        paths[ref.digest].write_bytes(data)
        return Sample(port, (len(values),), ref)

    artifact, manifest = task(image, "echo", Interface.SERVE, limits=ROOMY)
    given = sample("x", 1.0, 2.0)
    prover = Prover(BlobFolder(tmp_path / "values", 1 << 20, 60.0), paths.__getitem__)
    await ready(containers, artifact, manifest)
    for expected, good in ((sample("y", 1.0, 2.0), True), (sample("y", 1.0, 9.0), False)):
        proved = structs.replace(manifest, reference=Reference((given,), (expected,)))
        wrong = await prover.prove(containers, "t", proved)
        assert (wrong is None) is good
    assert wrong is not None
    assert (wrong.code, wrong.blame) == (FailureCode.CHECK, Blame.USER)


async def test_an_image_that_takes_its_time_holds_nobody_up_for_long(
    image: Image,
    shelf: Shelf,
    tmp_path: Path,
    blobs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(container, "UNPACK_TURN_S", 1.0)
    monkeypatch.setattr(container, "UNPACK_LOOK_S", 0.05)
    slow = shelf.put(layout_tar([rootfs_tar()]))
    executor = ContainerExecutor(blobs=blobs, images=tmp_path / "images")
    spawned: asyncio.Queue[int] = asyncio.Queue()
    spawn = executor._spawn

    def counted(program: str, arguments: tuple[str, ...]) -> object:
        process = spawn(program, arguments)
        if program == "container_unpack.py":
            if spawned.empty() and not asleep:
                os.kill(process.pid, signal.SIGSTOP)
                asleep.append(process.pid)
                # The one behind it is awake, and has the time that a busy machine needs.
                monkeypatch.setattr(container, "UNPACK_TURN_S", 60.0)
            spawned.put_nowait(process.pid)
        return process

    asleep: list[int] = []
    monkeypatch.setattr(executor, "_spawn", counted)
    try:
        first = asyncio.create_task(executor.deploy(*task(slow, "echo")))
        await spawned.get()
        async with asyncio.timeout(100):
            await executor.deploy(*task(image, "echo"))
            await first
        assert spawned.qsize() >= 2, "the slow one has begun anew"
    finally:
        await executor.close()


async def test_alone_an_image_may_take_longer_than_a_turn_but_not_for_ever(
    image: Image, tmp_path: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "UNPACK_TURN_S", 0.01)
    monkeypatch.setattr(container, "UNPACK_LOOK_S", 0.01)
    executor = ContainerExecutor(blobs=blobs, images=tmp_path / "images")
    try:
        await executor.deploy(*task(image, "echo"))
        monkeypatch.setattr(container, "UNPACK_TIMEOUT_S", 0.01)
        (tmp_path / "shelf").mkdir()
        other = Shelf(tmp_path / "shelf").put(layout_tar([rootfs_tar()], compressed=True))
        with pytest.raises(container.ExecutorFailure, match="make it smaller"):
            await executor.deploy(*task(other, "echo"))
    finally:
        await executor.close()
