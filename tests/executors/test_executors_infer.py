"""Guests that run models in the middle of their own calls: real processes, real ABI, lies in it."""

import asyncio
import os
import struct
from pathlib import Path

import pytest
import wasmtime
from executor_exits import WAIT_S
from executor_guests import Shelf, floats
from executor_models import Model
from msgspec import structs

from device_agent.executors.contract import file_of
from device_agent.executors.door import Bytes, Done, ExecutorFailure, Failed, File, Value
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.wasm import WasmExecutor
from protocols.errors import Blame
from protocols.manifest import Dtype, ExecutorKind, Infer, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

BUDGET_MS = 30_000
FLOATS = (Port("x", Dtype.FLOAT32, (-1,)),)
OUTPUTS = (Port("y", Dtype.FLOAT32, (-1,)),)
MAX_INLINE = 16_384
"""Floats that go inline."""

IMPORT = '(import "tona" "infer" (func $infer (param i32 i32 i32 i32 i32 i32) (result i32)))'
# "net" stands at 16; the model's output descriptor at 256; `$code` is given as a float at 32.
START = """(local $code i32)
  (i32.store (i32.const 16) (i32.const 0x0074656e))
  (i32.store (i32.const 256) (i32.const {data})) (i32.store (i32.const 260) (i32.const {room}))
  (local.set $code (call $infer {arguments}))"""
ASK = "(i32.const 16) (i32.const 3) (local.get $in) (i32.const 1) (i32.const 256) (i32.const 1)"
GIVE = """
  (memory.copy (local.get $out) (i32.const 256) (i32.const 48))
  (local.get $code)"""
CODE = """
  (f32.store (i32.const 32) (f32.convert_i32_s (local.get $code)))
  (i32.store (local.get $out) (i32.const 32))
  (i32.store offset=4 (local.get $out) (i32.const 4))
  (i32.store offset=16 (local.get $out) (i32.const 1))
  (i32.const 0)"""


def body(end: str = GIVE, arguments: str = ASK, data: int = 0, room: int = 0) -> str:
    return START.format(arguments=arguments, data=data, room=room) + end


def doubled() -> bytes:
    node = Model.node("Add", ["x", "x"], ["y"])
    return Model.whole(Model.graph([node], [Model.value("x", 1, "n")], [Model.value("y", 1, "n")]))


class Pair:
    """A guest's executor and a model's, with nothing between them."""

    def __init__(self, wasm: WasmExecutor, onnx: OnnxExecutor, shelf: Shelf) -> None:
        self.wasm, self.onnx, self.shelf = wasm, onnx, shelf
        self.asked: list[tuple[str, str, list[Value]]] = []
        self.answer: Done | Failed | None = None
        """What a guest is told instead of what the model gives."""
        self.silent = False
        self.heard = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        wasm.on_infer = self._infer

    def _infer(self, call: str, name: str, values: list[Value]) -> None:
        self.asked.append((call, name, values))
        self.heard.set()
        if not self.silent:
            task = asyncio.create_task(self._run(call, values))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, call: str, values: list[Value]) -> None:
        number = len(self.asked)
        result = self.answer or await self.onnx.invoke(
            "net", str(number), dict(zip(["x"], values, strict=True)), BUDGET_MS
        )
        self.wasm.inferred("t", call, result)

    async def model(self) -> None:
        artifact, manifest = self.shelf.task(ExecutorKind.ONNX, doubled(), FLOATS, OUTPUTS)
        await self.onnx.deploy(artifact, manifest)
        await self.onnx.start("net", artifact, manifest, {})

    async def guest(
        self, text: str, *, extra: str = "", limits: Limits | None = None, grant: bool = True
    ) -> None:
        artifact, manifest = self.shelf.guest(text, imports=IMPORT, extra=extra, limits=limits)
        await self.start(artifact, structs.replace(manifest, outputs=OUTPUTS), grant=grant)

    async def start(self, artifact: Path, manifest: Manifest, *, grant: bool = True) -> None:
        infers = (Infer("net", "s.net"),) if grant else ()
        manifest = structs.replace(manifest, infers=infers)
        await self.wasm.deploy(artifact, manifest)
        await self.wasm.start("t", artifact, manifest, {})

    async def call(self, value: Value | None = None, budget_ms: int = BUDGET_MS) -> Done | Failed:
        return await self.wasm.invoke("t", "c", {"x": value or floats(1.0, 2.5)}, budget_ms)

    async def code(self, text: str) -> float:
        """Return what `infer` answers."""
        await self.guest(text)
        result = await self.call()
        assert isinstance(result, Done), result
        return of(result)[0]


