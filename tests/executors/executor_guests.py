"""Wasm guests of a few lines, and artifacts with their manifests."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import wasmtime

from device_agent.executors.door import Bytes
from protocols.manifest import ArtifactRef, Constant, Dtype, ExecutorKind, Limits, Manifest, Port

# A bump allocator that grows the memory, and bodies for `tona_run`.
GUEST = """(module {imports} (memory (export "memory") {pages})
  (global $top (mut i32) (i32.const 4096))
  (data (i32.const 64) "the sum is wrong\\00")
  (func (export "tona_alloc") (param $len i32) (result i32) (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.and
      (i32.add (i32.add (global.get $top) (local.get $len)) (i32.const 15)) (i32.const -16)))
    (block $done (loop $more
      (br_if $done (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
      (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (return (i32.const 0))))
      (br $more)))
    (local.get $at))
  {extra}
  (func $run (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32) {body}))"""
ECHO = """
  (i32.store (local.get $out) (i32.load (local.get $in)))
  (i32.store offset=4 (local.get $out) (i32.load offset=4 (local.get $in)))
  (i32.store offset=16 (local.get $out) (i32.load offset=16 (local.get $in)))
  (i32.const 0)"""
ADD = """(local $a i32) (local $b i32)
  (local.set $a (i32.load (local.get $in)))
  (local.set $b (i32.load offset=48 (local.get $in)))
  (f32.store (local.get $a) (f32.add (f32.load (local.get $a)) (f32.load (local.get $b))))
  (i32.store (local.get $out) (local.get $a))
  (i32.store offset=4 (local.get $out) (i32.const 4))
  (i32.const 0)"""
BODIES = {
    "echo": ECHO,
    "add": ADD,
    "spin": "(loop $again (br $again)) (i32.const 0)",
    "trap": "(unreachable)",
    "grow": "(drop (memory.grow (i32.const 4096)))"
    "(i32.store (local.get $out) (i32.const 4096))"
    "(i32.store offset=4 (local.get $out) (i32.const 4))"
    "(i32.store (i32.const 4096) (memory.size)) (i32.const 0)",
    "fail": "(i32.const 3)",
    "outside": "(i32.store (local.get $out) (i32.const 0x7ffffff0))"
    "(i32.store offset=4 (local.get $out) (i32.const 4)) (i32.const 0)",
    "wrapping": "(i32.store (local.get $out) (i32.const -2))"
    "(i32.store offset=4 (local.get $out) (i32.const 4)) (i32.const 0)",
    "size": "(i32.store (local.get $out) (i32.const 0))"
    "(i32.store offset=4 (local.get $out) (i32.const 5)) (i32.const 0)",
    "dtype": "(i32.store offset=8 (local.get $out) (i32.const 7)) (i32.const 0)",
    "rank": "(i32.store offset=12 (local.get $out) (i32.const -1)) (i32.const 0)",
}


def module(body: str, *, imports: str = "", pages: str = "2", extra: str = "") -> bytes:
    text = GUEST.format(imports=imports, pages=pages, extra=extra, body=BODIES.get(body, body))
    return bytes(wasmtime.wat2wasm(text))


class Shelf:
    """Writes artifacts and describes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> tuple[Path, ArtifactRef]:
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / name
        path.write_bytes(data)
        return path, ArtifactRef(f"sha256:{name}", len(data))

    def task(
        self,
        kind: ExecutorKind,
        data: bytes,
        inputs: tuple[Port, ...],
        outputs: tuple[Port, ...],
        *,
        limits: Limits | None = None,
        constants: tuple[Constant, ...] = (),
        **more: Any,
    ) -> tuple[Path, Manifest]:
        path, ref = self.put(data)
        manifest = Manifest(kind, ref, inputs, outputs, limits or Limits(), constants, **more)
        return path, manifest

    def guest(
        self, body: str, *, limits: Limits | None = None, **parts: str
    ) -> tuple[Path, Manifest]:
        return self.task(
            ExecutorKind.WASM,
            module(body, **parts),
            (Port("x", Dtype.FLOAT32, (-1,)),),
            (Port("y", Dtype.FLOAT32, (-1 if body == "echo" else 1,)),),
            limits=limits,
        )


def floats(*values: float) -> Bytes:
    return Bytes(Dtype.FLOAT32, (len(values),), struct.pack(f"<{len(values)}f", *values))
