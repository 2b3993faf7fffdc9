"""When a node asks anew who may sign what it runs, and what it says of that.

Only nodes outside loopback load this. What is signed no more is struck while the node runs, so it
asks now and then even when it fetches nothing.
"""

from collections.abc import Callable
from typing import Final

from msgspec import structs

from device_agent.core.commands import CheckTrust
from device_agent.core.events import TrustChecked
from device_agent.core.timers import Key
from device_agent.core.turn import Turn
from protocols.messages.presence import Trust

FIRST_MS: Final = 5_000
"""After a welcome; spread, for a whole cell may be welcomed at once."""
EVERY_MS: Final = 6 * 3_600_000
AGAIN_MS: Final = 600_000
"""After one that failed."""
_TIMER: Final[Key] = ("trust", "")


class Trusting:
    """What this node trusts; `again` has the birth said once more when that has changed."""

    def __init__(self, turn: Turn, trust: Trust, again: Callable[[str], None]) -> None:
        self._turn = turn
        self.trust = trust
        self._again = again
        self._due_ms: float | None = None
        """When the next check is due; None: none was made or asked for."""

    def welcomed(self) -> None:
        """Look soon, unless a check is due anyhow."""
        if self._due_ms is None or self.trust.problem:
            self._set(FIRST_MS)

    def on_timer(self) -> None:
        """Ask, and once more after a while whatever comes of it."""
        self._turn.out.append(CheckTrust(self._turn.store_urls, "trust"))
        self._set(EVERY_MS)

    def checked(self, event: TrustChecked) -> None:
        """Take in what came of it; what has changed is told."""
        trust = event.trust
        if trust.problem:
            self._set(AGAIN_MS)
            trust = structs.replace(self.trust, problem=trust.problem)
        if trust != self.trust:
            self.trust = trust
            self._again("trust")

    def _set(self, wait_ms: int) -> None:
        self._due_ms = self._turn.now_ms + self._turn.spread(wait_ms)
        self._turn.timers.set(_TIMER, self._due_ms)
