"""Who dies or is cut off at which step of a handover, dealt so that no pair is left out.

A step is a message; the fault strikes when it is about to leave. Each handover is dealt a pair of
step and victim that its kind can come to; those that have struck least come first.
"""

from collections.abc import Callable, Iterable
from enum import StrEnum
from random import Random
from typing import Final

from msgspec import Struct

from controller.decider import Send, ToNode
from protocols.messages import (
    AnchorMoved,
    AnchorOffer,
    AnchorTaken,
    AnchorTransfer,
    Birth,
    Body,
    Death,
    EnvelopeGrant,
    EnvelopeRevoke,
    HandoverAnswer,
    HandoverCommand,
    HandoverComplete,
    HandoverRequest,
    HandoverRequired,
    Measurement,
    NodeSummary,
    Relinquished,
)


class Way(StrEnum):
    """What has a node go to another cell."""

    BY_HAND = "by hand"
    MEASURED = "measured"
    CONDITIONAL = "conditional"
    LOST = "lost link"


CONDITIONAL: Final = "conditional HandoverCommand"
"""Apart from the command that is obeyed at once."""
PLANNED: Final = frozenset({Way.BY_HAND, Way.MEASURED, Way.CONDITIONAL})
_MEASURED: Final = frozenset({Way.MEASURED, Way.CONDITIONAL})
_ANCHORS: Final = (AnchorOffer, AnchorTaken, AnchorTransfer, AnchorMoved)
_KINDS: Final[dict[type[Struct], frozenset[Way]]] = {
    Measurement: _MEASURED,
    HandoverRequired: _MEASURED,
    HandoverRequest: PLANNED,
    HandoverAnswer: PLANNED,
    HandoverCommand: frozenset({Way.BY_HAND, Way.MEASURED}),
    **dict.fromkeys(
        (
            Birth,
            NodeSummary,
            EnvelopeRevoke,
            Relinquished,
            EnvelopeGrant,
            HandoverComplete,
            Death,
            *_ANCHORS,
        ),
        frozenset(Way),
    ),
}
STEPS: Final[dict[str, frozenset[Way]]] = {
    **{kind.__name__: ways for kind, ways in _KINDS.items()},
    CONDITIONAL: frozenset({Way.CONDITIONAL}),
}
"""Of the protocol, and the handovers that come to it."""
ANCHOR_STEPS: Final = frozenset(kind.__name__ for kind in _ANCHORS)
"""Where each cell has an anchor."""
VICTIMS: Final = ("source", "target", "anchor", "node")


def step_of(body: Body) -> str:
    """Return the step that a message is; empty: none."""
    if isinstance(body, HandoverCommand) and body.conditional:
        return "" if body.cancelled else CONDITIONAL
    return type(body).__name__ if type(body) in _KINDS else ""


def node_of(body: Body, send: Send | None = None) -> str:
    """Return whose handover a message of a step belongs to; empty: nobody knows."""
    if isinstance(body, HandoverComplete):
        return send.to.node if send is not None and isinstance(send.to, ToNode) else ""
    if isinstance(body, _ANCHORS):
        return of_service(body.service)
    if isinstance(body, EnvelopeGrant):
        return of_service(body.service)
    named = getattr(body, "node", None)
    return str(named) if named else of_service(getattr(body, "task", "").partition(".")[0])


def of_service(service: str) -> str:
    """Return the node that a service is bound to; empty: it is none of the play's."""
    number = service.removeprefix("service-")
    return f"node-{int(number):04d}" if number.isdigit() else ""


class Armed(Struct):
    """A fault that waits for its step."""

    step: str
    victim: str
    node: str
    source: str
    target: str
    cut: bool
    for_ms: int


class Deck:
    """Pairs of step and victim, dealt so that all of them strike about as often."""

    def __init__(self, dice: Random, steps: Iterable[str]) -> None:
        self._pairs = [(step, victim) for step in steps for victim in VICTIMS]
        dice.shuffle(self._pairs)
        self.crashes = {step: dict.fromkeys(VICTIMS, 0) for step, _ in sorted(self._pairs)}
        self.cuts = {step: dict.fromkeys(VICTIMS[:3], 0) for step in self.crashes}

    def deal(self, suits: Callable[[str], bool]) -> tuple[str, str]:
        """Return the pair that has struck least among those whose step suits."""
        found = [one for one in self._pairs if suits(one[0])]
        pair = min(found, key=lambda one: self.crashes[one[0]][one[1]])
        self._pairs.remove(pair)
        self._pairs.append(pair)
        return pair

    def struck(self, armed: Armed) -> None:
        """Count a fault."""
        table = self.cuts if armed.cut else self.crashes
        table[armed.step][armed.victim] += 1
