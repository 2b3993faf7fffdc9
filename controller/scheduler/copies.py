"""Tasks inside their envelopes: which copy serves, which one is being prepared beside it.

A *copy* is one assignment of a task to a node under an epoch of the block that the TA leased.
A planned move prepares the next copy while the current one serves (make before break); after a
loss the next copy is all there is.
"""

from enum import StrEnum
from typing import Final

from msgspec import Struct

from protocols.errors import Blame
from protocols.manifest import Manifest
from protocols.messages.hierarchy import Attempt, EnvelopeGrant
from protocols.messages.quality import Tuning
from protocols.messages.task import InstanceState, Origin

FAULTS_ENOUGH: Final = 2
"""Nodes on which an artifact has failed by its own fault; no further one is tried."""


class CopyState(StrEnum):
    """What the scheduler knows of a copy."""

    ASSIGNED = "assigned"
    """Sent, not yet READY."""
    READY = "ready"
    FAILED = "failed"
    GONE = "gone"
    """Its node is lost."""


Stamp = tuple[int, int]
"""Incarnation and number of a node's frame: what it said later is greater."""


class Copy(Struct):
    """One assignment."""

    node: str
    epoch: int
    generation: int
    grant: EnvelopeGrant
    """What it was assigned under: while a newer generation is prepared, routes follow this one."""
    state: CopyState = CopyState.ASSIGNED
    reported: InstanceState | None = None
    sent_ms: int = 0
    reason: str = ""
    blame: Blame | None = None
    """Whose fault it is that it failed, as its node says."""
    cause: str = ""
    heard: Stamp = (0, 0)
    """Of the last word about it: a broker may reorder what comes over different topics."""
    orderly: bool = False
    """Whether its node, now lost, had said farewell: then there is nothing to wait for."""
    highest: int = 0
    """The highest epoch its node was given: a newer generation may have failed beside it."""
    tuning: Tuning = Tuning()
    """How it runs, or is to run as last told."""
    number: int = 0
    """Of the last Tune that it was sent; 0: its assignment said it all."""
    tuned: int = 0
    """Of the last Tune that it has confirmed."""
    tune_sent_ms: int = 0
    origin: Origin | None = None
    """Whose memory it waits for before it runs anything; None: it has its own."""
    remembers: str = ""
    """Digest of what it has of that; empty: nothing."""
    cell: str = ""
    """Of its node, where that is another one than ours."""

    def __post_init__(self) -> None:
        """Begin with its own epoch."""
        self.highest = max(self.highest, self.epoch)


class TaskEntry(Struct):
    """A granted task."""

    grant: EnvelopeGrant
    anchor: str
    tenant: str
    granted_ms: int
    first_epoch: int
    """The first that this scheduler may give; lower ones were given before its start."""
    next_epoch: int
    follows_epoch: int | None = None
    """After which the first copy that this scheduler gives goes on; None: it has given none."""
    current: Copy | None = None
    """The copy that routes point to."""
    coming: Copy | None = None
    """The copy that will replace it when it is ready."""
    further: dict[str, Copy] = {}
    """Copies that serve beside the current one, by node; the newest last."""
    failures: dict[str, Attempt] = {}
    """Why this envelope's nodes could not run the task, by node."""
    moved_ms: int = -(10**12)
    escalated: str = ""
    """Number of the escalation that is not answered yet."""
    escalations: int = 0
    refusals: int = 0
    """Escalations since the last assignment or grant."""
    refused_ms: int = -(10**12)
    awaiting_node: bool = False
    """After a restart: the node that ran the task may still come with it."""
    tuning: Tuning = Tuning()
    """How it shall run."""
    wanted: str = ""
    """A node that it shall move to; empty: it may stay where it is."""
    rebuff: str = ""
    """Why the last change was not taken by the node, until the quality keeper has read it."""

    @property
    def task(self) -> str:
        """The task's name."""
        return self.grant.spec.task

    def copies(self) -> list[Copy]:
        """Return the copies there are."""
        pair = [copy for copy in (self.current, self.coming) if copy is not None]
        return [*pair, *self.further.values()]

    def served(self) -> list[Copy]:
        """Return the copies that serve now; the current one first."""
        found = [one for one in (self.current, *self.further.values()) if one is not None]
        return [one for one in found if one.state is CopyState.READY]

    def on_node(self, node: str) -> Copy | None:
        """Return the newest copy on a node."""
        found = [copy for copy in self.copies() if copy.node == node]
        return max(found, key=lambda copy: copy.epoch) if found else None

    def may_be_on(self, node: str) -> bool:
        """Whether a node has a copy, or has been granted for one: of others it can tell nothing."""
        granted = node in self.grant.nodes or node == self.grant.current_node
        return granted or self.on_node(node) is not None

    def failed_on(self, node: str, reason: str, blame: Blame | None) -> None:
        """Note that a node of the envelope could not run the task."""
        self.failures[node] = Attempt(f"run on {node}", reason, blame)

    def at_fault(self) -> bool:
        """Whether the artifact has failed on enough nodes: another one would not run it either."""
        faults = [one for one in self.failures.values() if one.blame is Blame.USER]
        return len(faults) >= FAULTS_ENOUGH

    def epochs_left(self) -> int:
        """Return how many epochs of the lease are unused."""
        return max(0, self.grant.epoch_to - self.next_epoch + 1)


def rebuilt(one: Tuning) -> tuple[str, int, str]:
    """Return the part of a tuning that needs another instance; the rest is told with a Tune."""
    return one.variant, one.threads, one.provider


def program(grant: EnvelopeGrant, variant: str) -> Manifest:
    """Return the manifest of a variant; of the specification when it has no such one."""
    for one in grant.spec.variants:
        if one.name == variant:
            return one.manifest
    return grant.spec.manifest
