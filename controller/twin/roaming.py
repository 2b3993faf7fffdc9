"""Rules of mobility, tried on radio traces: who moves when, what fails, how long nothing serves.

The model, after 3GPP TR 36.839 (5.2.1):

- Quality: a cell's level over noise and a quarter of the power of all others. Both figures are
  those that explain best the signal-to-noise ratio in the rows of the driving traces that have one.
  Below `OUT_DB` a link is out of step, above `IN_DB` in step again; out of step for `LOST_MS`
  (T310) it is lost.
- A handover *fails* when the serving link is out of step as its command arrives, or the target's as
  the node arrives there or within `ARRIVAL_MS`, if that link is lost then.
- A *ping-pong* is a return to the cell left before within the named time.
- A *gap* is a spell in which no link serves: lost, out of step, or between cells with one radio.
- Where cells are *unlike*, every third one is busy: its nodes are at 90 % of their processors, and
  the latency of the node's task through it is half above its bound. *Late* is time served there.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import log10
from random import Random
from typing import Final, Protocol
from zlib import crc32

from msgspec import Struct, structs

from controller.mobility.choice import Kind
from controller.mobility.control import Known, MobilityControl
from controller.mobility.settings import MobilitySettings
from controller.twin.radio import Field, Stretch
from device_agent.core.cells import CellWatch
from protocols.messages.mobility import FLOOR_DB, CellMeasure, CellPoint, Neighbours

STEP_MS: Final = 100
MEASURE_MS: Final = 200
OUT_DB: Final = -8.0
IN_DB: Final = -6.0
LOST_MS: Final = 1000
ARRIVAL_MS: Final = 1000
NOISE_DBM: Final = -109.0
OTHERS_SHARE: Final = 0.25
SHORT_BACK_MS: Final = 1000
"""The shortest stay that is none, in TR 36.839."""
PREPARED_MS: Final = 10_000
"""A conditional handover is void after so long."""

BUSY: Final = Known(load=0.9, use=1.5)
QUIET: Final = Known(load=0.3, use=0.4)
BUSY_OF: Final = 3
"""Of so many cells one is busy, by their names."""

Levels = dict[str, float]


def busy(cell: str) -> bool:
    """Whether a cell is busy where cells are unlike."""
    return crc32(cell.encode()) % BUSY_OF == 0


class Model(Struct, frozen=True):
    """What a handover takes."""

    command_ms: int = 200
    """From the decision at the node's report to the command at the node."""
    attach_ms: int = 100
    """From leaving one cell to being served by the next; with two radios the old one serves on."""
    find_ms: int = 500
    """The same when the link was lost and nothing is prepared, beside `attach_ms`."""
    noise_db: float = 0.0
    """Standard deviation of an error that is added to everything that is measured."""
    radios: int = 1
    back_ms: int = 5000
    """A return within that time is a ping-pong."""
    seed: int = 1


class Order(Struct, frozen=True):
    """What a rule wants."""

    target: str
    by_itself: bool = False
    """The node moves now; else when the command has arrived."""


class Rule(Protocol):
    """A way to decide on handovers."""

    def begin(self, serving: str, cells: Sequence[str]) -> None:
        """Begin with a node that is served by this cell."""
        ...

    def measured(self, levels: Levels, now_ms: int) -> Order | None:
        """Take in what the node measures."""
        ...

    def prepared(self, now_ms: int) -> Sequence[str]:
        """Return the cells that expect the node."""
        ...

    def moved(self, source: str, target: str, now_ms: int) -> None:
        """Take note that the node is served by another cell."""
        ...

    def failed(self, target: str, now_ms: int) -> None:
        """Take note that a handover failed."""
        ...


class Strongest:
    """Whatever is stronger now."""

    def __init__(self) -> None:
        self._serving = ""

    def begin(self, serving: str, cells: Sequence[str]) -> None:  # noqa: ARG002 - as every rule
        """Begin with a node that is served by this cell."""
        self._serving = serving

    def measured(self, levels: Levels, now_ms: int) -> Order | None:  # noqa: ARG002 - as above
        """Want the strongest cell."""
        best = max(levels, key=lambda one: (levels[one], one), default=self._serving)
        here = levels.get(self._serving, float("-inf"))
        return Order(best) if levels.get(best, here) > here else None

    def prepared(self, now_ms: int) -> Sequence[str]:  # noqa: ARG002 - as above
        """Prepare nothing."""
        return ()

    def moved(self, source: str, target: str, now_ms: int) -> None:  # noqa: ARG002 - as above
        """Follow the node."""
        self._serving = target

    def failed(self, target: str, now_ms: int) -> None:
        """Learn nothing."""


