"""Artifacts between neighbours: by the real processes of both, over HTTP and over TLS."""

import asyncio
import hashlib
import http.client
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from artifact_store import Store
from artifact_trust import Cell

from controller.trust.authority import Authority
from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.fetch import NEIGHBOURS_FROM_BYTES, Fetcher, TlsFiles
from device_agent.artifacts.sharing import Sharing
from device_agent.executors.door import ExecutorFailure
from device_agent.executors.process import PROGRAMS
from protocols.errors import EnvironmentFailure
from protocols.manifest import ArtifactRef
from protocols.topics import Speaker

# A child program finds its modules here; it is imported for one of its bounds.
sys.path.append(str(PROGRAMS))

from device_agent.artifacts.share_child import CONNECTIONS_MAX

LARGE = os.urandom(NEIGHBOURS_FROM_BYTES + 100_000)


@pytest.fixture
async def neighbour(tmp_path: Path) -> AsyncIterator[tuple[Sharing, Path]]:
    folder = tmp_path / "neighbour"
    folder.mkdir()
    one = Sharing("127.0.0.1", 0, folder)
    yield one, folder
    one.close()


def put(folder: Path, data: bytes, name: str = "") -> ArtifactRef:
    hex_ = name or hashlib.sha256(data).hexdigest()
    (folder / hex_).write_bytes(data)
    return ArtifactRef(f"sha256:{hex_}", len(data))


def offer(store: Store, ref: ArtifactRef, data: bytes, *urls: str) -> None:
    path = f"/v1/artifacts/{ref.digest[7:]}"
    store.content[path] = data
    store.content[f"{path}/holders?but=me"] = json.dumps(urls).encode()


def fetched(store: Store) -> list[str]:
    """Return the ranges in which the store itself was asked for the artifact."""
    return [one[2] for one in store.asked if "holders" not in one[1] and "artifacts" in one[1]]


@pytest.fixture
async def me(cache: ArtifactCache, blobs: BlobFolder) -> AsyncIterator[Fetcher]:
    one = Fetcher(cache, blobs, node="me")
    yield one
    await one.close()


async def test_a_neighbour_serves_instead_of_the_store(
    me: Fetcher, store: Store, neighbour: tuple[Sharing, Path]
) -> None:
    sharing, folder = neighbour
    ref = put(folder, LARGE)
    offer(store, ref, LARGE, sharing.url)
    assert (await me.fetch_artifact(ref, [store.url])).read_bytes() == LARGE
    assert fetched(store) == []


async def test_what_a_neighbour_began_the_store_ends(
    me: Fetcher, cache: ArtifactCache, store: Store, neighbour: tuple[Sharing, Path]
) -> None:
    sharing, folder = neighbour
    ref = put(folder, LARGE)
    cache.part(ref.digest).write_bytes(LARGE[:1000])
    (folder / ref.digest[7:]).write_bytes(LARGE[:50_000])
    offer(store, ref, LARGE, "http://127.0.0.1:9", sharing.url)
    assert (await me.fetch_artifact(ref, [store.url])).read_bytes() == LARGE
    assert fetched(store) == ["bytes=50000-"]


@pytest.mark.parametrize("lie", ["other bytes", "longer", "nothing"])
async def test_a_neighbour_that_lies_costs_time_and_nothing_else(
    me: Fetcher, store: Store, neighbour: tuple[Sharing, Path], lie: str
) -> None:
    sharing, folder = neighbour
    ref = ArtifactRef(f"sha256:{hashlib.sha256(LARGE).hexdigest()}", len(LARGE))
    wrong = {"other bytes": bytes(len(LARGE)), "longer": LARGE + b"more", "nothing": b""}[lie]
    put(folder, wrong, ref.digest[7:])
    offer(store, ref, LARGE, sharing.url)
    assert (await me.fetch_artifact(ref, [store.url])).read_bytes() == LARGE


@pytest.mark.parametrize("said", [b"{}", b"[1, null]", b"\xff", b"[" * 9000])
async def test_nonsense_about_neighbours_is_ignored(me: Fetcher, store: Store, said: bytes) -> None:
    ref = ArtifactRef(f"sha256:{hashlib.sha256(LARGE).hexdigest()}", len(LARGE))
    offer(store, ref, LARGE)
    store.content[f"/v1/artifacts/{ref.digest[7:]}/holders?but=me"] = said
    assert (await me.fetch_artifact(ref, [store.url])).read_bytes() == LARGE


