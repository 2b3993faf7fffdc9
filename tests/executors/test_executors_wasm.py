"""The Wasm executor with real guests in real host processes."""

import asyncio
import os
import re
import shutil
import signal
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from executor_exits import WAIT_S, Exits
from executor_guests import Shelf, floats, module

from device_agent.executors.contract import file_of
from device_agent.executors.door import Bytes, Done, ExecutorFailure, Failed, File, Value
from device_agent.executors.process import PROGRAMS
from device_agent.executors.seals import FINGERPRINT, Seals
from device_agent.executors.wasm import WasmExecutor
from protocols.errors import Blame
from protocols.manifest import Constant, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

Gone = Callable[[int], Awaitable[None]]
BUDGET_MS = 30_000


async def ready(wasm: WasmExecutor, artifact: Path, manifest: Manifest, task: str = "t") -> None:
    await wasm.deploy(artifact, manifest)
    await wasm.start(task, artifact, manifest, {})


def host_of(wasm: WasmExecutor, tenant: str = "default") -> int:
    return wasm._hosts.of(tenant).pid


async def test_an_echo_comes_back(wasm: WasmExecutor, shelf: Shelf) -> None:
    await ready(wasm, *shelf.guest("echo"))
    value = floats(1.5, 2.5)
    result = await wasm.invoke("t", "c", {"x": value}, BUDGET_MS)
    assert isinstance(result, Done)
    assert result.outputs == {"y": value}


async def test_the_probe_names_the_version(wasm: WasmExecutor) -> None:
    info = await wasm.probe()
    assert info.kind == "wasm"
    assert int(info.version.split(".")[0]) >= 49


async def test_an_interpreter_that_is_absent_is_no_executor(
    tmp_path: Path, blobs: Path, shelf: Shelf
) -> None:
    executor = WasmExecutor(
        blobs=blobs,
        artifacts=tmp_path / "artifacts",
        cache=tmp_path / "c",
        memories=tmp_path / "m",
        interpreter="/nowhere/python",
    )
    assert await executor.probe() is None
    with pytest.raises(ExecutorFailure, match="/nowhere/python") as caught:
        await executor.deploy(*shelf.guest("echo"))
    assert caught.value.failed.blame is Blame.ENVIRONMENT
    await executor.close()


async def test_a_constant_fills_the_port_it_names(wasm: WasmExecutor, shelf: Shelf) -> None:
    path, ref = shelf.put(struct.pack("<f", 40.0))
    artifact, manifest = shelf.task(
        ExecutorKind.WASM,
        module("add"),
        (Port("x", Dtype.FLOAT32, (1,)), Port("c", Dtype.FLOAT32, (1,))),
        (Port("y", Dtype.FLOAT32, (1,)),),
        constants=(Constant("c", ref),),
    )
    await wasm.start("t", artifact, manifest, {"c": path})
    value = Bytes(Dtype.FLOAT32, (1,), struct.pack("<f", 2.0))
    result = await wasm.invoke("t", "c", {"x": value}, BUDGET_MS)
    assert struct.unpack("<f", result.outputs["y"].data) == (42.0,)
    # The guest wrote over its input: the next call has memory of its own.
    again = await wasm.invoke("t", "c", {"x": value}, BUDGET_MS)
    assert again.outputs == result.outputs


async def test_large_values_go_as_files(wasm: WasmExecutor, shelf: Shelf, blobs: Path) -> None:
    await ready(wasm, *shelf.guest("echo"))
    data = os.urandom(4 * 250_000)
    path, ref = shelf.put(data)
    path.rename(blobs / path.name)
    value = File(Dtype.FLOAT32, (250_000,), ref.digest, len(data))
    result = await wasm.invoke("t", "c", {"x": value}, BUDGET_MS)
    output = result.outputs["y"]
    assert (blobs / file_of(output.digest)).read_bytes() == data
    # What one step has made is the next one's input as it lies there.
    again = await wasm.invoke("t", "d", {"x": output}, BUDGET_MS)
    assert (blobs / file_of(again.outputs["y"].digest)).read_bytes() == data
    assert again.outputs["y"].digest != output.digest
    assert sorted(one.name for one in blobs.iterdir()) == sorted(["made", path.name])


