"""Whether one more task fits on this node; pure.

Tasks that always hold their memory fit together, and beside them any one that holds it only while
it is asked: of those as many may be held as a node tells of (`room` says whose turn it is).
"""

from collections.abc import Iterable, Sequence
from typing import Final

from device_agent.core.instances import Instance
from protocols.manifest import Manifest
from protocols.messages.presence import Inventory
from protocols.messages.quality import Tuning
from protocols.messages.task import RESTING_SHARE, Assign, is_elastic

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


def elastic(instance: Instance) -> bool:
    """Whether an instance holds its memory only while it is asked."""
    return is_elastic(instance.deviceless, instance.manifest, instance.tuning.warmth)


def _taken(each: Iterable[tuple[Manifest, bool]]) -> tuple[int, int]:
    """Return what those take who always hold their memory, and the most that any other may."""
    always = most = 0
    for manifest, turns in each:
        size = manifest.limits.memory_bytes
        if turns:
            most = max(most, size)
        else:
            always += size
    return always, most


def room(inventory: Inventory, instances: Sequence[Instance]) -> list[int]:
    """Return how many workers each instance may have: all have one, more while memory is free."""
    have = inventory.task_memory_bytes
    always, most = _taken((one.manifest, elastic(one)) for one in instances)
    free = have - always - most
    granted = []
    for one in instances:
        asked = one.manifest.limits.memory_bytes
        more = one.wanted - 1
        if have and elastic(one):
            more = min(more, max(0, have - always - asked) // asked)
        elif have:
            more = min(more, max(0, free) // asked)
            free -= more * asked
        granted.append(1 + more)
    return granted


def refusal(node: str, inventory: Inventory, others: Sequence[Assign], wanted: Assign) -> str:
    """Say why a task cannot be held beside the others; empty when it can.

    Memory counts what manifests may take at most. While a new generation stands beside its old one
    only the new one counts: the old one leaves.
    """
    most, counted = inventory.max_instances, sum(map(_counts, (*others, wanted)))
    if counted > most or len(others) >= HELD_MAX:
        return f"node {node} holds {len(others)} tasks, its limit is {min(most, HELD_MAX)}"
    if not named(wanted.tuning):
        return f"the names in the tuning of {wanted.task} have more than {NAME_MAX} characters"
    if sum(map(_told_bytes, others), _told_bytes(wanted)) > HOLDINGS_MAX_BYTES:
        return f"node {node} holds {len(others)} tasks: their names fill what it can tell of them"
    kind = wanted.manifest.kind.value
    if kind not in {one.kind for one in inventory.executors}:
        return f"node {node} has no {kind} executor"
    asked = wanted.manifest.limits.memory_bytes
    have = inventory.task_memory_bytes
    always, most = _taken((one.manifest, _turns(one)) for one in (*others, wanted))
    if have and always + most > have:
        taken = always + most - asked
        return (
            f"node {node} has {have >> 20} MiB for tasks, {taken >> 20} MiB are taken and "
            f"{wanted.task} may need {asked >> 20} MiB"
        )
    return ""


def _counts(assign: Assign) -> float:
    """Return what a task counts as, of the instances that a node takes."""
    return RESTING_SHARE if _turns(assign) else 1.0


def _turns(assign: Assign) -> bool:
    return is_elastic(assign.deviceless, assign.manifest, assign.tuning.warmth)
