"""When a node outside loopback asks who may sign, and what it says of that; on a fake clock."""

from device_harness import SimNode, of

from device_agent.core import commands, events
from device_agent.core.trusting import AGAIN_MS, EVERY_MS, FIRST_MS
from protocols.messages import Birth
from protocols.messages.presence import Trust


def checks(said: list[object]) -> int:
    return len(of(commands.CheckTrust, said))


def test_on_loopback_nobody_is_asked() -> None:
    node = SimNode()
    node.join()
    assert of(Birth, node.said)[-1].trust is None
    assert checks(node.after(2 * EVERY_MS)) == 0


def test_it_asks_soon_after_a_welcome_then_now_and_then_and_tells_what_changed() -> None:
    node = SimNode(trust=Trust(1, 100))
    node.join()
    assert of(Birth, node.said)[-1].trust == Trust(1, 100)
    assert checks(node.after(2 * FIRST_MS)) == 1
    said = node.tell(events.TrustChecked(Trust(2, 200)))
    assert [one.trust for one in of(Birth, said)] == [Trust(2, 200)]
    assert of(Birth, node.tell(events.TrustChecked(Trust(2, 200)))) == []
    node.join()
    assert checks(node.after(EVERY_MS // 2)) == 0, "another welcome changes nothing"
    assert checks(node.after(EVERY_MS)) == 1


def test_a_check_that_failed_is_told_keeps_what_was_known_and_is_made_again() -> None:
    node = SimNode(trust=Trust(3, 300))
    node.join()
    node.after(2 * FIRST_MS)
    node.after(2000)
    said = node.tell(events.TrustChecked(Trust(problem="the store is held at an old state")))
    assert [one.trust for one in of(Birth, said)] == [
        Trust(3, 300, "the store is held at an old state")
    ]
    assert checks(node.after(2 * AGAIN_MS)) >= 1
    assert of(Birth, node.tell(events.TrustChecked(Trust(3, 400))))[-1].trust == Trust(3, 400)
