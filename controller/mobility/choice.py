"""The choice of a cell for one node. Pure: the same situation gives the same decision.

What a move gains is weighed in decibels: how much better the target will be, less what its load and
a return cost, plus or minus what the node's tasks win. A link that dies moves to whatever serves.

A conditional handover is chosen when, as the trends go, the link dies before a command that the
usual event sets off could arrive. It has to be prepared while the neighbour is only near.
"""

from enum import StrEnum
from math import inf, log10

from msgspec import Struct

from controller.mobility.settings import MobilitySettings, Scale
from protocols.messages.mobility import FLOOR_DB, EventRule


class Kind(StrEnum):
    """What is decided."""

    STAY = "stay"
    HANDOVER = "handover"
    """The node is to move now."""
    CONDITIONAL = "conditional"
    """Targets are prepared, and the node moves when its condition holds."""


class Side(Struct, frozen=True):
    """One cell, as it is for one node."""

    cell: str
    level_db: float
    """Filtered."""
    trend_db_per_s: float = 0.0
    load: float = 0.0
    """Of the cell's nodes and broker, 1 is its limit."""
    use: float | None = None
    """Predicted latency over its bound of the node's most endangered task, reached through this
    cell; None: not known."""
    refuses: str = ""
    """Why it takes nobody, for people; empty: it does."""

    def after(self, wait_ms: float) -> float:
        """Return the level so much later, if its trend goes on."""
        if self.level_db <= FLOOR_DB:
            return FLOOR_DB
        return self.level_db + self.trend_db_per_s * wait_ms / 1000.0


class Situation(Struct, frozen=True):
    """Everything that one decision rests on."""

    serving: Side
    targets: tuple[Side, ...]
    margins_db: dict[str, float | None]
    """What a move to a target has to gain beyond others; None: it would be one return too many."""
    radio: bool = True
    near: bool = False
    """Whether the targets are only near: then nothing but a conditional handover can be chosen."""


class Weighed(Struct, frozen=True):
    """What speaks for one target, in decibels."""

    cell: str
    gain_db: float
    """How much better it will be."""
    load_db: float
    tasks_db: float
    margin_db: float
    score_db: float
    why_not: str = ""
    """Why it was not taken, for people; empty: it could be."""


class Decision(Struct, frozen=True):
    """What is to be done about one node."""

    kind: Kind
    targets: tuple[str, ...] = ()
    """Best first; a handover has one."""
    condition: EventRule | None = None
    """Of a conditional handover."""
    reason: str = ""
    """In one sentence, for people."""
    weighed: tuple[Weighed, ...] = ()
    """Every target, best first."""


STAY = Decision(Kind.STAY)


def decide(situation: Situation, settings: MobilitySettings) -> Decision:
    """Return what is to be done."""
    scale = settings.scale(radio=situation.radio)
    dies = dying(situation, settings, scale)
    found = [_weigh(situation, one, settings, scale, dies=dies) for one in situation.targets]
    weighed = tuple(sorted(found, key=lambda one: (bool(one.why_not), -one.score_db, one.cell)))
    taken = [one for one in weighed if not one.why_not]
    here = situation.serving.cell
    if situation.near and not dies:
        return _ahead(situation, settings, scale, weighed)
    if not taken:
        return Decision(Kind.STAY, reason=_why_stay(weighed), weighed=weighed)
    best = taken[0]
    because = f"{here} is dying" if dies else f"{best.score_db:.1f} dB are gained in all"
    reason = f"to {best.cell}: {best.gain_db:+.1f} dB against {here}; {because}"
    return Decision(Kind.HANDOVER, (best.cell,), reason=reason, weighed=weighed)


def dying(situation: Situation, settings: MobilitySettings, scale: Scale) -> bool:
    """Whether the serving cell will carry nothing when a command could have been obeyed."""
    serving = situation.serving
    later_db = min(serving.level_db, serving.after(settings.horizon_ms))
    return later_db <= scale.dead_db


