"""The real daemon against a real broker, a store over HTTP and the real Wasm executor."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from device_world import (
    ECHO,
    LONG_S,
    NODE,
    ROOT,
    Agent,
    Peer,
    Store,
    node_filters,
    run_agent,
    until,
)
from real_brokers import Broker

from device_agent import VERSION, run
from protocols import codec, topics
from protocols.codec import Frame
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages import (
    Assign,
    Birth,
    Death,
    Invoke,
    LinkReport,
    LoadReport,
    Release,
    Result,
    Status,
)
from protocols.messages.invocation import REQUEST, Blob, Edge, Plan, Step, Tensor
from protocols.messages.task import InstanceState
from protocols.topics import Channel, Party, Speaker

REPLY = "tona/1/cell/client/app/reply"


def echo_task(store: Store, epoch: int = 1) -> Assign:
    wasmtime = pytest.importorskip("wasmtime")
    code = bytes(wasmtime.wat2wasm(ECHO))
    manifest = Manifest(
        ExecutorKind.WASM,
        ArtifactRef(store.put(code), len(code)),
        (Port("x", Dtype.UINT8, (-1,)),),
        (Port("y", Dtype.UINT8, (-1,)),),
    )
    return Assign("echo", "s", epoch, 1, manifest)


def call(request: str, value: Tensor | Blob, epoch: int = 1) -> Invoke:
    step = Step("echo", NODE, epoch, (Edge("x", REQUEST, "x"),), ("y",))
    plan = Plan("s", 1, (step,), (Edge("y", "echo", "y"),))
    return Invoke(request, "s", 30_000, {"x": value}, REPLY, 1, plan)


def small(data: bytes) -> Tensor:
    return Tensor(Dtype.UINT8, (len(data),), data)


async def test_what_the_broker_does_not_let_a_node_publish_is_told_with_topic_and_reason(
    tmp_path: Path, store: Store
) -> None:
    broker = Broker("mosquitto", tmp_path)
    rules = tmp_path / "rules"
    rules.write_text(f"topic readwrite #\ntopic deny tona/1/cell/node/{NODE}/status\n", "utf-8")
    with broker._config.open("a", encoding="utf-8") as config:
        config.write(f"user root\nacl_file {rules}\n")
    await broker.start()
    scheduler = Peer("ts", Speaker.CONTROLLER, broker.port, node_filters())
    scheduler.welcoming = store.url
    agent = Agent(tmp_path / "data", broker.port)
    try:
        await scheduler.connected()
        await agent.start()
        await scheduler.expect(Birth)
        scheduler.command(echo_task(store))
        said = await scheduler.expect(LinkReport, lambda one: bool(one.refused))
        topic = f"tona/1/cell/node/{NODE}/status"
        assert said.refused.startswith(f"{topic}: not authorized (code 0x87), ")
        assert said.refused.endswith(" refused in all")
    finally:
        await agent.close()
        await scheduler.close()
        await broker.close()


async def ready(scheduler: Peer, epoch: int, after: int = 0) -> Status:
    return await scheduler.expect(
        Status, lambda one: (one.epoch, one.state) == (epoch, InstanceState.READY), after
    )


async def test_a_task_is_assigned_invoked_and_survives_kill_9(
    agent: Agent, scheduler: Peer, client: Peer, store: Store
) -> None:
    await agent.start()
    birth = await scheduler.expect(Birth)
    assert birth.agent_version == VERSION
    assert "wasm" in {one.kind for one in birth.inventory.executors}
    assert birth.holdings == ()
    await scheduler.expect(LoadReport, lambda one: one.memory_available_bytes > 0)
    link = await scheduler.expect(LinkReport, lambda one: one.round_trip_ms is not None)
    assert (link.interface, link.kind) == ("lo", "loopback")

    scheduler.command(echo_task(store))
    await ready(scheduler, 1)
    client.command(call("r1", small(b"hello")), Channel.INVOKE)
    result = await client.expect(Result)
    assert result.failure is None, result.failure
    assert result.outputs == {"y": small(b"hello")}
    assert result.timings[0].run_us > 0

    heard = len(scheduler.heard)
    store.contents.clear()
    code, _ = await agent.stop(signal.SIGKILL)
    assert code == -signal.SIGKILL
    death = await scheduler.expect(Death, after=heard)
    assert not death.orderly

    await agent.start()
    again = await scheduler.expect(Birth, after=heard)
    assert [(one.task, one.epoch, one.generation) for one in again.holdings] == [("echo", 1, 1)]
    assert scheduler.heard[-1].frame.incarnation > scheduler.heard[0].frame.incarnation
    await ready(scheduler, 1, heard)
    client.command(call("r2", small(b"again")), Channel.INVOKE)
    result = await client.expect(Result, lambda one: one.request == "r2")
    assert result.outputs == {"y": small(b"again")}

    code, said = await agent.stop()
    assert code == 0, said
    death = await scheduler.expect(Death, lambda one: one.orderly)
    assert death.reason == "stopped by SIGTERM"
    assert "Traceback" not in said


def values_of(agent: Agent) -> list[Path]:
    """Return the large values of this daemon, in shared memory or in its data folder."""
    places = (run.blobs_folder(NODE, agent.folder), agent.folder / "blobs")
    return [one for place in places for one in place.rglob("*") if one.is_file()]


async def test_large_values_go_through_the_store(
    agent: Agent, scheduler: Peer, client: Peer, store: Store
) -> None:
    await agent.start()
    await scheduler.expect(Birth)
    scheduler.command(echo_task(store))
    await ready(scheduler, 1)
    data = bytes(range(256)) * 512
    blob = Blob(Dtype.UINT8, (len(data),), store.put(data), len(data))
    client.command(call("r1", blob), Channel.INVOKE)
    result = await client.expect(Result)
    assert result.failure is None, result.failure
    assert result.outputs == {"y": blob}
    # The answer leaves first.
    await until(lambda: len(values_of(agent)) == 1)
    (value,) = values_of(agent)
    assert value.name == blob.digest.removeprefix("sha256:"), "what was made has the same digest"
    missing = Blob(Dtype.UINT8, (100_000,), f"sha256:{'0' * 64}", 100_000)
    client.command(call("r2", missing), Channel.INVOKE)
    result = await client.expect(Result, lambda one: one.request == "r2")
    assert result.failure is not None
    assert "404" in result.failure.text
    code, _ = await agent.stop()
    assert code == 0
    assert not values_of(agent), "memory is given back"


async def test_large_values_between_steps_have_no_digest_and_go_with_their_request(
    agent: Agent, scheduler: Peer, client: Peer, store: Store
) -> None:
    await agent.start()
    await scheduler.expect(Birth)
    tasks = ("echo", "again", "last")
    for task in tasks:
        scheduler.command(msgspec.structs.replace(echo_task(store), task=task))
        await scheduler.expect(
            Status, lambda one, task=task: (one.task, one.state) == (task, InstanceState.READY)
        )
    steps, source, port = [], REQUEST, "x"
    for task in tasks:
        steps.append(Step(task, NODE, 1, (Edge("x", source, port),), ("y",)))
        source, port = task, "y"
    plan = Plan("s", 1, tuple(steps), (Edge("y", "last", "y"),))
    data = bytes(range(256)) * 512
    blob = Blob(Dtype.UINT8, (len(data),), store.put(data), len(data))
    body = msgspec.structs.replace(call("r1", blob), plan=plan)
    client.command(body, Channel.INVOKE)
    result = await client.expect(Result)
    assert result.failure is None, result.failure
    assert result.outputs == {"y": blob}
    assert [one.task for one in result.timings] == list(tasks)
    # The answer leaves first.
    await until(lambda: len(values_of(agent)) == 1)
    (value,) = values_of(agent)
    assert value.name == blob.digest.removeprefix("sha256:")
    # What was made by a daemon that was killed is gone when the next one begins, at the latest:
    # any other daemon on this machine may sweep it before.
    (value.parent / "made" / ("0" * 64)).write_bytes(data)
    await agent.stop(signal.SIGKILL)
    await agent.start()
    await scheduler.expect(Birth, after=len(scheduler.heard))
    assert not values_of(agent)


async def test_a_release_and_a_broken_artifact_are_told(
    agent: Agent, scheduler: Peer, store: Store
) -> None:
    await agent.start()
    await scheduler.expect(Birth)
    scheduler.command(echo_task(store))
    await ready(scheduler, 1)
    scheduler.command(Release("echo", 1))
    await scheduler.expect(Status, lambda one: one.state is InstanceState.STOPPED)
    broken = echo_task(store, 2)
    junk = ArtifactRef(store.put(b"no module"), len(b"no module"))
    manifest = msgspec.structs.replace(broken.manifest, artifact=junk)
    scheduler.command(msgspec.structs.replace(broken, manifest=manifest))
    status = await scheduler.expect(Status, lambda one: one.state is InstanceState.FAILED)
    assert status.reason
    assert status.blame is not None


async def test_ten_thousand_bad_frames_do_no_harm(
    agent: Agent, scheduler: Peer, client: Peer, store: Store, broker: Broker
) -> None:
    import paho.mqtt.client as paho  # noqa: PLC0415 - for one test alone

    await agent.start()
    await scheduler.expect(Birth)
    scheduler.command(echo_task(store))
    await ready(scheduler, 1)
    good = codec.encode(Frame(1, "app", 1, 0, "default", "c", call("bad", small(b"x"))), 1 << 20)
    wrong = Frame(2, "app", 1, 0, "default", "c", Death("x"))
    kinds = (
        lambda n: good[: n % len(good)],
        lambda n: bytes([n % 256]) * (n % 300),
        lambda _: codec.encode(wrong, 1 << 20),
        lambda n: good[:-1] + bytes([n % 256]) + good,
        lambda n: bytes(200_000) if n % 500 == 3 else b"\xc1",
    )
    sender = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    sender.max_inflight_messages_set(1000)
    sender.connect("127.0.0.1", broker.port)
    sender.loop_start()
    try:
        for number in range(10_000):
            channel = Channel.COMMAND if number % 2 else Channel.INVOKE
            topic = topics.build("cell", Party.NODE, NODE, channel)
            info = sender.publish(str(topic), kinds[number % 5](number), qos=1)
        await asyncio.to_thread(info.wait_for_publish, LONG_S)
    finally:
        sender.disconnect()
        sender.loop_stop()
    client.command(call("r1", small(b"alive")), Channel.INVOKE)
    result = await client.expect(Result, lambda one: one.request == "r1")
    assert result.outputs == {"y": small(b"alive")}
    code, said = await agent.stop()
    assert code == 0, said
    assert "Traceback" not in said


async def test_the_daemon_outlives_its_broker(
    agent: Agent, scheduler: Peer, client: Peer, store: Store, broker: Broker
) -> None:
    await agent.start()
    await scheduler.expect(Birth)
    scheduler.command(echo_task(store))
    await ready(scheduler, 1)
    heard = len(scheduler.heard)
    await broker.kill()
    await broker.start()
    birth = await scheduler.expect(Birth, after=heard)
    assert [one.state for one in birth.holdings] == ["ready"], "nothing was restarted"
    await client.connected()
    client.command(call("r1", small(b"back")), Channel.INVOKE)
    assert (await client.expect(Result)).outputs == {"y": small(b"back")}


async def test_a_second_daemon_on_the_same_data_is_refused(
    agent: Agent, scheduler: Peer, broker: Broker, agents: Callable[[Agent], Agent]
) -> None:
    await agent.start()
    await scheduler.expect(Birth)
    second = agents(Agent(agent.folder, broker.port))
    await second.start()
    code, said = await second.ended()
    assert code == 2
    assert "another device agent" in said
    assert said.count("\n") == 1
    assert agent.process is not None
    assert str(agent.process.pid) in said


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--broker", "192.0.2.1:8883"], "--bundle"),
        (["--broker", "nonsense"], "HOST:PORT"),
        (["--node", "a/b"], "no valid name"),
        (["--profile", "toaster"], "no profile"),
        (["--config", "/nowhere/x.toml"], "/nowhere/x.toml"),
        (["--bundle", "/nowhere/x.json"], "/nowhere/x.json"),
        (["--data", "/proc/nowhere"], "--data"),
    ],
)
async def test_a_users_mistake_gets_one_sentence(
    flags: list[str], told: str, tmp_path: Path
) -> None:
    process = await run_agent(*flags, XDG_STATE_HOME=str(tmp_path))
    async with asyncio.timeout(LONG_S):
        _, said = await process.communicate()
    assert process.returncode in {2, 69}
    assert told in said.decode()
    assert said.count(b"\n") == 1


async def test_systemd_hears_readiness_life_and_end(
    broker: Broker, tmp_path: Path, agents: Callable[[Agent], Agent]
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(path)
        line.setblocking(False)
        one = agents(
            Agent(tmp_path / "data", broker.port, NOTIFY_SOCKET=path, WATCHDOG_USEC="200000")
        )
        await one.start()
        loop = asyncio.get_running_loop()
        heard = []
        async with asyncio.timeout(LONG_S):
            while heard.count(b"WATCHDOG=1") < 3 or b"READY=1" not in heard:
                heard.append(await loop.sock_recv(line, 100))
            code, _ = await one.stop()
            assert code == 0
            while heard[-1] != b"STOPPING=1":
                heard.append(await loop.sock_recv(line, 100))


async def test_a_journal_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal.db").mkdir()
    process = await run_agent("--data", str(tmp_path))
    async with asyncio.timeout(LONG_S):
        _, said = await process.communicate()
    assert process.returncode == 69
    assert b"journal cannot be opened" in said
    assert said.count(b"\n") == 1


FAULTY = """
import os, sys
from device_agent import __main__ as program, run
from device_agent.core.core import Core
from device_agent.senses import Senses
def broken(*_):
    raise RuntimeError("this cannot happen")
{}
os.execv = lambda _, arguments: sys.exit(run.main(int(arguments[-1])))
sys.exit(program.main())
"""


@pytest.mark.parametrize("fault", ["Core.handle = broken", "Senses._sample = broken"])
async def test_a_fault_of_ours_is_one_line_and_code_70(tmp_path: Path, fault: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", FAULTY.format(fault), "--data", str(tmp_path), "--node", NODE),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LONG_S):
        _, said = await process.communicate()
    assert process.returncode == 70
    assert b"RuntimeError: this cannot happen" in said
    assert b"Traceback" not in said
    assert "Traceback" in (tmp_path / "fault.txt").read_text(encoding="utf-8")
