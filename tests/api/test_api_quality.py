"""`service.qos` and `service.explain`: what the registry holds, as people read it. Pure."""

from typing import Any

import pytest
from namo_bench import Host, a_document, a_service, step, summary

from controller.api.choices import ListApprovals, explain_service, list_approvals
from controller.api.named import from_json, to_json
from controller.api.quality import QosRow, ServiceQos, service_qos
from controller.decider import Record, View
from controller.namo.decompose import order_of
from controller.namo.usecase import parse
from controller.records import (
    APPROVAL,
    FLEET,
    QUALITY,
    TASK,
    ApprovalRecord,
    ApprovalState,
    NodeView,
    ServiceQuality,
    ServiceRecord,
    TaskQuality,
    TaskRecord,
    TaskState,
)
from controller.registry import Registry
from protocols.messages.hierarchy import NodeState, ServiceState
from protocols.messages.presence import Inventory
from protocols.messages.quality import TaskSample, Tuning
from protocols.messages.sense import LinkReport
from protocols.qoais import Bound

ZONE = {
    "latency_ms": {"at_most": 120},
    "accuracy_percent": {"at_least": 80},
    "robustness": {"level": "medium"},
    "energy_j": {"at_most": 2},
    "data_privacy": {"level": "node"},
    "autonomy": {"level": "partial"},
}
VARIANT = {
    "name": "small", "artifact": "sha256:" + "aa" * 32, "artifact_bytes": 5,
    "accuracy_percent": 82, "declared": {"robustness": "low"},
}  # fmt: skip


def record(**more: Any) -> ServiceRecord:
    """Return a service of two steps: a program, and a model that has a variant."""
    head = step("head", expected_ms=4, nodes=["n1"])
    model = step("model", "head.y", executor="onnx", expected_ms=14, variants=[VARIANT],
                 accuracy_percent=90, declared={"robustness": "high"})  # fmt: skip
    users = [{"user": "alice", "zone": {"latency_ms": {"at_most": 60}}}]
    sla = {"zone": ZONE, "satisfaction_ratio": 0.9, "users": users}
    use_case, _ = parse(a_document(a_service([head, model], sla=sla, **more)), "json")
    service = use_case.services[0]
    order = order_of(service, service.ways()[0], "u", 1)
    return ServiceRecord(order, "default", "ta-main", ServiceState.RUNNING)


def seen(one: ServiceRecord, variant: str = "") -> Registry:
    """Return a registry in which both tasks run on n1 and were measured."""
    registry = Registry("e")
    inventory = Inventory("generic", "x86_64", "linux", 4, 1, 1)
    link = LinkReport(1, "wlan0", "wifi", True, round_trip_ms=6.0, jitter_ms=1.0)
    tasks = [
        TaskQuality(
            spec.task,
            "n1",
            Tuning(),
            TaskSample(spec.step, 1, done=10, run_ms=20.0, queue_ms=5.0, sent_bytes=100,
                       energy_j=5.0),
            values={"latency_ms": 26.0},
        )
        for spec in one.order.tasks
    ]  # fmt: skip
    view = ServiceQuality("a", "ts-main", 4, 3, 0.75, 0.9, {"latency_ms": 55.0}, tuple(tasks),
                          window_ms=1000)  # fmt: skip
    registry.apply([View(QUALITY, "a", view)])
    registry.apply([View(FLEET, "n1", NodeView("n1", NodeState.ONLINE, "ts-main", inventory,
                                               link=link))])  # fmt: skip
    for spec in one.order.tasks:
        task = TaskRecord(spec, "a", "default", 1, TaskState.RUNNING, node="n1",
                          variant=variant if spec.step == "model" else "")  # fmt: skip
        registry.apply([Record(TASK, spec.task, task, "c")])
    return registry


def rows(qos: ServiceQos, level: str, of: str = "a") -> dict[str, QosRow]:
    return {one.indicator: one for one in qos.rows if (one.level, one.of) == (level, of)}


