"""A node with a certificate in force says again what was said in handovers: over TLS, in vain."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment_forger import Forger, Tape, Word
from deployment_identities import NAME, OBSERVER, OPERATOR, Identities
from deployment_world import World, running, staying
from loop_cell import PATIENCE_S, Loop, chain, echo_module
from real_brokers import MOSQUITTO

import tona
from protocols import topics
from protocols.messages import Birth, Death, HandoverCommand, HandoverComplete
from protocols.topics import Channel, Party
from protocols.transport.tls import client_context, load

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
]
VICTIM, REPLAYS = "ue-1", "ue-2"
"""They begin in du-1 and in du-2."""
NOT_AUTHORISED = 0x87


async def test_a_node_says_again_what_others_and_itself_have_said(tmp_path: Path) -> None:
    own = Identities(tmp_path, 2)
    look = client_context(load(own.file(OPERATOR)))
    config = staying(tmp_path)
    async with running(
        tmp_path, NAME, 2, "mosquitto", places=own.places, config=config, verify=look
    ) as world:
        await _submit(world, own)
        brokers = [(one.name, one.broker) for one in world.seen.processes]
        async with AsyncExitStack() as stack:
            # A command is heard by the node alone that it is for.
            tapes = [
                await stack.enter_async_context(Tape(brokers, client_context(load(own.file(one)))))
                for one in (OBSERVER, VICTIM, REPLAYS)
            ]
            client = await stack.enter_async_context(tona.connect(own.renewed(world)))
            for node, cells in ((VICTIM, ("du-2", "du-1")), (REPLAYS, ("du-1", "du-2"))):
                for cell in cells:
                    await world.hand_over(node, cell)
            await _are_over(world, tapes)
            for one in tapes:
                one.end()
            words = [word for one in tapes for word in one.words]
            before = await _standing(world)
            await client.invoke("device", {"x": b"before"}, deadline_s=PATIENCE_S)
            with Forger(brokers, client_context(load(own.file(REPLAYS)))) as forger:
                await _says_what_others_have_said(forger, words)
                await _says_what_others_have_said_as_its_own(world, forger, words, look)
                await _says_its_own_again(world, forger, words, look)
            assert await _standing(world) == before
            await client.invoke("device", {"x": b"after"}, deadline_s=PATIENCE_S)


async def _submit(world: World, own: Identities) -> None:
    """Have a task of its own run on the node that is spoken for."""
    module = echo_module()
    await own.publish(world, echo=module)
    document = json.loads(chain("device", 1, module))
    [service] = document["services"]
    service["tasks"][0]["nodes"], service["spares"] = [VICTIM], 0
    body = {"document": json.dumps(document), "format": "json"}
    (await world.http.post("/v1/usecases", json=body)).raise_for_status()
    await world.until(
        "/v1/tasks", lambda tasks: tasks and all(one["state"] == "running" for one in tasks)
    )


async def _are_over(world: World, tapes: list[Tape]) -> None:
    """Wait until nothing more comes of the handovers."""
    await world.until(
        "/v1/handovers",
        lambda seen: sum(one["state"] == "completed" for one in seen) >= 4,
    )
    wanted = {(node, cell) for node in (VICTIM, REPLAYS) for cell in ("du-1", "du-2")}
    cells, kinds = ("du-1", "du-2"), (HandoverComplete, Death)
    wanted = {(node, cell, kind) for node in (VICTIM, REPLAYS) for cell in cells for kind in kinds}
    async with asyncio.timeout(PATIENCE_S):
        while wanted - {  # noqa: ASYNC110 - the tape tells nobody
            (topics.parse(one.topic).name, one.cell, type(one.frame.body))
            for tape in tapes
            for one in tape.words
        }:
            await asyncio.sleep(0.05)


async def _says_what_others_have_said(forger: Forger, said: list[Word]) -> None:
    """On the topics of others: the broker lets none of it through, for each has its certificate."""
    kinds = (Birth, Death, HandoverCommand, HandoverComplete)
    words = [
        one
        for one in said
        if (isinstance(one.frame.body, kinds) and topics.parse(one.topic).name == VICTIM)
        or topics.parse(one.topic).channel in (Channel.COMMAND, Channel.INBOX)
    ]
    assert {type(one.frame.body) for one in words} >= set(kinds)
    codes = [await forger.says(one.cell, one.topic, one.payload) for one in words]
    assert codes == [NOT_AUTHORISED] * len(words)


async def _says_what_others_have_said_as_its_own(
    world: World, forger: Forger, said: list[Word], look: Any
) -> None:
    """On its own topic, where the broker lets it speak: the frame names somebody else."""
    words = [one for one in said if _presence(one, VICTIM)]
    assert {type(one.frame.body) for one in words} == {Birth, Death}
    before = await _counted(world, look, "mqtt_dropped_foreign")
    for one in words:
        topic = str(topics.build(one.cell, Party.NODE, REPLAYS, Channel.PRESENCE))
        assert await forger.says(one.cell, topic, one.payload) == 0
    await _until_counted(world, look, "mqtt_dropped_foreign", before + len(words))


async def _says_its_own_again(world: World, forger: Forger, said: list[Word], look: Any) -> None:
    """Its own old births and farewells, which it may well say: their incarnation is over."""
    own = [one for one in said if _presence(one, REPLAYS)]
    last = max(one.frame.incarnation for one in own)
    newest = {cell: max(w.frame.incarnation for w in own if w.cell == cell) for cell in _cells(own)}
    words = [one for one in own if one.frame.incarnation < last]
    # The last farewell in a cell changes nothing there, and is no news.
    late = [
        one
        for one in words
        if isinstance(one.frame.body, Birth) or one.frame.incarnation < newest[one.cell]
    ]
    assert {one.cell for one in late} == {"du-1", "du-2"}
    before = await _counted(world, look, "_late_incarnation")
    for one in words:
        assert await forger.says(one.cell, one.topic, one.payload) == 0
    await _until_counted(world, look, "_late_incarnation", before + len(late))


def _presence(word: Word, node: str) -> bool:
    topic = topics.parse(word.topic)
    return topic.channel is Channel.PRESENCE and topic.name == node


def _cells(words: list[Word]) -> set[str]:
    return {one.cell for one in words}


async def _counted(world: World, look: Any, what: str) -> int:
    """Return what all controllers have counted of something."""
    found = 0.0
    for process in world.seen.processes:
        url = process.api_url
        async with httpx.AsyncClient(base_url=url, verify=look, timeout=PATIENCE_S) as http:
            system = await Loop(world.cell, world.seen, http).get("/v1/system")
        found += sum(count for name, count in system["counters"].items() if name.endswith(what))
    return round(found)


async def _until_counted(world: World, look: Any, what: str, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await _counted(world, look, what) < wanted:  # noqa: ASYNC110 - counters tell nobody
            await asyncio.sleep(0.1)


async def _standing(world: World) -> tuple[Any, ...]:
    """Return what must not change: where nodes and tasks are, and the handovers there were."""
    tasks, fleet = await world.get("/v1/tasks"), await world.get("/v1/fleet")
    handovers = await world.get("/v1/handovers")
    return (
        [(one["node"], one["generation"], one["epoch"]) for one in tasks],
        sorted((one["node"], one["scheduler"]) for one in fleet),
        [(one["handover"], one["state"]) for one in handovers if one["by_hand"]],
    )