def of(result: Done | Failed) -> tuple[float, ...]:
    assert isinstance(result, Done), result
    value = result.outputs["y"]
    assert isinstance(value, Bytes)
    return struct.unpack(f"<{value.shape[0]}f", value.data)


@pytest.fixture
async def pair(wasm: WasmExecutor, onnx: OnnxExecutor, shelf: Shelf) -> Pair:
    return Pair(wasm, onnx, shelf)


async def test_a_guest_gives_what_its_model_gave(pair: Pair) -> None:
    await pair.model()
    await pair.guest(body())
    for _ in range(3):
        assert of(await pair.call()) == (2.0, 5.0)
    assert [(call, name) for call, name, _ in pair.asked] == [("c", "net")] * 3


async def test_large_tensors_go_as_files_that_are_gone_afterwards(pair: Pair, blobs: Path) -> None:
    await pair.model()
    # The output is too large for a call that gives one float: it gives the last one.
    last = """(if (local.get $code) (then (return (local.get $code))))
      (i32.store (local.get $out)
        (i32.add (i32.load (i32.const 256)) (i32.sub (i32.load (i32.const 260)) (i32.const 4))))
      (i32.store offset=4 (local.get $out) (i32.const 4))
      (i32.store offset=16 (local.get $out) (i32.const 1)) (i32.const 0)"""
    await pair.guest(body(last))
    count = 10 * MAX_INLINE
    data = struct.pack(f"<{count}f", *range(count))
    digest = "ab" * 32
    (blobs / digest).write_bytes(data)
    result = await pair.call(File(Dtype.FLOAT32, (count,), f"sha256:{digest}", len(data)))
    assert of(result) == (2.0 * (count - 1),)
    (_, _, values) = pair.asked[0]
    assert isinstance(values[0], File)
    assert not (blobs / file_of(values[0].digest)).exists()


async def test_an_output_goes_where_the_guest_says(pair: Pair) -> None:
    await pair.model()
    await pair.guest(body(data=1024, room=8))
    assert of(await pair.call()) == (2.0, 5.0)
    # Into the input itself: what is read was read before.
    text = body().replace(
        "(local.set $code",
        "(i32.store (i32.const 256) (i32.load (local.get $in)))"
        "(i32.store (i32.const 260) (i32.const 8)) (local.set $code",
    )
    await pair.guest(text)
    assert of(await pair.call()) == (2.0, 5.0)


async def test_what_has_no_room_is_told_and_not_written(pair: Pair) -> None:
    await pair.model()
    sizes = """(f32.store (i32.const 32) (f32.convert_i32_s (local.get $code)))
      (f32.store (i32.const 36) (f32.convert_i32_u (i32.load (i32.const 260))))
      (f32.store (i32.const 40) (f32.convert_i32_u (i32.load (i32.const 272))))
      (f32.store (i32.const 44) (f32.convert_i32_u (i32.load (i32.const 1024))))
      (i32.store (local.get $out) (i32.const 32))
      (i32.store offset=4 (local.get $out) (i32.const 16))
      (i32.store offset=16 (local.get $out) (i32.const 4)) (i32.const 0)"""
    await pair.guest(body(sizes, data=1024, room=7))
    assert of(await pair.call()) == (-3.0, 8.0, 2.0, 0.0)


