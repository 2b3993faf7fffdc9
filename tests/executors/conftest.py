"""Guests, models and executors for the tests of the executors."""

import asyncio
import hashlib
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import wasmtime

from device_agent.executors.door import Bytes
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.wasm import WasmExecutor
from protocols.manifest import ArtifactRef, Constant, Dtype, ExecutorKind, Limits, Manifest, Port

WAIT_S = 30.0

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
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
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


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def proto(*fields: tuple[int, int | str | bytes]) -> bytes:
    """Encode a protobuf message: numbers as varints, everything else by its length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


class Model:
    """Builds the bytes of small ONNX models, field numbers as in `onnx.proto`."""

    @staticmethod
    def value(name: str, dtype: int, *dims: int | str) -> bytes:
        shape = proto(*((1, proto((1 if isinstance(d, int) else 2, d))) for d in dims))
        return proto((1, name), (2, proto((1, proto((1, dtype), (2, shape))))))

    @staticmethod
    def tensor(name: str, dtype: int, dims: tuple[int, ...], data: bytes) -> bytes:
        return proto(*((1, d) for d in dims), (2, dtype), (8, name), (9, data))

    @staticmethod
    def external(name: str, dims: tuple[int, ...], location: str) -> bytes:
        where = proto((1, "location"), (2, location))
        return proto(*((1, d) for d in dims), (2, 1), (8, name), (13, where), (14, 1))

    @staticmethod
    def node(op: str, inputs: list[str], outputs: list[str], *attributes: bytes) -> bytes:
        return proto(
            *((1, name) for name in inputs),
            *((2, name) for name in outputs),
            (4, op),
            *((5, attribute) for attribute in attributes),
        )

    @staticmethod
    def graph(
        nodes: list[bytes],
        inputs: list[bytes],
        outputs: list[bytes],
        initializers: tuple[bytes, ...] = (),
    ) -> bytes:
        return proto(
            *((1, node) for node in nodes),
            (2, "g"),
            *((5, one) for one in initializers),
            *((11, one) for one in inputs),
            *((12, one) for one in outputs),
        )

    @staticmethod
    def subgraph(name: str, graph: bytes) -> bytes:
        return proto((1, name), (6, graph), (20, 5))

    @staticmethod
    def whole(graph: bytes) -> bytes:
        return proto((1, 8), (7, graph), (8, proto((2, 17))))


@pytest.fixture
def model() -> type[Model]:
    return Model


class Shelf:
    """Writes artifacts and describes them."""

    module = staticmethod(module)

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
        providers: tuple[str, ...] = (),
    ) -> tuple[Path, Manifest]:
        path, ref = self.put(data)
        manifest = Manifest(
            kind, ref, inputs, outputs, limits or Limits(), constants, providers=providers
        )
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


@pytest.fixture
def make_floats() -> Callable[..., Bytes]:
    return floats


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return Shelf(folder)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    folder = tmp_path / "blobs"
    folder.mkdir()
    return folder


class Exits(list[tuple[str, str]]):
    """Collects `on_exit` and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._event = asyncio.Event()

    def __call__(self, task: str, reason: str) -> None:
        self.append((task, reason))
        self._event.set()

    async def first(self) -> tuple[str, str]:
        await asyncio.wait_for(self._event.wait(), WAIT_S)
        return self[0]


@pytest.fixture
async def exits() -> Exits:
    return Exits()


@pytest.fixture
async def wasm(tmp_path: Path, blobs: Path, exits: Exits) -> AsyncIterator[WasmExecutor]:
    executor = WasmExecutor(blobs=blobs, cache=tmp_path / "cache", threads=2, on_exit=exits)
    yield executor
    await executor.close()


@pytest.fixture
async def onnx(tmp_path: Path, blobs: Path, exits: Exits) -> AsyncIterator[OnnxExecutor]:
    executor = OnnxExecutor(blobs=blobs, empty=tmp_path / "empty", on_exit=exits)
    yield executor
    await executor.close()


@pytest.fixture
def gone() -> Iterator[Callable[[int], Awaitable[None]]]:
    """Wait until a process has ended; one that nobody reaped counts as ended."""

    async def wait(pid: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
                except (FileNotFoundError, ProcessLookupError):
                    return
                if status.rpartition(")")[2].split()[0] in "ZX":
                    return
                # The kernel offers no event for the end of somebody else's child but a pidfd.
                try:
                    fd = os.pidfd_open(pid)
                except ProcessLookupError:
                    return
                ended = asyncio.Event()
                loop = asyncio.get_running_loop()
                loop.add_reader(fd, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(fd)
                    os.close(fd)

    yield wait
