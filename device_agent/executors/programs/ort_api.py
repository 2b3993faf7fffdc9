"""ONNX Runtime through its C interface, so that neither its Python package nor numpy is imported.

The wheel brings the library beside the package. Its functions stand in a table that only grows:
`OrtApi` of onnxruntime_c_api.h; `_CALLS` has the places of those used here, from version 13 on.
What the library gives is released with the object here that holds it.

`ort_package.py` has the same names on top of the package. Standard library only.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterable
from ctypes import byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any, Final, NamedTuple

API_VERSION: Final = 13
PACKAGE: Final = "onnxruntime/capi"
LIBRARY: Final = "libonnxruntime.so"
CPU: Final = "CPUExecutionProvider"
WARNING: Final = 2
SILENT: Final = 4
NEXT_POWER_OF_TWO: Final = 0
"""How an arena grows."""
ITEM_BYTES: Final = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8}
"""Of the types that a manifest can name, by their number."""
TYPES: Final = {
    1: "tensor(float)",
    2: "tensor(uint8)",
    3: "tensor(int8)",
    4: "tensor(uint16)",
    5: "tensor(int16)",
    6: "tensor(int32)",
    7: "tensor(int64)",
    8: "tensor(string)",
    9: "tensor(bool)",
    10: "tensor(float16)",
    11: "tensor(double)",
    12: "tensor(uint32)",
    13: "tensor(uint64)",
    14: "tensor(complex64)",
    15: "tensor(complex128)",
    16: "tensor(bfloat16)",
}
KINDS: Final = {2: "seq(...)", 3: "map(...)", 4: "opaque(...)", 5: "sparse_tensor", 6: "optional"}
"""Of what is no tensor, by the number of the kind."""
_TENSOR: Final = 1
_DEVICE, _ARENA, _DEFAULT = 0, 1, 0

_CALLS: Final[dict[str, tuple[Any, ...]]] = {
    "GetErrorMessage": (2, c_void_p),
    "CreateEnv": (3, c_int, c_char_p, c_void_p),
    "CreateSession": (7, c_void_p, c_char_p, c_void_p, c_void_p),
    "CreateSessionFromArray": (8, c_void_p, c_char_p, c_size_t, c_void_p, c_void_p),
    "Run": (9, *(c_void_p,) * 4, c_size_t, c_void_p, c_size_t, c_void_p),
    "CreateSessionOptions": (10, c_void_p),
    "SetOptimizedModelFilePath": (11, c_void_p, c_char_p),
    "DisableMemPattern": (17, c_void_p),
    "SetSessionLogSeverityLevel": (22, c_void_p, c_int),
    "SetIntraOpNumThreads": (24, c_void_p, c_int),
    "SetInterOpNumThreads": (25, c_void_p, c_int),
    "SessionGetInputCount": (30, c_void_p, c_void_p),
    "SessionGetOutputCount": (31, c_void_p, c_void_p),
    "SessionGetInputTypeInfo": (33, c_void_p, c_size_t, c_void_p),
    "SessionGetOutputTypeInfo": (34, c_void_p, c_size_t, c_void_p),
    "SessionGetInputName": (36, c_void_p, c_size_t, c_void_p, c_void_p),
    "SessionGetOutputName": (37, c_void_p, c_size_t, c_void_p, c_void_p),
    "CreateRunOptions": (39, c_void_p),
    "RunOptionsSetTerminate": (46, c_void_p),
    "CreateTensorWithDataAsOrtValue": (
        *(49, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t),
        *(c_int, c_void_p),
    ),
    "GetTensorMutableData": (51, c_void_p, c_void_p),
    "CastTypeInfoToTensorInfo": (55, c_void_p, c_void_p),
    "GetOnnxTypeFromTypeInfo": (56, c_void_p, c_void_p),
    "GetTensorElementType": (60, c_void_p, c_void_p),
    "GetDimensionsCount": (61, c_void_p, c_void_p),
    "GetDimensions": (62, c_void_p, c_void_p, c_size_t),
    "GetTensorTypeAndShape": (65, c_void_p, c_void_p),
    "CreateMemoryInfo": (68, c_char_p, c_int, c_int, c_int, c_void_p),
    "AllocatorAlloc": (75, c_void_p, c_size_t, c_void_p),
    "AllocatorFree": (76, c_void_p, c_void_p),
    "GetAllocatorWithDefaultOptions": (78, c_void_p),
    "ReleaseStatus": (93, c_void_p),
    "ReleaseSession": (95, c_void_p),
    "ReleaseValue": (96, c_void_p),
    "ReleaseRunOptions": (97, c_void_p),
    "ReleaseTypeInfo": (98, c_void_p),
    "ReleaseTensorTypeAndShapeInfo": (99, c_void_p),
    "ReleaseSessionOptions": (100, c_void_p),
    "GetAvailableProviders": (125, c_void_p, c_void_p),
    "ReleaseAvailableProviders": (126, c_void_p, c_int),
    "AddSessionConfigEntry": (130, c_void_p, c_char_p, c_char_p),
    "CreateAllocator": (131, c_void_p, c_void_p, c_void_p),
    "ReleaseAllocator": (132, c_void_p),
    "CreateAndRegisterAllocator": (144, c_void_p, c_void_p, c_void_p),
    "CreateArenaCfg": (156, c_size_t, c_int, c_int, c_int, c_void_p),
    "ReleaseArenaCfg": (157, c_void_p),
    "AddRunConfigEntry": (165, c_void_p, c_char_p, c_char_p),
    "UnregisterAllocator": (177, c_void_p, c_void_p),
}
"""Place in the table and types of the arguments; what the library fills in is a pointer, too."""
_LONG: Final = frozenset({"Run", "CreateSession", "CreateSessionFromArray"})
"""Other threads go on meanwhile; to let them costs more than the rest takes."""

Tensor = tuple[int, "tuple[int, ...]", memoryview]
"""Type number, shape, bytes."""


class Absent(ImportError):
    """There is no library with this interface beside the package."""


class Failure(Exception):
    """What the runtime says of a call that failed."""


class Port(NamedTuple):
    """An input or output of a model; an axis of any length is -1."""

    name: str
    type: str
    shape: tuple[int, ...]


class _Buffer(ctypes.Structure):
    """`Py_buffer`, as every Python since 3.3 has it."""

    _fields_ = (
        ("address", c_void_p),
        ("owner", ctypes.py_object),
        ("bytes", ctypes.c_ssize_t),
        ("item_bytes", ctypes.c_ssize_t),
        ("readonly", c_int),
        ("axes", c_int),
        ("format", c_char_p),
        *((name, c_void_p) for name in ("shape", "strides", "suboffsets", "internal")),
    )


_get_buffer: Final = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, c_void_p, c_int)
_release_buffer: Final = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (c_void_p,)
_release_buffer.restype = None


def _address(view: memoryview) -> int:
    """Return where the bytes of a view are, which may be read-only; good as long as the view."""
    buffer = _Buffer()
    _get_buffer(view, byref(buffer), 0)
    found: int = buffer.address or 0
    _release_buffer(byref(buffer))
    return found


def _names(every: Iterable[str]) -> Any:
    found = [one.encode() for one in every]
    return (c_char_p * len(found))(*found)


class _Owned:
    """Something of the library's, released with this."""

    def __init__(self, runtime: Runtime, what: str) -> None:
        self.handle = c_void_p()
        self._runtime = runtime
        self._release = runtime.function(f"Release{what}")

    def __del__(self) -> None:
        self._release(self.handle)


