"""What can be done for a task in danger: every action inside its envelope, with what it will bring.

Four dimensions: algorithm (another granted variant), computing (share, threads, workers, provider,
another granted node), connection (encoding, priority), data (rate, reduction, function of the
sources). An action is a whole new way of running; what it brings is predicted by the cost model,
anchored at what is measured now.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from controller.scheduler import envelope
from controller.scheduler.copies import TaskEntry, program, rebuilt
from controller.scheduler.cost import CostModel, Estimate, Work, wait_ms
from controller.scheduler.danger import ENTER_CPU_PERCENT, of_link, of_load
from controller.scheduler.feeds import Data
from controller.scheduler.nodes import NodeTable
from controller.scheduler.quality import Col, TaskMeters
from protocols.messages.quality import Tuning, Variant
from protocols.qoais import Dimension

SAFE_USE: Final = 0.80
"""An action is to bring the use of the bound below this."""
WORTH: Final = 0.15
"""Where none does, the best is taken if it lowers the use by this share."""
CHANGES_GUESS: Final = 0.5
"""Share of its samples that a source sends which sends only changes."""
RATE_STEP: Final = 0.5
TRUST_LOW: Final = 0.2
TRUST_HIGH: Final = 5.0
"""What is measured may be so far from what is predicted, and still anchors it."""
TAIL_MAX: Final = 4.0
LINK_FULL: Final = 0.999
PRIORITY_GAIN: Final = 0.5
"""Share of its wait that a task may lose by going before the others of its node."""

COST_TUNE: Final = 1.0
COST_WORKERS: Final = 2.0
COST_REBUILD: Final = 3.0
COST_MOVE: Final = 4.0
COST_SPLIT: Final = 1.5
"""Of each way between machines that a move adds to a chain."""
COST_DATA: Final = 5.0
COST_PER_ACCURACY: Final = 1.0
"""Of each per cent of accuracy given up."""


class Option(Struct, frozen=True):
    """One action: how the task would run, where, and on what data."""

    key: str
    """Its name, for people and to remember it by."""
    task: str
    dimension: Dimension
    tuning: Tuning
    node: str
    data: Data
    cost: float

    @property
    def restarts(self) -> bool:
        """Whether another instance is made for it."""
        return self.cost >= COST_REBUILD and self.dimension is not Dimension.DATA


class Forecast(Struct, frozen=True):
    """What a way of running is predicted to bring."""

    level_ms: float | None
    """Time that a run spends at its node, 95th percentile, with the way there; None: not known."""
    run_ms: float | None
    use: float
    """Utilisation of the workers."""
    sent_bytes: float
    energy_j: float | None
    accuracy_percent: float | None
    confidence: float = 0.0
    saved_ms: float = 0.0
    """What the ways take less than now: a gain for the service, not for what its task measures."""


class Place(Struct, frozen=True):
    """Where the tasks that feed a task, and that it feeds, run now."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


