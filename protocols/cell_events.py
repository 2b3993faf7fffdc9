"""Levels of cells and the events they make, after 3GPP TS 38.331 (5.5.3 and 5.5.4). Pure: no clock.

A *level* is the one figure by which cells are compared, in decibels, more is better:

- of a radio: the received power in dBm (RSRP of a mobile cell, the signal of a Wi-Fi network);
- of a path: minus ten times the logarithm of the milliseconds that a request over it loses, so that
  three decibels are half the time.

Only levels of one kind are held against each other. The node evaluates the events and reports them;
who controls mobility decides. A node without neighbours never imports this module.
"""

from itertools import combinations
from math import log10
from statistics import median
from typing import Final

from msgspec import Struct

from protocols.messages.mobility import CEILING_DB, FLOOR_DB, MAX_NEIGHBOURS, EventRule

LOST_LEVEL_PERCENT: Final = 50.0
"""A cell whose path loses so much is of no use, however strong its signal is."""
FILTER_RATE_MS: Final = 200.0
"""The filter coefficient is meant for samples so far apart (TS 38.331, 5.5.3.2)."""
TREND_SAMPLES: Final = 12
TREND_MS: Final = 3000.0
TREND_LEAST: Final = 4
"""Samples without which no trend is told."""
TREND_STEEPEST_DB_PER_S: Final = 30.0
CELLS_MAX: Final = 1 + MAX_NEIGHBOURS
"""The serving cell and its neighbours."""
PATH_LEAST_MS: Final = 10.0
"""Paths that lose less are alike: what is between them is the noise of machines."""
_RETRY_MS: Final = 1000.0
"""What a lost request waits before it is repeated."""


class Happened(Struct, frozen=True):
    """An event of a cell has begun, or is over."""

    rule: int
    """Position of the rule."""
    event: str
    cell: str
    """The neighbour; the serving cell for A1 and A2."""
    begun: bool


def path_db(round_trip_ms: float, jitter_ms: float = 0.0, loss_percent: float = 0.0) -> float:
    """Return the level of a path: what a request over it loses, its repetitions included.

    Jitter counts four times, as in the time after which TCP repeats (RFC 6298).
    """
    if loss_percent >= LOST_LEVEL_PERCENT:
        return FLOOR_DB
    share = loss_percent / 100.0
    lost_ms = round_trip_ms + 4 * jitter_ms + _RETRY_MS * share / (1 - share)
    return -10.0 * log10(max(lost_ms, PATH_LEAST_MS))


def radio_db(signal_dbm: float, loss_percent: float = 0.0) -> float:
    """Return the level of a radio cell; one that carries nothing has none, however strong."""
    return FLOOR_DB if loss_percent >= LOST_LEVEL_PERCENT else bounded(signal_dbm)


def bounded(level: float) -> float:
    """Return a level inside the scale; what is no number is not heard."""
    return min(max(level, FLOOR_DB), CEILING_DB) if level == level else FLOOR_DB  # noqa: PLR0124 - NaN


class Trend:
    """Where the level of one cell is heading: the median of all slopes (Theil and Sen).

    Up to 29 % of the samples may be wrong without turning it.
    """

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []

    def take(self, now_ms: float, level: float) -> None:
        """Take in a level; what is too old goes."""
        since = now_ms - TREND_MS
        kept = [one for one in self._samples if since <= one[0] < now_ms]
        self._samples = [*kept, (now_ms, level)][-TREND_SAMPLES:]

    @property
    def db_per_s(self) -> float | None:
        """The slope; None when the samples are too few."""
        if len(self._samples) < TREND_LEAST:
            return None
        pairs = combinations(self._samples, 2)
        slope = median((after[1] - before[1]) / (after[0] - before[0]) for before, after in pairs)
        steepest = TREND_STEEPEST_DB_PER_S
        return min(max(slope * 1000.0, -steepest), steepest)


class Filtered(Struct):
    """The level of one cell: newest, filtered, and where it is heading."""

    level_db: float
    newest_db: float
    taken_ms: float
    trend: Trend


