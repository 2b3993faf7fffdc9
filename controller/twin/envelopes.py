"""Envelopes: a scheduler acts inside what it was granted, and hands up what that cannot hold."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from msgspec import Struct

from controller.decider import Event, Output, Received, Send, ToNode, ToRole
from controller.scheduler.adoption import OVERTAKEN_MS
from controller.scheduler.leases import LEASE_MS
from controller.twin.rules import BrokenRule, Rule
from protocols.manifest import Manifest
from protocols.messages import (
    Assign,
    Birth,
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    Feed,
    Lease,
    Relinquished,
    TaskReport,
    Tune,
)
from protocols.messages.quality import Leeway, Tuning
from protocols.messages.task import InstanceState

PATIENCE_MS: Final = 10_000
"""Beyond the task's own policy: what a scheduler may take until it places or escalates."""
GRANTS_KEPT: Final = 64
_SERVED: Final = (InstanceState.READY, InstanceState.DEPLOYING)


class _Granted(Struct):
    """A task as one scheduler was granted it, newest last."""

    anchor: str
    grants: list[EnvelopeGrant]
    idle_since_ms: float | None
    """Since when nothing serves and nothing was done about it; None: something was."""
    served: bool = False
    """Whether the last report said that it runs, or is about to."""
    handed_up: bool = False
    """Whether the anchor was told and has not granted anew."""

    @property
    def generation(self) -> int:
        """The newest one: an older one that another anchor grants after it changes nothing."""
        return max(one.generation for one in self.grants)


class Envelopes:
    """Holds what one life of a scheduler says against the grants it was given."""

    def __init__(self, broken: Callable[[Rule, str], BrokenRule], anchors: Collection[str]) -> None:
        self._broken = broken
        self._anchors = anchors
        """Those of its cell: what others say it may do counts as nothing."""
        self._tasks: dict[str, _Granted] = {}
        self._gone: dict[str, tuple[str, int, int]] = {}
        """By task: the anchor that took it back last, its generation, and the lease that ended."""
        self._services: dict[str, EnvelopeGrant] = {}
        self._leaves: dict[str, tuple[float, float]] = {}
        """By anchor of another process: since when there is its leave to act, and the last word."""
        self._held: dict[str, int] = {}
        """The newest generation of each task that a node holds."""

    def decided(self, batch: Sequence[Event], output: Output, now_ms: float) -> None:
        """Check a turn. Raises BrokenRule."""
        for event in batch:
            if isinstance(event, Received) and event.sender in self._anchors:
                self._told(event.sender, event.body, now_ms)
            elif isinstance(event, Received) and isinstance(event.body, Birth):
                for one in event.body.holdings:
                    self._held[one.task] = max(one.generation, self._held.get(one.task, 0))
        for send in output.sends:
            self._says(send, now_ms)
            if isinstance(send.body, Relinquished) and isinstance(send.to, ToRole):
                self._let_go(send.to.role, send.body)

    def _let_go(self, anchor: str, body: Relinquished) -> None:
        """Forget what a task was granted before; the next grant may have come in the same turn."""
        self._gone[body.task] = anchor, body.generation, body.leased
        granted = self._tasks.get(body.task)
        if granted is None or (granted.anchor != anchor and granted.generation < body.generation):
            # What another one has granted of a generation before is its own.
            return
        granted.grants = [one for one in granted.grants if one.epoch_to > body.leased]
        if not granted.grants:
            del self._tasks[body.task]

    def _late(self, sender: str, grant: EnvelopeGrant) -> bool:
        """Whether a grant was long on its way: another anchor has taken the task back since."""
        anchor, generation, leased = self._gone.get(grant.spec.task, (sender, 0, 0))
        over = grant.generation <= generation and grant.epoch_to <= leased
        return grant.spec.task not in self._tasks and anchor != sender and over

    def _told(self, sender: str, body: Struct, now_ms: float) -> None:
        if isinstance(body, Lease):
            since_ms, last_ms = self._leaves.get(sender, (now_ms, now_ms))
            goes_on = now_ms - last_ms <= LEASE_MS
            self._leaves[sender] = (since_ms if goes_on else now_ms), now_ms
        elif isinstance(body, EnvelopeGrant):
            if self._late(sender, body):
                return
            granted = self._tasks.get(body.spec.task)
            if granted is None:
                granted = self._tasks[body.spec.task] = _Granted(sender, [], now_ms)
            granted.anchor = sender
            granted.grants.append(body)
            if granted.handed_up:
                granted.handed_up = False
                granted.idle_since_ms = None if granted.served else now_ms
            del granted.grants[:-GRANTS_KEPT]
            self._services[body.service] = body
        elif isinstance(body, EnvelopeRevoke) and not body.transferred:
            granted = self._tasks.get(body.task)
            if granted is not None and granted.generation <= body.generation:
                del self._tasks[body.task]

    def _says(self, send: Send, now_ms: float) -> None:
        body = send.body
        if isinstance(body, Assign) and isinstance(send.to, ToNode):
            self._assigns(send.to.node, body)
            self._acts(body.task, now_ms)
        elif isinstance(body, Tune):
            granted = self._tasks.get(body.task)
            if granted is None:
                raise self._broken(Rule.ENVELOPE, f"{body.task} is tuned without a grant")
            self._within(body.task, body.tuning, granted)
        elif isinstance(body, Feed) and body.sources:
            self._feeds(body)
        elif isinstance(body, Escalation):
            granted = self._tasks.get(body.task)
            if granted is not None:
                granted.handed_up = True
        elif isinstance(body, TaskReport):
            granted = self._tasks.get(body.task)
            if granted is not None:
                granted.served = body.state in _SERVED
                granted.idle_since_ms = None if granted.served else now_ms

    def _acts(self, task: str, now_ms: float) -> None:
        granted = self._tasks.get(task)
        if granted is not None and granted.idle_since_ms is not None:
            granted.idle_since_ms = now_ms

    def _assigns(self, node: str, assign: Assign) -> None:
        granted = self._tasks.get(assign.task)
        if granted is None:
            raise self._broken(Rule.ENVELOPE, f"{assign.task} is assigned without a grant")
        leases = [one for one in granted.grants if one.epoch_from <= assign.epoch <= one.epoch_to]
        newest = granted.grants[-1]
        if not leases:
            first = granted.grants[0].epoch_from
            if assign.epoch >= first or len(granted.grants) == GRANTS_KEPT:
                text = f"{assign.task} is assigned under epoch {assign.epoch}, which nobody leased"
                raise self._broken(Rule.ENVELOPE, text)
            # An earlier life of the scheduler has given it; the node still counts.
            leases = [newest] if node != newest.current_node else []
        if leases and all(node not in one.nodes for one in (*leases, newest)):
            text = f"{assign.task} is assigned to {node}, its envelope is {newest.nodes}"
            raise self._broken(Rule.ENVELOPE, text)
        self._within(assign.task, assign.tuning, granted)
        if all(assign.manifest != program(one, assign.tuning) for one in granted.grants):
            text = f"{assign.task} is assigned with a program that no grant names"
            raise self._broken(Rule.ENVELOPE, text)
        origins = newest.spec.origins
        if origins and private(newest) and node not in origins:
            text = f"{assign.task} goes to {node}, its data may not leave {origins}"
            raise self._broken(Rule.CONSTRAINT, text)

    def _within(self, task: str, tuning: Tuning, granted: _Granted) -> None:
        """Check a tuning against the leeway of the grants that may still be on their way."""
        reasons = [beyond(tuning, one) for one in granted.grants[-2:]]
        if all(reasons):
            raise self._broken(Rule.ENVELOPE, f"{task} is tuned beyond its leeway: {reasons[-1]}")

    def _feeds(self, feed: Feed) -> None:
        grant = self._services.get(feed.service)
        if grant is None:
            raise self._broken(Rule.ENVELOPE, f"{feed.service} is fed without a grant")
        leeway = grant.leeway
        slowed = 0 < feed.rate_per_s < leeway.rate_min_per_s
        thinned = feed.decimation != 1 and feed.decimation not in leeway.decimations
        worked = feed.function and feed.function not in leeway.functions
        if slowed or thinned or worked:
            raise self._broken(Rule.ENVELOPE, f"{feed.service} is fed beyond its leeway: {feed}")

    def watch(self, now_ms: float) -> None:
        """Check that what cannot be served was handed up. Raises BrokenRule."""
        for task, granted in self._tasks.items():
            policy = granted.grants[-1].spec.policy
            since_ms = granted.idle_since_ms
            if since_ms is None or granted.handed_up or not policy.replace:
                continue
            begun_ms, last_ms = self._leaves.get(granted.anchor, (since_ms, now_ms))
            if now_ms - last_ms > LEASE_MS:
                # It may not act: somebody else may have the task.
                continue
            # Where a node holds the next generation its grant is waited for, a while.
            overtaken = len(self._anchors) > 1 and self._held.get(task, 0) > granted.generation
            patience_ms = PATIENCE_MS + OVERTAKEN_MS * overtaken
            if now_ms - max(since_ms, begun_ms) > policy.lost_after_ms + patience_ms:
                text = f"{task} is not served since {since_ms:.0f} ms and was not handed up"
                raise self._broken(Rule.ESCALATION, text)