LIES = {
    "another name": (ASK.replace("(i32.const 3)", "(i32.const 2)"), -1),
    "a name outside": (ASK.replace("(i32.const 16)", "(i32.const 0x7fffffff)"), -2),
    "an endless name": (ASK.replace("(i32.const 3)", "(i32.const -1)"), -2),
    "inputs outside": (ASK.replace("(local.get $in)", "(i32.const -8)"), -2),
    "outputs outside": (ASK.replace("(i32.const 256)", "(i32.const 0xfffffff0)"), -2),
    "too many inputs": (
        ASK.replace("(i32.const 1) (i32.const 256)", "(i32.const -1) (i32.const 256)"),
        -2,
    ),
    "too many outputs": (ASK[: -len("(i32.const 1)")] + "(i32.const 17)", -2),
    "no output": (ASK[: -len("(i32.const 1)")] + "(i32.const 0)", -4),
}


async def test_lies_in_the_arguments_are_answered_with_a_code(pair: Pair) -> None:
    pair.answer = Done({"y": floats(1.0)}, 1)
    for lie, (arguments, code) in LIES.items():
        assert await pair.code(body(CODE, arguments)) == code, lie


DESCRIPTORS = {
    "a length": (4, -1),
    "a size that the shape is not": (4, 12),
    "an address": (0, -4),
    "a dtype": (8, 99),
    "a rank": (12, 9),
    "a vast rank": (12, -1),
    "an axis": (16, -1),
}


async def test_lies_in_a_descriptor_are_refused(pair: Pair) -> None:
    for lie, (offset, value) in DESCRIPTORS.items():
        change = f"(i32.store offset={offset} (local.get $in) (i32.const {value}))"
        text = body(CODE).replace("(local.set $code", f"{change} (local.set $code")
        assert await pair.code(text) == -2, lie
    assert not pair.asked


async def test_an_output_never_lands_outside(pair: Pair) -> None:
    pair.answer = Done({"y": floats(1.0, 2.0)}, 1)
    for data, room in ((0x7FFFFFF0, 64), (-16, -1), (131072, 8)):
        assert await pair.code(body(CODE, data=data, room=room)) == -2


ALLOCATORS = {
    "calls infer": "(call $infer (i32.const 16) (i32.const 3) (local.get $len) (i32.const 0) "
    "(i32.const 256) (i32.const 0))",
    "traps": "(unreachable)",
    "gives an odd address": "(i32.const 17)",
    "gives nothing": "(i32.const 0)",
    "gives what is outside": "(i32.const 0x7ffffff0)",
}


async def test_an_allocator_that_misbehaves_hurts_its_guest_alone(pair: Pair) -> None:
    pair.answer = Done({"y": floats(1.0, 2.0)}, 1)
    for at, (how, code) in enumerate(ALLOCATORS.items()):
        # The first call is the host's for the inputs, the second for the output.
        text = f"""(module {IMPORT} (memory (export "memory") 2)
          (global $calls (mut i32) (i32.const 0))
          (func (export "tona_alloc") (param $len i32) (result i32)
            (if (global.get $calls) (then (return {code})))
            (global.set $calls (i32.const 1)) (i32.const 4096))
          (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
            (result i32) {body(CODE)}))"""
        code_bytes = bytes(wasmtime.wat2wasm(text))
        artifact, manifest = pair.shelf.task(ExecutorKind.WASM, code_bytes, FLOATS, OUTPUTS)
        await pair.start(artifact, manifest)
        assert of(await pair.call())[0] == -2, how
        assert len(pair.asked) == at + 1


async def test_without_leave_the_import_is_refused(pair: Pair) -> None:
    with pytest.raises(ExecutorFailure, match=r"tona\.infer: let the task's infers name models"):
        await pair.guest(body(), grant=False)


