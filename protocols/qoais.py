"""Quality of AI service (QoAIS): the paper's indicators as typed definitions, zones over them.

TONA paper, "Change 4: From Session-QoS to Task-QoS" and Table 1. The paper lists the indicators of
AI training; which of them apply to the other kinds of service, and those not marked `paper`, are
ours.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from protocols.errors import UserError
from protocols.sla import Bound, ServiceKind, Sla, Zone

__all__ = [
    "INDICATORS",
    "Bound",
    "Category",
    "Dimension",
    "Direction",
    "Indicator",
    "ServiceKind",
    "Share",
    "Sla",
    "Zone",
    "check",
    "holds",
    "satisfaction_ratio",
    "satisfied",
]


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


class Share(StrEnum):
    """How a bound on a service becomes its tasks' shares over the DAG."""

    PATH = "path"
    """A sum along a path: no path adds up to more than the bound."""
    PRODUCT = "product"
    """A product of percentages: together the tasks keep the bound."""
    LOSS = "loss"
    """What is lost adds up as a product of what is kept."""
    SUM = "sum"
    """A sum over all tasks."""
    EACH = "each"
    """Every task keeps it as it is."""
    SERVICE = "service"
    """Of the whole: no task has a share of it."""


class Indicator(NamedTuple):
    """One indicator: quantitative (unit, direction) or qualitative (levels, worst first)."""

    name: str
    category: Category
    dimension: Dimension | None
    """Of the resource that it is asked of; None: of the service or task as a whole."""
    unit: str
    direction: Direction | None
    levels: tuple[str, ...]
    share: Share
    kinds: tuple[ServiceKind, ...]
    """The services that it may be agreed for. The paper names those of training; the rest is ours.
    """
    measured: bool
    """Whether the running system measures it; otherwise it is declared or a constraint."""
    how: str
    """How it is measured, by whom it is declared, or what keeps it."""
    paper: bool
    """Whether the paper names it, for training; otherwise it is ours."""

    @property
    def quantitative(self) -> bool:
        """Whether its value is a number with a unit."""
        return self.direction is not None


_P, _O, _S, _Y, _A = Category
_DATA, _ALGORITHM, _COMPUTING, _CONNECTION = Dimension
_LOW, _HIGH = Direction.LOWER, Direction.HIGHER
_PATH, _PRODUCT, _LOSS, _SUM, _EACH, _SERVICE = Share
_GRADES: Final = ("low", "medium", "high")
_SAFETY: Final = ("none", "basic", "strong")
_PLACES: Final = ("core", "cell", "node")
_AUTONOMY: Final = ("manual", "partial", "full")
_ALL: Final = tuple(ServiceKind)
_TRAINING: Final = (ServiceKind.TRAINING,)
_LEARNT: Final = (ServiceKind.TRAINING, ServiceKind.VERIFICATION)
_MODEL: Final = (*_LEARNT, ServiceKind.INFERENCE)
_JUDGED: Final = (*_MODEL, ServiceKind.SENSING)
_SAMPLES: Final = (*_LEARNT, ServiceKind.DATA_PROCESSING)
_MATERIAL: Final = (*_JUDGED, ServiceKind.DATA_PROCESSING)
_AUTHOR: Final = "declared by the author of the model"
_OWNER: Final = "declared by whoever offers the data"


def _number(
    name: str,
    category: Category,
    dimension: Dimension | None,
    unit: str,
    direction: Direction,
    share: Share,
    kinds: tuple[ServiceKind, ...],
    how: str,
    *,
    measured: bool = False,
    paper: bool = False,
) -> Indicator:
    return Indicator(
        name, category, dimension, unit, direction, (), share, kinds, measured, how, paper
    )  # fmt: skip


def _grade(
    name: str,
    category: Category,
    dimension: Dimension | None,
    levels: tuple[str, ...],
    kinds: tuple[ServiceKind, ...],
    how: str,
    share: Share = Share.EACH,
) -> Indicator:
    """Make one that has levels; the paper names all of these."""
    return Indicator(
        name, category, dimension, "", None, levels, share, kinds, measured=False, how=how,
        paper=True,
    )  # fmt: skip


