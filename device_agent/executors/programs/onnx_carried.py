"""What a model carries from one run to the next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import onnx_state
    from device_agent.executors.programs.ort_api import ITEM_BYTES, TYPES, Tensor
    from device_agent.executors.programs.stream import Refusal
else:
    import onnx_state
    from ort_api import ITEM_BYTES, TYPES
    from stream import Refusal

_NUMBER: Final = {TYPES[number]: number for number in ITEM_BYTES}


def mismatch(text: str) -> Refusal:
    """Return the refusal of a model that is not what its manifest says."""
    return Refusal("executor", "user", text)


class Carried:
    """What the model remembers: an output of one run is an input of the next."""

    def __init__(self, pairs: list[list[str]], session: Any) -> None:
        """Raise Refusal for ports that the model lacks, or that do not fit each other."""
        inputs = {one.name: one for one in session.inputs}
        outputs = {one.name: one for one in session.outputs}
        self.inputs = [given for _, given in pairs]
        self.outputs = [taken for taken, _ in pairs]
        self._first: list[Tensor] = []
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
            shape = tuple(one if one >= 0 else 1 for one in inputs[given].shape)
            number = _NUMBER[kind]
            size = ITEM_BYTES[number]
            self._first.append((number, shape, memoryview(bytes(size * math.prod(shape)))))
            self._item_bytes.append(size)
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

    def feeds(self) -> dict[str, Tensor]:
        """Return the state as inputs. Raises Refusal when it is none of this model."""
        if self._memory is None or not (state := self._memory.read()):
            return dict(zip(self.inputs, self._first))  # noqa: B905 - made together
        return dict(zip(self.inputs, self._tensors(state)))  # noqa: B905 - made together

    def _tensors(self, state: bytes) -> list[Tensor]:
        try:
            tensors = onnx_state.unpack(state, self._item_bytes)
        except ValueError as error:
            raise Refusal("executor", "peer", f"{error}: it is none of this model") from None
        return [
            (number, shape, memoryview(data))
            for (number, _, _), (shape, data) in zip(self._first, tensors)  # noqa: B905 - as many
        ]

    def _check(self, state: bytes) -> None:
        ranks = [len(shape) for _, shape, _ in self._tensors(state)]
        if ranks != [len(shape) for _, shape, _ in self._first]:
            raise Refusal("executor", "peer", "the state has other axes than the model's")

    def keep(self, found: list[Tensor]) -> None:
        """Remember these outputs. Raises Refusal when they take too much."""
        if self._memory is None or not found:
            return
        state = onnx_state.pack([(shape, view.tobytes()) for _, shape, view in found])
        try:
            self._memory.write(state)
        except ValueError as error:
            raise Refusal("limit", "user", str(error)) from None