async def test_why_a_model_did_not_run_reaches_the_caller(pair: Pair) -> None:
    pair.answer = Failed(FailureCode.NOT_READY, Blame.ENVIRONMENT, "it is away", retryable=True)
    for text in (body(), body("(unreachable)")):
        await pair.guest(text)
        result = await pair.call()
        assert isinstance(result, Failed)
        assert (result.code, result.retryable) == (FailureCode.NOT_READY, True)
        assert result.text.startswith("it is away (")
    assert await pair.code(body(CODE)) == -5
    pair.answer = structs.replace(pair.answer, retryable=False)
    assert await pair.code(body(CODE)) == -4
    pair.answer = Done({}, 1)
    assert await pair.code(body(CODE)) == -4


async def test_a_wait_ends_with_the_deadline_of_its_call(pair: Pair) -> None:
    pair.silent = True
    pair.wasm.stop_grace_s = WAIT_S
    await pair.guest(body(), limits=Limits(deadline_ms=1500))
    result = await pair.call()
    assert isinstance(result, Failed)
    assert result.code is FailureCode.DEADLINE
    # The host was not killed for it: the same process answers on.
    pids = pair.wasm._hosts.pids()
    pair.silent = False
    pair.answer = Done({"y": floats(7.0)}, 1)
    assert of(await pair.call()) == (7.0,)
    assert pair.wasm._hosts.pids() == pids


async def test_a_wait_ends_when_its_call_is_cancelled(pair: Pair) -> None:
    pair.silent = True
    await pair.guest(body())
    call = asyncio.create_task(pair.call())
    await pair.heard.wait()
    await pair.wasm.cancel("t", "c")
    result = await call
    assert isinstance(result, Failed)
    assert result.code is FailureCode.CANCELLED
    # A late answer is for nobody.
    pair.wasm.inferred("t", "c", Done({"y": floats(1.0)}, 1))


async def test_a_model_whose_process_is_killed_is_a_retryable_failure(pair: Pair) -> None:
    await pair.model()
    await pair.guest(body())
    assert of(await pair.call()) == (2.0, 5.0)
    pid = pair.onnx._instances["net"].pid
    os.kill(pid, 9)
    result = await pair.call()
    if isinstance(result, Failed):
        assert result.retryable
    assert of(await pair.call()) == (2.0, 5.0)


async def test_a_host_that_is_killed_while_it_waits_is_a_retryable_failure(pair: Pair) -> None:
    pair.silent = True
    await pair.guest(body())
    call = asyncio.create_task(pair.call())
    await pair.heard.wait()
    host = pair.wasm._hosts.bound("default")
    assert host is not None
    os.kill(host.pid, 9)
    result = await call
    assert isinstance(result, Failed)
    assert result.retryable
    pair.silent = False
    pair.answer = Done({"y": floats(3.0)}, 1)
    assert of(await pair.call()) == (3.0,)


async def test_infer_in_a_loop_is_bounded_by_the_deadline(pair: Pair) -> None:
    pair.answer = Done({"y": floats(1.0)}, 1)
    again = f"(loop $again (drop (call $infer {ASK})) (br $again)) (i32.const 0)"
    await pair.guest(body(again, data=1024, room=64), limits=Limits(deadline_ms=1000))
    result = await pair.call()
    assert isinstance(result, Failed)
    assert result.code is FailureCode.DEADLINE
    assert len(pair.asked) > 1


async def test_nothing_of_a_call_is_left_for_the_next(pair: Pair) -> None:
    await pair.model()
    # Gives what stands where the output of the call before was put.
    left = """(if (f32.lt (f32.load (i32.load (local.get $in))) (f32.const 0)) (then
      (i32.store (local.get $out) (i32.const 1024)) (i32.store offset=4 (local.get $out)
      (i32.const 8)) (i32.store offset=16 (local.get $out) (i32.const 2))
      (return (i32.const 0))))"""
    text = body(data=1024, room=64)
    await pair.guest(text.replace("(local $code i32)", f"(local $code i32) {left}"))
    assert of(await pair.call(floats(1.0, 2.0))) == (2.0, 4.0)
    assert of(await pair.call(floats(-1.0, 2.0))) == (0.0, 0.0)
