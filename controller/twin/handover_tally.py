"""What came of handovers in the twin: added up over seeds, and shown as tables."""

from typing import Any, Final

from msgspec import Struct, field

from controller.anchor.handing import AGAIN_MS
from controller.anchor.switching import LEASE_MS, MARGIN_MS
from controller.twin.rules import Rule

LINK_MS: Final = 2500
"""What a link between roles needs to begin anew, and to bring what was said meanwhile."""
OWNERLESS_MS: Final = LEASE_MS + MARGIN_MS + LINK_MS
"""No task is longer without a scheduler while its anchor and the scheduler of its node's cell live
and reach each other: a lease of the one before, and what links need to begin anew.
"""
ANCHORLESS_MS: Final = AGAIN_MS + LINK_MS
"""No service is longer without an anchor while all anchors live and reach each other."""
UNSERVED_MS: Final = 5000
"""No node that lives and can reach a cell is longer without one that serves it, while all cells
live and reach each other: whoever gives it up or loses it meanwhile does so unduly.
"""

FAILURES_MAX: Final = 1000
"""Broken parts that are told one by one; the others are counted."""

Table = dict[str, dict[str, int]]


class Failure(Struct, frozen=True):
    """A part in which a rule was broken."""

    seed: int
    handovers: int
    """Of the part; so many from this seed break it again."""
    rule: Rule
    text: str


class Tally(Struct):
    """What came of a run."""

    seed: int
    handovers: int = 0
    causes: dict[str, int] = field(default_factory=dict)
    """Of the handovers: what had the node go."""
    ways: dict[str, int] = field(default_factory=dict)
    """Of the handovers: make before break, or not."""
    ends: dict[str, int] = field(default_factory=dict)
    """As the anchor's records say."""
    anchors_moved: int = 0
    """Services that went from anchor to anchor."""
    changed: int = 0
    """Services that were ordered anew, with other programs."""
    endangered: int = 0
    """How often NAMO has heard that the latency of a service is broken..."""
    ordered_elsewhere: int = 0
    """...and how often it has ordered one at another anchor."""
    crashes: Table = field(default_factory=dict)
    """By step of the protocol and who died."""
    cuts: Table = field(default_factory=dict)
    """By step, who was cut off from the others..."""
    parted: int = 0
    """...and how often from one of them alone."""
    weather: dict[str, int] = field(default_factory=dict)
    """Messages that were dropped, doubled, reordered."""
    replayed: dict[str, int] = field(default_factory=dict)
    """Old messages that came again, by kind."""
    forged: dict[str, int] = field(default_factory=dict)
    """Messages of whoever may not say them, by kind; each was seen to change nothing."""
    requests: int = 0
    lost: int = 0
    doubled: int = 0
    ownerless_ms: float = 0.0
    """The longest time without a scheduler, of the kind that is bounded."""
    ownerless_bound_ms: float = OWNERLESS_MS
    anchorless_ms: float = 0.0
    """The same of services and their anchors."""
    anchorless_bound_ms: float = ANCHORLESS_MS
    undue: int = 0
    """Nodes that were given up although they could reach a cell; each breaks its run."""
    unserved_ms: float = 0.0
    """The longest time that a node which could reach a cell was served by none."""
    unserved_bound_ms: float = UNSERVED_MS
    simulated_s: float = 0.0
    rule: Rule | None = None
    """Which one was broken; None: every one was kept."""
    text: str = ""
    fingerprint: str = ""
    broken: int = 0
    """Runs in which a rule was broken..."""
    failures: list[Failure] = field(default_factory=list)
    """...and which, by seed."""

    def add(self, other: "Tally", wanted: int = 0) -> None:
        """Add another run, of so many handovers; of what is broken the first seed is told."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _COUNTED:
            _count(getattr(self, name), getattr(other, name))
        for name in _TABLES:
            table: Table = getattr(self, name)
            for step, row in getattr(other, name).items():
                _count(table.setdefault(step, {}), row)
        for name in ("ownerless_ms", "anchorless_ms", "unserved_ms"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.simulated_s = round(self.simulated_s + other.simulated_s, 1)
        self.broken += other.rule is not None
        if other.rule is not None and len(self.failures) < FAILURES_MAX:
            self.failures.append(Failure(other.seed, wanted, other.rule, other.text))
            self.failures.sort(key=lambda one: one.seed)
        if other.rule is not None and (self.rule is None or other.seed < self.seed):
            self.seed, self.rule, self.text = other.seed, other.rule, other.text

    @property
    def empty(self) -> list[str]:
        """Steps at which somebody did not die, each with who."""
        return [
            f"{who} at {step}"
            for step, row in self.crashes.items()
            for who, count in row.items()
            if not count
        ]

    def rows(self) -> list[tuple[str, str]]:
        """Return the figures for people, in order."""
        without = "{:.0f} ms at most, the bound is {:.0f}"
        return [
            ("caused by", _words(self.causes)),
            ("way", _words(self.ways)),
            ("ended", _words(self.ends)),
            ("anchors moved", str(self.anchors_moved)),
            ("services changed", str(self.changed)),
            ("in danger", f"{self.endangered}; ordered at another anchor {self.ordered_elsewhere}"),
            ("crashes", str(_total(self.crashes))),
            ("cut off", f"{_total(self.cuts)}, {self.parted} of them from one alone"),
            ("messages", _words(self.weather)),
            ("replayed", f"{sum(self.replayed.values())}: {_words(self.replayed)}"),
            ("forged", f"{sum(self.forged.values())} refused: {_words(self.forged)}"),
            ("requests", f"{self.requests}, {self.lost} of them without an answer"),
            ("doubled", str(self.doubled)),
            ("without a scheduler", without.format(self.ownerless_ms, self.ownerless_bound_ms)),
            ("without an anchor", without.format(self.anchorless_ms, self.anchorless_bound_ms)),
            ("given up unduly", f"{self.undue} nodes"),
            ("without a cell", without.format(self.unserved_ms, self.unserved_bound_ms)),
            ("simulated", f"{self.simulated_s:.0f} s"),
        ]


_SUMMED: Final = (
    "handovers",
    "anchors_moved",
    "changed",
    "endangered",
    "ordered_elsewhere",
    "parted",
    "requests",
    "lost",
    "doubled",
    "undue",
)
_COUNTED: Final = ("causes", "ways", "ends", "weather", "replayed", "forged")
_TABLES: Final = ("crashes", "cuts")


def _count(into: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        into[name] = into.get(name, 0) + count


def _total(table: Table) -> int:
    return sum(sum(row.values()) for row in table.values())


def _words(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
