"""Quality of AI service (QoAIS): the paper's indicators as typed definitions, zones over them.

TONA paper, "Change 4: From Session-QoS to Task-QoS" and Table 1. The paper lists the indicators of
AI training; `latency`, `accuracy` and `satisfaction` of the other service kinds are ours.
"""

from enum import StrEnum
from typing import Annotated, Final, NamedTuple

from msgspec import Meta

from protocols.base import Part
from protocols.errors import UserError


class ServiceKind(StrEnum):
    """What a service does (TONA paper, "Task Procedures" and "Conclusion")."""

    TRAINING = "training"
    VERIFICATION = "verification"
    INFERENCE = "inference"
    SENSING = "sensing"
    COMPUTING = "computing"
    DATA_PROCESSING = "data-processing"


class Category(StrEnum):
    """The five categories of QoAIS indicators."""

    PERFORMANCE = "performance"
    OVERHEAD = "overhead"
    SECURITY = "security"
    PRIVACY = "privacy"
    AUTONOMY = "autonomy"


class Dimension(StrEnum):
    """The four resource dimensions to which QoAIS is mapped (Table 1)."""

    DATA = "data"
    ALGORITHM = "algorithm"
    COMPUTING = "computing"
    CONNECTION = "connection"


class Direction(StrEnum):
    """Which way a quantity is better."""

    LOWER = "lower"
    HIGHER = "higher"


class Indicator(NamedTuple):
    """One indicator: quantitative (unit, direction) or qualitative (levels, worst first)."""

    name: str
    category: Category
    dimension: Dimension | None = None
    unit: str = ""
    direction: Direction | None = None
    levels: tuple[str, ...] = ()
    measured: bool = False
    """Whether the running system measures it; otherwise it is declared."""

    @property
    def quantitative(self) -> bool:
        """Whether its value is a number with a unit."""
        return self.direction is not None


_P, _O, _S = Category.PERFORMANCE, Category.OVERHEAD, Category.SECURITY
_LOW, _HIGH = Direction.LOWER, Direction.HIGHER
_GRADES: Final = ("low", "medium", "high")
_SAFETY: Final = ("none", "basic", "strong")

INDICATORS: Final[dict[str, Indicator]] = {
    one.name: one
    for one in (
        # Measured on every invocation of an inference, sensing, computing or data service.
        Indicator("latency_ms", _P, None, "ms", _LOW, measured=True),
        Indicator("throughput_per_s", _P, None, "1/s", _HIGH, measured=True),
        Indicator("availability_percent", _P, None, "%", _HIGH, measured=True),
        Indicator("accuracy_percent", _P, Dimension.ALGORITHM, "%", _HIGH),
        # The paper's list for training: efficiency.
        Indicator("training_duration_s", _P, Dimension.ALGORITHM, "s", _LOW, measured=True),
        Indicator("generalization", _P, Dimension.ALGORITHM, levels=_GRADES),
        Indicator("reusability", _P, Dimension.ALGORITHM, levels=_GRADES),
        Indicator("robustness", _P, Dimension.ALGORITHM, levels=_GRADES),
        Indicator("explainability", _P, Dimension.ALGORITHM, levels=_GRADES),
        Indicator("objective_consistency", _P, Dimension.ALGORITHM, levels=_GRADES),
        Indicator("fairness", _P, Dimension.ALGORITHM, levels=_GRADES),
        Indicator("convergence_rounds", _P, Dimension.ALGORITHM, "rounds", _LOW, measured=True),
        # Table 1, data.
        Indicator("feature_redundancy_percent", _P, Dimension.DATA, "%", _LOW),
        Indicator("integrity_percent", _P, Dimension.DATA, "%", _HIGH),
        Indicator("data_accuracy_percent", _P, Dimension.DATA, "%", _HIGH),
        Indicator("data_preparation_ms", _P, Dimension.DATA, "ms", _LOW, measured=True),
        Indicator("sample_space_balance", _P, Dimension.DATA, levels=_GRADES),
        Indicator("sample_distribution_dynamics", _P, Dimension.DATA, levels=_GRADES),
        # Table 1, computing.
        Indicator("precision_bits", _P, Dimension.COMPUTING, "bit", _HIGH),
        Indicator("compute_ms", _P, Dimension.COMPUTING, "ms", _LOW, measured=True),
        Indicator("compute_efficiency_percent", _P, Dimension.COMPUTING, "%", _HIGH, measured=True),
        # Table 1, connection.
        Indicator("bandwidth_mbit_per_s", _P, Dimension.CONNECTION, "Mbit/s", _HIGH, measured=True),
        Indicator("delay_ms", _P, Dimension.CONNECTION, "ms", _LOW, measured=True),
        Indicator("jitter_ms", _P, Dimension.CONNECTION, "ms", _LOW, measured=True),
        Indicator("loss_percent", _P, Dimension.CONNECTION, "%", _LOW, measured=True),
        Indicator("reliability_percent", _P, Dimension.CONNECTION, "%", _HIGH, measured=True),
        # Overhead.
        Indicator("storage_bytes", _O, Dimension.DATA, "B", _LOW, measured=True),
        Indicator("computing_ms", _O, Dimension.COMPUTING, "ms", _LOW, measured=True),
        Indicator("memory_bytes", _O, Dimension.COMPUTING, "B", _LOW, measured=True),
        Indicator("transmission_bytes", _O, Dimension.CONNECTION, "B", _LOW, measured=True),
        Indicator("energy_j", _O, Dimension.COMPUTING, "J", _LOW, measured=True),
        # Security and privacy: levels that placement and sandbox obey.
        Indicator("storage_security", _S, Dimension.DATA, levels=_SAFETY),
        Indicator("computing_security", _S, Dimension.COMPUTING, levels=_SAFETY),
        Indicator("transmission_security", _S, Dimension.CONNECTION, levels=_SAFETY),
        # The place that raw input may reach, widest first.
        Indicator(
            "data_privacy", Category.PRIVACY, Dimension.DATA, levels=("core", "cell", "node")
        ),
        Indicator(
            "algorithm_privacy",
            Category.PRIVACY,
            Dimension.ALGORITHM,
            levels=("core", "cell", "node"),
        ),
        Indicator("autonomy", Category.AUTONOMY, levels=("manual", "partial", "full")),
    )
}

