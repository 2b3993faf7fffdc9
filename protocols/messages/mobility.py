"""Mobility: the cells that a node may be served by, what it measures of them, and its handover.

The steps and their order stand in docs/decisions/0027; events and measures after 3GPP TS 38.331.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta

from protocols.base import Count, Id, Message, Name, Part, Text
from protocols.messages.invocation import Values
from protocols.messages.presence import Inventory
from protocols.topics import Channel

MAX_NEIGHBOURS: Final = 16
"""Cells that a node is told of."""
MAX_CANDIDATES: Final = 4
"""Cells that are tried for one handover."""
MAX_RULES: Final = 8
MAX_FOLLOWED: Final = 256
"""Topics of services that a node asks for in one message; what it takes in beyond it asks for in
further ones.
"""
MAX_TASKS: Final = 8
"""Of a node, whose latency is told to who decides on its cell."""
FLOOR_DB: Final = -200.0
"""The level of a cell that is not heard: below every other."""
CEILING_DB: Final = 100.0

Level = Annotated[float, Meta(ge=FLOOR_DB, le=CEILING_DB)]
Decibel = Annotated[float, Meta(ge=-60, le=60)]
Wait = Annotated[int, Meta(ge=0, le=60_000)]
Load = Annotated[float, Meta(ge=0, le=1)]
Pace = Annotated[int, Meta(ge=50, le=3_600_000)]
Span = Annotated[float, Meta(ge=0, le=1e12)]
"""A time in milliseconds: finite, thirty years at most."""
Repeats = Annotated[int, Meta(ge=0, le=2**32)]
"""So many in one handover that sums over handovers stay within 64 bits."""

Urls = Annotated[tuple[Text, ...], Meta(max_length=4)]


class CellPoint(Part, frozen=True):
    """Where a cell is reached."""

    cell: Name
    scheduler: Name
    """Its TS."""
    broker_urls: Urls
    """As `mqtt[s]://HOST:PORT`, best first."""
    store_urls: Urls = ()
    """Base URLs of its store."""
    offset_db: Decibel = 0.0
    """Added to its level, to favour it or to avoid it."""


class EventRule(Part, frozen=True):
    """When one event of TS 38.331 (5.5.4) holds; thresholds in the unit of the level."""

    event: Literal["a1", "a2", "a3", "a4", "a5"]
    """a1, a2: the serving cell is better, worse than a threshold; a3: a neighbour is better than it
    by an offset; a4: better than a threshold; a5: it is worse than one, a neighbour better than the
    other.
    """
    threshold_db: Level = FLOOR_DB
    """Of the serving cell (a1, a2, a5), of the neighbour (a4)."""
    neighbour_db: Level = FLOOR_DB
    """Of the neighbour (a5)."""
    offset_db: Decibel = 3.0
    """By so much the neighbour has to be better (a3)."""
    hysteresis_db: Annotated[float, Meta(ge=0, le=60)] = 1.0
    """Subtracted where an event begins, added where it ends."""
    time_to_trigger_ms: Wait = 320
    """So long without a break it has to hold, and so long not to be over."""


class Events(Part, frozen=True):
    """What a node tells of cells whose levels are of one kind."""

    rules: Annotated[tuple[EventRule, ...], Meta(max_length=MAX_RULES)] = ()
    """Most urgent first: of several events that hold, the first is told."""
    quiet_db: Level = CEILING_DB
    """While the serving cell is above this, its neighbours are measured seldom (s-Measure)."""


class Measuring(Part, frozen=True):
    """How a node measures the cells around it."""

    radio: Events = Events()
    """For levels in dBm, of a radio."""
    path: Events = Events()
    """For levels of the path to a broker, where there is no radio that tells."""
    filter_coefficient: Annotated[int, Meta(ge=0, le=19)] = 4
    """`k` of the layer-3 filter (TS 38.331, 5.5.3.2)."""
    pace_ms: Pace = 200
    """How often to measure when it matters."""
    rest_ms: Pace = 5000
    """How often to measure neighbours while the serving cell is good."""
    repeat_ms: Pace = 1000
    """So often an event that still holds is told again."""
    own_offset_db: Decibel = 0.0
    """Added to the level of the serving cell."""


class Neighbours(Message, tag="neighbours", frozen=True):
    """TA to TS to node: the cells it may be handed over to. Without any it measures nothing."""

    number: Count
    """Grows with every change; an older one is ignored."""
    cells: Annotated[tuple[CellPoint, ...], Meta(max_length=MAX_NEIGHBOURS)] = ()
    """Without its own."""
    measuring: Measuring = Measuring()
    """What to tell of them, and how often to look."""
    loads: Annotated[tuple[Load, ...], Meta(max_length=MAX_NEIGHBOURS)] = ()
    """Of the cells in order, 1 is the limit; said by the TA to its TS alone."""
    round_trips_ms: Annotated[tuple[Span, ...], Meta(max_length=MAX_NEIGHBOURS)] = ()
    """Of the cells in order, the median of their nodes; 0: not known. Said like the loads."""


class CellMeasure(Part, frozen=True):
    """What a node measures of one cell; null: not measured, or its radio does not say."""

    cell: Name
    round_trip_ms: float | None = None
    """To its broker."""
    jitter_ms: float | None = None
    """Mean deviation of the round trip."""
    loss_percent: Annotated[float, Meta(ge=0, le=100)] | None = None
    """Of the exchanges that measured it."""
    rsrp_dbm: float | None = None
    """Reference signal received power; of Wi-Fi its signal level."""
    rsrq_db: float | None = None
    """Reference signal received quality."""
    snr_db: float | None = None
    """Signal to noise."""
    level_db: Level = FLOOR_DB
    """What cells are compared by, filtered: dBm, or 10 dB less for each tenfold of the milliseconds
    that a request over its path loses.
    """
    trend_db_per_s: Annotated[float, Meta(ge=-60, le=60)] | None = None
    """Where the level is heading; null: not known yet."""


class TaskLatency(Part, frozen=True):
    """How long a task takes to answer, beside what was agreed."""

    measured_ms: Span
    bound_ms: Annotated[float, Meta(gt=0)]


class Measurement(Message, tag="measurement", frozen=True):
    """Node to TS, on its link topic: an event holds for its time to trigger, or still holds."""

    event: Annotated[str, Meta(max_length=16)]
    """`a1` to `a5`."""
    serving: CellMeasure
    """Of the cell that serves it."""
    neighbours: Annotated[tuple[CellMeasure, ...], Meta(max_length=MAX_NEIGHBOURS)] = ()
    """Best first."""
    rule: Count = 0
    """Position of the event's rule in what it was told to measure by."""
    holding: Annotated[tuple[Name, ...], Meta(max_length=MAX_NEIGHBOURS)] = ()
    """The neighbours of which the event holds, best first."""
    radio: bool = False
    """Whether the levels are those of a radio."""
    spent_bytes_per_s: Annotated[float, Meta(ge=0)] = 0.0
    """What measuring neighbours has taken from the network lately."""
    spent_cpu_percent: Annotated[float, Meta(ge=0)] = 0.0
    """Of one core."""
    node: Annotated[str, Meta(max_length=64)] = ""
    """Whose it is, where a TS hands it on to the TA that decides."""
    tasks: Annotated[tuple[TaskLatency, ...], Meta(max_length=MAX_TASKS)] = ()
    """Of the node's tasks with an agreed latency, the most endangered first; said like `node`."""


