"""A node is handed over to and fro while it is asked, and while a program beside it asks."""

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from deployment_forger import Tape, Word, say
from deployment_world import World, running, staying
from loop_cell import PATIENCE_S, Loop, Stream, chain, echo_module, expecting

import tona
from protocols import topics
from protocols.messages import (
    AnchorOffer,
    AnchorTransfer,
    Birth,
    Body,
    EnvelopeGrant,
    EnvelopeRevoke,
    HandoverAnswer,
    HandoverCommand,
    Linking,
    Neighbours,
    Relinquished,
)
from protocols.messages.mobility import CellPoint
from protocols.topics import Channel

pytestmark = pytest.mark.timeout(240)
DEADLINE_S = 30.0
ROAMS, STAYS = "ue-1", "ue-3"
"""Both begin in the first cell."""
CELLS = {"cu-dus-ues": ("du-1", "du-2"), "gnodebs-ues": ("gnodeb-1", "gnodeb-2")}


async def _submit(world: World, name: str, node: str) -> None:
    document = json.loads(chain(name, 1, echo_module()))
    [service] = document["services"]
    service["tasks"][0]["nodes"], service["spares"] = [node], 0
    body = {"document": json.dumps(document), "format": "json"}
    (await world.http.post("/v1/usecases", json=body)).raise_for_status()


async def _tasks(world: World) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = await world.until(
        "/v1/tasks",
        lambda tasks: len(tasks) == 3 and all(one["state"] == "running" for one in tasks),
    )
    return tasks


@pytest.mark.parametrize(
    ("name", "radios"), [("cu-dus-ues", "2"), ("cu-dus-ues", "1"), ("gnodebs-ues", "2")]
)
async def test_a_node_that_is_handed_over_serves_and_is_served(
    tmp_path: Path, name: str, radios: str
) -> None:
    first, second = CELLS[name]
    options = (f"--attachment={tmp_path}/{{node}}.json", f"--radios={radios}")
    config = staying(tmp_path)
    async with running(tmp_path, name, 3, options=options, config=config) as world:
        # The first one brings the module; it stays where it is.
        await world.submit("echo", 1)
        await _submit(world, "device", ROAMS)
        await _submit(world, "edge", STAYS)
        before = {one["spec"]["task"]: one["epoch"] for one in await _tasks(world)}
        url = world.seen.api_url
        async with (
            Tape((one.name, one.broker) for one in world.seen.processes) as tape,
            tona.connect(url) as far,
            tona.connect(url, follow=_file(tmp_path)) as near,
        ):
            streams = [Stream(far, "device", DEADLINE_S), Stream(near, "edge", DEADLINE_S)]
            workers = [asyncio.create_task(one.work()) for one in streams for _ in range(2)]
            for cell in (second, first, second):
                await asyncio.gather(*(one.more(20) for one in streams))
                await world.hand_over(ROAMS, cell)
                with expecting(f"the handover to {cell}"):
                    await asyncio.gather(*(one.more(20) for one in streams))
            for one in streams:
                one.stop()
            await asyncio.gather(*workers)
            await _has_followed(world, near)
            if name == "gnodebs-ues":
                path = "/v1/services/device"
                await world.until(path, lambda one: one["anchor"] == f"ta-{second}")
            await _bears_replays(world, tape)
            for client, service in ((far, "device"), (near, "edge")):
                await client.invoke(service, {"x": b"as before"}, deadline_s=PATIENCE_S)
        for one in streams:
            assert (one.failures, one.wrong, one.answered) == ([], 0, one.sent)
        # Neither task has begun anew.
        assert {one["spec"]["task"]: one["epoch"] for one in await _tasks(world)} == before
        if name != "gnodebs-ues":
            await _were_asked_for(world, attached=radios == "2")
        if radios == "1":
            await _refuses_what_is_forged(world, second)
    # A command of an attachment that is over came once more.
    assert "late handover" in (tmp_path / "logs" / f"{ROAMS}.log").read_text(encoding="utf-8")


async def _were_asked_for(world: World, *, attached: bool) -> None:
    seen = await world.until(
        "/v1/handovers",
        lambda seen: (
            sum(one["state"] == "completed" for one in seen) >= 3
            and any(one["state"] == "completed" and one["by_hand"] for one in seen)
        ),
    )
    done = [one for one in seen if one["state"] == "completed" and one["by_hand"]]
    assert {one["attached"] for one in done} == {attached}


async def _has_followed(world: World, client: tona.AsyncClient) -> None:
    """Wait until a client is in the cell of its node, which may have gone on by itself."""
    await world.until(f"/v1/nodes/{ROAMS}", lambda one: one["scheduler"] == f"ts-{client.cell}")


