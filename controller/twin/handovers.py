"""Handovers in the twin: nodes that roam among cells, and faults at every step of the protocol.

Each node has a task of its own, and every other one a second step at the edge. It goes to another
cell every few seconds: by command, as it measures, on a condition that was prepared ahead, or
because its link has died. At a step that is dealt somebody dies or is cut off, and meanwhile
messages are lost, doubled, delayed and reordered, old ones come again, and forged ones come in. In
every other run each cell has an anchor of its own, and services go from anchor to anchor; NAMO
orders some at another anchor meanwhile, for their latency is in danger. At any time a service is
ordered anew, with other programs.
"""

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct

from controller.anchor.decider import Anchor
from controller.decider import Called, Decider, Event, Output, Received, Record, Send
from controller.handover_records import HandoverRecord
from controller.namo.decider import Namo
from controller.records import HANDOVER, GivenRecord, ServiceRecord
from controller.scheduler.decider import Scheduler
from controller.scheduler.gauges import LATENCY
from controller.twin.checkers import Checkers
from controller.twin.client import SimClient
from controller.twin.faults import Fault, Kind, Striker
from controller.twin.forging import FORGED, Forger
from controller.twin.handover_faults import (
    ANCHOR_STEPS,
    STEPS,
    Armed,
    Deck,
    Way,
    node_of,
    step_of,
)
from controller.twin.handover_tally import ANCHORLESS_MS, OWNERLESS_MS, UNSERVED_MS, Tally
from controller.twin.hosting import SimHost
from controller.twin.network import CODEC_SAMPLE, Weather
from controller.twin.node import WILL_MS, SimNode
from controller.twin.roamer import Roamer
from controller.twin.rules import BrokenRule, Rule
from controller.twin.run import SUBMIT_MS, WATCH_MS, Plan, Submission, Twin, stumble
from controller.twin.sites import ANCHORS_ROAMING, ROAMING
from controller.twin.usecases import chain
from controller.twin.world import Tell
from device_agent.core.commands import Change, Forget
from protocols.messages import Body, Escalation
from protocols.messages.hierarchy import NodeState

PART: Final = 50
"""Handovers of one run, from one seed, where there are many."""
NODES: Final = 9
BEGIN_MS: Final = 8000
"""When everything runs and nodes begin to roam."""
WAYS: Final = ((Way.BY_HAND, 0.4), (Way.MEASURED, 0.2), (Way.CONDITIONAL, 0.25), (Way.LOST, 0.15))
"""How nodes are moved, and the share of each."""
LOST_MS: Final = (1500, 8000)
"""So long a lost cell cannot be reached."""
FADE_DB_PER_S: Final = {Way.MEASURED: 1.5, Way.CONDITIONAL: 6.0}
"""How fast the serving cell falls, and the next one rises."""
FADE_FROM_DB: Final = 12.0
"""By so much the serving cell is stronger when that begins."""
FADE_MS: Final = 12_000
FADED_DB: Final = 14.0
"""A cell that is so much weaker than another is not heard any more."""
MEASURE_MS: Final = 100
FAULT_SHARE: Final = 0.5
CUT_SHARE: Final = 0.3
PART_SHARE: Final = 0.5
"""Of the cuts: from one other process alone."""
WEATHER_SHARE: Final = 0.15
FORGED_SHARE: Final = 0.3
CHANGED_SHARE: Final = 0.1
"""Of the handovers, those at which the node's service is ordered anew, with other programs."""
DANGER_SHARE: Final = 0.3
"""The same, where there are several anchors: NAMO hears that the latency of the service is broken,
and may order it at another one.
"""
IN_DANGER: Final = (1.0, 1e9)
"""A latency that is wanted, and one that every candidate promises to better, ms."""
PAUSE_MS: Final = (600, 5000)
"""Between a node's handovers."""
LOOK_MS: Final = 100
THERE: Final = (NodeState.ONLINE, NodeState.SUSPECT)
"""What a scheduler takes a node for that it serves."""
BUDGET_MS: Final = 30_000
REQUEST_MS: Final = 700
DOWN_MS: Final = (100, 2500)
CUT_MS: Final = (500, 9000)
WEATHER_MS: Final = (500, 3000)
QUIET_S: Final = 120


