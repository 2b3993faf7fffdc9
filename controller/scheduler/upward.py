"""What a scheduler tells the anchor of a task: reports of its state, and escalations."""

from typing import Final

from controller.decider import Send, ToRole
from controller.scheduler.copies import Copy, CopyState, TaskEntry
from controller.scheduler.nodes import NodeTable
from protocols.errors import Blame
from protocols.messages import Escalation, TaskReport
from protocols.messages.hierarchy import MAX_FAILURES, Attempt, NodeState
from protocols.messages.task import InstanceState

MAX_ATTEMPTS: Final = 64
"""Of an escalation; an envelope may have more nodes."""
_TOLD: Final = {
    CopyState.ASSIGNED: InstanceState.DEPLOYING,
    CopyState.READY: InstanceState.READY,
    CopyState.FAILED: InstanceState.FAILED,
    CopyState.GONE: InstanceState.STOPPED,
}


def report(entry: TaskEntry, copy: Copy, cause: str) -> Send:
    """Return the report of a task's current copy."""
    body = TaskReport(
        entry.task,
        copy.generation,
        copy.node,
        copy.epoch,
        _TOLD[copy.state],
        copy.reason,
        Blame.ENVIRONMENT if copy.state is CopyState.GONE else copy.blame,
        variant=copy.tuning.variant,
        awaits=copy.origin is not None,
        attempts=tuple(entry.failures.values())[-MAX_FAILURES:],
    )
    return Send(ToRole(entry.anchor), body, copy.cause or cause, entry.tenant)


def escalation(entry: TaskEntry, nodes: NodeTable, cause: str) -> Send:
    """Return the escalation of a task that its envelope cannot hold, with what was tried."""
    if entry.epochs_left() == 0:
        problem = "the leased epochs are used up"
    else:
        problem = "no node of the envelope can run the task"
    attempts = tuple(
        entry.failures.get(node, Attempt(f"run on {node}", str(nodes.state(node))))
        for node in entry.grant.nodes
        if node in entry.failures or nodes.state(node) is not NodeState.ONLINE
    )[:MAX_ATTEMPTS]
    body = Escalation(
        entry.escalated,
        entry.task,
        entry.grant.generation,
        problem,
        attempts,
        epoch_seen=entry.next_epoch - 1,
    )
    return Send(ToRole(entry.anchor), body, cause, entry.tenant)