def test_a_large_value_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    sys.path.append(str(PROGRAMS))
    from stream import Refusal  # noqa: PLC0415 - as a host finds it
    from wasm_inputs import Unread, given, put  # noqa: PLC0415 - the same

    path = tmp_path / "value"
    path.write_bytes(bytes(range(200)))
    described = [["a", 2, [200], 200, "value"], ["b", 2, [3], 3, ""]]
    found = given(described, memoryview(b"xyz"), str(tmp_path))
    room = bytearray(200)
    put(found["a"][3], memoryview(room))
    assert bytes(room) == path.read_bytes()
    assert bytes(found["b"][3]) == b"xyz"
    assert bytes(Unread(str(path), 200).mapped()) == path.read_bytes()
    with pytest.raises(Refusal, match="has 200 bytes, not 201"):
        Unread(str(path), 201)
    cut = Unread(str(path), 200)
    os.truncate(path, 150)
    with pytest.raises(Refusal, match="ends 50 bytes too early"):
        put(cut, memoryview(room))
    with pytest.raises(Refusal, match="No such file"):
        Unread(str(tmp_path / "none"), 1)


async def test_a_large_output_lies_under_a_name_that_nobody_can_guess(
    wasm: WasmExecutor, shelf: Shelf, blobs: Path
) -> None:
    artifact, manifest = shelf.task(
        ExecutorKind.WASM,
        module(
            "(i32.store (local.get $out) (i32.const 0))"
            "(i32.store offset=4 (local.get $out) (i32.const 100000)) (i32.const 0)"
        ),
        (),
        (Port("y", Dtype.UINT8, (100_000,)),),
    )
    await ready(wasm, artifact, manifest)
    result = await wasm.invoke("t", "c", {}, BUDGET_MS)
    output = result.outputs["y"]
    assert isinstance(output, File)
    assert re.fullmatch("made:[0-9a-f]{64}", output.digest)
    written = blobs / file_of(output.digest)
    assert shelf.put(written.read_bytes())[1].digest != f"sha256:{written.name}"
    assert written.stat().st_size == output.size_bytes == 100_000


async def test_a_file_that_is_not_there_is_fetched_again(wasm: WasmExecutor, shelf: Shelf) -> None:
    await ready(wasm, *shelf.guest("echo"))
    value = File(Dtype.FLOAT32, (1,), "sha256:" + "0" * 64, 4)
    result = await wasm.invoke("t", "c", {"x": value}, BUDGET_MS)
    assert (result.code, result.retryable) == (FailureCode.FETCH, True)


