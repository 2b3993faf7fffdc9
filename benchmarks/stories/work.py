"""A task whose cost is dictated: a Wasm module that turns so often and gives its input back."""

import time
from typing import Final

from device_agent.executors.programs import abi

_TURNS_TRIED: Final = 20_000_000
_MODULE: Final = """
(module
  (memory (export "memory") 64)
  (global $top (mut i32) (i32.const 1024))
  (func (export "tona_alloc") (param $size i32) (result i32) (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top
      (i32.and (i32.add (i32.add (global.get $top) (local.get $size)) (i32.const 15))
               (i32.const -16)))
    (local.get $at))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32) (local $left i64) (local $mix i64)
    (local.set $left (i64.const {turns}))
    (block $end (loop $again
      (br_if $end (i64.eqz (local.get $left)))
      (local.set $mix
        (i64.mul (i64.xor (local.get $mix) (local.get $left)) (i64.const 6364136223846793005)))
      (local.set $left (i64.sub (local.get $left) (i64.const 1)))
      (br $again)))
    (i64.store (i32.const 512) (local.get $mix))
    (memory.copy (local.get $out) (local.get $in) (i32.const {port}))
    (i32.const 0)))
"""


def module(turns: int) -> bytes:
    """Return the module that turns so often for each request."""
    from wasmtime import wat2wasm  # noqa: PLC0415 - an executor's library, for this alone

    return bytes(wat2wasm(_MODULE.format(turns=turns, port=abi.PORT.size)))


def turns_per_ms() -> float:
    """Measure how often this machine turns in a millisecond, alone."""
    import wasmtime  # noqa: PLC0415 - the same

    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    program = wasmtime.Module(engine, module(_TURNS_TRIED))
    run = wasmtime.Instance(store, program, []).exports(store)["tona_run"]
    assert isinstance(run, wasmtime.Func)
    best_s = min(_timed(run, store) for _ in range(3))
    return _TURNS_TRIED / (best_s * 1000)


def _timed(run: "object", store: "object") -> float:
    began_s = time.perf_counter()
    run(store, 2048, 1, 4096, 1)  # type: ignore[operator]
    return time.perf_counter() - began_s
