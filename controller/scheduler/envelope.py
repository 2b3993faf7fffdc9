"""What an envelope allows: the TS never runs a task in a way that its grant does not."""

import msgspec

from protocols.messages.hierarchy import EnvelopeGrant
from protocols.messages.quality import PRIORITY_DEFAULT, Tuning


def initial(grant: EnvelopeGrant) -> Tuning:
    """Return how the TA wants a task to run."""
    tuning = grant.tuning
    if tuning.priority == PRIORITY_DEFAULT != grant.spec.priority:
        return msgspec.structs.replace(tuning, priority=grant.spec.priority)
    return tuning


def replicas_of(grant: EnvelopeGrant, tuning: Tuning) -> int:
    """Return how many workers a tuning means."""
    return tuning.replicas or grant.spec.replicas


def may_move(grant: EnvelopeGrant) -> bool:
    """Whether the TS may move a task for its quality; those of a group stay together."""
    return grant.leeway.moves and not grant.spec.group


def allows(grant: EnvelopeGrant, tuning: Tuning) -> bool:
    """Whether a task may run so: as the TA wants it, as specified, or within the leeway."""
    first, leeway, spec = initial(grant), grant.leeway, grant.spec
    replicas = max(leeway.replicas_max, replicas_of(grant, first))
    return (
        tuning.variant in ("", first.variant, *leeway.variants)
        and tuning.provider in ("", first.provider, *leeway.providers)
        and tuning.encoding in ("", first.encoding, *leeway.encodings)
        and tuning.threads <= max(first.threads, leeway.threads_max)
        and tuning.replicas <= max(spec.replicas, replicas)
        and tuning.cpu_percent <= max(first.cpu_percent, leeway.cpu_percent_max)
        and (tuning.cpu_percent > 0 or first.cpu_percent == 0)
        and tuning.priority <= max(first.priority, leeway.priority_max)
    )


def empty(grant: EnvelopeGrant, *, alone: bool) -> bool:
    """Whether an envelope leaves nothing to change; `alone`: it has no other node."""
    leeway, first = grant.leeway, initial(grant)
    return not (
        (may_move(grant) and not alone)
        or leeway.variants
        or leeway.providers
        or leeway.encodings
        or leeway.threads_max > first.threads
        or leeway.replicas_max > replicas_of(grant, first)
        or leeway.cpu_percent_max > first.cpu_percent > 0
        or leeway.priority_max > first.priority
        or (grant.sources and (leeway.rate_min_per_s or leeway.decimations or leeway.functions))
    )
