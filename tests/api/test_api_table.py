import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api import client
from controller.api.arguments import build, parse, path_names
from controller.api.errors import Refused
from controller.api.metrics import Metric, render
from controller.api.named import from_json, to_json
from controller.api.openapi import describe
from controller.api.operation import Effect, Operation, Transfer
from controller.api.operations import (
    BY_NAME,
    TABLE,
    DocumentFormat,
    Draining,
    ListTasks,
    SubmitUseCase,
)
from controller.records import NodeView, ServiceRecord, TaskState
from protocols.errors import EnvironmentFailure, PeerError, TonaBug, UserError
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Accelerator, Inventory
from protocols.messages.sense import LinkReport, LoadReport


def test_names_and_addresses_are_unique_and_paths_name_arguments() -> None:
    assert len({one.name for one in TABLE}) == len(TABLE)
    assert len({(one.method, one.path) for one in TABLE}) == len(TABLE)
    for one in TABLE:
        fields = {field.encode_name for field in msgspec.structs.fields(one.arguments)}
        assert set(path_names(one)) <= fields
        assert one.summary.endswith(".")
        assert (one.method == "GET") == (one.effect is Effect.READ)
    assert BY_NAME["usecase.submit"].dry_run
    assert not BY_NAME["usecase.delete"].dry_run


def test_the_description_is_whole_every_reference_resolves() -> None:
    document = describe()
    schemas = document["components"]["schemas"]
    text = msgspec.json.encode(document).decode()
    references = set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', text))
    assert references <= schemas.keys()
    assert {"NodeView", "Inventory", "LoadReport", "ErrorBody"} <= references
    assert text.count('"$ref"') == text.count('"$ref":"#/components/schemas/')
    operations = [one for path in document["paths"].values() for method, one in path.items()]
    assert {one.name for one in TABLE} <= {one["operationId"] for one in operations}
    assert len({one["operationId"] for one in operations}) == len(operations)
    for path, methods in document["paths"].items():
        for one in methods.values():
            in_path = {p["name"] for p in one["parameters"] if p["in"] == "path"}
            assert in_path == set(re.findall(r"\{(\w+)\}", path))
            assert "default" in one["responses"]


def test_no_schema_for_people_is_an_array_of_riddles() -> None:
    for name, schema in describe()["components"]["schemas"].items():
        assert "prefixItems" not in schema, name
        assert schema.get("type") == "object" or "enum" in schema, name


texts = st.text(min_size=1, max_size=20)


@given(
    st.one_of(
        st.builds(SubmitUseCase, texts, st.sampled_from(DocumentFormat), st.booleans()).map(
            lambda one: ("usecase.submit", one)
        ),
        st.builds(
            ListTasks, st.text(), st.text(), st.text(), st.none() | st.sampled_from(TaskState)
        ).map(lambda one: ("task.list", one)),
        texts.map(lambda one: ("task.explain", BY_NAME["task.explain"].arguments(one))),
        st.builds(BY_NAME["watch"].arguments, texts, st.text(), st.text()).map(
            lambda one: ("watch", one)
        ),
    )
)
def test_a_request_is_taken_apart_to_the_arguments_it_was_built_of(
    case: tuple[str, msgspec.Struct],
) -> None:
    from urllib.parse import parse_qsl, unquote, urlsplit  # noqa: PLC0415 - the witness

    operation = BY_NAME[case[0]]
    request = build(operation, case[1])
    parts = urlsplit(request.path)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", operation.path)
    found = re.fullmatch(pattern, parts.path)
    assert found is not None
    path = {name: unquote(value) for name, value in found.groupdict().items()}
    query = parse_qsl(parts.query, keep_blank_values=True)
    assert parse(operation, path, query, request.body or b"") == case[1]


