"""What is measured against what was agreed: the uses of every task and service, watched."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from controller.desk import Desk
from controller.records import ServiceQuality, TaskQuality
from controller.scheduler import envelope
from controller.scheduler.copies import TaskEntry, program
from controller.scheduler.cost import CostModel
from controller.scheduler.danger import ENTER_USE, STALE_MS, Danger, Watch
from controller.scheduler.feeds import Feeds, latency_bound
from controller.scheduler.levers import accuracy_of, expected_of, work_of
from controller.scheduler.nodes import NodeTable
from controller.scheduler.quality import (
    Col,
    TaskMeters,
    Users,
    count_satisfied,
    latency_use,
)
from controller.scheduler.table import TaskTable
from protocols.messages import QualityReport
from protocols.messages.quality import TaskSample
from protocols.qoais import Bound

LATENCY: Final = "latency_ms"
AVAILABILITY: Final = "availability_percent"
SHED_SHARE: Final = 0.05
LATE_SHARE: Final = 0.02
"""Shares of what is offered that may be refused, or given up as late, without danger."""
_EARLY: Final = {LATENCY, AVAILABILITY}
"""Indicators that grow with load: their danger begins before the bound is met."""
_SHARES: Final = {"compute_ms", "delay_ms", "jitter_ms"}
"""What a latency is split into, by the map to resource QoS."""
_JUST_BELOW: Final = 0.999
"""What is just at its bound keeps it."""
_KEPT_BY_OTHERS: Final = {
    "throughput_per_s",  # what nobody asks for is not given
    "accuracy_percent",  # kept by which variants are chosen
    "storage_bytes",  # these two by placement
    "bandwidth_mbit_per_s",
}


class Use(Struct, frozen=True):
    """One indicator of a task against its bound."""

    indicator: str
    measured: float
    target: float
    use: float


class Gauges:
    """Takes in measurements and says what is in danger."""

    def __init__(
        self, desk: Desk, nodes: NodeTable, table: TaskTable, feeds: Feeds, cost: CostModel
    ) -> None:
        self.meters = TaskMeters()
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._feeds = feeds
        self._cost = cost
        self._users: dict[str, Users] = {}
        self._watches: dict[str, dict[str, Watch]] = {}
        """Of each task, and of each service under its name in brackets, by indicator."""

    def take(self, node: str, report: QualityReport) -> set[str]:
        """Take in what a node has measured; returns the services that it speaks of."""
        now_ms, touched = self._desk.now_ms, set()
        for sample in report.tasks:
            entry = self._table.tasks.get(sample.task)
            current = entry.current if entry is not None else None
            if entry is None or current is None or current.node != node:
                continue
            if current.epoch != sample.epoch:
                continue
            self._learn(entry, node, sample)
            self.meters.take(sample, report.window_ms, now_ms)
            for use in self.uses(entry):
                self._watch(entry.task, use.indicator).take(_watched(use), now_ms)
            touched.add(entry.grant.service)
        for user in report.users:
            if self._table.may_answer(node, user.service):
                users = self._users.setdefault(user.service, Users())
                users.take(user, report.window_ms, now_ms)
                touched.add(user.service)
        for service in touched:
            whole = self._whole_use(service)
            if whole is not None:
                self._watch(f"[{service}]", LATENCY).take(whole, now_ms)
        return touched

    def _learn(self, entry: TaskEntry, node: str, sample: TaskSample) -> None:
        slot = self._nodes.slots[node]
        current = entry.current
        tuning = current.tuning if current is not None else entry.tuning
        data = self._feeds.data(entry.grant.service)
        self._cost.now_ms = self._desk.now_ms
        work = work_of(entry, tuning, data)
        self._cost.learn_run(
            work,
            node,
            self._nodes.births[slot].inventory.profile,
            sample.run_ms,
            float(self._nodes.cpu_percent[slot]),
            sample.done,
            expected_of(entry, tuning.variant),
        )
        self._cost.learn_sent(work.digest, tuning.encoding, sample.output_bytes, sample.sent_bytes)
        if sample.done:
            each = sample.input_bytes / sample.done
            self._cost.learn_fetch(node, each, sample.fetch_ms)

    def _watch(self, name: str, indicator: str) -> Watch:
        return self._watches.setdefault(name, {}).setdefault(indicator, Watch())

    # What is in danger.

    def dangers(self, service: str) -> list[Danger]:
        """Return what is in danger in a service, the worst first."""
        found = []
        for entry in self._entries(service):
            watches = self._watches.get(entry.task, {})
            if any(watch.danger for watch in watches.values()):
                found += [
                    Danger(entry.task, one.indicator, one.measured, one.target, one.use)
                    for one in self.uses(entry)
                    if one.indicator in watches and watches[one.indicator].danger
                ]
        whole = self._watches.get(f"[{service}]", {}).get(LATENCY)
        entries = self._entries(service)
        if not found and entries and whole is not None and whole.danger:
            heaviest = max(entries, key=lambda one: self.meters.number(one.task, Col.LEVEL_MS))
            use = self._whole_use(service)
            target = latency_bound(heaviest) or _tightest(heaviest)
            if use is not None and target is not None:
                found = [Danger(heaviest.task, LATENCY, use * target, target, use, whole=True)]
        return sorted(found, key=lambda one: (-one.use, one.task))

    def use_now(
        self, service: str, task: str, indicator: str, *, whole: bool = False
    ) -> float | None:
        """Return the present use of an indicator; of the service where the task has none."""
        if whole:
            return self._whole_use(service)
        entry = self._table.tasks.get(task)
        if entry is None:
            return None
        found = [one.use for one in self.uses(entry) if one.indicator == indicator]
        return found[0] if found else self._whole_use(service)

    def worst_use(self, service: str) -> float | None:
        """Return the worst use of all a service's indicators; None: nothing is measured."""
        found = [use.use for entry in self._entries(service) for use in self.uses(entry)]
        whole = self._whole_use(service)
        if whole is not None:
            found.append(whole)
        return max(found, default=None)

    def uses(self, entry: TaskEntry) -> Iterator[Use]:
        """Yield what is measured of a task against its bounds: of each indicator the worst."""
        worst: dict[str, Use] = {}
        for one in self._all_uses(entry):
            before = worst.get(one.indicator)
            if before is None or before.use < one.use:
                worst[one.indicator] = one
        yield from worst.values()

    def _all_uses(self, entry: TaskEntry) -> Iterator[Use]:
        task, meters, qos = entry.task, self.meters, entry.grant.spec.qos
        level, target = meters.get(task, Col.LEVEL_MS), qos.latency_ms
        if level is not None and target is not None:
            yield Use(LATENCY, level, target, level / target)
        yield from self._refusals(entry)
        values = self.values(entry)
        agreed = {bound.indicator for bound in qos.bounds}
        for bound in (*qos.bounds, *entry.grant.resources):
            # A share of the latency that nobody agreed on says where its time goes. It is no
            # danger: what one share is over, another may be under.
            if bound.indicator in _SHARES and bound.indicator not in agreed:
                continue
            value = values.get(bound.indicator)
            found = _use(bound, value) if value is not None else None
            if value is not None and found is not None:
                limit = bound.at_most if bound.at_most is not None else bound.at_least
                yield Use(bound.indicator, value, limit or 0.0, found)

    def _refusals(self, entry: TaskEntry) -> Iterator[Use]:
        """Yield the share of requests that are refused, or late where a latency was agreed."""
        task, meters = entry.task, self.meters
        offered = meters.number(task, Col.OFFERED_PER_S)
        if offered <= 0:
            return
        shed = meters.number(task, Col.SHED_PER_S) / offered
        late = 0.0
        if entry.grant.spec.qos.latency_ms is not None or latency_bound(entry) is not None:
            late = meters.number(task, Col.LATE_PER_S) / offered
        use, allowed = max((shed / SHED_SHARE, SHED_SHARE), (late / LATE_SHARE, LATE_SHARE))
        yield Use(AVAILABILITY, 100.0 * (1.0 - shed - late), 100.0 * (1.0 - allowed), use)

    def values(self, entry: TaskEntry) -> dict[str, float]:
        """Return the measured, and the declared, indicator values of a task."""
        task, meters, current = entry.task, self.meters, entry.current
        found: dict[str, float | None] = {
            LATENCY: meters.get(task, Col.LEVEL_MS),
            "compute_ms": meters.get(task, Col.RUN_MS),
            "computing_ms": meters.get(task, Col.RUN_MS),
            "data_preparation_ms": meters.get(task, Col.FETCH_MS),
            "memory_bytes": meters.get(task, Col.MEMORY_BYTES),
            "transmission_bytes": meters.get(task, Col.SENT_BYTES),
            "energy_j": meters.get(task, Col.ENERGY_J),
            "throughput_per_s": meters.get(task, Col.DONE_PER_S),
            "accuracy_percent": accuracy_of(entry, entry.tuning.variant),
        }
        offered = meters.number(task, Col.OFFERED_PER_S)
        done, failed = (meters.number(task, one) for one in (Col.DONE_PER_S, Col.FAILED_PER_S))
        if offered > 0:
            found[AVAILABILITY] = min(100.0, 100.0 * done / offered)
        if done + failed > 0:
            found["reliability_percent"] = 100.0 * done / (done + failed)
        level = found[LATENCY]
        if level:
            run = meters.number(task, Col.RUN_MS)
            found["compute_efficiency_percent"] = min(100.0, 100.0 * run / level)
        slot = self._nodes.slots.get(current.node) if current is not None else None
        link = self._nodes.links[slot] if slot is not None else None
        if link is not None:
            trip = link.round_trip_ms
            found["delay_ms"] = trip / 2 if trip is not None else None
            found["jitter_ms"] = link.jitter_ms
            found["loss_percent"] = link.loss_percent
            found["bandwidth_mbit_per_s"] = link.bandwidth_mbit_per_s
        manifest = program(entry.grant, entry.tuning.variant)
        constants = sum(one.artifact.size_bytes for one in manifest.constants)
        found["storage_bytes"] = float(manifest.artifact.size_bytes + constants)
        return {name: value for name, value in found.items() if value is not None}

    def _whole_use(self, service: str) -> float | None:
        entries = self._entries(service)
        users = self._users.get(service)
        if not entries or users is None:
            return None
        grant = entries[-1].grant
        return latency_use(users.present(self._desk.now_ms), grant.sla, grant.users)

    def _entries(self, service: str) -> list[TaskEntry]:
        found = (self._table.tasks.get(task) for task in self._table.of_service(service))
        return [entry for entry in found if entry is not None]

    # Time, and what is over.

    def sweep(self) -> set[str]:
        """Forget dangers that nothing has been heard of; returns the services they belong to."""
        touched = set()
        for task in self.meters.silent(self._desk.now_ms, STALE_MS):
            entry = self._table.tasks.get(task)
            self.meters.renew(task)
            self._watches.pop(task, None)
            if entry is not None:
                touched.add(entry.grant.service)
        for service, users in self._users.items():
            if not users.present(self._desk.now_ms):
                self._watches.pop(f"[{service}]", None)
        return touched

    def renew(self, service: str) -> None:
        """Forget what was measured of a service: it runs in another way now."""
        for task in self._table.of_service(service):
            self.meters.renew(task)
            self._watches.pop(task, None)
        self._watches.pop(f"[{service}]", None)
        if service in self._users:
            self._users[service].renew()

    def drop(self, task: str, service: str) -> None:
        """Forget a task, and its service when it was the last."""
        self.meters.drop(task)
        self._watches.pop(task, None)
        if not self._table.of_service(service):
            self._users.pop(service, None)
            self._watches.pop(f"[{service}]", None)

    # For people.

    def view(self, service: str, predicted: dict[str, float]) -> ServiceQuality | None:
        """Return how a service fares; None when nothing is measured."""
        entries = self._entries(service)
        if not entries:
            return None
        users = self._users.get(service, Users()).present(self._desk.now_ms)
        grant = entries[-1].grant
        values = self._service_values(entries)
        common = {name: values[name] for name in ("accuracy_percent",) if name in values}
        satisfied = count_satisfied(users, grant.sla, grant.users, common)
        weight = sum(user.answers_per_s for user in users.values())
        if users and weight > 0:
            values[LATENCY] = (
                sum(one.latency_p95_ms * one.answers_per_s for one in users.values()) / weight
            )
            values["throughput_per_s"] = weight
            good = sum(one.availability_percent * one.answers_per_s for one in users.values())
            values[AVAILABILITY] = good / weight
        danger = {one.task: str(one) for one in reversed(self.dangers(service))}
        return ServiceQuality(
            service,
            self._desk.name,
            len(users),
            satisfied,
            satisfied / len(users) if users else None,
            grant.sla.satisfaction_ratio,
            values,
            tuple(self._task_view(one, danger, predicted) for one in entries),
            sum(self.meters.number(one.task, Col.SHED_PER_S) for one in entries),
        )

    def _service_values(self, entries: list[TaskEntry]) -> dict[str, float]:
        """Return what the tasks of a service add up to."""
        values: dict[str, float] = {}
        accuracy = 1.0
        for entry in entries:
            own = self.values(entry)
            for name in ("computing_ms", "transmission_bytes", "energy_j", "memory_bytes"):
                if name in own:
                    values[name] = values.get(name, 0.0) + own[name]
            one = own.get("accuracy_percent")
            if one is not None:
                accuracy *= one / 100
                values["accuracy_percent"] = 100 * accuracy
        return values

    def _task_view(
        self, entry: TaskEntry, danger: dict[str, str], predicted: dict[str, float]
    ) -> TaskQuality:
        current, meters, task = entry.current, self.meters, entry.task
        tuning = current.tuning if current is not None else envelope.initial(entry.grant)
        sample = None
        if current is not None and meters.samples(task):
            sample = TaskSample(
                task,
                current.epoch,
                tuning.variant,
                queue=round(meters.number(task, Col.QUEUE)),
                queue_ms=meters.number(task, Col.QUEUE_MS),
                run_ms=meters.number(task, Col.RUN_MS),
                run_p95_ms=meters.number(task, Col.RUN_P95_MS),
                fetch_ms=meters.number(task, Col.FETCH_MS),
                input_bytes=round(meters.number(task, Col.INPUT_BYTES)),
                output_bytes=round(meters.number(task, Col.OUTPUT_BYTES)),
                sent_bytes=round(meters.number(task, Col.SENT_BYTES)),
                energy_j=meters.get(task, Col.ENERGY_J),
            )
        node = current.node if current is not None else ""
        return TaskQuality(
            task,
            node,
            tuning,
            sample,
            predicted.get(task),
            danger.get(task, ""),
            self.values(entry),
        )


def _tightest(entry: TaskEntry) -> float | None:
    """Return the lowest latency that one user was promised, ms."""
    bounds = [bound for one in entry.grant.users for bound in one.zone.bounds]
    promised = [one.at_most for one in bounds if one.indicator == LATENCY and one.at_most]
    return min(promised, default=None)


def _use(bound: Bound, value: float) -> float | None:
    """Return a value over what it may be; None for a bound that is no number."""
    if bound.indicator in _KEPT_BY_OTHERS:
        return None
    if bound.at_most is not None:
        return value / bound.at_most if bound.at_most > 0 else None
    if bound.at_least is None:
        return None
    if bound.indicator.endswith("_percent"):
        allowed = max(0.1, 100.0 - bound.at_least)
        return (100.0 - value) / allowed
    return bound.at_least / value if value > 0 else None


def _watched(use: Use) -> float:
    """Return the use as it is watched: of most indicators only a broken bound is a danger."""
    return use.use if use.indicator in _EARLY else use.use * ENTER_USE * _JUST_BELOW