class Levers:
    """Enumerates actions and predicts them."""

    def __init__(self, nodes: NodeTable, meters: TaskMeters, cost: CostModel) -> None:
        self._nodes = nodes
        self._meters = meters
        self._cost = cost

    # What can be done.

    def options(self, entry: TaskEntry, data: Data, usable: list[str]) -> list[Option]:
        """Return every action that the envelope of a task that runs allows now."""
        current = entry.current
        if current is None:
            return []
        found = [
            *self._algorithm(entry),
            *self._computing(entry, current.node),
            *self._connection(entry, current.node),
        ]
        options = [
            Option(key, entry.task, dimension, tuning, current.node, data, cost)
            for key, dimension, tuning, cost in found
            if tuning != entry.tuning and envelope.allows(entry.grant, tuning)
        ]
        if envelope.may_move(entry.grant):
            options += [
                Option(
                    f"move to {node}",
                    entry.task,
                    Dimension.COMPUTING,
                    entry.tuning,
                    node,
                    data,
                    COST_MOVE,
                )
                for node in usable
                if node != current.node and self._bears(node)
            ]
        if entry.grant.sources:
            options += [
                Option(
                    key,
                    entry.task,
                    Dimension.DATA,
                    entry.tuning,
                    current.node,
                    new,
                    COST_DATA + add,
                )
                for key, new, add in _data(entry, data)
            ]
        return options

    def _bears(self, node: str) -> bool:
        slot = self._nodes.slots[node]
        load, link = self._nodes.loads[slot], self._nodes.links[slot]
        busy = float(self._nodes.cpu_percent[slot]) >= ENTER_CPU_PERCENT
        return not (busy or (load and of_load(load)) or (link and of_link(link)))

    def _algorithm(self, entry: TaskEntry) -> Iterator[tuple[str, Dimension, Tuning, float]]:
        names = ("", *entry.grant.leeway.variants)
        for name in names:
            if name != entry.tuning.variant:
                tuning = msgspec.structs.replace(entry.tuning, variant=name)
                yield f"variant {name or 'of the task'}", Dimension.ALGORITHM, tuning, COST_REBUILD

    def _computing(
        self, entry: TaskEntry, node: str
    ) -> Iterator[tuple[str, Dimension, Tuning, float]]:
        now, leeway = entry.tuning, entry.grant.leeway
        replace = msgspec.structs.replace
        cores = self._nodes.inventory(node).cpu_count
        if 0 < now.cpu_percent < leeway.cpu_percent_max:
            share = min(leeway.cpu_percent_max, 2 * now.cpu_percent)
            tuning = replace(now, cpu_percent=share)
            yield f"share {share:.0f} %", Dimension.COMPUTING, tuning, COST_TUNE
        workers = envelope.replicas_of(entry.grant, now)
        if workers < leeway.replicas_max:
            more = min(leeway.replicas_max, 2 * workers)
            tuning = replace(now, replicas=more)
            yield f"{more} workers", Dimension.COMPUTING, tuning, COST_WORKERS
        threads = now.threads or entry.grant.spec.manifest.threads
        if max(1, threads) < min(leeway.threads_max, cores):
            more = min(leeway.threads_max, cores, 2 * max(1, threads))
            tuning = replace(now, threads=more)
            yield f"{more} threads", Dimension.COMPUTING, tuning, COST_REBUILD
        for provider in leeway.providers:
            if provider != now.provider and provider in self._nodes.providers(node):
                tuning = replace(now, provider=provider)
                yield f"provider {provider}", Dimension.COMPUTING, tuning, COST_REBUILD

    def _connection(
        self, entry: TaskEntry, node: str
    ) -> Iterator[tuple[str, Dimension, Tuning, float]]:
        now, leeway = entry.tuning, entry.grant.leeway
        replace = msgspec.structs.replace
        for encoding in leeway.encodings:
            if encoding and encoding != now.encoding:
                tuning = replace(now, encoding=encoding)
                yield f"encoding {encoding}", Dimension.CONNECTION, tuning, COST_TUNE
        alone = int(self._nodes.copies[self._nodes.slots[node]]) < 2  # noqa: PLR2004 - itself
        if now.priority < leeway.priority_max and not alone:
            tuning = replace(now, priority=leeway.priority_max)
            yield f"priority {leeway.priority_max}", Dimension.CONNECTION, tuning, COST_TUNE

    # What it will bring.

    def forecast(self, entry: TaskEntry, place: Place, now: Data, option: Option) -> Forecast:
        """Predict an action for a task that runs and is measured."""
        current = entry.current
        here = current.node if current is not None else option.node
        before = self._run(entry, here, entry.tuning, now)
        after = self._run(entry, option.node, option.tuning, option.data)
        offered = self._meters.number(entry.task, Col.OFFERED_PER_S)
        arrivals = _arrivals(entry, option.data) / _arrivals(entry, now)
        offered *= arrivals
        sent = self._sent(entry, option, now)
        accuracy = accuracy_of(entry, option.tuning.variant)
        if after is None:
            return Forecast(None, None, 0.0, sent, None, accuracy)
        run_ms = self._anchored(entry, here, before, after, option)
        workers = envelope.replicas_of(entry.grant, option.tuning)
        wait = self._wait(entry, before, option, offered, run_ms)
        run_now = self._meters.number(entry.task, Col.RUN_MS) or run_ms
        tail = self._meters.number(entry.task, Col.RUN_P95_MS) / run_now
        tail = min(TAIL_MAX, max(1.0, tail))
        old_sent = self._meters.number(entry.task, Col.SENT_BYTES)
        share = sent / old_sent * arrivals if old_sent and option.node == here else 1.0
        ways = self._ways(place, option.node, sent, share, offered)
        ways -= self._ways(place, here, old_sent, 1.0, offered / arrivals)
        fetch = self._meters.number(entry.task, Col.FETCH_MS)
        fetch *= (now.decimation / option.data.decimation) ** 2
        level = wait + run_ms * tail + fetch + max(0.0, ways)
        energy = self._meters.get(entry.task, Col.ENERGY_J)
        if energy is not None:
            energy *= run_ms / run_now
        use = offered * run_ms / 1000 / workers
        saved = max(0.0, -ways)
        return Forecast(level, run_ms, use, sent, energy, accuracy, after.confidence, saved)

    def expected_ms(self, entry: TaskEntry, place: Place, data: Data) -> float | None:
        """Return what the cost model expects of a task as it runs now, ms."""
        node = entry.current.node if entry.current is not None else ""
        as_is = Option("", entry.task, Dimension.COMPUTING, entry.tuning, node, data, 0.0)
        return self.forecast(entry, place, data, as_is).level_ms

    def _run(self, entry: TaskEntry, node: str, tuning: Tuning, data: Data) -> Estimate | None:
        slot = self._nodes.slots.get(node)
        if slot is None:
            return None
        found = self._cost.run(
            work_of(entry, tuning, data),
            node,
            self._nodes.births[slot].inventory.profile,
            float(self._nodes.cpu_percent[slot]),
            expected_of(entry, tuning.variant),
        )
        if found is None or not 0 < tuning.cpu_percent < 100 * max(1, tuning.threads):
            return found
        # A share below a whole core stretches a run.
        stretch = 100 * max(1, tuning.threads) / tuning.cpu_percent
        return Estimate(found.ms * stretch, found.confidence)

    def _anchored(
        self, entry: TaskEntry, here: str, before: Estimate | None, after: Estimate, option: Option
    ) -> float:
        """Return the predicted run, corrected by what the same node shows beyond its load."""
        measured = self._meters.get(entry.task, Col.RUN_MS)
        if before is None or measured is None or option.node != here or before.ms <= 0:
            return after.ms
        return after.ms * min(TRUST_HIGH, max(TRUST_LOW, measured / before.ms))

    def _wait(
        self,
        entry: TaskEntry,
        before: Estimate | None,
        option: Option,
        offered: float,
        run_ms: float,
    ) -> float:
        workers_now = envelope.replicas_of(entry.grant, entry.tuning)
        workers = envelope.replicas_of(entry.grant, option.tuning)
        wait = wait_ms(offered, run_ms, workers)
        measured = self._meters.get(entry.task, Col.QUEUE_MS)
        run_now = self._meters.get(entry.task, Col.RUN_MS) or (before.ms if before else run_ms)
        offered_now = self._meters.number(entry.task, Col.OFFERED_PER_S)
        model = wait_ms(offered_now, run_now, workers_now)
        if measured is not None and model > 0:
            wait *= min(TRUST_HIGH, max(TRUST_LOW, measured / model))
        if option.tuning.priority > entry.tuning.priority:
            wait *= PRIORITY_GAIN
        elif option.tuning.priority < entry.tuning.priority:
            wait /= PRIORITY_GAIN
        return wait

    def _sent(self, entry: TaskEntry, option: Option, now: Data) -> float:
        sent = self._meters.number(entry.task, Col.SENT_BYTES)
        digest = program(entry.grant, entry.tuning.variant).artifact.digest
        sent *= self._cost.packing(digest, option.tuning.encoding)
        sent /= self._cost.packing(digest, entry.tuning.encoding)
        return sent * (now.decimation / option.data.decimation) ** 2

    def _ways(
        self, place: Place, node: str, sent_bytes: float, share: float, per_s: float
    ) -> float:
        """Return what the ways to a task and from it take, ms."""
        total = 0.0
        for other in place.before:
            total += self._hop(other, node, 0.0, 1.0, 0.0)
        for other in place.after:
            total += self._hop(node, other, sent_bytes, share, per_s)
        return total

    def _hop(self, one: str, other: str, sent_bytes: float, share: float, per_s: float) -> float:
        now, idle = self._nodes.round_trips_ms(one)
        there, _ = self._nodes.round_trips_ms(other)
        slot = self._nodes.slots.get(one)
        link = self._nodes.links[slot] if slot is not None else None
        speed = link.bandwidth_mbit_per_s if link is not None else None
        if link is not None and link.delivery_mbit_per_s is not None:
            # What waits on the link is worked out from its bytes then.
            return self._cost.hop_ms((one, other), (idle, there), sent_bytes, speed, per_s)
        here = congested_ms(now, idle, share)
        return self._cost.hop_ms((one, other), (here, there), sent_bytes, speed)