def _weigh(
    situation: Situation, there: Side, settings: MobilitySettings, scale: Scale, *, dies: bool
) -> Weighed:
    here, wait_ms = situation.serving, settings.horizon_ms
    offset_db = settings.offsets_db.get(there.cell, 0.0) - settings.own_offset_db
    gain_db = there.after(wait_ms) - here.after(wait_ms) + offset_db
    load_db = _load_db(there.load, settings) - _load_db(here.load, settings)
    tasks_db = _tasks_db(here.use, there.use, settings)
    margin_db = situation.margins_db.get(there.cell, 0.0)
    score_db = gain_db - max(load_db, 0.0) + tasks_db - (margin_db or 0.0)
    why_not = there.refuses
    if not why_not and there.after(wait_ms) <= scale.dead_db:
        why_not = "it cannot be heard well enough"
    elif not why_not and dies:
        why_not = "" if gain_db > 0 else "it is no better than a cell that dies"
    elif not why_not and margin_db is None:
        why_not = "the node has gone back too often"
    elif not why_not and score_db < settings.least_gain_db:
        why_not = f"{score_db:.1f} dB in all, {settings.least_gain_db:.1f} are asked for"
    return Weighed(
        there.cell, gain_db, -max(load_db, 0.0), tasks_db, margin_db or 0.0, score_db, why_not
    )


def _load_db(load: float, settings: MobilitySettings) -> float:
    """Return what the load of a cell costs."""
    above = max(min(load, 1.0) - settings.load_from, 0.0)
    return settings.load_db * above / max(1.0 - settings.load_from, 1e-9)


def _tasks_db(here: float | None, there: float | None, settings: MobilitySettings) -> float:
    """Return what the node's tasks win or lose, as far as they are near their bounds."""
    if here is None or there is None:
        return 0.0
    least = max(settings.task_from, 1e-3)
    won = 10.0 * log10(max(here, least) / max(there, least))
    return min(max(won, -settings.task_db), settings.task_db)


def _why_stay(weighed: tuple[Weighed, ...]) -> str:
    if not weighed:
        return "there is no other cell"
    return f"{weighed[0].cell}: {weighed[0].why_not}"


def _ahead(
    situation: Situation,
    settings: MobilitySettings,
    scale: Scale,
    weighed: tuple[Weighed, ...],
) -> Decision:
    """Prepare ahead what a command would come too late for."""
    if not settings.conditional:
        return STAY
    sides = {one.cell: one for one in situation.targets}
    late = [
        one.cell
        for one in weighed
        if not sides[one.cell].refuses
        and situation.margins_db.get(one.cell, 0.0) is not None
        and _too_late(situation.serving, sides[one.cell], settings, scale)
    ]
    if not late:
        return Decision(Kind.STAY, reason="a command would come in time", weighed=weighed)
    reason = f"{situation.serving.cell} dies before a command could arrive"
    targets = tuple(late[: settings.conditional_max])
    return Decision(Kind.CONDITIONAL, targets, settings.condition, reason, weighed)


def _too_late(here: Side, there: Side, settings: MobilitySettings, scale: Scale) -> bool:
    """Whether the link dies, as the trends go, before a command to go there arrives."""
    gap_db = there.level_db - here.level_db
    closing = there.trend_db_per_s - here.trend_db_per_s
    needed_db = settings.offset_db + settings.hysteresis_db - gap_db
    event_s = _until(needed_db, closing) + settings.trigger_ms / 1000.0
    command_s = event_s + settings.safety * settings.command_ms / 1000.0
    dead_s = min(
        _until(here.level_db - scale.dead_db, -here.trend_db_per_s),
        _until(scale.dead_gap_db - gap_db, closing),
    )
    return dead_s < command_s and dead_s < inf


def _until(distance_db: float, db_per_s: float) -> float:
    """Return the seconds until a distance is covered; infinite when it never is."""
    if distance_db <= 0:
        return 0.0
    return distance_db / db_per_s if db_per_s > 0 else inf
