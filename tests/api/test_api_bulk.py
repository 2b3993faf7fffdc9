import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.api.content import Retention
from controller.records import ARTIFACT

DATA = bytes(range(256)) * 12_000


def address(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def held(cell: Any, what: str) -> list[str]:
    folder: Path = cell.folder / what
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


async def test_an_artifact_is_kept_recorded_and_fetched(cell: Any, http: httpx.AsyncClient) -> None:
    path = f"/v1/artifacts/{address(DATA)}"
    assert (await http.get(path)).status_code == 404
    headers = {"tona-cause": "push-1"}
    put = await http.put(f"{path}?name=detect&media=onnx", content=DATA, headers=headers)
    assert put.status_code == 201
    assert put.json() == {
        "digest": f"sha256:{address(DATA)}",
        "size_bytes": len(DATA),
        "name": "detect",
        "media": "onnx",
    }
    assert cell.causes == ["push-1"]
    got = await http.get(path)
    assert got.content == DATA
    assert got.headers["etag"] == f'"{address(DATA)}"'
    head = await http.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(DATA)))
    listed = (await http.get("/v1/artifacts?prefix=det")).json()
    assert [one["name"] for one in listed] == ["detect"]
    assert (cell.folder / "artifacts").stat().st_mode & 0o777 == 0o700


async def test_putting_again_changes_nothing_but_a_name_given_anew(
    cell: Any, http: httpx.AsyncClient
) -> None:
    path = f"/v1/artifacts/{address(DATA)}"
    statuses = [
        (await http.put(f"{path}{query}", content=DATA)).status_code
        for query in ("?name=a&media=wasm", "", "?name=a", "?name=b")
    ]
    assert statuses == [201, 200, 200, 200]
    assert len(cell.causes) == 2
    record = cell.registry.model.get(ARTIFACT, f"sha256:{address(DATA)}")
    assert (record.name, record.media) == ("b", "wasm")


@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=3000000-", 3_000_000, 3_071_999),
        ("bytes=-5", 3_071_995, 3_071_999),
        ("bytes=3071999-9999999", 3_071_999, 3_071_999),
    ],
)
async def test_a_range_is_served(
    http: httpx.AsyncClient, range_: str, first: int, last: int
) -> None:
    path = f"/v1/blobs/{address(DATA)}"
    await http.put(path, content=DATA)
    response = await http.get(path, headers={"range": range_})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {first}-{last}/{len(DATA)}"
    assert response.content == DATA[first : last + 1]


@pytest.mark.parametrize(
    ("range_", "status"),
    [("bytes=3072000-", 416), ("bytes=5-2", 400), ("pages=1-2", 400), ("bytes=", 400)],
)
async def test_a_range_that_is_none_is_one_sentence(
    http: httpx.AsyncClient, range_: str, status: int
) -> None:
    path = f"/v1/blobs/{address(DATA)}"
    await http.put(path, content=DATA)
    response = await http.get(path, headers={"range": range_})
    assert response.status_code == status
    assert response.headers["content-range"] == f"bytes */{len(DATA)}"
    assert "the range does not lie within" in response.json()["error"]["text"]


async def test_a_fetch_that_broke_off_is_resumed_only_on_the_same_content(
    http: httpx.AsyncClient,
) -> None:
    path = f"/v1/blobs/{address(DATA)}"
    await http.put(path, content=DATA)
    same = {"range": "bytes=1000-", "if-range": f'"{address(DATA)}"'}
    other = {"range": "bytes=1000-", "if-range": '"something else"'}
    assert (await http.get(path, headers=same)).content == DATA[1000:]
    assert (await http.get(path, headers=other)).content == DATA


async def test_a_wrong_digest_leaves_nothing(cell: Any, http: httpx.AsyncClient) -> None:
    for what in ("blobs", "artifacts"):
        response = await http.put(f"/v1/{what}/{address(b'other')}", content=DATA)
        assert response.status_code == 400
        text = response.json()["error"]["text"]
        assert text.startswith(f"the content has SHA-256 {address(DATA)}, the address says")
        assert held(cell, what) == []
    assert cell.causes == []


async def test_a_wrong_content_cannot_harm_the_right_one(
    cell: Any, http: httpx.AsyncClient
) -> None:
    path = f"/v1/blobs/{address(DATA)}"
    await http.put(path, content=DATA)
    assert (await http.put(path, content=b"forged")).status_code == 400
    assert (await http.get(path)).content == DATA
    assert held(cell, "blobs") == [address(DATA)]