async def test_an_endless_loop_ends_at_its_deadline_and_the_host_stays(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    wasm.stop_grace_s = WAIT_S
    await ready(wasm, *shelf.guest("echo"), task="good")
    await ready(wasm, *shelf.guest("spin", limits=Limits(deadline_ms=50)), task="bad")
    host = host_of(wasm)
    late = await wasm.invoke("bad", "c", {"x": floats(1)}, BUDGET_MS)
    assert (late.code, late.blame) == (FailureCode.DEADLINE, Blame.USER)
    assert "50 ms" in late.text
    short = await wasm.invoke("bad", "c", {"x": floats(1)}, 20)
    assert (short.code, short.blame) == (FailureCode.DEADLINE, Blame.ENVIRONMENT)
    for _ in range(3):
        assert isinstance(await wasm.invoke("good", "c", {"x": floats(1)}, BUDGET_MS), Done)
    assert host_of(wasm) == host


async def test_a_cancelled_call_frees_its_slot(wasm: WasmExecutor, shelf: Shelf) -> None:
    await ready(wasm, *shelf.guest("spin"), task="bad")
    await ready(wasm, *shelf.guest("echo"), task="good")
    calls = [
        asyncio.create_task(wasm.invoke("bad", str(one), {"x": floats(1)}, BUDGET_MS))
        for one in range(5)
    ]
    await asyncio.sleep(0)
    for one in range(5):
        await wasm.cancel("bad", str(one))
    assert {one.code for one in await asyncio.gather(*calls)} == {FailureCode.CANCELLED}
    assert isinstance(await wasm.invoke("good", "c", {"x": floats(1)}, BUDGET_MS), Done)


async def test_a_caller_that_goes_away_stops_its_call(wasm: WasmExecutor, shelf: Shelf) -> None:
    await ready(wasm, *shelf.guest("spin"), task="bad")
    for number in range(3):
        call = asyncio.create_task(wasm.invoke("bad", str(number), {"x": floats(1)}, BUDGET_MS))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await ready(wasm, *shelf.guest("echo"), task="good")
    assert isinstance(await wasm.invoke("good", "c", {"x": floats(1)}, BUDGET_MS), Done)


async def test_memory_ends_at_its_limit(wasm: WasmExecutor, shelf: Shelf) -> None:
    artifact, manifest = shelf.task(
        ExecutorKind.WASM,
        module("grow"),
        (Port("x", Dtype.FLOAT32, (-1,)),),
        (Port("pages", Dtype.INT32, (1,)),),
        limits=Limits(memory_bytes=1 << 20),
    )
    await ready(wasm, artifact, manifest)
    result = await wasm.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert struct.unpack("<i", result.outputs["pages"].data)[0] <= 16
    large = Bytes(Dtype.FLOAT32, (16_000,), bytes(64_000))
    assert isinstance(await wasm.invoke("t", "c", {"x": large}, BUDGET_MS), Done)


async def test_a_module_larger_than_its_limit_does_not_start(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    artifact, manifest = shelf.guest("echo", limits=Limits(memory_bytes=1 << 20), pages="64")
    with pytest.raises(ExecutorFailure) as caught:
        await ready(wasm, artifact, manifest)
    assert caught.value.failed.blame is Blame.USER
    assert await wasm.stats("t") is None


async def test_inputs_beyond_the_memory_are_refused(
    wasm: WasmExecutor, shelf: Shelf, blobs: Path
) -> None:
    artifact, manifest = shelf.guest("echo", limits=Limits(memory_bytes=1 << 20))
    await ready(wasm, artifact, manifest)
    path, ref = shelf.put(bytes(2 << 20))
    path.rename(blobs / path.name)
    value = File(Dtype.FLOAT32, (1 << 19,), ref.digest, 2 << 20)
    result = await wasm.invoke("t", "c", {"x": value}, BUDGET_MS)
    assert (result.code, result.blame) == (FailureCode.LIMIT, Blame.USER)


async def test_outputs_beyond_their_limit_are_refused(wasm: WasmExecutor, shelf: Shelf) -> None:
    artifact, manifest = shelf.guest("echo", limits=Limits(output_bytes=8))
    await ready(wasm, artifact, manifest)
    value = Bytes(Dtype.FLOAT32, (3,), bytes(12))
    result = await wasm.invoke("t", "c", {"x": value}, BUDGET_MS)
    assert (result.code, result.blame) == (FailureCode.LIMIT, Blame.USER)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("outside", "claims 4 bytes at 0x7ffffff0"),
        ("wrapping", "claims 4 bytes at 0xfffffffe"),
        ("size", "claims 5 bytes"),
        ("dtype", "dtype 7"),
        ("rank", "4294967295"),
        ("trap", "unreachable"),
        ("fail", "error 3"),
    ],
)
async def test_a_guest_that_breaks_the_abi_is_told_so(
    wasm: WasmExecutor, shelf: Shelf, body: str, said: str
) -> None:
    await ready(wasm, *shelf.guest(body))
    result = await wasm.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(result, Failed)
    assert (result.code, result.blame, result.retryable) == (
        FailureCode.EXECUTOR,
        Blame.USER,
        False,
    )
    assert said in result.text


async def test_the_guests_own_words_reach_the_user(wasm: WasmExecutor, shelf: Shelf) -> None:
    extra = '(func (export "tona_error") (result i32) (i32.const 64))'
    await ready(wasm, *shelf.guest("fail", extra=extra))
    result = await wasm.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert "error 3: the sum is wrong" in result.text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (module("echo").replace(b"tona_run", b"tona_ran"), "no function 'tona_run'"),
        (b"garbage", "no Wasm module"),
        (b"\0asm\1\0\0\0garbage", "does not compile"),
        (b"", "no Wasm module"),
    ],
)
async def test_what_is_no_guest_is_refused_at_deploy(
    wasm: WasmExecutor, shelf: Shelf, data: bytes, said: str
) -> None:
    artifact, manifest = shelf.task(ExecutorKind.WASM, data, (), (Port("y", Dtype.FLOAT32, (1,)),))
    with pytest.raises(ExecutorFailure, match=said) as caught:
        await wasm.deploy(artifact, manifest)
    assert caught.value.failed.blame is Blame.USER


async def test_imports_are_refused_by_name(wasm: WasmExecutor, shelf: Shelf) -> None:
    imports = '(import "wasi_snapshot_preview1" "fd_write" (func (param i32) (result i32)))'
    artifact, manifest = shelf.guest("echo", imports=imports)
    with pytest.raises(ExecutorFailure, match=r"wasi_snapshot_preview1\.fd_write"):
        await ready(wasm, artifact, manifest)