async def test_a_neighbour_says_nothing_of_who_signed(
    cache: ArtifactCache,
    blobs: BlobFolder,
    cell: Cell,
    trust: Path,
    store: Store,
    neighbour: tuple[Sharing, Path],
) -> None:
    sharing, folder = neighbour
    one = Fetcher(cache, blobs, trust=trust, node="me")
    try:
        ref = put(folder, LARGE)
        offer(store, ref, LARGE, sharing.url)
        with pytest.raises(ExecutorFailure, match="signed by nobody"):
            await one.fetch_artifact(ref, [store.url])
        cell.sign(LARGE)
        await one.fetch_artifact(ref, [store.url])
        assert fetched(store) == []
    finally:
        await one.close()


def get(sharing: Sharing, path: str, **headers: str) -> tuple[int, bytes]:
    host, port = sharing.url.partition("//")[2].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def test_only_whole_artifacts_are_served_and_nothing_beside_them(
    neighbour: tuple[Sharing, Path],
) -> None:
    sharing, folder = neighbour
    ref = put(folder, b"content")
    (folder / f".part-{'0' * 64}").write_bytes(b"half")
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / ("1" * 64)).symlink_to(folder.parent / "secret")
    good = f"/v1/artifacts/{ref.digest[7:]}"

    async def ask(path: str, **headers: str) -> tuple[int, bytes]:
        return await asyncio.to_thread(get, sharing, path, **headers)

    assert await ask(good) == (200, b"content")
    assert await ask(good, Range="bytes=3-") == (206, b"tent")
    assert (await ask(good, Range="bytes=9-"))[0] == 416
    for bad in (
        f"/v1/artifacts/.part-{'0' * 64}",
        f"/v1/artifacts/{'1' * 64}",
        "/",
        f"{good}/x",
        "/v1/artifacts/../secret",
        f"/v1/artifacts/{'2' * 64}",
    ):
        assert (await ask(bad))[0] == 404, bad


async def test_too_many_are_turned_away_and_the_process_leaves_when_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.sharing.IDLE_S", 0.1)
    ref = put(tmp_path, b"content")
    sharing = Sharing("127.0.0.1", 0, tmp_path)
    try:
        host, port = sharing.url.partition("//")[2].split(":")
        path = f"/v1/artifacts/{ref.digest[7:]}"
        assert (await asyncio.to_thread(get, sharing, path))[0] == 200
        held = [socket.create_connection((host, int(port))) for _ in range(CONNECTIONS_MAX)]
        with pytest.raises((http.client.HTTPException, OSError)):
            await asyncio.to_thread(get, sharing, path)
        for one in held:
            one.close()
        async with asyncio.timeout(60):
            while sharing._process is not None:  # noqa: ASYNC110 - its end is what is awaited
                await asyncio.sleep(0.05)
        assert (await asyncio.to_thread(get, sharing, path))[0] == 200
    finally:
        sharing.close()
    with pytest.raises(EnvironmentFailure, match="cannot listen for neighbours"):
        Sharing("192.0.2.1", 0, tmp_path)


async def test_over_tls_only_the_cells_own_are_served(
    tmp_path: Path, cache: ArtifactCache, blobs: BlobFolder, store: Store
) -> None:
    authority = Authority.init(tmp_path / "ca", "fleet")
    strange = Authority.init(tmp_path / "strange", "fleet")

    def files(issuer: Authority, name: str, *addresses: str) -> TlsFiles:
        bundle = issuer.issue(
            name, Speaker.NODE, "cell", broker_host="127.0.0.1", addresses=addresses
        )
        paths = [tmp_path / f"{name}-{part}.pem" for part in ("ca", "certificate", "key")]
        for path, pem in zip(
            paths, (bundle.ca_pem, bundle.certificate_pem, bundle.key_pem), strict=True
        ):
            path.write_text(pem)
        return TlsFiles(*paths)

    folder = tmp_path / "neighbour"
    folder.mkdir()
    ref = put(folder, LARGE)
    sharing = Sharing("127.0.0.1", 0, folder, files(authority, "n1", "127.0.0.1"))
    assert sharing.url.startswith("https://")
    offer(store, ref, LARGE, sharing.url)
    for tls, asked in ((files(strange, "x"), [""]), (files(authority, "n2"), [])):
        cache.drop(ref.digest)
        cache._verified.clear()
        store.asked.clear()
        one = Fetcher(cache, blobs, tls=tls, node="me")
        try:
            assert (await one.fetch_artifact(ref, [store.url])).read_bytes() == LARGE
        finally:
            await one.close()
        assert fetched(store) == asked
    sharing.close()
