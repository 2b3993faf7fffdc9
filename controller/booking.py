"""How much task memory is set aside for a task on a node. Pure.

A task that is always there is set aside in full. An *elastic* one (`protocols.messages.task`) holds
memory only while it is asked, so that it counts with a share of what it may take: the part of the
time in which somebody asks. A node has room for all that is booked, and beside that for any one of
its elastic tasks in full: whoever's turn it is can be served there, one after the other at worst.
"""

from math import exp
from typing import Final

from controller.records import TaskRecord
from protocols.messages.hierarchy import EnvelopeGrant, TaskSpec
from protocols.messages.quality import Leeway, Tuning, Warmth
from protocols.messages.task import is_elastic

SHARES: Final = (1 / 128, 1 / 32, 1 / 8, 1 / 2)
"""What an elastic task may count as, of what it may take; above the last one it counts in full."""
HOLD_S: Final = 5.0
"""So long a request is taken to hold memory: the start, the run, and a moment after it."""
PROCESS_SHARE: Final = 1 / 2
"""At least so much where a process stays that has loaded the program."""


def full_bytes(spec: TaskSpec, tuning: Tuning, leeway: Leeway) -> int:
    """Return what one node has to have for a task, whichever granted variant it runs."""
    names = {tuning.variant, *leeway.variants}
    found = [one.manifest for one in spec.variants if one.name in names]
    if names - {one.name for one in spec.variants}:
        found.append(spec.manifest)
    return max(one.limits.memory_bytes for one in found)


def share(warmth: Warmth, per_s: float) -> float:
    """Return the part of its memory that an elastic task counts as; `per_s` 0: not known."""
    awake = 1.0 - exp(-per_s * HOLD_S)
    found = next((one for one in SHARES if awake <= one), 1.0)
    return max(found, PROCESS_SHARE) if warmth is Warmth.PROCESS else found


def booked_bytes(spec: TaskSpec, tuning: Tuning, leeway: Leeway, per_s: float) -> int:
    """Return what is set aside for a task on each of its nodes."""
    full = full_bytes(spec, tuning, leeway)
    if not is_elastic(spec.deviceless, spec.manifest, tuning.warmth):
        return full
    return min(full, int(full * share(tuning.warmth, per_s)) + 1)


def may_grow_to(task: TaskRecord) -> int:
    """Return what a task may take on a node beyond what is set aside; 0: nothing beyond."""
    return _grows(task.held or task.spec, task.tuning, task.leeway)


def may_grow_to_by(grant: EnvelopeGrant) -> int:
    """Return the same of the task that a grant is for."""
    return _grows(grant.spec, grant.tuning, grant.leeway)


def _grows(spec: TaskSpec, tuning: Tuning, leeway: Leeway) -> int:
    if not is_elastic(spec.deviceless, spec.manifest, tuning.warmth):
        return 0
    return full_bytes(spec, tuning, leeway)


def least_bytes(spec: TaskSpec) -> int:
    """Return the least that a task can count as on a node, for whoever does not place it."""
    full = spec.manifest.limits.memory_bytes
    if is_elastic(spec.deviceless, spec.manifest, Warmth.FORM):
        return int(full * SHARES[0]) + 1
    return full
