"""Every attack of the TUF specification by a hostile store, against the real transfer process."""

import asyncio
import datetime as dt
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from artifact_store import Store
from artifact_trust import TRUST, Cell
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError
from tuf.api.metadata import Metadata

from controller.trust.repository import Repository
from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.fetch import Fetcher
from device_agent.executors.door import ExecutorFailure, Failed
from protocols.errors import Blame
from protocols.manifest import ArtifactRef


async def refused(fetcher: Fetcher, ref: ArtifactRef, store: Store, tenant: str = "default") -> Any:
    """Return the failure; not a byte of the artifact came or lies here."""
    before = len(store.asked)
    with pytest.raises(ExecutorFailure) as caught:
        await fetcher.fetch_artifact(ref, [store.url], tenant)
    assert not [one for one in store.asked[before:] if one[1].startswith("/v1/artifacts")]
    assert not fetcher._cache.has(ref.digest, ref.size_bytes)
    failed: Failed = caught.value.failed
    return failed


async def taken(fetcher: Fetcher, ref: ArtifactRef, store: Store) -> bytes:
    return (await fetcher.fetch_artifact(ref, [store.url])).read_bytes()


async def test_what_is_signed_runs(guarded: Fetcher, cell: Cell, store: Store) -> None:
    assert await taken(guarded, cell.sign(b"good"), store) == b"good"
    assert await taken(guarded, cell.sign(b"signed a moment later"), store)


async def test_unsigned_software_is_refused_with_what_to_do(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    failed = await refused(guarded, cell.offer(b"arbitrary"), store)
    assert (failed.blame, failed.retryable) == (Blame.USER, False)
    assert failed.text.endswith("is signed by nobody who may: sign it with `tona artifact sign`")


async def test_other_bytes_under_a_signed_name_are_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    ref = cell.sign(b"good")
    store.content[f"/v1/artifacts/{ref.digest[7:]}"] = b"evil"
    with pytest.raises(ExecutorFailure, match="not what its digest says"):
        await guarded.fetch_artifact(ref, [store.url])
    assert not guarded._cache.has(ref.digest, ref.size_bytes)


async def test_a_whole_repository_of_another_is_refused(
    guarded: Fetcher, store: Store, tmp_path: Path
) -> None:
    foreign = Cell(tmp_path / "foreign", store)
    ref = foreign.sign(b"evil")
    failed = await refused(guarded, ref, store)
    assert failed.blame is Blame.PEER
    assert "signed by 0/1 keys" in failed.text


async def test_an_older_state_is_refused_also_after_a_restart(
    guarded: Fetcher, cell: Cell, store: Store, blobs: BlobFolder, trust: Path
) -> None:
    cell.sign(b"vulnerable")
    old = cell.files()
    assert await taken(guarded, cell.sign(b"mended"), store)
    cell.show(old)
    ref = cell.offer(b"next")
    await guarded.close()
    again = Fetcher(guarded._cache, blobs, trust=trust)
    try:
        failed = await refused(again, ref, store)
        assert failed.blame is Blame.PEER
        assert "goes back behind what was seen" in failed.text
    finally:
        await again.close()


async def test_an_older_targets_under_a_new_timestamp_is_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    """Rollback by whoever has stolen the key of snapshot and timestamp."""
    cell.sign(b"vulnerable")
    old, version = cell.sealed("alice", cell.version("alice")), cell.version("alice")
    assert await taken(guarded, cell.sign(b"mended"), store)
    cell.reseal("alice", old, version)
    assert "goes back" in (await refused(guarded, cell.offer(b"next"), store)).text


async def test_a_frozen_store_is_refused_and_what_was_verified_still_starts(
    guarded: Fetcher, cell: Cell, store: Store, blobs: BlobFolder, trust: Path
) -> None:
    ref = cell.sign(b"verified before")
    assert await taken(guarded, ref, store)
    await guarded.close()
    cell.now -= dt.timedelta(days=30)
    cell.repository.rotate("online")
    cell.show()
    new = cell.sign(b"kept from us")
    later = Fetcher(ArtifactCache(guarded._cache.folder, 1 << 20, time.time()), blobs, trust=trust)
    try:
        failed = await refused(later, new, store)
        assert failed.blame is Blame.ENVIRONMENT
        assert failed.retryable
        assert "expired" in failed.text
        assert "clock" in failed.text
        assert await taken(later, ref, store) == b"verified before"
    finally:
        await later.close()


async def test_parts_of_different_states_are_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    cell.sign(b"one")
    before = cell.files()
    ref = cell.sign(b"two")
    files = cell.files()
    numbers = sorted(int(one[len(TRUST) :].split(".")[0]) for one in files if "snapshot" in one)
    files[f"{TRUST}{numbers[-1]}.snapshot.json"] = before[f"{TRUST}{numbers[-2]}.snapshot.json"]
    cell.show(files)
    assert "do not belong together" in (await refused(guarded, ref, store)).text
    files = cell.files()
    version = cell.version("alice")
    files[f"{TRUST}{version}.alice.json"] = files[f"{TRUST}{version - 1}.alice.json"]
    cell.show(files)
    failed = await refused(guarded, ref, store)
    assert failed.blame is Blame.PEER
    assert "do not belong together" in failed.text


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "snapshot", "alice"])
async def test_metadata_without_end_is_refused(
    guarded: Fetcher, cell: Cell, store: Store, name: str
) -> None:
    ref = cell.sign(b"good")
    if "." not in name:
        names = [one[len(TRUST) :] for one in cell.files() if f".{name}." in one]
        name = max(names, key=lambda one: int(one.split(".")[0]))
    store.content.setdefault(TRUST + name, b"{")
    store.always[TRUST + name] = "endless"
    failed = await refused(guarded, ref, store)
    assert failed.blame is Blame.PEER
    assert "it has no end" in failed.text