def anchored(forecast: Forecast, measured_ms: float | None, expected_ms: float | None) -> Forecast:
    """Return a forecast, scaled by how far what is measured now is from what was expected of now.

    So that what changes nothing is not predicted to help.
    """
    if forecast.level_ms is None or not measured_ms or not expected_ms:
        return forecast
    factor = min(TRUST_HIGH, max(TRUST_LOW, measured_ms / expected_ms))
    return msgspec.structs.replace(forecast, level_ms=forecast.level_ms * factor)


def congested_ms(now_ms: float, idle_ms: float, share: float) -> float:
    """Return a round trip when a link carries another share of what it carries now.

    A link is taken for one server: what a round trip takes beyond the idle one is its queue.
    """
    queue_ms = now_ms - idle_ms
    if queue_ms <= 0 or idle_ms <= 0:
        return now_ms
    use = min(LINK_FULL, queue_ms / now_ms * share)
    return idle_ms + idle_ms * use / (1.0 - use)


def price(option: Option, entry: TaskEntry, place: Place, forecast: Forecast) -> float:
    """Return what an action costs beside what it brings: the cheapest one that helps is taken."""
    cost = option.cost
    now = accuracy_of(entry, entry.tuning.variant)
    if now is not None and forecast.accuracy_percent is not None:
        cost += COST_PER_ACCURACY * max(0.0, now - forecast.accuracy_percent)
    here = entry.current.node if entry.current is not None else option.node
    neighbours = (*place.before, *place.after)
    splits = sum(one != option.node for one in neighbours) - sum(one != here for one in neighbours)
    return cost + COST_SPLIT * max(0, splits)


