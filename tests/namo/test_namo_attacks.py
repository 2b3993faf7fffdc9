"""What documents and peers may do to NAMO: values that JSON cannot keep, names of others, time."""

import json
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from namo_bench import DIGEST, Delete, Host, Submit, a_document, a_service, chain, step, summary

from controller.decider import Output, Record
from controller.namo import usecase
from controller.namo.leeway import CPU_PERCENT_TOP
from controller.namo.usecase import DocumentError, parse
from controller.records import USE_CASE, UseCaseState
from protocols.messages import Escalation
from protocols.messages.hierarchy import ServiceOrder, ServiceState

WHEN = {"when": {"cpu_percent": {"at_least": 80.0}}, "for_ms": 0, "cooldown_ms": 0}
BUSY = summary(cpu_percent=90.0)


def error_of(out: Output) -> str:
    return out.answers[0].error


def problems_of(document: str, notation: str) -> tuple[str, ...]:
    with pytest.raises(DocumentError) as caught:
        parse(document, notation)
    return caught.value.problems


TOML = f"""
name = "u"
[[services]]
name = "a"
kind = "training"
outputs = {{ y = "t.y" }}
[[services.tasks]]
name = "t"
executor = "wasm"
artifact = "{DIGEST}"
artifact_bytes = 1
inputs.x = {{ from = "request.x", dtype = "uint8", shape = [-1] }}
outputs.y = {{ dtype = "uint8", shape = [-1] }}
declared = {{ convergence_rounds = 3.0 }}
"""


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_number_that_json_does_not_have_is_told(number: str) -> None:
    parse(TOML, "toml")
    [told] = problems_of(TOML.replace("3.0", number), "toml")
    where = "line 14, services[0].tasks[0].declared.convergence_rounds"
    assert told == f"{where}: expected a finite number, got {number}"


@pytest.mark.parametrize("field", ["description", "name", "tenant"])
def test_half_a_character_is_told(field: str) -> None:
    tree = json.loads(a_document(a_service(chain("t"))))
    tree[field] = "x\ud800"
    [told] = problems_of(json.dumps(tree), "json")
    assert told == (
        f"line 1, {field}: the text holds half of a surrogate pair, which is no character"
    )


def test_a_document_that_is_too_long_as_json_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    short = TOML.replace(" = ", "=").replace(" }", "}").replace("{ ", "{")
    _, normalised = parse(short, "toml")
    assert len(short) < len(normalised)
    monkeypatch.setattr(usecase, "MAX_DOCUMENT_BYTES", len(short))
    assert problems_of(short, "toml") == (f"it is, as JSON, longer than {len(short)} characters",)


def test_the_widest_leeway_can_be_said() -> None:
    wide = step("t", leeway={"replicas_max": 64, "threads_max": 1024})
    host = Host()
    host.submit(a_service([wide]))
    order = host.service().order
    assert order.tasks[0].leeway.cpu_percent_max == CPU_PERCENT_TOP
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(order), type=ServiceOrder) == order


# Names of others.


def dormant_and_taken() -> Host:
    """Have a use case sleep whose service name another tenant has taken meanwhile."""
    host = Host()
    host.hear(summary())
    host.submit(a_service(chain("t")), name="sleeper", tenant="red", trigger=WHEN)
    assert host.use_case("sleeper").state is UseCaseState.DORMANT
    host.submit(a_service(chain("t")), name="owner", tenant="blue")
    host.runs()
    return host


def test_a_trigger_takes_no_service_of_another_use_case() -> None:
    host = dormant_and_taken()
    host.hear(BUSY)
    host.pass_time(1000)
    assert host.service().order.use_case == "owner"
    sleeper = host.use_case("sleeper")
    assert sleeper.state is UseCaseState.DORMANT
    assert "belongs to use case 'owner'" in sleeper.reason


def test_the_end_of_a_use_case_ends_no_service_of_another() -> None:
    host = dormant_and_taken()
    host.call("usecase.delete", Delete("sleeper"))
    assert host.use_case("sleeper").state is UseCaseState.DELETED
    assert not host.service().ending
    assert host.service().state is ServiceState.RUNNING


def test_a_document_of_another_version_stops_nothing() -> None:
    host = Host()
    host.hear(summary())
    host.submit(a_service(chain("t")), trigger=WHEN)
    host.hear(BUSY)
    host.pass_time(1000)
    host.runs()
    old = msgspec.structs.replace(host.use_case(), document='{"trigger": 1, "name": "u"}')
    host.records[USE_CASE, "u"] = Record(USE_CASE, "u", old, "by-hand")
    host.restart()
    host.hear(summary())
    out = host.hear(Escalation("1", "a.t", host.service().order.generation, "lost"))
    [answer] = [send.body for send in out.sends]
    assert not answer.granted  # type: ignore[union-attr]
    assert not host.service().ending


# Any document at all.


def paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(tree, dict):
        pairs = list(tree.items())
    elif isinstance(tree, list):
        pairs = list(enumerate(tree))
    below = [one for key, value in pairs for one in paths(value, (*at, key))]
    return [at, *below] if at else below


ODD = st.sampled_from(
    [None, True, 0, -1, 0.5, 5e-324, 1e308, 2**53, 2**64, 10**400, 65, "", "x", "a", "t.y", "s.y",
     "request.x", "request", ".", "\ud800", "\x00", "z" * 300, "node", "manual", "latency_ms", [],
     {}, [1], {"a": 1}, [-1] * 9]
)  # fmt: skip


def rich() -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(
        a_document(
            a_service(
                chain("s", "t", leeway={"decimations": [2], "rate_min_per_s": 1.0}),
                sla={
                    "satisfaction_ratio": 0.9,
                    "zone": {"latency_ms": {"at_most": 90.0}, "data_privacy": {"level": "node"}},
                    "users": [{"user": "u1", "zone": {"latency_ms": {"at_most": 50.0}}}],
                },
                sources={"x": {"kind": "sensor", "name": "c", "nodes": ["n1", "n2"]}},
                sinks={"y": "topic"},
                alternatives=[{"name": "alt", "outputs": {"y": "q.y"}, "tasks": [step("q")]}],
            ),
            trigger=WHEN,
        )
    )
    return tree


@given(st.data())
def test_any_document_gives_orders_or_sentences(data: st.DataObject) -> None:
    tree = rich()
    for _ in range(data.draw(st.integers(1, 3))):
        assume(tree)
        *parents, last = data.draw(st.sampled_from(paths(tree)))
        at: Any = tree
        for one in parents:
            at = at[one]
        if data.draw(st.booleans()):
            at[last] = deepcopy(data.draw(ODD))
        else:
            del at[last]
    host = Host()
    host.hear(BUSY)
    out = host.call("usecase.submit", Submit(json.dumps(tree)))
    if error_of(out):
        error_of(out).encode()
        return
    host.pass_time(1000)
    for (kind, _), record in host.records.items():
        if kind == "service":
            order = record.value.order  # type: ignore[union-attr]
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(order), type=ServiceOrder) == order
    host.restart()
