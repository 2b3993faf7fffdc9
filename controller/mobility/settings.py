"""What a cell is told of mobility; every figure has a default that suits most."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from protocols.messages.mobility import Decibel, EventRule, Events, Level, Measuring, Pace, Wait

Positive = Annotated[float, Meta(ge=0, le=60)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Scale(Struct, frozen=True):
    """What holds for levels of one kind: those of a radio in dBm, or those of a path."""

    weak_db: Level
    """Below it the serving cell is weak (A2, A5), above it neighbours need hardly be measured."""
    good_db: Level
    """A neighbour above it is good enough to be taken by a weak node (A5)."""
    dead_db: Level
    """Below it nothing is carried any more."""
    quiet_db: Level
    """Above it the serving cell is good, and neighbours are measured seldom: s-Measure."""
    dead_gap_db: Positive
    """A cell that is weaker than another by so much carries nothing beside it."""


RADIO = Scale(weak_db=-108.0, good_db=-104.0, dead_db=-117.0, quiet_db=-83.0, dead_gap_db=14.0)
"""dBm. Noise and interference bury what is weaker; see docs/mobility.md for where that is."""
PATH = Scale(weak_db=-20.0, good_db=-18.0, dead_db=-33.0, quiet_db=-15.0, dead_gap_db=60.0)
"""100 ms, 63 ms, 2 s. Paths do not disturb each other, and are good below 32 ms."""


class MobilitySettings(Struct, frozen=True, forbid_unknown_fields=True):
    """How one cell decides on its nodes; the table `[mobility]` of its controller's file."""

    decides: Literal["ts", "ta", "nobody"] = "ts"
    """Who does; the TS hands on what its nodes report where that is the TA. Nobody: nodes report
    nothing, and go only where they are sent, or when their link is lost.
    """

    offset_db: Decibel = 3.0
    """By so much a neighbour has to be better (A3)."""
    hysteresis_db: Positive = 1.0
    """Of every event."""
    trigger_ms: Wait = 160
    """Time to trigger of every event that moves a node."""
    filter_coefficient: Annotated[int, Meta(ge=0, le=19)] = 2
    """`k` of the layer-3 filter."""
    offsets_db: dict[str, Decibel] = {}
    """Added to the level of a cell, to favour it or to avoid it."""
    own_offset_db: Decibel = 0.0
    """The same of this cell."""
    radio: Scale = RADIO
    path: Scale = PATH
    pace_ms: Pace = 200
    """How often a node measures its neighbours when its cell is not good..."""
    rest_ms: Pace = 5000
    """...and while it is."""
    near_db: Positive = 6.0
    """A radio cell that is so much below A3 is near: what it takes to prepare ahead begins."""
    command_ms: Annotated[float, Meta(ge=0, le=60_000)] = 200.0
    """From the report of a node to the command at it: decision, admission, preparation."""
    safety: Annotated[float, Meta(ge=1, le=20)] = 8.0
    """A link that dies sooner than so many commands take is not commanded: the node decides."""
    conditional: bool = True
    """Whether handovers may be prepared ahead and executed by the node."""
    conditional_max: Annotated[int, Meta(ge=1, le=8)] = 3
    """So many cells are prepared for one node at most."""
    horizon_ms: Annotated[float, Meta(ge=0, le=5000)] = 0.0
    """Levels are weighed as their trends say they will be so much later; 0: as they are."""
    least_gain_db: Decibel = 2.0
    """What has to be left of a gain when load, tasks and moves before have been weighed."""
    load_db: Positive = 6.0
    """What a target at its limit loses; nothing below `load_from`, in proportion above."""
    load_from: Share = 0.6
    task_db: Positive = 6.0
    """The most that the latency of the node's tasks gains or loses for a target."""
    task_from: Share = 0.5
    """Of its bound: a task that is faster on both sides does not care."""
    back_ms: Annotated[int, Meta(ge=0, le=600_000)] = 5000
    """A return to the cell that was left so short a time ago is a ping-pong."""
    back_db: Positive = 4.0
    """What a return within that time has to gain beyond others, more with each ping-pong."""
    window_ms: Annotated[int, Meta(ge=1000, le=3_600_000)] = 60_000
    """So long a ping-pong counts."""
    ping_pongs_max: Annotated[int, Meta(ge=0, le=100)] = 3
    """In one window; then no return is wanted before its time is over, unless the link dies."""
    patience_ms: Annotated[int, Meta(ge=100, le=600_000)] = 5000
    """A handover that was decided may take so long before the next one is."""
    prepared_ms: Annotated[int, Meta(ge=1000, le=600_000)] = 60_000
    """A conditional handover that was not executed is void after so long."""
    bar_ms: Annotated[int, Meta(ge=0, le=600_000)] = 2000
    """A target where a handover failed is not tried for so long, twice as long after the next."""

    def scale(self, *, radio: bool) -> Scale:
        """Return what holds for levels of a kind."""
        return self.radio if radio else self.path

    def rules(self, *, radio: bool) -> tuple[EventRule, ...]:
        """Return the events that a node is to report."""
        scale, hysteresis = self.scale(radio=radio), self.hysteresis_db
        # Paths are often alike without that anything is about to change.
        near_db = self.near_db if radio else 0.0
        near = EventRule(
            "a3",
            offset_db=self.offset_db - near_db,
            hysteresis_db=hysteresis,
            time_to_trigger_ms=0,
        )
        better = EventRule(
            "a3",
            offset_db=self.offset_db,
            hysteresis_db=hysteresis,
            time_to_trigger_ms=self.trigger_ms,
        )
        weak = EventRule(
            "a5",
            threshold_db=scale.weak_db,
            neighbour_db=scale.good_db,
            hysteresis_db=hysteresis,
            time_to_trigger_ms=self.trigger_ms,
        )
        low = EventRule(
            "a2",
            threshold_db=scale.weak_db,
            hysteresis_db=hysteresis,
            time_to_trigger_ms=self.trigger_ms,
        )
        return better, weak, near, low

    @property
    def measuring(self) -> Measuring:
        """How the nodes of this cell are to measure."""
        asked = self.decides != "nobody"
        return Measuring(
            radio=Events(self.rules(radio=True) if asked else (), self.radio.quiet_db),
            path=Events(self.rules(radio=False) if asked else (), self.path.quiet_db),
            filter_coefficient=self.filter_coefficient,
            pace_ms=self.pace_ms,
            rest_ms=self.rest_ms,
            own_offset_db=self.own_offset_db,
        )

    @property
    def condition(self) -> EventRule:
        """The condition on which a prepared node moves by itself; it knows no hysteresis."""
        return EventRule(
            "a3",
            offset_db=self.offset_db + self.hysteresis_db,
            hysteresis_db=0.0,
            time_to_trigger_ms=self.trigger_ms // 4,
        )


BETTER, WEAK, NEAR, LOW = range(4)
"""Positions in `rules`, the most urgent first."""
