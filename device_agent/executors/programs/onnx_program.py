"""One ONNX model: read, scanned, loaded, held against its manifest, run.

It runs in a process that has entered the sandbox before the first byte of the model is read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from device_agent.executors.programs import ort_api, ort_package, resting
    from device_agent.executors.programs.checks import hold
    from device_agent.executors.programs.onnx_carried import Carried, mismatch
    from device_agent.executors.programs.onnx_scan import NotProtobuf, misfit
    from device_agent.executors.programs.ort_api import CPU, TYPES, Failure, Port, Tensor
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        map_handle,
        read_values,
        write_values,
    )

    Runtime = ort_api.Runtime | ort_package.Runtime
    """The same by either way."""
else:
    import ort_api
    import resting
    from checks import hold
    from onnx_carried import Carried, mismatch
    from onnx_scan import NotProtobuf, misfit
    from ort_api import CPU, TYPES, Failure
    from stream import Header, Refusal, map_handle, read_values, write_values

MAX_FOLDED_BYTES: Final = 8 << 20
"""A larger constant is not computed at load: folding can take over 15 s."""
IDENTITY: Final = (
    b'\x08\x08:/\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0b\n\x01x\x12\x06\n\x04\x08\x01\x12\x00'
    b"b\x0b\n\x01y\x12\x06\n\x04\x08\x01\x12\x00B\x02\x10\x11"
)
"""A model of one operator: the runtime gives memory back only at the end of a run."""
SHRINK: Final = ("memory.enable_memory_arena_shrinkage", "cpu:0")
MAPPED: Final = (
    "session.use_memory_mapped_ort_model",
    "session.use_ort_model_bytes_for_initializers",
)
ITEM: Final = 1, (), memoryview(bytes(4))
ROOM_BYTES: Final = 32 << 20
"""Of addresses in which runs work, in one piece: only what a run has touched of it is memory, but
the arena keeps a list of its 256 bytes each, which takes a thirty-second."""
ROOM_PART: Final = 4
"""What part of a task's limit that is at most."""
ROOM_STEPS: Final = 16
"""In which what a model leaves free of it is found out."""
LEAST_ROOM_BYTES: Final = ROOM_STEPS * mmap.PAGESIZE
WEIGHTS_BYTES: Final = 32 << 20
"""Of mapped weights that are in memory for a run alone; of more a run may use a small part."""

_ABSENT_OPERATOR: Final = re.compile(r"Could not find an implementation for (\w+)\((\d+)\)")

_UNKNOWN_OPERATOR: Final = re.compile(r"(\S+)\(-?\d+\) is not a registered function/op")


def _lean() -> Runtime:
    try:
        return ort_api.Runtime()
    except ort_api.Absent:
        return packaged()


def packaged() -> Runtime:
    """Return ONNX Runtime by its Python package. Raises ImportError."""
    if not TYPE_CHECKING:
        import ort_package  # noqa: PLC0415 - it brings numpy, which few processes need
    return ort_package.Runtime()


runtime: Final = _lean()
"""By its C interface where there is one."""


def prepare(request: Header) -> None:
    """Import what only some models need, while there are files to import from."""
    if usable(request["providers"])[0]:
        packaged()
    if request.get("checks"):
        with contextlib.suppress(ImportError):
            # It counts the items of outputs.
            import_module("numpy")


def ports(described: list[list[Any]], have: list[Port], role: str) -> None:
    """Hold the manifest's ports of one role against the model's. Raises Refusal."""
    by_name = {one.name: one for one in have}
    for name, dtype, shape in described:
        port = by_name.get(name)
        if port is None:
            known = ", ".join(by_name)
            raise mismatch(f"the model has no {role} {name!r}, it has {known}")
        if port.type != TYPES[dtype]:
            raise mismatch(f"{role} {name!r} is {port.type}, the manifest says {TYPES[dtype]}")
        axes = port.shape
        if axes and len(axes) != len(shape):
            raise mismatch(f"{role} {name!r} has {len(axes)} axes, the manifest {len(shape)}")
        for axis, (mine, wanted) in enumerate(zip(axes, shape)):  # noqa: B905 - equal above
            # An output may be promised loosely; an input of any length must be any in the model.
            loose = wanted == -1 and role == "output"
            if mine >= 0 and mine != wanted and not loose:
                raise mismatch(
                    f"{role} {name!r} has length {mine} at axis {axis}, the manifest {wanted}"
                )


