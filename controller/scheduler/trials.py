"""Trials: an action is checked against what was before and what was predicted.

After an action the service is left alone until the task runs in the new way and enough has been
measured. What has not helped is taken back, and not tried again for a while that grows each time;
what has helped stays.
"""

from enum import StrEnum
from typing import Final

from msgspec import Struct

from controller.scheduler.danger import ENTER_USE
from controller.scheduler.feeds import Data
from controller.scheduler.levers import Option
from protocols.messages.quality import Tuning

APPLY_MS: Final = 15_000
"""What a node may take to run a task in the new way."""
SETTLE_MS: Final = 800
"""Requests that were under way at the change are not counted."""
SAMPLES: Final = 3
FAIL_MS: Final = 1500
"""An action is only found to have failed by measurements of so long; to have helped, sooner."""
CHECK_MS: Final = 10_000
"""Without enough measurements for so long the action stays, unjudged."""
MIN_GAIN: Final = 0.10
"""An action has helped if the use is lower by this share, or out of danger."""
BAR_FIRST_MS: Final = 30_000
BAR_MAX_MS: Final = 600_000
MAX_BARS: Final = 256


class Verdict(StrEnum):
    """What a trial has shown."""

    OPEN = "open"
    HELPED = "helped"
    FAILED = "failed"
    """It did not help, or made things worse."""
    UNTAKEN = "untaken"
    """The node has not taken it."""
    UNJUDGED = "unjudged"
    """Nobody used the service meanwhile."""


class Trial(Struct):
    """One action under way."""

    option: Option
    indicator: str
    use_before: float
    use_predicted: float
    tuning: Tuning
    """As before it."""
    node: str
    data: Data
    began_ms: int
    relaxes: bool = False
    """Whether it takes an action back because the danger is long over."""
    applied_ms: int | None = None
    measuring: bool = False
    whole: bool = False
    """Whether it is to help the service as a whole, not only its task."""


def judge(trial: Trial, use: float | None, samples: int, now_ms: int) -> Verdict:
    """Judge an action by the use it has led to; `samples` were measured since it was settled."""
    if trial.applied_ms is None:
        return Verdict.UNTAKEN if now_ms - trial.began_ms >= APPLY_MS else Verdict.OPEN
    if not trial.measuring or use is None or samples < SAMPLES:
        waited_ms = now_ms - trial.applied_ms
        return Verdict.UNJUDGED if waited_ms >= CHECK_MS else Verdict.OPEN
    if use < ENTER_USE:
        return Verdict.HELPED
    if not trial.relaxes and use <= trial.use_before * (1.0 - MIN_GAIN):
        return Verdict.HELPED
    enough = now_ms - trial.applied_ms >= SETTLE_MS + FAIL_MS
    return Verdict.FAILED if enough else Verdict.OPEN


class _Bar(Struct):
    until_ms: int
    times: int


class Bars:
    """Actions that are not tried again for a while, by task and name."""

    def __init__(self) -> None:
        self._bars: dict[tuple[str, str], _Bar] = {}

    def put(self, task: str, key: str, now_ms: int) -> None:
        """Bar an action, for twice as long as the last time."""
        bar = self._bars.pop((task, key), None)
        times = 0
        if bar is not None and now_ms - bar.until_ms < BAR_MAX_MS:
            times = bar.times + 1
        wait_ms = min(BAR_MAX_MS, BAR_FIRST_MS << min(times, 16))
        self._bars[task, key] = _Bar(now_ms + wait_ms, times)
        if len(self._bars) > MAX_BARS:
            del self._bars[next(iter(self._bars))]

    def barred(self, task: str, key: str, now_ms: int) -> bool:
        """Whether an action may not be tried now."""
        bar = self._bars.get((task, key))
        return bar is not None and now_ms < bar.until_ms

    def clear(self, task: str) -> None:
        """Forget what was tried under another envelope."""
        for key in [key for key in self._bars if key[0] == task]:
            del self._bars[key]
