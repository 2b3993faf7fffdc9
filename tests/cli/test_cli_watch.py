"""What `tona fleet watch` prints where its output is no terminal."""

import asyncio
import os
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from controller.records import NodeView
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Inventory
from tona.cli import fleet

BARE = Inventory("generic-x86-64", "x86_64", "Linux", 4, 1000, 1)


def view(node: str, state: NodeState = NodeState.ONLINE, **more: Any) -> NodeView:
    return NodeView(node=node, state=state, scheduler="ts", inventory=BARE, cell="a", **more)


class _Api:
    """Lists the nodes of the time; its watch tells what is queued, and then nothing more."""

    def __init__(self, *listings: list[NodeView], changes: list[Any] = []) -> None:  # noqa: B006 - it is read alone
        self.listings = list(listings)
        self.changes = changes
        self.calm = asyncio.Event()

    async def listing(self, operation: str) -> tuple[list[NodeView], str]:
        assert operation == "fleet.status"
        return self.listings.pop(0), "1"

    async def watch(self, kind: str, token: str) -> AsyncGenerator[Any, None]:
        assert (kind, token) == ("fleet", "1")
        for one in self.changes:
            yield one
        self.calm.set()
        await asyncio.Event().wait()


def change(node: str, value: NodeView | None) -> Any:
    return SimpleNamespace(key=node, value=value)


async def told(api: _Api, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what was printed when nothing more changes."""
    printing = asyncio.ensure_future(fleet._print_lines(api))
    await api.calm.wait()
    printing.cancel()
    await asyncio.gather(printing, return_exceptions=True)
    return capsys.readouterr().out.splitlines()


async def test_each_node_has_a_line_and_each_change_that_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = [
        change("n1", view("n1", silent_ms=7)),
        change("n1", view("n1", NodeState.LOST)),
        change("n\x1b2", view("n\x1b2")),
        change("n1", None),
    ]
    lines = await told(_Api([view("n1")], changes=changes), capsys)
    found = [one.split("  cell")[0] for one in lines]
    assert found == [
        "n1  online",
        "n1  lost",
        "n\N{REPLACEMENT CHARACTER}2  online",
        "n1  forgotten",
    ]


async def test_what_changed_while_nobody_listened_is_told_afterwards(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = [view("n1"), view("n2")]
    after = [view("n2", NodeState.LOST), view("n3")]
    lines = await told(_Api(before, after, changes=[None]), capsys)
    found = [one.split("  cell")[0] for one in lines]
    assert found == ["n1  online", "n2  online", "n1  forgotten", "n2  lost", "n3  online"]


async def test_a_pipe_that_nobody_reads_any_more_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there, here = os.pipe()
    with os.fdopen(here, "w", encoding="utf-8") as out:
        monkeypatch.setattr("sys.stdout", out)
        printing = asyncio.ensure_future(fleet._print_lines(_Api([view("n1")])))
        assert b"n1  online" in await asyncio.to_thread(os.read, there, 1000)
        os.close(there)
        await printing
