"""How tasks feed each other, as a document writes it: `TASK.PORT` and `request.NAME`."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from controller.namo.model import Alternative, Output, Task
from protocols.base import Shape
from protocols.manifest import Dtype
from protocols.messages.invocation import REQUEST

MAX_NAME: Final = 64
"""Characters of a name in the cell."""


class Come(NamedTuple):
    """Where a value comes from: a task of the service or `request`, and the port there."""

    step: str
    port: str


def come_from(text: str) -> Come:
    """Take `task.port` apart; a port may hold dots, a task may not."""
    step, _, port = text.partition(".")
    return Come(step, port)


def sources_of(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Return for each task the tasks that feed it."""
    names = {task.name for task in tasks}
    return {
        task.name: [
            step for one in task.inputs.values() if (step := come_from(one.source).step) in names
        ]
        for task in tasks
    }


def asked_of_request(way: Alternative) -> dict[str, Output]:
    """Return the inputs that a client gives, typed; edges must be right."""
    asked: dict[str, Output] = {}
    for task in way.tasks:
        for one in task.inputs.values():
            come = come_from(one.source)
            if come.step == REQUEST and one.dtype is not None and one.shape is not None:
                asked.setdefault(come.port, Output(one.dtype, one.shape))
    return asked


def given_to_client(way: Alternative) -> dict[str, Output]:
    """Return the outputs that a client gets, typed; edges must be right."""
    tasks = {task.name: task for task in way.tasks}
    given = {name: come_from(text) for name, text in way.outputs.items()}
    return {name: tasks[come.step].outputs[come.port] for name, come in given.items()}


def agree(given: Output, dtype: Dtype | None, shape: Shape | None) -> bool:
    """Whether a value may be taken as a type; None is any."""
    if dtype not in (None, given.dtype):
        return False
    if shape is None:
        return True
    return len(shape) == len(given.shape) and all(
        -1 in (one, other) or one == other for one, other in zip(shape, given.shape, strict=True)
    )


def spelt(dtype: Dtype, shape: Shape) -> str:
    """Return a type as a person reads it."""
    return f"{dtype.value} [{', '.join(str(axis) for axis in shape)}]"
