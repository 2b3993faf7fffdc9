"""When a broker that died comes back, and when it is given up. Pure."""

from typing import Final

BASE_S: Final = 0.05
CAP_S: Final = 5.0
STABLE_S: Final = 10.0
"""A life as long as this forgives the failures before it."""
FAILURES_MAX: Final = 20
"""In a row; about a minute and a half of trying."""


def failures_after(failures: int, lived_s: float) -> int:
    """Count the end of a life of `lived_s` seconds that came after `failures` bad ones."""
    return 1 if lived_s >= STABLE_S else failures + 1


def given_up(failures: int) -> bool:
    """Whether so many failures in a row are beyond mending by another restart."""
    return failures > FAILURES_MAX


def delay_s(failures: int, chance: float) -> float:
    """Return how long to wait before the next start; `chance` in [0, 1) spreads it by half."""
    if failures == 0:
        return 0.0
    full = min(CAP_S, BASE_S * 2.0 ** min(failures - 1, FAILURES_MAX))
    return full * (0.5 + 0.5 * chance)