def short_of_memory(error: Exception) -> bool:
    """Whether an error of the runtime or of Python says that memory ended."""
    text = str(error)
    return isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text


def blame(error: Exception, what: str) -> Refusal:
    """Sort an error of the runtime into a refusal."""
    text = " ".join(str(error).split())
    if short_of_memory(error):
        text = f"{what}: the task's memory limit is too small, raise limits.memory_bytes"
        return Refusal("limit", "user", text)
    if old := _ABSENT_OPERATOR.search(text):
        text = (
            f"ONNX Runtime {runtime.version} has no {old[1]} of operator set {old[2]}: "
            "convert the model to a newer operator set"
        )
    if unknown := _UNKNOWN_OPERATOR.search(text):
        text = f"ONNX Runtime {runtime.version} has no operator {unknown[1]}"
    return Refusal("executor", "user", f"{what}: {text}")


def usable(wanted: list[str]) -> tuple[list[str], str]:
    """Return the providers beside the CPU's that this build has, and what is to say of others."""
    asked = [one for one in wanted if one != CPU]
    available = runtime.providers() if asked else []
    absent = [one for one in asked if one not in available]
    note = f"not in this build of ONNX Runtime: {', '.join(absent)}" if absent else ""
    return [one for one in asked if one not in absent], note


def read_model(handle: int, limit_bytes: int) -> bytes:
    """Read an open model and close it. Raises Refusal for what must not be loaded."""
    with open(handle, "rb", buffering=0) as file:
        file.seek(0)
        size = os.fstat(handle).st_size
        if size > limit_bytes:
            text = f"the model has {size} bytes, the task's memory limit is {limit_bytes}: "
            text += "raise limits.memory_bytes to twice the model and what its runs take"
            raise Refusal("limit", "user", text)
        model = file.read()
    try:
        reason = misfit(model)
    except NotProtobuf as error:
        raise Refusal("executor", "user", f"the artifact is no ONNX model: {error}") from None
    if reason:
        raise Refusal("executor", "user", reason)
    return model


