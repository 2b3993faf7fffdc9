"""What a scheduler says of a danger: near or broken, and why it does nothing."""

import pytest
from quality_bench import envelope

from controller.desk import Desk
from controller.scheduler.complaints import Complaints
from controller.scheduler.copies import TaskEntry
from controller.scheduler.danger import Danger
from protocols.messages import Escalation
from protocols.messages.quality import Leeway


@pytest.mark.parametrize(
    ("leeway", "measured", "sentence"),
    [
        (
            Leeway(moves=False),
            4.19,
            (
                "latency_ms is near its bound: 4.19, its bound 5, and the scheduler may change "
                "nothing by itself (autonomy manual)"
            ),
        ),
        (Leeway(), 8.0, "latency_ms is 8, its bound 5, and nothing inside the envelope helps"),
    ],
)
def test_a_complaint_says_what_is_so(leeway: Leeway, measured: float, sentence: str) -> None:
    desk = Desk("ts-main")
    entry = TaskEntry(envelope("n1", leeway=leeway), "ta-main", "default", 0, 1, 1)
    one = Danger("svc.a", "latency_ms", measured, 5.0, measured / 5.0)
    Complaints(desk).say(entry, one, [], "test")
    [send] = desk.output.sends
    assert isinstance(send.body, Escalation)
    assert send.body.problem == sentence
    assert send.body.broken is (measured > 5.0)
