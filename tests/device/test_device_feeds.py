"""Feeds and sinks on a fake clock: a node as the client of a service with its own data."""

import struct
from itertools import pairwise
from typing import Any

import pytest
from device_harness import (
    INVENTORY,
    NODE,
    SimNode,
    assign,
    chain,
    digest,
    failed,
    invoke,
    of,
    tensor,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from device_agent.core import commands, events
from device_agent.core.feeder import BUNCHED_MS, FEEDS_MAX, TAKEN_MS, UNDER_WAY_MAX, Pace
from device_agent.core.pictures import decimate
from device_agent.core.tasks import BESIDE_MAX
from protocols.codec import VERSION, Frame, encode
from protocols.errors import Blame
from protocols.manifest import Dtype
from protocols.messages import Accepted, Birth, Feed, Invoke, LoadReport, QualityReport, Result
from protocols.messages.invocation import Blob, Failure, FailureCode, Tensor, Value
from protocols.messages.presence import Feeding
from protocols.messages.quality import Sink, SinkKind, Source, SourceKind, Tuning
from protocols.packing import pack
from protocols.topics import CONTROL_MAX_BYTES, Channel

INBOX = f"tona/1/cell/node/{NODE}/invoke"
CAMERA = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (-1,), rate_per_s=10.0)
REMOTE = chain(("t", "node-b", 1))
LOCAL = chain(("t", NODE, 1))


def feed(number: int = 1, **changed: Any) -> Feed:
    plain = Feed("s", number, LOCAL, (CAMERA,), budget_ms=1000)
    return structs.replace(plain, **changed)


def fed(**changed: Any) -> SimNode:
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    node.hear(feed(**changed))
    return node


def read(node: SimNode, value: Value | None = None, **more: Any) -> list[commands.Command]:
    """Let the sources be read that are due, and answer the last with a value."""
    said = node.at(node.core.next_due_ms or node.now_ms)
    asked = of(commands.ReadSource, said)
    assert asked, said
    one = asked[-1]
    return node.tell(events.SourceRead(one.service, one.input, value or tensor(), **more))


def tally(node: SimNode) -> tuple[int, int, int]:
    counts = node.core.counts
    return counts["fed"], counts["feed answered"], counts["feed failed"]


def test_a_sensor_is_read_at_its_pace_and_makes_requests_here_without_the_wire() -> None:
    node = fed()
    said = read(node)
    (ask,) = of(commands.Execute, said)
    assert ask.inputs == {"x": tensor()}
    assert not of(Invoke, said), "nothing goes over the wire"
    node.answer()
    assert tally(node) == (1, 1, 0)
    asked = of(commands.ReadSource, node.after(1000))
    assert len(asked) == 1, "an answer is waited for before the next reading"
    assert node.core.counts["feed slow"] == 9


def test_the_pace_of_the_feed_replaces_that_of_its_sources() -> None:
    node = fed(rate_per_s=2.0)
    times = []
    for _ in range(4):
        read(node)
        times.append(node.now_ms)
        node.answer()
    assert [b - a for a, b in pairwise(times)] == [500.0] * 3


def test_its_answers_are_measured_as_those_of_a_user_with_the_name_of_the_node() -> None:
    node = fed()
    read(node)
    node.now_ms += 40
    node.answer()
    (report,) = of(QualityReport, node.tell(events.Sampled(LoadReport(int(node.now_ms), 1.0))))
    assert (report.users[0].user, report.users[0].latency_ms) == (NODE, 40.0)


def test_requests_elsewhere_are_those_of_a_client() -> None:
    node = fed(plan=REMOTE, priority=7)
    (sent,) = of(commands.Forward, read(node))
    assert sent.node == "node-b"
    ask = sent.body
    assert (ask.reply_to, ask.attempt, ask.budget_ms, ask.priority) == (INBOX, 1, 1000, 7)
    assert ask.request.startswith(f"{NODE}-1-"), "unique by node and incarnation"
    node.call(Accepted(ask.request, 1, "node-b"))
    node.call(Result(ask.request, 1, {"answer": tensor(b"ok")}))
    assert tally(node) == (1, 1, 0)
    node.call(Result(ask.request, 1, {"answer": tensor(b"ok")}))
    assert tally(node) == (1, 1, 0)
    assert node.core.counts["feed late"] == 1


