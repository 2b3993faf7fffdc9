"""What the tasks of a service need of each other: names, edges, types, order, quality.

Every function notes the problems it finds and goes on; the fields by themselves are valid here.
"""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from controller.namo.graph import needed, order
from controller.namo.lines import Path
from controller.namo.model import Input, Output, Service, Task
from controller.namo.reader import Problems, near
from protocols.base import Shape
from protocols.errors import UserError
from protocols.manifest import MAX_PORTS, Dtype, ExecutorKind
from protocols.messages.invocation import REQUEST
from protocols.qoais import INDICATORS, Bound, Direction, check
from protocols.topics import valid_name

MAX_NAME: Final = 64
LATENCY: Final = "latency_ms"
ACCELERATORS: Final = ("", "gpu", "npu")


class Source(NamedTuple):
    """Where a value comes from: a task of the service or `request`, and the port there."""

    step: str
    port: str


def source(text: str) -> Source:
    """Take `task.port` apart; a port may hold dots, a task may not."""
    step, _, port = text.partition(".")
    return Source(step, port)


def sources_of(service: Service) -> dict[str, list[str]]:
    """Return for each task the tasks that feed it."""
    names = {task.name for task in service.tasks}
    return {
        task.name: [
            step for one in task.inputs.values() if (step := source(one.source).step) in names
        ]
        for task in service.tasks
    }


def check_use_case(services: Sequence[Service], problems: Problems) -> None:
    """Hold the services against each other."""
    seen: dict[str, int] = {}
    for at, service in enumerate(services):
        if service.name in seen:
            problems.add(("services", at, "name"), f"{service.name!r} names another service too")
        seen[service.name] = at


def check_service(service: Service, path: Path, problems: Problems) -> None:
    """Hold a service together: names, every task by itself, edges, order, outputs, SLA."""
    _check_names(service, path, problems)
    for at, task in enumerate(service.tasks):
        _check_task(task, (*path, "tasks", at), problems)
    edges = _Edges(service, path, problems)
    edges.check_inputs()
    edges.check_outputs()
    sources = sources_of(service)
    _, cycle = order(sources)
    if cycle:
        problems.add((*path, "tasks"), f"the tasks {', '.join(cycle)} feed each other in a circle")
    elif edges.right:
        _check_use(service, sources, path, problems)
    _check_bounds(service, path, problems)


def _check_names(service: Service, path: Path, problems: Problems) -> None:
    seen: set[str] = set()
    for at, task in enumerate(service.tasks):
        where = (*path, "tasks", at, "name")
        if task.name == REQUEST:
            problems.add(where, "'request' stands for the client's inputs and names no task")
        if task.name in seen:
            problems.add(where, f"{task.name!r} names another task of this service too")
        seen.add(task.name)
        if len(f"{service.name}.{task.name}") > MAX_NAME:
            problems.add(
                where,
                f"'{service.name}.{task.name}', the task's name in the cell, "
                f"is longer than {MAX_NAME} characters",
            )


def _check_task(task: Task, path: Path, problems: Problems) -> None:
    for port in task.constants:
        if port in task.inputs:
            problems.add(
                (*path, "constants", port),
                f"the port {port!r} is fed twice, by a constant and as an input",
            )
    ports = len(task.inputs) + len(task.constants)
    if ports > MAX_PORTS:
        problems.add(path, f"{ports} inputs and constants, at most {MAX_PORTS} are allowed")
    if task.demand.accelerator not in ACCELERATORS:
        problems.add(
            (*path, "demand", "accelerator"),
            f"{task.demand.accelerator!r} is none of gpu, npu, or '' for none",
        )
    if task.providers and task.executor is not ExecutorKind.ONNX:
        problems.add(
            (*path, "providers"), f"only onnx tasks have providers, this one is {task.executor}"
        )
    if task.expected_ms is not None and task.expected_ms > task.limits.deadline_ms:
        problems.add(
            (*path, "expected_ms"),
            f"a run of {task.expected_ms:g} ms would be stopped by limits.deadline_ms, "
            f"which is {task.limits.deadline_ms}",
        )
    if len(set(task.nodes)) < len(task.nodes):
        problems.add((*path, "nodes"), "a node is named twice")


