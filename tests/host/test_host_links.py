"""Links between two hosts over a wire that loses, doubles, delays and forgets.

Each side is a `Links` with one role; the wire is a bag of frames for each way.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from msgspec import structs
from tests_support import INVENTORY

from controller.host import link, links
from controller.host.links import Command, Dispatch, Due, Hand, Hear, Links, Open, Say, Up, Wired
from protocols.messages import EnvelopeRevoke, LeaseRequest, Linking, NodeSummary
from protocols.messages.hierarchy import NodeState
from protocols.messages.host import Linked

OTHER = {"ta": "ts", "ts": "ta"}


class Wire:
    """Two hosts, the frames between them, and everything that was said and heard."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.hosts = {"ta": Links(1 << 20), "ts": Links(1 << 20)}
        self.lives = {"ta": 1, "ts": 1}
        self.bag: dict[str, list[Linking]] = {"ta": [], "ts": []}
        """By receiver."""
        self.said: dict[str, dict[tuple[int, int], list[int]]] = {"ta": {}, "ts": {}}
        """By who said it and in which opening."""
        self.heard: dict[str, list[list[int]]] = {"ta": [[]], "ts": [[]]}
        """By who heard it, a list for each time that a link was up anew."""
        self.count = 0

    def do(self, own: str, event: links.Event) -> None:
        for command in self.hosts[own].handle(event, self.now_ms):
            self.command(own, command)

    def command(self, own: str, command: Command) -> None:
        match command:
            case Dispatch(frame=frame):
                self.bag[OTHER[own]].append(frame)
            case Up():
                self.heard[own].append([])
            case Hand(body=body):
                assert isinstance(body, EnvelopeRevoke)
                self.heard[own][-1].append(body.generation)

    def say(self, own: str, size: int = 0, *, together: bool = False) -> int:
        self.count += 1
        body = EnvelopeRevoke("svc.a", self.count, "x" * size)
        self.do(own, Say(own, OTHER[own], "default", "cause", body))
        if not together:
            self.do(own, Due())
        opening = self.hosts[own]._links[own, OTHER[own]].opening
        self.said[own].setdefault((self.lives[own], opening), []).append(self.count)
        return self.count

    def deliver(self, to: str, at: int, *, keep: bool = False) -> None:
        frame = self.bag[to][at] if keep else self.bag[to].pop(at)
        self.do(to, Hear(to, OTHER[to], frame))

    def restart(self, own: str, *, amnesia: bool) -> None:
        # Even without its memory a life begins at an opening of its own, as if drawn by chance.
        self.lives[own] += 1
        life = self.lives[own]
        first = (1 if amnesia else life) << link.STEP_BITS
        self.hosts[own] = Links(first + 997 * life)
        self.heard[own].append([])

    def tick(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        for own in self.hosts:
            self.do(own, Due())

    def settle(self, rounds: int = 40) -> None:
        """Let a wire that loses nothing and keeps order carry everything."""
        for _ in range(rounds):
            least = 1000
            while self.bag["ta"] or self.bag["ts"]:
                least -= 1
                assert least, "the two sides answer each other for ever"
                for to in ("ta", "ts"):
                    if self.bag[to]:
                        self.deliver(to, 0)
            self.tick(100)

    def check(self) -> None:
        for own, runs in self.heard.items():
            spoken = list(self.said[OTHER[own]].values())
            flat = [one for run in runs for one in run]
            assert len(flat) == len(set(flat)), f"{own} heard something twice: {runs}"
            for run in runs:
                assert not run or any(run == one[: len(run)] for one in spoken), (
                    f"{own} heard {run}, which is the beginning of no opening of {spoken}"
                )


SIDES = st.sampled_from(["ta", "ts"])


class Chaos(RuleBasedStateMachine):
    @initialize(small=st.booleans())
    def begin(self, small: bool) -> None:
        self.wire = Wire()
        self.patch = pytest.MonkeyPatch()
        if small:
            self.patch.setattr(link, "QUEUE_MAX", 4)
            self.patch.setattr(link, "WINDOW", 2)
        self.patch.setattr(link, "PACK_BYTES", 100)
        self.patch.setattr(links, "PIECE_BYTES", 40)

    def teardown(self) -> None:
        if not hasattr(self, "wire"):
            return
        try:
            wire = self.wire
            wire.settle()
            for own, other in OTHER.items():
                wire.do(own, Open(own, other))
            wire.settle()
            wire.check()
            last = {own: [wire.say(own) for _ in range(3)] for own in OTHER}
            wire.settle()
            wire.check()
            for own, other in OTHER.items():
                assert wire.heard[other][-1][-3:] == last[own], "the link came to no end"
                assert wire.hosts[own].bound(own, other)
                assert wire.hosts[own].waiting(own, other) == (0, 0)
        finally:
            self.patch.undo()

    @rule(own=SIDES, size=st.sampled_from([0, 0, 100]), together=st.booleans())
    def say(self, own: str, size: int, together: bool) -> None:
        self.wire.say(own, size, together=together)

    @rule(own=SIDES)
    def open(self, own: str) -> None:
        self.wire.do(own, Open(own, OTHER[own]))

    @precondition(lambda self: self.wire.bag["ta"] or self.wire.bag["ts"])
    @rule(data=st.data(), keep=st.booleans())
    def deliver_any(self, data: st.DataObject, keep: bool) -> None:
        to = data.draw(st.sampled_from([one for one in ("ta", "ts") if self.wire.bag[one]]))
        at = data.draw(st.integers(0, len(self.wire.bag[to]) - 1))
        self.wire.deliver(to, at, keep=keep)

    @rule(to=SIDES, count=st.integers(1, 12))
    def deliver_in_order(self, to: str, count: int) -> None:
        for _ in range(min(count, len(self.wire.bag[to]))):
            self.wire.deliver(to, 0)

    @rule(to=SIDES)
    def lose_all(self, to: str) -> None:
        self.wire.bag[to].clear()

    @rule(milliseconds=st.sampled_from([5, 25, 350, 2500]))
    def tick(self, milliseconds: int) -> None:
        self.wire.tick(milliseconds)

    @rule(own=SIDES)
    def wired(self, own: str) -> None:
        self.wire.do(own, Wired())

    @rule(own=SIDES, amnesia=st.booleans())
    def restart(self, own: str, amnesia: bool) -> None:
        self.wire.restart(own, amnesia=amnesia)

    @invariant()
    def prefix_in_order_and_nothing_twice(self) -> None:
        if hasattr(self, "wire"):
            self.wire.check()


TestChaos = Chaos.TestCase
TestChaos.settings = settings(
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    made.do("ta", Open("ta", "ts"))
    made.settle(2)
    assert made.hosts["ta"].bound("ta", "ts")
    yield made
    made.check()


def test_a_new_link_is_told_to_both(wire: Wire) -> None:
    assert {own: len(runs) for own, runs in wire.heard.items()} == {"ta": 2, "ts": 2}


def test_a_restart_is_told_to_both_and_what_waited_is_given_up(wire: Wire) -> None:
    wire.say("ta")
    wire.bag["ts"].clear()
    wire.restart("ts", amnesia=False)
    wire.do("ts", Open("ts", "ta"))
    wire.settle()
    assert wire.heard["ta"] == [[], [], []]
    assert wire.heard["ts"][-1] == []
    assert wire.hosts["ta"].counters["links_bound"] == 2


def test_a_restart_is_noticed_though_the_new_life_knows_nobody(wire: Wire) -> None:
    wire.restart("ts", amnesia=True)
    wire.settle(30)
    assert wire.hosts["ta"].bound("ta", "ts")
    assert wire.hosts["ts"].bound("ts", "ta")
    assert wire.hosts["ta"].counters["links_bound"] == 2


def test_what_was_lost_is_sent_again_at_a_falling_pace(wire: Wire) -> None:
    sent = wire.say("ta")
    times = []
    for _ in range(100):
        if any(frame.number for frame in wire.bag["ts"]):
            times.append(wire.now_ms)
        wire.bag["ts"].clear()
        wire.tick(100)
    pauses = [after - before for before, after in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] == link.RESEND_FIRST_MS
    assert pauses[-1] == link.RESEND_CAP_MS
    wire.settle()
    assert wire.heard["ts"][-1] == [sent]


def test_what_was_lost_is_sent_as_soon_as_the_other_is_heard_again(wire: Wire) -> None:
    sent = wire.say("ta")
    for _ in range(40):
        wire.bag["ts"].clear()
        wire.tick(100)
    wire.bag["ts"].clear()
    wire.do("ts", Wired())
    wire.deliver("ta", len(wire.bag["ta"]) - 1)
    wire.tick(link.RESEND_LEAST_MS)
    wire.deliver("ts", 0)
    assert wire.heard["ts"][-1] == [sent]


def test_no_more_than_the_window_is_under_way(wire: Wire) -> None:
    for _ in range(3 * link.WINDOW):
        wire.say("ta")
    said = [frame for frame in wire.bag["ts"] if frame.number]
    assert sum(1 + len(frame.further) for frame in said) == link.WINDOW
    wire.settle()
    assert len(wire.heard["ts"][-1]) == 3 * link.WINDOW


def test_what_is_said_at_once_travels_together(wire: Wire) -> None:
    frames = len(wire.bag["ts"])
    said = [wire.say("ta", together=True) for _ in range(100)]
    wire.do("ta", Due())
    assert [1 + len(frame.further) for frame in wire.bag["ts"][frames:]] == [64, 36]
    wire.settle()
    assert wire.heard["ts"][-1] == said


def test_a_part_of_what_travels_together_that_was_taken_before_is_not_taken_again(
    wire: Wire,
) -> None:
    first = wire.say("ta")
    wire.deliver("ts", 0)
    for frame in wire.bag["ta"]:
        assert not frame.number
    wire.bag["ta"].clear()
    second = wire.say("ta")
    [alone] = wire.bag["ts"]
    mine = wire.hosts["ts"]._links["ts", "ta"]
    both = structs.replace(alone, number=1, further=(Linked("default", "cause", alone.body),))
    wire.do("ts", Hear("ts", "ta", both))
    assert mine._taken == 2
    wire.settle()
    assert wire.heard["ts"][-1] == [first, second]


def test_a_slow_other_side_is_not_told_everything_twice(wire: Wire) -> None:
    """What waits for longer than the first pause is said again once, and the rest is not."""
    for _ in range(200):
        wire.say("ta")
    slow = wire.bag["ts"][:]
    wire.bag["ts"].clear()
    for _ in range(8):
        wire.tick(100)
    again = [frame for frame in wire.bag["ts"] if frame.number]
    assert {frame.number for frame in again} == {1}
    wire.bag["ts"].clear()
    wire.bag["ta"].clear()
    for frame in slow:
        wire.do("ts", Hear("ts", "ta", frame))
    wire.settle()
    assert not [frame for frame in again if frame.further]
    assert wire.hosts["ts"].counters["links_doubled"] == 0
    assert wire.hosts["ta"].counters["links_resent"] == len(again)
    # From now on answers are known to take long.
    wire.say("ta")
    late = wire.bag["ts"].pop()
    for _ in range(9):
        wire.tick(100)
    assert not [frame for frame in wire.bag["ts"] if frame.number]
    wire.do("ts", Hear("ts", "ta", late))
    wire.settle()


def test_what_was_lost_with_the_answers_before_it_is_sent_soon(wire: Wire) -> None:
    """Answers to the first are lost, then the rest: who is told of the first alone finds out."""
    for _ in range(3):
        wire.say("ta")
    while wire.bag["ts"]:
        wire.deliver("ts", 0)
    wire.tick(link.ACK_MS)
    wire.bag["ta"].clear()
    for _ in range(5):
        wire.say("ta")
    for _ in range(60):
        wire.bag["ts"].clear()
        wire.tick(100)
    wire.do("ta", Wired())
    before_ms = wire.now_ms
    while len(wire.heard["ts"][-1]) < 8:
        assert wire.now_ms - before_ms < link.RESEND_FIRST_MS
        wire.say("ta")
        wire.tick(20)
        for to in ("ts", "ta"):
            while wire.bag[to]:
                wire.deliver(to, 0)
    wire.settle()
    assert wire.hosts["ts"].counters["links_doubled"] == 1


def test_the_newest_word_about_a_node_takes_the_place_of_one_that_waits(wire: Wire) -> None:
    heard: list[Any] = []
    own, peer = wire.hosts["ts"], wire.hosts["ta"]

    def say(body: Any) -> None:
        own.handle(Say("ts", "ta", "default", "c", body), wire.now_ms)

    for number in range(3):
        say(EnvelopeRevoke("a", 10 + number))
        for node in ("n1", "n2"):
            say(NodeSummary(node, NodeState.ONLINE, 1 + number, INVENTORY))
        say(LeaseRequest(1 + number))
    for command in own.handle(Due(), wire.now_ms):
        assert isinstance(command, Dispatch)
        for told in peer.handle(Hear("ta", "ts", command.frame), wire.now_ms):
            heard += [told.body] if isinstance(told, Hand) else []
    names = [type(one).__name__[0] for one in heard]
    assert names == ["L", "E", "N", "N", "E", "E"]
    assert heard[0] == LeaseRequest(3)
    assert [one.incarnation for one in heard if isinstance(one, NodeSummary)] == [3, 3]
    assert own.counters["links_replaced"] == 6
    assert own.waiting("ts", "ta")[0] == 6


def test_no_more_bytes_than_the_window_are_under_way(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "WINDOW_BYTES", 10_000)
    for _ in range(20):
        wire.say("ta", 2000)
    assert sum(len(frame.body) for frame in wire.bag["ts"]) < 10_000 + 2100
    wire.settle()
    assert len(wire.heard["ts"][-1]) == 20


def test_too_much_that_waits_begins_a_new_opening(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "QUEUE_MAX", 10)
    for _ in range(15):
        wire.say("ta")
    wire.settle()
    assert wire.hosts["ta"].counters["links_bound"] == 2
    assert wire.heard["ts"][-1] == [11, 12, 13, 14, 15]


def test_a_message_larger_than_a_frame_comes_whole(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "PIECE_BYTES", 100)
    monkeypatch.setattr(link, "PACK_BYTES", 100)
    sent = wire.say("ta", 2000)
    assert sum(frame.number > 0 for frame in wire.bag["ts"]) > 20
    assert max(len(frame.body) for frame in wire.bag["ts"]) <= 100
    wire.settle()
    assert wire.heard["ts"][-1] == [sent]


def test_what_is_too_large_for_any_link_is_counted(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MESSAGE_MAX_BYTES", 1000)
    wire.do("ta", Say("ta", "ts", "default", "c", EnvelopeRevoke("a", 7, "y" * 2000)))
    wire.do("ta", Due())
    assert wire.hosts["ta"].counters["links_too_large"] == 1


def test_a_foreign_body_is_counted_and_the_next_is_heard(wire: Wire) -> None:
    mine = wire.hosts["ts"]._links["ts", "ta"]
    peer = wire.hosts["ta"]._links["ta", "ts"]
    frame = Linking(peer.opening, mine.opening, 1, 0, "ts", body=b"\xc1")
    wire.do("ts", Hear("ts", "ta", frame))
    frame = Linking(peer.opening, mine.opening, 2, 0, "ts", body=b"\x00")
    wire.do("ts", Hear("ts", "ta", frame))
    assert wire.hosts["ts"].counters["links_bad_message"] == 2


def test_an_impossible_opening_or_acknowledgement_changes_nothing(wire: Wire) -> None:
    mine = wire.hosts["ts"]._links["ts", "ta"]
    before = mine.opening, mine.peer_opening
    wire.do("ts", Hear("ts", "ta", Linking(2**53, mine.opening, 0, 0, "ts")))
    wire.do("ts", Hear("ts", "ta", Linking(1, 2**53, 0, 0, "ts")))
    wire.do("ts", Hear("ts", "ta", Linking(mine.peer_opening, mine.opening, 0, 99, "ts")))
    assert (mine.opening, mine.peer_opening) == before
    sent = wire.say("ts")
    wire.settle()
    assert wire.heard["ta"][-1] == [sent]


def test_strangers_are_bounded(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_LINKS", 3)
    for number in range(10):
        wire.hosts["ts"].handle(Hear("ts", f"x{number}", Linking(1, 0, 0, 0, "ts")), 0)
    assert wire.hosts["ts"].counters["links_too_many"] == 8