def test_silence_failures_and_moves_ask_again_and_the_deadline_ends_it() -> None:
    node = fed(plan=REMOTE, budget_ms=60_000, rate_per_s=0.01)
    (first,) = of(commands.Forward, read(node))
    again = of(commands.Forward, node.after(1000))
    assert [one.body.attempt for one in again] == [2]
    busy = Failure(FailureCode.BUSY, Blame.ENVIRONMENT, "full", retryable=True)
    node.call(Result(first.body.request, 2, {}, busy))
    assert [one.body.attempt for one in of(commands.Forward, node.after(2000))] == [3]
    moved = node.hear(feed(2, plan=chain(("t", "node-c", 2)), budget_ms=60_000, rate_per_s=0.01))
    assert [(one.node, one.body.attempt) for one in of(commands.Forward, moved)] == [("node-c", 4)]
    node.after(60_000)
    assert tally(node)[1:] == (0, 1)
    assert len(node.core.feeder.flights) <= 1


def test_a_failure_that_may_not_be_retried_ends_it() -> None:
    node = fed()
    read(node)
    call = next(iter(node.calls))
    del node.calls[call]
    bad = structs.replace(failed(call), retryable=False)
    node.tell(bad)
    assert tally(node) == (1, 0, 1)


def test_only_so_many_are_under_way_and_newer_data_replaces_what_waits() -> None:
    node = fed(plan=REMOTE, budget_ms=60_000)
    for number in range(UNDER_WAY_MAX + 5):
        read(node, tensor(bytes([number])))
    sent = of(commands.Forward, node.said)
    assert len({one.body.request for one in sent}) == UNDER_WAY_MAX
    assert node.core.counts["feed replaced"] == 4
    said = node.call(Result(sent[0].body.request, 1, {"answer": tensor()}))
    (newest,) = of(commands.Forward, said)
    assert newest.body.inputs == {"x": tensor(bytes([UNDER_WAY_MAX + 4]))}


def test_without_a_plan_the_newest_item_waits_for_one() -> None:
    node = fed(plan=None)
    read(node, tensor(b"1"))
    read(node, tensor(b"2"))
    assert tally(node) == (0, 0, 0)
    said = node.hear(feed(2))
    assert of(commands.Execute, said)[0].inputs == {"x": tensor(b"2")}


def test_changes_sends_only_what_differs() -> None:
    node = fed(function="changes")
    for data in (b"1", b"1", b"1", b"2", b"1"):
        read(node, tensor(data))
        while node.calls:
            node.answer()
    assert tally(node) == (3, 3, 0)
    assert node.core.counts["feed unchanged"] == 2


def test_a_folder_gives_its_files_one_after_another() -> None:
    source = structs.replace(CAMERA, kind=SourceKind.FILE, name="in")
    node = fed(sources=(source,))
    (ask,) = of(commands.ReadSource, node.at(node.core.next_due_ms or 0))
    assert (ask.kind, ask.name, ask.cursor) == (SourceKind.FILE, "in", "")
    node.tell(events.SourceRead("s", "x", tensor(b"1"), "a.raw"))
    node.answer()
    (ask,) = of(commands.ReadSource, node.after(100))
    assert ask.cursor == "a.raw"
    assert not node.tell(events.SourceRead("s", "x")), "nothing new"
    (ask,) = of(commands.ReadSource, node.after(100))
    assert ask.cursor == "a.raw"


def test_a_source_that_cannot_be_read_is_counted_and_read_again() -> None:
    node = fed()
    for _ in range(3):
        node.at(node.core.next_due_ms or 0)
        node.tell(events.SourceFailed("s", "x", "the camera is gone"))
    assert node.core.counts["feed unread"] == 3
    read(node)
    assert tally(node)[0] == 1


