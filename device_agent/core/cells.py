"""The cells around the node: levels from what was measured, events from levels, reports of events.

Pure, and only loaded where a node is told of neighbours. The same code runs in the twin.

Cells are compared by radio where the serving cell and any other say how strong they are, else by
the paths to their brokers.
"""

from collections.abc import Iterable

from msgspec import structs

from device_agent.core.commands import Say, WatchCells
from device_agent.core.events import CellsMeasured
from device_agent.core.turn import Turn
from protocols.cell_events import Evaluator, Levels, path_db, radio_db
from protocols.messages.mobility import (
    FLOOR_DB,
    CellMeasure,
    CellPoint,
    Events,
    Measurement,
    Neighbours,
)
from protocols.topics import Channel


class CellWatch:
    """Watches the serving cell and its neighbours as the node's scheduler has told it to."""

    def __init__(self, serving: str, told: Neighbours) -> None:
        self.serving = serving
        self._told = told
        self._number = told.number
        self._radio = False
        self._repeat_ms = 0.0
        self._holds = False
        self._began()

    def _began(self) -> None:
        """Begin anew: other cells, other rules, another kind of level."""
        told = self._told
        self._heard = False
        """Whether the serving cell was ever heard: one that is not measured yet is not lost."""
        self._levels = Levels(told.measuring.filter_coefficient)
        self._offsets = {one.cell: one.offset_db for one in told.cells}
        self._offsets[self.serving] = told.measuring.own_offset_db
        self._events = Evaluator(self._kind.rules, self._offsets)

    @property
    def _kind(self) -> Events:
        measuring = self._told.measuring
        return measuring.radio if self._radio else measuring.path

    @property
    def pace_ms(self) -> int:
        """How long to wait before neighbours are measured again (s-Measure)."""
        quiet = self._levels.level(self.serving) > self._kind.quiet_db and not self._holds
        return self._told.measuring.rest_ms if quiet else self._told.measuring.pace_ms

    def told(self, neighbours: Neighbours) -> bool:
        """Take in another list of neighbours; an older one of the same scheduler is ignored."""
        if neighbours.number <= self._number:
            return False
        self._told, self._number = neighbours, neighbours.number
        self._began()
        return True

    def served(self, cell: str) -> None:
        """Take note that another cell serves."""
        if cell != self.serving:
            self.serving, self._number = cell, -1
            self._began()

    @property
    def levels(self) -> dict[str, float]:
        """What cells are compared by, their offsets included."""
        return {cell: self._level(cell) for cell in self._levels.cells}

    def take(self, measures: Iterable[CellMeasure], now_ms: float) -> Measurement | None:
        """Take in what was measured now; return what to report.

        Of a cell that is not among the measures the last level stays; one without any figure is not
        heard.
        """
        known = {one.cell: one for one in measures if one.cell in self._offsets}
        self._look(known)
        for cell, one in known.items():
            self._levels.take(cell, self._figure(one), now_ms)
        levels = {cell: one.level_db for cell, one in self._levels.cells.items()}
        self._heard = self._heard or self.serving in levels
        if not self._heard:
            return None
        begun = [one for one in self._events.take(self.serving, levels, now_ms) if one.begun]
        return self._report(known, now_ms, begun=bool(begun))

    def _look(self, known: dict[str, CellMeasure]) -> None:
        """Choose by what is compared."""
        said = {cell for cell, one in known.items() if one.rsrp_dbm is not None}
        # A radio that has lost the serving cell still says how strong the others are.
        radio = bool(said - {self.serving}) and (self._radio or self.serving in said)
        if radio is not self._radio:
            self._radio = radio
            self._began()

    def _figure(self, one: CellMeasure) -> float | None:
        loss = one.loss_percent or 0.0
        if self._radio:
            return None if one.rsrp_dbm is None else radio_db(one.rsrp_dbm, loss)
        if one.round_trip_ms is None:
            return None
        return path_db(one.round_trip_ms, one.jitter_ms or 0.0, loss)

    def _level(self, cell: str) -> float:
        return self._levels.level(cell) + self._offsets.get(cell, 0.0)

    def _report(
        self, known: dict[str, CellMeasure], now_ms: float, *, begun: bool
    ) -> Measurement | None:
        rules = self._kind.rules
        held = ((at, self._events.holding(at)) for at in range(len(rules)))
        number, holding = next(((at, cells) for at, cells in held if cells), (0, ()))
        self._holds = bool(holding)
        if not holding or not (begun or now_ms >= self._repeat_ms):
            return None
        self._repeat_ms = now_ms + self._told.measuring.repeat_ms
        by_level = sorted(self._levels.cells, key=lambda one: (-self._level(one), one))
        return Measurement(
            rules[number].event,
            self._said(self.serving, known),
            tuple(self._said(one, known) for one in by_level if one != self.serving),
            number,
            tuple(one for one in by_level if one in holding and one != self.serving),
            self._radio,
        )

    def _said(self, cell: str, known: dict[str, CellMeasure]) -> CellMeasure:
        one = self._levels.cells.get(cell)
        measured = known.get(cell, CellMeasure(cell))
        if one is None:
            return structs.replace(measured, level_db=FLOOR_DB)
        return structs.replace(measured, level_db=one.level_db, trend_db_per_s=one.trend.db_per_s)


class Surroundings:
    """What the core does about the cells around: has them measured, and reports their events."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._watch: CellWatch | None = None
        self._points: tuple[CellPoint, ...] = ()
        self._wanted: WatchCells | None = None

    def told(self, body: Neighbours, here: CellPoint) -> None:
        """Take in which cells there are."""
        if self._watch is None:
            if not body.cells:
                return
            self._watch = CellWatch(self._turn.cell, body)
        else:
            self._watch.served(self._turn.cell)
            if not self._watch.told(body):
                return
        self._points = body.cells
        self._want(self._watch, here)

    def measured(self, event: CellsMeasured, here: CellPoint, *, heard: bool) -> dict[str, float]:
        """Take in what was measured; return the levels. Reports leave while somebody listens."""
        watch, turn = self._watch, self._turn
        if watch is None:
            return {}
        watch.served(turn.cell)
        report = watch.take(event.measures, turn.now_ms)
        if report is not None and heard:
            report = structs.replace(
                report, spent_bytes_per_s=event.bytes_per_s, spent_cpu_percent=event.cpu_percent
            )
            turn.out.append(Say(Channel.LINK, report, report.event))
        self._want(watch, here)
        return watch.levels

    def _want(self, watch: CellWatch, here: CellPoint) -> None:
        """Have the cells measured at the pace of the moment."""
        cells = {one.cell: one.broker_urls for one in self._points}
        cells[self._turn.cell] = here.broker_urls
        wanted = WatchCells(self._turn.cell, cells, watch.pace_ms)
        if wanted != self._wanted:
            self._wanted = wanted
            self._turn.out.append(wanted)
