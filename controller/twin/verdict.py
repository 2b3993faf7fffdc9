"""Convergence: what still moves, or is left over, once faults have stopped."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from controller.anchor.decider import Anchor
from controller.namo.decider import Namo
from controller.records import TaskRecord, TaskState
from controller.scheduler.decider import Scheduler
from controller.twin.rules import BrokenRule, Rule
from protocols.messages.task import InstanceState

if TYPE_CHECKING:
    from controller.twin.run import Twin


def unsettled(twin: "Twin") -> BrokenRule | None:
    """Return the first thing that is not as it must be in the end; None: everything is."""
    for rule, text in _open(twin):
        return twin.checkers.broken(rule, text)
    return None


def _open(twin: "Twin") -> Iterator[tuple[Rule, str]]:
    yield from _answers(twin)
    holders, tasks, waiting = _holders(twin), twin.tasks(), unplaced(twin)
    for node in twin.nodes.values():
        if node.wanted and not node.alive:
            yield Rule.CONVERGENCE, f"{node.name} does not run"
        for task in node.core.tasks.held if node.alive else ():
            if task not in tasks or tasks[task].node != node.name:
                yield Rule.CONVERGENCE, f"{node.name} still holds {task}"
    for name, kept in tasks.items():
        waits = kept.service in waiting
        text = _amiss(name, kept, holders.get(name, []), twin.drained, waiting=waits)
        if text:
            yield Rule.CONVERGENCE, text
        else:
            yield from _memory(twin, name, kept)
    yield from _left_over(twin)


def _left_over(twin: "Twin") -> Iterator[tuple[Rule, str]]:
    """Yield what roles still wait for: they would say it, or keep it, for ever."""
    deciders = (one for host in twin.hosts.values() for one in host.deciders.values())
    for role in deciders:
        text = ""
        match role:
            case Namo():
                leaving = {name: one.leaving for name, one in role.books.services.items()}
                text = ", ".join(f"{who} to leave {name}" for name, who in leaving.items() if who)
            case Anchor():
                given = [name for name, one in role.handing.given.items() if one.records]
                text = ", ".join(f"{name} to be taken" for name in given)
            case Scheduler():
                adoption = role.adoption
                orphans = [
                    f"{node}: {adoption.orphans_of(node)}" for node in adoption.with_orphans()
                ]
                text = f"a grant of {', '.join(orphans)}" if orphans else ""
                if role.table.releases:
                    text += f" {len(role.table.releases)} releases to be confirmed"
        if text:
            yield Rule.CONVERGENCE, f"{role.name} still waits for {text}"


def _memory(twin: "Twin", name: str, task: TaskRecord) -> Iterator[tuple[Rule, str]]:
    node = twin.nodes.get(task.node)
    if node is None or not node.alive or name not in node.core.tasks.held:
        return
    shown = node.core.tasks.held[name].shown
    if shown is not None and shown.awaits is not None:
        yield Rule.CONVERGENCE, f"{name} still awaits its memory on {task.node}"
        return
    text = twin.checkers.memories.amiss(name, node.hands.memories.get(name, b""))
    if text:
        yield Rule.MEMORY, f"{text}; it runs on {task.node} under epoch {task.epoch}"


def unplaced(twin: "Twin") -> set[str]:
    """Return the services that say why they are not whole."""
    tasks = twin.tasks().values()
    return {one.service for one in tasks if one.state is TaskState.WAITING and one.reason}


def _holders(twin: "Twin") -> dict[str, list[str]]:
    """Return for each task the nodes on which it serves."""
    holders: dict[str, list[str]] = {}
    for node in twin.nodes.values():
        for holding in node.core.tasks.holdings() if node.alive else ():
            if holding.state is InstanceState.READY or holding.serving_epoch:
                holders.setdefault(holding.task, []).append(node.name)
    return holders


def _amiss(
    name: str, task: TaskRecord, holders: list[str], drained: set[str], *, waiting: bool
) -> str:
    """Return what is not as it must be with a task; empty when nothing is."""
    if task.state is TaskState.WAITING and task.reason:
        return ""
    # A change that waits for room leaves what ran before, and says why.
    waits = task.state is TaskState.MODIFYING and waiting and task.reason
    if task.state is not TaskState.RUNNING and not waits:
        return f"{name} is {task.state}: {task.reason}"
    if task.node in drained:
        return f"{name} runs on {task.node}, which was drained"
    if holders != [task.node]:
        return f"{name} is held by {holders}, not {task.node}"
    return ""


def _answers(twin: "Twin") -> Iterator[tuple[Rule, str]]:
    now_ms = twin.world.now_ms
    waiting = unplaced(twin)
    for client in twin.clients.values():
        for request, asked in client.requests.items():
            if len(asked.answers) > 1:
                text = f"{request} got {len(asked.answers)} different answers"
                raise twin.checkers.broken(Rule.DOUBLED, text)
            if asked.answered_ms is None and now_ms < asked.deadline_ms:
                yield Rule.CONVERGENCE, f"{request} is not answered: {asked.failure}"
        for name, job in client.jobs.items():
            if job.doubled:
                raise twin.checkers.broken(Rule.DOUBLED, f"{name}: {job.doubled}")
            if client.service in waiting:
                continue
            if job.accepted and job.open:
                yield Rule.LOST, f"{name} was accepted and has not ended"
            elif job.open:
                yield Rule.CONVERGENCE, f"{name} was not accepted"
