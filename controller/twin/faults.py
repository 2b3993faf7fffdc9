"""Faults: which there are, how a schedule draws them from its seed, and how each strikes."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from controller.twin.hosting import SimHost
from controller.twin.network import Network
from controller.twin.node import CrashPoint, SimNode

if TYPE_CHECKING:
    from controller.twin.run import Twin

KEEP_ALIVE_MS: Final = 1500
"""After which an end that hears nothing gives its connection up."""
DOWN_MS: Final = (200, 5000)
"""How long a process stays down."""
STORM_CONNECTIONS: Final = 3
EARLY_SHARE: Final = 0.5
WHOLE_SHARE: Final = 0.6
"""Of the cuts of a controller, those from all brokers."""
OVERLOAD_PERCENT: Final = 97.0
LOSSY_PERCENT: Final = 60.0
YEAR_MS: Final = 365 * 86_400_000


class Kind(StrEnum):
    """A kind of fault."""

    DROP = "drop"
    DOUBLE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    CUT = "node cut off"
    CUT_UP = "node unheard"
    CUT_DOWN = "node deaf"
    HOST_CUT = "controller cut off"
    HOST_CUT_UP = "controller unheard"
    HOST_CUT_DOWN = "controller deaf"
    BROKER = "broker down"
    STORM = "reconnect storm"
    WRONG_WILL = "wrong will"
    LATE_WILL = "late will"
    NODE_CRASH = "node crash"
    NODE_BEFORE = "node crash before a write"
    NODE_AFTER = "node crash after a write"
    NODE_TORN = "node crash in a write"
    HOST_CRASH = "controller crash"
    HOST_BEFORE = "controller crash before a commit"
    HOST_AFTER = "controller crash after a commit"
    HOST_TORN = "controller crash in a commit"
    STORE_FULL = "store full"
    JOURNAL_FULL = "journal full"
    CLOCK = "clock jump"
    CLOCK_1970 = "clock at 1970"
    SLOW_NODE = "slow node"
    SLOW_HOST = "slow controller"
    BREAK = "executor does not start"
    EXIT = "executors die"
    STUMBLE = "calls fail"
    LOAD = "overload"
    LOSSY = "lossy link"
    SHUT_DOWN = "orderly end"
    BLACKOUT = "all nodes die"


_OF_NODES: Final = frozenset(
    {
        Kind.CUT, Kind.CUT_UP, Kind.CUT_DOWN, Kind.WRONG_WILL, Kind.LATE_WILL, Kind.NODE_CRASH,
        Kind.NODE_BEFORE, Kind.NODE_AFTER, Kind.NODE_TORN, Kind.JOURNAL_FULL, Kind.CLOCK,
        Kind.CLOCK_1970, Kind.SLOW_NODE, Kind.BREAK, Kind.EXIT, Kind.STUMBLE, Kind.LOAD,
        Kind.LOSSY, Kind.SHUT_DOWN,
    }
)  # fmt: skip
_OF_HOSTS: Final = frozenset(
    {
        Kind.HOST_CUT, Kind.HOST_CUT_UP, Kind.HOST_CUT_DOWN, Kind.HOST_CRASH, Kind.HOST_BEFORE,
        Kind.HOST_AFTER, Kind.HOST_TORN, Kind.STORE_FULL, Kind.SLOW_HOST,
    }
)  # fmt: skip
_WHEN: Final = {
    Kind.NODE_BEFORE: "before",
    Kind.NODE_AFTER: "after",
    Kind.NODE_TORN: "torn",
    Kind.HOST_BEFORE: "before",
    Kind.HOST_AFTER: "after",
    Kind.HOST_TORN: "torn",
}


class Fault(Struct, frozen=True):
    """One fault of a schedule."""

    kind: Kind
    at_ms: int
    for_ms: int
    target: str = ""
    strength: float = 0.5
    """From 0 to 1, what it means is the kind's."""

    @property
    def end_ms(self) -> int:
        """When it is over at the latest."""
        return self.at_ms + self.for_ms


def draw(
    dice: random.Random,
    kinds: Iterable[Kind],
    nodes: Sequence[str],
    hosts: Sequence[str],
    window_ms: tuple[int, int],
) -> list[Fault]:
    """Draw a fault of each kind named, between two times; those of one kind strike apart."""
    faults = []
    left: dict[Kind, list[str]] = {}
    first_ms, last_ms = window_ms
    for kind in kinds:
        target = ""
        if kind in _OF_NODES or kind in _OF_HOSTS:
            names = left.get(kind) or list(nodes if kind in _OF_NODES else hosts)
            target = names.pop(dice.randrange(len(names)))
            left[kind] = names
        for_ms = dice.randint(*DOWN_MS)
        # Nodes write when tasks come: half of those that die at a write do so early.
        early = kind in _WHEN and dice.random() < EARLY_SHARE
        at_ms = dice.randint(first_ms, max(first_ms, last_ms - for_ms))
        if early:
            at_ms = dice.randint(0, first_ms)
        faults.append(Fault(kind, at_ms, for_ms, target, dice.random()))
    return sorted(faults, key=lambda one: (one.at_ms, one.kind, one.target))


