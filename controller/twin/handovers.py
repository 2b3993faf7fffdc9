"""Handovers in the twin: nodes that roam among cells, and faults at every step of the protocol.

Each node has a task of its own, and every other one a second step at the edge. It goes to another
cell every few seconds: by command, by itself, or because its link has died. At a step that is drawn
somebody dies or is cut off, and meanwhile messages are lost, doubled, delayed and reordered, old
ones come again, and forged ones come in.
"""

import json
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from msgspec import Struct, field

from controller.anchor.handovers import Handovers
from controller.anchor.switching import LEASE_MS, MARGIN_MS
from controller.decider import Called, Decider, Event, Output, Received, Send
from controller.scheduler.decider import Scheduler
from controller.twin.checkers import Checkers
from controller.twin.client import SimClient
from controller.twin.faults import Fault, Kind, Striker
from controller.twin.hosting import SimHost
from controller.twin.network import CODEC_SAMPLE, Network, Weather
from controller.twin.node import WILL_MS, SimNode
from controller.twin.roamer import Roamer
from controller.twin.rules import BrokenRule, Rule
from controller.twin.run import CALM_MS, SUBMIT_MS, WATCH_MS, Plan, Submission, Twin
from controller.twin.sites import ROAMING
from controller.twin.usecases import chain
from controller.twin.verdict import unsettled
from controller.twin.world import Tell
from device_agent.core.commands import Change, Forget
from protocols.codec import Frame
from protocols.messages import (
    Birth,
    Body,
    Death,
    EnvelopeGrant,
    EnvelopeRevoke,
    HandoverAnswer,
    HandoverCommand,
    HandoverComplete,
    HandoverRequest,
    NodeSummary,
    Relinquished,
)
from protocols.topics import Topic

PART: Final = 50
"""Handovers of one run, from one seed, where there are many."""
NODES: Final = 9
BEGIN_MS: Final = 8000
"""When everything runs and nodes begin to roam."""
COMMANDED_SHARE: Final = 0.6
"""Of the handovers; the others follow a link that was lost."""
LOST_MS: Final = (1500, 8000)
"""So long the lost cell cannot be reached."""
FAULT_SHARE: Final = 0.5
CUT_SHARE: Final = 0.3
WEATHER_SHARE: Final = 0.1
FORGED_SHARE: Final = 0.3
PAUSE_MS: Final = (600, 5000)
"""Between a node's handovers."""
OWNERLESS_MS: Final = LEASE_MS + MARGIN_MS + 2500
"""No task is longer without a scheduler while its anchor and the scheduler of its node's cell live
and reach each other: a lease of the one before, and what links need to begin anew.
"""
LOOK_MS: Final = 100
BUDGET_MS: Final = 30_000
REQUEST_MS: Final = 700
DOWN_MS: Final = (100, 2500)
CUT_MS: Final = (500, 9000)
WEATHER_MS: Final = (500, 3000)
STEPS: Final[tuple[type[Struct], ...]] = (
    HandoverRequest,
    HandoverAnswer,
    HandoverCommand,
    Birth,
    NodeSummary,
    EnvelopeRevoke,
    Relinquished,
    EnvelopeGrant,
    HandoverComplete,
    Death,
)
"""Of the protocol: somebody dies, or is cut off, when such a word is about to leave."""
VICTIMS: Final = ("source", "target", "anchor", "node")
KEPT_FRAMES: Final = 400
QUIET_S: Final = 120


