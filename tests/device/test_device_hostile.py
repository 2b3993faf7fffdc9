"""What peers may send to bring a node down or fill it: it goes on, within its bounds."""

import asyncio
import os
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from device_harness import INVENTORY, NODE, SimNode, assign, chain, invoke, of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from device_agent.artifacts.blobs import BlobFolder
from device_agent.core import commands, events
from device_agent.core.capacity import HELD_MAX
from device_agent.core.commands import ReadSource
from device_agent.core.pictures import decimate
from device_agent.core.sinks import KEPT_MAX_BYTES
from device_agent.executors.calls import Instance, Run, Slots
from device_agent.executors.share import share_of
from device_agent.prepared import SensorFile
from device_agent.sources import SOURCE_MAX_BYTES, Sources, Unusable
from device_agent.transfers import READERS_MAX, Transfers
from protocols import codec
from protocols.errors import EnvironmentFailure
from protocols.manifest import Dtype, ExecutorKind
from protocols.messages import (
    Accepted,
    Birth,
    Deliver,
    Feed,
    Invoke,
    LoadReport,
    QualityReport,
    RebirthRequest,
    Result,
    Status,
    Tune,
)
from protocols.messages.invocation import (
    CORRELATION_MAX_BYTES,
    Edge,
    FailureCode,
    Plan,
    Step,
    Value,
)
from protocols.messages.quality import Sink, SinkKind, Source, SourceKind, Tuning
from protocols.messages.task import InstanceState
from protocols.packing import pack
from protocols.topics import TABLE, Channel, Party

CAMERA = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (-1,), rate_per_s=10.0)
REMOTE = chain(("t", "node-b", 1))
LOCAL = chain(("t", NODE, 1))
NOISE = os.urandom(60_000)
ENDS = (Sink("answer", SinkKind.TOPIC),)


def fits(said: Iterable[commands.Command]) -> None:
    """Hold every message against the bound of its topic, with the longest names around it."""
    long = "n" * 64
    for one in said:
        match one:
            case commands.Say(channel, body):
                rule = TABLE[Party.NODE, channel]
            case commands.Forward(_, body):
                rule = TABLE[Party.NODE, Channel.INVOKE]
            case commands.Reply(_, body):
                rule = TABLE[Party.CLIENT, Channel.REPLY]
            case commands.Publish(_, body):
                rule = TABLE[Party.SERVICE, Channel.OUTPUT]
            case _:
                continue
        codec.encode(codec.Frame(1, long, 2**53, 2**53, long, 2 * long, body), rule.max_bytes)


def fed(number: int = 1, **changed: Any) -> Feed:
    plain = Feed("s", number, REMOTE, (CAMERA,), budget_ms=1000)
    return structs.replace(plain, **changed)


def joined(*bodies: Any) -> SimNode:
    node = SimNode()
    node.join()
    for body in bodies:
        node.hear(body)
    return node


def read(node: SimNode, value: Any = None) -> list[commands.Command]:
    asked = of(commands.ReadSource, node.at(node.core.next_due_ms or node.now_ms))
    said: list[commands.Command] = []
    for one in asked:
        said += node.tell(events.SourceRead(one.service, one.input, value or tensor()))
    return said


def test_a_plan_with_other_inputs_ends_what_is_under_way() -> None:
    node = joined(fed())
    (sent,) = of(Invoke, read(node))
    other = Plan("s", 2, (Step("t", "node-b", 2, (Edge("x", "request", "z"),), ("y",)),), (
        Edge("answer", "t", "y"),
    ))  # fmt: skip
    node.hear(fed(2, plan=other))
    assert node.core.counts["feed failed"] == 1
    assert not len(node.core.feeder.flights)
    node.call(Result(sent.request, 1, {"answer": tensor()}))
    assert node.core.counts["feed late"] == 1


def test_inputs_that_are_too_much_for_a_message_are_not_sent() -> None:
    names = ("a", "b", "c")
    edges = tuple(Edge(one, "request", one) for one in names)
    plan = Plan("s", 1, (Step("t", "node-b", 1, edges, ("y",)),), (Edge("answer", "t", "y"),))
    sources = tuple(structs.replace(CAMERA, input=one) for one in names)
    node = joined(fed(plan=plan, sources=sources))
    asked = of(commands.ReadSource, node.at(node.core.next_due_ms or 0))
    assert {one.inline_bytes for one in asked} == {32 * 1024}, "a large value goes by reference"
    said: list[commands.Command] = []
    for one in asked:
        said += node.tell(events.SourceRead("s", one.input, tensor(NOISE)))
    fits(said)
    assert not of(commands.Forward, said)
    assert node.core.counts["feed failed"] == 1


