"""When to try again: exponential, capped and jittered; pure.

A connection that breaks soon after it stood counts as one more failure, so a broker that accepts
and drops at once is approached ever more slowly. Only a connection that stood for `stable_ms`
starts the count anew. The jitter spreads a fleet whose broker came back.
"""

from typing import NamedTuple

from msgspec import Struct

from protocols.errors import TonaBug


class Policy(Struct, frozen=True):
    """Bounds of the waits, in milliseconds."""

    first_ms: int = 100
    cap_ms: int = 10_000
    stable_ms: int = 10_000

    def __post_init__(self) -> None:
        if not 0 < self.first_ms <= self.cap_ms or self.stable_ms <= 0:
            raise TonaBug(f"backoff needs 0 < first <= cap and stable > 0, not {self}")


class Retry(NamedTuple):
    """How long to wait, and how many attempts have failed in a row."""

    failures: int
    delay_ms: int


def step(policy: Policy, failures: int, up_ms: int, draw: float) -> Retry:
    """Decide on the wait after a connection that stood `up_ms` (0: never stood).

    `failures` is what the last step returned, 0 at first; `draw` is uniform in [0, 1). The wait
    lies in the upper half of its ceiling, so it is never near zero.
    """
    failed = 1 if up_ms >= policy.stable_ms else failures + 1
    doublings = min(failed - 1, policy.cap_ms.bit_length())
    ceiling_ms = min(policy.cap_ms, policy.first_ms << doublings)
    return Retry(failed, round(ceiling_ms * (0.5 + 0.5 * draw)))
