"""Two cells with a broker each: what is asked in one is answered in the other."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from real_brokers import Broker
from transport_peers import Peer

from controller.broker.address import Address
from controller.decider import Abroad, Carry, Event, Role, ToInvoke
from controller.decider import Send as Say
from controller.host.host import Host
from controller.lines import Lines, Place, Plan
from protocols import topics
from protocols.errors import UserError
from protocols.messages import Invoke, Result, Route, RouteRequest
from protocols.messages.invocation import REQUEST, Edge, Step
from protocols.messages.invocation import Plan as Steps
from protocols.messages.mobility import CellPoint
from protocols.topics import Channel, Party, Speaker, Topic, build
from protocols.transport.session import Inbound
from tona.beside import BesideClient
from tona.client import AsyncClient
from tona.target import at_cell

Make = Callable[..., Peer]
CLIENT = build("west", Party.CLIENT, "c1", Channel.REPLY)
ASKED = Invoke("r1", "service", 5000, {}, str(CLIENT))
ANSWER = Result("r1", 1)
PLAN = Steps(
    "s",
    1,
    (Step("s.a", "n1", 1, (Edge("x", REQUEST, "x"),), ("y",)),),
    (Edge("y", "s.a", "y"),),
)


class _Roles:
    """The part of a host that lines speak to."""

    def __init__(self, role: str) -> None:
        self.roles = {role: Role.TS}
        self.heard: list[Event] = []

    def post(self, _role: str, event: Event) -> None:
        # What is measured of the other cells comes by the clock.
        if not isinstance(event, Abroad):
            self.heard.append(event)


class _Links:
    def wired(self) -> None:
        """Nothing waits."""


class Gateway:
    """The lines of one cell."""

    def __init__(self, cell: str, broker: Broker) -> None:
        self.cell, self.broker = cell, broker
        self.host = _Roles(f"ts-{cell}")
        plan = Plan(
            identity=f"gateway-{cell}",
            home=Place(Address("127.0.0.1", broker.port, tls=False), cell),
            uplink=None,
            direct=(),
            epoch=1,
            meet=lambda url, cell: Place(Address("127.0.0.1", int(url), tls=False), cell),
        )
        host: Host = self.host  # type: ignore[assignment] - all that lines need of it
        self.lines = Lines(plan, host, _Links())  # type: ignore[arg-type] - the same
        self.tasks = self.lines.run()

    @property
    def point(self) -> CellPoint:
        return CellPoint(self.cell, f"ts-{self.cell}", (str(self.broker.port),))


def inbox(cell: str) -> Topic:
    return build(cell, Party.NODE, "n1", Channel.INVOKE)


@pytest.fixture
async def cells(broker: Broker, tmp_path: Path) -> AsyncIterator[tuple[Gateway, Gateway]]:
    second = Broker("iotcore", tmp_path)
    await second.start()
    west, east = Gateway("west", broker), Gateway("east", second)
    west.lines.reach([west.point, east.point])
    east.lines.reach([west.point, east.point])
    yield west, east
    for one in (west, east):
        await one.lines.close()
        for task in one.tasks:
            await task
    await second.close()


async def _joined(speaker: Peer, gateway: Gateway, cell: str) -> None:
    away = gateway.lines._session_at(cell)
    assert away is not None
    await speaker.reaches(lambda: away.connected and gateway.lines.home.connected)


async def test_a_client_in_one_cell_is_answered_by_a_node_in_the_other(
    cells: tuple[Gateway, Gateway], peer: Make
) -> None:
    west, east = cells
    client = peer(west.broker.port, "c1", Speaker.CLIENT, [str(CLIENT)])
    node = peer(east.broker.port, "n1", Speaker.NODE, [str(inbox("east"))])
    assert (await client.up(), await node.up()) == (1, 1)
    await _joined(client, west, "east")
    await _joined(client, east, "west")
    assert client.session.send(inbox("east"), ASKED, cause="asks", tenant="t", correlation=b"k")
    heard = await node.hear()
    assert (heard.topic, heard.frame.body) == (inbox("east"), ASKED)
    assert (heard.frame.sender, heard.frame.tenant, heard.correlation) == ("c1", "t", b"k")
    assert node.session.send(CLIENT, ANSWER, cause="asks", tenant="t", correlation=b"k")
    answered = await client.hear()
    assert (answered.frame.body, answered.frame.sender) == (ANSWER, "n1")
    assert answered.correlation == b"k"
    assert not west.host.heard
    assert not east.host.heard


async def test_what_comes_for_a_node_that_has_left_is_carried_after_it(
    cells: tuple[Gateway, Gateway], peer: Make
) -> None:
    west, east = cells
    client = peer(west.broker.port, "c1", Speaker.CLIENT, [str(CLIENT)])
    node = peer(east.broker.port, "n1", Speaker.NODE, [str(inbox("east"))])
    watch = peer(west.broker.port, "w", Speaker.CONTROLLER, [str(inbox("west"))])
    assert (await client.up(), await node.up(), await watch.up()) == (1, 1, 1)
    await _joined(client, west, "east")
    west.lines.carry(Carry("n1", "east", 60_000))
    # The filter has no acknowledgement to wait for: what it misses is asked again.
    for attempt in range(1, 100):
        client.session.send(inbox("west"), Invoke("r2", "s", 1, {}, attempt=attempt), cause="a")
        await watch.hear()
        if west.lines.relay.counters["relay_carried"]:
            break
    assert (await node.hear()).frame.body.request == "r2"


async def test_a_role_speaks_to_a_node_of_another_cell(
    cells: tuple[Gateway, Gateway], peer: Make
) -> None:
    west, east = cells
    node = peer(east.broker.port, "n1", Speaker.NODE, [str(inbox("east"))])
    assert await node.up() == 1
    await _joined(node, west, "east")
    assert west.lines.send(Say(ToInvoke("n1", "east"), ASKED, "c"), "ts-west")
    assert (await node.hear()).frame.body == ASKED
    assert not west.lines.send(Say(ToInvoke("n1", "north"), ASKED, "c"), "ts-west")


class Served:
    """A service in the west: its scheduler, and its node, which counts its runs."""

    def __init__(self, west: Gateway, peer: Make) -> None:
        asking = build("west", Party.SERVICE, "s", Channel.REQUEST)
        self.runs: list[str] = []
        port = west.broker.port
        inboxes = [str(inbox("west"))]
        self.node = peer(port, "n1", Speaker.NODE, inboxes, on_message=self._answer)
        asked = [str(asking)]
        self.scheduler = peer(port, "ts", Speaker.CONTROLLER, asked, on_message=self._route)

    def _answer(self, inbound: Inbound) -> None:
        invoke = inbound.frame.body
        assert isinstance(invoke, Invoke)
        self.runs.append(invoke.request)
        outputs = {"y": invoke.inputs["x"]}
        answer = Result(invoke.request, invoke.attempt, outputs)
        self.node.session.send(topics.parse(invoke.reply_to), answer, cause="a")

    def _route(self, inbound: Inbound) -> None:
        asked = inbound.frame.body
        assert isinstance(asked, RouteRequest)
        said = Route("s", 1, PLAN, 30_000, inputs=("x",))
        self.scheduler.session.send(topics.parse(asked.reply_to), said, cause="a")


@pytest.fixture
async def served(cells: tuple[Gateway, Gateway], peer: Make) -> Served:
    west, east = cells
    one = Served(west, peer)
    assert (await one.node.up(), await one.scheduler.up()) == (1, 1)
    await _joined(one.node, east, "west")
    await _joined(one.node, west, "east")
    return one


async def test_a_client_that_moves_is_answered_throughout(
    cells: tuple[Gateway, Gateway], served: Served
) -> None:
    west, east = cells
    client = AsyncClient(at_cell("west", "127.0.0.1", west.broker.port))
    await client.open()
    try:
        answers = []
        for number in range(60):
            if number in (10, 40):
                there = east if number == 10 else west
                client.move(there.cell, "127.0.0.1", there.broker.port)
            answers.append((await client.invoke("s", {"x": str(number)})).text("y"))
            if number in (20, 50):
                await served.node.reaches(lambda cell=there.cell: client.cell == cell)
        assert answers == [str(number) for number in range(60)]
        assert len(set(served.runs)) == 60
        assert west.lines.relay.counters["relay_carried"] >= 19
    finally:
        await client.close()


def _written(path: Path, here: Gateway, there: Gateway | None = None) -> None:
    def point(one: Gateway) -> dict[str, str]:
        return {"cell": one.cell, "broker": f"mqtt://127.0.0.1:{one.broker.port}"}

    said = {"node": "n1", **point(here), "next": point(there) if there else None}
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(said))
    beside.rename(path)


async def test_a_client_beside_a_node_goes_where_that_goes(
    cells: tuple[Gateway, Gateway], served: Served, tmp_path: Path
) -> None:
    west, east = cells
    path = tmp_path / "attachment.json"
    target = at_cell("west", "127.0.0.1", west.broker.port)
    with pytest.raises(UserError, match="--attachment"):
        BesideClient(target, path)
    path.write_text("{}")
    with pytest.raises(UserError, match="does not say"):
        BesideClient(target, path)
    _written(path, east)
    client = BesideClient(target, path)
    await client.open()
    try:
        assert client.cell == "east"
        assert (await client.invoke("s", {"x": "1"})).text("y") == "1"
        _written(path, east, west)
        await served.node.reaches(lambda: client.cell == "west")
        path.write_text("what a crash has left")
        assert (await client.invoke("s", {"x": "2"})).text("y") == "2"
        _written(path, west)
        _written(path, east)
        await served.node.reaches(lambda: client.cell == "east")
        assert (await client.invoke("s", {"x": "3"})).text("y") == "3"
        assert len(served.runs) == 3
    finally:
        await client.close()


async def test_a_cell_out_of_reach_is_left(cells: tuple[Gateway, Gateway], peer: Make) -> None:
    west, _ = cells
    watch = peer(west.broker.port, "w", Speaker.CONTROLLER, [])
    assert await watch.up() == 1
    await _joined(watch, west, "east")
    left = west.lines._session_at("east")
    assert left is not None
    west.lines.reach([])
    assert west.lines._session_at("east") is None
    await watch.reaches(lambda: not left.connected)
