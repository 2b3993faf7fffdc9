"""A real daemon between two real brokers with the gateways' relay: nothing lost, nothing twice."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from device_roam import Cells, Client, farewells, serve, statuses
from device_world import NODE, Store

from protocols.messages import HandoverCommand, HandoverFailed
from protocols.messages.mobility import CellPoint
from protocols.messages.task import InstanceState


@pytest.fixture
async def world(tmp_path: Path, store: Store) -> AsyncIterator[Cells]:
    one = Cells(tmp_path, store)
    await one.start()
    yield one
    await one.close()


def untouched(world: Cells) -> None:
    """Hold that the task was ready whenever the node came, and was never started again."""
    held = [one.holdings for _, _, one in world.births[1:]]
    assert all([one.state for one in each] == [InstanceState.READY] for each in held), held
    assert all(one.restarts == 0 for one in statuses(world))


@pytest.mark.parametrize("radios", [2, 1])
async def test_to_and_fro_under_a_stream_of_requests(world: Cells, radios: int) -> None:
    await serve(world, f"--radios={radios}")
    clients = [Client(world, one) for one in "ab"]
    done = []
    for number in range(20):
        for one in clients:
            await one.more()
        done.append(await world.hand_over("b" if number % 2 == 0 else "a"))
    found = [await world.times(one) for one in done]
    asked = [await one.end() for one in clients]
    for number, times in enumerate(found):
        assert (times.source, times.cell) == (("a", "b") if number % 2 == 0 else ("b", "a"))
        assert times.complete_ms is not None
        assert times.gap_ms is not None
        assert times.gap_ms >= times.apart_ms
    assert min(asked) > 20
    assert not any(one.doubled for one in clients)
    assert all(failure.retryable for one in clients for failure in one.failures)
    untouched(world)
    moved = [one.moved_to for cell in world.cells.values() for one in farewells(cell)]
    assert sorted(moved) == ["a"] * 10 + ["b"] * 10
    if radios == 2:
        assert {one.apart_ms for one in found} == {0.0}
    code, said = await world.agent.stop()
    assert code == 0, said
    assert "Traceback" not in said


async def test_a_lost_cell_is_left_and_its_return_changes_nothing(world: Cells) -> None:
    await serve(world)
    client = Client(world, "b")
    await world.cells["a"].broker.kill()
    await world.wait(lambda: world.where == "b")
    (birth,) = [one for name, _, one in world.births if name == "b"]
    assert birth.arrival is not None
    assert (birth.arrival.source, birth.arrival.attached) == ("a", False)
    await world.cells["a"].broker.start()
    await world.cells["a"].connected()
    await world.cells["b"].broker.kill()
    await world.wait(lambda: world.where == "a")
    await world.cells["b"].broker.start()
    await world.cells["b"].connected()
    assert await client.end()
    assert not client.doubled
    untouched(world)


async def test_a_target_without_a_scheduler_is_left_again(world: Cells) -> None:
    await serve(world)
    world.cells["b"].silent = True
    world.command("b")
    await world.wait(lambda: farewells(world.cells["b"]))
    await world.wait(lambda: len(world.births) == 2)
    name, _, birth = world.births[-1]
    assert birth.arrival is not None
    assert (name, birth.arrival.source) == ("a", "b")
    untouched(world)


async def test_kill_9_at_any_step(world: Cells) -> None:
    await serve(world)
    client = Client(world, "b")
    await client.more()
    world.command("b")
    await again(world)
    assert world.births[-1][2].arrival is None, "what was not finished is not gone on with"
    target = "a" if world.where == "b" else "b"
    await world.times(await world.hand_over(target))
    await again(world)
    assert world.where == target, "it comes to the cell that served it"
    assert await client.end()
    assert all(one.retryable for one in client.failures), client.failures


async def again(world: Cells) -> None:
    """Have the daemon die and begin anew, with what it holds."""
    await world.agent.stop(signal.SIGKILL)
    before = len(world.births)
    await world.agent.start("--cell=a")
    await world.wait(lambda: len(world.births) > before)
    assert [one.task for one in world.births[-1][2].holdings] == ["echo"]


async def test_a_broker_dies_while_the_node_goes_there(world: Cells) -> None:
    await serve(world)
    client = Client(world, "a")
    await client.more()
    await world.cells["b"].broker.kill()
    told = world.command("b")
    await world.wait(lambda: world.cells["a"].said(HandoverFailed))
    nowhere = CellPoint("b", "ts-b", ("carrier pigeon",))
    world.cells["a"].say(HandoverCommand("h0", NODE, nowhere, world.incarnation))
    await world.wait(lambda: len(world.cells["a"].said(HandoverFailed)) == 2)
    failed = world.cells["a"].said(HandoverFailed)
    assert [one.handover for one in failed] == [told.handover, "h0"]
    assert "carrier pigeon" in failed[1].reason
    await world.cells["b"].broker.start()
    await world.cells["b"].connected()
    world.command("b")
    await world.cells["a"].broker.kill()
    await world.wait(lambda: world.where == "b")
    await world.cells["a"].broker.start()
    await world.cells["a"].connected()
    assert await client.end()
    assert not client.doubled
    untouched(world)


async def test_who_keeps_its_address_is_served_first_and_has_its_link_switched_then(
    world: Cells, tmp_path: Path
) -> None:
    switch, switched = tmp_path / "switch", tmp_path / "switched"
    switch.write_text(f'#!/bin/sh\necho "$1" >> {switched}\ntest "$1" != a\n', encoding="utf-8")
    switch.chmod(0o755)
    await serve(world, "--address=keep", f"--switch={switch}")
    times = await world.times(await world.hand_over("b"))
    assert times.apart_ms == 0.0
    await world.wait(lambda: switched.is_file() and switched.read_text("utf-8") == "b\n")
    await world.hand_over("a")
    await world.wait(lambda: switched.read_text("utf-8") == "b\na\n")
    assert world.where == "a", "a link that did not follow is no reason to leave"
    untouched(world)


async def test_one_radio_has_its_link_switched(world: Cells, tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    switch.write_text(
        f"""#!/bin/sh
echo "$1 $2 $3" >> {tmp_path}/switched
test "$1" != a
""",
        encoding="utf-8",
    )
    switch.chmod(0o755)
    await serve(world, "--radios=1", f"--switch={switch}")
    times = await world.times(await world.hand_over("b"))
    assert times.gap_ms is None, "nobody asked"
    assert times.link_ms > 0.0
    assert times.apart_ms >= times.link_ms
    port = world.cells["b"].broker.port
    assert (tmp_path / "switched").read_text("utf-8") == f"b 127.0.0.1 {port}\n"
    told = world.command("a")
    await world.wait(lambda: world.cells["b"].said(HandoverFailed))
    (failed,) = world.cells["b"].said(HandoverFailed)
    assert (failed.handover, world.where) == (told.handover, "b")
    assert "ended with code 1" in failed.reason
    untouched(world)