def test_the_load_of_the_node_is_a_sensor_of_its_own() -> None:
    load = Source("x", SourceKind.SENSOR, "load", Dtype.FLOAT32, (8,), rate_per_s=10.0)
    node = fed(sources=(load,), plan=REMOTE)
    assert not of(Invoke, node.after(200)), "nothing was sampled yet"
    node.tell(
        events.Sampled(
            LoadReport(1, 50.0, memory_used_bytes=1, memory_available_bytes=3, power_w=2.5)
        )
    )
    (ask, *_) = of(Invoke, node.after(100))
    figures = struct.unpack("<8f", ask.inputs["x"].data)
    assert (figures[0], figures[1], figures[6], figures[7]) == (50.0, 25.0, 2.5, 0.0)
    assert figures[2] != figures[2], "what is not sensed is not a number, never 0"


@pytest.mark.parametrize(
    ("name", "channel", "body"),
    [
        ("other.boxes", Channel.OUTPUT, Result("r", 1, {"boxes": tensor(b"new")})),
        ("s.boxes", Channel.INPUT, Invoke("r", "s", 10, {"boxes": tensor(b"new")})),
    ],
)
def test_a_topic_feeds_as_it_comes_at_most_at_its_pace(
    name: str, channel: Channel, body: Any
) -> None:
    source = Source("x", SourceKind.TOPIC, name, Dtype.UINT8, (-1,), rate_per_s=1.0)
    node = fed(sources=(source,))
    service = name.partition(".")[0]
    assert of(commands.Follow, node.said) == [commands.Follow(service, channel)]
    said = node.tell(events.Published(service, channel, body))
    assert of(commands.Execute, said)[0].inputs == {"x": tensor(b"new")}
    node.tell(events.Published(service, channel, structs.replace(body, request="r2")))
    assert node.core.counts["feed thinned"] == 1
    node.tell(events.Published("third", channel, body))
    assert tally(node)[0] == 1
    said = node.hear(feed(2, sources=()))
    assert of(commands.Unfollow, said) == [commands.Unfollow(service, channel)]


def test_what_was_published_at_its_pace_and_comes_bunched_is_not_thinned() -> None:
    source = Source("x", SourceKind.TOPIC, "other.y", Dtype.UINT8, (-1,), rate_per_s=10.0)
    node = fed(sources=(source,))
    for name in "abcde":
        body = Result(name, 1, {"y": tensor(name.encode())})
        node.tell(events.Published("other", Channel.OUTPUT, body))
    assert node.core.counts["feed thinned"] == 0
    assert tally(node)[0] == 5


@given(
    st.floats(1.0, 1000.0),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60),
    st.floats(1.0, 8.0),
)
def test_a_pace_takes_what_keeps_it_and_no_more_than_it_allows(
    rate_per_s: float, late: list[float], faster: float
) -> None:
    period_ms = 1000.0 / rate_per_s
    pace, came_ms = Pace(), 0.0
    for number, one in enumerate(late):
        came_ms = max(came_ms, number * period_ms + one * BUNCHED_MS / 2)
        assert pace.takes(came_ms, rate_per_s), "it was published at the pace"
    pace, step_ms = Pace(), period_ms / faster
    taken = sum(pace.takes(number * step_ms, rate_per_s) for number in range(200))
    assert taken <= (199 * step_ms + BUNCHED_MS) / period_ms + 1
    assert taken >= 199 * step_ms // period_ms, "and what it allows"


def test_what_comes_by_two_brokers_during_a_handover_feeds_once() -> None:
    source = Source("x", SourceKind.TOPIC, "other.y", Dtype.UINT8, (-1,), rate_per_s=1000.0)
    node = fed(sources=(source,))

    def published(request: str, via: str) -> int:
        body = Result(request, 1, {"y": tensor(request.encode())})
        event = events.Published("other", Channel.OUTPUT, body, via)
        before = node.core.counts["fed"]
        node.now_ms += 2
        node.tell(event)
        return node.core.counts["fed"] - before

    assert [published("r1", one) for one in ("a", "b")] == [1, 0]
    assert [published("r2", one) for one in ("b", "a", "b")] == [1, 0, 0], "nor said again"
    assert node.core.counts["feed twice"] == 3
    node.now_ms += TAKEN_MS
    assert published("r1", "a") == 1, "from a program that has begun anew"


