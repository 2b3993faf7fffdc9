"""ONNX Runtime through its Python package: for other providers, and where there is nothing else.

The names are those of `ort_api.py`, which is leaner. A process that imports this takes numpy too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from device_agent.executors.programs.ort_api import (
        SILENT,
        Failure,
        Port,
        Tensor,
    )
else:
    from ort_api import SILENT, Failure, Port

NUMPY: Final = {
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    4: np.uint16,
    5: np.int16,
    6: np.int32,
    7: np.int64,
    9: np.bool_,
    10: np.float16,
    11: np.float64,
    12: np.uint32,
    13: np.uint64,
}
_NUMBER: Final = {np.dtype(one): number for number, one in NUMPY.items()}
_USUAL: Final = {"max_mem": 0, "arena_extend_strategy": -1}


class Runtime:
    """The package in this process."""

    version: Final[str] = onnxruntime.__version__

    def providers(self) -> list[str]:
        """Return the execution providers of this build."""
        found: list[str] = onnxruntime.get_available_providers()
        return found

    def share_arena(self, _first_bytes: int) -> None:
        """Have one arena for all sessions that ask for it, which grows as usual. Raises Failure."""
        kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
        memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
        settings = onnxruntime.OrtArenaCfg(_USUAL)
        try:
            onnxruntime.create_and_register_allocator(memory, settings)
        except Exception as error:  # noqa: BLE001 - the package raises a dozen types
            raise Failure(str(error)) from None

    def arena(self, _session: Session) -> Any:
        """Nothing can be taken from the arena by way of the package. Raises Failure."""
        raise Failure("the package gives nobody memory of its arena")

    def options(self) -> RunOptions:
        """Return the options of a run."""
        return RunOptions()

    def session(
        self,
        model: bytes | str,
        threads: int,
        providers: list[str],
        entries: dict[str, str],
        save: str = "",
    ) -> Session:
        """Load a model, or the file of this name; with `save` its optimised form goes there.

        Raises Failure.
        """
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = False
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = SILENT
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        if save:
            options.optimized_model_filepath = save
        try:
            # No second try with other providers by the Python wrapper: ours is apart.
            session = onnxruntime.InferenceSession(
                model, options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # noqa: BLE001 - the package raises a dozen types
            raise Failure(str(error)) from None
        # It keeps the bytes, and there is no public way to let them go.
        session._model_bytes = b""  # noqa: SLF001 - as said
        return Session(session)


class RunOptions:
    """What a run is told, and by which it is stopped."""

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()

    @property
    def terminated(self) -> bool:
        """Whether the run was told to end."""
        return bool(self.options.terminate)

    def terminate(self) -> None:
        """Have the run end soon, or not begin; any thread may say so."""
        self.options.terminate = True

    def entry(self, key: str, value: str) -> None:
        """Set an entry of its configuration."""
        self.options.add_run_config_entry(key, value)


class Session:
    """A loaded model."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.providers = tuple(session.get_providers())
        self.inputs = [_port(one) for one in session.get_inputs()]
        self.outputs = [_port(one) for one in session.get_outputs()]

    def run(
        self, wanted: list[str], feeds: dict[str, Tensor], options: RunOptions | None = None
    ) -> list[Tensor]:
        """Run once; the wanted outputs, tensors of a manifest's types. Raises Failure."""
        try:
            arrays = {name: _array(value) for name, value in feeds.items()}
            how = options.options if options is not None else None
            found = self._session.run(wanted, arrays, how)
        except Exception as error:  # noqa: BLE001 - the package raises a dozen types
            raise Failure(str(error)) from None
        return [_tensor(one) for one in found]


def _port(port: Any) -> Port:
    shape = tuple(one if isinstance(one, int) else -1 for one in port.shape or ())
    return Port(port.name, port.type, shape)


def _array(value: Tensor) -> Any:
    """Look at bytes as an array, copied only when they lie at an odd address."""
    number, shape, view = value
    found: Any = np.ndarray(shape, NUMPY[number], view)
    return found if found.flags.aligned else found.copy()


def _tensor(found: Any) -> Tensor:
    flat = np.ascontiguousarray(found).reshape(-1).view(np.uint8)
    return _NUMBER[found.dtype], found.shape, flat.data
