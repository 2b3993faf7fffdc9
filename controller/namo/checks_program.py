"""What a task says of its program: how it is called, what it may import, what it remembers."""

from typing import Final

from controller.namo.lines import Path
from controller.namo.model import Task
from controller.namo.reader import Problems
from protocols.manifest import ANY, INTERFACES, ExecutorKind, HostFunction, Interface

TAKEN: Final = ("tona", "wasi_snapshot_preview1")
"""Module names that stand for host functions."""
MAX_STREAMS: Final = 2
"""Outputs of a WASI command: stdout and stderr."""


def check_program(task: Task, path: Path, problems: Problems) -> None:
    """Check what a task says of its program."""
    known = INTERFACES[task.executor]
    if task.interface is not None and task.interface not in known:
        can = f"it is one of {', '.join(known)}" if known else f"{task.executor} tasks have none"
        problems.add((*path, "interface"), f"'{task.interface}' is no interface of theirs: {can}")
        return
    called = task.interface or next(iter(known), None)
    if called is Interface.WASI:
        _check_command(task, path, problems)
    if called is not Interface.CORE:
        _check_no_module(task, path, problems)
    if task.arguments and called in (None, Interface.CORE):
        problems.add((*path, "arguments"), "only WASI commands and containers have arguments")
    for name in task.modules:
        if name in TAKEN:
            problems.add((*path, "modules", name), f"{name!r} is the name of the host's functions")
    if len(set(task.functions)) < len(task.functions):
        problems.add((*path, "functions"), "a function is named twice")
    _check_memory(task, path, problems)
    _check_carries(task, path, problems)
    _check_batch(task, path, problems)
    _check_threads(task, path, problems)
    _check_fresh(task, path, problems)


def _check_no_module(task: Task, path: Path, problems: Problems) -> None:
    """Check that a task has nothing that only modules of the guest ABI have."""
    what = f"only wasm tasks of the interface {Interface.CORE} have"
    if task.functions:
        problems.add((*path, "functions"), f"{what} host functions")
    if task.modules:
        problems.add((*path, "modules"), f"{what} linked modules")
    if task.infers:
        problems.add((*path, "infers"), f"{what} models to run")


def _check_command(task: Task, path: Path, problems: Problems) -> None:
    if len(task.inputs) + len(task.constants) != 1:
        problems.add((*path, "inputs"), "a WASI command has one input, its stdin, and no constant")
    if len(task.outputs) > MAX_STREAMS:
        problems.add((*path, "outputs"), "a WASI command has one output, stdout, or stderr besides")


def _check_memory(task: Task, path: Path, problems: Problems) -> None:
    remembers = HostFunction.MEMORY in task.functions or bool(task.carries)
    if remembers and not task.limits.state_bytes:
        problems.add(
            (*path, "limits", "state_bytes"),
            "the task remembers: say how many bytes at most with limits.state_bytes",
        )
    if task.limits.state_bytes and not remembers:
        problems.add(
            (*path, "limits", "state_bytes"),
            "nothing of this task remembers: let functions name 'memory', or give carries",
        )


def _check_carries(task: Task, path: Path, problems: Problems) -> None:
    if task.carries and task.executor is not ExecutorKind.ONNX:
        problems.add((*path, "carries"), f"only onnx tasks have carries, this is {task.executor}")
    if task.carries and task.replicas > 1:
        problems.add((*path, "replicas"), "a task with carries has one worker, for it remembers")
    for output, given in task.carries.items():
        if output in task.outputs:
            problems.add((*path, "carries", output), f"{output!r} is an output of the task too")
        if given in task.inputs or given in task.constants:
            problems.add((*path, "carries", output), f"the port {given!r} is fed twice")
    if len(set(task.carries.values())) < len(task.carries):
        problems.add((*path, "carries"), "an input is filled by two outputs")


def _check_threads(task: Task, path: Path, problems: Problems) -> None:
    if task.threads and task.executor is not ExecutorKind.ONNX:
        text = f"only onnx tasks have threads, this is {task.executor}"
        problems.add((*path, "threads"), text)


def _check_fresh(task: Task, path: Path, problems: Problems) -> None:
    if task.deviceless is None or not task.deviceless.fresh:
        return
    where = (*path, "deviceless", "fresh")
    if task.executor is not ExecutorKind.ONNX:
        text = "only onnx tasks are fresh by word: wasm is always, a container with interface once"
        problems.add(where, text)
    if task.deviceless.keep_alive_ms is not None:
        problems.add(where, "a fresh instance ends with its run: leave keep_alive_ms out")
    if task.carries:
        problems.add(where, "a fresh instance remembers nothing: leave carries out")
    if task.batch:
        problems.add(where, "requests share no fresh instance: leave batch out")


def _check_batch(task: Task, path: Path, problems: Problems) -> None:
    if not task.batch:
        return
    where = (*path, "batch")
    if task.executor is not ExecutorKind.ONNX:
        problems.add(where, f"only onnx tasks have a batch, this is {task.executor}")
    if task.carries:
        problems.add(where, "what a model carries is of one call: it has no batch")
    for name, one in task.outputs.items():
        if one.shape[:1] != (ANY,):
            problems.add(where, f"the first axis of output {name!r} must be -1: it counts the rows")
