"""Hostile Wasm: mutants, growth without end, deep stacks, residue; the next good task is served.

`TONA_MUTANTS=5000 pytest tests/executors/test_executors_hostile_wasm.py` runs more of them.
"""

import os
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from executor_guests import Shelf, floats, module
from msgspec import structs

from device_agent.executors.door import Bytes, Done, ExecutorFailure, Failed, Setup
from device_agent.executors.process import PROGRAMS
from device_agent.executors.wasm import WasmExecutor
from protocols.errors import Blame
from protocols.manifest import Dtype, ExecutorKind, HostFunction, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

MUTANTS = int(os.environ.get("TONA_MUTANTS", "300"))
SEED = 1
BUDGET_MS = 60_000
MODULES = Path(__file__).parents[2] / "examples" / "reading" / "modules"
PORTS = (Port("x", Dtype.FLOAT32, (-1,)),), (Port("y", Dtype.FLOAT32, (-1,)),)
SMALL = Limits(memory_bytes=16 << 20, deadline_ms=200)
PATIENT = Limits(memory_bytes=16 << 20, deadline_ms=30_000)
"""As small, for what ends by itself: on a busy machine not within 200 ms."""


def mutant(good: bytes, dice: random.Random) -> bytes:
    """Return a module with flipped bits, a part cut off, doubled or replaced by noise."""
    data = bytearray(good)
    match dice.randrange(5):
        case 0:
            for _ in range(dice.randint(1, 8)):
                data[dice.randrange(8, len(data))] ^= 1 << dice.randrange(8)
        case 1:
            del data[dice.randrange(len(data)) :]
        case 2:
            at = dice.randrange(8, len(data))
            data[at:at] = data[dice.randrange(len(data)) :][: dice.randint(1, 64)]
        case 3:
            at = dice.randrange(8, len(data))
            data[at : at + dice.randint(1, 32)] = dice.randbytes(dice.randint(1, 32))
        case _:
            at = dice.randrange(8, len(data) - 5)
            data[at : at + 5] = struct.pack("<BI", 0xFF, 0xFFFFFFFF)
    return bytes(data)


async def ready(
    wasm: WasmExecutor, artifact: Path, manifest: Manifest, task: str = "t", tenant: str = "evil"
) -> None:
    setup = Setup(tenant=tenant)
    await wasm.deploy(artifact, manifest, setup)
    await wasm.start(task, artifact, manifest, {}, setup)


async def refusal(wasm: WasmExecutor, artifact: Path, manifest: Manifest) -> Failed | None:
    try:
        await ready(wasm, artifact, manifest)
    except ExecutorFailure as error:
        return error.failed
    return None


