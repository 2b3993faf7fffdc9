"""What Wasm guests may import and remember, WASI commands, linked modules, and tenants apart."""

import asyncio
import logging
import os
import signal
import time
from pathlib import Path

import pytest
import wasmtime
from executor_exits import Exits
from executor_guests import Shelf, floats
from msgspec import structs

from device_agent.executors.door import (
    LINKED,
    PLAIN,
    Bytes,
    Done,
    ExecutorFailure,
    Failed,
    Setup,
)
from device_agent.executors.wasm import WasmExecutor
from protocols.manifest import (
    Dtype,
    ExecutorKind,
    HostFunction,
    Interface,
    Limits,
    LinkedModule,
    Manifest,
    Port,
)
from protocols.messages.invocation import FailureCode

BUDGET_MS = 30_000
BYTES_IN = (Port("x", Dtype.UINT8, (-1,)),)
BYTES_OUT = (Port("y", Dtype.UINT8, (-1,)),)

# Adds one to a counter that it remembers under the key "n" and gives it as a float.
COUNTER = """
  (i32.store8 (i32.const 8) (i32.const 110))
  (i32.store (i32.const 16) (i32.const 0))
  (drop (call $get (i32.const 8) (i32.const 1) (i32.const 16) (i32.const 4)))
  (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
  (drop (call $set (i32.const 8) (i32.const 1) (i32.const 16) (i32.const 4)))
  (f32.store (i32.const 32) (f32.convert_i32_u (i32.load (i32.const 16))))
  (i32.store (local.get $out) (i32.const 32))
  (i32.store offset=4 (local.get $out) (i32.const 4))
  {end}"""
MEMORY = """
  (import "tona" "memory_get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "tona" "memory_set" (func $set (param i32 i32 i32 i32) (result i32)))
  (import "tona" "memory_delete" (func $delete (param i32 i32) (result i32)))"""

# Gives what a host function answers, as a float.
ANSWER = """
  (f32.store (i32.const 32) (f32.convert_i32_s {call}))
  (i32.store (local.get $out) (i32.const 32))
  (i32.store offset=4 (local.get $out) (i32.const 4))
  (i32.const 0)"""

# A WASI command that copies stdin to stdout in pieces of 64 bytes.
CAT = """(module
  (import "wasi_snapshot_preview1" "fd_read"
    (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open" (func $open
    (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 512) "no such luck\\n")
  (func (export "_start")
    {before}
    (block $done (loop $more
      (i32.store (i32.const 0) (i32.const 1024)) (i32.store (i32.const 4) (i32.const 64))
      (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (br_if $done (i32.eqz (i32.load (i32.const 8))))
      (i32.store (i32.const 4) (i32.load (i32.const 8)))
      (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12))
        (then (call $exit (i32.const 74))))
      (br $more)))
    {after}))"""
COMPLAIN = """
  (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 13))
  (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 12)))
  (call $exit (i32.const 3))"""

# A library that doubles floats, and a program that leaves everything to it.
LIBRARY = """(module (memory (export "memory") 2) (global $ready (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $ready (i32.const 1)))
  (func (export "take") (param $len i32) (result i32) (i32.const 4096))
  (func (export "double") (param $at i32)
    (if (i32.eqz (global.get $ready)) (then (unreachable)))
    (f32.store (local.get $at) (f32.mul (f32.load (local.get $at)) (f32.const 2)))))"""
SHIM = """(module
  (import "lib" "memory" (memory $memory 1))
  (import "lib" "take" (func $take (param i32) (result i32)))
  (import "lib" "double" (func $double (param i32)))
  {extra}
  (export "memory" (memory $memory)) (export "tona_alloc" (func $take))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32)
    (call $double (i32.load (local.get $in)))
    (i32.store (local.get $out) (i32.load (local.get $in)))
    (i32.store offset=4 (local.get $out) (i32.const 4))
    (i32.const 0)))"""


def guest(
    shelf: Shelf, body: str, imports: str, *functions: HostFunction, state: int = 0
) -> tuple[Path, Manifest]:
    artifact, manifest = shelf.guest(body, imports=imports, limits=Limits(state_bytes=state))
    output = (Port("y", Dtype.FLOAT32, (1,)),)
    return artifact, structs.replace(manifest, functions=functions, outputs=output)


def counter(shelf: Shelf, end: str = "(i32.const 0)", state: int = 1000) -> tuple[Path, Manifest]:
    return guest(shelf, COUNTER.format(end=end), MEMORY, HostFunction.MEMORY, state=state)