def test_parts_that_no_answer_has_are_dropped() -> None:
    node = joined(fed())
    (sent,) = of(Invoke, read(node))
    for part, parts in ((0, 2**40), (7, 2), (2**50, 2**53), (1, 0)):
        node.call(Result(sent.request, 1, {}, part=part, parts=parts))
    assert node.core.counts["foreign message"] == 4
    node.call(Result(sent.request, 1, {"answer": tensor()}))
    assert node.core.counts["feed answered"] == 1


def test_a_packed_answer_that_is_large_leaves_for_its_sinks_in_several_records() -> None:
    ends = tuple(Edge(f"y{at}", "t", f"y{at}") for at in range(16))
    plan = Plan("s", 1, (Step("t", "node-b", 1, (Edge("x", "request", "x"),), ()),), ends)
    sinks = tuple(Sink(one.port, SinkKind.TOPIC) for one in ends)
    node = joined(fed(plan=plan, sinks=sinks))
    outputs = {one.port: tensor(bytes(64 * 1024)) for one in ends}
    packed: dict[str, Value] = {name: pack(value) for name, value in outputs.items()}

    def answer() -> list[commands.Command]:
        (sent,) = of(Invoke, read(node))
        return node.call(Result(sent.request, sent.attempt, packed))

    said = answer()
    fits(said)
    told = of(commands.Publish, said)
    assert len(told) == 8
    assert {name: one for record in told for name, one in record.body.outputs.items()} == outputs
    node.tell(events.Disconnected())
    for _ in range(10):
        answer()
    assert node.core.feeder.sinks._kept._bytes <= KEPT_MAX_BYTES
    assert node.core.counts["kept dropped"] > 0


def test_the_reply_topic_of_a_job_takes_no_room() -> None:
    node = joined(assign())
    plan = Plan("s", 1, (*LOCAL.steps, *chain(("u", "node-b", 1)).steps), LOCAL.outputs)
    second = structs.replace(plan.steps[1], inputs=(Edge("x", "t", "y"),))
    plan = structs.replace(plan, steps=(plan.steps[0], second))
    for topic in ("", "//", "#", "x" * 150_000):
        ask = structs.replace(invoke(f"j{len(topic)}", plan), job=True, reply_to=topic)
        node.call(ask)
        said = node.answer(y=tensor(NOISE), z=tensor(NOISE))
        fits(said)
        (deliver,) = of(Deliver, said)
        assert deliver.reply_to == ""


def test_correlation_data_beyond_its_bound_is_refused() -> None:
    node = joined(assign())
    ask = invoke()
    said = node.hear(ask, Channel.INVOKE, sender="app", correlation=bytes(60_000))
    (result,) = of(Result, said)
    assert result.failure is not None
    assert result.failure.code is FailureCode.BAD_INPUT
    within = bytes(CORRELATION_MAX_BYTES)
    node.hear(invoke("r2"), Channel.INVOKE, sender="app", correlation=within)
    assert len(node.calls) == 1


def test_nobody_makes_a_request_older_than_a_request_can_be() -> None:
    node = joined(assign("u"))
    plan = chain(("t", "node-b", 1), ("u", NODE, 1))
    node.call(
        Deliver(
            "r", 1, "t", 1000, {"y": tensor()}, "tona/1/cell/client/app/reply", plan,
            elapsed_us=2**53,
        )
    )  # fmt: skip
    node.answer()
    (report,) = of(QualityReport, node.tell(events.Sampled(LoadReport(int(node.now_ms), 1.0))))
    assert report.users[0].latency_ms <= 3_600_000