class Ours:
    """The production code of node and controller, as the settings say."""

    def __init__(self, settings: MobilitySettings, model: Model, *, unlike: bool = False) -> None:
        self._settings = settings
        self._model = model
        self._unlike = unlike
        self._control = MobilityControl(settings)
        self._until_ms = 0
        self._waiting: list[tuple[int, str]] = []
        self._conditions: dict[str, int | None] = {}
        """Cells that are prepared, and since when they have been better."""
        self._serving = ""

    def begin(self, serving: str, cells: Sequence[str]) -> None:
        """Begin with a node that is served by this cell."""
        points = tuple(CellPoint(one, one, ()) for one in cells if one != serving)
        self._cells, self._serving = tuple(cells), serving
        self._known = {one: Known() for one in cells}
        if self._unlike:
            self._known = {one: BUSY if busy(one) else QUIET for one in cells}
        self._watch = CellWatch(serving, Neighbours(1, points, self._settings.measuring))
        self._control = MobilityControl(self._settings)
        self._waiting, self._conditions = [], {}
        self._heard: set[str] = set()
        self._due_ms = 0

    def measured(self, levels: Levels, now_ms: int) -> Order | None:
        """Evaluate at the node, decide at the controller."""
        while self._waiting and self._waiting[0][0] <= now_ms:
            self._conditions[self._waiting.pop(0)[1]] = None
        if self._until_ms and now_ms >= self._until_ms:
            self._void()
        resting = self._watch.pace_ms > MEASURE_MS and now_ms < self._due_ms
        if resting and self._serving in levels:
            levels = {self._serving: levels[self._serving]}
        else:
            self._due_ms = now_ms + self._watch.pace_ms
        gone = self._heard - levels.keys() if len(levels) > 1 else set()
        self._heard = set(levels) if len(levels) > 1 else self._heard
        measures = [CellMeasure(one, rsrp_dbm=levels.get(one)) for one in (*levels, *gone)]
        report = self._watch.take(measures, now_ms)
        by_itself = self._true(now_ms)
        if by_itself:
            return Order(by_itself, by_itself=True)
        if report is None:
            return None
        decision = self._control.reported("node", report, self._known, now_ms)
        if decision.kind is Kind.CONDITIONAL:
            self._until_ms = now_ms + PREPARED_MS
            due_ms = now_ms + self._model.command_ms
            self._waiting = [(due_ms, cell) for cell in decision.targets]
        return Order(decision.targets[0]) if decision.kind is Kind.HANDOVER else None

    def prepared(self, now_ms: int) -> Sequence[str]:
        """Return what expects the node, where that has been told."""
        told = self._until_ms and now_ms < self._until_ms and not self._waiting
        return self._control.prepared("node") if told else ()

    def _true(self, now_ms: int) -> str:
        """Return the prepared cell whose condition has come true, as `core.mobility` does it."""
        levels, rule = self._watch.levels, self._settings.condition
        here = levels.get(self._serving, FLOOR_DB)
        for cell in self._conditions:
            better = levels.get(cell, FLOOR_DB) - here > rule.offset_db
            since_ms = (self._conditions[cell] or now_ms) if better else None
            self._conditions[cell] = since_ms
            if since_ms is not None and now_ms - since_ms >= rule.time_to_trigger_ms:
                return cell
        return ""

    def _void(self) -> None:
        self._conditions.clear()
        self._control.void("node")
        self._until_ms, self._waiting = 0, []

    def moved(self, source: str, target: str, now_ms: int) -> None:
        """Tell node and controller."""
        self._control.moved("node", source, target, now_ms)
        self._void()
        self._serving = target
        points = tuple(CellPoint(one, one, ()) for one in self._cells if one != target)
        self._watch.served(target)
        self._watch.told(Neighbours(1, points, self._settings.measuring))

    def failed(self, target: str, now_ms: int) -> None:
        """Tell the controller."""
        self._control.failed("node", target, now_ms)
        self._conditions.pop(target, None)