def test_what_is_read_while_nobody_is_reached_waits_in_order_within_bounds() -> None:
    node = fed(plan=REMOTE, budget_ms=10_000)
    node.tell(events.Disconnected("x"))
    for number in range(UNDER_WAY_MAX + 6):
        read(node, tensor(bytes([number])))
    assert tally(node)[0] == UNDER_WAY_MAX
    assert (node.core.counts["kept"], node.core.counts["feed replaced"]) == (UNDER_WAY_MAX + 6, 0)
    node.connect()
    heard: list[int] = []
    for _ in range(UNDER_WAY_MAX + 6):
        waiting = {one.body.request: one.body for one in of(commands.Forward, node.said)}
        first = next(one for one in waiting.values() if one.inputs["x"].data[0] == len(heard))
        heard.append(first.inputs["x"].data[0])
        node.call(Result(first.request, first.attempt, {"y": tensor()}))
    assert tally(node) == (UNDER_WAY_MAX + 6, UNDER_WAY_MAX + 6, 0), "none lost, none doubled"

    node.hear(feed(2, plan=REMOTE, budget_ms=2000))
    node.tell(events.Disconnected("x"))
    for number in range(10 * UNDER_WAY_MAX):
        read(node, tensor(bytes([number])))
    assert node.core.counts["kept dropped"] > 0, "what is older than the budget counts no more"


def test_what_is_published_amiss_feeds_nothing() -> None:
    source = Source("x", SourceKind.TOPIC, "other.y", Dtype.UINT8, (2,), rate_per_s=1000.0)
    node = fed(sources=(source,))
    wrong = (
        Tensor(Dtype.UINT8, (3,), b"abc"),
        Tensor(Dtype.UINT8, (2,), b"abc"),
        Tensor(Dtype.UINT8, (2,), b"ab", "deflate"),
        Tensor(Dtype.FLOAT32, (2,), b"ab"),
    )
    for number, value in enumerate(wrong):
        node.tell(events.Published("other", Channel.OUTPUT, Result(f"r{number}", 1, {"y": value})))
    node.tell(events.Published("other", Channel.OUTPUT, Accepted("r", 1, "n")))
    assert node.core.counts["feed misfit"] == len(wrong)
    assert tally(node) == (0, 0, 0)


def test_several_inputs_make_one_request() -> None:
    other = structs.replace(CAMERA, input="z", name="other")
    node = fed(plan=REMOTE, sources=(CAMERA, other))
    said = node.at(node.core.next_due_ms or 0)
    assert [one.input for one in of(commands.ReadSource, said)] == ["x", "z"]
    assert not of(Invoke, node.tell(events.SourceRead("s", "x", tensor(b"1"))))
    assert of(Invoke, node.tell(events.SourceRead("s", "z", tensor(b"2"))))
    assert tally(node)[0] == 1


def test_inputs_that_the_plan_lacks_fail_and_are_counted() -> None:
    node = fed(sources=(structs.replace(CAMERA, input="z"),))
    read(node)
    assert tally(node) == (1, 0, 1)


def test_large_values_go_to_the_store_before_a_request_elsewhere() -> None:
    blob = Blob(Dtype.UINT8, (100_000,), digest("big"), 100_000)
    node = fed(plan=REMOTE)
    said = read(node, blob)
    assert [one.digest for one in of(commands.PushBlob, said)] == [blob.digest]
    assert not of(Invoke, said)
    assert of(Invoke, node.tell(events.BlobPushed(blob.digest)))
    late = fed(plan=REMOTE)
    read(late, blob)
    said = late.after(1000)
    assert commands.LeaveBlob(blob.digest, pushing=True) in said, "its time is over"
    here = fed()
    said = read(here, blob)
    assert not of(commands.PushBlob, said)
    assert [one.digest for one in of(commands.FetchBlob, said)] == [blob.digest]


