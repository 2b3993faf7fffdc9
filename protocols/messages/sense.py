"""Sensing: load and link as a node reports them on change and by heartbeat.

None means that the node has no such sensor. Absent is never reported as 0.
"""

from typing import Annotated, Final

from msgspec import Meta

from protocols.base import Count, Message, Part, Percent, Text

DELIVERY_MIN_MBIT_PER_S: Final = 0.001
DELIVERY_MAX_MBIT_PER_S: Final = 1e6
SEND_WAIT_MAX_MS: Final = 3_600_000.0
Delivered = Annotated[float, Meta(ge=DELIVERY_MIN_MBIT_PER_S, le=DELIVERY_MAX_MBIT_PER_S)]
SendWait = Annotated[float, Meta(ge=0, le=SEND_WAIT_MAX_MS)]
Spent = Annotated[float, Meta(ge=0)]


class AcceleratorLoad(Part, frozen=True):
    """Load of one GPU or NPU; the index counts within the inventory's accelerators."""

    index: Count
    """Position in the inventory's list, from 0."""
    load_percent: Percent | None = None
    memory_used_bytes: Count | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Pressure(Part, frozen=True):
    """Kernel pressure stall information, share of the last 10 s in percent, `some` line."""

    cpu_percent: Percent
    memory_percent: Percent
    io_percent: Percent


class LoadReport(Message, tag="load", frozen=True):
    """How busy a node is."""

    sampled_ms: Count
    """The node's monotonic clock at the sample."""
    cpu_percent: Percent
    """Mean over all cores since the sample before."""
    cores_percent: Annotated[tuple[Percent, ...], Meta(max_length=4096)] = ()
    """One for each core."""
    memory_used_bytes: Count = 0
    memory_available_bytes: Count = 0
    swap_used_bytes: Count | None = None
    disk_free_bytes: Count | None = None
    pressure: Pressure | None = None
    """How long programs waited for the machine."""
    temperature_c: float | None = None
    throttled: bool | None = None
    """Whether heat or power holds the clock down."""
    power_w: float | None = None
    battery_percent: Percent | None = None
    accelerators: tuple[AcceleratorLoad, ...] = ()
    """Those that have figures."""
    instances: Count = 0
    """Tasks that the node has, in any state."""
    queue: Count = 0
    """Invocations accepted and not yet answered."""
    cause: str = "heartbeat"
    """`heartbeat`, or the name of the field whose change was reported."""
    executors_bytes: Count = 0
    """Of the executors' processes that belong to no one task: zygotes, hosts that stand ready."""


class LinkReport(Message, tag="link", frozen=True):
    """How a node is connected to its cell."""

    sampled_ms: Count
    """The node's monotonic clock at the sample."""
    interface: Annotated[str, Meta(max_length=32)]
    """The one that leads to the broker."""
    kind: str
    """`loopback`, `wired`, `wifi`, `cellular` or `other`."""
    carrier: bool
    """Whether the line is up."""
    addresses: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    """IP addresses of the interface."""
    speed_mbit_per_s: float | None = None
    signal_dbm: float | None = None
    rx_bytes_per_s: float | None = None
    tx_bytes_per_s: float | None = None
    round_trip_ms: float | None = None
    """Median of the recent probes through the broker."""
    jitter_ms: float | None = None
    """Mean absolute difference of consecutive round trips (RFC 3550 spirit, not smoothed)."""
    loss_percent: Percent | None = None
    """Probes that did not come back within their time, of the recent ones."""
    cause: str = "heartbeat"
    """`heartbeat`, or the name of the field whose change was reported."""
    delivery_mbit_per_s: Delivered | None = None
    """What the connection to the broker has carried lately, of what the node sent."""
    send_wait_ms: SendWait | None = None
    """What is sent now waits so long behind what has not left yet."""
    cells_bytes_per_s: Spent | None = None
    """What measuring the cells around takes from the network; null: it measures none."""
    cells_cpu_percent: Spent | None = None
    """The same of one core."""
    cells_saving: bool = False
    """Whether they are measured seldom, for a battery is discharged."""
    kept: Count = 0
    """Answers and published values that have waited for a connection since the node began."""
    kept_dropped: Count = 0
    """Those of them that were too many, too large or too old."""
    missed: Count = 0
    """Published values that a gateway has handed it afterwards."""
    refused: Text = ""
    """Topic of the newest message that the broker has not taken, why, and how many there were."""
    feed_thinned: Count = 0
    """Published values that its feeds left out since the node began, for they came too fast."""
    feed_replaced: Count = 0
    """Items of its feeds that a newer one took the place of before there was room for them."""

    @property
    def bandwidth_mbit_per_s(self) -> float | None:
        """What the link carries: as measured, else as its driver says."""
        measured = self.delivery_mbit_per_s
        return self.speed_mbit_per_s if measured is None else measured


class Probe(Message, tag="probe", frozen=True):
    """A node's message to itself through the broker."""

    number: Count
    """Tells the probes apart."""


class SetSensing(Message, tag="set-sensing", frozen=True):
    """Change the pace and the thresholds of a node's reports."""

    heartbeat_ms: Annotated[int, Meta(ge=50, le=3_600_000)] = 1000
    """As in Welcome."""
    sample_ms: Annotated[int, Meta(ge=20, le=3_600_000)] = 1000
    """As in Welcome."""
    cpu_step_percent: Annotated[float, Meta(gt=0, le=100)] = 10.0
    """A change of this much since the last report is reported at once."""
    memory_step_percent: Annotated[float, Meta(gt=0, le=100)] = 5.0
    """Of used and available memory together."""
    accelerator_step_percent: Annotated[float, Meta(gt=0, le=100)] = 10.0
    temperature_step_c: Annotated[float, Meta(gt=0, le=100)] = 3.0
    round_trip_step_percent: Annotated[float, Meta(gt=0, le=1000)] = 50.0
    """Of the round trip reported last; below 1 ms nothing is reported."""
    signal_step_db: Annotated[float, Meta(gt=0, le=100)] = 4.0
    probe_ms: Annotated[int, Meta(ge=20, le=3_600_000)] = 1000
    """How often to probe the path."""
