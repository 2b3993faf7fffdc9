"""What a submission would change: a use case held against those that there are."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from controller.booking import least_bytes
from controller.decider import Called
from controller.namo.books import alive
from controller.namo.candidates import Position, Weighed, rebuilt, told, weigh
from controller.namo.model import Origin, Service, UseCase
from controller.namo.usecase import parse
from controller.namo.versions import former_of
from controller.records import ServiceRecord, UseCaseRecord, UseCaseState
from protocols.errors import UserError
from protocols.messages.hierarchy import ServiceState
from protocols.qoais import INDICATORS, Category

OPERATOR: Final = "default"
"""The tenant that may act for every other."""
OVER: Final = (UseCaseState.DELETING, UseCaseState.DELETED)
DELETING: Final = "is being deleted: submit it when that has ended"
"""What is refused so is possible later."""


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
    decompositions: dict[str, str] = {}
    """Every service and how it is done: decomposition and anchor."""
    dormant: bool = False
    """Whether it waits for its trigger."""
    notes: tuple[str, ...] = ()
    """What was agreed that nobody can tell, for it is neither measured nor declared."""


class Plan(Struct, frozen=True):
    """What a submission changes, not yet done."""

    record: UseCaseRecord
    answer: Submitted
    services: tuple[ServiceRecord, ...]
    """Only those that differ from what was ordered before; none while it is dormant."""


def plan_submission(
    arguments: SubmitArguments,
    call: Called,
    use_cases: Mapping[str, UseCaseRecord],
    services: Mapping[str, ServiceRecord],
    position: Position,
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
    same = before is not None and before.document == document
    generation = next_generation(use_case, use_cases, services, same=same)
    sleeps = before is None or before.state is UseCaseState.DORMANT
    dormant = use_case.trigger is not None and sleeps
    planned = plan_services(use_case, tenant, generation, services, position)
    record = UseCaseRecord(
        name=use_case.name,
        tenant=tenant,
        generation=generation,
        state=UseCaseState.DORMANT if dormant else UseCaseState.ACCEPTED,
        document=document,
        services=names,
        reason="its trigger has not been pulled" if dormant else "",
        submitted_unix_ms=call.unix_ms,
        origin=origin_of(use_case),
        former=former_of(before, document),
    )
    had = before.services if before is not None else ()
    orders = {one.order.service: one for one in planned}
    kept = [orders.get(name) or services[name] for name in names]
    answer = Submitted(
        name=use_case.name,
        tenant=tenant,
        generation=generation,
        change="unchanged" if same else "changed" if before is not None else "created",
        services=names,
        removed=tuple(one for one in had if one not in names),
        tasks={spec.task: spec.qos.latency_ms for one in kept for spec in one.order.tasks},
        dry_run=arguments.dry_run,
        decompositions={
            one.order.service: f"{one.order.decomposition} at {one.anchor}" for one in kept
        },
        dormant=dormant,
        notes=_notes(use_case),
    )
    return Plan(record, answer, () if dormant else planned)


def origin_of(use_case: UseCase) -> str:
    """Return who asks for a use case."""
    pulled = Origin.NETWORK if use_case.trigger is not None else Origin.USER
    return (use_case.origin or pulled).value


def next_generation(
    use_case: UseCase,
    use_cases: Mapping[str, UseCaseRecord],
    services: Mapping[str, ServiceRecord],
    *,
    same: bool,
) -> int:
    """Return a generation above every one ever used for these names.

    So no late report fits by accident. A document that says the same keeps the one it has.
    """
    names = [one.name for one in use_case.services]
    used = [services[one].order.generation for one in names if one in services]
    if use_case.name in use_cases:
        record = use_cases[use_case.name]
        if same:
            return record.generation
        used.append(record.generation)
    return max(used, default=0) + 1


def plan_services(
    use_case: UseCase,
    tenant: str,
    generation: int,
    services: Mapping[str, ServiceRecord],
    position: Position,
) -> tuple[ServiceRecord, ...]:
    """Choose how each service is done; only those that differ from what is ordered.

    Raises UserError when no way to do a service could ever keep what was agreed, or its name is
    another's.
    """
    made = []
    for service in use_case.services:
        held = services.get(service.name)
        _check_service(held, use_case.name)
        if held is not None and alive(held):
            again = rebuilt(service, held.order, use_case.name)
            if again == held.order:
                continue
        made.append(_planned(service, use_case.name, tenant, generation, held, position))
    return tuple(made)


def _planned(
    service: Service,
    use_case: str,
    tenant: str,
    generation: int,
    held: ServiceRecord | None,
    position: Position,
) -> ServiceRecord:
    lives = held is not None and alive(held)
    own = (held.anchor, memory_of(held)) if held is not None and lives else ("", {})
    ranked = weigh(service, use_case, generation, position, own)
    # A change of the document is none of the anchor: what runs goes on where it is.
    here = [one for one in ranked if held is not None and lives and one.anchor == held.anchor]
    chosen = (here or ranked)[0]
    if chosen.estimate.never:
        raise UserError(_hopeless(service.name, ranked))
    made = ServiceRecord(
        order=chosen.order,
        tenant=tenant,
        anchor=chosen.anchor,
        state=ServiceState.DEPLOYING,
        candidates=told(ranked, chosen),
    )
    if held is None:
        return made
    above = max(held.order.epochs_above, 0 if lives else held.epoch_high)
    return replace(
        made,
        order=replace(made.order, epochs_above=above),
        leaving=held.leaving,
        epoch_high=held.epoch_high,
        number=held.number,
        moved=held.moved,
    )


def memory_of(record: ServiceRecord) -> dict[str, int]:
    """Return the task memory that a service holds at least, by task."""
    return {one.task: least_bytes(one) for one in record.order.tasks}


def _hopeless(service: str, ranked: Sequence[Weighed]) -> str:
    reasons = dict.fromkeys(f"{one.name}: {one.estimate.never}" for one in ranked)
    return f"service {service!r} cannot keep what was agreed: {'; '.join(reasons)}"


def _notes(use_case: UseCase) -> tuple[str, ...]:
    """Name the bounds that are neither measured, declared by a task, nor kept by placement."""
    notes = []
    for service in use_case.services:
        tasks = [task for way in service.ways() for task in way.tasks]
        declared = {name for task in tasks for name in task.declared}
        declared |= {
            name
            for name in ("accuracy_percent", "precision_bits")
            if any(getattr(one, name, None) is not None for one in (*tasks, *service.ways()))
        }
        for bound in service.sla.all_bounds():
            indicator = INDICATORS[bound.indicator]
            silent = indicator.category in (Category.PERFORMANCE, Category.OVERHEAD)
            if silent and not indicator.measured and bound.indicator not in declared:
                notes.append(
                    f"{service.name}: {bound.indicator} is {indicator.how}, and no task declares "
                    "it: nobody can tell whether it is kept"
                )
    return tuple(notes)


def check_tenant(owner: str, caller: str, what: str) -> None:
    """Hold a caller against the owner of a thing. Raises UserError."""
    if caller not in (owner, OPERATOR):
        raise UserError(f"{what} is of tenant {owner!r}, you are {caller!r}")


def _check_use_case(before: UseCaseRecord | None, tenant: str) -> None:
    if before is None:
        return
    if before.state is UseCaseState.DELETING:
        raise UserError(f"use case {before.name!r} {DELETING}")
    if before.tenant != tenant:
        raise UserError(
            f"use case {before.name!r} belongs to tenant {before.tenant!r}: choose another name"
        )


def _check_service(held: ServiceRecord | None, use_case: str) -> None:
    if held is None or held.state is ServiceState.DELETED:
        return
    name = held.order.service
    if held.ending:
        raise UserError(f"service {name!r} {DELETING}")
    if held.order.use_case != use_case:
        raise UserError(
            f"service {name!r} belongs to use case {held.order.use_case!r}: choose another name"
        )