class Runtime:
    """The library in this process; it starts no thread."""

    def __init__(self) -> None:
        """Load it. Raises Absent where there is none."""
        base = _load()
        self.version: str = base.version
        self._table = base.table
        self._known: dict[str, Any] = {}
        self._env, self._allocator, self._arena = c_void_p(), c_void_p(), c_void_p()
        self._shares = False
        """Whether there is an arena for all sessions that ask for it."""
        self.memory = c_void_p()
        """Where values lie that the library looks at."""
        self.call("CreateEnv", WARNING, b"tona", byref(self._env))
        self.call("CreateMemoryInfo", b"Cpu", _DEVICE, 0, _DEFAULT, byref(self.memory))
        self.call("CreateMemoryInfo", b"Cpu", _ARENA, 0, _DEFAULT, byref(self._arena))
        self.call("GetAllocatorWithDefaultOptions", byref(self._allocator))

    def function(self, name: str) -> Any:
        """Return a function of the table, as the library has it."""
        found = self._known.get(name)
        if found is None:
            place, *arguments = _CALLS[name]
            result = None if name.startswith("Release") else c_void_p
            kind = ctypes.CFUNCTYPE if name in _LONG else ctypes.PYFUNCTYPE
            found = self._known[name] = kind(result, *arguments)(self._table[place])
        return found

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that tells of failures by what it returns. Raises Failure."""
        self.check(self.function(name)(*arguments))

    def check(self, status: int | None) -> None:
        """Release a status. Raises Failure with what it says, if it says something."""
        if status:
            text = ctypes.string_at(self.function("GetErrorMessage")(status))
            self.function("ReleaseStatus")(status)
            raise Failure(text.decode(errors="replace"))

    def providers(self) -> list[str]:
        """Return the execution providers of this build."""
        names, count = ctypes.POINTER(c_char_p)(), c_int()
        self.call("GetAvailableProviders", byref(names), byref(count))
        found = [(names[at] or b"").decode() for at in range(count.value)]
        self.function("ReleaseAvailableProviders")(names, count)
        return found

    def share_arena(self, first_bytes: int) -> None:
        """Have one arena for all sessions that ask for it from now on, which begins so large.

        Of what it reserves it takes what is used. One that there was ends with the last session and
        `Arena` that shares it. Raises Failure.
        """
        settings = _Owned(self, "ArenaCfg")
        out = byref(settings.handle)
        self.call("CreateArenaCfg", 0, NEXT_POWER_OF_TWO, first_bytes, -1, out)
        if self._shares:
            self.call("UnregisterAllocator", self._env, self._arena)
        self._shares = False
        self.call("CreateAndRegisterAllocator", self._env, self._arena, settings.handle)
        self._shares = True

    def arena(self, session: Session) -> Arena:
        """Return the arena that a session shares. Raises Failure."""
        arena = Arena(self)
        self.call("CreateAllocator", session.handle, self._arena, byref(arena.handle))
        return arena

    def options(self) -> RunOptions:
        """Return the options of a run."""
        return RunOptions(self)

    def session(
        self,
        model: bytes | str,
        threads: int,
        providers: list[str],
        entries: dict[str, str],
        save: str = "",
    ) -> Session:
        """Load a model, or the file of this name; with `save` its optimised form goes there.

        `providers` is the CPU's alone: who wants another takes the package. Raises Failure.
        """
        if providers != [CPU]:
            raise Failure(f"no {', '.join(providers)} by way of the C interface")
        options = _Owned(self, "SessionOptions")
        self.call("CreateSessionOptions", byref(options.handle))
        self.call("DisableMemPattern", options.handle)
        self.call("SetIntraOpNumThreads", options.handle, threads)
        self.call("SetInterOpNumThreads", options.handle, 1)
        self.call("SetSessionLogSeverityLevel", options.handle, SILENT)
        for key, value in entries.items():
            self.call("AddSessionConfigEntry", options.handle, key.encode(), value.encode())
        if save:
            self.call("SetOptimizedModelFilePath", options.handle, save.encode())
        session = Session(self)
        out = byref(session.handle)
        if isinstance(model, str):
            self.call("CreateSession", self._env, model.encode(), options.handle, out)
        else:
            size = len(model)
            self.call("CreateSessionFromArray", self._env, model, size, options.handle, out)
        session.look()
        return session

    def ports(self, session: Session, role: str) -> list[Port]:
        """Return the inputs or outputs of a session; `role` is `Input` or `Output`."""
        count = c_size_t()
        self.call(f"SessionGet{role}Count", session.handle, byref(count))
        return [self._port(session, role, at) for at in range(count.value)]

    def _port(self, session: Session, role: str, at: int) -> Port:
        text = c_void_p()
        self.call(f"SessionGet{role}Name", session.handle, at, self._allocator, byref(text))
        name = ctypes.string_at(text).decode(errors="replace")
        self.call("AllocatorFree", self._allocator, text)
        about = _Owned(self, "TypeInfo")
        self.call(f"SessionGet{role}TypeInfo", session.handle, at, byref(about.handle))
        kind, tensor = c_int(), c_void_p()
        self.call("GetOnnxTypeFromTypeInfo", about.handle, byref(kind))
        if kind.value != _TENSOR:
            return Port(name, KINDS.get(kind.value, "unknown"), ())
        self.call("CastTypeInfoToTensorInfo", about.handle, byref(tensor))
        number, shape = self._described(tensor)
        return Port(name, TYPES.get(number, f"tensor({number})"), shape)

    def _described(self, tensor: c_void_p) -> tuple[int, tuple[int, ...]]:
        number, rank = c_int(), c_size_t()
        self.call("GetTensorElementType", tensor, byref(number))
        self.call("GetDimensionsCount", tensor, byref(rank))
        shape = (c_int64 * rank.value)()
        self.call("GetDimensions", tensor, shape, rank)
        return number.value, tuple(shape)


class Arena(_Owned):
    """Where the runs of this process work."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, "Allocator")
        self._found = c_void_p()

    def take(self, size_bytes: int) -> int:
        """Take so much that nobody has; the address. Raises Failure."""
        self._runtime.call("AllocatorAlloc", self.handle, size_bytes, byref(self._found))
        return self._found.value or 0

    def leave(self, address: int) -> None:
        """Give back what was taken."""
        self._runtime.call("AllocatorFree", self.handle, address)


