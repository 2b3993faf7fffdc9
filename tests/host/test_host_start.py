"""The first moment of a controller process: nobody is told less than it knows."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests_support import INVENTORY

from controller.config import Config
from controller.decider import Record
from controller.gateway import Gateway
from controller.records import NODE, NodeRecord
from controller.store import SqliteStore
from protocols.errors import UserError

WAIT_S = 60
MEANWHILE_S = 0.3
"""For which a caller would have to get no answer, were there one."""


async def test_what_is_durable_is_known_to_the_first_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SqliteStore.load
    asked: list[asyncio.Task[httpx.Response]] = []
    gateway = Gateway(Config(data=str(tmp_path / "cell"), api_port=0, broker_port=0))
    async with httpx.AsyncClient(timeout=WAIT_S) as http:

        async def slowly(store: SqliteStore) -> Any:
            node = NodeRecord("n1", "1", "b", INVENTORY)
            await store.append(gateway._owner_epoch, None, [Record(NODE, "n1", node, "test")])
            assert gateway._api is not None
            assert gateway._api._listener is not None
            port = gateway._api._listener.getsockname()[1]
            asked.append(asyncio.create_task(http.get(f"http://127.0.0.1:{port}/v1/nodes/n1")))
            await asyncio.wait(asked, timeout=MEANWHILE_S)
            assert not asked[0].done()
            return await load(store)

        monkeypatch.setattr(SqliteStore, "load", slowly)
        try:
            await gateway.start()
            async with asyncio.timeout(WAIT_S):
                answer = await asked[0]
        finally:
            await gateway.stop()
    assert (answer.status_code, answer.json()["node"]) == (200, "n1")


async def test_a_folder_in_use_is_refused_and_its_controller_owns_the_store_on(
    tmp_path: Path,
) -> None:
    config = Config(data=str(tmp_path / "cell"), api_port=0, broker_port=0)
    first, second = Gateway(config), Gateway(config)
    try:
        await first.start()
        with pytest.raises(UserError, match=r"cell: another controller \(process \d+\) runs"):
            await second.start()
        await second.stop()
        record = Record(NODE, "n1", NodeRecord("n1", "1", "b", INVENTORY), "test")
        assert first._store is not None
        await first._store.append(first._owner_epoch, None, [record])
    finally:
        await first.stop()
    third = Gateway(config)
    try:
        await third.start()
    finally:
        await third.stop()


@pytest.mark.parametrize("whose", ["API", "broker"])
async def test_a_taken_port_is_found_before_the_store_is_touched(
    whose: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"api_port": 0, "broker_port": 0} | {f"{whose.lower()}_port": port}
        gateway = Gateway(Config(data=str(tmp_path), **ports))
        with pytest.raises(UserError, match=f"the {whose} cannot listen on 127.0.0.1 port {port}"):
            await gateway.start()
        await gateway.stop()
    assert not (tmp_path / "store.sqlite").exists()
