"""The bare client: a service run by a real device agent, and a bench that plays the scheduler."""

import hashlib
import json
import signal
from pathlib import Path

import pytest
from examples_world import CLIENT, DEVICE, Cell, Connect, Start

from controller.broker.embedded import EmbeddedBroker
from protocols.messages.hierarchy import NodeState, ServiceState

# Gives its input back with upper and lower case exchanged, so that an echo from elsewhere shows.
FLIP = """(module (memory (export "memory") 2)
  (global $top (mut i32) (i32.const 4096))
  (func (export "tona_alloc") (param $len i32) (result i32) (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top (i32.and
      (i32.add (i32.add (global.get $top) (local.get $len)) (i32.const 15)) (i32.const -16)))
    (local.get $at))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32) (local $at i32) (local $end i32)
    (local.set $at (i32.load (local.get $in)))
    (local.set $end (i32.add (local.get $at) (i32.load offset=4 (local.get $in))))
    (i32.store (local.get $out) (local.get $at))
    (i32.store offset=4 (local.get $out) (i32.load offset=4 (local.get $in)))
    (i32.store offset=16 (local.get $out) (i32.load offset=16 (local.get $in)))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (i32.store8 (local.get $at) (i32.xor (i32.load8_u (local.get $at)) (i32.const 32)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br $next)))
    (i32.const 0)))"""
REPLY = "tona/1/cell/client/bare-client/reply"
REQUEST = "tona/1/cell/service/flip/request"


def use_case(digest: str, size_bytes: int) -> str:
    vector = {"dtype": "uint8", "shape": [-1]}
    task = {
        "name": "flip",
        "executor": "wasm",
        "artifact": digest,
        "artifact_bytes": size_bytes,
        "inputs": {"x": {"from": "request.text", **vector}},
        "outputs": {"y": vector},
        "limits": {"memory_bytes": 16 << 20},
    }
    service = {"name": "flip", "kind": "computing", "spares": 0, "outputs": {"text": "flip.y"}}
    return json.dumps({"name": "flip", "services": [service | {"tasks": [task]}]})


async def test_it_invokes_a_service_that_a_device_agent_runs_beside_a_bare_device(
    cell: Cell, start: Start, tmp_path: Path
) -> None:
    wasmtime = pytest.importorskip("wasmtime")
    agent = await start(
        *("-m", "device_agent", "--node", "pi-1", "--broker", cell.broker),
        *("--data", tmp_path / "node"),
    )
    await start(DEVICE, "--node", "bare", "--broker", cell.broker)
    for name in ("bare", "pi-1"):
        await cell.until("fleet", name, lambda it: it.state is NodeState.ONLINE and it.load)

    code = bytes(wasmtime.wat2wasm(FLIP))
    hex_ = hashlib.sha256(code).hexdigest()
    put = await cell.http.put(f"/v1/artifacts/{hex_}", content=code)
    assert put.is_success
    document = use_case(f"sha256:{hex_}", len(code))
    await cell.ask("usecase.submit", document=document, format="json")
    await cell.until("service", "flip", lambda it: it.state is ServiceState.RUNNING)
    node = await cell.until("fleet", "pi-1", lambda it: it.tasks)
    assert node.tasks == ("flip.flip",)

    asked = (CLIENT, "--broker", cell.broker, "--service", "flip", "--budget-ms", 30_000)
    one = await start(*asked, "text=Hello, Cell")
    assert await one.ends() == 0
    assert one.lines == ["text: uint8[11] b'hELLO\\x0c\\x00cELL'\n"]

    wrong = await start(*asked, "text:float32=1.5")
    assert await wrong.ends() == 1
    assert "bad-input" in wrong.lines[-1]
    nobody = await start(CLIENT, "--broker", cell.broker, "--service", "nothing")
    assert await nobody.ends() == 1
    assert "no-service" in nobody.lines[-1]
    assert "Traceback" not in "".join(wrong.lines + nobody.lines)
    agent.process.send_signal(signal.SIGTERM)
    assert await agent.ends() == 0


async def test_it_repeats_by_the_same_id_until_it_is_answered(
    broker: EmbeddedBroker, start: Start, connect: Connect
) -> None:
    at = f"127.0.0.1:{broker._port}"
    async with connect(at, REQUEST) as scheduler:
        one = await start(CLIENT, "--broker", at, "--service", "flip", "text=a")
        first, message = await scheduler.hears("invoke")
        correlation = message.properties.CorrelationData
        assert message.properties.ResponseTopic == REPLY
        _, request, service, budget_ms, inputs, reply_to, attempt = first[6]
        assert (service, reply_to, attempt) == ("flip", "", 1)
        assert inputs == {"text": ["tensor", "uint8", [1], b"a"]}
        # Nobody answers, then somebody fails in a way that may be mended, then a stranger answers.
        second, message = await scheduler.hears("invoke")
        assert (second[6][1], second[6][6]) == (request, 2)
        assert second[6][3] < budget_ms
        assert message.properties.CorrelationData == correlation
        busy = ["busy", "environment", "later", True]
        await scheduler.says(REPLY, ["result", request, 2, {}, busy], correlation=correlation)
        third, _ = await scheduler.hears("invoke")
        assert (third[6][1], third[6][6]) == (request, 3)
        wrong = {"y": ["tensor", "uint8", [1], b"w"]}
        await scheduler.says(REPLY, ["result", request, 3, wrong, None], correlation=b"another")
        await scheduler.says(REPLY, ["result", "another", 3, wrong, None], correlation=correlation)
        # The answer comes in two parts; one part of an older attempt does not count.
        parts = [{"y": ["tensor", "uint8", [1], b"%d" % at]} for at in range(3)]
        for part, of, name in ((0, 2, "y"), (1, 3, "b"), (0, 3, "a")):
            values = {name: parts[part]["y"]}
            body = ["result", request, of, values, None, [], part, 2]
            await scheduler.says(REPLY, body, correlation=correlation)
        assert await one.ends() == 0
        assert one.lines == ["a: uint8[1] b'0'\n", "b: uint8[1] b'1'\n"]


async def test_it_gives_up_at_its_deadline_and_says_what_it_knows(
    broker: EmbeddedBroker, start: Start
) -> None:
    at = f"127.0.0.1:{broker._port}"
    one = await start(CLIENT, "--broker", at, "--service", "flip", "--budget-ms", 300)
    assert await one.ends() == 1
    assert "no answer within 300 ms" in one.lines[-1]
    absent = await start(CLIENT, "--broker", "127.0.0.1:1", "--service", "flip", "--budget-ms", 300)
    assert await absent.ends() == 1
    assert "127.0.0.1:1" in absent.lines[-1]
    wrong = await start(CLIENT, "--service", "flip", "text")
    assert await wrong.ends() == 1
    assert "NAME=TEXT" in wrong.lines[-1]
