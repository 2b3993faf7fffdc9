"""Several calls of a model in one run: inputs joined along their first axis, outputs cut apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from device_agent.executors.programs.checks import hold
    from device_agent.executors.programs.onnx_program import Model, array
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
    from onnx_program import array
    from stream import Refusal, read_values, write_values


class Apart(Exception):
    """The calls have to run one by one."""


def run(model: Model, frames: list[Frame], options: Any) -> list[Answer]:
    """Run calls together; an answer for each, in their order. Raises Apart."""
    answers: dict[int, Answer] = {}
    inputs: dict[int, dict[str, Any]] = {}
    for at, (header, body) in enumerate(frames):
        try:
            values = read_values(header["in"], body, model.blobs)
        except Refusal as refusal:
            answers[at] = {"fail": refusal.answer}, []
        else:
            inputs[at] = {value[0]: array(value) for value in values}
    if inputs:
        answers |= _answers(model, inputs, options)
    return [answers[at] for at in range(len(frames))]


def _answers(model: Model, inputs: dict[int, dict[str, Any]], options: Any) -> dict[int, Answer]:
    """Run the calls whose inputs could be read. Raises Apart."""
    rows = {at: len(next(iter(one.values()))) for at, one in inputs.items()}
    try:
        found = _outputs(model, list(inputs.values()), sum(rows.values()), options)
    except Exception:  # noqa: BLE001 - the runtime raises a dozen types; alone each tells its own
        if not options.terminate:
            raise Apart from None
        stopped = Refusal("deadline", "user", "the call was stopped").answer
        return {at: ({"fail": stopped}, []) for at in inputs}
    answers: dict[int, Answer] = {}
    start = 0
    for at, own in rows.items():
        answers[at] = _cut(model, found, slice(start, start + own), len(inputs))
        start += own
    return answers


def _outputs(model: Model, inputs: list[dict[str, Any]], rows: int, options: Any) -> list[Any]:
    """Run with joined inputs. Raises Apart where rows do not agree, and what the runtime raises."""
    if any(len({len(value) for value in one.values()}) > 1 for one in inputs):
        raise Apart
    feeds = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
    found: list[Any] = model.session.run(model.outputs, feeds | model.constants, options)
    if any(one.ndim == 0 or len(one) != rows for one in found):
        raise Apart
    return found


def _cut(model: Model, found: list[Any], rows: slice, calls: int) -> Answer:
    """Return the answer of one call: its rows of every output."""
    values: list[Value] = []
    for name, number, one in zip(model.outputs, model.numbers, found):  # noqa: B905 - as many
        own = np.ascontiguousarray(one[rows])
        values.append((name, number, own.shape, own.reshape(-1).view(np.uint8).data))
    try:
        flags = hold(values, model.checks)
        described, inline = write_values(values, model.blobs, model.limit)
    except Refusal as refusal:
        return {"fail": refusal.answer}, []
    return {"out": described, "calls": calls, "flags": flags}, inline
