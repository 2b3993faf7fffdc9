"""One ONNX model: read, scanned, loaded, held against its manifest, run.

It runs in a process that has entered the sandbox before the first byte of the model is read.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from device_agent.executors.programs import resting
    from device_agent.executors.programs.checks import hold
    from device_agent.executors.programs.onnx_carried import NUMPY, ORT_TYPE, Carried, mismatch
    from device_agent.executors.programs.onnx_scan import NotProtobuf, misfit
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        Value,
        map_handle,
        read_values,
        write_values,
    )
else:
    import resting
    from checks import hold
    from onnx_carried import NUMPY, ORT_TYPE, Carried, mismatch
    from onnx_scan import NotProtobuf, misfit
    from stream import Header, Refusal, Value, map_handle, read_values, write_values

CPU: Final = "CPUExecutionProvider"
SILENT: Final = 4
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
ARENA: Final = {"max_mem": 0, "arena_extend_strategy": -1}
"""As the runtime has it by itself."""

_ABSENT_OPERATOR: Final = re.compile(r"Could not find an implementation for (\w+)\((\d+)\)")

_UNKNOWN_OPERATOR: Final = re.compile(r"(\S+)\(-?\d+\) is not a registered function/op")


def array(value: Value) -> Any:
    """Look at a value's bytes as an array, copied only when they lie at an odd address."""
    _, dtype, shape, view = value
    found: Any = np.ndarray(shape, NUMPY[dtype], view)
    return found if found.flags.aligned else found.copy()


def ports(described: list[list[Any]], have: list[Any], role: str) -> None:
    """Hold the manifest's ports of one role against the model's. Raises Refusal."""
    by_name = {one.name: one for one in have}
    for name, dtype, shape in described:
        port = by_name.get(name)
        if port is None:
            known = ", ".join(by_name)
            raise mismatch(f"the model has no {role} {name!r}, it has {known}")
        if port.type != ORT_TYPE[dtype]:
            raise mismatch(f"{role} {name!r} is {port.type}, the manifest says {ORT_TYPE[dtype]}")
        axes = list(port.shape or ())
        if axes and len(axes) != len(shape):
            raise mismatch(f"{role} {name!r} has {len(axes)} axes, the manifest {len(shape)}")
        for axis, (mine, wanted) in enumerate(zip(axes, shape)):  # noqa: B905 - equal above
            # An output may be promised loosely; an input of any length must be any in the model.
            loose = wanted == -1 and role == "output"
            if isinstance(mine, int) and mine >= 0 and mine != wanted and not loose:
                raise mismatch(
                    f"{role} {name!r} has length {mine} at axis {axis}, the manifest {wanted}"
                )


def blame(error: Exception, what: str) -> Refusal:
    """Sort an error of the runtime into a refusal."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text:
        return Refusal("limit", "user", f"{what}: the task's memory limit is too small")
    if old := _ABSENT_OPERATOR.search(text):
        text = (
            f"ONNX Runtime {onnxruntime.__version__} has no {old[1]} of operator set {old[2]}: "
            "convert the model to a newer operator set"
        )
    if unknown := _UNKNOWN_OPERATOR.search(text):
        text = f"ONNX Runtime {onnxruntime.__version__} has no operator {unknown[1]}"
    return Refusal("executor", "user", f"{what}: {text}")


def usable(wanted: list[str]) -> tuple[list[str], str]:
    """Return the providers beside the CPU's that this build has, and what is to say of others."""
    asked = [one for one in wanted if one != CPU]
    absent = [one for one in asked if one not in onnxruntime.get_available_providers()]
    note = f"not in this build of ONNX Runtime: {', '.join(absent)}" if absent else ""
    return [one for one in asked if one not in absent], note


def read_model(handle: int, limit_bytes: int) -> bytes:
    """Read an open model and close it. Raises Refusal for what must not be loaded."""
    with open(handle, "rb", buffering=0) as file:
        file.seek(0)
        size = os.fstat(handle).st_size
        if size > limit_bytes:
            text = f"the model has {size} bytes, the task's memory limit is {limit_bytes}"
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
    """The memory in which the runs of this process work; empty between them."""

    def __init__(self) -> None:
        self._asked = False
        self._emptier: Any = None

    def shared(self) -> bool:
        """Have it for all sessions from now on; False where the runtime gives none."""
        if not self._asked:
            self._asked = True
            kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
            memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
            try:
                onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg(ARENA))
                self._emptier = _session(IDENTITY, 1, [CPU], shared=True)
                # What the arena takes first it keeps: so that is little.
                self._emptier.run(None, {"x": np.zeros((), np.float32)})
            except Exception:  # noqa: BLE001 - the runtime raises a dozen types
                self._emptier = None
        return self._emptier is not None

    def empty(self) -> None:
        """Give back what the runs have taken."""
        if self._emptier is None:
            return
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(*SHRINK)
        try:
            self._emptier.run(None, {"x": np.zeros((), np.float32)}, options)
        except Exception:  # noqa: BLE001 - as above; then it stays as it is
            self._emptier = None


_arena: Final = Arena()


def open_session(
    model: bytes | str, threads: int, providers: list[str], *, form: bool = False, save: str = ""
) -> Any:
    """Load a model, or its optimised form; with `save` the form is written there.

    The form may be the name of a file, which is mapped: its weights are that file's pages, of which
    the kernel keeps what is in use. Raises what the runtime raises, which is a dozen types.
    """
    return _session(model, threads, providers, shared=_arena.shared(), form=form, save=save)