INDICATORS: Final[dict[str, Indicator]] = {
    one.name: one
    for one in (
        # Of a service as a whole.
        _number("latency_ms", _P, None, "ms", _LOW, _PATH, _ALL,
                "from a request's arrival to its answer, summed up along the way", measured=True),
        _number("throughput_per_s", _P, None, "1/s", _HIGH, _EACH, _ALL,
                "answers in a window, counted by the nodes", measured=True),
        _number("availability_percent", _P, None, "%", _HIGH, _PRODUCT, _ALL,
                "answers of all requests, those refused or late among them", measured=True),
        # The paper's list for training: efficiency; Table 1, algorithm. Accuracy is ours.
        _number("accuracy_percent", _P, _ALGORITHM, "%", _HIGH, _PRODUCT, _JUDGED,
                "declared by the author of the model, for each variant"),
        _number("performance_boundary_percent", _P, _ALGORITHM, "%", _HIGH, _EACH, _MODEL,
                "declared by the author of the model: the best that it can reach", paper=True),
        _number("training_duration_s", _P, _ALGORITHM, "s", _LOW, _PATH, _TRAINING,
                "as latency_ms, of a service of training", measured=True, paper=True),
        _grade("generalization", _P, _ALGORITHM, _GRADES, _MODEL, _AUTHOR),
        _grade("reusability", _P, _ALGORITHM, _GRADES, _MODEL, _AUTHOR),
        _grade("robustness", _P, _ALGORITHM, _GRADES, _MODEL, _AUTHOR),
        _grade("explainability", _P, _ALGORITHM, _GRADES, _MODEL, _AUTHOR),
        _grade("objective_consistency", _P, _ALGORITHM, _GRADES, _LEARNT, _AUTHOR),
        _number("objective_match_percent", _P, _ALGORITHM, "%", _HIGH, _EACH, _LEARNT,
                _AUTHOR, paper=True),
        _grade("fairness", _P, _ALGORITHM, _GRADES, _MODEL, _AUTHOR),
        _number("convergence_rounds", _P, _ALGORITHM, "rounds", _LOW, _EACH, _TRAINING,
                _AUTHOR, paper=True),
        # Table 1, data. It names integrity twice, as a number and as a grade.
        _number("feature_redundancy_percent", _P, _DATA, "%", _LOW, _EACH, _SAMPLES,
                _OWNER, paper=True),
        _number("integrity_percent", _P, _DATA, "%", _HIGH, _PRODUCT, _MATERIAL,
                _OWNER, paper=True),
        _grade("data_integrity", _P, _DATA, _GRADES, _MATERIAL, _OWNER),
        _number("data_accuracy_percent", _P, _DATA, "%", _HIGH, _PRODUCT, _MATERIAL,
                _OWNER, paper=True),
        _number("data_preparation_ms", _P, _DATA, "ms", _LOW, _PATH, _ALL,
                "mean wait of a run for its large inputs", measured=True, paper=True),
        _grade("sample_space_balance", _P, _DATA, _GRADES, _SAMPLES, _OWNER),
        _grade("sample_distribution_dynamics", _P, _DATA, _GRADES, _SAMPLES, _OWNER),
        # Table 1, computing.
        _number("precision_bits", _P, _COMPUTING, "bit", _HIGH, _EACH, _ALL,
                "declared by the author of the program, for each variant", paper=True),
        _number("compute_ms", _P, _COMPUTING, "ms", _LOW, _PATH, _ALL,
                "mean run of a task, by its executor", measured=True, paper=True),
        _number("compute_efficiency_percent", _P, _COMPUTING, "%", _HIGH, _EACH, _ALL,
                "the run's part of the time a request spends there", measured=True, paper=True),
        # Table 1, connection: each but reliability with its jitter. Loss is ours.
        _number("bandwidth_mbit_per_s", _P, _CONNECTION, "Mbit/s", _HIGH, _EACH, _ALL,
                "carried by the node's connection, else its driver's word", measured=True,
                paper=True),
        _number("bandwidth_jitter_percent", _P, _CONNECTION, "%", _LOW, _EACH, _ALL,
                "declared by whoever runs the network", paper=True),
        _number("delay_ms", _P, _CONNECTION, "ms", _LOW, _PATH, _ALL,
                "half of the node's round trips through the broker", measured=True, paper=True),
        _number("jitter_ms", _P, _CONNECTION, "ms", _LOW, _PATH, _ALL,
                "difference of consecutive round trips", measured=True, paper=True),
        _number("bit_error_rate", _P, _CONNECTION, "1", _LOW, _EACH, _ALL,
                "declared by whoever runs the network: below TCP no error is seen", paper=True),
        _number("bit_error_jitter", _P, _CONNECTION, "1", _LOW, _EACH, _ALL,
                "declared by whoever runs the network", paper=True),
        _number("loss_percent", _P, _CONNECTION, "%", _LOW, _LOSS, _ALL,
                "probes of the node that did not come back", measured=True),
        _number("reliability_percent", _P, _CONNECTION, "%", _HIGH, _PRODUCT, _ALL,
                "runs that gave outputs, of those begun", measured=True, paper=True),
        # Overhead. Memory is ours; the paper's power consumption is told per request.
        _number("storage_bytes", _O, _DATA, "B", _LOW, _SUM, _ALL,
                "sizes of the artifacts that a node keeps for the task", measured=True, paper=True),
        _number("computing_ms", _O, _COMPUTING, "ms", _LOW, _SUM, _ALL,
                "runs of all tasks for one request", measured=True, paper=True),
        _number("memory_bytes", _O, _COMPUTING, "B", _LOW, _SUM, _ALL,
                "resident memory of the task's workers", measured=True),
        _number("transmission_bytes", _O, _CONNECTION, "B", _LOW, _SUM, _ALL,
                "bytes that leave nodes for one request, as encoded", measured=True, paper=True),
        _number("energy_j", _O, _COMPUTING, "J", _LOW, _SUM, _ALL,
                "power sensor of the node, shared by time of its runs", measured=True, paper=True),
        # Security and privacy: constraints that placement and sandbox obey.
        _grade("storage_security", _S, _DATA, _SAFETY, _ALL,
               "kept: basic has each artifact checked by digest, strong by signature too"),
        _grade("computing_security", _S, _COMPUTING, _SAFETY, _ALL,
               "kept: basic asks for a process apart, strong for a sandbox in it"),
        _grade("transmission_security", _S, _CONNECTION, _SAFETY, _ALL,
               "kept: basic and strong ask for TLS with certificates of both sides"),
        _grade("data_privacy", _Y, _DATA, _PLACES, _ALL,
               "kept: tasks fed by raw input stay on its node, in its cell, or go anywhere"),
        _grade("algorithm_privacy", _Y, _ALGORITHM, _PLACES, _ALL,
               "kept: the program stays on the nodes named, in the cell, or goes anywhere"),
        # The paper's words: manually controllable, partially autonomous, fully autonomous.
        _grade("autonomy", _A, None, _AUTONOMY, _ALL,
               "kept: what the network may not decide alone waits for a person", share=_SERVICE),
    )
}  # fmt: skip


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