def test_each_indicator_is_followed_from_sla_to_resource() -> None:
    one = record()
    qos = service_qos(one, seen(one))
    assert (qos.users, qos.satisfied, qos.satisfaction_ratio, qos.target_ratio) == (4, 3, 0.75, 0.9)
    assert not qos.paper
    assert rows(qos, "sla", "every user")["latency_ms"].target == Bound("latency_ms", at_most=120)
    assert rows(qos, "sla", "user alice")["latency_ms"].target == Bound("latency_ms", at_most=60)
    agreed = rows(qos, "qoais")
    assert agreed["latency_ms"].target == Bound("latency_ms", at_most=60)
    assert (agreed["latency_ms"].value, agreed["latency_ms"].kept) == (55.0, True)
    assert (agreed["energy_j"].value, agreed["energy_j"].kept) == (1.0, True)
    head, model = rows(qos, "task", "a.head"), rows(qos, "task", "a.model")
    limits = [share["latency_ms"].target for share in (head, model)]
    assert sum(one.at_most or 0 for one in limits if one) == pytest.approx(60)
    assert (head["latency_ms"].value, head["latency_ms"].kept) == (26.0, False)
    assert (model["latency_ms"].value, model["latency_ms"].kept) == (26.0, True)
    link = rows(qos, "connection", "a.model")
    assert (link["delay_ms"].value, link["jitter_ms"].value) == (3.0, 1.0)
    assert rows(qos, "computing", "a.model")["compute_ms"].value == 20.0
    assert rows(qos, "data", "a.model")["storage_bytes"].kept
    assert {one.level for one in qos.rows} == {
        "sla", "qoais", "task", "data", "algorithm", "computing", "connection",
    }  # fmt: skip


def test_what_is_declared_is_that_of_the_variant_which_runs() -> None:
    one = record()
    main, small = (service_qos(one, seen(one, variant)) for variant in ("", "small"))
    assert rows(main, "qoais")["accuracy_percent"].value == pytest.approx(90)
    assert rows(main, "qoais")["robustness"].kept
    assert rows(small, "qoais")["accuracy_percent"].value == pytest.approx(82)
    assert rows(small, "qoais")["robustness"].kept is False
    assert rows(small, "task", "a.model")["robustness"].value == "low"


def test_privacy_is_what_placement_keeps() -> None:
    one = record()
    registry = seen(one)
    assert rows(service_qos(one, registry), "qoais")["data_privacy"].value == "node"
    head = one.order.tasks[0]
    moved = TaskQuality(head.task, "n2", Tuning())
    registry.apply([View(QUALITY, "a", ServiceQuality("a", "ts-main", tasks=(moved,)))])
    broken = rows(service_qos(one, registry), "qoais")["data_privacy"]
    assert (broken.value, broken.kept) == ("cell", False)


def test_what_is_not_known_is_absent_and_never_0() -> None:
    one = record()
    qos = service_qos(one, Registry("e"))
    assert (qos.satisfaction_ratio, qos.users) == (None, 0)
    latency = rows(qos, "qoais")["latency_ms"]
    assert (latency.value, latency.kept) == (None, None)
    assert rows(qos, "task", "a.head")["latency_ms"].value is None


def test_a_training_is_told_in_seconds() -> None:
    zone = {"training_duration_s": {"at_most": 100}}
    text = a_document(a_service([step("t")], kind="training", sla={"zone": zone}))
    service = parse(text, "json")[0].services[0]
    order = order_of(service, service.ways()[0], "u", 1)
    one = ServiceRecord(order, "default", "ta-main", ServiceState.RUNNING)
    registry = Registry("e")
    view = ServiceQuality("a", "ts-main", values={"latency_ms": 20_000.0})
    registry.apply([View(QUALITY, "a", view)])
    qos = service_qos(one, registry)
    assert qos.paper
    assert rows(qos, "qoais")["training_duration_s"].value == 20.0


def test_the_answers_are_json_that_comes_back_whole() -> None:
    one = record()
    qos = service_qos(one, seen(one))
    assert from_json(to_json(qos, ServiceQos), ServiceQos) == qos


def test_an_explanation_has_the_candidates_the_chosen_one_first() -> None:
    host = Host()
    host.hear(summary())
    host.hear(summary("ta-radio", nodes=0), "ta-radio")
    host.submit(a_service([step("t")]))
    told = explain_service(host.service())
    assert (told.decomposition, told.anchor) == ("main+spread", "ta-main")
    assert [one.anchor for one in told.candidates] == ["ta-main", "ta-radio"]
    assert told.candidates[1].reason == "none of its nodes is online"


def test_approvals_are_listed_by_number_those_that_wait_unless_asked() -> None:
    registry = Registry("e")
    for number, state in (("10", "pending"), ("9", "pending"), ("8", "denied")):
        one = ApprovalRecord(number, "a", "default", "do", "why", ApprovalState(state))
        registry.apply([Record(APPROVAL, number, one, "c")])
    assert [one.number for one in list_approvals(ListApprovals(), registry)] == ["9", "10"]
    denied = list_approvals(ListApprovals("a", ApprovalState.DENIED), registry)
    assert [one.number for one in denied] == ["8"]
    assert list_approvals(ListApprovals("b"), registry) == []
