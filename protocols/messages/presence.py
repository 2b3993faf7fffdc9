"""Presence: birth, death and the answer of the scheduler that serves the cell.

Birth and death carry the incarnation of their connection (in the frame), so that the late death
certificate of an older connection cannot end a newer one (after Sparkplug B's `bdSeq`).
"""

from typing import Annotated

from msgspec import Meta

from protocols.base import Count, Id, Message, Name, Part, Text


class Accelerator(Part, frozen=True):
    """A GPU or NPU of a node."""

    kind: str
    """`gpu` or `npu`."""
    name: str
    memory_bytes: Count | None = None
    providers: tuple[str, ...] = ()
    """ONNX execution providers that reach it, best first."""


class ExecutorInfo(Part, frozen=True):
    """An executor that this node can run now."""

    kind: Name
    """`wasm` or `onnx`."""
    version: str
    providers: tuple[str, ...] = ()


class Inventory(Part, frozen=True):
    """What a node is; changes only when the machine does."""

    profile: Name
    arch: str
    os: str
    cpu_count: Annotated[int, Meta(ge=1, le=4096)]
    memory_bytes: Count
    disk_bytes: Count
    accelerators: tuple[Accelerator, ...] = ()
    executors: tuple[ExecutorInfo, ...] = ()
    absent: tuple[str, ...] = ()
    """Sensors and kernel features that this machine does not have, by name."""
    task_memory_bytes: Count = 0
    """How much memory tasks may take together."""
    max_instances: Count = 16


class Holding(Part, frozen=True):
    """A task that the node holds, for reconciliation."""

    task: Name
    epoch: Count
    state: str
    generation: Count = 0
    """The generation of the specification that runs."""


class Birth(Message, tag="birth", frozen=True):
    """A node has connected: who it is and what it holds. Sent again when asked."""

    agent_version: str
    boot_id: Id
    inventory: Inventory
    holdings: Annotated[tuple[Holding, ...], Meta(max_length=1024)] = ()
    warnings: Annotated[tuple[Text, ...], Meta(max_length=16)] = ()


class Death(Message, tag="death", frozen=True):
    """A connection has ended: as will (a hint, confirmed by silence) or said in farewell."""

    reason: Text
    orderly: bool = False


class Welcome(Message, tag="welcome", frozen=True):
    """The scheduler has taken the node in; sets the pace of its reports."""

    scheduler: Name
    scheduler_epoch: Count
    """A new value means a scheduler without memory: the node is to send its birth again."""
    incarnation: Count
    """Which birth this answers."""
    heartbeat_ms: Annotated[int, Meta(ge=50, le=3_600_000)] = 1000
    sample_ms: Annotated[int, Meta(ge=20, le=3_600_000)] = 1000
    store_urls: tuple[str, ...] = ()
    """Base URLs of the cell's store of artifacts and large values, best first."""


class RebirthRequest(Message, tag="rebirth", frozen=True):
    """The scheduler does not know this node, or has missed messages of it."""

    scheduler: Name
    scheduler_epoch: Count
    reason: Text = ""


class Drain(Message, tag="drain", frozen=True):
    """Take no new invocation; finish what runs."""

    reason: Text = ""
