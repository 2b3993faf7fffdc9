"""Every call is in the log of its node, on real processes: read, checked, and after kill -9."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from loop_cell import Loop, running_loop

import tona
from device_agent.core.ledger import BATCH_RECORDS

pytestmark = pytest.mark.timeout(240)


async def audit(loop: Loop, task: str, **asked: Any) -> Any:
    query = "&".join(f"{name}={value}" for name, value in {"limit": 1000, **asked}.items())
    return await loop.get(f"/v1/tasks/{task}/audit?{query}")


async def test_every_call_is_logged_and_what_is_changed_shows(tmp_path: Path) -> None:
    async with running_loop(tmp_path, 1, "embedded") as loop:
        [task] = await loop.submit("echo", 1)
        name = task["spec"]["task"]
        async with tona.connect(loop.running.api_url, agent="planner") as client:
            sent = BATCH_RECORDS + 20
            for at in range(sent):
                await _ask(client, at)
            await _check_stats(loop, task)
            os.kill(loop.cell.pid("node-1"), signal.SIGKILL)
            await _ask(client, sent)
        found = await audit(loop, name)
        assert (found["checked"], found["problems"]) == (["node-1"], {})
        *before, last = _places(found)
        assert last == sent + 1
        # After a crash a request may run twice, and each run is logged.
        before = [one for one in before if one != last]
        assert sent - BATCH_RECORDS < len(before) <= sent
        assert before == list(range(1, len(before) + 1)), "what is lost is the newest"
        for field, values in (
            ("verdict", {"ok"}),
            ("plane", {"user"}),
            ("tenant", {"default"}),
            ("agent", {"planner"}),
        ):
            assert {one[field] for one in found["calls"]} == values
        assert len({one["user"] for one in found["calls"]}) == 1
        operations = await loop.get("/v1/audit?operation=usecase.submit")
        assert [(one["who"], one["plane"], one["verdict"]) for one in operations] == [
            ("local", "control", "ok")
        ]
        # The controller has heard of the head by now: what is before it cannot be changed.
        [path] = (loop.cell.plan.folder / "node-1" / "calls").iterdir()
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content)
        found = await audit(loop, name)
        assert found["checked"] == []
        assert "were changed" in found["problems"]["node-1"]


async def _check_stats(loop: Loop, task: Any) -> None:
    """Wait until what the node reports of the calls so far is seen, and look at it."""
    path = f"/v1/tasks/{task['spec']['task']}/stats"
    stats = await loop.until(
        path, lambda stats: stats["versions"] and stats["versions"][0]["calls"] >= BATCH_RECORDS / 2
    )
    [version] = stats["versions"]
    assert version["digest"] == task["spec"]["manifest"]["artifact"]["digest"]
    assert version["run_ms"]["p99"] >= version["run_ms"]["p50"] > 0
    assert version["cpu_ms"]["p50"] > 0
    assert version["peak_bytes"] > 0


def _places(found: Any) -> list[int]:
    """Return the places of the logged requests among all of their client, the oldest first."""
    return [int(one["request"].rpartition("-")[2]) for one in reversed(found["calls"])]


async def _ask(client: tona.AsyncClient, at: int) -> None:
    await client.invoke("echo", {"x": f"{at}".encode()}, deadline_s=60)