class Tally(Struct):
    """What came of a run."""

    seed: int
    handovers: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    struck: dict[str, int] = field(default_factory=dict)
    """Faults, by step and victim or by kind."""
    replayed: int = 0
    forged: int = 0
    requests: int = 0
    lost: int = 0
    doubled: int = 0
    ownerless_ms: float = 0.0
    """The longest, of the kind that is bounded."""
    bound_ms: float = OWNERLESS_MS
    simulated_s: float = 0.0
    rule: Rule | None = None
    """Which one was broken; None: every one was kept."""
    text: str = ""
    fingerprint: str = ""
    broken: int = 0
    """Runs in which a rule was broken."""

    def add(self, other: "Tally") -> None:
        """Add another run; of what is broken the first seed is told."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, count in other.struck.items():
            self.struck[name] = self.struck.get(name, 0) + count
        self.ownerless_ms = max(self.ownerless_ms, other.ownerless_ms)
        self.simulated_s = round(self.simulated_s + other.simulated_s, 1)
        self.broken += other.rule is not None
        if other.rule is not None and (self.rule is None or other.seed < self.seed):
            self.rule, self.text = other.rule, f"seed {other.seed}: {other.text}"


_SUMMED: Final = (
    "handovers",
    "completed",
    "failed",
    "refused",
    "replayed",
    "forged",
    "requests",
    "lost",
    "doubled",
)


class _Watch(Checkers):
    """Sees to it that a task has one owner, and that copies run on."""

    twin: "Roaming"

    def decided(self, decider: Decider, batch: Sequence[Event], output: Output) -> None:
        """Check who may act on which task after every turn of a scheduler."""
        super().decided(decider, batch, output)
        if isinstance(decider, Scheduler):
            self._one_owner()

    def _one_owner(self) -> None:
        owners: dict[str, str] = {}
        for name, ts, now_ms in self.twin.schedulers():
            for task in acts_on(ts, now_ms):
                if not task.endswith(".step0"):
                    # A whole service may be on its way to another cell, make before break.
                    continue
                other = owners.setdefault(task, name)
                if other != name:
                    raise self.broken(Rule.OWNER, f"{task} is acted on by {other} and by {name}")

    def journalled(self, node: str, changes: Any) -> None:
        """Check that no device's own task ends."""
        changes = tuple[Change, ...](changes)
        for change in changes:
            if isinstance(change, Forget) and self.twin.own_task(node) == change.task:
                raise self.broken(Rule.RESTART, f"{node} has ended its task {change.task}")
        super().journalled(node, changes)


def acts_on(ts: Scheduler, now_ms: int) -> list[str]:
    """Return the tasks that a scheduler may act on now."""
    before, ts.desk.now_ms = ts.desk.now_ms, now_ms
    found = [name for name, entry in ts.table.tasks.items() if ts.leases.hold(entry.anchor)]
    ts.desk.now_ms = before
    return found


class _Armed(Struct):
    """A fault that waits for its step."""

    step: type[Struct]
    victim: str
    node: str
    source: str
    target: str
    cut: bool
    for_ms: int