def test_the_names_of_a_tuning_cannot_fill_a_birth() -> None:
    node = SimNode(inventory=structs.replace(INVENTORY, max_instances=4096, task_memory_bytes=0))
    node.join()
    long = Tuning("v" * 10_000)
    (refused,) = of(Status, node.hear(structs.replace(assign("big"), tuning=long)))
    assert refused.state is InstanceState.FAILED
    held = Tuning("é" * 64, provider="p" * 64)
    for number in range(HELD_MAX + 50):
        node.hear(structs.replace(assign(f"{number:->64}".replace("-", "t")), tuning=held))
    assert 40 < len(node.core.assignments.held) <= HELD_MAX
    task = next(iter(node.core.assignments.held))
    node.hear(Tune(task, 1, 1, Tuning(encoding="e" * 60_000)))
    said = node.connect()
    assert of(Birth, said)
    fits(said)
    node.welcome()
    fits(node.tell(events.Sampled(LoadReport(int(node.now_ms), 1.0))))


def test_a_report_of_many_tasks_fits_its_topic() -> None:
    node = SimNode(inventory=structs.replace(INVENTORY, max_instances=4096, task_memory_bytes=0))
    node.join()
    for number in range(300):
        task = f"{number:04}".rjust(64, "t")
        node.hear(assign(task))
        for instance in node.core.upkeep.instances.values():
            window = node.core.meter.of(instance)
            window.input_bytes = window.output_bytes = window.sent_bytes = 2**50
        for epoch in range(2, 4):
            node.hear(assign(task, epoch))
        node.core.meter.answered(f"{number}".rjust(64, "s"), f"{number}".rjust(64, "u"), 1.5)
    said = node.tell(events.Sampled(LoadReport(int(node.now_ms), 1.0)))
    assert of(QualityReport, said)
    fits(said)


def test_a_scheduler_that_counts_anew_is_heard_and_the_one_before_is_not() -> None:
    node = joined(assign())

    def said(body: Any, life: int) -> list[commands.Command]:
        return node.tell(events.Received(Channel.COMMAND, "ts-1", life, 0, "default", "test", body))

    said(Tune("t", 1, 50, Tuning(priority=7)), 9)
    said(fed(50), 9)
    assert node.core.assignments.held["t"].assign.tuning.priority == 7
    said(RebirthRequest("ts-1", 8), 2)
    said(Tune("t", 1, 1, Tuning(priority=3)), 2)
    held = node.core.assignments.held["t"]
    assert (held.tuned, held.assign.tuning.priority) == ((2, 1), 3)
    said(Tune("t", 1, 51, Tuning(priority=9)), 1)
    assert held.assign.tuning.priority == 3
    assert of(commands.KeepFeed, said(fed(1, plan=LOCAL), 2))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=4), st.integers(2, 5), st.integers(1, 9))
@settings(deadline=None, derandomize=True)
def test_axes_without_data_cost_nothing(shape: list[int], step: int, wide: int) -> None:
    endless = (2**31 - 1, 0, *shape[2:])
    assert decimate(Dtype.UINT8, endless, b"", step)[1] == b""
    deep = (3, 2, 40 * wide)
    data = bytes(range(240)) * wide
    rows = [data[at * 40 * wide : (at + 1) * 40 * wide] for at in range(0, 6, 2 * step)]
    assert decimate(Dtype.UINT8, deep, data, step)[1] == b"".join(rows)


@pytest.mark.parametrize("percent", [5e-324, 1e-300, 0.1, 100 * 4096])
def test_any_share_is_one(percent: float) -> None:
    share = share_of(percent, 0, [0, 1], 0)
    assert share.cores <= {0, 1}
    assert -20 <= share.nice <= 19


def ask(name: str, kind: SourceKind = SourceKind.SENSOR, **changed: Any) -> ReadSource:
    plain: dict[str, Any] = {
        "dtype": Dtype.UINT8, "shape": (4,), "decimation": 1, "cursor": "", "cause": "test",
    }  # fmt: skip
    return ReadSource("s", changed.pop("input", "x"), kind, name, **(plain | changed))


def test_a_sensor_gives_no_more_than_its_bound_whatever_shape_is_asked_for() -> None:
    sources = Sources({"zero": SensorFile("/dev/zero")}, None)
    with pytest.raises(EnvironmentFailure, match="more than"):
        sources.read(ask("zero", shape=(2**31 - 1, 2**31 - 1)))


def test_a_pipe_without_a_writer_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    sources = Sources({"pipe": SensorFile(str(tmp_path / "pipe"))}, None)
    with pytest.raises(EnvironmentFailure, match="0 bytes"):
        sources.read(ask("pipe"))


