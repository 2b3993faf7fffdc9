"""How tasks feed each other, as a document writes it: `TASK.PORT`, `request.NAME` and `infer`."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from controller.namo.model import Alternative, Output, Task
from protocols.base import Shape
from protocols.manifest import Dtype
from protocols.messages.invocation import REQUEST

MAX_NAME: Final = 64
"""Characters of a name in the cell."""
INFER: Final = "infer"
"""The source of an input that modules feed in the middle of their runs."""


class Come(NamedTuple):
    """Where a value comes from: a task of the service or `request`, and the port there."""

    step: str
    port: str


def come_from(text: str) -> Come:
    """Take `task.port` apart; a port may hold dots, a task may not."""
    step, _, port = text.partition(".")
    return Come(step, port)


def sources_of(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Return for each task the tasks that feed it, and those that run for it alone."""
    names = {task.name for task in tasks}
    called = {task.name for task in tasks if is_inferred(task)}
    return {
        task.name: [
            step for one in task.inputs.values() if (step := come_from(one.source).step) in names
        ]
        + [step for step in task.infers if step in called]
        for task in tasks
    }


def is_inferred(task: Task) -> bool:
    """Whether a task runs only when a module infers."""
    return all(one.source == INFER for one in task.inputs.values())


def together(tasks: Sequence[Task], groups: Mapping[str, str]) -> dict[str, str]:
    """Return the groups with every module beside the models that it runs."""
    found = dict(groups)
    for task in tasks:
        members = (task.name, *task.infers) if task.infers else ()
        joined = {found[one] for one in members if one in found}
        name = min(joined, default=task.name)
        found |= {step: name for step, group in found.items() if group in joined}
        found |= dict.fromkeys(members, name)
    return found


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