def program(grant: EnvelopeGrant, tuning: Tuning) -> Manifest | None:
    """Return the manifest that a tuning means; None when the grant has no such variant."""
    if not tuning.variant:
        return grant.spec.manifest
    found = (one.manifest for one in grant.spec.variants if one.name == tuning.variant)
    return next(found, None)


def beyond(tuning: Tuning, grant: EnvelopeGrant) -> str:
    """Return what of a tuning a grant does not allow; empty when it allows all."""
    leeway, first = grant.leeway, grant.tuning
    for name, most in (
        ("cpu_percent", leeway.cpu_percent_max),
        ("threads", leeway.threads_max),
        ("replicas", max(leeway.replicas_max, grant.spec.replicas)),
        ("priority", max(leeway.priority_max, grant.spec.priority)),
    ):
        value = getattr(tuning, name)
        if value > most and value != getattr(first, name):
            return f"{name} {value} above {most}"
    for name, allowed in _allowed(leeway):
        value = getattr(tuning, name)
        if value and value not in allowed and value != getattr(first, name):
            return f"{name} {value!r} is not among {allowed}"
    return ""


def _allowed(leeway: Leeway) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return (
        ("variant", leeway.variants),
        ("provider", leeway.providers),
        ("encoding", leeway.encodings),
    )


def private(grant: EnvelopeGrant) -> bool:
    """Whether the service's raw input may not leave the nodes where it comes to be."""
    bounds = (*grant.sla.zone.bounds, *grant.spec.qos.bounds)
    return any(one.indicator == "data_privacy" and one.level == "node" for one in bounds)
