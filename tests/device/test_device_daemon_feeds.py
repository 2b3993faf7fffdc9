"""The real daemon as the client of a service: its sensors, files, topics and sinks; modify."""

import hashlib
from pathlib import Path

import msgspec
import pytest
from device_world import ECHO, NODE, Agent, Peer, Store

from protocols import topics
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages import (
    Assign,
    Birth,
    Feed,
    Invoke,
    QualityReport,
    Result,
    Status,
    Tune,
)
from protocols.messages.invocation import REQUEST, Blob, Edge, Plan, Step, Tensor
from protocols.messages.quality import Sink, SinkKind, Source, SourceKind, Tuning
from protocols.messages.task import InstanceState
from protocols.packing import unpack
from protocols.topics import Channel, Party

OUTPUT = topics.build("cell", Party.SERVICE, "s", Channel.OUTPUT)
REPLY = "tona/1/cell/client/app/reply"


def echo(store: Store, epoch: int = 1, **tuning: object) -> Assign:
    wasmtime = pytest.importorskip("wasmtime")
    code = bytes(wasmtime.wat2wasm(ECHO))
    manifest = Manifest(
        ExecutorKind.WASM,
        ArtifactRef(store.put(code), len(code)),
        (Port("x", Dtype.UINT8, (-1,)),),
        (Port("y", Dtype.UINT8, (-1,)),),
    )
    plain = Assign("echo", "s", epoch, 1, manifest)
    return msgspec.structs.replace(plain, tuning=Tuning(**tuning))  # type: ignore[arg-type]


def plan(epoch: int = 1) -> Plan:
    step = Step("echo", NODE, epoch, (Edge("x", REQUEST, "x"),), ("y",))
    return Plan("s", 1, (step,), (Edge("y", "echo", "y"),))


async def ready(scheduler: Peer, epoch: int, after: int = 0) -> Status:
    return await scheduler.expect(
        Status, lambda one: (one.epoch, one.state) == (epoch, InstanceState.READY), after
    )


def configured(agent: Agent, tmp_path: Path) -> str:
    (tmp_path / "camera").write_bytes(b"picture")
    files = tmp_path / "files"
    (files / "in").mkdir(parents=True)
    config = tmp_path / "node.toml"
    config.write_text(
        f'files = "{files}"\n[sensors.camera]\npath = "{tmp_path / "camera"}"\n', encoding="utf-8"
    )
    del agent
    return f"--config={config}"


def answers(peer: Peer, data: bytes) -> list[Result]:
    bodies = [one.frame.body for one in peer.heard if one.topic == OUTPUT]
    value = Tensor(Dtype.UINT8, (len(data),), data)
    return [one for one in bodies if isinstance(one, Result) and one.outputs == {"y": value}]


