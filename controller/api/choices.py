"""What NAMO has chosen, and what waits for a person: arguments, results, reads. Pure."""

from msgspec import Struct

from controller.records import (
    APPROVAL,
    ApprovalRecord,
    ApprovalState,
    Candidate,
    ServiceRecord,
)
from controller.registry import Registry
from protocols.messages.hierarchy import Autonomy, ServiceState


class ListApprovals(Struct, frozen=True, forbid_unknown_fields=True):
    """Which decisions; without a state those that wait."""

    service: str = ""
    state: ApprovalState | None = None


class ServiceExplanation(Struct, frozen=True):
    """How a service is done and why not otherwise."""

    service: str
    state: ServiceState
    reason: str
    decomposition: str
    anchor: str
    autonomy: Autonomy
    leaving: tuple[str, ...]
    """Anchors that had it before and have not let go yet."""
    candidates: tuple[Candidate, ...]
    """What NAMO has weighed, the chosen one first."""


def explain_service(one: ServiceRecord) -> ServiceExplanation:
    """Return how a service is done."""
    return ServiceExplanation(
        service=one.order.service,
        state=one.state,
        reason=one.reason,
        decomposition=one.order.decomposition,
        anchor=one.anchor,
        autonomy=one.order.autonomy,
        leaving=one.leaving,
        candidates=one.candidates,
    )


def list_approvals(arguments: ListApprovals, registry: Registry) -> list[ApprovalRecord]:
    """Return decisions by their number."""
    wanted = arguments.state or ApprovalState.PENDING
    found = registry.list(
        APPROVAL,
        where=lambda one: one.state is wanted and arguments.service in ("", one.service),
    )
    return sorted(found, key=lambda one: int(one.number))
