"""What the layers below may change about a task by themselves: as declared, with defaults."""

from typing import Final

from controller.namo.forms import runs_models
from controller.namo.model import Task
from protocols.messages.hierarchy import Autonomy, TaskSpec
from protocols.messages.quality import Leeway, Variant
from protocols.qoais import Bound, holds

THREADS_MAX: Final = 8
"""Threads inside one run of a model; other programs have those that they make."""
PRIORITY_STEPS: Final = 2
"""How far above its own a task's priority may be raised."""
PRIORITY_TOP: Final = 9
CPU_PERCENT_TOP: Final = 100.0 * 4096
"""More than any node has."""
NONE: Final = Leeway(moves=False)


def leeway_of(task: Task, spec: TaskSpec, autonomy: Autonomy) -> Leeway:
    """Return the leeway of a task; a service under manual control has none."""
    if autonomy is Autonomy.MANUAL:
        return NONE
    own = task.leeway
    named = {one.name for one in task.variants} if own.variants is None else set(own.variants)
    variants = [one for one in spec.variants if one.name in named]
    most = THREADS_MAX if runs_models(task) else 0
    threads = most if own.threads_max is None else own.threads_max
    replicas = max(task.replicas, 1) if own.replicas_max is None else own.replicas_max
    top = min(PRIORITY_TOP, task.priority + PRIORITY_STEPS)
    return Leeway(
        variants=tuple(one.name for one in variants if _keeps(one, spec.qos.bounds)),
        moves=own.moves,
        cpu_percent_max=min(CPU_PERCENT_TOP, 100.0 * max(replicas, 1) * max(threads, 1))
        if own.cpu_percent_max is None
        else own.cpu_percent_max,
        threads_max=threads,
        replicas_max=replicas,
        providers=task.providers if own.providers is None else own.providers,
        encodings=own.encodings,
        priority_max=top if own.priority_max is None else own.priority_max,
        rate_min_per_s=own.rate_min_per_s,
        decimations=own.decimations,
        functions=own.functions,
    )


def _keeps(variant: Variant, bounds: tuple[Bound, ...]) -> bool:
    """Whether a variant keeps what it declares itself of the task's share."""
    values: dict[str, float | str] = {
        one.indicator: one.level if one.number is None else one.number for one in variant.declared
    }
    return all(holds(one, values[one.indicator]) for one in bounds if one.indicator in values)
