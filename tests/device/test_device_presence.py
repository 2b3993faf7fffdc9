"""Presence and outbox on a fake clock."""

from itertools import pairwise

import pytest
from device_harness import NODE, SimNode, assign, of

from device_agent.core import commands, events
from device_agent.core.presence import REBIRTH_MIN_MS, WELCOME_MAX_MS, PresenceState
from protocols.errors import Blame
from protocols.messages import (
    Acknowledge,
    Birth,
    Death,
    Drain,
    LoadReport,
    RebirthRequest,
    SetSensing,
    Status,
    Welcome,
)
from protocols.messages.task import InstanceState
from protocols.topics import Channel


def test_connection_begins_with_a_birth_that_tells_the_holdings() -> None:
    node = SimNode(events.Restored(assigns=(assign("t", 3),)))
    (said,) = node.connect()
    assert isinstance(said, commands.Say)
    assert said.channel is Channel.PRESENCE
    (holding,) = said.body.holdings
    assert (holding.task, holding.epoch, holding.state, holding.generation) == ("t", 3, "ready", 1)


def test_birth_is_repeated_with_growing_waits_until_welcome() -> None:
    node = SimNode()
    node.connect()
    births = []
    while len(births) < 12:
        due = node.core.next_due_ms
        births += [node.now_ms for _ in of(Birth, node.at(due))]
    waits = [after - before for before, after in pairwise(births)]
    assert waits == sorted(waits)
    assert waits[-1] == WELCOME_MAX_MS
    node.welcome()
    assert not of(Birth, node.after(10 * WELCOME_MAX_MS))


def test_the_log_says_once_of_a_connection_that_nobody_answers() -> None:
    node = SimNode()
    node.connect()
    (told,) = of(commands.Warn, node.after(10 * WELCOME_MAX_MS))
    assert "no scheduler of cell" in told.text
    heard = SimNode()
    heard.connect()
    heard.welcome()
    assert not of(commands.Warn, heard.after(10 * WELCOME_MAX_MS))


def test_jitter_spreads_the_waits() -> None:
    calm, late = SimNode(), SimNode()
    calm.tell(events.Connected(1, 0.0))
    late.tell(events.Connected(1, 0.9))
    assert calm.core.next_due_ms < late.core.next_due_ms


def test_welcome_of_another_incarnation_is_ignored() -> None:
    node = SimNode()
    node.connect()
    node.hear(Welcome("ts-1", 7, 99))
    assert node.core.presence.state is PresenceState.UNWELCOMED
    assert node.core.counts["late welcome"] == 1


def test_new_scheduler_epoch_brings_one_more_birth() -> None:
    node = SimNode()
    node.join()
    node.after(5000)
    node.tell(events.Disconnected())
    node.connect()
    node.after(REBIRTH_MIN_MS / 2)
    node.welcome(epoch=8)
    assert len(of(Birth, node.after(REBIRTH_MIN_MS))) == 1
    node.welcome(epoch=8)
    assert not of(Birth, node.after(60_000))


def test_rebirth_requests_are_limited_in_rate() -> None:
    node = SimNode()
    node.join()
    node.after(5000)
    births = 0
    for _ in range(200):
        births += len(of(Birth, node.hear(RebirthRequest("ts-1", 7))))
        births += len(of(Birth, node.after(50)))
    assert 8 <= births <= 11


def test_a_welcome_sets_the_pace_and_the_reports_follow() -> None:
    node = SimNode()
    node.connect()
    sample = events.Sampled(LoadReport(0, 10.0))
    assert not node.tell(sample)
    (pace,) = of(commands.SetPace, node.welcome())
    assert (pace.sample_ms, pace.probe_ms) == (1000, 1000)
    assert of(LoadReport, node.tell(sample))
    assert not of(LoadReport, node.tell(events.Sampled(LoadReport(400, 11.0))))
    (report,) = of(LoadReport, node.tell(events.Sampled(LoadReport(600, 60.0))))
    assert report.cause == "cpu_percent"
    (pace,) = of(commands.SetPace, node.hear(SetSensing(sample_ms=100, probe_ms=250)))
    assert (pace.sample_ms, pace.probe_ms, pace.whole_every) == (100, 250, 5)


def test_statuses_wait_for_the_welcome_and_repeat_until_acknowledged() -> None:
    node = SimNode()
    node.hear(assign("t"))
    assert not of(Status, node.said)
    node.connect()
    (status,) = of(Status, node.welcome())
    assert status.state is InstanceState.READY
    repeated = of(Status, node.after(10_000))
    assert 2 <= len(repeated) <= 4
    assert {one.number for one in repeated} == {status.number}
    node.hear(Acknowledge(status.number, node.incarnation - 1))
    assert of(Status, node.after(60_000)), "an acknowledgement of an older connection is none"
    node.hear(Acknowledge(status.number, node.incarnation))
    assert not of(Status, node.after(120_000))
    assert len(node.core.outbox) == 0


def test_the_newest_status_replaces_an_unacknowledged_one() -> None:
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    assert len(node.core.outbox) == 1
    numbers = [one.number for one in of(Status, node.said)]
    assert numbers == sorted(set(numbers))
    assert {one.state for one in of(Status, node.after(5000))} == {InstanceState.READY}


def test_shut_down_drains_and_says_farewell_last() -> None:
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    said = node.tell(events.ShutDown("stopped by a signal"))
    kinds = [type(one).__name__ for one in said]
    assert kinds == ["StopInstance", "Say", "Exit"]
    (death,) = of(Death, said)
    assert death.orderly
    assert death.reason == "stopped by a signal"
    assert "t" in node.journal, "the journal keeps the task"


def test_shut_down_is_bounded_when_an_instance_never_stops() -> None:
    node = SimNode()
    node.hear(assign("t"))
    node.helpful = False
    assert not of(commands.Exit, node.tell(events.ShutDown("over")))
    assert of(commands.Exit, node.after(60_000))
    assert len(of(commands.Exit, node.said)) == 1


def test_messages_on_the_wrong_channel_are_counted_and_dropped() -> None:
    node = SimNode()
    node.join()
    assert not node.hear(assign("t"), Channel.INVOKE, sender="app")
    assert not node.hear(Status(1, "t", 1, InstanceState.READY, "", Blame.OURS))
    assert node.core.counts["foreign message"] == 2
    assert node.state() is None
    assert node.core._turn.node == NODE


def test_an_unknown_event_is_a_bug_of_ours() -> None:
    with pytest.raises(Exception, match="no door"):
        SimNode().core.handle("nonsense", 0)


def test_a_birth_tells_that_the_node_is_drained() -> None:
    """The scheduler that asked for it may have no memory by then."""
    node = SimNode()
    assert of(Birth, node.connect())[0].draining == ""
    node.hear(Drain("maintenance"))
    assert of(Birth, node.connect())[0].draining == "maintenance"
