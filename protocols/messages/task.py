"""Tasks on nodes: assignment, release and status, each idempotent, numbered and acknowledged."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from protocols.base import Count, Id, Message, Name, Part, Text
from protocols.errors import Blame
from protocols.manifest import Manifest


class Reconcile(StrEnum):
    """Which copy survives when a lost node comes back (after Nomad's `disconnect` block)."""

    KEEP_REPLACEMENT = "keep-replacement"
    KEEP_ORIGINAL = "keep-original"


class LostPolicy(Part, frozen=True):
    """What happens to a task while the link to its node is down."""

    lost_after_ms: Annotated[int, Meta(ge=100, le=86_400_000)] = 3000
    replace: bool = True
    reconcile: Reconcile = Reconcile.KEEP_REPLACEMENT


class InstanceState(StrEnum):
    """The life of a task on one node; the table stands in `device_agent/core/lifecycle.py`."""

    FETCHING = "fetching"
    DEPLOYING = "deploying"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Assign(Message, tag="assign", frozen=True):
    """Hold this task under this epoch. A lower epoch than the one held is refused as stale."""

    task: Name
    service: Name
    epoch: Count
    generation: Count
    manifest: Manifest

    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    """Workers of this task on the node that may run side by side."""


class Release(Message, tag="release", frozen=True):
    """Give the task up: finish what runs, take nothing new. Epochs up to this one are over."""

    task: Name
    epoch: Count
    reason: Text = ""


class Status(Message, tag="status", frozen=True):
    """What became of an assignment; repeated until acknowledged by its number."""

    number: Count
    task: Name
    epoch: Count
    state: InstanceState
    reason: Text = ""
    blame: Blame | None = None
    restarts: Count = 0
    memory_bytes: Count | None = None
    """Proportional set size of the task's process, where it is known."""
    generation: Count = 0


class Acknowledge(Message, tag="ack", frozen=True):
    """The receiver has taken in this number of this sender's incarnation, and says no more.

    Not cumulative: what came before it may have been lost or may still be on its way.
    """

    number: Count
    incarnation: Count
    of: Id = "status"
