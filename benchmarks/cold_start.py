"""From zero to running: what holds nothing, from its request to its first instruction."""

import asyncio
import gc
import sys
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import wasmtime

from benchmarks.harness.packages import in_package
from benchmarks.harness.processes import module as program
from benchmarks.harness.processes import running
from benchmarks.harness.report import Report, median, options, percentile, progress
from benchmarks.harness.shell import NODE, REPLY, Shell, bench_core, payload, running_shell
from device_agent.core import commands, events
from device_agent.core.core import Core
from device_agent.executors.process import PROGRAMS
from protocols import codec
from protocols.manifest import (
    ArtifactRef,
    Dtype,
    ExecutorKind,
    HostFunction,
    Limits,
    Manifest,
    Port,
)
from protocols.messages import Assign, Invoke
from protocols.messages.invocation import REQUEST, Edge, Plan, Step, Tensor
from protocols.messages.task import Deviceless
from protocols.topics import INVOCATION_MAX_BYTES, Channel

MODULES: Final = 80
"""More than a host keeps mapped, so that each start maps its module and checks its seal anew."""
ROUNDS: Final = 10
QUICK_ROUNDS: Final = 2
WASM_MS: Final = 1.0
ONNX_RATIO: Final = 1.3
KEEP_MS: Final = 1
BUDGET_MS: Final = 30_000
TURNS: Final = 10
"""Of the model, for each round."""
TOKENS: Final = 2048
LABELS: Final = 214
ROWS: Final = 200

# Its first instructions ask for the time, which is what it gives.
GUEST: Final = """(module (import "tona" "monotonic_us" (func $now (result i64)))
  (memory (export "memory") 1) (global i32 (i32.const {number}))
  (func (export "tona_alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "tona_run") (param $in i32) (param i32) (param $out i32) (param i32) (result i32)
    (i64.store (i32.const 64) (call $now))
    (i32.store (local.get $out) (i32.const 64)) (i32.store offset=4 (local.get $out) (i32.const 8))
    (i32.const 0)))"""


def main() -> None:
    """Run the benchmark."""
    asked = options("cold_start", __doc__ or "").parse_args()
    report = Report("cold_start")
    rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    asyncio.run(_measure(report, rounds))
    report.note(
        f"wasm: {MODULES} functions in turn, more than a host keeps mapped: each request finds "
        "nothing but the compiled form on the disk. From the request's bytes at the daemon's core "
        "to the time that the guest reads first, which is its first instruction and one call out. "
        "mapped: the same function again and again, whose module the host has kept. bare: "
        "deserialize and instantiate the same files in one process, in an engine of the same "
        "settings, without seal, store limits or a daemon, and the same call."
    )
    report.note(
        "onnx: Magika. From the request's bytes to the answer, where the model's process is there "
        "and no worker is. bare: fork of a process that has the session, run, and the bytes of the "
        "answer through a pipe."
    )
    report.note(
        f"idle_function: what the daemon's core holds of a function that rests, one of {ROWS}; its "
        "executor holds its manifest, and a Wasm host its recipe of 1.7 KB."
    )
    report.close()


async def _measure(report: Report, rounds: int) -> None:
    async with running_shell() as shell:
        cold, mapped, answers = await _wasm(shell, rounds)
        bare = _bare(shell)
        for name, found in (("wasm", cold), ("wasm_mapped", mapped), ("wasm_answer", answers)):
            bound = WASM_MS if name == "wasm" else None
            report.figure(f"{name}_ms_p50", percentile(found, 50), bound)
            report.figure(f"{name}_ms_p99", percentile(found, 99))
        report.figure("wasm_bare_ms_p50", median(bare))
        report.figure("wasm_ratio_bare", median(cold) / median(bare))
        await _onnx(report, shell, rounds * TURNS)
        report.figure("idle_function_bytes", _row_bytes())


def _assign(task: str, manifest: Manifest, keep_ms: int = KEEP_MS) -> Assign:
    return Assign(task, "s", 1, 1, manifest, deviceless=Deviceless(keep_ms))


def _invoke(task: str, request: str, value: Tensor, output: str, port: str = "x") -> bytes:
    step = Step(task, NODE, 1, (Edge(port, REQUEST, "x"),), (output,))
    plan = Plan("s", 1, (step,), (Edge("y", task, output),))
    return payload(Invoke(request, "s", BUDGET_MS, {"x": value}, REPLY, plan=plan))


def _manifest(artifact: ArtifactRef) -> Manifest:
    return Manifest(
        ExecutorKind.WASM,
        artifact,
        (Port("x", Dtype.UINT8, (-1,)),),
        (Port("y", Dtype.INT64, (1,)),),
        Limits(memory_bytes=1 << 20),
        functions=(HostFunction.CLOCK,),
    )


