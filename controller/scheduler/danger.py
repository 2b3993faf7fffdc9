"""When a node endangers what runs on it, and which node of the envelope is better.

The thresholds differ for leaving and for entering (hysteresis), and a task that has just moved
stays: noise moves nothing.
"""

from typing import Final

from protocols.messages.sense import LinkReport, LoadReport

LEAVE_CPU_PERCENT: Final = 90.0
ENTER_CPU_PERCENT: Final = 60.0
BETTER_BY_PERCENT: Final = 25.0
LEAVE_LOSS_PERCENT: Final = 30.0
MOVE_QUIET_MS: Final = 10_000
"""A task is moved for danger at most this often."""


def of_load(load: LoadReport) -> str:
    """Return in one sentence why this load endangers tasks; empty when it does not."""
    if load.cpu_percent >= LEAVE_CPU_PERCENT:
        return f"CPU at {load.cpu_percent:.0f} %"
    if load.throttled:
        return "the board is throttled"
    return ""


def of_link(link: LinkReport) -> str:
    """Return in one sentence why this link endangers tasks; empty when it does not."""
    if not link.carrier:
        return f"{link.interface} has lost its carrier"
    if link.loss_percent is not None and link.loss_percent >= LEAVE_LOSS_PERCENT:
        return f"{link.loss_percent:.0f} % of the probes over {link.interface} are lost"
    return ""


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
