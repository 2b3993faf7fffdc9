"""What a task says of itself: ports, demands, variants, leeway, declarations."""

from typing import Final

from controller.namo.checks_outputs import check_outputs
from controller.namo.checks_program import check_program
from controller.namo.forms import formed, runs_models
from controller.namo.lines import Path
from controller.namo.model import Declarations, Output, Task, Variant
from controller.namo.reader import Problems
from controller.namo.wiring import agree, spelt
from protocols.manifest import MAX_PORTS, ExecutorKind
from protocols.qoais import INDICATORS, Category
from protocols.submission import near

ACCELERATORS: Final = ("", "gpu", "npu")
ENCODINGS: Final = ("deflate",)
FUNCTIONS: Final = ("changes",)
MAX_DECIMATION: Final = 64
_OWN_FIELDS: Final = ("accuracy_percent", "precision_bits")


def check_task(task: Task, path: Path, problems: Problems) -> None:
    """Check what a task says of itself."""
    if task.demand.accelerator not in ACCELERATORS:
        problems.add(
            (*path, "demand", "accelerator"),
            f"{task.demand.accelerator!r} is none of gpu, npu, or '' for none",
        )
    if len(set(task.nodes)) < len(task.nodes):
        problems.add((*path, "nodes"), "a node is named twice")
    _check_form(task, path, problems)
    _check_declared(task.declared, path, problems)
    _check_samples(task, path, problems)
    check_outputs(task, path, problems)
    _check_variants(task, path, problems)
    _check_leeway(task, (*path, "leeway"), problems)


def _check_form(task: Task, path: Path, problems: Problems) -> None:
    """Check what a task, or one of its variants as a task, says of its program."""
    for port in task.constants:
        if port in task.inputs:
            problems.add(
                (*path, "constants", port),
                f"the port {port!r} is fed twice, by a constant and as an input",
            )
    ports = len(task.inputs) + len(task.constants)
    if ports > MAX_PORTS:
        problems.add(path, f"{ports} inputs and constants, at most {MAX_PORTS} are allowed")
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
    check_program(task, path, problems)


def _check_variants(task: Task, path: Path, problems: Problems) -> None:
    seen: set[str] = set()
    for at, one in enumerate(task.variants):
        where = (*path, "variants", at)
        if one.name in seen:
            problems.add((*where, "name"), f"{one.name!r} names another variant of this task too")
        seen.add(one.name)
        _check_form(formed(task, one), where, problems)
        _check_constants(task, one, where, problems)
        _check_declared(one.declared, where, problems)


def _check_samples(task: Task, path: Path, problems: Problems) -> None:
    for port, one in task.samples.items():
        where = (*path, "samples", port)
        given = task.inputs.get(port)
        if given is None:
            problems.add(
                where, f"task {task.name!r} has no input {port!r}{near(port, task.inputs)}"
            )
        elif any(axis < 0 for axis in one.shape):
            problems.add(where, "a sample is of one shape: give each of its lengths")
        elif given.dtype is not None and not agree(
            Output(one.dtype, one.shape), given.dtype, given.shape
        ):
            wanted = spelt(given.dtype, one.shape if given.shape is None else given.shape)
            problems.add(
                where, f"it is {spelt(one.dtype, one.shape)}, but the input takes {wanted}"
            )


def _check_constants(task: Task, variant: Variant, path: Path, problems: Problems) -> None:
    """Check that a variant has the ports of its task: a constant feeds the same in both.

    A program of another executor may hold in itself what is a constant for the task's own.
    """
    if variant.constants is None or variant.executor not in (None, task.executor):
        return
    wanted = {port: (one.dtype, one.shape) for port, one in task.constants.items()}
    given = {port: (one.dtype, one.shape) for port, one in variant.constants.items()}
    if wanted != given:
        ports = ", ".join(wanted) or "none"
        problems.add(
            (*path, "constants"),
            f"a variant has the ports of its task: give the constants {ports}, of equal types",
        )


def _check_declared(declared: Declarations, path: Path, problems: Problems) -> None:
    for name, value in declared.items():
        text = _declared_problem(name, value)
        if text:
            problems.add((*path, "declared", name), text)


def _declared_problem(name: str, value: float | str) -> str:
    indicator = INDICATORS.get(name)
    if indicator is None:
        return f"there is no indicator {name!r}{near(name, INDICATORS)}"
    if name in _OWN_FIELDS:
        return f"{name} has a field of its own: write it beside declared"
    if indicator.measured:
        return f"{name} is measured, not declared ({indicator.how})"
    if indicator.category in (Category.SECURITY, Category.PRIVACY, Category.AUTONOMY):
        return f"{name} is agreed in the zone and kept by the network, not declared by a program"
    if indicator.quantitative == isinstance(value, float):
        known = indicator.quantitative or value in indicator.levels
        return "" if known else f"{name} has the levels {', '.join(indicator.levels)}"
    what = f"a number in {indicator.unit}" if indicator.quantitative else "a level"
    return f"{name} is {what}"


def _check_leeway(task: Task, path: Path, problems: Problems) -> None:
    leeway = task.leeway
    variants = [one.name for one in task.variants]
    for name in leeway.variants or ():
        if name not in variants:
            problems.add(
                (*path, "variants"), f"task {task.name!r} has no variant {name!r}"
                f"{near(name, variants)}",
            )  # fmt: skip
    for field, given, known in (
        ("encodings", leeway.encodings, ENCODINGS),
        ("functions", leeway.functions, FUNCTIONS),
    ):
        for one in given:
            if one not in known:
                problems.add((*path, field), f"{one!r} is none of {', '.join(known)}")
    for every in leeway.decimations:
        if not 1 <= every <= MAX_DECIMATION:
            problems.add((*path, "decimations"), f"{every} is not from 1 to {MAX_DECIMATION}")
    _check_least(task, path, problems)
    if leeway.providers and not runs_models(task):
        problems.add((*path, "providers"), f"only onnx tasks have providers, not {task.name}")


def _check_least(task: Task, path: Path, problems: Problems) -> None:
    """Check that what may be changed at most is no less than what the task begins with."""
    leeway = task.leeway
    if leeway.priority_max is not None and leeway.priority_max < task.priority:
        problems.add(
            (*path, "priority_max"),
            f"{leeway.priority_max} is below the task's own priority, {task.priority}",
        )
    if leeway.replicas_max is not None and 0 < leeway.replicas_max < task.replicas:
        problems.add(
            (*path, "replicas_max"),
            f"{leeway.replicas_max} is below the task's own replicas, {task.replicas}",
        )
