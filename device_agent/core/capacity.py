"""Whether one more task fits on this node; pure."""

from collections.abc import Sequence
from typing import Final

from device_agent.core.instances import Instance
from protocols.messages.presence import Inventory
from protocols.messages.quality import Tuning
from protocols.messages.task import Assign

HELD_MAX: Final = 256
"""Tasks of one node, whatever its inventory says."""
HOLDINGS_MAX_BYTES: Final = 24 * 1024
"""What a birth may say of them, so that it fits its frame with everything else."""
HOLDING_BYTES: Final = 64
"""One of them without its names."""
NAME_MAX: Final = 64
ENCODING_MAX: Final = 16
"""Characters of the names in a tuning, which the protocol leaves open."""


def named(tuning: Tuning) -> bool:
    """Whether the names in a tuning are no longer than names are."""
    longest = max(len(tuning.variant), len(tuning.provider))
    return longest <= NAME_MAX and len(tuning.encoding) <= ENCODING_MAX


def _told_bytes(one: Assign) -> int:
    names = one.task, one.tuning.variant, one.tuning.provider
    return HOLDING_BYTES + ENCODING_MAX + sum(len(name.encode()) for name in names)


def room(inventory: Inventory, instances: Sequence[Instance]) -> list[int]:
    """Return how many workers each instance may have: all have one, more while memory is free."""
    have = inventory.task_memory_bytes
    free = have - sum(one.manifest.limits.memory_bytes for one in instances)
    granted = []
    for one in instances:
        asked = one.manifest.limits.memory_bytes
        more = one.wanted - 1
        if have:
            more = min(more, max(0, free) // asked)
            free -= more * asked
        granted.append(1 + more)
    return granted


def refusal(node: str, inventory: Inventory, others: Sequence[Assign], wanted: Assign) -> str:
    """Say why a task cannot be held beside the others; empty when it can.

    Memory counts what manifests may take at most. While a new generation stands beside its old one
    only the new one counts: the old one leaves.
    """
    most = min(inventory.max_instances, HELD_MAX)
    if len(others) >= most:
        return f"node {node} holds {len(others)} tasks, its limit is {most}"
    if not named(wanted.tuning):
        return f"the names in the tuning of {wanted.task} have more than {NAME_MAX} characters"
    if sum(map(_told_bytes, others), _told_bytes(wanted)) > HOLDINGS_MAX_BYTES:
        return f"node {node} holds {len(others)} tasks: their names fill what it can tell of them"
    kind = wanted.manifest.kind.value
    if kind not in {one.kind for one in inventory.executors}:
        return f"node {node} has no {kind} executor"
    asked = wanted.manifest.limits.memory_bytes
    taken = sum(one.manifest.limits.memory_bytes for one in others)
    have = inventory.task_memory_bytes
    if have and taken + asked > have:
        return (
            f"node {node} has {have >> 20} MiB for tasks, {taken >> 20} MiB are taken and "
            f"{wanted.task} may need {asked >> 20} MiB"
        )
    return ""