class Striker:
    """Makes the faults of a schedule happen to a twin."""

    def __init__(self, twin: "Twin") -> None:
        self._twin = twin
        self._world = twin.world
        self._on: Mapping[Kind, Callable[[Fault], None]] = {
            Kind.DROP: self._weather,
            Kind.DOUBLE: self._weather,
            Kind.REORDER: self._weather,
            Kind.DELAY: self._weather,
            Kind.CUT: self._cut,
            Kind.CUT_UP: self._cut,
            Kind.CUT_DOWN: self._cut,
            Kind.HOST_CUT: self._cut,
            Kind.HOST_CUT_UP: self._cut,
            Kind.HOST_CUT_DOWN: self._cut,
            Kind.BROKER: self._broker,
            Kind.STORM: self._storm,
            Kind.WRONG_WILL: self._wrong_will,
            Kind.LATE_WILL: self._late_will,
            Kind.NODE_CRASH: lambda one: self._node(one).crash_now(one.for_ms),
            Kind.HOST_CRASH: lambda one: self._host(one).crash_now(one.for_ms),
            Kind.STORE_FULL: self._store_full,
            Kind.JOURNAL_FULL: self._journal_full,
            Kind.CLOCK: self._clock,
            Kind.CLOCK_1970: self._clock,
            Kind.SLOW_NODE: self._slow,
            Kind.SLOW_HOST: self._slow,
            Kind.BREAK: self._hands("broken"),
            Kind.STUMBLE: self._hands("stumbling"),
            Kind.EXIT: lambda one: self._node(one).hands.break_down(),
            Kind.LOAD: self._load,
            Kind.LOSSY: self._load,
            Kind.SHUT_DOWN: self._shut_down,
            Kind.BLACKOUT: self._blackout,
            **dict.fromkeys(_WHEN, self._arm),
        }

    def plan(self, faults: Iterable[Fault]) -> None:
        """Have all of them strike when their time comes."""
        for fault in faults:
            self._world.at(fault.at_ms, partial(self.strike, fault))

    def strike(self, fault: Fault) -> None:
        """Have a fault strike now."""
        self._world.note(f"fault {fault.kind} {fault.target} for {fault.for_ms} ms")
        self._twin.checkers.counts[fault.kind] += 1
        self._on[fault.kind](fault)

    def _node(self, fault: Fault) -> SimNode:
        return self._twin.nodes[fault.target]

    def _host(self, fault: Fault) -> SimHost:
        return self._twin.hosts[fault.target]

    def _end(self, fault: Fault, action: Callable[[], None]) -> None:
        self._world.after(fault.for_ms, action)

    # The network.

    def part(self, one: SimHost, other: SimHost, for_ms: int) -> None:
        """Cut two processes off from each other where they meet, and from nobody else."""
        pair, network = frozenset((one.name, other.name)), one.places.uplink
        self._world.note(f"fault {one.name} and {other.name} apart for {for_ms} ms")
        network.parted.add(pair)
        self._world.after(for_ms, partial(self._joined, network, pair))

    def _joined(self, network: Network, pair: frozenset[str]) -> None:
        network.parted.discard(pair)
        for name in sorted(pair):
            self._twin.hosts[name].wired()

    def _weather(self, fault: Fault) -> None:
        for network in self._twin.networks:
            calm = network.calm
            low, high = calm.delay_ms
            value: object
            match fault.kind:
                case Kind.DROP:
                    name, value = "drop_share", 0.02 + 0.3 * fault.strength
                case Kind.DOUBLE:
                    name, value = "double_share", 0.05 + 0.4 * fault.strength
                case Kind.REORDER:
                    name, value = "reorder", True
                case _:
                    name, value = "delay_ms", (low, high + int(20 + 1500 * fault.strength**3))
            network.weather = replace(network.weather, **{name: value})
            self._end(fault, partial(self._calm, network, name))

    def _calm(self, network: Network, name: str) -> None:
        network.weather = replace(network.weather, **{name: getattr(network.calm, name)})

    def _cut(self, fault: Fault) -> None:
        who = fault.target
        party: SimNode | SimHost = (
            self._twin.nodes[who] if who in self._twin.nodes else self._twin.hosts[who]
        )
        networks = [party.network]
        if isinstance(party, SimHost):
            # From everybody, or from where it meets the other roles.
            whole = fault.strength < WHOLE_SHARE
            networks = party.places.all() if whole else [party.places.uplink]
        for network in networks:
            if fault.kind not in (Kind.CUT_DOWN, Kind.HOST_CUT_DOWN):
                network.mute.add(who)
            if fault.kind not in (Kind.CUT_UP, Kind.HOST_CUT_UP):
                network.deaf.add(who)
            self._end(fault, partial(self._mend, network, who))
        if isinstance(party, SimNode):
            # Both ends notice on their own: the node by its keep-alive, the broker by the node's.
            notice_ms = int(KEEP_ALIVE_MS * (0.3 + fault.strength))
            self._world.after(notice_ms, partial(self._noticed, party, notice_ms))

    def _noticed(self, node: SimNode, will_ms: int) -> None:
        if not node.network.reachable(node.name):
            node.lose_connection(will_ms)

    def _mend(self, network: Network, who: str) -> None:
        network.mute.discard(who)
        network.deaf.discard(who)
        if who in self._twin.hosts:
            self._twin.hosts[who].wired()

    def _broker(self, fault: Fault) -> None:
        networks = self._twin.networks
        network = networks[int(fault.strength * len(networks))]
        network.down = True
        self._end(fault, partial(self._repaired, network))
        for node in self._twin.nodes.values():
            if node.network is network:
                node.lose_connection(None)

    def _repaired(self, network: Network) -> None:
        network.down = False
        for host in self._twin.hosts.values():
            if network in host.places.all():
                host.wired()

    def _storm(self, fault: Fault) -> None:
        for turn in range(STORM_CONNECTIONS):
            for node in self._twin.nodes.values():
                late_ms = int(fault.strength * 2000)
                self._world.after(turn * 700, partial(node.lose_connection, late_ms))

    def _wrong_will(self, fault: Fault) -> None:
        node = self._node(fault)
        if node.connected:
            node.will(0)

    def _late_will(self, fault: Fault) -> None:
        self._node(fault).lose_connection(fault.for_ms)

    # Processes.

    def _arm(self, fault: Fault) -> None:
        """Have a process die at its next durable step, if it has one before the quiet time."""
        point = CrashPoint(_WHEN[fault.kind], fault.for_ms)
        party = self._node(fault) if fault.kind in _OF_NODES else self._host(fault)
        party.crash = point
        self._world.at(self._twin.plan.seconds * 1000, partial(self._disarm, party, point))

    def _disarm(self, party: SimNode | SimHost, point: CrashPoint) -> None:
        if party.crash is point:
            party.crash = None

    def _shut_down(self, fault: Fault) -> None:
        node = self._node(fault)
        node.shut_down()
        # Draining has its own bound; what is started too early is not down yet.
        self._world.after(11_000 + fault.for_ms, node.start)

    def _blackout(self, fault: Fault) -> None:
        for node in self._twin.nodes.values():
            node.crash_now(self._world.dice.randint(DOWN_MS[0], fault.for_ms))

    # Disks and clocks.

    def _store_full(self, fault: Fault) -> None:
        store = self._host(fault).store
        store.full = True
        self._end(fault, partial(setattr, store, "full", False))

    def _journal_full(self, fault: Fault) -> None:
        journal = self._node(fault).journal
        journal.full = True
        self._end(fault, partial(setattr, journal, "full", False))

    def _clock(self, fault: Fault) -> None:
        past = fault.kind is Kind.CLOCK_1970
        for clock in (self._node(fault).clock, *(one.clock for one in self._twin.hosts.values())):
            leap_ms = int((fault.strength - 0.5) * YEAR_MS)
            clock.jump(0 if past else clock.unix_ms + leap_ms)

    # Slowness and executors.

    def _slow(self, fault: Fault) -> None:
        party = self._node(fault) if fault.kind in _OF_NODES else self._host(fault)
        party.lag_ms = int(50 + 1200 * fault.strength)
        self._end(fault, partial(setattr, party, "lag_ms", 0))

    def _hands(self, what: str) -> Callable[[Fault], None]:
        def strike(fault: Fault) -> None:
            hands = self._node(fault).hands
            setattr(hands, what, True)
            self._end(fault, partial(setattr, hands, what, False))

        return strike

    def _load(self, fault: Fault) -> None:
        hands = self._node(fault).hands
        if fault.kind is Kind.LOAD:
            hands.load_percent = OVERLOAD_PERCENT
            self._end(fault, partial(setattr, hands, "load_percent", None))
        else:
            hands.loss_percent = LOSSY_PERCENT
            self._end(fault, partial(setattr, hands, "loss_percent", 0.0))