class _Watch(Checkers):
    """Sees to it that a task has one owner, and that copies run on."""

    twin: "Roaming"

    def decided(self, decider: Decider, batch: Sequence[Event], output: Output) -> None:
        """Check who may act on which task after every turn of a role."""
        super().decided(decider, batch, output)
        self.twin.forger.decided(batch, output)
        if isinstance(decider, Scheduler):
            self._one_owner()
        elif isinstance(decider, Anchor):
            self._one_anchor()

    def _one_owner(self) -> None:
        # By generation: NAMO may have another anchor make the next one before this one ends.
        owners: dict[tuple[str, int], str] = {}
        for _, ts, now_ms in self.twin.schedulers():
            for (task, generation), name in acts_on(ts, now_ms).items():
                if not task.endswith(".step0"):
                    # A whole service may be on its way to another cell, make before break.
                    continue
                other = owners.setdefault((task, generation), name)
                if other != name:
                    raise self.broken(Rule.OWNER, f"{task} is acted on by {other} and by {name}")

    def _one_anchor(self) -> None:
        # As above.
        owners: dict[tuple[str, int], str] = {}
        for name, anchor in self.twin.anchors():
            for service, held in anchor.book.services.items():
                other = owners.setdefault((service, held.order.generation), name)
                if other != name:
                    raise self.broken(Rule.OWNER, f"{service} is owned by {other} and by {name}")

    def recorded(self, before: Struct | None, record: Record) -> None:
        """Count what handovers come to."""
        super().recorded(before, record)
        if record.kind == HANDOVER and isinstance(record.value, HandoverRecord):
            after = record.value
            stood = None
            if isinstance(before, HandoverRecord) and before.number == after.number:
                stood = before.state
            if stood is not after.state:
                self.twin.ends[after.state.value] += 1
        elif isinstance(before, GivenRecord) and isinstance(record.value, GivenRecord):
            self.twin.ends[MOVED] += bool(before.records) and not record.value.records
        elif isinstance(before, ServiceRecord) and isinstance(record.value, ServiceRecord):
            ordered = record.value.order.generation > before.order.generation
            self.twin.tally.ordered_elsewhere += ordered and record.value.anchor != before.anchor

    def journalled(self, node: str, changes: Any) -> None:
        """Check that no device's own task ends."""
        changes = tuple[Change, ...](changes)
        for change in changes:
            if isinstance(change, Forget) and self.twin.own_task(node) == change.task:
                raise self.broken(Rule.RESTART, f"{node} has ended its task {change.task}")
        super().journalled(node, changes)


def acts_on(ts: Scheduler, now_ms: int) -> dict[tuple[str, int], str]:
    """Return the tasks that a scheduler may act on now, by generation, and by whose leave."""
    before, ts.desk.now_ms = ts.desk.now_ms, now_ms
    found = {
        (name, entry.grant.generation): f"{ts.name} (of {entry.anchor})"
        for name, entry in ts.table.tasks.items()
        if ts.leases.hold(entry.anchor)
    }
    ts.desk.now_ms = before
    return found


