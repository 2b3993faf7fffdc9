"""Several calls of a model in one run: inputs joined along their first axis, outputs cut apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from device_agent.executors.programs.checks import hold
    from device_agent.executors.programs.onnx_program import Model
    from device_agent.executors.programs.ort_api import Failure, Tensor
    from device_agent.executors.programs.stream import (
        Answer,
        Frame,
        Refusal,
        Value,
        read_values,
        write_values,
    )
else:
    from checks import hold
    from ort_api import Failure
    from stream import Refusal, read_values, write_values


class Apart(Exception):
    """The calls have to run one by one."""


def run(model: Model, frames: list[Frame], options: Any) -> list[Answer]:
    """Run calls together; an answer for each, in their order. Raises Apart."""
    answers: dict[int, Answer] = {}
    inputs: dict[int, dict[str, Tensor]] = {}
    for at, (header, body) in enumerate(frames):
        try:
            values = read_values(header["in"], body, model.blobs)
        except Refusal as refusal:
            answers[at] = {"fail": refusal.answer}, []
        else:
            inputs[at] = {name: (dtype, shape, view) for name, dtype, shape, view in values}
    if inputs:
        answers |= _answers(model, inputs, options)
    return [answers[at] for at in range(len(frames))]


def _answers(model: Model, inputs: dict[int, dict[str, Tensor]], options: Any) -> dict[int, Answer]:
    """Run the calls whose inputs could be read. Raises Apart."""
    rows = {at: _rows(one) for at, one in inputs.items()}
    try:
        found = _outputs(model, list(inputs.values()), sum(rows.values()), options)
    except Failure:
        # Alone each tells its own.
        if not options.terminated:
            raise Apart from None
        stopped = Refusal("deadline", "user", "the call was stopped").answer
        return {at: ({"fail": stopped}, []) for at in inputs}
    answers: dict[int, Answer] = {}
    start = 0
    for at, own in rows.items():
        answers[at] = _cut(model, found, slice(start, start + own), len(inputs))
        start += own
    return answers


def _rows(inputs: dict[str, Tensor]) -> int:
    """Return how many rows a call has. Raises Apart where its inputs do not agree."""
    found = {shape[:1] for _, shape, _ in inputs.values()}
    if len(found) != 1 or () in found:
        raise Apart
    return found.pop()[0]


def _outputs(
    model: Model, inputs: list[dict[str, Tensor]], rows: int, options: Any
) -> list[Tensor]:
    """Run with joined inputs. Raises Apart where they do not fit each other, Failure."""
    feeds = {name: _joined([one[name] for one in inputs], rows) for name in inputs[0]}
    found: list[Tensor] = model.session.run(model.outputs, feeds | model.constants, options)
    if any(shape[:1] != (rows,) for _, shape, _ in found):
        raise Apart
    return found


def _joined(values: list[Tensor], rows: int) -> Tensor:
    if len({(dtype, shape[1:]) for dtype, shape, _ in values}) != 1:
        raise Apart
    dtype, shape, _ = values[0]
    return dtype, (rows, *shape[1:]), memoryview(b"".join(view for _, _, view in values))


def _cut(model: Model, found: list[Tensor], rows: slice, calls: int) -> Answer:
    """Return the answer of one call: its rows of every output."""
    values: list[Value] = []
    count = rows.stop - rows.start
    for name, (number, shape, view) in zip(model.outputs, found):  # noqa: B905 - as many
        row = view.nbytes // shape[0] if shape[0] else 0
        own = view[rows.start * row : rows.stop * row]
        values.append((name, number, (count, *shape[1:]), own))
    try:
        flags = hold(values, model.checks)
        described, inline = write_values(values, model.blobs, model.limit)
    except Refusal as refusal:
        return {"fail": refusal.answer}, []
    return {"out": described, "calls": calls, "flags": flags}, inline
