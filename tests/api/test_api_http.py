import asyncio
from typing import Any

import httpx
import pytest

from controller.accounts import Quarantined, TaskAudit
from controller.api import client
from controller.api.operation import Effect, Transfer
from controller.api.operations import TABLE, SubmitUseCase
from controller.decider import Answer, Record
from controller.handover_records import HandoverRecord, HandoverState
from controller.job_view import job_view
from controller.namo.submission import Submitted
from controller.records import (
    APPROVAL,
    HANDOVER,
    JOB,
    SERVICE,
    STORY,
    TASK,
    USE_CASE,
    ApprovalRecord,
    JobRecord,
    Placement,
    Rejection,
    ServiceRecord,
    StoryRecord,
    TaskRecord,
    TaskState,
    UseCaseRecord,
    UseCaseState,
)
from protocols.errors import Blame, EnvironmentFailure, UserError
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages import JobSubmit
from protocols.messages.hierarchy import NodeState, ServiceOrder, ServiceState, TaskSpec
from protocols.messages.job import JobState
from protocols.qoais import ServiceKind

MANIFEST = Manifest(
    ExecutorKind.WASM,
    ArtifactRef("sha256:" + "0" * 64, 1),
    (Port("x", Dtype.UINT8, (-1,)),),
    (Port("y", Dtype.UINT8, (-1,)),),
)
SPEC = TaskSpec("ocr.read", "read", MANIFEST)
PLACEMENT = Placement(4, ("n1",), {"n1": {"load": 0.5}}, (Rejection("n2", "feasible", "no GPU"),))


@pytest.fixture
def work(cell: Any) -> Any:
    order = ServiceOrder("ocr", "pages", ServiceKind.INFERENCE, 1, (SPEC,), ())
    things = [
        (USE_CASE, "pages", UseCaseRecord("pages", "default", 1, UseCaseState.RUNNING, "{}")),
        (USE_CASE, "old", UseCaseRecord("old", "default", 1, UseCaseState.DELETED, "{}")),
        (SERVICE, "ocr", ServiceRecord(order, "default", "ta-main", ServiceState.RUNNING)),
        (
            TASK,
            "ocr.read",
            TaskRecord(
                SPEC,
                "ocr",
                "default",
                1,
                TaskState.RUNNING,
                ("n1",),
                "n1",
                placement=PLACEMENT,
                reason="fits",
            ),
        ),
        (APPROVAL, "7", ApprovalRecord("7", "ocr", "default", "use the small model", "late")),
        (JOB, "j", JobRecord(JobSubmit("j", "ocr", {}), "me", "default", JobState.RUNNING)),
        (STORY, "ocr.read/1", StoryRecord("ocr.read", 65, "ts", "moved")),
        (STORY, "ocr.read/0", StoryRecord("ocr.read", 64, "ta", "placed")),
    ]
    cell.registry.apply([Record(kind, key, value, "c") for kind, key, value in things])
    cell.see_node("n1")
    return cell


async def test_a_long_listing_is_whole(cell: Any, http: httpx.AsyncClient) -> None:
    for number in range(1000):
        cell.see_node(f"n{number:04}")
    fleet = await ask(http, "fleet.status")
    assert fleet == cell.registry.model.list("fleet")
    assert len(fleet) == 1000


async def ask(http: httpx.AsyncClient, name: str, /, **arguments: Any) -> Any:
    request = client.call(name, **arguments)
    headers = {} if request.body is None else {"content-type": "application/json"}
    response = await http.request(
        request.method, request.path, content=request.body, headers=headers
    )
    return client.answer(name, response.status_code, response.content)