def command(
    shelf: Shelf,
    *,
    before: str = "",
    after: str = "",
    outputs: tuple[Port, ...] = BYTES_OUT,
    limits: Limits | None = None,
) -> tuple[Path, Manifest]:
    code = bytes(wasmtime.wat2wasm(CAT.format(before=before, after=after)))
    artifact, manifest = shelf.task(ExecutorKind.WASM, code, BYTES_IN, outputs, limits=limits)
    return artifact, structs.replace(manifest, interface=Interface.WASI)


async def ready(
    wasm: WasmExecutor,
    artifact: Path,
    manifest: Manifest,
    task: str = "t",
    setup: Setup = PLAIN,
    files: dict[str, Path] | None = None,
) -> None:
    await wasm.deploy(artifact, manifest, setup)
    await wasm.start(task, artifact, manifest, files or {}, setup)


async def number(wasm: WasmExecutor, task: str = "t") -> float:
    result = await wasm.invoke(task, f"c{time.monotonic_ns()}", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(result, Done), result
    value = result.outputs["y"]
    assert isinstance(value, Bytes)
    return float(memoryview(value.data).cast("f")[0])


async def says(wasm: WasmExecutor, data: bytes) -> Done | Failed:
    return await wasm.invoke("t", "c", {"x": Bytes(Dtype.UINT8, (len(data),), data)}, BUDGET_MS)


def pid_of(wasm: WasmExecutor, tenant: str = "default") -> int:
    return wasm._hosts.of(tenant).pid


async def test_a_function_that_no_manifest_names_is_refused(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    artifact, manifest = guest(shelf, "echo", MEMORY, HostFunction.LOG)
    with pytest.raises(ExecutorFailure, match=r"tona\.memory_get.*name 'memory'"):
        await ready(wasm, artifact, manifest)


async def test_a_function_of_another_type_is_refused(wasm: WasmExecutor, shelf: Shelf) -> None:
    imports = '(import "tona" "log" (func (param i64) (result i32)))'
    with pytest.raises(ExecutorFailure, match="does not link"):
        await ready(wasm, *guest(shelf, "echo", imports, HostFunction.LOG))


async def test_a_guest_writes_to_the_nodes_log(
    wasm: WasmExecutor, shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    imports = '(import "tona" "log" (func $log (param i32 i32 i32) (result i32)))'
    call = "(call $log (i32.const 2) (i32.const 64) (i32.const 16))"
    artifact, manifest = guest(shelf, ANSWER.format(call=call), imports, HostFunction.LOG)
    await ready(wasm, artifact, manifest)
    with caplog.at_level(logging.INFO, "tona.executors"):
        assert await number(wasm) == 0
    assert "task t: the sum is wrong" in caplog.text


@pytest.mark.parametrize("at", ["i32.const 0x7fffffff", "i32.const -1"])
async def test_addresses_outside_are_refused(wasm: WasmExecutor, shelf: Shelf, at: str) -> None:
    imports = '(import "tona" "random" (func $random (param i32 i32) (result i32)))'
    call = f"(call $random ({at}) (i32.const 64))"
    await ready(wasm, *guest(shelf, ANSWER.format(call=call), imports, HostFunction.RANDOM))
    assert await number(wasm) == -1


async def test_random_bytes_differ(wasm: WasmExecutor, shelf: Shelf) -> None:
    imports = '(import "tona" "random" (func $random (param i32 i32) (result i32)))'
    body = ANSWER.format(
        call="(i32.add (call $random (i32.const 64) (i32.const 64)) (i32.load (i32.const 64)))"
    )
    await ready(wasm, *guest(shelf, body, imports, HostFunction.RANDOM))
    assert len({await number(wasm) for _ in range(4)}) == 4


async def test_the_clock_goes(wasm: WasmExecutor, shelf: Shelf) -> None:
    imports = '(import "tona" "clock_ms" (func $clock (result i64)))'
    call = "(i32.wrap_i64 (i64.div_u (call $clock) (i64.const 1000)))"
    await ready(wasm, *guest(shelf, ANSWER.format(call=call), imports, HostFunction.CLOCK))
    assert abs(await number(wasm) - time.time()) < 300


async def test_a_task_remembers_across_calls_crashes_and_restarts(
    wasm: WasmExecutor, shelf: Shelf, exits: Exits
) -> None:
    artifact, manifest = counter(shelf)
    setup = Setup(memory="svc.counter")
    await ready(wasm, artifact, manifest, setup=setup)
    assert [await number(wasm) for _ in range(3)] == [1, 2, 3]
    os.kill(pid_of(wasm), signal.SIGKILL)
    await exits.first()
    assert await number(wasm) == 4
    await wasm.stop("t")
    await ready(wasm, artifact, manifest, "t~2", setup)
    assert await number(wasm, "t~2") == 5


async def test_two_generations_of_a_task_remember_the_same(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    setup = Setup(memory="svc.counter")
    await ready(wasm, *counter(shelf), "old", setup)
    await ready(wasm, *counter(shelf, end="(nop) (i32.const 0)"), "new", setup)
    assert [await number(wasm, "old"), await number(wasm, "new")] == [1, 2]
    await wasm.stop("old")
    assert await number(wasm, "new") == 3


async def test_a_call_that_fails_leaves_nothing_behind(wasm: WasmExecutor, shelf: Shelf) -> None:
    setup = Setup(memory="svc.counter")
    await ready(wasm, *counter(shelf), setup=setup)
    await ready(wasm, *counter(shelf, end="(i32.const 9)"), "bad", setup)
    await ready(wasm, *counter(shelf, end="(unreachable)"), "worse", setup)
    assert await number(wasm) == 1
    for task in ("bad", "worse"):
        assert isinstance(await wasm.invoke(task, "c", {"x": floats(1)}, BUDGET_MS), Failed)
    assert await number(wasm) == 2


async def test_memory_ends_at_the_limit_of_its_manifest(wasm: WasmExecutor, shelf: Shelf) -> None:
    call = "(call $set (i32.const 8) (i32.const 4) (i32.const 64) (i32.const {size}))"
    fits = ANSWER.format(call=call.format(size=96))
    body = ANSWER.format(call=call.format(size=97))
    await ready(wasm, *guest(shelf, fits, MEMORY, HostFunction.MEMORY, state=100))
    assert await number(wasm) == 0
    await ready(wasm, *guest(shelf, body, MEMORY, HostFunction.MEMORY, state=100))
    assert await number(wasm) == -2


async def test_memory_goes_to_another_node(
    wasm: WasmExecutor, shelf: Shelf, tmp_path: Path, blobs: Path
) -> None:
    artifact, manifest = counter(shelf)
    await ready(wasm, artifact, manifest)
    assert [await number(wasm) for _ in range(2)] == [1, 2]
    other = WasmExecutor(
        blobs=blobs, artifacts=tmp_path, cache=tmp_path / "c2", memories=tmp_path / "m2"
    )
    try:
        await ready(other, artifact, manifest)
        assert await number(other) == 1
        await other.restore("t", await wasm.snapshot("t"))
        assert await number(other) == 3
    finally:
        await other.close()


async def test_what_comes_back_is_not_what_was_left(
    wasm: WasmExecutor, shelf: Shelf, tmp_path: Path, blobs: Path
) -> None:
    """The host, which other tasks keep alive, has read the memory that the task left."""
    artifact, manifest = counter(shelf)
    setup = Setup(memory="svc.counter")
    await ready(wasm, artifact, manifest, "other", Setup(memory="svc.other"))
    await ready(wasm, artifact, manifest, "t~1", setup)
    assert await number(wasm, "t~1") == 1
    await wasm.stop("t~1")
    left = wasm.recall("svc.counter")
    elsewhere = WasmExecutor(
        blobs=blobs, artifacts=tmp_path, cache=tmp_path / "c3", memories=tmp_path / "m3"
    )
    try:
        await ready(elsewhere, artifact, manifest, "t~1", setup)
        await elsewhere.restore("t~1", left)
        assert [await number(elsewhere, "t~1") for _ in range(2)] == [2, 3]
        came = await elsewhere.snapshot("t~1")
    finally:
        await elsewhere.close()
    await ready(wasm, artifact, manifest, "t~2", setup)
    await wasm.restore("t~2", came)
    assert await number(wasm, "t~2") == 4
    assert wasm.recall("svc.absent") == b""


async def test_tenants_never_share_a_process(
    wasm: WasmExecutor, shelf: Shelf, exits: Exits
) -> None:
    artifact, manifest = shelf.guest("echo")
    await ready(wasm, artifact, manifest, "a", Setup(tenant="alice"))
    await ready(wasm, artifact, manifest, "b", Setup(tenant="bob"))
    await ready(wasm, artifact, manifest, "b2", Setup(tenant="bob"))
    for task in ("a", "b", "b2"):
        assert await number(wasm, task) == 1
    assert wasm._instances["a"].pid != wasm._instances["b"].pid == wasm._instances["b2"].pid
    os.kill(wasm._instances["a"].pid, signal.SIGKILL)
    task, reason = await exits.first()
    assert (task, "tenant 'alice' was killed by SIGKILL" in reason) == ("a", True)
    assert wasm._instances["b"].links
    assert len(exits) == 1


async def test_a_host_stands_ready_for_the_next_tenant(wasm: WasmExecutor, shelf: Shelf) -> None:
    artifact, manifest = shelf.guest("echo")
    await ready(wasm, artifact, manifest, "a", Setup(tenant="alice"))
    blank = wasm._hosts._blank[0]
    assert not blank.tenant
    await ready(wasm, artifact, manifest, "b", Setup(tenant="bob"))
    assert wasm._hosts.of("bob") is blank


async def test_a_wasi_command_reads_stdin_and_writes_stdout(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    await ready(wasm, *command(shelf))
    text = b"line of text\n" * 500
    result = await says(wasm, text)
    assert isinstance(result, Done), result
    assert result.outputs["y"] == Bytes(Dtype.UINT8, (len(text),), text)
    assert isinstance(await says(wasm, b""), Done)


async def test_a_wasi_commands_exit_code_and_last_words_are_told(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    await ready(wasm, *command(shelf, after=COMPLAIN))
    result = await says(wasm, b"x")
    assert isinstance(result, Failed)
    assert "exit code 3: no such luck" in result.text
    outputs = (*BYTES_OUT, Port("err", Dtype.UINT8, (-1,)))
    after = COMPLAIN.replace("(i32.const 3)", "(i32.const 0)")
    await ready(wasm, *command(shelf, after=after, outputs=outputs))
    result = await says(wasm, b"x")
    assert isinstance(result, Done), result
    assert result.outputs["err"] == Bytes(Dtype.UINT8, (13,), b"no such luck\n")


async def test_a_wasi_command_has_neither_sleep_nor_files(wasm: WasmExecutor, shelf: Shelf) -> None:
    sleep = """(call $exit (call $poll (i32.const 64) (i32.const 128) (i32.const 1)
      (i32.const 256)))"""
    await ready(wasm, *command(shelf, before=sleep))
    assert "exit code 58" in getattr(await says(wasm, b"x"), "text", "")
    # Whatever number a folder might have, there is none.
    opens = """(call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 4)
      (i32.const 0) (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 600)))"""
    await ready(wasm, *command(shelf, before=opens))
    assert "exit code 8" in getattr(await says(wasm, b"x"), "text", ""), "no bad descriptor"


async def test_what_a_wasi_command_writes_has_a_bound(wasm: WasmExecutor, shelf: Shelf) -> None:
    await ready(wasm, *command(shelf, limits=Limits(output_bytes=1000)))
    assert isinstance(await says(wasm, b"x" * 1000), Done)
    assert "exit code 74" in getattr(await says(wasm, b"x" * 1001), "text", "")


async def test_a_wasi_command_that_spins_is_stopped(wasm: WasmExecutor, shelf: Shelf) -> None:
    limits = Limits(deadline_ms=200)
    await ready(wasm, *command(shelf, before="(loop $again (br $again))", limits=limits))
    result = await says(wasm, b"x")
    assert isinstance(result, Failed)
    assert result.code is FailureCode.DEADLINE


async def test_a_program_is_linked_with_a_module_that_others_wrote(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    library, reference = shelf.put(bytes(wasmtime.wat2wasm(LIBRARY)))
    shim = bytes(wasmtime.wat2wasm(SHIM.format(extra="")))
    ports = (Port("x", Dtype.FLOAT32, (1,)),), (Port("y", Dtype.FLOAT32, (1,)),)
    artifact, manifest = shelf.task(ExecutorKind.WASM, shim, *ports)
    linked = structs.replace(manifest, modules=(LinkedModule("lib", reference),))
    await ready(wasm, artifact, linked, files={LINKED + "lib": library})
    results = [wasm.invoke("t", f"c{at}", {"x": floats(at)}, BUDGET_MS) for at in range(8)]
    for at, result in enumerate(await asyncio.gather(*results)):
        assert isinstance(result, Done), result
        assert result.outputs["y"] == floats(2.0 * at)
    with pytest.raises(ExecutorFailure, match=r"lib\.memory, which nothing provides"):
        await ready(wasm, artifact, manifest)
    _, other = shelf.put(bytes(wasmtime.wat2wasm(LIBRARY.replace("4096", "8192"))))
    absent = structs.replace(manifest, modules=(LinkedModule("lib", other),))
    with pytest.raises(ExecutorFailure, match="'lib' is not on this node"):
        await ready(wasm, artifact, absent)


async def test_linked_modules_have_one_memory(wasm: WasmExecutor, shelf: Shelf) -> None:
    library, reference = shelf.put(bytes(wasmtime.wat2wasm(LIBRARY)))
    own = SHIM.format(extra="(memory $memory 1)")
    shim = own.replace('(import "lib" "memory" (memory $memory 1))', "")
    ports = (Port("x", Dtype.FLOAT32, (1,)),), (Port("y", Dtype.FLOAT32, (1,)),)
    artifact, manifest = shelf.task(ExecutorKind.WASM, bytes(wasmtime.wat2wasm(shim)), *ports)
    linked = structs.replace(manifest, modules=(LinkedModule("lib", reference),))
    with pytest.raises(ExecutorFailure, match="share one memory"):
        await ready(wasm, artifact, linked, files={LINKED + "lib": library})
