"""Tables of quality, candidates and approvals."""

from importlib import import_module
from typing import Any

import pytest
from msgspec import structs

from controller.api.choices import ServiceExplanation
from controller.api.places import Explanation
from controller.api.quality import QosRow, ServiceQos
from controller.records import ApprovalRecord, ApprovalState, Candidate, Placement, TaskState
from protocols.messages.hierarchy import Autonomy, ServiceState
from protocols.qoais import Bound, ServiceKind
from tona.cli import quality, tasks

QOS = ServiceQos(
    "watch", ServiceKind.INFERENCE, ServiceState.RUNNING, False, 0.95, 0.75, 4, 3,
    (
        QosRow("sla", "every user", "latency_ms", "ms", Bound("latency_ms", at_most=200.0)),
        QosRow("qoais", "watch", "latency_ms", "ms", Bound("latency_ms", at_most=100.0), 123.456,
               False, "from arrival to answer"),
        QosRow("qoais", "watch", "throughput_per_s", "1/s", None, 9.5, None, "answers"),
        QosRow("data", "watch.t", "storage_bytes", "B", Bound("storage_bytes", at_most=2048.0),
               2048.0, True, "sizes"),
        QosRow("data", "watch.t", "data_privacy", "", Bound("data_privacy", level="node"), "node",
               True, "kept"),
    ),
)  # fmt: skip


def lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_targets_stand_beside_values_and_what_is_absent_is_a_dash(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quality.draw_qos(QOS)
    told = lines(capsys)
    assert " ".join(told[0]) == "service watch: running, inference, by a map of ours"
    assert " ".join(told[1]) == (
        "user satisfaction ratio: 0.750, 0.95 agreed (3 of 4 users measured)"
    )
    assert told[2] == ["LEVEL", "OF", "INDICATOR", "TARGET", "VALUE", "KEPT", "HOW"]
    assert told[3][3:] == ["latency_ms", "≤", "200", "ms", "-", "-", "-"]
    assert told[4][2:9] == ["latency_ms", "≤", "100", "ms", "123.5", "ms", "no"]
    assert told[5][2:6] == ["throughput_per_s", "-", "9.5", "1/s"]
    assert told[6][2:9] == ["storage_bytes", "≤", "2.0", "KiB", "2.0", "KiB", "yes"]
    assert told[7][2:6] == ["data_privacy", "node", "node", "yes"]


def test_why_a_task_is_not_on_another_node_is_told_of_those_that_were_tried(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusals = {"n1": "its disk is full", "n3": "sha256:00 is not signed"}
    tasks.draw_explanation(
        Explanation("s.t", TaskState.RUNNING, "n2", "", Placement(1, ("n2",)), "", refusals)
    )
    told = [" ".join(line) for line in lines(capsys)]
    assert told == [
        "s.t: running on n2",
        "NODE THAT COULD NOT RUN IT REASON",
        "n1 its disk is full",
        "n3 sha256:00 is not signed",
    ]


def test_an_explanation_names_every_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    candidates = (
        Candidate("main+spread", "ta-main", True, {"latency_ms": 12.34, "hops": 2.0}, "least lost"),
        Candidate("small+spread", "ta-radio", False, {}, "no node is online"),
    )
    quality.draw_choice(
        ServiceExplanation(
            "watch", ServiceState.RUNNING, "", "main+spread", "ta-main", Autonomy.PARTIAL,
            ("ta-old",), candidates,
        )
    )  # fmt: skip
    told = lines(capsys)
    assert " ".join(told[0]) == "service watch: running, main+spread at ta-main, autonomy partial"
    assert " ".join(told[1]) == "not let go yet by ta-old"
    assert told[3] == ["main+spread", "ta-main", "12.3", "ms", "-", "2", "yes", "least", "lost"]
    assert told[4][:6] == ["small+spread", "ta-radio", "-", "-", "-", "no"]


class _Api:
    """Answers one operation, and notes what it was asked."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def call(self, operation: str, **arguments: Any) -> Any:
        self.asked.append((operation, arguments))
        return self.value


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> _Api:
    import asyncio  # noqa: PLC0415 - only the stand-in runs a loop

    # Modules that take `with_api` by name have the real one before it is replaced.
    import_module("tona.cli.app")
    one = _Api(None)
    monkeypatch.setattr("tona.cli.context.with_api", lambda work: asyncio.run(work(one)))
    return one


def test_approvals_are_listed_granted_and_denied(tona: Any, api: _Api) -> None:
    record = ApprovalRecord("7", "watch", "default", "use the variant small", "too slow")
    api.value = [record]
    listed = tona("approve", "list", "--service", "watch")
    assert listed.code == 0
    assert listed.out.splitlines()[1].split() == [
        "7", "watch", "pending", "use", "the", "variant", "small", "too", "slow", "-",
    ]  # fmt: skip
    late = "nobody answered within 24 hours"
    api.value = [structs.replace(record, state=ApprovalState.EXPIRED, outcome=late)]
    assert tona("approve", "list").out.splitlines()[1].endswith(f"too slow  {late}")
    api.value = record
    assert tona("approve", "grant", "7").out == "approval 7 is pending: use the variant small\n"
    tona("approve", "deny", "7")
    asked = [one for one, _ in api.asked]
    assert asked == ["approve.list", "approve.list", "approve.grant", "approve.deny"]
    assert api.asked[2][1] == {"name": "7"}


def test_the_commands_are_there(tona: Any, api: _Api) -> None:
    api.value = QOS
    assert "user satisfaction ratio" in tona("service", "qos", "watch").out
    api.value = ServiceExplanation(
        "watch", ServiceState.WAITING, "", "", "ta-main", Autonomy.FULL, (), ()
    )
    assert "nothing was weighed" in tona("service", "explain", "watch").out
    api.value = structs.replace(api.value, reason="watch.t: no node is online")
    told = tona("service", "explain", "watch").out.splitlines()
    assert told[0].endswith("autonomy full")
    assert told[1] == "reason: watch.t: no node is online"
    assert [one for one, _ in api.asked] == ["service.qos"] + 2 * ["service.explain"]