class Roaming(Twin):
    """A fleet of three cells whose nodes go from one to the other."""

    kind = Roamer
    watcher = _Watch

    def __init__(self, seed: int, handovers: int, trace: Tell | None = None) -> None:
        self.many_anchors = bool(seed % 2)
        plan = Plan(
            nodes=NODES,
            services=NODES,
            deployment=ANCHORS_ROAMING if self.many_anchors else ROAMING,
            quiet_seconds=QUIET_S,
            skew=0.01,
            codec_sample=CODEC_SAMPLE,
        )
        super().__init__(seed, plan, trace)
        assert isinstance(self.checkers, _Watch)  # noqa: S101 - it was made so
        self.checkers.twin = self
        self.wanted = handovers
        self.tally = Tally(seed)
        self.ends: Counter[str] = Counter()
        self.striker = Striker(self)
        steps = [one for one in STEPS if self.many_anchors or one not in ANCHOR_STEPS]
        self.deck = Deck(self.world.dice, steps)
        self.changed = Counter[int]()
        """By service: how often its programs were changed."""
        self._armed: dict[str, Armed] = {}
        """By node."""
        self._fading: set[str] = set()
        self._without: dict[str, float] = {}
        """Since when tasks have no scheduler, and services no anchor."""
        self._over = False
        networks = {one.cell: one for one in self.networks}
        self.roamers: list[Roamer] = []
        for at, node in enumerate(self.nodes.values()):
            assert isinstance(node, Roamer)  # noqa: S101 - the same
            node.cells, node.radios = networks, 1 + at % 2
            node.overhear, node.went = self._node_says, self._went
            self.roamers.append(node)
        for cell in self.cells:
            edge = SimNode(
                f"edge-{cell}", self.world, networks[cell], plan.shape, self.checkers, self._clock()
            )
            self.nodes[edge.name] = edge
        for host in self.hosts.values():
            host.overhear = self._role_says
        self.forger = Forger(self)
        for network in networks.values():
            network.seen = partial(self.forger.seen, network)

    # What checkers ask.

    def schedulers(self) -> list[tuple[str, Scheduler, int]]:
        """Return the schedulers that live, each with the time of its clock."""
        found = []
        for host in self.hosts.values():
            for name, one in host.deciders.items() if host.alive else ():
                if isinstance(one, Scheduler):
                    found.append((name, one, int(host.clock.now_ms)))
        return found

    def anchors(self) -> list[tuple[str, Anchor]]:
        """Return the anchors that live."""
        return [
            (name, one)
            for host in self.hosts.values()
            if host.alive
            for name, one in host.deciders.items()
            if isinstance(one, Anchor)
        ]

    def own_task(self, node: str) -> str:
        """Return the task that may run on a node alone."""
        number = node.removeprefix("node-")
        return f"service-{int(number)}.step0" if number.isdigit() else ""

    def owner_of(self, task: str) -> SimHost:
        """Return the process of the anchor that has a task, or else of the first one."""
        found = (one for one in self.hosts.values() if task in one.store.tasks)
        return next(found, self.executor)

    @property
    def executor(self) -> SimHost:
        """The process of the anchor that executes handovers."""
        return self.hosts[self.cells[0]] if self.many_anchors else self.head

    # The run.

    def play(self) -> Tally:
        """Run until so many handovers are through and everything has settled."""
        try:
            self._kept()
        except BrokenRule as broken:
            self.tally.rule, self.tally.text = broken.rule, str(broken)
            self.tally.undue += broken.rule is Rule.UNDUE
        self._count()
        return self.tally

    def _kept(self) -> None:
        try:
            self._play()
        except BrokenRule:
            raise
        except Exception as bug:
            # Whatever a decider stumbles over is a finding, with its seed.
            raise self.checkers.broken(Rule.BUG, stumble(bug)) from bug

    def _play(self) -> None:
        self.boot()
        self.world.run_until(SUBMIT_MS)
        for number in range(NODES):
            self.submit(number)
            self._send_to(number)
        for at, node in enumerate(self.roamers):
            self.world.at(BEGIN_MS + 200 * at, partial(self._next, node))
        self.world.at(BEGIN_MS, self._look_for_owners)
        while self.tally.handovers < self.wanted:
            self.world.run_until(self.world.now_ms + WATCH_MS)
        self._over = True
        self._armed.clear()
        self.world.run_until(self.world.now_ms + CUT_MS[1])
        for network in self.networks:
            network.calm = network.weather = Weather()
        self._settle()

    def submit(self, number: int, version: int = 0) -> None:
        """Submit a service for a node, or other programs for its tasks."""
        document = chain(number, 1 + number % 2, version)
        own, *edge = document["services"][0]["tasks"]
        own["nodes"] = [f"node-{number:04d}"]
        for task in edge:
            task["nodes"] = [f"edge-{cell}" for cell in self.cells]
        self.operate("usecase.submit", Submission(json.dumps(document)))

    def _send_to(self, number: int) -> None:
        """Have a client send a stream to a service; it stays in the cell that the node began in."""
        home = self.roamers[number].network
        name, service = f"client-{number}", f"service-{number}"
        client = SimClient(name, service, self.world, self.networks, lambda: home)
        self.clients[number] = client
        self.world.at(BEGIN_MS - 2000, partial(self._send, client))

    def _send(self, client: SimClient) -> None:
        if not self._over:
            client.request(BUDGET_MS)
            self.world.after(REQUEST_MS, partial(self._send, client))

    # Handovers.

    def _next(self, node: Roamer) -> None:
        if self._over:
            return
        dice = self.world.dice
        cell = dice.choice([one for one in self.cells if one != node.network.cell])
        if node.settled and node.name not in self._fading:
            [way] = dice.choices([one for one, _ in WAYS], [share for _, share in WAYS])
            self._draw_fault(node, cell, way)
            if dice.random() < CHANGED_SHARE:
                number = self.roamers.index(node)
                self.changed[number] += 1
                self.submit(number, self.changed[number])
            match way:
                case Way.BY_HAND:
                    self._command(node, cell)
                case Way.LOST:
                    self._lose_link(node)
                case _:
                    self._fading.add(node.name)
                    self._fade(node, node.network.cell, cell, way, self.world.now_ms)
        self.world.after(dice.randint(*PAUSE_MS), partial(self._next, node))

    def _command(self, node: Roamer, cell: str) -> None:
        host = self.executor
        if host.alive:
            asked = HandOver(node.name, cell)
            event = Called("by hand", "node.handover", asked, "default", "by hand", 0)
            host.post(host.config.ta, event)

    def _lose_link(self, node: Roamer) -> None:
        """Have a node's radio lose its cell for a while."""
        network, for_ms = node.network, self.world.dice.randint(*LOST_MS)
        for ends in (network.mute, network.deaf):
            ends.add(node.name)
            self.world.after(for_ms, partial(ends.discard, node.name))
        node.lose_connection(WILL_MS)

    def _fade(self, node: Roamer, source: str, target: str, way: Way, since_ms: float) -> None:
        """Have a node measure how its cell falls and another one rises, until that is not heard."""
        passed_ms, rate = self.world.now_ms - since_ms, FADE_DB_PER_S[way]
        gap_db = 2 * rate * passed_ms / 1000 - FADE_FROM_DB
        moved = node.network.cell != source
        if self._over or moved or passed_ms > FADE_MS or gap_db > FADED_DB:
            self._fading.discard(node.name)
            if gap_db > FADED_DB and not moved and not self._over:
                self._lose_link(node)
            return
        levels = dict.fromkeys(self.cells, -110.0)
        levels |= {source: -87.0 - gap_db / 2, target: -87.0 + gap_db / 2}
        node.measure(levels)
        self.world.after(MEASURE_MS, partial(self._fade, node, source, target, way, since_ms))

    def _went(self, way: Way, how: str) -> None:
        self.tally.handovers += 1
        for counts, name in ((self.tally.causes, way.value), (self.tally.ways, how)):
            counts[name] = counts.get(name, 0) + 1

    # Faults.

    def _draw_fault(self, node: Roamer, cell: str, way: Way) -> None:
        dice = self.world.dice
        self._armed.pop(node.name, None)
        drawn = dice.random()
        if drawn < FAULT_SHARE:
            alone = int(node.name.removeprefix("node-")) % 2 == 0

            def suits(step: str) -> bool:
                return way in STEPS[step] and (alone or step not in ANCHOR_STEPS)

            step, victim = self.deck.deal(suits)
            cut = victim != "node" and dice.random() < CUT_SHARE
            for_ms = dice.randint(*(CUT_MS if cut else DOWN_MS))
            source = node.network.cell
            self._armed[node.name] = Armed(step, victim, node.name, source, cell, cut, for_ms)
        elif drawn < FAULT_SHARE + WEATHER_SHARE:
            kind = dice.choice((Kind.DROP, Kind.DOUBLE, Kind.REORDER, Kind.DELAY))
            fault = Fault(kind, 0, dice.randint(*WEATHER_MS), strength=dice.random())
            self.striker.strike(fault)
        if dice.random() < FORGED_SHARE:
            self.forger.replay()
        if dice.random() < FORGED_SHARE:
            self.forger.forge(node)
        if self.many_anchors and dice.random() < DANGER_SHARE:
            self._endanger(self.own_task(node.name))

    def _endanger(self, task: str) -> None:
        """Have NAMO hear of a danger that its service's anchor cannot mend."""
        role = self.head.config.namo
        namo = self.head.deciders.get(role) if self.head.alive else None
        assert namo is None or isinstance(namo, Namo)  # noqa: S101 - the role is its
        held = namo.books.services.get(task.rpartition(".")[0]) if namo is not None else None
        if held is None:
            return
        self.tally.endangered += 1
        target, measured = IN_DANGER
        escalation = Escalation(
            f"danger-{self.tally.endangered}",
            task,
            held.order.generation,
            "slow",
            indicator=LATENCY,
            target=target,
            measured=measured,
            broken=True,
        )
        self.head.post(role, Received(held.anchor, 0, 0, "default", "danger", escalation))

    def _node_says(self, node: str, body: Body) -> None:
        self._step(node, step_of(body))

    def _role_says(self, _role: str, send: Send) -> None:
        step = step_of(send.body)
        if step and send.cause != FORGED:
            self._step(node_of(send.body, send), step)

    def _step(self, node: str, step: str) -> None:
        """Strike where a fault has waited for this word."""
        armed = self._armed.get(node)
        if armed is not None and armed.step == step:
            del self._armed[node]
            self._strike(armed)

    def _strike(self, armed: Armed) -> None:
        self.deck.struck(armed)
        if armed.victim == "node":
            self.nodes[armed.node].crash_now(armed.for_ms)
            return
        host = self._victim(armed)
        if not armed.cut:
            host.crash_now(armed.for_ms)
            return
        # Between anchor and schedulers alone: the cell itself works on.
        if self.world.dice.random() < PART_SHARE:
            others = [one for name, one in sorted(self.hosts.items()) if name != host.name]
            self.tally.parted += 1
            self.striker.part(host, self.world.dice.choice(others), armed.for_ms)
            return
        self.striker.strike(Fault(Kind.HOST_CUT, 0, armed.for_ms, host.name, strength=0.99))

    def _victim(self, armed: Armed) -> SimHost:
        """Return the process that a fault strikes."""
        node = self.nodes[armed.node]
        assert isinstance(node, Roamer)  # noqa: S101 - only such nodes are handed over
        if armed.victim == "anchor":
            return self.owner_of(self.own_task(armed.node))
        if armed.victim == "source":
            return self.hosts[armed.source]
        there = node.sought or node.network.cell
        return self.hosts[there if there != armed.source else armed.target]

    # Owners.

    def _look_for_owners(self) -> None:
        tally = self.tally
        owned = {task for _, ts, now_ms in self.schedulers() for task, _ in acts_on(ts, now_ms)}
        for node in self.roamers:
            task = self.own_task(node.name)
            has = task in owned or not self._served(node)
            lasted_ms = self._lasts(task, OWNERLESS_MS, "scheduler", has=has)
            tally.ownerless_ms = max(tally.ownerless_ms, lasted_ms)
            has = self._counts(node) or not self._able(node)
            lasted_ms = self._lasts(node.name, UNSERVED_MS, "cell", has=has, rule=Rule.UNDUE)
            tally.unserved_ms = max(tally.unserved_ms, lasted_ms)
        anchored = {service for _, one in self.anchors() for service in one.book.services}
        whole = self._calm() and all(self._well(one) for one in self.hosts.values())
        for number in range(NODES):
            service = f"service-{number}"
            has = service in anchored or not whole
            lasted_ms = self._lasts(service, ANCHORLESS_MS, "anchor", has=has)
            tally.anchorless_ms = max(tally.anchorless_ms, lasted_ms)
        if not self._over:
            self.world.after(LOOK_MS, self._look_for_owners)

    def _lasts(
        self, what: str, bound_ms: float, whom: str, *, has: bool, rule: Rule = Rule.OWNER
    ) -> float:
        """Return for how long something has been without what it needs. Raises BrokenRule."""
        if has:
            self._without.pop(what, None)
            return 0.0
        lasted_ms = self.world.now_ms - self._without.setdefault(what, self.world.now_ms)
        if lasted_ms > bound_ms:
            text = f"{what} has had no {whom} for {lasted_ms:.0f} ms"
            raise self.checkers.broken(rule, text)
        return lasted_ms

    def _served(self, node: Roamer) -> bool:
        """Whether a node's task can have an owner: all that it needs lives and is reached."""
        owner = self.owner_of(self.own_task(node.name))
        hosts = (self.head, self.executor, owner, self.hosts[node.network.cell])
        return self._calm() and node.settled and all(self._well(one) for one in hosts)

    def _counts(self, node: Roamer) -> bool:
        """Whether a node is attached to a cell, whose scheduler takes it for there."""
        ts = self.hosts[node.network.cell].deciders.get(f"ts-{node.network.cell}")
        there = ts.nodes.state(node.name) if isinstance(ts, Scheduler) else None
        return node.alive and node.attached and there in THERE

    def _able(self, node: Roamer) -> bool:
        """Whether a node lives and can reach some cell, and every cell can serve it."""
        reaches = any(one.reachable(node.name) for one in self.networks)
        well = all(self._well(one) for one in self.hosts.values())
        return node.alive and reaches and self._calm() and well

    def _calm(self) -> bool:
        return all(one.weather == one.calm for one in self.networks)

    def _well(self, host: SimHost) -> bool:
        """Whether a process lives and is reached."""
        return host.alive and all(one.reaches_all(host.name) for one in host.places.all())

    # What came of it.

    def _count(self) -> None:
        tally = self.tally
        tally.ends = {one: count for one, count in sorted(self.ends.items()) if one in ENDS}
        tally.crashes, tally.cuts = self.deck.crashes, self.deck.cuts
        for name in ("dropped", "doubled", "reordered"):
            tally.weather[name] = sum(getattr(one, name) for one in self.networks)
        tally.anchors_moved = self.ends[MOVED]
        tally.changed = self.changed.total()
        tally.replayed, tally.forged = self.forger.replayed, self.forger.refused
        asked = [one for client in self.clients.values() for one in client.requests.values()]
        tally.requests = len(asked)
        tally.lost = sum(one.answered_ms is None for one in asked)
        tally.doubled = sum(len(one.answers) > 1 for one in asked)
        tally.simulated_s = round(self.world.now_ms / 1000, 1)
        tally.fingerprint = self.world.fingerprint
        if tally.rule is None and (tally.lost or tally.doubled):
            tally.rule = Rule.LOST if tally.lost else Rule.DOUBLED
            text = f"{tally.lost} requests without an answer, {tally.doubled} with several"
            tally.text = f"seed {tally.seed}: {text}"


MOVED: Final = "anchor moved"
ENDS: Final = ("completed", "failed", "refused", "void")


class HandOver(Struct, frozen=True):
    """The arguments of `node.handover`."""

    name: str
    cell: str


def run(seed: int, handovers: int, trace: Tell | None = None) -> Tally:
    """Run so many handovers from a seed."""
    return Roaming(seed, handovers, trace).play()
