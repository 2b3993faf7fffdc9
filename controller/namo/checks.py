"""What the tasks of a service need of each other: names, edges, types, order.

Every function notes the problems it finds and goes on; the fields by themselves are valid here.
"""

from controller.namo.checks_flow import check_alternatives, check_sinks, check_sources
from controller.namo.checks_quality import check_quality
from controller.namo.checks_task import check_task
from controller.namo.graph import needed, order
from controller.namo.lines import Path
from controller.namo.model import Alternative, Input, Output, Service, Task
from controller.namo.reader import Problems
from controller.namo.wiring import (
    INFER,
    MAX_NAME,
    Come,
    agree,
    come_from,
    is_inferred,
    sources_of,
    spelt,
)
from protocols.base import Shape
from protocols.manifest import ANY, ExecutorKind
from protocols.messages.invocation import REQUEST
from protocols.submission import near
from protocols.topics import valid_name


def check_service(service: Service, path: Path, problems: Problems) -> None:
    """Hold a service together: every way to do it, what feeds it, what it promises."""
    right = True
    for at, way in enumerate(service.ways()):
        where = (*path, "alternatives", at - 1) if at else path
        right &= _check_way(service.name, way, where, problems)
    check_quality(service, path, problems)
    if right:
        # Types can be compared once every edge leads somewhere.
        check_alternatives(service, path, problems)
        check_sources(service, path, problems)
    check_sinks(service, path, problems)


def _check_way(service: str, way: Alternative, path: Path, problems: Problems) -> bool:
    """Check one DAG: names, every task by itself, edges, order, outputs; True: edges are right."""
    _check_names(service, way, path, problems)
    for at, task in enumerate(way.tasks):
        check_task(task, (*path, "tasks", at), problems)
    edges = _Edges(way, path, problems)
    edges.check_inputs()
    edges.check_inferences()
    edges.check_outputs()
    sources = sources_of(way.tasks)
    _, cycle = order(sources)
    if cycle:
        problems.add((*path, "tasks"), f"the tasks {', '.join(cycle)} feed each other in a circle")
    elif edges.right:
        _check_use(way, sources, path, problems)
    return edges.right and not cycle


def _check_names(service: str, way: Alternative, path: Path, problems: Problems) -> None:
    seen: set[str] = set()
    for at, task in enumerate(way.tasks):
        where = (*path, "tasks", at, "name")
        if task.name == REQUEST:
            problems.add(where, "'request' stands for the client's inputs and names no task")
        if task.name in seen:
            problems.add(where, f"{task.name!r} names another task of this service too")
        seen.add(task.name)
        if len(f"{service}.{task.name}") > MAX_NAME:
            problems.add(
                where,
                f"'{service}.{task.name}', the task's name in the cell, "
                f"is longer than {MAX_NAME} characters",
            )


class _Edges:
    """Follows every edge of one DAG to its source."""

    def __init__(self, way: Alternative, path: Path, problems: Problems) -> None:
        self._way = way
        self._path = path
        self._problems = problems
        self._tasks = {task.name: task for task in way.tasks}
        self._asked: dict[str, tuple[str, Output]] = {}
        self.right = True
        """Whether every edge so far leads somewhere."""

    def check_inputs(self) -> None:
        """Check what feeds each task, and that both ends speak of the same tensor."""
        for at, task in enumerate(self._way.tasks):
            for port, one in task.inputs.items():
                where = (*self._path, "tasks", at, "inputs", port)
                come = come_from(one.source)
                if one.source == INFER:
                    self._check_rows(task, one.shape, where)
                    self._check_inferred(task, one, where)
                    continue
                if come.step == REQUEST and come.port:
                    self._check_rows(task, one.shape, where)
                    self._check_request(f"{task.name}.{port}", come.port, one, where)
                    continue
                given = self._resolve(come, where)
                if given is not None:
                    self._check_rows(task, given.shape if one.shape is None else one.shape, where)
                if given is not None and not agree(given, one.dtype, one.shape):
                    wanted = spelt(one.dtype or given.dtype, one.shape or given.shape)
                    self._problems.add(
                        where,
                        f"it takes {wanted}, but {one.source} gives "
                        f"{spelt(given.dtype, given.shape)}",
                    )

    def _check_rows(self, task: Task, shape: Shape | None, where: Path) -> None:
        """Check that an input of a task whose calls may share a run counts rows."""
        shares = task.batch or any(one.batch for one in task.variants)
        if shares and shape is not None and shape[:1] != (ANY,):
            self._problems.add(where, "with a batch its first axis must be -1: it counts the rows")

    def _check_inferred(self, task: Task, one: Input, where: Path) -> None:
        if not self._check_model(task, where):
            return
        if one.dtype is None or one.shape is None:
            self._wrong(where, "a module feeds it: give its dtype and shape")
        elif not is_inferred(task):
            self._wrong(where, f"modules feed all inputs of {task.name!r} or none")

    def _check_model(self, task: Task, where: Path) -> bool:
        """Check that a task which modules run is a model in all its forms."""
        kinds = (task.executor, *(one.executor or task.executor for one in task.variants))
        other = next((one for one in kinds if one is not ExecutorKind.ONNX), None)
        if other is not None:
            self._wrong(where, f"modules run onnx tasks only, {task.name!r} is {other}")
        return other is None

    def check_inferences(self) -> None:
        """Check which tasks modules may run."""
        for at, task in enumerate(self._way.tasks):
            where = (*self._path, "tasks", at, "infers")
            if len(set(task.infers)) < len(task.infers):
                self._problems.add(where, "a task is named twice")
            for name in task.infers:
                other = self._tasks.get(name)
                if other is None:
                    self._wrong(
                        where, f"there is no task {name!r} in this service{near(name, self._tasks)}"
                    )
                else:
                    self._check_model(other, where)

    def check_outputs(self) -> None:
        """Check where the answers of the service come from."""
        for name, text in self._way.outputs.items():
            where = (*self._path, "outputs", name)
            come = come_from(text)
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
            if not agree(before, asked.dtype, asked.shape):
                self._problems.add(
                    where,
                    f"it takes request.{port} as {spelt(asked.dtype, asked.shape)}, "
                    f"but {first} as {spelt(before.dtype, before.shape)}",
                )

    def _resolve(self, come: Come, where: Path) -> Output | None:
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
        elif is_inferred(task):
            self._wrong(where, f"task {come.step!r} gives its outputs to the module that runs it")
        else:
            return task.outputs[come.port]
        return None

    def _wrong(self, where: Path, text: str) -> None:
        self.right = False
        self._problems.add(where, text)


def _check_use(
    way: Alternative, sources: dict[str, list[str]], path: Path, problems: Problems
) -> None:
    ends = [come_from(text).step for text in way.outputs.values()]
    used = needed(sources, ends)
    for at, task in enumerate(way.tasks):
        if task.name not in used:
            problems.add(
                (*path, "tasks", at),
                f"nothing uses what task {task.name!r} gives: name one of its outputs "
                "in the service's outputs, or remove it",
            )
