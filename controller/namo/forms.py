"""A task as one of its variants runs it: what a variant says, and what it leaves to its task."""

from typing import TypeVar

from msgspec import structs

from controller.namo.model import Task, Variant
from protocols.manifest import ExecutorKind

_T = TypeVar("_T")


def formed(task: Task, variant: Variant) -> Task:
    """Return a task with the program of one of its variants; names and ports stay the task's."""
    own = variant.executor not in (None, task.executor)

    def said(given: _T | None, inherited: _T, absent: _T) -> _T:
        if given is not None:
            return given
        return absent if own else inherited

    return structs.replace(
        task,
        executor=variant.executor or task.executor,
        artifact=variant.artifact,
        constants=task.constants if variant.constants is None else variant.constants,
        limits=variant.limits or task.limits,
        expected_ms=variant.expected_ms,
        providers=said(variant.providers or None, task.providers, ()),
        interface=said(variant.interface, task.interface, None),
        functions=said(variant.functions, task.functions, ()),
        modules=said(variant.modules, task.modules, {}),
        arguments=said(variant.arguments, task.arguments, ()),
        carries=said(variant.carries, task.carries, {}),
        batch=said(variant.batch, task.batch, 0),
        infers=said(None, task.infers, ()),
        threads=said(None, task.threads, 0),
    )


def runs_models(task: Task) -> bool:
    """Whether a task or one of its variants is a model, which knows threads and providers."""
    kinds = {task.executor, *(one.executor or task.executor for one in task.variants)}
    return ExecutorKind.ONNX in kinds