async def test_every_operation_of_the_table_is_reachable(
    work: Any, http: httpx.AsyncClient
) -> None:
    names = {"usecase": "pages", "service": "ocr", "task": "ocr.read", "node": "n1"}
    names |= {"approve": "7", "job": "j", "audit": "", "handover": "n1-1"}
    handover = HandoverRecord("n1-1", "n1", 1, "c", "c2", HandoverState.COMMANDED, "by hand")
    work.registry.apply([Record(HANDOVER, "n1/1", handover, "test")], ())
    drained = {"node": "n1", "state": "draining"}
    said: dict[str, Any] = {
        "task.audit": TaskAudit(()),
        "task.quarantine": Quarantined("ocr.read", {}, "sha256:"),
        "node.drain": drained,
        "node.resume": drained,
        "node.forget": {"node": "n1"},
        "node.handover": handover,
    }
    for one in TABLE:
        if one.transfer is not Transfer.JSON:
            continue
        thing = one.name.partition(".")[0]
        arguments = {"name": names[thing]} if "{name}" in one.path else {}
        arguments |= {"hex": "a" * 64} if "{hex}" in one.path else {}
        arguments |= {"cell": "c2"} if one.name == "node.handover" else {}
        if one.name == "usecase.submit":
            arguments = {"document": "name = 'pages'", "dry_run": True}
            work.answer = Answer("", Submitted("pages", "default", 2, "changed", ("ocr",)))
        elif one.name == "usecase.delete":
            work.answer = Answer("", work.registry.model.get(USE_CASE, "pages"))
        elif thing == "job" and one.effect is Effect.WRITE:
            arguments = arguments or {"job": "j", "service": "ocr"}
            work.answer = Answer("", job_view(work.registry.model.get(JOB, "j")))
        elif one.name in said:
            work.answer = Answer("", said[one.name])
        elif one.name in ("approve.grant", "approve.deny"):
            work.answer = Answer("", work.registry.model.get(APPROVAL, "7"))
        result = await ask(http, one.name, **arguments)
        assert type(result) is (getattr(one.result, "__origin__", None) or one.result), one.name
    json = [one for one in TABLE if one.transfer is Transfer.JSON]
    writes = [one.name for one in json if one.effect is Effect.WRITE or one.asked]
    assert [call[0] for call in work.calls] == writes
    assert work.calls[0][1] == SubmitUseCase("name = 'pages'", dry_run=True)
    assert work.calls[0][2] == "default"


@pytest.mark.usefixtures("work")
async def test_reads_say_what_the_registry_holds(http: httpx.AsyncClient) -> None:
    assert [one.name for one in await ask(http, "usecase.list")] == ["pages"]
    assert [one.name for one in await ask(http, "usecase.list", state="deleted")] == ["old"]
    assert await ask(http, "usecase.list", prefix="q") == []
    assert await ask(http, "service.list", use_case="other") == []
    assert (await ask(http, "service.show", name="ocr")).order.tasks == (SPEC,)
    assert len(await ask(http, "task.list", node="n1", service="ocr", state="running")) == 1
    assert await ask(http, "task.list", state="waiting") == []
    explanation = await ask(http, "task.explain", name="ocr.read")
    assert explanation.placement == PLACEMENT
    assert explanation.reason == "fits"
    story = await ask(http, "task.events", name="ocr.read")
    assert [one.number for one in story] == [64, 65]
    assert (await ask(http, "system.info")).broker == "mqtt://127.0.0.1:1883"


async def test_the_fleet_shows_nodes_that_have_not_come_back_yet(
    cell: Any, http: httpx.AsyncClient
) -> None:
    cell.see_node("b")
    cell.know_node("a")
    cell.know_node("b")
    fleet = await ask(http, "fleet.status")
    assert [(one.node, one.state) for one in fleet] == [
        ("a", NodeState.LOST),
        ("b", NodeState.ONLINE),
    ]
    assert fleet[0].reason == "not heard of since this controller started"
    assert [one.node for one in await ask(http, "fleet.status", state="online")] == ["b"]
    assert (await ask(http, "node.show", name="a")).state is NodeState.LOST
    with pytest.raises(UserError, match="there is no node 'aa'; did you mean 'a'"):
        await ask(http, "node.show", name="aa")


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/v1/usecases/page", 404, "there is no use case 'page'; did you mean 'pages'?"),
        ("DELETE", "/v1/usecases/page", 404, "there is no use case 'page'; did you mean 'pages'?"),
        ("GET", "/v1/tasks/ocr.raed/explain", 404, "there is no task 'ocr.raed'; did you mean"),
        ("POST", "/v1/nodes/n2/drain", 404, "there is no node 'n2'"),
        ("GET", "/v1/tasks/ocr.read/stats?node=nn1", 404, "there is no node 'nn1'; did you mean"),
        ("GET", "/v1/tasks/ocr.read/audit?node=nn1", 404, "there is no node 'nn1'; did you mean"),
        ("GET", "/v1/usecase", 404, "there is no /v1/usecase; did you mean '/v1/usecases'?"),
        ("GET", "/", 404, "there is no /"),
        ("PATCH", "/v1/usecases", 405, "/v1/usecases does not know PATCH"),
        ("GET", "/v1/tasks?nod=x", 400, "task.list has no argument 'nod'; did you mean 'node'?"),
        ("POST", "/v1/usecases", 415, "the body must be application/json, not unnamed"),
        ("HEAD", "/v1/watch/task", 405, ""),
    ],
)
async def test_what_cannot_be_served_is_one_sentence(
    work: Any, http: httpx.AsyncClient, method: str, path: str, status: int, sentence: str
) -> None:
    response = await http.request(method, path)
    assert response.status_code == status
    if sentence:
        error = response.json()["error"]
        assert error["text"].startswith(sentence)
        assert error["blame"] == "user"
    assert work.calls == []