async def _bears_replays(world: World, tape: Tape) -> None:
    """Say again what nodes and roles have said of attachments that are over, and to each other."""
    tape.end()
    before, asked = await _tasks(world), await _by_hand(world)
    own = [one for one in tape.words if _presence(one)]
    last = max(one.frame.incarnation for one in own)
    newest = {one.cell: max(w.frame.incarnation for w in own if w.cell == one.cell) for one in own}
    counted = await _counters(world)
    births = await tape.again(lambda one: _presence(one) and one.frame.incarnation < last)
    commands = await tape.again(lambda one: isinstance(one.frame.body, HandoverCommand))
    links = await tape.again(lambda one: bool(_bodies(one)))
    assert commands
    kinds = {type(body) for one in links for body in _bodies(one)}
    assert EnvelopeGrant in kinds
    one_anchor = any(one.name == "cu" for one in world.seen.processes)
    assert (HandoverCommand if one_anchor else AnchorTransfer) in kinds
    # The last farewell in a cell changes nothing there, and is no news.
    late = [
        one
        for one in births
        if isinstance(one.frame.body, Birth) or one.frame.incarnation < newest[one.cell]
    ]
    assert late

    def refused(after: Counter[str]) -> bool:
        return after["links_doubled"] >= counted["links_doubled"] + len(links) and after[
            "late_incarnation"
        ] >= counted["late_incarnation"] + len(late)

    async with asyncio.timeout(PATIENCE_S):
        while not refused(await _counters(world)):  # noqa: ASYNC110 - counters tell nobody
            await asyncio.sleep(0.1)
    assert _held(await _tasks(world)) == _held(before)
    assert await _by_hand(world) == asked


def _presence(word: Word) -> bool:
    topic = topics.parse(word.topic)
    return topic.channel is Channel.PRESENCE and topic.name == ROAMS


def _bodies(word: Word) -> list[Body]:
    """Return the messages that a frame between roles brings whole."""
    frame = word.frame.body
    if not isinstance(frame, Linking) or not frame.number:
        return []
    decoder = msgspec.msgpack.Decoder(Body)
    found = []
    for one in (frame, *frame.further):
        # A piece of a larger message is none by itself.
        with suppress(msgspec.DecodeError):
            found.append(decoder.decode(one.body))
    return found


async def _counters(world: World) -> Counter[str]:
    """Return what all controllers have counted, by what, whoever has."""
    sums: Counter[str] = Counter()
    for process in world.seen.processes:
        async with httpx.AsyncClient(base_url=process.api_url, timeout=PATIENCE_S) as http:
            system = await Loop(world.cell, world.seen, http).get("/v1/system")
        for name, count in system["counters"].items():
            kept = "late_incarnation" if name.endswith("_late_incarnation") else name
            sums[kept] += round(count)
    return sums


async def _by_hand(world: World) -> list[str]:
    """Return the handovers that were asked for."""
    return [one["handover"] for one in await world.get("/v1/handovers") if one["by_hand"]]


def _held(tasks: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return what forged words would change: a node may go on by itself meanwhile."""
    return [(one["spec"]["task"], one["node"], one["generation"], one["epoch"]) for one in tasks]


async def _refuses_what_is_forged(world: World, cell: str) -> None:
    """Speak as roles that nobody is to the anchor, and to the scheduler that has the task."""
    [cu] = [one for one in world.seen.processes if one.name == "cu"]
    [du] = [one for one in world.seen.processes if one.name == cell]
    before = await _tasks(world)
    [task] = [one for one in before if one["spec"]["task"].startswith("device.")]
    name, point = task["spec"]["task"], CellPoint("du-9", "ts-du-9", (cu.broker,))
    to_anchor = (
        Relinquished(name, task["generation"], ROAMS, task["epoch"], 0, task["epoch_high"]),
        HandoverAnswer("forged", ROAMS, True, "du-9"),
        AnchorOffer("device", 1, ()),
        AnchorTransfer("device", 1, ()),
    )
    to_scheduler = (
        EnvelopeRevoke(name, task["generation"], "forged"),
        HandoverCommand("forged", ROAMS, point, 0),
        Neighbours(1 << 40, (point,)),
    )
    await say(cu.broker, "cu", "ts-nobody", "ta-cu", *to_anchor)
    await say(cu.broker, "cu", "ta-nobody", f"ts-{cell}", *to_scheduler)
    for process, role, many in ((cu, "ta_cu", 4), (du, f"ts_{cell.replace('-', '_')}", 3)):
        async with httpx.AsyncClient(base_url=process.api_url, timeout=PATIENCE_S) as http:
            system = await Loop(world.cell, world.seen, http).until(
                "/v1/system",
                lambda one, name=f"{role}_forged_message", many=many: (
                    one["counters"].get(name, 0) >= many
                ),
            )
        assert system["counters"][f"{role}_forged_message"] == many
    assert _held(await _tasks(world)) == _held(before)


def _file(folder: Path) -> Path:
    return folder / f"{ROAMS}.json"
