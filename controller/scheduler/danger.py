"""When quality is in danger: not at one noisy sample, and not only when it is broken.

A *use* is a measured value over what it may be: 1 is the bound. Danger begins when the use has been
high, or has been heading beyond the bound, in several consecutive reports over most of a second; it
ends when the use has been clearly lower for as long. What lies between changes nothing.
"""

from collections import deque
from typing import Final

from msgspec import Struct

from protocols.messages.sense import LinkReport, LoadReport

ENTER_USE: Final = 0.85
LEAVE_USE: Final = 0.70
TREND_USE: Final = 0.70
TREND_MS: Final = 2000
"""A use above TREND_USE that will be beyond 1 in so long counts as high already."""
LAST_MS: Final = 900
LAST_REPORTS: Final = 3
LAST_REPORTS_OF_NODE: Final = 2
"""Reports of load and link leave at a change: none in between means that nothing has changed."""
STALE_MS: Final = 5000
"""Without a measurement for so long nothing is known, and nothing in danger."""
HISTORY: Final = 8

LEAVE_CPU_PERCENT: Final = 90.0
ENTER_CPU_PERCENT: Final = 60.0
CALM_CPU_PERCENT: Final = 80.0
BETTER_BY_PERCENT: Final = 25.0
LEAVE_LOSS_PERCENT: Final = 30.0
CALM_LOSS_PERCENT: Final = 15.0
MOVE_QUIET_MS: Final = 10_000
"""A task is moved for its node's sake at most this often."""


class Watch(Struct):
    """One use of one task, service or node over time."""

    use: float = 0.0
    """The newest."""
    danger: bool = False
    since_ms: int = 0
    """When the present run of reports began that speak for a change."""
    reports: int = 0
    """How many they are."""
    needed: int = LAST_REPORTS
    history: deque[tuple[int, float]] | None = None

    def take(self, use: float, now_ms: int) -> bool:
        """Take in a measured use; returns whether it is in danger."""
        self.use = use
        if self.history is None:
            self.history = deque(maxlen=HISTORY)
        self.history.append((now_ms, use))
        against = use < LEAVE_USE if self.danger else use >= ENTER_USE or self._heading(now_ms)
        return self.step(against, now_ms)

    def step(self, against: bool | None, now_ms: int) -> bool:
        """Take in whether a report speaks against the present state; returns the new one.

        None: it speaks neither for nor against.
        """
        if against is None:
            return self.danger
        if not against:
            self.reports = 0
        else:
            if not self.reports:
                self.since_ms = now_ms
            self.reports += 1
            if self.reports >= self.needed and now_ms - self.since_ms >= LAST_MS:
                self.danger = not self.danger
                self.reports = 0
        return self.danger

    def again(self) -> None:
        """Begin anew: something was done about it."""
        self.danger, self.reports, self.history = False, 0, None

    def _heading(self, now_ms: int) -> bool:
        """Whether the use will be beyond its bound soon, if it goes on as it does."""
        first = self.history[0] if self.history else (now_ms, self.use)
        passed_ms = now_ms - first[0]
        if self.use < TREND_USE or passed_ms < LAST_MS:
            return False
        return self.use + (self.use - first[1]) / passed_ms * TREND_MS >= 1.0


class NodeWatch(Struct):
    """What is the matter with a node: load and link apart, each with its own thresholds."""

    load: Watch
    link: Watch

    @classmethod
    def new(cls) -> "NodeWatch":
        """Return one of a node with which nothing is the matter."""
        return cls(Watch(needed=LAST_REPORTS_OF_NODE), Watch(needed=LAST_REPORTS_OF_NODE))

    def quiet(self) -> bool:
        """Whether nothing is the matter, nor about to be."""
        return not any(one.danger or one.reports for one in (self.load, self.link))


def of_load(load: LoadReport) -> str:
    """Return in one sentence why this load endangers tasks; empty when it does not."""
    if load.cpu_percent >= LEAVE_CPU_PERCENT:
        return f"CPU at {load.cpu_percent:.0f} %"
    if load.throttled:
        return "the board is throttled"
    return ""


def watch_load(watch: Watch, load: LoadReport, now_ms: int) -> bool:
    """Take in a load report; returns whether the node's load is a lasting danger."""
    high = bool(of_load(load))
    calm = load.cpu_percent < CALM_CPU_PERCENT and not load.throttled
    return _watch(watch, high, calm, now_ms)


def of_link(link: LinkReport) -> str:
    """Return in one sentence why this link endangers tasks; empty when it does not."""
    if not link.carrier:
        return f"{link.interface} has lost its carrier"
    if link.loss_percent is not None and link.loss_percent >= LEAVE_LOSS_PERCENT:
        return f"{link.loss_percent:.0f} % of the probes over {link.interface} are lost"
    return ""


def watch_link(watch: Watch, link: LinkReport, now_ms: int) -> bool:
    """Take in a link report; returns whether the link is a danger: without carrier at once."""
    high = bool(of_link(link))
    calm = link.carrier and (link.loss_percent or 0.0) < CALM_LOSS_PERCENT
    return _watch(watch, high, calm, now_ms) or not link.carrier


def _watch(watch: Watch, high: bool, calm: bool, now_ms: int) -> bool:
    wanted, other = (calm, high) if watch.danger else (high, calm)
    return watch.step(True if wanted else False if other else None, now_ms)


def better(here: LoadReport | None, there: LoadReport | None, link: LinkReport | None) -> bool:
    """Whether a node with load `there` and link `link` is a clear gain over `here`."""
    if there is None or there.cpu_percent >= ENTER_CPU_PERCENT or of_load(there):
        return False
    if link is not None and of_link(link):
        return False
    return (
        here is None
        or here.cpu_percent - there.cpu_percent >= BETTER_BY_PERCENT
        or (here.cpu_percent < LEAVE_CPU_PERCENT)
    )


class Danger(Struct, frozen=True):
    """One indicator of one task that is in danger, or of its whole service."""

    task: str
    indicator: str
    measured: float
    target: float
    use: float
    """As watched: 1 is the bound."""
    whole: bool = False
    """Whether it is the service's, and the task is where most of it comes from."""

    @property
    def broken(self) -> bool:
        """Whether the bound is not kept any more."""
        return self.use >= 1.0

    def __str__(self) -> str:
        """Say it in a few words."""
        of = "the service's " if self.whole else ""
        figures = f"{self.measured:.4g}, its bound {self.target:.4g}"
        near = "" if self.broken else "near its bound: "
        return f"{of}{self.indicator} is {near}{figures}"