async def test_an_artifact_without_end_is_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    ref = cell.sign(b"good")
    store.always[f"/v1/artifacts/{ref.digest[7:]}"] = "endless"
    with pytest.raises(ExecutorFailure, match="sends more than the 4 bytes"):
        await guarded.fetch_artifact(ref, [store.url])


@pytest.mark.parametrize("name", ["timestamp", "snapshot", "targets"])
async def test_metadata_by_a_wrong_key_is_refused(
    guarded: Fetcher, cell: Cell, store: Store, name: str
) -> None:
    ref = cell.sign(b"good")
    wrong = CryptoSigner.generate_ed25519()
    for file in list(cell.files()):
        if name in file:
            cell.forge(file[len(TRUST) :], lambda _: None, wrong)
    failed = await refused(guarded, ref, store)
    assert failed.blame is Blame.PEER
    # A changed file is noticed by its hash, before its signature.
    wanted = "signed by 0/1" if name == "timestamp" else "do not belong together"
    assert wanted in failed.text


async def test_delegations_by_the_online_key_alone_are_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    """Whoever has stolen the online key cannot say who may sign."""
    ref = cell.sign(b"good")
    number = max(int(one[len(TRUST) :].split(".")[0]) for one in cell.files() if ".targets." in one)
    metadata = Metadata.from_bytes(cell.files()[f"{TRUST}{number}.targets.json"])
    metadata.signed.version = number + 1
    metadata.signatures.clear()
    metadata.sign(cell.key("online"))
    cell.reseal("targets", metadata.to_bytes(), number + 1)
    assert "signed by 0/1" in (await refused(guarded, ref, store)).text


async def test_a_root_with_too_few_keys_is_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    """Root asks for two keys from version 2 on; a version 3 with one of them is no root."""
    ref = cell.sign(b"good")
    second = CryptoSigner.generate_ed25519()

    def two(root: Any) -> None:
        root.version += 1
        root.add_key(second.public_key, "root")
        root.roles["root"].threshold = 2

    def more(root: Any) -> None:
        root.version += 1

    store.content[f"{TRUST}2.root.json"] = store.content[f"{TRUST}1.root.json"]
    cell.forge("2.root.json", two, cell.key("root"), second)
    assert await taken(guarded, ref, store)
    store.content[f"{TRUST}3.root.json"] = store.content[f"{TRUST}2.root.json"]
    cell.forge("3.root.json", more, cell.key("root"))
    failed = await refused(guarded, cell.offer(b"x"), store)
    assert "signed by 1/2 keys" in failed.text


