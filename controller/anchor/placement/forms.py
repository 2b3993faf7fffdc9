"""What it costs to run a task in one of its forms: the run, the start, the memory that it holds.

Only of tasks that have a choice. A request loses the run itself and, where the instance follows the
requests, a start as often as it finds none; what is kept ready for it is paid for all the time that
nobody asks. What misses the latency that was agreed counts many times. Every figure costs more the
larger it is, so that no option is taken that another one beats in all of them. Pure.
"""

from math import exp
from typing import Final, NamedTuple

import numpy as np

from controller.anchor.placement.columns import Floats, Ints
from controller.anchor.placement.facts import Request
from controller.anchor.placement.figures import Cost
from controller.anchor.placement.rules import Program
from protocols.messages.quality import Warmth

LATE: Final = 100.0
"""Times a millisecond beyond the task's share of the latency."""
HOLD_MS: Final = 1e-7
"""Of a byte that is held for a second in which nobody asks: 20 MB for a minute are 120 ms."""
HOLD_MOST_MS: Final = 5000.0
"""Of all that is held: less than another program that is less accurate costs."""
RESIDENT_MS: Final = 2e-8
"""Of a byte that an instance holds all the time: a millisecond is worth 50 MB."""
QUIET_S: Final = 300.0
"""Between two requests, where nothing is known of them..."""
QUIET_MAX_S: Final = 3600.0
"""... and at most."""
KEEP_S: Final = 60.0
"""How long an idle instance is taken to stay where its node learns that."""
SWITCH_MS: Final = 2.0
SWITCH_SHARE: Final = 0.1
"""Of the run as it is now: what another program has to gain before it is worth a change."""
REFUSED_MS: Final = 50_000.0
"""Of a program that a calibration on the node could not run: better than none."""
LEVELS: Final = (Warmth.FORM, Warmth.PROCESS, Warmth.INSTANCE)

Terms = dict[str, Floats]
"""The parts of a cost by name, for each node, in ms; a part that is 0 everywhere is left out."""


class Weighed(NamedTuple):
    """The terms of one program, and what stays of a deviceless instance, for each node."""

    terms: Terms
    level: Ints
    """Of `LEVELS`; 0 for tasks that are not deviceless."""
    cold: Floats
    """What a request that finds no instance waits for it, ms; 0 for tasks that always have one."""


def weigh(
    request: Request, program: Program, cost: Cost, wait: Floats, beta: Floats, now_ms: float
) -> Weighed:
    """Return what a program costs beside the wait for the processor and the memory set aside.

    `beta` is what a byte costs on each node, `now_ms` what a run takes as the task runs now.
    """
    terms: Terms = {"run": cost.run}
    level = np.zeros(len(wait), np.intp)
    cold = np.zeros(len(wait))
    bound = request.spec.qos.latency_ms
    if request.spec.deviceless is None:
        terms["resident"] = (beta + RESIDENT_MS) * cost.memory
    else:
        seldom, quiet_s = _seldom(request)
        waits = np.stack([cost.start, np.minimum(cost.wake, cost.start), np.zeros(len(wait))])
        held = HOLD_MS * quiet_s * np.stack([np.zeros(len(wait)), cost.held, cost.memory])
        holds = held * HOLD_MOST_MS / (held + HOLD_MOST_MS)
        starts = seldom * waits
        if bound is not None and not _fresh(request):
            # Raising any figure only takes levels away: what costs more is never cheaper.
            misses = cost.run + wait + waits > bound
            misses[-1] = False
            level = np.where(misses, np.inf, starts + holds).argmin(axis=0)
        terms["start"], terms["hold"] = _at(starts, level), _at(holds, level)
        cold = _at(waits, level)
    if bound is not None:
        terms["late"] = LATE * np.maximum(0.0, cost.run + wait - bound)
    if request.program not in (None, (program.name, program.provider)):
        terms["switch"] = np.full(len(wait), SWITCH_MS + SWITCH_SHARE * now_ms)
    if cost.refused:
        terms["refused"] = np.zeros(len(wait))
        terms["refused"][list(cost.refused)] = REFUSED_MS
    return Weighed({name: one for name, one in terms.items() if one.any()}, level, cold)


def _seldom(request: Request) -> tuple[float, float]:
    """Return which part of the requests finds no instance, and for how long nobody asks, s."""
    if not request.per_s or _fresh(request):
        return 1.0, QUIET_S
    deviceless = request.spec.deviceless
    kept_ms = deviceless.keep_alive_ms if deviceless is not None else 0
    kept_s = kept_ms / 1000 or KEEP_S
    return exp(-request.per_s * kept_s), min(QUIET_MAX_S, 1.0 / request.per_s)


def _fresh(request: Request) -> bool:
    deviceless = request.spec.deviceless
    return deviceless is not None and deviceless.fresh


def _at(values: Floats, level: Ints) -> Floats:
    chosen: Floats = np.take_along_axis(values, level[None, :], axis=0)[0]
    return chosen