def test_an_older_feed_is_stale_and_one_without_anything_ends_it() -> None:
    node = fed(number=5)
    assert isinstance(of(commands.KeepFeed, node.said)[0], commands.KeepFeed)
    assert not node.hear(feed(4, rate_per_s=99.0))
    assert not node.hear(feed(5))
    assert node.core.counts["stale feed"] == 1
    read(node)
    said = node.hear(feed(6, sources=()))
    assert [one.service for one in of(commands.ForgetFeed, said)] == ["s"]
    assert not of(commands.ReadSource, node.after(10_000))
    assert tally(node) == (1, 0, 1), "what was under way is not waited for"


def test_feeds_are_bounded() -> None:
    node = SimNode()
    node.join()
    for number in range(FEEDS_MAX + 3):
        node.hear(feed(service=f"s{number}"))
    assert len(node.core.feeder._feeds) == FEEDS_MAX
    assert node.core.counts["feed refused"] == 3


def test_a_reboot_goes_on_feeding_without_a_controller() -> None:
    node = SimNode(events.Restored((assign("t"),), (), (feed(),), incarnation=7))
    read(node)
    request = next(iter(node.core.requests.admission.live))
    assert request == f"{NODE}-b7-1", "unique before the first connection too"
    node.answer()
    assert tally(node) == (1, 1, 0)


def test_answers_to_a_feed_go_to_the_sinks_and_wait_for_a_connection() -> None:
    sinks = (Sink("answer", SinkKind.TOPIC), Sink("answer", SinkKind.STORE))
    node = fed(sinks=sinks)
    read(node)
    said = node.answer(y=tensor(b"ok"))
    (told,) = of(commands.Publish, said)
    assert (told.service, told.body.outputs) == ("s", {"answer": tensor(b"ok")})
    (store,) = of(commands.StoreValue, said)
    node.tell(events.StoreFailed(store.key, "the store is away"))
    (again,) = of(commands.StoreValue, node.after(800))
    assert again.key == store.key
    node.tell(events.Disconnected("x"))
    blob = Blob(Dtype.UINT8, (2,), digest("ok"), 2)
    assert not of(commands.Publish, node.tell(events.Stored(store.key, blob)))
    node.connect()
    again = [{"answer": tensor(b"ok")}, {"answer": blob}]
    assert [one.body.outputs for one in of(commands.Publish, node.said)][1:] == again, (
        "nobody knows what the lost link has carried"
    )


def test_a_store_that_stays_away_is_given_up_and_counted() -> None:
    node = fed(sinks=(Sink("answer", SinkKind.STORE),), rate_per_s=0.001)
    read(node)
    node.answer()
    for _ in range(20):
        for one in of(commands.StoreValue, node.after(100)):
            node.tell(events.StoreFailed(one.key, "away"))
    key = of(commands.StoreValue, node.said)[0].key
    node.tell(events.StoreFailed(key, "away"))
    assert node.core.counts["sink failed"] == 1


def test_answers_to_clients_that_end_here_go_to_the_sinks_too() -> None:
    node = fed(sources=(), sinks=(Sink("answer", SinkKind.TOPIC),))
    node.call(invoke())
    said = node.answer()
    assert len(of(commands.Reply, said)) == 1
    assert len(of(commands.Publish, said)) == 1
    theirs = structs.replace(invoke("other"), reply_to="tona/1/cell/node/node-z/invoke", plan=LOCAL)
    node.call(theirs)
    said = node.answer()
    assert len(of(commands.Reply, said)) == 1
    assert not of(commands.Publish, said), "the feeder of that node passes it on"


def test_packed_answers_are_unpacked_before_a_sink() -> None:
    plain = tensor(bytes(1000))
    node = fed(plan=REMOTE, sinks=(Sink("answer", SinkKind.TOPIC),))
    (ask,) = of(Invoke, read(node))
    assert ask.answer_encoding == "deflate"
    said = node.call(Result(ask.request, 1, {"answer": pack(plain)}))
    assert of(commands.Publish, said)[0].body.outputs == {"answer": plain}
    (ask,) = of(Invoke, read(node, tensor(b"2")))
    bomb = Tensor(Dtype.UINT8, (10,), pack(plain).data, "deflate")
    node.call(Result(ask.request, 1, {"answer": bomb}))
    assert tally(node) == (2, 1, 1)