@pytest.mark.parametrize(
    ("name", "path", "query", "body", "sentence", "field"),
    [
        ("usecase.submit", {}, [], b"{}", "usecase.submit needs 'document'", "document"),
        (
            "usecase.submit",
            {},
            [],
            b'{"document":"x","format":"yaml"}',
            "format: expected one of json, toml",
            "format",
        ),
        (
            "usecase.submit",
            {},
            [],
            b'{"documnt":"x"}',
            "usecase.submit has no argument 'documnt'; did you mean 'document'?",
            "documnt",
        ),
        (
            "usecase.submit",
            {},
            [],
            b'{"document":"x","dry_run":"yes"}',
            "dry_run: expected bool, got str",
            "dry_run",
        ),
        ("usecase.submit", {}, [], b"[]", "the body is no JSON object", ""),
        ("usecase.submit", {}, [], b'{"docu', "the body is no JSON: ", ""),
        ("usecase.submit", {}, [], b'{"document":"\xff"}', "the body is no JSON: ", ""),
        ("usecase.submit", {}, [], b"[" * 100_000, "the body is no JSON", ""),
        (
            "usecase.submit",
            {},
            [("dry_run", "1")],
            b"{}",
            "'dry_run' belongs into the JSON body, not into the query",
            "dry_run",
        ),
        ("task.list", {}, [("state", "lost")], b"", "state: expected one of accepted, ", "state"),
        ("task.list", {}, [("node", "a"), ("node", "b")], b"", "'node' is given twice", "node"),
        ("task.list", {}, [], b"{}", "task.list takes no body", ""),
        ("task.show", {"name": "a"}, [("name", "b")], b"", "'name' stands in the path", "name"),
        ("system.info", {}, [("x", "")], b"", "has no argument 'x'; it takes none", "x"),
        ("blob.get", {"hex": "0F"}, [], b"", "hex: expected a SHA-256 of 64 lower-case", "hex"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    name: str,
    path: dict[str, str],
    query: list[tuple[str, str]],
    body: bytes,
    sentence: str,
    field: str,
) -> None:
    with pytest.raises(Refused) as caught:
        parse(BY_NAME[name], path, query, body)
    assert str(caught.value).startswith(sentence) or sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.status, caught.value.field) == (400, field)


def test_wire_structs_are_objects_for_people_and_come_back_whole() -> None:
    inventory = Inventory("generic", "x86_64", "linux", 4, 1, 2, (Accelerator("gpu", "x"),))
    load = LoadReport(5, 1.5, (1.0, 2.0), accelerators=())
    view = NodeView(
        "n", NodeState.ONLINE, "ts", inventory, load=load, link=LinkReport(1, "lo", "wired", True)
    )
    text = to_json([view], list[NodeView])
    plain: list[dict[str, Any]] = msgspec.json.decode(text)
    assert plain[0]["inventory"]["accelerators"][0]["name"] == "x"
    assert plain[0]["load"]["cores_percent"] == [1.0, 2.0]
    assert from_json(text, list[NodeView]) == [view]
    assert to_json({"node": "a", "state": "draining"}, Draining)


def test_every_result_has_a_twin() -> None:
    for one in TABLE:
        if one.result is not None:
            with pytest.raises(msgspec.ValidationError):
                to_json(object(), one.result)
    with pytest.raises(msgspec.ValidationError):
        to_json(3, ServiceRecord)


def test_the_caller_gets_typed_answers_and_blamed_errors() -> None:
    request = client.call("task.list", node="a/b c", state="running")
    assert request == client.Request("GET", "/v1/tasks?node=a%2Fb+c&state=running", None)
    assert client.call("node.drain", name="n/1").path == "/v1/nodes/n%2F1/drain"
    answer = client.answer("node.drain", 200, b'{"node":"a","state":"draining"}')
    assert answer == Draining("a", NodeState.DRAINING)
    for blame, kind in (
        ("user", UserError),
        ("environment", EnvironmentFailure),
        ("ours", TonaBug),
        ("peer", PeerError),
    ):
        body = f'{{"error":{{"blame":"{blame}","text":"no, because"}}}}'.encode()
        with pytest.raises(kind, match="no, because"):
            client.answer("node.drain", 400, body)
    with pytest.raises(PeerError, match="status 502"):
        client.answer("node.drain", 502, b"<html>")
    with pytest.raises(PeerError, match="not of this version"):
        client.answer("node.drain", 200, b"[]")
    with pytest.raises(UserError, match="task"):
        client.call("task.show")
    with pytest.raises(TonaBug, match=r"did you mean 'task\.show'"):
        client.call("task.shov")


def test_metrics_escape_what_people_write() -> None:
    labels = (("name", 'a"b\\c\nd'),)
    text = render([Metric("x_total", "One\nline \\ two", {labels: 2.5, (): 3}, "counter")])
    assert text.splitlines() == [
        r"# HELP x_total One\nline \\ two",
        "# TYPE x_total counter",
        r'x_total{name="a\"b\\c\nd"} 2.5',
        "x_total 3",
    ]
    with pytest.raises(TonaBug, match="'a-b' is no name"):
        render([Metric("a-b", "", {})])


def test_transfers_other_than_json_have_no_result_for_the_caller_but_puts() -> None:
    odd: list[Operation] = [one for one in TABLE if one.transfer is not Transfer.JSON]
    assert {one.name for one in odd if one.result is not None} == {
        "artifact.put",
        "blob.put",
        "trust.sign",
    }