async def _wasm(shell: Shell, rounds: int) -> tuple[list[float], list[float], list[float]]:
    progress(f"{MODULES} functions, {rounds} rounds")
    value = Tensor(Dtype.UINT8, (1,), b"x")
    for number in range(MODULES):
        code = bytes(wasmtime.wat2wasm(GUEST.format(number=number)))
        await shell.assign(_assign(f"f{number}", _manifest(shell.put(code))))
        await shell.rested(f"f{number}")
    # As the daemon does: what stands now need not be looked through again.
    gc.collect()
    gc.freeze()
    cold, answers = [], []
    for turn in range(rounds):
        for number in range(MODULES):
            started, answered = await _start(shell, f"f{number}", f"c{turn}-{number}", value)
            cold.append(started)
            answers.append(answered)
    turns = range(rounds * MODULES)
    mapped = [(await _start(shell, "f0", f"m{turn}", value))[0] for turn in turns]
    return cold, mapped, answers


async def _start(shell: Shell, task: str, request: str, value: Tensor) -> tuple[float, float]:
    """Ask a function that rests: milliseconds to its first instruction, and to the answer."""
    said = _invoke(task, request, value, "y")
    began_ns = time.monotonic_ns()
    result = await shell.ask(said, request)
    answered_ns = time.monotonic_ns()
    if result.failure is not None:
        raise SystemExit(f"cold_start: {result.failure.text}")
    (given,) = result.outputs.values()
    first_us = int.from_bytes(given.data, "little") if isinstance(given, Tensor) else 0
    await shell.rested(task)
    return first_us / 1000 - began_ns / 1e6, (answered_ns - began_ns) / 1e6


def _bare(shell: Shell) -> list[float]:
    """Deserialize, instantiate and call each module in this process, in milliseconds."""
    sys.path.append(str(PROGRAMS))
    import wasm_engine  # type: ignore[import-not-found]  # noqa: PLC0415 - a program's own module

    engine = wasm_engine.engine(1)
    kind = wasmtime.FuncType([], [wasmtime.ValType.i64()])
    linker = wasmtime.Linker(engine)
    linker.define_func("tona", "monotonic_us", kind, lambda: time.monotonic_ns() // 1000)
    found = []
    for path in sorted((shell.folder / "compiled" / "forms").glob("*.cwasm")):
        began_ns = time.monotonic_ns()
        module = wasmtime.Module.deserialize_file(engine, str(path))
        store = wasm_engine.Store(engine)
        store.set_epoch_deadline(1)
        made = linker.instantiate_pre(module)
        guest = wasm_engine.Guest(store, wasm_engine.instantiate(made, store))
        guest.call("tona_run", 0, 0, 128, 0)
        first_us = int.from_bytes(guest.memory()[64:72], "little")
        found.append(first_us / 1000 - began_ns / 1e6)
        store.close()
    return found


async def _onnx(report: Report, shell: Shell, turns: int) -> None:
    progress("a model whose process is there, and no worker")
    model = in_package("magika", "models/standard_v3_3/model.onnx")
    manifest = Manifest(
        ExecutorKind.ONNX,
        shell.put(model.read_bytes()),
        (Port("bytes", Dtype.INT32, (1, TOKENS)),),
        (Port("target_label", Dtype.FLOAT32, (1, LABELS)),),
        Limits(memory_bytes=512 << 20),
    )
    await shell.assign(_assign("model", manifest))
    await shell.rested("model")
    data = b"".join(int(at % 256).to_bytes(4, "little") for at in range(TOKENS))
    value = Tensor(Dtype.INT32, (1, TOKENS), data)
    cold, forks = [], []
    with TemporaryDirectory(prefix="tona-bench-") as folder:
        given = Path(folder) / "input"
        given.write_bytes(data)
        command = program("benchmarks.programs.bare_fork", str(model), "bytes", str(given))
        async with running(command, Path(folder) / "log") as bare:
            await bare.line()
            for turn in range(turns):
                said = _invoke("model", f"o{turn}", value, "target_label", port="bytes")
                began_ns = time.monotonic_ns()
                result = await shell.ask(said, f"o{turn}")
                cold.append((time.monotonic_ns() - began_ns) / 1e6)
                if result.failure is not None:
                    raise SystemExit(f"cold_start: {result.failure.text}")
                await shell.rested("model")
                forks.append((await bare.ask({}))["ms"])
    report.figure("onnx_ms_p50", median(cold))
    report.figure("onnx_bare_fork_ms_p50", median(forks))
    report.figure("onnx_ratio_bare_fork", median(cold) / median(forks), ONNX_RATIO)


def _row_bytes() -> float:
    """Return what the daemon holds of one function that rests, on the mean of many."""
    core = bench_core()
    now_ms = 0.0

    def hold(first: int, count: int) -> int:
        gc.collect()
        tracemalloc.start()
        for number in range(first, first + count):
            ref = ArtifactRef("sha256:" + f"{number:064x}", 1000)
            assign = _assign(f"row{number}", _manifest(ref))
            frame = codec.decode(payload(assign), INVOCATION_MAX_BYTES)
            body = frame.body
            said = events.Received(Channel.COMMAND, "ts", 1, 0, "default", "bench", body)
            for command in core.handle(said, now_ms):
                if isinstance(command, commands.FetchArtifact):
                    _started(core, command.digest, now_ms)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    hold(0, 8)
    return hold(8, ROWS) / ROWS


def _started(core: Core, digest: str, now_ms: float) -> None:
    for command in core.handle(events.ArtifactReady(digest), now_ms):
        if isinstance(command, commands.StartInstance):
            core.handle(events.InstanceReady(command.instance), now_ms)


if __name__ == "__main__":
    main()
