"""What a submission would change: a use case held against those that there are."""

from collections.abc import Mapping
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from controller.decider import Called
from controller.namo.decompose import decompose
from controller.namo.usecase import parse
from controller.records import ServiceRecord, UseCaseRecord, UseCaseState
from protocols.errors import UserError
from protocols.messages import ServiceOrder
from protocols.messages.hierarchy import ServiceState

OPERATOR: Final = "default"
"""The tenant that may act for every other."""
OVER: Final = (UseCaseState.DELETING, UseCaseState.DELETED)


class SubmitArguments(Protocol):
    """What `usecase.submit` is called with; `format` is toml or json."""

    document: str
    format: str
    dry_run: bool


class Submitted(Struct, frozen=True):
    """The answer to `usecase.submit`: what was, or on a dry run would be, ordered."""

    name: str
    tenant: str
    generation: int
    change: str
    """`created`, `changed` or `unchanged`."""
    services: tuple[str, ...]
    removed: tuple[str, ...] = ()
    """Services that the use case had before and has no longer."""
    tasks: dict[str, float | None] = {}
    """Every task and its latency budget in ms, None where the service has no bound."""
    dry_run: bool = False


class Plan(Struct, frozen=True):
    """What a submission changes, not yet done."""

    record: UseCaseRecord
    answer: Submitted
    orders: tuple[ServiceOrder, ...]
    """Only those that differ from what was ordered before."""


def plan_submission(
    arguments: SubmitArguments,
    call: Called,
    use_cases: Mapping[str, UseCaseRecord],
    services: Mapping[str, ServiceRecord],
) -> Plan:
    """Validate a document and find what it changes. Raises UserError."""
    use_case, document = parse(arguments.document, arguments.format)
    before = use_cases.get(use_case.name)
    if before is not None and before.state is UseCaseState.DELETED:
        before = None
    tenant = use_case.tenant or (before.tenant if before is not None else call.tenant)
    names = tuple(service.name for service in use_case.services)
    check_tenant(tenant, call.tenant, f"use case {use_case.name!r}")
    _check_use_case(before, tenant)
    for name in names:
        _check_service(services.get(name), use_case.name)
    same = before is not None and before.document == document
    used = [services[one].order.generation for one in names if one in services]
    if use_case.name in use_cases:
        used.append(use_cases[use_case.name].generation)
    # Above every generation ever used for these names, so that no late report fits by accident.
    generation = max(used, default=0) + (not same)
    orders = decompose(use_case, generation)
    record = UseCaseRecord(
        name=use_case.name,
        tenant=tenant,
        generation=generation,
        state=UseCaseState.ACCEPTED,
        document=document,
        services=names,
        submitted_unix_ms=call.unix_ms,
    )
    had = before.services if before is not None else ()
    answer = Submitted(
        name=use_case.name,
        tenant=tenant,
        generation=generation,
        change="unchanged" if same else "changed" if before is not None else "created",
        services=names,
        removed=tuple(one for one in had if one not in names),
        tasks={one.task: one.qos.latency_ms for order in orders for one in order.tasks},
        dry_run=arguments.dry_run,
    )
    return Plan(record, answer, tuple(one for one in orders if _differs(one, services)))


def check_tenant(owner: str, caller: str, what: str) -> None:
    """Hold a caller against the owner of a thing. Raises UserError."""
    if caller not in (owner, OPERATOR):
        raise UserError(f"{what} is of tenant {owner!r}, you are {caller!r}")


def _check_use_case(before: UseCaseRecord | None, tenant: str) -> None:
    if before is None:
        return
    if before.state is UseCaseState.DELETING:
        raise UserError(f"use case {before.name!r} is being deleted: submit it when that has ended")
    if before.tenant != tenant:
        raise UserError(
            f"use case {before.name!r} belongs to tenant {before.tenant!r}: choose another name"
        )


def _check_service(held: ServiceRecord | None, use_case: str) -> None:
    if held is None or held.state is ServiceState.DELETED:
        return
    name = held.order.service
    if held.ending:
        raise UserError(f"service {name!r} is being deleted: submit it when that has ended")
    if held.order.use_case != use_case:
        raise UserError(
            f"service {name!r} belongs to use case {held.order.use_case!r}: choose another name"
        )


def _differs(order: ServiceOrder, services: Mapping[str, ServiceRecord]) -> bool:
    held = services.get(order.service)
    return (
        held is None
        or held.state is ServiceState.DELETED
        or replace(order, generation=held.order.generation) != held.order
    )