IndicatorName = Annotated[str, Meta(max_length=64)]


class Bound(Part, frozen=True):
    """What one indicator must keep: a largest or smallest number, or the lowest level."""

    indicator: IndicatorName
    """Its name in the catalogue."""
    at_most: float | None = None
    """The largest good number."""
    at_least: float | None = None
    """The smallest good number."""
    level: str | None = None
    """The lowest good level."""


class Zone(Part, frozen=True):
    """Service requirement zone (SRZ): the region of values that satisfies one user's task."""

    bounds: Annotated[tuple[Bound, ...], Meta(max_length=64)] = ()


class Sla(Part, frozen=True):
    """What was agreed: a zone for each user, and the share of users it must hold for (USR)."""

    zone: Zone = Zone()
    """What satisfies one user."""
    satisfaction_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """The share of users for whom it must hold."""


def check(bound: Bound) -> None:
    """Check a bound against the definition of its indicator. Raises UserError."""
    indicator = INDICATORS.get(bound.indicator)
    if indicator is None:
        raise UserError(f"there is no indicator {bound.indicator!r}; see docs/glossary.md")
    if indicator.quantitative:
        if bound.level is not None or (bound.at_most is None) == (bound.at_least is None):
            raise UserError(
                f"indicator {indicator.name} is a number in {indicator.unit}: "
                "give exactly one of at_most, at_least"
            )
    elif bound.level not in indicator.levels or not (bound.at_most is bound.at_least is None):
        raise UserError(
            f"indicator {indicator.name} has levels: give level = one of "
            + ", ".join(indicator.levels)
        )


def holds(bound: Bound, value: float | str) -> bool:
    """Whether a measured number or a declared level keeps the bound."""
    if isinstance(value, str):
        levels = INDICATORS[bound.indicator].levels
        return bound.level is not None and levels.index(value) >= levels.index(bound.level)
    return (bound.at_most is None or value <= bound.at_most) and (
        bound.at_least is None or value >= bound.at_least
    )


def satisfied(zone: Zone, values: dict[str, float | str]) -> bool:
    """Whether every bound of the zone whose indicator has a value is kept."""
    return all(holds(one, values[one.indicator]) for one in zone.bounds if one.indicator in values)


def satisfaction_ratio(zone: Zone, users: list[dict[str, float | str]]) -> float | None:
    """User satisfaction ratio (USR) over the users' measured values; None without users."""
    if not users:
        return None
    return sum(satisfied(zone, values) for values in users) / len(users)
