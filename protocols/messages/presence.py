"""Presence: birth, death and the answer of the scheduler that serves the cell.

Birth and death carry the incarnation of their connection (in the frame), so that the late death
certificate of an older connection cannot end a newer one (after Sparkplug B's `bdSeq`).
"""

from typing import Annotated

from msgspec import Meta

from protocols.base import Count, Id, Message, Name, Part, Text
from protocols.messages.quality import Decimation, Rate, Tuning
from protocols.messages.task import InstanceState, Origin


class Accelerator(Part, frozen=True):
    """A GPU or NPU of a node."""

    kind: str
    """`gpu` or `npu`."""
    name: str
    """Of the model, for people."""
    memory_bytes: Count | None = None
    providers: tuple[str, ...] = ()
    """ONNX execution providers that reach it, best first."""


class ExecutorInfo(Part, frozen=True):
    """An executor that this node can run now."""

    kind: Name
    """`wasm`, `onnx` or `container`."""
    version: str
    """Of its runtime."""
    providers: tuple[str, ...] = ()
    """ONNX execution providers, best first."""
    security: Annotated[str, Meta(max_length=16)] = ""
    """What it keeps here of `computing_security`: `basic` is a process apart from the agent,
    `strong` a sandbox in it, `none` neither; empty: as executors of its kind do.
    """


class Inventory(Part, frozen=True):
    """What a node is; changes only when the machine does."""

    profile: Name
    """Name of the board profile that fits this machine."""
    arch: str
    """As `uname -m` says, such as `aarch64`."""
    os: str
    """Such as `linux`."""
    cpu_count: Annotated[int, Meta(ge=1, le=4096)]
    """Cores that programs may use."""
    memory_bytes: Count
    disk_bytes: Count
    """Of the disk that holds artifacts and large values."""
    accelerators: tuple[Accelerator, ...] = ()
    executors: tuple[ExecutorInfo, ...] = ()
    """Without any the node is sensed, and no task is placed on it."""
    absent: tuple[str, ...] = ()
    """Sensors and kernel features that this machine does not have, by name."""
    task_memory_bytes: Count = 0
    """How much memory tasks may take together."""
    max_instances: Count = 16
    """How many tasks the node takes."""
    sensors: Annotated[tuple[Name, ...], Meta(max_length=64)] = ()
    """Names of the sensors whose data may feed services."""
    files: bool = False
    """Whether files of its data folder may feed services."""


class Holding(Part, frozen=True):
    """A task that the node holds, for reconciliation."""

    task: Name
    epoch: Count
    """The highest that the node has seen for the task."""
    state: InstanceState
    """As in Status."""
    generation: Count = 0
    """The generation of the specification that runs."""
    tuning: Tuning = Tuning()
    """How it runs: as assigned, with what a Tune has changed since."""
    serving_epoch: Count = 0
    """The epoch under which an older instance here serves while this one is prepared; 0: none."""
    serving_generation: Count = 0
    """The generation of that older instance."""
    serving_tuning: Tuning | None = None
    """How that older instance runs; null: there is none."""
    origin: Origin | None = None
    """Whose memory it still waits for; null: nobody's."""


class Feeding(Part, frozen=True):
    """A service that the node feeds or gives sinks to, for reconciliation."""

    service: Name
    number: Count
    """Of the last Feed that was taken."""
    rate_per_s: Rate = 0.0
    """As in that Feed, like the two that follow."""
    decimation: Decimation = 1
    """As in that Feed."""
    function: str = ""
    """As in that Feed."""


class Trust(Part, frozen=True):
    """What a node trusts of those who sign artifacts."""

    root_version: Count = 0
    """Of TUF's root; 0: it has seen none but that of its bundle."""
    expires_unix_s: Count = 0
    """Until when the newest timestamp that it has seen holds."""
    problem: Text = ""
    """Why the last check failed, for people; empty: it did not."""


class Arrival(Part, frozen=True):
    """What a node that comes from another cell says of that."""

    source: Name
    """The cell that served it before."""
    incarnation: Count
    """Of its attachment there."""
    handover: Annotated[str, Meta(max_length=128)] = ""
    """Of the command; empty: it came by itself, for its link was lost."""
    attached: bool = False
    """Whether it is still attached there."""


class Birth(Message, tag="birth", frozen=True):
    """A node has connected: who it is and what it holds. Sent again when asked."""

    agent_version: str
    """Of the program that speaks, for people."""
    boot_id: Id
    """Another one after each boot of the machine."""
    inventory: Inventory
    """What the machine is and can."""
    holdings: Annotated[tuple[Holding, ...], Meta(max_length=1024)] = ()
    """Every task that the node holds, all of them each time."""
    warnings: Annotated[tuple[Text, ...], Meta(max_length=16)] = ()
    """What is amiss on this machine, for people."""
    draining: Text = ""
    """Why the node takes nothing new; empty while it does."""
    feeds: Annotated[tuple[Feeding, ...], Meta(max_length=64)] = ()
    """Every feed that the node has taken, all of them each time."""
    trust: Trust | None = None
    """What it trusts of those who sign artifacts; null: on loopback nobody has to sign."""
    share_url: Text = ""
    """Base URL at which neighbours of the cell may fetch its artifacts; empty: nowhere."""
    arrival: Arrival | None = None
    """Where it comes from; null: it has begun, or was here."""
    radios: Annotated[int, Meta(ge=1, le=16)] = 1
    """To how many cells it can be attached at once."""


class Death(Message, tag="death", frozen=True):
    """A connection has ended: as will (a hint, confirmed by silence) or said in farewell."""

    reason: Text
    """Why it ends, for people."""
    orderly: bool = False
    """True: a farewell, it ends at once. False: a will, which is only a hint."""
    moved_to: Annotated[str, Meta(max_length=64)] = ""
    """The cell that serves it now, or is about to; empty: it ends."""


class Welcome(Message, tag="welcome", frozen=True):
    """The scheduler has taken the node in; sets the pace of its reports."""

    scheduler: Name
    """Who answers."""
    scheduler_epoch: Count
    """A new value means a scheduler without memory: the node is to send its birth again."""
    incarnation: Count
    """Which birth this answers."""
    heartbeat_ms: Annotated[int, Meta(ge=50, le=3_600_000)] = 1000
    """The longest silence: then a report goes out although nothing has changed."""
    sample_ms: Annotated[int, Meta(ge=20, le=3_600_000)] = 1000
    """How often to look at the sensors."""
    store_urls: tuple[str, ...] = ()
    """Base URLs of the cell's store of artifacts and large values, best first."""


class RebirthRequest(Message, tag="rebirth", frozen=True):
    """The scheduler does not know this node, or has missed messages of it."""

    scheduler: Name
    """Who asks."""
    scheduler_epoch: Count
    """As in Welcome."""
    reason: Text = ""


class Drain(Message, tag="drain", frozen=True):
    """Take no new invocation; finish what runs."""

    reason: Text = ""
    over: bool = False
    """True: that is over, take new ones again."""