@pytest.mark.parametrize(
    ("answer", "status", "blame"),
    [
        (Answer("", error="no such port", blame=Blame.USER), 400, "user"),
        (Answer("", error="no broker", blame=Blame.ENVIRONMENT), 503, "environment"),
        (Answer("", error="not now", blame=Blame.ENVIRONMENT, busy=True), 409, "environment"),
        (Answer("", error="oops", blame=Blame.OURS), 500, "ours"),
        (Answer("", error="oops"), 500, "ours"),
        (Answer("", value=[1]), 500, "ours"),
        (EnvironmentFailure("too many operations at once"), 503, "environment"),
    ],
)
async def test_what_a_role_refuses_keeps_its_blame(
    cell: Any, http: httpx.AsyncClient, answer: Any, status: int, blame: str
) -> None:
    cell.answer = answer
    response = await http.post("/v1/usecases", json={"document": "x"})
    assert response.status_code == status
    error = response.json()["error"]
    assert error["blame"] == blame
    assert error["text"] in {
        getattr(answer, "error", ""),
        str(answer),
        "the answer to usecase.submit is of a wrong form: Expected `object`, got `array`",
    }


async def test_a_role_that_never_answers_is_given_up(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.api.app.CALL_TIMEOUT_S", 0.01)
    cell.answer = asyncio.Event()
    response = await http.post("/v1/usecases", json={"document": "x"})
    assert response.status_code == 504
    assert "was not answered within" in response.json()["error"]["text"]


async def test_a_fault_of_ours_is_told_as_such(
    cell: Any, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    cell.answer = ZeroDivisionError("secret detail")
    response = await http.post("/v1/usecases", json={"document": "x"})
    assert response.status_code == 500
    assert response.json()["error"] == {
        "blame": "ours",
        "text": "a fault of the controller (ZeroDivisionError); see its log",
    }
    assert "secret detail" in caplog.text


async def test_a_cause_goes_through_and_a_strange_one_is_replaced(
    cell: Any, http: httpx.AsyncClient
) -> None:
    cell.answer = Answer("", error="no", blame=Blame.USER)
    for given, kept in (("trace-7", True), ("x" * 129, False), ("a\tb", False)):
        headers = {"tona-cause": given}
        response = await http.post("/v1/usecases", json={"document": "x"}, headers=headers)
        cause = response.headers["tona-cause"]
        assert (cause == given) is kept
        assert cell.calls[-1][3] == cause


async def test_bodies_are_bounded_announced_or_not(cell: Any, http: httpx.AsyncClient) -> None:
    async def endless() -> Any:
        for _ in range(40):
            yield b"x" * 65536

    for content in (b"x" * ((1 << 20) + 1), endless()):
        response = await http.post(
            "/v1/usecases", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == 413
        assert "larger than 1048576 bytes" in response.json()["error"]["text"]
    assert cell.calls == []


async def test_a_web_page_under_a_name_of_its_own_is_refused(http: httpx.AsyncClient) -> None:
    for host, status in (("evil.example", 421), ("localhost:1", 200), ("[::1]", 200)):
        response = await http.get("/v1/fleet", headers={"host": host})
        assert response.status_code == status


async def test_health_metrics_and_description(cell: Any, http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    cell.sick = "the disk is full"
    sick = await http.get("/healthz")
    assert (sick.status_code, sick.json()["error"]["text"]) == (503, "the disk is full")
    await http.get("/v1/fleet")
    metrics = (await http.get("/metrics")).text
    assert 'tona_api_requests_total{operation="fleet.status",status="200"} 1.0' in metrics
    assert 'tona_nodes{state="online"} 2' in metrics
    document = (await http.get("/v1/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert "/v1/fleet" in document["paths"]


async def test_a_controller_that_is_starting_says_so(work: Any, http: httpx.AsyncClient) -> None:
    work.starting = "this controller is starting"
    for path in ("/v1/tasks", "/v1/tasks/nobody", "/v1/nodes/n1", "/v1/watch/task"):
        answer = await http.get(path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), path
        assert answer.json()["error"] == {
            "blame": "environment",
            "text": "this controller is starting",
        }
    assert (await http.post("/v1/nodes/n1/drain")).status_code == 503
    assert work.calls == []
    # Nodes fetch and clients connect: neither needs to know what there is.
    assert (await http.get("/v1/system")).status_code == 200
    assert (await http.get(f"/v1/artifacts/{'0' * 64}")).status_code == 404
    work.starting = ""
    assert (await http.get("/v1/tasks")).status_code == 200
    assert "retry-after" not in (await http.get("/v1/tasks/nobody")).headers