class _Edges:
    """Follows every edge of one service to its source."""

    def __init__(self, service: Service, path: Path, problems: Problems) -> None:
        self._service = service
        self._path = path
        self._problems = problems
        self._tasks = {task.name: task for task in service.tasks}
        self._asked: dict[str, tuple[str, Output]] = {}
        self.right = True
        """Whether every edge so far leads somewhere."""

    def check_inputs(self) -> None:
        """Check what feeds each task, and that both ends speak of the same tensor."""
        for at, task in enumerate(self._service.tasks):
            for port, one in task.inputs.items():
                where = (*self._path, "tasks", at, "inputs", port)
                come = source(one.source)
                if come.step == REQUEST and come.port:
                    self._check_request(f"{task.name}.{port}", come.port, one, where)
                    continue
                given = self._resolve(come, where)
                if given is not None and not _agree(given, one.dtype, one.shape):
                    wanted = _written(one.dtype or given.dtype, one.shape or given.shape)
                    self._problems.add(
                        where,
                        f"it takes {wanted}, but {one.source} gives "
                        f"{_written(given.dtype, given.shape)}",
                    )

    def check_outputs(self) -> None:
        """Check where the answers of the service come from."""
        for name, text in self._service.outputs.items():
            where = (*self._path, "outputs", name)
            come = source(text)
            if come.step == REQUEST:
                self._wrong(where, "an answer comes from a task, not from the request itself")
            else:
                self._resolve(come, where)

    def _check_request(self, target: str, port: str, one: Input, where: Path) -> None:
        if not valid_name(port):
            self._wrong(where, f"{port!r} cannot name an input of a request")
        elif one.dtype is None or one.shape is None:
            self._wrong(where, "it comes from the request: give its dtype and shape")
        else:
            asked = Output(one.dtype, one.shape)
            first, before = self._asked.setdefault(port, (target, asked))
            if not _agree(before, asked.dtype, asked.shape):
                self._problems.add(
                    where,
                    f"it takes request.{port} as {_written(asked.dtype, asked.shape)}, "
                    f"but {first} as {_written(before.dtype, before.shape)}",
                )

    def _resolve(self, come: Source, where: Path) -> Output | None:
        task = self._tasks.get(come.step)
        if not come.port:
            self._wrong(where, f"{come.step!r} is no source: write task.port or request.name")
        elif task is None:
            hint = near(come.step, [*self._tasks, REQUEST])
            self._wrong(where, f"there is no task {come.step!r} in this service{hint}")
        elif come.port not in task.outputs:
            hint = near(come.port, task.outputs)
            have = f"; it has {', '.join(task.outputs)}" if not hint else ""
            self._wrong(where, f"task {come.step!r} has no output {come.port!r}{hint}{have}")
        else:
            return task.outputs[come.port]
        return None

    def _wrong(self, where: Path, text: str) -> None:
        self.right = False
        self._problems.add(where, text)


def _check_use(
    service: Service, sources: dict[str, list[str]], path: Path, problems: Problems
) -> None:
    ends = [source(text).step for text in service.outputs.values()]
    used = needed(sources, ends)
    for at, task in enumerate(service.tasks):
        if task.name not in used:
            problems.add(
                (*path, "tasks", at),
                f"nothing uses what task {task.name!r} gives: name one of its outputs "
                "in the service's outputs, or remove it",
            )


def _check_bounds(service: Service, path: Path, problems: Problems) -> None:
    seen: set[str] = set()
    count = len(service.sla.bounds)
    for at, bound in enumerate(service.sla.all_bounds()):
        named = ("zone", bound.indicator) if at >= count else ("bounds", at)
        where = (*path, "sla", *named)
        text = _bound_problem(bound)
        if text:
            problems.add(where, text)
        if bound.indicator in seen:
            problems.add(where, f"the indicator {bound.indicator} has a bound already")
        seen.add(bound.indicator)


def _bound_problem(bound: Bound) -> str:
    if bound.indicator not in INDICATORS:
        return f"there is no indicator {bound.indicator!r}{near(bound.indicator, INDICATORS)}"
    try:
        check(bound)
    except UserError as error:
        return str(error)
    return _number_problem(bound)


def _number_problem(bound: Bound) -> str:
    indicator = INDICATORS[bound.indicator]
    if indicator.direction is Direction.LOWER and bound.at_most is None:
        return f"{indicator.name} is better the lower it is: give at_most"
    if indicator.direction is Direction.HIGHER and bound.at_least is None:
        return f"{indicator.name} is better the higher it is: give at_least"
    value = bound.at_least if bound.at_most is None else bound.at_most
    if value is not None and not (math.isfinite(value) and value >= 0):
        return f"{indicator.name} must be a number from 0"
    if value == 0 and indicator.name == LATENCY:
        return "latency_ms cannot be 0"
    return ""


def _agree(given: Output, dtype: Dtype | None, shape: Shape | None) -> bool:
    if dtype not in (None, given.dtype):
        return False
    if shape is None:
        return True
    return len(shape) == len(given.shape) and all(
        -1 in (one, other) or one == other for one, other in zip(shape, given.shape, strict=True)
    )


def _written(dtype: Dtype, shape: Shape) -> str:
    return f"{dtype.value} [{', '.join(str(axis) for axis in shape)}]"