class Arena:
    """The memory in which the runs of this process work: one room, nothing in it between them."""

    def __init__(self, runtime: Runtime, limit_bytes: int) -> None:
        """Have a room that is a part of what its process may take; unused it takes nothing."""
        self._runtime = runtime
        steps = min(ROOM_BYTES, limit_bytes // ROOM_PART) // ROOM_STEPS // mmap.PAGESIZE
        self._room_bytes = max(LEAST_ROOM_BYTES, steps * ROOM_STEPS * mmap.PAGESIZE)
        self._asked = False
        self._emptier: Any = None
        self._room: Any = None
        self._free_bytes = 0
        """Of the room, behind what a loaded model keeps there..."""
        self._used_bytes = 0
        """... and what of these the last run has used."""

    def shared(self) -> bool:
        """Have it for all sessions from now on; False where the runtime gives none."""
        if not self._asked:
            self._asked = True
            try:
                self._runtime.share_arena(self._room_bytes)
                emptier = _session(self._runtime, IDENTITY, 1, [CPU], shared=True)
                emptier.run(["y"], {"x": ITEM})
            except Failure:
                return False
            self._emptier = emptier
            with contextlib.suppress(Failure):
                self._room = self._runtime.arena(emptier)
        return self._emptier is not None

    def narrow(self) -> bool:
        """Leave the room to a model that does not load beside it; False where there is none.

        What its runs take is given back when it rests.
        """
        if self._room is None or self._room_bytes == LEAST_ROOM_BYTES:
            return False
        # The arena ends when nobody shares it.
        self._emptier = self._room = None
        self._room_bytes = LEAST_ROOM_BYTES
        self._asked = False
        return True

    def loaded(self) -> None:
        """Find out what of the room is free once a model is here."""
        step = self._room_bytes // ROOM_STEPS
        first = self._take(step)
        while first and self._take(self._free_bytes + step) == first:
            self._free_bytes += step
        # Where there was no more, the arena has grown.
        self.empty()
        self.vacate()
        self._used_bytes = 0

    def _take(self, size_bytes: int, act: Callable[[int], object] | None = None) -> int:
        """Take so much that nobody has, do something to it, leave it; where it was, 0: nowhere."""
        try:
            address: int = self._room.take(size_bytes) if self._room is not None else 0
        except Failure:
            return 0
        if address:
            if act is not None:
                act(address)
            self._room.leave(address)
        return address

    def vacate(self) -> None:
        """Let go of what runs have left in the room: what can be taken there is nobody's."""
        if self._free_bytes:
            self._take(self._free_bytes, self._let_go)

    def _let_go(self, address: int) -> None:
        self._used_bytes = resting.let_go(address, self._free_bytes) or self._used_bytes

    def occupy(self) -> None:
        """Take what the last run took, before the next one needs it."""
        if self._used_bytes:
            self._take(self._free_bytes, self._take_up)

    def _take_up(self, address: int) -> None:
        resting.take_up(address, self._used_bytes)

    def empty(self) -> bool:
        """Give back the rooms that runs have taken beside the first one; False: it cannot."""
        if self._emptier is None:
            return False
        options = self._runtime.options()
        try:
            options.entry(*SHRINK)
            self._emptier.run(["y"], {"x": ITEM}, options)
        except Failure:
            # Then it stays as it is.
            self._emptier = None
        return self._emptier is not None


def _session(
    runtime: Runtime,
    model: bytes | str,
    threads: int,
    providers: list[str],
    *,
    shared: bool,
    form: bool = False,
    save: str = "",
) -> Any:
    """Load a model, or its optimised form; with `save` the form is written there.

    The form may be the name of a file, which is mapped: its weights are that file's pages, of which
    the kernel keeps what is in use. Raises Failure.
    """
    # The usual arena stays: after a fork it takes less of a worker's own memory than one that grows
    # as requested, a quarter of what goes without any, at equal speed. Weights lie beside it, so
    # that between calls it is empty and can be given back.
    entries = {
        # Threads that spin between two operators take the processor from every other task.
        "session.intra_op.allow_spinning": "0",
        "optimization.constant_folding_max_output_size_in_bytes": str(MAX_FOLDED_BYTES),
        "session.load_model_format": "ORT" if form else "ONNX",
    }
    if shared:
        entries["session.use_env_allocators"] = "1"
        entries["session.use_device_allocator_for_initializers"] = "1"
    if isinstance(model, str):
        entries.update(dict.fromkeys(MAPPED, "1"))
    if save:
        entries["session.save_model_format"] = "ORT"
    return runtime.session(model, threads, providers, entries, save)


class Model:
    """A loaded session and what its calls need."""

    def __init__(
        self, request: Header, handle: int, blobs: str, form: int = -1, *, make: bool = False
    ) -> None:
        """Load from open files, which are closed: the model, its optimised form if there is one.

        With `make` the form is written there. Raises Refusal.
        """
        self.blobs = blobs
        self.code: list[resting.Part] = []
        self.weights: list[resting.Part] = []
        """What the page cache has as well: of libraries, and of the model's form."""
        self._looked_up = False
        """Whether weights are in memory for a run that was told of."""
        self.limit: int = request["limit"]
        self.checks: list[Any] = request.get("checks", [])
        self.flags = ""
        """Which check the last call has broken, where that only flags it."""
        self.constants: dict[str, Tensor] = {}
        self.runtime = packaged() if usable(request["providers"])[0] else runtime
        self._arena = Arena(self.runtime, request["memory"])
        self.outputs: list[str] = [name for name, _, _ in request["outputs"]]
        self.numbers: list[int] = [dtype for _, dtype, _ in request["outputs"]]
        self.made = False
        """Whether the form was written."""
        self.note = usable(request["providers"])[1]
        found = None if make else self._open_form(form, request)
        if found is None:
            model = read_model(handle, request["memory"])
            found = self._make(model, request, form) if make else None
            self.made = found is not None
            if found is None:
                found, self.note = self._open(model, request)
        self.session: Any = found
        self.carried = Carried(request["carries"], self.session)
        self._wanted = self.outputs + self.carried.outputs
        have = self.session.inputs
        ports(request["inputs"], have, "input")
        ports(request["outputs"], self.session.outputs, "output")
        if missing := self._lacking(self.session, request):
            raise mismatch(f"the manifest names no input {', '.join(missing)} of the model")
        self._arena.loaded()

    @staticmethod
    def _lacking(session: Any, request: Header) -> list[str]:
        """Return the inputs of a session that the manifest does not feed."""
        fed = {name for name, _, _ in request["inputs"]}
        fed |= {given for _, given in request["carries"]}
        return [one.name for one in session.inputs if one.name not in fed]

    def _open_form(self, form: int, request: Header) -> Any:
        """Load the optimised form; None when there is none, or none that loads."""
        if form < 0:
            return None
        with open(form, "rb", buffering=0) as file:
            file.seek(0)
            found = None
            # What has no name is memory already: it is copied, and goes.
            if os.fstat(form).st_nlink:
                found = self._form(f"/proc/self/fd/{form}", request["threads"])
            if found is None:
                found = self._form(file.read(), request["threads"])
        if found is not None and self._lacking(found, request):
            # Weights that an old model lists as inputs too: computed into others, they are gone
            # from the form, and the runtime takes what is left of them for inputs of each call.
            return None
        return found

    def _session(self, model: bytes | str, threads: int, providers: list[str], **more: Any) -> Any:
        while True:
            shared = self._arena.shared()
            try:
                return _session(self.runtime, model, threads, providers, shared=shared, **more)
            except Failure as error:
                if not (short_of_memory(error) and self._arena.narrow()):
                    raise

    def _form(self, form: bytes | str, threads: int) -> Any:
        """Load an optimised form; None when there is none, or none that loads."""
        try:
            return self._session(form, threads, [CPU], form=True) if form else None
        except Failure:
            return None

    def _make(self, model: bytes, request: Header, form: int) -> Any:
        """Load a model and write its form; None when that cannot be done."""
        try:
            return self._session(model, request["threads"], [CPU], save=f"/proc/self/fd/{form}")
        except Failure:
            return None

    def _open(self, model: bytes, request: Header) -> tuple[Any, str]:
        threads: int = request["threads"]
        chosen, note = usable(request["providers"])
        if chosen:
            try:
                session = self._session(model, threads, [*chosen, CPU])
            except Failure as error:
                note = f"{', '.join(chosen)} failed, CPU instead: {error}"[:500]
            else:
                if session.providers[0] not in chosen:
                    note = f"{', '.join(chosen)} did not take the model, CPU instead"
                return session, note
        try:
            return self._session(model, threads, [CPU]), note
        except Failure as error:
            raise blame(error, "the model does not load") from None

    def vacate(self) -> None:
        """Give back the memory in which runs work, and weights that were taken beforehand.

        A run that was not told of would take them page by page, which is slower.
        """
        self._arena.vacate()
        if self._looked_up:
            self._looked_up = False
            resting.leave(self.weights)

    def occupy(self) -> None:
        """Take that memory again, and few weights, for a run that comes soon."""
        self._arena.occupy()
        if sum(size for _, size in self.weights) <= WEIGHTS_BYTES:
            self._looked_up = resting.look_up(self.weights)

    def rest(self) -> None:
        """Give back what the next call takes again: activations, free heap, code of libraries."""
        self._arena.empty()
        # Last, for to empty it is a run, too.
        self._arena.vacate()
        resting.give_back(self.code, self.weights)

    def bind(self, constants: list[list[Any]], handles: list[int]) -> None:
        """Map the inputs that are the same for every call. Raises Refusal."""
        for (name, dtype, shape, size, _), handle in zip(constants, handles):  # noqa: B905 - as many
            view = map_handle(handle, size, f"constant {name!r}")
            self.constants[name] = dtype, tuple(shape), view

    def run(self, header: Header, body: memoryview, options: Any) -> tuple[Any, list[memoryview]]:
        """Run one call; described outputs and the inline ones. Raises Refusal."""
        feeds: dict[str, Tensor] = {
            name: (dtype, shape, view)
            for name, dtype, shape, view in read_values(header["in"], body, self.blobs)
        }
        feeds.update(self.constants)
        if self.carried.inputs:
            feeds.update(self.carried.feeds())
        try:
            found = self._compute(feeds, options)
        except Failure as error:
            if options.terminated:
                raise Refusal("deadline", "user", "the call was stopped") from None
            raise blame(error, "the model failed") from None
        values = [(name, *one) for name, one in zip(self.outputs, found)]  # noqa: B905 - the first ones
        self.flags = hold(values, self.checks)
        described = write_values(values, self.blobs, self.limit)
        self.carried.keep(found[len(self.outputs) :])
        return described

    def _compute(self, feeds: dict[str, Tensor], options: Any) -> Any:
        """Run, and once more where memory ends that earlier runs have left. Raises Failure."""
        try:
            return self.session.run(self._wanted, feeds, options)
        except Failure as error:
            short = short_of_memory(error) and not options.terminated
            if not (short and self._arena.empty()):
                raise
        return self.session.run(self._wanted, feeds, options)