def _session(
    model: bytes | str,
    threads: int,
    providers: list[str],
    *,
    shared: bool,
    form: bool = False,
    save: str = "",
) -> Any:
    options = onnxruntime.SessionOptions()
    # The usual arena stays: after a fork it takes less of a worker's own memory than one that grows
    # as requested, a quarter of what goes without any, at equal speed. Weights lie beside it, so
    # that between calls it is empty and can be given back.
    options.enable_mem_pattern = False
    if shared:
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between two operators take the processor from every other task of the node.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = SILENT
    options.add_session_config_entry(
        "optimization.constant_folding_max_output_size_in_bytes", str(MAX_FOLDED_BYTES)
    )
    options.add_session_config_entry("session.load_model_format", "ORT" if form else "ONNX")
    if isinstance(model, str):
        for entry in MAPPED:
            options.add_session_config_entry(entry, "1")
    if save:
        options.optimized_model_filepath = save
        options.add_session_config_entry("session.save_model_format", "ORT")
    # No second try with other providers by the Python wrapper: ours is apart. It keeps the bytes.
    session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    session._model_bytes = b""  # noqa: SLF001 - there is no public way to let them go
    return session


class Model:
    """A loaded session and what its calls need."""

    def __init__(
        self, request: Header, handle: int, blobs: str, form: int = -1, *, make: bool = False
    ) -> None:
        """Load from open files, which are closed: the model, its optimised form if there is one.

        With `make` the form is written there. Raises Refusal.
        """
        self.blobs = blobs
        self.mapped: list[tuple[int, int]] = []
        """What the page cache has as well: address and bytes of each part."""
        self.limit: int = request["limit"]
        self.checks: list[Any] = request.get("checks", [])
        self.flags = ""
        """Which check the last call has broken, where that only flags it."""
        self.constants: dict[str, Any] = {}
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
        have = self.session.get_inputs()
        ports(request["inputs"], have, "input")
        ports(request["outputs"], self.session.get_outputs(), "output")
        if missing := self._lacking(self.session, request):
            raise mismatch(f"the manifest names no input {', '.join(missing)} of the model")

    @staticmethod
    def _lacking(session: Any, request: Header) -> list[str]:
        """Return the inputs of a session that the manifest does not feed."""
        fed = {name for name, _, _ in request["inputs"]}
        fed |= {given for _, given in request["carries"]}
        return [one.name for one in session.get_inputs() if one.name not in fed]

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

    @staticmethod
    def _form(form: bytes | str, threads: int) -> Any:
        """Load an optimised form; None when there is none, or none that loads."""
        try:
            return open_session(form, threads, [CPU], form=True) if form else None
        except Exception:  # noqa: BLE001 - the runtime raises a dozen types
            return None

    def _make(self, model: bytes, request: Header, form: int) -> Any:
        """Load a model and write its form; None when that cannot be done."""
        try:
            return open_session(model, request["threads"], [CPU], save=f"/proc/self/fd/{form}")
        except Exception:  # noqa: BLE001 - the runtime raises a dozen types
            return None

    def _open(self, model: bytes, request: Header) -> tuple[Any, str]:
        threads: int = request["threads"]
        chosen, note = usable(request["providers"])
        if chosen:
            try:
                session = open_session(model, threads, [*chosen, CPU])
            except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
                note = f"{', '.join(chosen)} failed, CPU instead: {error}"[:500]
            else:
                if session.get_providers()[0] not in chosen:
                    note = f"{', '.join(chosen)} did not take the model, CPU instead"
                return session, note
        try:
            return open_session(model, threads, [CPU]), note
        except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
            raise blame(error, "the model does not load") from None

    def rest(self) -> None:
        """Give back what the next call takes again: activations, free heap, code of libraries."""
        _arena.empty()
        resting.give_back(self.mapped)

    def bind(self, constants: list[list[Any]], handles: list[int]) -> None:
        """Map the inputs that are the same for every call. Raises Refusal."""
        for (name, dtype, shape, size, _), handle in zip(constants, handles):  # noqa: B905 - as many
            view = map_handle(handle, size, f"constant {name!r}")
            self.constants[name] = array((name, dtype, tuple(shape), view))

    def run(self, header: Header, body: memoryview, options: Any) -> tuple[Any, list[memoryview]]:
        """Run one call; described outputs and the inline ones. Raises Refusal."""
        feeds = {value[0]: array(value) for value in read_values(header["in"], body, self.blobs)}
        feeds.update(self.constants)
        if self.carried.inputs:
            feeds.update(self.carried.feeds())
        try:
            found = self.session.run(self._wanted, feeds, options)
        except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
            if options.terminate:
                raise Refusal("deadline", "user", "the call was stopped") from None
            raise blame(error, "the model failed") from None
        values: list[Value] = []
        for name, number, one in zip(self.outputs, self.numbers, found):  # noqa: B905 - the first ones
            flat = np.ascontiguousarray(one).reshape(-1).view(np.uint8)
            values.append((name, number, one.shape, flat.data))
        self.flags = hold(values, self.checks)
        described = write_values(values, self.blobs, self.limit)
        self.carried.keep(found[len(self.outputs) :])
        return described