class HandoverRequired(Message, tag="handover-required", frozen=True):
    """TS to TA: this node should be served by another cell."""

    handover: Id
    """Names it from here on, never used twice."""
    node: Name
    incarnation: Count
    """Of its attachment here."""
    cells: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    """Best first."""
    cause: Text
    """Why, for people."""
    conditional: bool = False
    """Whether the node is to execute it by itself when its condition holds."""
    by_hand: bool = False
    """Whether an operator asks for it."""
    offset_db: Decibel = 0.0
    """Of the condition, as in HandoverCommand."""
    time_to_trigger_ms: Wait = 0
    """As in HandoverCommand."""


class HandoverRequest(Message, tag="handover-request", frozen=True):
    """TA to target TS: prepare for a node."""

    handover: Id
    node: Name
    incarnation: Count
    """Of its attachment at the source; it will come with a higher one."""
    source: Name
    """Its TS now."""
    inventory: Inventory
    """As in its birth."""
    memory_bytes: Count = 0
    """Task memory that tasks which follow it will take in the cell, beside the node."""
    expires_ms: Annotated[int, Meta(ge=100, le=600_000)] = 10_000
    """After so long it is over if the node has not come."""


class HandoverAnswer(Message, tag="handover-answer", frozen=True):
    """Target TS to TA, and TA to source TS: whether it is prepared."""

    handover: Id
    node: Name
    admitted: bool
    """Whether the node may come."""
    cell: Name
    """The target."""
    reason: Text = ""
    """Why not, for people."""


