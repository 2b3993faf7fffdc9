"""Rules on what a task declares of its outputs: checks, and a reference sample."""

from math import isfinite

from controller.namo.lines import Path
from controller.namo.model import OutputCheck, Task
from controller.namo.reader import Problems
from protocols.manifest import REFERENCE_MAX_BYTES, Dtype, Form, tensor_bytes
from protocols.submission import near


def check_outputs(task: Task, path: Path, problems: Problems) -> None:
    """Check what a task says of what it gives."""
    for port, one in task.checks.items():
        where = (*path, "checks", port)
        if port not in task.outputs:
            text = f"task {task.name!r} has no output {port!r}{near(port, task.outputs)}"
            problems.add(where, text)
        else:
            _check(task, port, one, where, problems)
    if task.reference is not None:
        _check_reference(task, (*path, "reference"), problems)


def _check(task: Task, port: str, one: OutputCheck, path: Path, problems: Problems) -> None:
    output = task.outputs[port]
    numbers = (one.at_least, one.at_most, *one.values)
    if not all(number is None or isfinite(number) for number in numbers):
        problems.add(path, "its bounds and values are to be finite numbers")
    if one.at_least is not None and one.at_most is not None and one.at_least > one.at_most:
        problems.add(path, f"nothing is at least {one.at_least:g} and at most {one.at_most:g}")
    if one.items_at_most is not None and one.items_at_least > one.items_at_most:
        text = f"no output has at least {one.items_at_least} and at most {one.items_at_most} items"
        problems.add(path, text)
    if one.form and (output.dtype is not Dtype.UINT8 or len(output.shape) != 1):
        problems.add((*path, "form"), f"only bytes, uint8 of one axis, are {Form(one.form).value}")
    same = OutputCheck(on_break=one.on_break)
    if one == same:
        problems.add(path, "it checks nothing: give at_least, at_most, values, finite, ...")


def _check_reference(task: Task, path: Path, problems: Problems) -> None:
    wanted = task.reference
    if wanted is None:
        return
    if task.carries or task.limits.state_bytes:
        problems.add(path, "a task that remembers has none: its sample would change what it knows")
    missing = sorted(port for port in task.inputs if port not in task.samples)
    if missing:
        problems.add(path, f"it is run with the task's samples: give one of {', '.join(missing)}")
    for port, one in wanted.outputs.items():
        where, output = (*path, "outputs", port), task.outputs.get(port)
        if output is None:
            text = f"task {task.name!r} has no output {port!r}{near(port, task.outputs)}"
            problems.add(where, text)
        elif len(one.shape) != len(output.shape) or any(
            axis < 0 or length not in (-1, axis)
            for axis, length in zip(one.shape, output.shape, strict=True)
        ):
            text = f"{list(one.shape)} is no shape of it, {list(output.shape)}"
            problems.add((*where, "shape"), text)
        elif one.artifact.size_bytes != tensor_bytes(output.dtype, one.shape):
            size = tensor_bytes(output.dtype, one.shape)
            text = f"it has {one.artifact.size_bytes} bytes, {output.dtype}{list(one.shape)} {size}"
            problems.add((*where, "artifact"), text)
        elif one.artifact.size_bytes > REFERENCE_MAX_BYTES:
            text = f"an expected output has at most {REFERENCE_MAX_BYTES} bytes: a smaller sample"
            problems.add((*where, "artifact"), text)
