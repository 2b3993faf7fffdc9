"""Types of tensors, and what a model carries from one run to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from device_agent.executors.programs import onnx_state
    from device_agent.executors.programs.stream import Refusal
else:
    import onnx_state
    from stream import Refusal

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
ORT_TYPE: Final = {
    1: "tensor(float)",
    2: "tensor(uint8)",
    3: "tensor(int8)",
    4: "tensor(uint16)",
    5: "tensor(int16)",
    6: "tensor(int32)",
    7: "tensor(int64)",
    9: "tensor(bool)",
    10: "tensor(float16)",
    11: "tensor(double)",
    12: "tensor(uint32)",
    13: "tensor(uint64)",
}
_NUMBER: Final = {name: number for number, name in ORT_TYPE.items()}


def mismatch(text: str) -> Refusal:
    """Return the refusal of a model that is not what its manifest says."""
    return Refusal("executor", "user", text)


class Carried:
    """What the model remembers: an output of one run is an input of the next."""

    def __init__(self, pairs: list[list[str]], session: Any) -> None:
        """Raise Refusal for ports that the model lacks, or that do not fit each other."""
        inputs = {one.name: one for one in session.get_inputs()}
        outputs = {one.name: one for one in session.get_outputs()}
        self.inputs = [given for _, given in pairs]
        self.outputs = [taken for taken, _ in pairs]
        self._first: list[Any] = []
        self._item_bytes: list[int] = []
        for taken, given in pairs:
            if taken not in outputs or given not in inputs:
                text = f"the model cannot carry output {taken!r} to input {given!r}: it lacks one"
                raise mismatch(text)
            kind = inputs[given].type
            if kind not in _NUMBER or outputs[taken].type != kind:
                raise mismatch(
                    f"output {taken!r} is {outputs[taken].type}, input {given!r} {kind}: "
                    "what a model carries must be one type of tensor"
                )
            # An axis of any length is 1 at first: one stream, not yet any history.
            shape = [one if isinstance(one, int) else 1 for one in inputs[given].shape or ()]
            self._first.append(np.zeros(shape, NUMPY[_NUMBER[kind]]))
            self._item_bytes.append(self._first[-1].itemsize)
        self._memory: onnx_state.Memory | None = None

    def bind(self, memory: onnx_state.Memory, *, strict: bool) -> str:
        """Keep the state there from now on; what is to say of the one that is there.

        Raises Refusal when it is none of this model, if strict.
        """
        note = ""
        if state := memory.read():
            try:
                self._check(state)
            except Refusal:
                if strict:
                    raise
                memory.write(b"")
                note = "what it remembered does not fit this model: it begins anew"
        if self._memory is not None:
            self._memory.close()
        self._memory = memory
        return note

    def feeds(self) -> dict[str, Any]:
        """Return the state as inputs. Raises Refusal when it is none of this model."""
        if self._memory is None or not (state := self._memory.read()):
            return dict(zip(self.inputs, self._first))  # noqa: B905 - made together
        return dict(zip(self.inputs, self._arrays(state)))  # noqa: B905 - made together

    def _arrays(self, state: bytes) -> list[Any]:
        try:
            tensors = onnx_state.unpack(state, self._item_bytes)
        except ValueError as error:
            raise Refusal("executor", "peer", f"{error}: it is none of this model") from None
        return [
            np.frombuffer(data, first.dtype).reshape(shape)
            for first, (shape, data) in zip(self._first, tensors)  # noqa: B905 - as many
        ]

    def _check(self, state: bytes) -> None:
        arrays = self._arrays(state)
        if any(one.ndim != first.ndim for one, first in zip(arrays, self._first)):  # noqa: B905 - of one length
            raise Refusal("executor", "peer", "the state has other axes than the model's")

    def keep(self, found: list[Any]) -> None:
        """Remember these outputs. Raises Refusal when they take too much."""
        if self._memory is None or not found:
            return
        state = onnx_state.pack([(one.shape, one.tobytes()) for one in found])
        try:
            self._memory.write(state)
        except ValueError as error:
            raise Refusal("limit", "user", str(error)) from None
