"""The share of the machine's cores that a task's processes get: affinity for whole cores, niceness.

Neither is a hard bound on a fraction of a core; that would take a control group of one's own, which
an unprivileged daemon seldom has. What cannot be set is said in a sentence for people.
"""

import os
from collections.abc import Iterable, Sequence
from math import ceil, log
from pathlib import Path
from typing import Final

from msgspec import Struct

from protocols.messages.quality import PRIORITY_DEFAULT

WEIGHT: Final = 1.25
"""One step of niceness is a weight of so much (kernel's `sched_prio_to_weight`)."""
NICE_STEPS: Final = 2
"""Steps of niceness for each step of priority."""
NICEST: Final = 19
KEENEST: Final = -20
LEAST_PART: Final = 0.01
"""Of a core; nobody is nice enough for less."""


class Share(Struct, frozen=True):
    """Where processes may run and how nice they are."""

    cores: frozenset[int]
    nice: int


def share_of(cpu_percent: float, priority: int, cores: Sequence[int], first: int) -> Share:
    """Return the share for so much of one core (0: no bound), on cores from the `first` on.

    A part of a core becomes the weight that it is of a usual process.
    """
    nice = NICE_STEPS * (PRIORITY_DEFAULT - priority)
    if cpu_percent <= 0:
        return Share(frozenset(cores), max(KEENEST, min(NICEST, nice)))
    count = max(1, min(len(cores), ceil(cpu_percent / 100)))
    part = max(LEAST_PART, min(1.0, cpu_percent / (100 * count)))
    nice += round(log(1 / part, WEIGHT))
    begin = first % len(cores)
    chosen = (*cores[begin:], *cores[:begin])[:count]
    return Share(frozenset(chosen), max(KEENEST, min(NICEST, nice)))


def usable_cores() -> list[int]:
    """Return the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def apply(share: Share, pids: Iterable[int]) -> str:
    """Give every thread of the processes its share; say what could not be given, if anything."""
    refused = set()
    for pid in pids:
        for thread in _threads(pid):
            try:
                os.sched_setaffinity(thread, share.cores)
            except ProcessLookupError:
                continue
            except OSError:
                refused.add("the cores it runs on cannot be set")
            try:
                if os.getpriority(os.PRIO_PROCESS, thread) != share.nice:
                    os.setpriority(os.PRIO_PROCESS, thread, share.nice)
            except ProcessLookupError:
                continue
            except PermissionError:
                refused.add("its weight cannot be raised on this node without CAP_SYS_NICE")
    return "; ".join(sorted(refused))


def _threads(pid: int) -> list[int]:
    try:
        return [int(one.name) for one in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