class Levels:
    """Layer-3 filter of every cell: `F = (1 - a) F + a M`, `a = 1 / 2 ** (k / 4)`.

    `k` is meant for samples 200 ms apart; others weigh by their distance, so that the filter is as
    slow at any pace. `k = 0` does not filter.
    """

    def __init__(self, coefficient: int = 4) -> None:
        self._keep = 1.0 - 0.5 ** (coefficient / 4)
        self.cells: dict[str, Filtered] = {}

    def take(self, cell: str, level: float | None, now_ms: float) -> None:
        """Take in what was measured of a cell; None: it is not heard."""
        one = self.cells.get(cell)
        if level is None or level <= FLOOR_DB:
            self.cells.pop(cell, None)
            return
        level = bounded(level)
        if one is None:
            if len(self.cells) < CELLS_MAX:
                one = self.cells[cell] = Filtered(level, level, now_ms, Trend())
                one.trend.take(now_ms, level)
            return
        passed_ms = now_ms - one.taken_ms
        if passed_ms <= 0:
            return
        keep = self._keep ** (passed_ms / FILTER_RATE_MS)
        one.level_db = keep * one.level_db + (1.0 - keep) * level
        one.newest_db, one.taken_ms = level, now_ms
        one.trend.take(now_ms, level)

    def level(self, cell: str) -> float:
        """Return the filtered level of a cell; `FLOOR_DB` when it is not heard."""
        one = self.cells.get(cell)
        return FLOOR_DB if one is None else one.level_db

    def keep_only(self, cells: frozenset[str]) -> None:
        """Forget every cell but these."""
        self.cells = {name: one for name, one in self.cells.items() if name in cells}


def begins(rule: EventRule, serving_db: float, neighbour_db: float) -> bool:
    """Whether the entering condition of an event holds; levels include the cells' offsets."""
    low, high = neighbour_db - rule.hysteresis_db, serving_db + rule.hysteresis_db
    match rule.event:
        case "a1":
            return serving_db - rule.hysteresis_db > rule.threshold_db
        case "a2":
            return high < rule.threshold_db
        case "a3":
            return low > serving_db + rule.offset_db
        case "a4":
            return low > rule.threshold_db
        case "a5":
            return high < rule.threshold_db and low > rule.neighbour_db


def ends(rule: EventRule, serving_db: float, neighbour_db: float) -> bool:
    """Whether the leaving condition holds. Between both, an event stays what it is."""
    low, high = serving_db - rule.hysteresis_db, neighbour_db + rule.hysteresis_db
    match rule.event:
        case "a1":
            return serving_db + rule.hysteresis_db < rule.threshold_db
        case "a2":
            return low > rule.threshold_db
        case "a3":
            return high < serving_db + rule.offset_db
        case "a4":
            return high < rule.threshold_db
        case "a5":
            return low > rule.threshold_db or high < rule.neighbour_db


class _Watch(Struct):
    """One rule for one cell: whether its event holds, and since when the contrary is true."""

    holds: bool = False
    against_ms: float | None = None


class Evaluator:
    """Which events hold, of which cells; says what begins and what is over."""

    def __init__(self, rules: tuple[EventRule, ...], offsets: dict[str, float]) -> None:
        """`offsets` are decibels added to the level of a cell, to favour it or to avoid it."""
        self.rules = rules
        self._offsets = offsets
        self._serving = ""
        self._watches: dict[tuple[int, str], _Watch] = {}

    def holding(self, rule: int) -> tuple[str, ...]:
        """Return the cells of which the event of a rule holds."""
        return tuple(
            cell for (one, cell), watch in self._watches.items() if watch.holds and one == rule
        )

    def take(self, serving: str, levels: dict[str, float], now_ms: float) -> list[Happened]:
        """Take in the filtered levels of now; another serving cell begins everything anew."""
        if serving != self._serving:
            self._serving, self._watches = serving, {}
        happened: list[Happened] = []
        here = levels.get(serving, FLOOR_DB) + self._offsets.get(serving, 0.0)
        for number, rule in enumerate(self.rules):
            if rule.event in {"a1", "a2"}:
                self._watch(number, rule, serving, here, FLOOR_DB, now_ms, happened)
                continue
            known = {cell for other, cell in self._watches if other == number}
            for cell in sorted((known | levels.keys()) - {serving}):
                there = levels.get(cell, FLOOR_DB)
                if there > FLOOR_DB:
                    there += self._offsets.get(cell, 0.0)
                self._watch(number, rule, cell, here, there, now_ms, happened)
        return happened

    def _watch(
        self,
        number: int,
        rule: EventRule,
        cell: str,
        serving_db: float,
        neighbour_db: float,
        now_ms: float,
        happened: list[Happened],
    ) -> None:
        watch = self._watches.setdefault((number, cell), _Watch())
        against = (ends if watch.holds else begins)(rule, serving_db, neighbour_db)
        if not against:
            watch.against_ms = None
        elif watch.against_ms is None:
            watch.against_ms = now_ms
        if watch.against_ms is not None and now_ms - watch.against_ms >= rule.time_to_trigger_ms:
            watch.holds, watch.against_ms = not watch.holds, None
            happened.append(Happened(number, rule.event, cell, watch.holds))
        if neighbour_db <= FLOOR_DB and cell != self._serving and watch == _Watch():
            # Neither heard nor held: nothing to remember.
            del self._watches[number, cell]