async def test_an_artifact_that_is_not_its_digest_is_refused(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    artifact, manifest = shelf.guest("echo")
    artifact.write_bytes(artifact.read_bytes() + b"\0\1\0")
    with pytest.raises(ExecutorFailure, match="not what its digest says"):
        await wasm.deploy(artifact, manifest)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "input 'x' is missing"),
        ({"x": Bytes(Dtype.INT32, (1,), bytes(4))}, "is int32"),
        ({"x": Bytes(Dtype.FLOAT32, (1, 1), bytes(4))}, "is float32"),
        ({"x": Bytes(Dtype.FLOAT32, (2,), bytes(4))}, "has 4 bytes"),
        ({"x": Bytes(Dtype.FLOAT32, (20_000,), bytes(80_000))}, "as a file"),
        ({"x": File(Dtype.FLOAT32, (1,), "sha256:../../etc/passwd", 4)}, "no valid digest"),
        (
            {"x": Bytes(Dtype.FLOAT32, (1,), bytes(4)), "z": Bytes(Dtype.FLOAT32, (), bytes(4))},
            "no input z",
        ),
    ],
)
async def test_inputs_that_do_not_fit_are_refused_before_the_executor(
    wasm: WasmExecutor, shelf: Shelf, inputs: dict[str, Value], said: str
) -> None:
    await ready(wasm, *shelf.guest("echo"))
    result = await wasm.invoke("t", "c", inputs, BUDGET_MS)
    assert (result.code, result.blame) == (FailureCode.BAD_INPUT, Blame.USER)
    assert said in result.text


async def test_a_full_queue_is_busy(wasm: WasmExecutor, shelf: Shelf) -> None:
    await ready(wasm, *shelf.guest("spin", limits=Limits(queue=1)))
    calls = [
        asyncio.create_task(wasm.invoke("t", str(one), {"x": floats(1)}, BUDGET_MS))
        for one in range(4)
    ]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert [one.result().code for one in done] == [FailureCode.BUSY]
    for one in range(4):
        await wasm.cancel("t", str(one))
    await asyncio.gather(*waiting)


async def test_a_killed_host_fails_its_calls_as_retryable_and_comes_back(
    wasm: WasmExecutor, shelf: Shelf, exits: Exits
) -> None:
    await ready(wasm, *shelf.guest("spin"), task="bad")
    await ready(wasm, *shelf.guest("echo"), task="good")
    call = asyncio.create_task(wasm.invoke("bad", "c", {"x": floats(1)}, BUDGET_MS))
    await asyncio.sleep(0)
    os.kill(host_of(wasm), signal.SIGKILL)
    result = await call
    assert (result.code, result.blame, result.retryable) == (
        FailureCode.EXECUTOR,
        Blame.ENVIRONMENT,
        True,
    )
    task, reason = await exits.first()
    assert task in {"good", "bad"}
    assert "SIGKILL" in reason
    assert isinstance(await wasm.invoke("good", "c", {"x": floats(1)}, BUDGET_MS), Done)
    assert {task for task, _ in exits} == {"good", "bad"}


async def test_a_host_that_does_not_stop_is_killed_and_its_neighbours_retry(
    wasm: WasmExecutor, shelf: Shelf, exits: Exits, gone: Gone
) -> None:
    await ready(wasm, *shelf.guest("spin", limits=Limits(deadline_ms=50)), task="bad")
    await ready(wasm, *shelf.guest("spin"), task="neighbour")
    await ready(wasm, *shelf.guest("echo"), task="good")
    host = host_of(wasm)
    neighbour = asyncio.create_task(wasm.invoke("neighbour", "c", {"x": floats(1)}, BUDGET_MS))
    await asyncio.sleep(0)
    os.kill(host, signal.SIGSTOP)
    late = await wasm.invoke("bad", "c", {"x": floats(1)}, BUDGET_MS)
    assert late.code is FailureCode.DEADLINE
    lost = await neighbour
    assert (lost.code, lost.retryable) == (FailureCode.EXECUTOR, True)
    await gone(host)
    assert isinstance(await wasm.invoke("good", "c", {"x": floats(1)}, BUDGET_MS), Done)
    assert exits == []