async def test_sensors_files_and_topics_feed_a_service_and_answers_reach_its_sinks(
    agent: Agent, scheduler: Peer, client: Peer, store: Store, tmp_path: Path
) -> None:
    client.session._subscriptions = [REPLY, str(OUTPUT)]
    client.session.resubscribe()
    await agent.start(configured(agent, tmp_path))
    birth = await scheduler.expect(Birth)
    assert (birth.inventory.sensors, birth.inventory.files) == (("load", "camera"), True)
    scheduler.command(echo(store))
    await ready(scheduler, 1)

    def source(kind: SourceKind, name: str) -> Source:
        return Source("x", kind, name, Dtype.UINT8, (-1,), rate_per_s=20.0)

    sinks = (Sink("y", SinkKind.TOPIC), Sink("y", SinkKind.STORE))
    camera = Feed("s", 1, plan(), (source(SourceKind.SENSOR, "camera"),), sinks, function="changes")
    scheduler.command(camera)
    value = Tensor(Dtype.UINT8, (7,), b"picture")
    result = await client.expect(Result, lambda one: one.outputs == {"y": value})
    assert result.request.startswith(NODE)
    record = await client.expect(Result, lambda one: isinstance(one.outputs["y"], Blob))
    digest = record.outputs["y"].digest.removeprefix("sha256:")
    assert digest == hashlib.sha256(b"picture").hexdigest()
    assert store.contents[digest] == b"picture"
    report = await scheduler.expect(QualityReport, lambda one: one.users != ())
    assert (report.users[0].user, report.users[0].service) == (NODE, "s")

    (tmp_path / "files" / "in" / "1.raw").write_bytes(b"one")
    (tmp_path / "files" / "in" / "2.raw").write_bytes(b"two")
    scheduler.command(Feed("s", 2, plan(), (source(SourceKind.FILE, "in"),), sinks[:1]))
    for data in (b"one", b"two"):
        wanted = {"y": Tensor(Dtype.UINT8, (3,), data)}
        await client.expect(Result, lambda one, wanted=wanted: one.outputs == wanted)  # type: ignore[misc]
    assert len(answers(client, b"one")) == 1, "each file feeds once"

    scheduler.command(Feed("s", 3, plan(), (source(SourceKind.TOPIC, "s.x"),), sinks[:1]))
    wanted = {"y": Tensor(Dtype.UINT8, (3,), b"new")}
    inbox = topics.build("cell", Party.SERVICE, "s", Channel.INPUT)
    for number in range(100):
        # The subscription stands some time after the feed: until then nothing hears it.
        said = Invoke(f"in{number}", "s", 1000, {"x": wanted["y"]})
        assert client.session.send(inbox, said, cause="test")
        if answers(client, b"new"):
            break
        heard = len(scheduler.heard)
        await scheduler.expect(msgspec.Struct, after=heard)
    await client.expect(Result, lambda one: one.outputs == wanted)
    code, said_last = await agent.stop()
    assert code == 0, said_last
    assert "Traceback" not in said_last


async def test_a_feed_goes_on_after_kill_9_without_a_scheduler(
    agent: Agent, scheduler: Peer, client: Peer, store: Store, tmp_path: Path
) -> None:
    client.session._subscriptions = [REPLY, str(OUTPUT)]
    client.session.resubscribe()
    await agent.start(configured(agent, tmp_path))
    await scheduler.expect(Birth)
    scheduler.command(echo(store))
    await ready(scheduler, 1)
    source = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (-1,), rate_per_s=20.0)
    scheduler.command(Feed("s", 1, plan(), (source,), (Sink("y", SinkKind.TOPIC),)))
    await client.expect(Result)
    await agent.stop(9)
    scheduler.welcoming = ""
    heard = len(client.heard)
    before = {one.frame.body.request for one in client.heard if one.topic == OUTPUT}
    await agent.start(configured_again(tmp_path))
    result = await client.expect(Result, after=heard)
    assert result.request not in before, "requests are unique over restarts"


def configured_again(tmp_path: Path) -> str:
    return f"--config={tmp_path / 'node.toml'}"


async def test_a_modify_never_leaves_the_service_without_an_instance(
    agent: Agent, scheduler: Peer, client: Peer, store: Store
) -> None:
    await agent.start()
    await scheduler.expect(Birth)
    scheduler.command(echo(store))
    await ready(scheduler, 1)
    scheduler.command(Tune("echo", 1, 3, Tuning(encoding="deflate", replicas=2)))
    await scheduler.expect(Status, lambda one: one.tuned == 3)
    data = Tensor(Dtype.UINT8, (4000,), bytes(4000))

    async def ask(name: str, epoch: int) -> Result:
        body = Invoke(
            name, "s", 30_000, {"x": data}, REPLY, 1, plan(epoch), answer_encoding="deflate"
        )
        client.command(body, Channel.INVOKE)
        return await client.expect(Result, lambda one: one.request == name)

    packed = (await ask("a", 1)).outputs["y"]
    assert isinstance(packed, Tensor)
    assert packed.encoding == "deflate"
    assert unpack(packed) == data
    heard = len(scheduler.heard)
    grace = msgspec.structs.replace(echo(store, 2, variant="other"), grace_ms=60_000)
    scheduler.command(grace)
    first = await scheduler.expect(Status, lambda one: one.epoch == 2, heard)
    assert first.serving_epoch in {1, 0}
    await ready(scheduler, 2, heard)
    assert (await ask("old", 1)).failure is None, "requests of the route before are served"
    assert (await ask("new", 2)).failure is None
