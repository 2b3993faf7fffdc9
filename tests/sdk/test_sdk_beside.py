"""A client beside a node: whom it asks when its service has gone, and nobody told it."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sdk_cell import CELL, Cell

from protocols.messages import Route
from tona import beside
from tona.beside import BesideClient
from tona.target import find
from tona.where import CellFound, Found


@pytest.fixture
async def client(cell: Cell, tmp_path: Path) -> AsyncIterator[BesideClient]:
    broker = cell.system["broker"]
    file = tmp_path / "ue-1.json"
    file.write_text(json.dumps({"node": "ue-1", "cell": CELL, "broker": broker}), "utf-8")
    target = replace(await find(cell.url), api_url=cell.url)
    made = BesideClient(target, file)
    await made.open()
    yield made
    await made.close()


class Controller:
    """Says where services are, one answer after the other; the last one stays."""

    def __init__(self, client: BesideClient, cells: list[str]) -> None:
        self.looked = 0
        self.cells = cells
        assert client._where is not None
        client._where._ask = self._ask  # type: ignore[method-assign] - of the controller

    async def _ask(self, _service: str) -> Found:
        self.looked += 1
        cell = self.cells.pop(0) if len(self.cells) > 1 else self.cells[0]
        return Found(known=True, cell=CellFound(cell, ""))


@pytest.mark.parametrize("says", ["nothing", "none"])
async def test_a_service_that_its_cell_knows_no_more_is_looked_for_again(
    client: BesideClient, says: str
) -> None:
    controller = Controller(client, ["c2", CELL])
    if says == "none":
        asked = client._ask_route

        def refused(command: Any) -> None:
            home = client._home(command.service)
            asked(command)
            if home == "c2":
                reason = "none of that name was submitted here"
                client._routed_to(Route(command.service, 1, None, 30_000, reason=reason))

        client._on[beside.AskRoute] = refused
    async with asyncio.timeout(60):
        result = await client.invoke("s", {"x": b"hello"})
    assert bytes(result.outputs["y"]) == b"hello"
    assert client._homes["s"] == CELL
    assert controller.looked == 2


async def test_a_controller_is_not_asked_for_every_question(
    client: BesideClient,
) -> None:
    controller = Controller(client, ["c2"])
    with pytest.raises(Exception, match=r"no answer|not served"):
        await client.invoke("s", {"x": b"hello"}, deadline_s=3.0)
    assert 2 <= controller.looked <= 3, "once for the request, and then now and then"