class Roaming(Twin):
    """A fleet of three cells whose nodes go from one to the other."""

    kind = Roamer
    watcher = _Watch

    def __init__(self, seed: int, handovers: int, trace: Tell | None = None) -> None:
        plan = Plan(
            nodes=NODES,
            services=NODES,
            deployment=ROAMING,
            quiet_seconds=QUIET_S,
            skew=0.01,
            codec_sample=CODEC_SAMPLE,
        )
        super().__init__(seed, plan, trace)
        assert isinstance(self.checkers, _Watch)  # noqa: S101 - it was made so
        self.checkers.twin = self
        self.wanted = handovers
        self.tally = Tally(seed)
        self.struck: Counter[str] = Counter()
        self.striker = Striker(self)
        self._armed: list[_Armed] = []
        self._frames: deque[tuple[Network, Topic, Frame]] = deque(maxlen=KEPT_FRAMES)
        self._ownerless: dict[str, float] = {}
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
            host.overhear = partial(self._role_says, host)
        for network in networks.values():
            network.seen = partial(self._frames_seen, network)

    # What checkers ask.

    def schedulers(self) -> list[tuple[str, Scheduler, int]]:
        """Return the schedulers that live, each with the time of its clock."""
        found = []
        for host in self.hosts.values():
            for name, one in host.deciders.items() if host.alive else ():
                if isinstance(one, Scheduler):
                    found.append((name, one, int(host.clock.now_ms)))
        return found

    def own_task(self, node: str) -> str:
        """Return the task that may run on a node alone."""
        number = node.removeprefix("node-")
        return f"service-{int(number)}.step0" if number.isdigit() else ""

    # The run.

    def play(self) -> Tally:
        """Run until so many handovers are through and everything has settled."""
        try:
            self._play()
        except BrokenRule as broken:
            self.tally.rule, self.tally.text = broken.rule, str(broken)
        self._count()
        return self.tally

    def _play(self) -> None:
        self.boot()
        self.world.run_until(SUBMIT_MS)
        for number in range(NODES):
            document = chain(number, 1 + number % 2)
            own, *edge = document["services"][0]["tasks"]
            own["nodes"] = [f"node-{number:04d}"]
            for task in edge:
                task["nodes"] = [f"edge-{cell}" for cell in self.cells]
            self.operate("usecase.submit", Submission(json.dumps(document)))
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
        self._settle_down()

    def _settle_down(self) -> None:
        end_ms, calm_ms = self.world.now_ms + QUIET_S * 1000, 0
        reason: BrokenRule | None = None
        while self.world.now_ms < end_ms:
            self.world.run_until(self.world.now_ms + WATCH_MS)
            reason = unsettled(self)
            calm_ms = 0 if reason else calm_ms + WATCH_MS
            if calm_ms > CALM_MS:
                return
        if reason:
            raise reason

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
        others = [one for one in self.cells if one != node.network.cell]
        cell = dice.choice(others)
        if node.settled:
            self._draw_fault(node, cell)
            if dice.random() < COMMANDED_SHARE:
                self._command(node, cell)
            else:
                self._lose_link(node)
        self.world.after(dice.randint(*PAUSE_MS), partial(self._next, node))

    def _command(self, node: Roamer, cell: str) -> None:
        host = self.head
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

    def _went(self, _cell: str) -> None:
        self.tally.handovers += 1

    # Faults.

    def _draw_fault(self, node: Roamer, cell: str) -> None:
        dice = self.world.dice
        self._armed = [one for one in self._armed if one.node != node.name]
        drawn = dice.random()
        if drawn < FAULT_SHARE:
            cut = dice.random() < CUT_SHARE
            armed = _Armed(
                dice.choice(STEPS),
                dice.choice(VICTIMS),
                node.name,
                node.network.cell,
                cell,
                cut,
                dice.randint(*(CUT_MS if cut else DOWN_MS)),
            )
            self._armed.append(armed)
        elif drawn < FAULT_SHARE + WEATHER_SHARE:
            kind = dice.choice((Kind.DROP, Kind.DOUBLE, Kind.REORDER, Kind.DELAY))
            self.struck[kind] += 1
            fault = Fault(kind, 0, dice.randint(*WEATHER_MS), strength=dice.random())
            self.striker.strike(fault)
        if dice.random() < FORGED_SHARE:
            self._replay()
        if dice.random() < FORGED_SHARE:
            self._forge(node)

    def _node_says(self, node: str, body: Body) -> None:
        self._step(node, body)

    def _role_says(self, _host: SimHost, _role: str, send: Send) -> None:
        body = send.body
        if not isinstance(body, STEPS):
            return
        node = getattr(body, "node", None)
        if isinstance(body, HandoverComplete):
            node = getattr(send.to, "node", "")
        elif not node or isinstance(body, EnvelopeGrant):
            task = body.spec.task if isinstance(body, EnvelopeGrant) else getattr(body, "task", "")
            number = task.partition(".")[0].removeprefix("service-")
            node = f"node-{int(number):04d}" if number.isdigit() else ""
        self._step(str(node), body)

    def _step(self, node: str, body: Body) -> None:
        """Strike where a fault has waited for this word."""
        for armed in [one for one in self._armed if one.node == node]:
            if isinstance(body, armed.step):
                self._armed.remove(armed)
                self._strike(armed)

    def _strike(self, armed: _Armed) -> None:
        what = "cut" if armed.cut and armed.victim != "node" else "crash"
        self.struck[f"{what} of {armed.victim} at {armed.step.__name__}"] += 1
        if armed.victim == "node":
            self.nodes[armed.node].crash_now(armed.for_ms)
            return
        cell = armed.source if armed.victim == "source" else armed.target
        host = self.head if armed.victim == "anchor" else self.hosts[cell]
        if not armed.cut:
            host.crash_now(armed.for_ms)
            return
        kind = Kind.HOST_CUT
        # Between anchor and schedulers alone: the cell itself works on.
        self.striker.strike(Fault(kind, 0, armed.for_ms, host.name, strength=0.99))

    def _frames_seen(self, network: Network, topic: Topic, frame: Frame) -> None:
        if isinstance(frame.body, Birth | Death | HandoverCommand | HandoverComplete):
            self._frames.append((network, topic, frame))

    def _replay(self) -> None:
        """Say an old word again."""
        if self._frames:
            network, topic, frame = self.world.dice.choice(self._frames)
            self.tally.replayed += 1
            network.publish("replayer", topic, frame)

    def _forge(self, node: Roamer) -> None:
        """Have a scheduler give away a task that is not its own, and a command of nobody's."""
        self.tally.forged += 1
        host = self.head
        task = self.tasks().get(self.own_task(node.name))
        if host.alive and task is not None:
            wrong = [f"ts-{one}" for one in self.cells if f"ts-{one}" != task.scheduler]
            stolen = Relinquished(
                task.spec.task, task.generation, node.name, task.epoch, 0, task.epoch_high
            )
            thief = self.world.dice.choice(wrong)
            host.post(host.config.ta, Received(thief, 0, 0, "default", "forged", stolen))
            host.post(
                host.config.ta,
                Received(thief, 0, 0, "default", "forged", HandoverAnswer(
                    "forged", node.name, True, thief.removeprefix("ts-"))),
            )  # fmt: skip

    # Owners.

    def _look_for_owners(self) -> None:
        owned = {task for _, ts, now_ms in self.schedulers() for task in acts_on(ts, now_ms)}
        for node in self.roamers:
            task = self.own_task(node.name)
            if task in owned or not self._served(node):
                self._ownerless.pop(task, None)
                continue
            since_ms = self._ownerless.setdefault(task, self.world.now_ms)
            lasted_ms = self.world.now_ms - since_ms
            self.tally.ownerless_ms = max(self.tally.ownerless_ms, lasted_ms)
            if lasted_ms > OWNERLESS_MS:
                text = f"{task} has had no scheduler for {lasted_ms:.0f} ms"
                raise self.checkers.broken(Rule.OWNER, text)
        if not self._over:
            self.world.after(LOOK_MS, self._look_for_owners)

    def _served(self, node: Roamer) -> bool:
        """Whether a node's task can have an owner: all that it needs lives and is reached."""
        hosts = (self.head, self.hosts[node.network.cell])
        calm = all(one.weather == one.calm for one in self.networks)
        return (
            calm
            and node.alive
            and node.settled
            and all(one.alive and self._reached(one) for one in hosts)
        )

    def _reached(self, host: SimHost) -> bool:
        return all(host.name not in one.mute | one.deaf for one in host.places.all())

    # What came of it.

    def _count(self) -> None:
        tally = self.tally
        for one in self.head.deciders.values() if self.head.alive else ():
            handovers = getattr(one, "handovers", None)
            if isinstance(handovers, Handovers):
                crossings = handovers.crossings.records.values()
                tally.completed = sum(one.completed for one in crossings)
                tally.failed = sum(one.failed for one in crossings)
                tally.refused = sum(one.refused for one in crossings)
        asked = [one for client in self.clients.values() for one in client.requests.values()]
        tally.requests = len(asked)
        tally.lost = sum(one.answered_ms is None for one in asked)
        tally.doubled = sum(len(one.answers) > 1 for one in asked)
        tally.struck = dict(sorted(self.struck.items()))
        tally.simulated_s = round(self.world.now_ms / 1000, 1)
        tally.fingerprint = self.world.fingerprint
        if tally.rule is None and (tally.lost or tally.doubled):
            tally.rule = Rule.LOST if tally.lost else Rule.DOUBLED
            tally.text = f"{tally.lost} requests without an answer, {tally.doubled} with several"


class HandOver(Struct, frozen=True):
    """The arguments of `node.handover`."""

    name: str
    cell: str


def run(seed: int, handovers: int, trace: Tell | None = None) -> Tally:
    """Run so many handovers from a seed."""
    return Roaming(seed, handovers, trace).play()