async def test_a_stolen_key_of_a_tenant_signs_nothing_for_another(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    """Even with the key of snapshot and timestamp: only `targets` says who signs for whom."""
    cell.allow("mallory", "other")
    ref = cell.offer(b"evil")
    cell.show()
    path = f"default/{ref.digest[7:]}"
    cell.targets["mallory"] = {path: Cell.target(ref, path)}
    version = cell.version("mallory") + 1
    cell.reseal("mallory", cell.sealed("mallory", version), version)
    failed = await refused(guarded, ref, store)
    assert "signed by nobody who may" in failed.text
    assert "signed by nobody who may" in (await refused(guarded, ref, store, "other")).text


async def test_a_publisher_without_delegation_is_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    ref = cell.sign(b"good")
    cell.repository.revoke("alice")
    cell.show()
    assert "signed by nobody" in (await refused(guarded, ref, store)).text


async def test_a_wrong_size_in_signed_metadata_is_refused(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    ref = cell.sign(b"good")
    lied = ArtifactRef(ref.digest, ref.size_bytes + 1)
    assert "another size" in (await refused(guarded, lied, store)).text


async def test_keys_change_under_a_running_node(guarded: Fetcher, cell: Cell, store: Store) -> None:
    assert await taken(guarded, cell.sign(b"one"), store)
    for role in ("root", "targets", "online"):
        cell.repository.rotate(role)
    assert await taken(guarded, cell.sign(b"two"), store)
    root, expires = await guarded.check_trust([store.url])
    assert root == 4
    assert expires > time.time()
    async with asyncio.timeout(60):
        while guarded._process is not None:  # noqa: ASYNC110 - its end is what is awaited
            await asyncio.sleep(0.01)


async def test_what_was_verified_starts_without_a_network(
    guarded: Fetcher, cell: Cell, store: Store, blobs: BlobFolder, trust: Path
) -> None:
    ref = cell.sign(b"verified before")
    assert await taken(guarded, ref, store)
    await guarded.close()
    asked = len(store.asked)
    cache = ArtifactCache(guarded._cache.folder, 1 << 20, time.time())
    later = Fetcher(cache, blobs, trust=trust)
    try:
        assert (await later.fetch_artifact(ref, [])).read_bytes() == b"verified before"
        assert await taken(later, ref, store)
        assert len(store.asked) == asked
        with pytest.raises(ExecutorFailure, match="no store was named"):
            await later.fetch_artifact(ref, [], "other")
    finally:
        await later.close()


async def test_what_lies_here_but_was_never_verified_does_not_start(
    guarded: Fetcher, cell: Cell, store: Store, cache: ArtifactCache
) -> None:
    ref = cell.offer(b"from a time without signatures")
    cache.path(ref.digest).write_bytes(b"from a time without signatures")
    with pytest.raises(ExecutorFailure, match="signed by nobody"):
        await guarded.fetch_artifact(ref, [store.url])
    assert cache.has(ref.digest, ref.size_bytes)


async def test_what_is_signed_no_more_starts_no_more(
    guarded: Fetcher, cell: Cell, store: Store, trust: Path
) -> None:
    ref, kept = cell.sign(b"withdrawn"), cell.sign(b"kept")
    assert await taken(guarded, ref, store)
    assert await taken(guarded, kept, store)
    del cell.targets["alice"][f"default/{ref.digest[7:]}"]
    cell.repository.publish("alice", cell.sealed("alice", cell.version("alice") + 1))
    cell.show()
    assert await taken(guarded, ref, store), "what was verified in this life asks nobody"
    await guarded.check_trust([store.url])
    with pytest.raises(ExecutorFailure, match="signed by nobody"):
        await guarded.fetch_artifact(ref, [store.url])
    assert await taken(guarded, kept, store)
    assert [one.name for one in (trust / "verified" / "default").iterdir()] == [kept.digest[7:]]


async def test_tenants_share_the_bytes_and_not_the_leave(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    cell.allow("other-author", "other")
    ref = cell.sign(b"shared" * 1000)
    with pytest.raises(ExecutorFailure, match="of tenant other is signed by nobody"):
        await guarded.fetch_artifact(ref, [store.url], "other")
    cell.sign(b"shared" * 1000, "other-author", "other")
    first, second = await asyncio.gather(
        guarded.fetch_artifact(ref, [store.url], "other"),
        guarded.fetch_artifact(ref, [store.url], "default"),
    )
    assert first == second
    assert len([one for one in store.asked if one[1].startswith("/v1/artifacts")]) == 1


async def test_an_honest_store_helps_where_the_first_is_hostile(
    guarded: Fetcher, cell: Cell, store: Store
) -> None:
    ref = cell.sign(b"good")
    urls = [f"{store.url}/nowhere", "http://127.0.0.1:9", store.url]
    assert (await guarded.fetch_artifact(ref, urls)).read_bytes() == b"good"


async def test_a_clock_that_is_plainly_behind_is_said(
    guarded: Fetcher, cell: Cell, store: Store, trust: Path
) -> None:
    ref = cell.sign(b"good")
    root = json.loads((trust / "bootstrap.json").read_text())
    assert "issued" in root["signed"]
    future = dt.datetime.now(dt.UTC) + dt.timedelta(days=3000)
    other = Repository.init(trust.parent / "later", lambda: future)
    (trust / "bootstrap.json").write_bytes(other.root())
    failed = await refused(guarded, ref, store)
    assert failed.blame is Blame.ENVIRONMENT
    assert "this node's clock says" in failed.text
    assert "set its time" in failed.text


async def test_a_bundle_without_trust_and_a_node_without_tuf_are_told(
    guarded: Fetcher, cell: Cell, store: Store, trust: Path, blobs: BlobFolder
) -> None:
    ref = cell.sign(b"good")
    (trust / "bootstrap.json").unlink()
    assert "issued again with `tona ca issue`" in (await refused(guarded, ref, store)).text
    bare = Fetcher(guarded._cache, blobs, trust=trust, interpreter=os.path.realpath(sys.executable))
    try:
        assert "pip install 'tona-edge[trust]'" in (await refused(bare, ref, store)).text
    finally:
        await bare.close()


async def test_a_full_disk_stops_no_trust_for_ever(
    guarded: Fetcher, cell: Cell, store: Store, trust: Path
) -> None:
    ref = cell.sign(b"good")
    (trust / "metadata").write_bytes(b"in the way, as a disk that takes nothing is")
    failed = await refused(guarded, ref, store)
    assert (failed.blame, failed.retryable) == (Blame.ENVIRONMENT, True)
    (trust / "metadata").unlink()
    assert await taken(guarded, ref, store)


def test_metadata_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Path(__file__).resolve().parents[2] / "device_agent/executors/programs"
    monkeypatch.syspath_prepend(str(programs))
    # As the process imports it: with the executors' programs beside it.
    warrant = importlib.import_module("device_agent.artifacts.warrant")

    now_s = iter(range(0, 1000, 10))
    gone: list[str] = []

    class Drip:
        status, length = 200, 1_000_000

        def read1(self, _size: int) -> bytes:
            return b"x"

    response: Any = Drip()
    fetcher = warrant.BoundedFetcher(
        lambda _url: (response, lambda: gone.append("x")), lambda: next(now_s)
    )
    with pytest.raises(DownloadError, match=f"not ended after {warrant.METADATA_S:.0f} s"):
        fetcher.download_bytes("http://x/timestamp.json", 16384)
    assert gone == ["x"]
