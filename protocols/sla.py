"""What is agreed on a service: bounds on its indicators, zones of users, kinds of service.

Nodes carry these in messages and look none of them up: the catalogue stands in `protocols.qoais`.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta

from protocols.base import Part


class ServiceKind(StrEnum):
    """What a service does (TONA paper, "Task Procedures" and "Conclusion")."""

    TRAINING = "training"
    VERIFICATION = "verification"
    INFERENCE = "inference"
    SENSING = "sensing"
    COMPUTING = "computing"
    DATA_PROCESSING = "data-processing"


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