class HandoverCommand(Message, tag="handover", frozen=True):
    """TA to source TS to node: be served by this cell."""

    handover: Id
    node: Name
    target: CellPoint
    """The cell that is to serve it."""
    incarnation: Count
    """Of the attachment that it ends; a node with another one ignores it."""
    conditional: bool = False
    """True: only when the target is better by the offset, or the serving cell is lost."""
    offset_db: float = 0.0
    """Of the condition: target better than serving by this, for `time_to_trigger_ms`."""
    time_to_trigger_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0
    """Of the condition."""
    expires_ms: Annotated[int, Meta(ge=100, le=600_000)] = 10_000
    """After so long without its condition, or without reaching the target, it is void."""
    cancelled: bool = False
    """True: a conditional one that was prepared is void."""


class HandoverFailed(Message, tag="handover-failed", frozen=True):
    """Node to its TS, on its status topic, and that one to the TA: it did not happen."""

    handover: Id
    node: Name
    reason: Text
    """Why, for people."""


class HandoverComplete(Message, tag="handover-complete", frozen=True):
    """Target TS to node: its tasks have owner and route here; the old attachment may end."""

    handover: Id
    """Empty where there was no command."""
    incarnation: Count
    """Of the attachment here."""


class Followed(Part, frozen=True):
    """What of a service a node takes in."""

    service: Name
    channel: Channel
    """`input` or `output`."""


class CatchUp(Message, tag="catch-up", frozen=True):
    """Node to the gateway of a cell: hand me what was published while I was attached nowhere.

    The topic names the cell that is asked: the one that the node has left, or is back in.
    """

    cell: Name
    """Where the node is attached, and hears the answers."""
    apart_ms: Span
    """What was published longer ago it has."""
    topics: Annotated[tuple[Followed, ...], Meta(max_length=MAX_FOLLOWED)]
    """What of services it wants."""


class Missed(Message, tag="missed", frozen=True):
    """Gateway to node: a value that was published before, on a topic that the node follows."""

    service: Name
    channel: Channel
    """As in the topic on which it was published."""
    sender: Name
    """Who has published it."""
    request: Id
    """As published, like attempt, part and values."""
    attempt: Count
    part: Count
    """0 for an input."""
    values: Values
    """Inputs or outputs of the service by their names."""
    age_ms: Span
    """Since the gateway heard it."""
    cell: Text = ""
    """The cell whose gateway hands it on; empty: an older one."""


class HandoverTimes(Message, tag="handover-times", frozen=True):
    """Node to its new TS, on its status topic: where it has come from, and how long that took.

    Its TS hands it on to the TA. Each time follows the one before it, from the command, or from the
    loss of the link, on.
    """

    handover: Annotated[str, Meta(max_length=128)]
    """As in its birth; empty: it came by itself."""
    incarnation: Count
    """Of its attachment here."""
    source: Name
    """The cell that served it before."""
    cell: Name
    """The cell that serves it now."""
    cause: Text
    """Why it went, for people."""
    tried: Count = 1
    """How many cells, this one included."""
    leave_ms: Span = 0.0
    """Until it sought this cell: what it waited for, left, or tried in vain before."""
    link_ms: Span = 0.0
    """Until the link was up."""
    connect_ms: Span = 0.0
    """Until its session stood."""
    welcome_ms: Span = 0.0
    """Until it was welcomed."""
    complete_ms: Span | None = None
    """Until its tasks had their owner and their route here; null: it never heard."""
    linger_ms: Span = 0.0
    """How long the old attachment stood beside the new one."""
    apart_ms: Span = 0.0
    """How long it was attached nowhere."""
    node: Annotated[str, Meta(max_length=64)] = ""
    """Whose they are, where its TS hands them on to the TA."""
    gap_ms: Span | None = None
    """The longest time between two answers, from the last one before it to a second after it; null:
    nobody was answered in the 10 s before it, or after it.
    """
    spacing_ms: Span | None = None
    """How far apart answers were before, smoothed; null: as above."""
    asked_again: Repeats = 0
    """Requests that came once more during it."""
    said_again: Repeats = 0
    """Answers and requests of its own that the node has sent once more."""
    client_gap_ms: Span | None = None
    """How long the client's request stood that stood longest, as clients told meanwhile; null: none
    has told.
    """


class Relinquished(Message, tag="relinquished", frozen=True):
    """Source TS to TA: it acts no more on a task; the copy runs on."""

    task: Name
    generation: Count
    """Of the envelope that it has given back."""
    node: Name | None = None
    """Where the task runs; null: nowhere, as far as it knows."""
    epoch: Count = 0
    """Under which it runs there."""
    epoch_seen: Count = 0
    """The highest that it has used."""
    leased: Count = 0
    """As in the EnvelopeRevoke that this answers: an older answer counts no more."""