class RunOptions(_Owned):
    """What a run is told, and by which it is stopped."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, "RunOptions")
        self.terminated = False
        """Whether the run was told to end."""
        runtime.call("CreateRunOptions", byref(self.handle))

    def terminate(self) -> None:
        """Have the run end soon, or not begin; any thread may say so."""
        self.terminated = True
        self._runtime.call("RunOptionsSetTerminate", self.handle)

    def entry(self, key: str, value: str) -> None:
        """Set an entry of its configuration."""
        self._runtime.call("AddRunConfigEntry", self.handle, key.encode(), value.encode())


class _Value:
    """A tensor of the library's, released with this."""

    __slots__ = "_release", "handle"

    def __init__(self, release: Any, handle: int | None) -> None:
        self._release = release
        self.handle = handle

    def __del__(self) -> None:
        self._release(self.handle)


class Session(_Owned):
    """A loaded model; one run at a time."""

    providers: Final = (CPU,)

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime, "Session")
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        named = "Run", "CreateTensorWithDataAsOrtValue", "ReleaseValue", "GetTensorMutableData"
        self._run, self._lend, self._release_value, self._data = map(runtime.function, named)
        about = "GetTensorTypeAndShape", "GetDimensionsCount", "GetDimensions"
        self._about, self._rank, self._axes = map(runtime.function, about)
        self._forget = runtime.function("ReleaseTensorTypeAndShapeInfo")
        self._type = runtime.function("GetTensorElementType")
        self._check = runtime.check
        self._found, self._number, self._length = c_void_p(), c_int(), c_size_t()

    def look(self) -> None:
        """Note which inputs and outputs there are."""
        self.inputs = self._runtime.ports(self, "Input")
        self.outputs = self._runtime.ports(self, "Output")

    def run(
        self, wanted: list[str], feeds: dict[str, Tensor], options: RunOptions | None = None
    ) -> list[Tensor]:
        """Run once; the wanted outputs, tensors of a manifest's types. Raises Failure.

        Inputs are read where they lie, outputs live as long as what looks at them.
        """
        given = (c_void_p * len(feeds))()
        found = (c_void_p * len(wanted))()
        how = options.handle if options is not None else None
        views = []
        try:
            for at, value in enumerate(feeds.values()):
                views.append(self._give(given, at, value))
            self._check(
                self._run(
                    *(self.handle, how, _names(feeds), given, len(feeds)),
                    *(_names(wanted), len(wanted), found),
                )
            )
        finally:
            for handle in given:
                self._release_value(handle)
        values = [_Value(self._release_value, one) for one in found]
        if not all(found):
            raise Failure("an output is absent")
        return [self._take(one) for one in values]

    def _give(self, given: Any, at: int, value: Tensor) -> memoryview:
        """Lend bytes to the library; what has to be kept meanwhile. Raises Failure."""
        number, shape, view = value
        address = _address(view)
        if address % ITEM_BYTES[number]:
            view = memoryview(bytearray(view))
            address = _address(view)
        axes = (c_int64 * len(shape))(*shape)
        self._check(
            self._lend(
                *(self._runtime.memory, address, view.nbytes, axes, len(shape), number),
                byref(self._found),
            )
        )
        given[at] = self._found.value
        return view

    def _take(self, value: _Value) -> Tensor:
        """Look at a tensor of the library's, which lives as long as the view. Raises Failure."""
        self._check(self._about(value.handle, byref(self._found)))
        about = self._found.value
        try:
            self._check(self._type(about, byref(self._number)))
            self._check(self._rank(about, byref(self._length)))
            axes = (c_int64 * self._length.value)()
            self._check(self._axes(about, axes, self._length))
        finally:
            self._forget(about)
        number, shape = self._number.value, tuple(axes)
        size = math.prod(shape) * ITEM_BYTES[number]
        if not size:
            return number, shape, memoryview(b"")
        self._check(self._data(value.handle, byref(self._found)))
        data = (ctypes.c_ubyte * size).from_address(self._found.value or 0)
        data.value = value  # what keeps it
        return number, shape, memoryview(data).cast("B")


class _Base(NamedTuple):
    version: str
    table: Any


def _load() -> _Base:
    """Open the library. Raises Absent."""
    path = _path()
    try:
        library = ctypes.CDLL(path)
        first = library.OrtGetApiBase
    except (OSError, AttributeError) as error:
        raise Absent(f"{path}: {error}") from None
    first.restype = ctypes.POINTER(c_void_p * 2)
    get_table, get_version = first().contents
    version: bytes = ctypes.CFUNCTYPE(c_char_p)(get_version)()
    table = ctypes.CFUNCTYPE(c_void_p, c_uint32)(get_table)(API_VERSION)
    if not table:
        raise Absent(f"{path} has no interface of version {API_VERSION}")
    size = 1 + max(place for place, *_ in _CALLS.values())
    return _Base(version.decode(), (c_void_p * size).from_address(table))


def _path() -> str:
    """Return where the library of the package is that would be imported. Raises Absent."""
    for folder in sys.path:
        try:
            names = os.listdir(f"{folder}/{PACKAGE}")
        except OSError:
            continue
        for name in sorted(names):
            if name.startswith(LIBRARY):
                return f"{folder}/{PACKAGE}/{name}"
        break
    raise Absent(f"the package brings no {LIBRARY}")
