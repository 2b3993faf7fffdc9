"""Checks and sizes of the values that go through a request; pure functions."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from device_agent.core.instances import Instance
from protocols.manifest import accepts, tensor_bytes
from protocols.messages.invocation import (
    REQUEST,
    Blob,
    Edge,
    Plan,
    Step,
    Tensor,
    Timing,
    Value,
)
from protocols.topics import INVOCATION_MAX_BYTES

MESSAGE_MAX_BYTES: Final = INVOCATION_MAX_BYTES - 32 * 1024
"""Inline tensors, plan and timings of one message; the rest of its frame is bounded names."""

MADE: Final = "made:"
"""What begins the name of a value that was made here and has not left: it has no digest yet. No
message can carry it."""
LOAD: Final = "load"
"""The sensor that every node has: its own load."""


def inline_bytes(values: Mapping[str, Value]) -> int:
    """Return how many bytes of tensors the values hold in memory."""
    size = 0
    for value in values.values():
        if type(value) is Tensor:
            size += len(value.data)
    return size


def total_bytes(values: Mapping[str, Value]) -> int:
    """Return how many bytes values take together, on the wire or as files."""
    size = 0
    for value in values.values():
        size += value_bytes(value)
    return size


def value_bytes(value: Value) -> int:
    """Return how many bytes a value takes, on the wire or as a file."""
    return len(value.data) if isinstance(value, Tensor) else value.size_bytes


def blobs(values: Mapping[str, Value]) -> dict[str, int]:
    """Return the size in bytes of every large value, by digest."""
    return {value.digest: value.size_bytes for value in values.values() if isinstance(value, Blob)}


def made(values: Mapping[str, Value]) -> dict[str, int]:
    """Return the size in bytes of every large value that was made here, by name."""
    return {name: size for name, size in blobs(values).items() if name.startswith(MADE)}


def rename(values: dict[str, Value], digest: str, named: str) -> None:
    """Have the values of one digest, or name, go by another."""
    for port, value in values.items():
        if isinstance(value, Blob) and value.digest == digest:
            values[port] = Blob(value.dtype, value.shape, named, value.size_bytes)


def misfit(instance: Instance, port: str, value: Value) -> str:
    """Say why a value does not fit an input of a task; empty when it does."""
    want = instance.ports.get(port)
    if want is None:
        return f"task {instance.task} has no input {port!r}"
    shape = value.shape
    if not accepts(want, value.dtype, shape) or -1 in shape:
        return (
            f"input {port!r} of task {instance.task} is {want.dtype.value}{list(want.shape)}, "
            f"this is {value.dtype.value}{list(shape)}"
        )
    size = value_bytes(value)
    if size != tensor_bytes(value.dtype, shape):
        return f"input {port!r} of task {instance.task} has {size} bytes, its shape says otherwise"
    return ""


def fed_by(plan: Plan, node: str, source: str) -> list[Step]:
    """Return the steps of a node that take anything from a source.

    A step without inputs starts with the request itself. Only what stands after its source in the
    plan counts: a plan with a cycle feeds nobody twice.
    """
    found = []
    passed = source == REQUEST
    for step in plan.steps:
        if passed and step.node == node:
            for edge in step.inputs:
                if edge.source == source:
                    found.append(step)
                    break
            else:
                if source == REQUEST and not step.inputs:
                    found.append(step)
        elif step.task == source:
            passed = True
    return found


def needed_elsewhere(plan: Plan, node: str, source: str) -> dict[str, set[str]]:
    """Return the ports of a source that each other node takes."""
    found: dict[str, set[str]] = {}
    passed = False
    for step in plan.steps:
        if not passed:
            passed = step.task == source
        elif step.node != node:
            for edge in step.inputs:
                if edge.source == source:
                    found.setdefault(step.node, set()).add(edge.source_port)
    return found


def cell_in(plan: Plan, node: str) -> str:
    """Return the cell that a plan names for a node; empty for none."""
    return next((step.cell for step in plan.steps if step.node == node), "")


def rooted(plan: Plan, cell: str, node: str, here: str) -> Plan:
    """Return a plan of another cell as a node of this one uses it: every step names its cell."""
    steps = tuple(
        replace(step, cell=here if step.node == node else step.cell or cell) for step in plan.steps
    )
    return replace(plan, steps=steps)


def answers(plan: Plan, source: str) -> tuple[list[Edge], int, int]:
    """Return the outputs of the plan that a step feeds, its part of the answer, and of how many."""
    sources: list[str] = []
    mine: list[Edge] = []
    for edge in plan.outputs:
        if edge.source not in sources:
            sources.append(edge.source)
        if edge.source == source:
            mine.append(edge)
    return mine, sources.index(source) if mine else 0, len(sources)


def merge(one: tuple[Timing, ...], other: tuple[Timing, ...]) -> tuple[Timing, ...]:
    """Return the timings of both, each task once."""
    if not one or not other:
        return one or other
    known = {timing.task for timing in one}
    return one + tuple(timing for timing in other if timing.task not in known)