def test_a_file_of_a_folder_that_cannot_be_used_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(b"odd")
    with (folder / "b").open("wb") as file:
        file.truncate(SOURCE_MAX_BYTES + 1)
    (folder / "c").write_bytes(b"good")
    sources, node = Sources({}, tmp_path), joined(fed(sources=(structs.replace(
        CAMERA, kind=SourceKind.FILE, name="in", shape=(4,)
    ),)))  # fmt: skip
    seen = []
    for _ in range(3):
        (one,) = of(commands.ReadSource, node.at(node.core.next_due_ms or 0))
        try:
            found = sources.read(one)
        except Unusable as error:
            node.tell(events.SourceFailed("s", "x", str(error), error.cursor))
        else:
            assert found is not None
            seen.append(found.data)
            node.tell(events.SourceRead("s", "x", tensor(found.data), found.cursor))
    assert seen == [b"good"]


class Hanging:
    """Sources of which some never answer."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []

    def read(self, command: ReadSource) -> None:
        self.asked.append(command.input)
        if command.name == "hangs":
            self.go_on.wait()


async def test_a_source_that_hangs_keeps_one_thread_and_holds_nobody_up(tmp_path: Path) -> None:
    hanging, told = Hanging(), asyncio.Queue[Any]()
    blobs = BlobFolder(tmp_path / "blobs", 1 << 20, 60.0)
    sources: Callable[[], Any] = lambda: hanging  # noqa: E731 - what the daemon's maker is
    hands = Transfers(
        blobs, lambda: pytest.fail("no"), sources, told.put_nowait, asyncio.ensure_future
    )
    give = hands.doors[ReadSource]
    try:
        give(ask("hangs"))
        give(ask("hangs"))
        again = await asyncio.wait_for(told.get(), 60)
        assert isinstance(again, events.SourceFailed)
        for number in range(3 * READERS_MAX):
            give(ask("quick", input=f"y{number}"))
        for _ in range(3 * READERS_MAX):
            assert isinstance(await asyncio.wait_for(told.get(), 60), events.SourceRead)
        assert hanging.asked.count("x") == 1
        for number in range(READERS_MAX):
            give(ask("hangs", input=f"z{number}"))
        threads = [one for one in threading.enumerate() if one.name == "source"]
        assert len(threads) <= READERS_MAX
        assert all(one.daemon for one in threads), "the end of the process waits for none"
    finally:
        hanging.go_on.set()
    for _ in range(READERS_MAX + 1):
        await asyncio.wait_for(told.get(), 60)


async def test_calls_whose_time_is_over_do_not_gather_before_a_slot(tmp_path: Path) -> None:
    slots = Slots(0)
    held = Instance("t", tmp_path, assign().manifest, {}, slots)
    assert held.manifest.kind is ExecutorKind.WASM
    for _ in range(50):
        run = Run(held, 4)
        waiting = asyncio.ensure_future(slots.wait(run))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert not slots._waiting


def test_duplicate_steps_cycles_and_bombs_raise_nothing() -> None:
    node = joined(assign(), fed(sinks=ENDS))
    step = LOCAL.steps[0]
    loop = structs.replace(step, inputs=(Edge("x", "t", "y"),))
    named = structs.replace(step, task="request")
    ends = (Edge("answer", "t", "y"), Edge("other", "nobody", "y"))
    plans = [
        Plan("s", 1, (step, step), LOCAL.outputs),
        Plan("s", 1, (step, loop, loop), LOCAL.outputs),
        Plan("s", 1, (loop, step), LOCAL.outputs),
        Plan("s", 1, (named, step), LOCAL.outputs),
        Plan("s", 1, (step,) * 64, ends),
    ]
    bomb = structs.replace(
        tensor(), data=zlib.compress(bytes(1 << 20)), encoding="deflate", shape=(1 << 20,)
    )
    for number, plan in enumerate(plans):
        ask = invoke(f"r{number}", plan)
        fits(node.call(ask))
        fits(node.call(ask))
        while node.calls:
            fits(node.answer())
        fits(node.call(structs.replace(ask, attempt=2)))
        node.call(structs.replace(ask, request=f"b{number}", inputs={"x": bomb}))
        node.tell(events.Published("s", Channel.INPUT, Invoke("p", "s", 1, {"x": bomb})))
        node.call(Result(f"{NODE}-1-{number}", 1, {"answer": bomb}))
        node.call(Accepted("unknown", 2**53, "node-b"))
    node.after(60_000)
    assert not len(node.core.requests)
