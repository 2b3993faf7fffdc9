"""What can be chosen of a testbed, in words; light, for the command line loads it each time."""

from enum import StrEnum
from typing import Final

SWITCH_MS: Final = 50.0
"""What a single radio takes from one cell to the next: an LTE handover interrupts for 30 to 50 ms,
one of 5G NR for somewhat less, a Wi-Fi roam for as much or far longer."""
SWITCH_MAX_MS: Final = 1000.0


class Radios(StrEnum):
    """How many links a node has at once."""

    ONE = "1"
    TWO = "2"
    BOTH = "both"

    def alone(self, nodes: int) -> int:
        """Return how many of so many nodes have a single radio."""
        return {Radios.ONE: nodes, Radios.TWO: 0, Radios.BOTH: nodes // 2}[self]


class Address(StrEnum):
    """What becomes of the address of a node with one radio in another cell."""

    KEEP = "keep"
    """As in a mobile network, or a Wi-Fi of many access points: every gateway is reached too."""
    CHANGE = "change"
    """Each cell is a network of its own."""


class Ask(StrEnum):
    """Where the task is that is asked."""

    OWN = "own"
    """On the node, which asks it with what a sensor of its own gives: nothing crosses the air."""
    DEVICE = "device"
    """On the node; its client stands at a gateway."""
    EDGE = "edge"
    """At the edge; its client stands beside the node."""


class By(StrEnum):
    """Who brings nodes to other cells; nobody else does, but a node whose link is lost."""

    TRACE = "trace"
    """An operator, whenever the trace came to another cell."""
    SIGNALS = "signals"
    """Whoever controls mobility, by what nodes measure."""
    RESTART = "restart"
    """Nobody: the device agent is started anew in the other cell."""

    @property
    def decides(self) -> str:
        """Who decides on what nodes measure, as in `[mobility]`."""
        return "ts" if self is By.SIGNALS else "nobody"