@pytest.mark.timeout(60 + MUTANTS // 2)
async def test_mutants_are_refused_or_contained(
    wasm: WasmExecutor, shelf: Shelf, gone: Callable[[int], Awaitable[None]]
) -> None:
    dice = random.Random(SEED)
    seeds = [module("echo"), module("add"), module("grow"), (MODULES / "text.wasm").read_bytes()]
    good, manifest = shelf.guest("echo")
    await ready(wasm, good, manifest, "good", "honest")
    honest = wasm._hosts.of("honest").pid
    met: Counter[str] = Counter()
    for number in range(MUTANTS):
        code = mutant(dice.choice(seeds), dice)
        artifact, evil = shelf.task(ExecutorKind.WASM, code, *PORTS, limits=SMALL)
        artifact = artifact.rename(artifact.with_name(f"{artifact.name}-{number}"))
        refused = await refusal(wasm, artifact, evil)
        artifact.unlink()
        if refused is not None:
            met["refused"] += 1
            assert refused.blame in (Blame.USER, Blame.ENVIRONMENT)
            assert "Traceback" not in refused.text
            continue
        result = await wasm.invoke("t", f"c{number}", {"x": floats(1, 2)}, BUDGET_MS)
        met["ran" if isinstance(result, Done) else result.code] += 1
        await wasm.stop("t")
        if number % 50 == 0:
            served = await wasm.invoke("good", f"g{number}", {"x": floats(number)}, BUDGET_MS)
            assert isinstance(served, Done), served
    served = await wasm.invoke("good", "last", {"x": floats(7)}, BUDGET_MS)
    assert isinstance(served, Done), served
    assert served.outputs["y"] == floats(7)
    assert wasm._hosts.of("honest").pid == honest, "the honest tenant's host was touched"
    assert met["refused"] > MUTANTS // 10
    for one in [one for one in wasm._hosts._alive.values() if one.unwanted]:
        await gone(one.pid)
    left = [one for one in wasm._hosts._alive.values() if not one.unwanted]
    assert len(left) <= 3, "hosts of the two tenants, and a blank one"


BAD = {
    "recursion": "(return (call $run (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))",
    "memory": "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))"
    "(unreachable)",
    "table": "(loop $more (br_if $more (i32.ne (table.grow $table (ref.null func)"
    " (i32.const 100000)) (i32.const -1)))) (unreachable)",
    "loop": "(loop $again (br $again)) (i32.const 0)",
    "division": "(i32.div_u (i32.const 1) (i32.const 0))",
    "jump": "(call_indirect (result i32) (i32.const 12345))",
    "far": "(i32.load offset=0xfffffff0 (i32.const 0x7fffffff))",
}
CODES = {"recursion": FailureCode.LIMIT, "loop": FailureCode.DEADLINE}


@pytest.mark.parametrize("name", BAD)
async def test_what_a_guest_tries_ends_with_its_call(
    wasm: WasmExecutor, shelf: Shelf, name: str
) -> None:
    data = module(BAD[name], extra="(table $table 1 funcref)")
    limits = SMALL if name == "loop" else PATIENT
    artifact, manifest = shelf.task(ExecutorKind.WASM, data, *PORTS, limits=limits)
    await ready(wasm, artifact, manifest)
    good, plain = shelf.guest("echo")
    await ready(wasm, good, plain, "neighbour")
    for number in range(3):
        result = await wasm.invoke("t", f"c{number}", {"x": floats(1)}, BUDGET_MS)
        assert isinstance(result, Failed)
        assert result.code is CODES.get(name, FailureCode.EXECUTOR), result.text
        served = await wasm.invoke("neighbour", f"n{number}", {"x": floats(2)}, BUDGET_MS)
        assert isinstance(served, Done), served


async def test_nothing_of_one_call_is_seen_by_the_next(wasm: WasmExecutor, shelf: Shelf) -> None:
    """Leaves a mark in memory, in a table and in a global; gives what it finds before it does."""
    body = """
      (f32.store (i32.const 32) (f32.convert_i32_u (i32.add (i32.load (i32.const 60000))
        (i32.add (global.get $mark) (i32.sub (memory.size) (i32.const 2))))))
      (i32.store (i32.const 60000) (i32.const 77)) (global.set $mark (i32.const 77))
      (drop (memory.grow (i32.const 3)))
      (i32.store (local.get $out) (i32.const 32))
      (i32.store offset=4 (local.get $out) (i32.const 4)) (i32.const 0)"""
    data = module(body, extra="(global $mark (mut i32) (i32.const 0))")
    ports = (PORTS[0], (Port("y", Dtype.FLOAT32, (1,)),))
    artifact, manifest = shelf.task(ExecutorKind.WASM, data, *ports, limits=PATIENT)
    await ready(wasm, artifact, manifest)
    for number in range(20):
        result = await wasm.invoke("t", f"c{number}", {"x": floats(1)}, BUDGET_MS)
        assert isinstance(result, Done), result
        assert result.outputs["y"] == floats(0)


LOOKS = """(local $at i32) (local $found i32)
  (drop (memory.grow (i32.const 128)))
  (local.set $at (i32.const 100000))
  (loop $more
    (local.set $found (i32.or (local.get $found) (i32.load (local.get $at))))
    (local.set $at (i32.add (local.get $at) (i32.const 1024)))
    (br_if $more (i32.lt_u (local.get $at) (i32.const 8000000))))
  (memory.fill (i32.const 100000) (i32.const 255) (i32.const 8000000))
  (table.fill $table (i32.const 0) (ref.func $run) (i32.const 3000))
  (f32.store (i32.const 32) (f32.convert_i32_u (local.get $found)))
  (i32.store (local.get $out) (i32.const 32))
  (i32.store offset=4 (local.get $out) (i32.const 4)) {end}"""
TABLE = "(table $table 3000 funcref) (elem declare func $run)"


async def test_memory_that_is_kept_for_the_next_guest_is_clear(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    """Guests fill what they get, beyond what is kept, and end well or badly; some rest then."""
    ports = (PORTS[0], (Port("y", Dtype.FLOAT32, (1,)),))
    ends = {"well": "(i32.const 0)", "trap": "(unreachable)", "loop": BAD["loop"]}
    for task, end in ends.items():
        data = module(LOOKS.format(end=end), extra=TABLE)
        limits = SMALL if task == "loop" else PATIENT
        artifact, manifest = shelf.task(ExecutorKind.WASM, data, *ports, limits=limits)
        await ready(wasm, artifact, manifest, task)
    finds_table = """(f32.store (i32.const 32) (f32.convert_i32_u
        (i32.eqz (ref.is_null (table.get $table (i32.const 2999))))))
      (i32.store (local.get $out) (i32.const 32))
      (i32.store offset=4 (local.get $out) (i32.const 4)) (i32.const 0)"""
    artifact, manifest = shelf.task(
        ExecutorKind.WASM, module(finds_table, extra=TABLE), *ports, limits=PATIENT
    )
    await ready(wasm, artifact, manifest, "table")
    for number, before in enumerate(("well", "trap", "loop", "well")):
        await wasm.invoke(before, f"b{number}", {"x": floats(1)}, BUDGET_MS)
        if number == len(ends):
            await wasm.rest(before)
        for task in ("well", "table"):
            result = await wasm.invoke(task, f"c{number}", {"x": floats(1)}, BUDGET_MS)
            assert isinstance(result, Done), result
            assert result.outputs["y"] == floats(0), (before, task)


async def test_a_start_function_that_traps_is_told(wasm: WasmExecutor, shelf: Shelf) -> None:
    data = module("echo", extra="(func $s (unreachable)) (start $s)")
    artifact, manifest = shelf.task(ExecutorKind.WASM, data, *PORTS, limits=SMALL)
    with pytest.raises(ExecutorFailure, match="unreachable"):
        await ready(wasm, artifact, manifest)


async def test_host_functions_in_a_start_function_are_refused_not_fatal(
    wasm: WasmExecutor, shelf: Shelf
) -> None:
    imports = '(import "tona" "memory_set" (func $set (param i32 i32 i32 i32) (result i32)))'
    extra = """(func $s (if (i32.ne (call $set (i32.const 0) (i32.const 4) (i32.const 0)
      (i32.const 4)) (i32.const -2)) (then (unreachable)))) (start $s)"""
    data = module("echo", imports=imports, extra=extra)
    limits = Limits(state_bytes=100)
    artifact, manifest = shelf.task(ExecutorKind.WASM, data, *PORTS, limits=limits)
    await ready(wasm, artifact, structs.replace(manifest, functions=(HostFunction.MEMORY,)))
    result = await wasm.invoke("t", "c", {"x": floats(1)}, BUDGET_MS)
    assert isinstance(result, Done), result


@pytest.mark.parametrize(
    "bomb",
    [
        # Three thousand functions of one call each, and one of a hundred thousand nested blocks.
        pytest.param("".join(f"(func $f{at} (call $f{at}))" for at in range(3000)), id="many"),
        pytest.param("(func " + "(block " * 50_000 + ")" * 50_000 + ")", id="deep"),
        pytest.param("(func (local " + "i64 " * 49_000 + "))", id="wide"),
    ],
)
async def test_expansion_bombs_are_compiled_or_refused(
    wasm: WasmExecutor, shelf: Shelf, bomb: str
) -> None:
    try:
        data = module("echo", extra=bomb)
    except Exception as error:  # noqa: BLE001 - the tool that makes it may not take it
        pytest.skip(f"no such module can be made: {error}")
    artifact, manifest = shelf.task(ExecutorKind.WASM, data, *PORTS, limits=SMALL)
    refused = await refusal(wasm, artifact, manifest)
    assert refused is None or refused.blame in (Blame.USER, Blame.ENVIRONMENT)
    good, plain = shelf.guest("echo")
    await ready(wasm, good, plain, "good")
    served = await wasm.invoke("good", "g", {"x": floats(2)}, BUDGET_MS)
    assert isinstance(served, Done), served
    value = served.outputs["y"]
    assert isinstance(value, Bytes)


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ("(table 4 funcref) " * 4, ""),
        ("(table 131073 funcref)", "table"),
    ],
    ids=["many", "large"],
)
async def test_tables_are_bounded(wasm: WasmExecutor, shelf: Shelf, tables: str, word: str) -> None:
    manifest = shelf.task(ExecutorKind.WASM, module("echo", extra=tables), *PORTS, limits=SMALL)
    refused = await refusal(wasm, *manifest)
    assert (refused is None) == (not word)
    assert refused is None or word in refused.text


def test_a_limit_of_addresses_is_told() -> None:
    program = "import os, resource as r, sys; r.setrlimit(r.RLIMIT_AS, (4 << 30,) * 2); "
    program += "os.execv(sys.executable, [sys.executable, '-s', *sys.argv[1:]])"
    zygote = str(PROGRAMS / "wasm_zygote.py")
    ended = subprocess.run(
        [sys.executable, "-c", program, zygote, "--probe"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout) == (os.EX_UNAVAILABLE, "")
    assert ended.stderr.startswith("wasm executor: 15 GiB of addresses")
    assert "4096 MiB" in ended.stderr