def variant_of(entry: TaskEntry, name: str) -> Variant | None:
    """Return a variant of a task; None for its own program."""
    return next((one for one in entry.grant.spec.variants if one.name == name), None)


def accuracy_of(entry: TaskEntry, name: str) -> float | None:
    """Return the declared accuracy of a variant, or of the task's own program."""
    variant = variant_of(entry, name)
    if variant is not None:
        return variant.accuracy_percent
    declared = entry.grant.spec.declared
    return next((one.number for one in declared if one.indicator == "accuracy_percent"), None)


def expected_of(entry: TaskEntry, name: str) -> float | None:
    """Return what the author of a variant expects of one run, ms."""
    variant = variant_of(entry, name)
    return entry.grant.spec.expected_ms if variant is None else variant.expected_ms


def work_of(entry: TaskEntry, tuning: Tuning, data: Data) -> Work:
    """Return what a task runs, as the cost model knows it."""
    digest = program(entry.grant, tuning.variant).artifact.digest
    _, threads, provider = rebuilt(tuning)
    return Work(digest, provider, threads, data.decimation)


def _arrivals(entry: TaskEntry, data: Data) -> float:
    """Return how often the sources send, relative to their declared rates."""
    declared = sum(source.rate_per_s for source in entry.grant.sources)
    if not declared:
        return 1.0
    rate = data.rate_per_s * len(entry.grant.sources) if data.rate_per_s else declared
    return rate / declared * (CHANGES_GUESS if data.function == "changes" else 1.0)


def _data(entry: TaskEntry, now: Data) -> Iterator[tuple[str, Data, float]]:
    """Yield the ways to send less data, the gentlest first."""
    leeway, replace = entry.grant.leeway, msgspec.structs.replace
    for function in leeway.functions:
        if function and not now.function:
            yield f"function {function}", replace(now, function=function), 0.0
    fastest = max((source.rate_per_s for source in entry.grant.sources), default=0.0)
    rate = now.rate_per_s or fastest
    if 0 < leeway.rate_min_per_s < rate:
        slower = max(leeway.rate_min_per_s, rate * RATE_STEP)
        yield f"rate {slower:g}/s", replace(now, rate_per_s=slower), 1.0
    coarser = sorted(one for one in leeway.decimations if one > now.decimation)
    if coarser:
        yield f"every {coarser[0]}. row and column", replace(now, decimation=coarser[0]), 2.0