class Figures(Struct):
    """What a rule came to."""

    rule: str
    radios: int = 1
    noise_db: float = 0.0
    """Error of what was measured."""
    handovers: int = 0
    """Ordered or by the node's own condition; those that failed are among them."""
    by_itself: int = 0
    """Of these, executed by the node on its condition."""
    failed: int = 0
    lost: int = 0
    """Links that were lost without a handover that failed."""
    moves: int = 0
    """Changes of the serving cell, after a lost link too."""
    ping_pongs: int = 0
    ping_pongs_1s: int = 0
    served_busy_s: float = 0.0
    """In cells that are busy where cells are unlike."""
    seconds: float = 0.0
    gaps_ms: list[int] = []

    def add(self, other: "Figures") -> None:
        """Add what the same rule came to elsewhere."""
        for name in (*_COUNTS, "served_busy_s", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.gaps_ms += other.gaps_ms

    @property
    def ping_pong_percent(self) -> float:
        """Of the moves."""
        return 100.0 * self.ping_pongs / max(self.moves, 1)

    @property
    def failure_percent(self) -> float:
        """Of handovers and links that were lost before one."""
        return 100.0 * (self.failed + self.lost) / max(self.handovers + self.lost, 1)

    @property
    def late_percent(self) -> float:
        """Of the time, where cells are unlike."""
        return 100.0 * self.served_busy_s / max(self.seconds, 1e-9)

    @property
    def outage_percent(self) -> float:
        """Of the time."""
        return sum(self.gaps_ms) / 10.0 / max(self.seconds, 1e-9)

    def gap_ms(self, share: float) -> int:
        """Return the gap that this share does not exceed; 0 without any."""
        gaps = sorted(self.gaps_ms)
        return gaps[min(int(share * len(gaps)), len(gaps) - 1)] if gaps else 0


_COUNTS: Final = (
    "handovers",
    "by_itself",
    "failed",
    "lost",
    "moves",
    "ping_pongs",
    "ping_pongs_1s",
)


class World(Struct):
    """What every rule is tried on: the levels of all cells at every step."""

    serving: str
    cells: tuple[str, ...]
    steps: list[Levels]


def world(stretch: Stretch) -> World:
    """Return the levels at every step of a stretch."""
    field = Field(stretch)
    count = int(stretch.seconds * 1000) // STEP_MS
    steps = field.levels([step * STEP_MS / 1000.0 for step in range(count)])
    return World(stretch.samples[0].cell, field.cells, steps)


def quality_db(cell: str, levels: Levels) -> float:
    """Return a cell's level over noise and interference; far below all without a level."""
    own = levels.get(cell)
    if own is None:
        return -99.0
    others = sum(10 ** (level / 10) for one, level in levels.items() if one != cell)
    return own - 10.0 * log10(OTHERS_SHARE * others + 10 ** (NOISE_DBM / 10))


class _Run:
    """One rule on one stretch."""

    def __init__(self, rule: Rule, place: World, model: Model, figures: Figures) -> None:
        self._rule, self._place, self._model, self._figures = rule, place, model, figures
        self._random = Random(model.seed)  # noqa: S311 - a seed has to give the same again
        self._serving = place.serving
        self._left: tuple[str, int] = ("", -(10**9))
        self._out_ms: int | None = None
        self._command: tuple[int, str] | None = None
        self._arrives: tuple[int, str] | None = None
        """When the node is served by which cell, and still is by the old one if it has one."""
        self._down = False
        self._arrived_ms = -(10**9)
        self._failed = False
        """Whether the link that is out of step was left by a handover that failed."""
        self._gap_ms = 0

    def run(self) -> None:
        """Go through all steps."""
        self._rule.begin(self._serving, self._place.cells)
        for step, levels in enumerate(self._place.steps):
            self._step(step * STEP_MS, levels)
        self._figures.seconds += len(self._place.steps) * STEP_MS / 1000.0
        self._unserved(0)

    def _step(self, now_ms: int, levels: Levels) -> None:
        if self._arrives is not None and now_ms >= self._arrives[0]:
            self._arrive(now_ms, levels)
        quality = quality_db(self._serving, levels)
        if not self._down:
            self._follow(now_ms, levels, quality)
            if self._command is not None and now_ms >= self._command[0]:
                self._obey(now_ms, quality)
            if now_ms % MEASURE_MS == 0:
                self._measure(now_ms, levels)
        between = self._arrives is not None and self._model.radios == 1
        unserved = self._down or between or quality < OUT_DB
        self._unserved(STEP_MS if unserved else 0)
        if not unserved and busy(self._serving):
            self._figures.served_busy_s += STEP_MS / 1000.0

    def _unserved(self, step_ms: int) -> None:
        if step_ms:
            self._gap_ms += step_ms
        elif self._gap_ms:
            self._figures.gaps_ms.append(self._gap_ms)
            self._gap_ms = 0

    def _follow(self, now_ms: int, levels: Levels, quality: float) -> None:
        """See whether the serving link is lost."""
        if self._arrives is not None or quality > IN_DB:
            self._out_ms, self._failed = None, False
        elif quality < OUT_DB and self._out_ms is None:
            self._out_ms = now_ms
        if self._out_ms is None or now_ms - self._out_ms < LOST_MS:
            return
        if self._out_ms - self._arrived_ms <= ARRIVAL_MS and not self._failed:
            self._figures.failed += 1
        elif not self._failed:
            self._figures.lost += 1
        self._find(now_ms, levels)

    def _find(self, now_ms: int, levels: Levels) -> None:
        """Go to the best cell there is, by the node's own choice."""
        prepared = [one for one in self._rule.prepared(now_ms) if one in levels]
        best = max(prepared or levels, key=lambda one: quality_db(one, levels))
        wait_ms = self._model.attach_ms + (0 if prepared else self._model.find_ms)
        self._arrives, self._down, self._command = (now_ms + wait_ms, best), True, None
        self._out_ms, self._failed = None, False

    def _obey(self, now_ms: int, quality: float) -> None:
        assert self._command is not None  # noqa: S101 - as its caller has seen
        _, target = self._command
        self._command = None
        if quality < OUT_DB:
            self._figures.failed += 1
            self._failed = True
            self._rule.failed(target, now_ms)
        else:
            self._arrives = (now_ms + self._model.attach_ms, target)

    def _arrive(self, now_ms: int, levels: Levels) -> None:
        assert self._arrives is not None  # noqa: S101 - as its caller has seen
        _, target = self._arrives
        source, self._arrives = self._serving, None
        found, self._down = self._down, False
        if not found and quality_db(target, levels) < OUT_DB:
            self._figures.failed += 1
            self._rule.failed(target, now_ms)
            self._find(now_ms, levels)
            return
        if target != source:
            self._moved(source, target, now_ms)
        if not found:
            self._arrived_ms = now_ms

    def _moved(self, source: str, target: str, now_ms: int) -> None:
        figures = self._figures
        figures.moves += 1
        before, at_ms = self._left
        if target == before:
            figures.ping_pongs += now_ms - at_ms < self._model.back_ms
            figures.ping_pongs_1s += now_ms - at_ms < SHORT_BACK_MS
        self._left, self._serving = (source, now_ms), target
        self._out_ms = None
        self._rule.moved(source, target, now_ms)

    def _measure(self, now_ms: int, levels: Levels) -> None:
        if self._arrives is not None:
            return
        sigma = self._model.noise_db
        if sigma:
            levels = {one: level + self._random.gauss(0, sigma) for one, level in levels.items()}
        order = self._rule.measured(levels, now_ms)
        if order is None or self._command is not None or order.target == self._serving:
            return
        self._figures.handovers += 1
        if order.by_itself:
            self._figures.by_itself += 1
            self._arrives = (now_ms + self._model.attach_ms, order.target)
        else:
            self._command = (now_ms + self._model.command_ms, order.target)


SIGNAL: Final = "unlike cells: signal alone"
WEIGHED: Final = "unlike cells: all weighed"
RULES: Final = ("strongest", "a3", "ours", SIGNAL, WEIGHED)


def try_rules(
    stretch: Stretch, models: Sequence[Model], settings: MobilitySettings
) -> list[Figures]:
    """Return what each rule comes to on a stretch in each model, in order."""
    place = world(stretch)
    out = []
    for model in models:
        for name in RULES:
            figures = Figures(name, model.radios, model.noise_db)
            rule = _rule(name, settings, model)
            _Run(rule, place, model, figures).run()
            out.append(figures)
    return out


def _rule(name: str, settings: MobilitySettings, model: Model) -> Rule:
    if name == "strongest":
        return Strongest()
    if name == "a3":
        return Ours(plain_a3(settings), model)
    if name == SIGNAL:
        settings = structs.replace(settings, load_db=0.0, task_db=0.0)
    return Ours(settings, model, unlike=name in (SIGNAL, WEIGHED))


def plain_a3(settings: MobilitySettings) -> MobilitySettings:
    """Return A3 with hysteresis and time to trigger alone: no trend, nothing ahead, no memory."""
    return structs.replace(
        settings, conditional=False, horizon_ms=0.0, back_ms=0, least_gain_db=-60.0
    )


def as_driven(stretches: Sequence[Stretch], model: Model) -> Figures:
    """Return what the networks of the traces did; failures and gaps are not told there."""
    figures = Figures("as driven", model.radios)
    for stretch in stretches:
        changes = stretch.changes
        figures.moves += len(changes)
        figures.seconds += stretch.seconds
        for (left_s, source, _), (at_s, _, target) in pairwise(changes):
            if target == source:
                figures.ping_pongs += (at_s - left_s) * 1000 < model.back_ms
                figures.ping_pongs_1s += (at_s - left_s) * 1000 < SHORT_BACK_MS
    figures.handovers = figures.moves
    return figures