@given(
    st.sampled_from(((5, 7), (4, 6, 3), (2, 5, 4, 2))),
    st.sampled_from((Dtype.UINT8, Dtype.FLOAT32, Dtype.FLOAT16)),
    st.integers(1, 9),
)
@settings(deadline=None, derandomize=True)
def test_decimation_is_what_slicing_an_array_gives(
    shape: tuple[int, ...], dtype: Dtype, step: int
) -> None:
    np = pytest.importorskip("numpy")
    whole = np.arange(int(np.prod(shape))).astype(np.dtype(dtype.value)).reshape(shape)
    wanted = whole[:, ::step, ::step] if len(shape) == 4 else whole[::step, ::step]
    small, data = decimate(dtype, shape, whole.tobytes(), step)
    assert small == wanted.shape
    assert data == wanted.tobytes()


def test_what_is_no_picture_is_not_decimated() -> None:
    assert decimate(Dtype.UINT8, (6,), b"abcdef", 2) == ((6,), b"abcdef")
    assert decimate(Dtype.UINT8, (2, 3), b"abc", 2) == ((2, 3), b"abc")
    assert decimate(Dtype.UINT8, (0, 3), b"", 2) == ((0, 2), b"")


# What a birth tells of them.


def told(node: SimNode) -> tuple[Feeding, ...]:
    """Join anew and return what the birth says."""
    node.join()
    return of(Birth, node.said)[-1].feeds


def test_a_birth_tells_every_feed_and_how_it_is_tuned() -> None:
    node = SimNode()
    node.join()
    assert told(node) == ()
    node.hear(feed(rate_per_s=2.0, decimation=4, function="changes"))
    node.hear(feed(3, service="end", sources=(), sinks=(Sink("y", SinkKind.TOPIC),)))
    assert told(node) == (Feeding("s", 1, 2.0, 4, "changes"), Feeding("end", 3))
    node.hear(feed(5, rate_per_s=2.0, decimation=4, function="changes"))
    assert told(node)[0].number == 5, "the same under a newer number"
    node.hear(Feed("s", 6))
    assert [one.service for one in told(node)] == ["end"]


def test_a_birth_tells_the_feeds_that_the_journal_kept() -> None:
    node = SimNode(events.Restored(feeds=(feed(7),)))
    assert told(node) == (Feeding("s", 7),)


def test_a_function_with_no_name_to_tell_is_refused() -> None:
    node = fed(function="f" * 65)
    assert told(node) == ()
    assert node.core.counts["feed refused"] == 1


def test_a_birth_fits_its_frame_with_all_that_a_node_may_hold() -> None:
    node = SimNode(inventory=structs.replace(INVENTORY, max_instances=256, task_memory_bytes=0))
    node.join()
    long = Tuning(variant="v" * 64, provider="p" * 64, encoding="deflate")

    def hold(number: int, later: int = 0) -> None:
        task = f"{number:03}-".ljust(24, "t")
        tuning = structs.replace(long, threads=later) if number < BESIDE_MAX + 1 else Tuning()
        node.hear(structs.replace(assign(task, (1 << 52) + later, 1 << 52), tuning=tuning))

    for number in range(BESIDE_MAX + 1):
        hold(number)
    node.helpful = False
    for number in range(BESIDE_MAX + 1):
        hold(number, 1)
    for number in range(BESIDE_MAX + 1, 256):
        hold(number)
    for number in range(FEEDS_MAX):
        service = f"{number:03}-".ljust(64, "s")
        node.hear(feed(1 << 52, service=service, function="f" * 64, sources=(CAMERA,)))
    node.join()
    birth = of(Birth, node.said)[-1]
    assert len(birth.feeds) == FEEDS_MAX
    assert len(birth.holdings) > 150
    assert sum(one.serving_epoch > 0 for one in birth.holdings) == BESIDE_MAX
    encode(Frame(VERSION, NODE, 1, 0, "default", "x", birth), CONTROL_MAX_BYTES)