async def test_a_compiled_module_outlives_the_executor_and_a_broken_seal_does_not(
    wasm: WasmExecutor, shelf: Shelf, tmp_path: Path, blobs: Path
) -> None:
    artifact, manifest = shelf.guest("echo")
    await ready(wasm, artifact, manifest)
    cache = tmp_path / "cache"
    (compiled,) = (cache / "forms").glob("*.cwasm")
    assert (cache.stat().st_mode & 0o777, (cache / "key").stat().st_mode & 0o777) == (0o700, 0o600)
    whole = compiled.read_bytes()
    before = compiled.stat().st_ino
    artifact_elsewhere = tmp_path / "moved"

    second = WasmExecutor(blobs=blobs, artifacts=tmp_path, cache=cache, memories=tmp_path / "m")
    try:
        # Without its source: only the cache can serve it.
        await second.start("t", artifact_elsewhere, manifest, {})
        assert compiled.stat().st_ino == before
    finally:
        await second.close()

    compiled.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    third = WasmExecutor(blobs=blobs, artifacts=tmp_path, cache=cache, memories=tmp_path / "m")
    try:
        with pytest.raises(ExecutorFailure):
            await third.start("t", artifact_elsewhere, manifest, {})
        await third.start("t", artifact, manifest, {})
        assert compiled.read_bytes() == whole
        result = await third.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
        assert isinstance(result, Done)
    finally:
        await third.close()


async def test_what_compiles_and_runs_modules_never_comes_near_the_key(
    wasm: WasmExecutor, shelf: Shelf, tmp_path: Path
) -> None:
    await ready(wasm, *shelf.guest("echo"))
    folders = wasm._hosts._birth["read"] + wasm._hosts._birth["write"]
    assert all(not (tmp_path / "cache").is_relative_to(one) for one in folders)
    assert {one.name for one in (tmp_path / "cache" / "forms").iterdir()} == {
        one.with_suffix(".cwasm").name for one in (tmp_path / "cache").glob("*.seal")
    }
    # A seal that somebody else has made, or for another module, seals nothing.
    seals = Seals(tmp_path / "cache")
    name = next((tmp_path / "cache").glob("*.seal")).stem
    fingerprint = seals.fingerprint(name)
    assert FINGERPRINT.fullmatch(fingerprint)
    Seals(tmp_path / "other").put(name, fingerprint)
    (tmp_path / "other" / f"{name}.seal").rename(tmp_path / "cache" / f"{name}.seal")
    seals.put("another", fingerprint)
    (tmp_path / "cache" / "another.seal").rename(tmp_path / "cache" / "third.seal")
    fresh = Seals(tmp_path / "cache")
    assert fresh.fingerprint(name) == fresh.fingerprint("third") == ""


async def test_stop_and_close_leave_nothing(wasm: WasmExecutor, shelf: Shelf, gone: Gone) -> None:
    await ready(wasm, *shelf.guest("spin"))
    call = asyncio.create_task(wasm.invoke("t", "c", {"x": floats(1)}, BUDGET_MS))
    await asyncio.sleep(0)
    host = host_of(wasm)
    await wasm.stop("t")
    assert (await call).code is FailureCode.NOT_READY
    assert (await wasm.invoke("t", "c", {}, BUDGET_MS)).code is FailureCode.NOT_READY
    await wasm.stop("t")
    await wasm.close()
    await gone(host)
    async with asyncio.timeout(WAIT_S):
        # Whoever has started it takes note of its end a moment later.
        while Path(f"/proc/{host}").exists():  # noqa: ASYNC110 - of this there is no event
            await asyncio.sleep(0.01)


async def test_a_start_function_cannot_hang_the_host(
    wasm: WasmExecutor, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.executors.wasm.START_TIMEOUT_S", 1.0)
    extra = "(func $s (loop $again (br $again))) (start $s)"
    with pytest.raises(ExecutorFailure, match="start function did not end"):
        await ready(wasm, *shelf.guest("echo", extra=extra), task="bad")
    monkeypatch.undo()
    await ready(wasm, *shelf.guest("echo"), task="good")
    assert isinstance(await wasm.invoke("good", "c", {"x": floats(1)}, BUDGET_MS), Done)


async def test_stats_count_calls(wasm: WasmExecutor, shelf: Shelf) -> None:
    await ready(wasm, *shelf.guest("trap"))
    await wasm.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    stats = await wasm.stats("t")
    assert (stats.calls, stats.failures) == (1, 1)
    assert await wasm.stats("nobody") is None
    assert await wasm.snapshot("t") == b""
    await wasm.restore("t", b"")
    with pytest.raises(ExecutorFailure, match="no state"):
        await wasm.restore("t", b"state")


async def test_a_cache_that_was_cleared_away_is_made_again(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    cache = wasm._cache.parent
    for one in (cache, wasm._cache):
        shutil.rmtree(one)
        await ready(wasm, *shelf.guest("echo"))
        assert isinstance(await wasm.invoke("t", "c", {"x": floats(1.0)}, BUDGET_MS), Done)
        assert (cache / "key").stat().st_mode & 0o777 == 0o600