async def test_an_upload_that_breaks_off_leaves_nothing(cell: Any, http: httpx.AsyncClient) -> None:
    _, writer = await asyncio.open_connection(*cell.address)
    head = f"PUT /v1/blobs/{address(DATA)} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    writer.write(f"{head}Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:-1])
    await writer.drain()
    await cell.until(lambda: bool(held(cell, "blobs")))
    (part,) = held(cell, "blobs")
    assert part.startswith("incoming/")
    assert (await http.get(f"/v1/blobs/{address(DATA)}")).status_code == 404
    writer.close()
    await writer.wait_closed()
    await cell.until(lambda: not held(cell, "blobs"))
    assert (await http.put(f"/v1/blobs/{address(DATA)}", content=DATA)).status_code == 201


async def test_two_uploads_of_the_same_content_at_once_both_succeed(
    cell: Any, http: httpx.AsyncClient
) -> None:
    gate = asyncio.Event()

    async def body() -> Any:
        yield DATA[:2_000_000]
        await gate.wait()
        yield DATA[2_000_000:]

    path = f"/v1/artifacts/{address(DATA)}"
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        puts = [group.create_task(http.put(path, content=body())) for _ in range(2)]
        await cell.until(lambda: len(held(cell, "artifacts")) == 2)
        gate.set()
    assert [one.result().status_code for one in puts] == [201, 201]
    assert held(cell, "artifacts") == [address(DATA)]
    assert (await http.get(path)).content == DATA


async def test_a_full_disk_is_said_and_harms_nothing(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = f"/v1/blobs/{address(b'old')}"
    await http.put(old, content=b"old")

    def full(_descriptor: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("controller.api.content.os.write", full)
    response = await http.put(f"/v1/blobs/{address(DATA)}", content=DATA)
    monkeypatch.undo()
    assert response.status_code == 507
    error = response.json()["error"]
    assert error["blame"] == "environment"
    assert error["text"].startswith("the disk of the cell's store is full: free space")
    assert held(cell, "blobs") == [address(b"old")]
    assert (await http.get(old)).content == b"old"


async def test_an_announced_upload_that_cannot_fit_is_refused_before_it_begins(
    cell: Any, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.api.content.RESERVE_BYTES", 1 << 62)
    response = await http.put(f"/v1/blobs/{address(DATA)}", content=DATA)
    assert response.status_code == 507
    assert held(cell, "blobs") == []


async def test_contents_are_bounded_announced_or_not(cell: Any, http: httpx.AsyncClient) -> None:
    cell.server.api.bulk.blobs.max_bytes = len(DATA) - 1

    async def stream() -> Any:
        for start in range(0, len(DATA), 65536):
            yield DATA[start : start + 65536]

    for content in (DATA, stream()):
        response = await http.put(f"/v1/blobs/{address(DATA)}", content=content)
        assert response.status_code == 413
    assert held(cell, "blobs") == []


async def test_uploads_at_once_are_bounded(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.api.bulk.MAX_UPLOADS", 0)
    response = await http.put(f"/v1/blobs/{address(DATA)}", content=DATA)
    assert response.status_code == 503


async def test_blobs_leave_when_they_are_too_many_and_stay_counted_over_a_restart(
    cell: Any, http: httpx.AsyncClient
) -> None:
    cell.server.api.bulk.retention = Retention(25, 1000.0)
    blobs = [bytes([number]) * 10 for number in range(3)]
    for blob in blobs:
        await http.put(f"/v1/blobs/{address(blob)}", content=blob)
    assert held(cell, "blobs") == sorted(address(blob) for blob in blobs[1:])
    os.utime(cell.folder / "blobs" / address(blobs[1]), (1, 1))
    (cell.folder / "blobs" / "incoming" / "left").write_bytes(b"from a crash")
    again = type(cell)(cell.folder)
    again.server.api.bulk.prepare()
    # What was written before the machine started may never have reached the disk.
    assert again.server.api.bulk.retention.size_bytes == 10
    assert held(cell, "blobs") == [address(blobs[2])]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 10), st.integers(0, 5))),
    st.integers(0, 30),
    st.integers(0, 10),
)
def test_what_is_kept_is_young_small_and_the_newest(
    puts: list[tuple[str, int, int]], max_bytes: int, max_age: int
) -> None:
    retention = Retention(max_bytes, max_age)
    kept: dict[str, tuple[int, int]] = {}
    now = 0
    for name, size, pause in puts:
        now += pause
        retention.add(name, size, now)
        kept.pop(name, None)
        kept[name] = (size, now)
        gone = retention.sweep(now)
        assert gone == list(kept)[: len(gone)]
        for one in gone:
            del kept[one]
        assert retention.size_bytes == sum(size for size, _ in kept.values()) <= max_bytes
        assert all(now - since <= max_age for _, since in kept.values())
