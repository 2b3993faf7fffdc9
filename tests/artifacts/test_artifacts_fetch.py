"""Transfers over real HTTP by the real transfer process."""

import asyncio
import datetime as dt
import hashlib
import ipaddress
import os
import resource
import signal
import ssl
import threading
from pathlib import Path

import pytest
from artifact_store import Store
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.fetch import PARALLEL, Fetcher, TlsFiles
from device_agent.core.queue import FIRST, Urgency
from device_agent.executors.door import ExecutorFailure
from protocols.errors import Blame
from protocols.manifest import ArtifactRef
from protocols.messages.invocation import FailureCode

Key = ec.EllipticCurvePrivateKey
DATA = os.urandom(700_000)


def offer(store: Store, data: bytes = DATA, kind: str = "artifacts") -> ArtifactRef:
    name = hashlib.sha256(data).hexdigest()
    store.content[f"/v1/{kind}/{name}"] = data
    return ArtifactRef(f"sha256:{name}", len(data))


async def test_an_artifact_is_fetched_once(
    fetcher: Fetcher, store: Store, cache: ArtifactCache
) -> None:
    ref = offer(store)
    paths = await asyncio.gather(*(fetcher.fetch_artifact(ref, [store.url]) for _ in range(3)))
    assert {path.read_bytes() for path in paths} == {DATA}
    assert await fetcher.fetch_artifact(ref, []) == cache.path(ref.digest)
    assert len(store.asked) == 1


async def test_a_cut_transfer_goes_on_where_it_ended(fetcher: Fetcher, store: Store) -> None:
    ref = offer(store)
    store.faults = ["cut", "503"]
    path = await fetcher.fetch_artifact(ref, [store.url])
    assert path.read_bytes() == DATA
    assert [asked[2] for asked in store.asked] == ["", "bytes=350000-", "bytes=350000-"]


async def test_a_store_without_ranges_starts_over(fetcher: Fetcher, store: Store) -> None:
    ref = offer(store)
    store.faults = ["cut", "whole"]
    assert (await fetcher.fetch_artifact(ref, [store.url])).read_bytes() == DATA


@pytest.mark.parametrize("fault", ["wrong", "longer", "416", "500"])
async def test_a_bad_answer_is_tried_again(fetcher: Fetcher, store: Store, fault: str) -> None:
    ref = offer(store)
    other = f"http://localhost:{store.server_port}"
    store.faults = [fault]
    assert (await fetcher.fetch_artifact(ref, [store.url, other])).read_bytes() == DATA
    assert len(store.asked) == 2


async def test_a_wrong_range_is_no_content(
    fetcher: Fetcher, store: Store, cache: ArtifactCache
) -> None:
    ref = offer(store)
    store.faults = ["cut", "shifted"]
    with pytest.raises(ExecutorFailure, match="another range"):
        await fetcher.fetch_artifact(ref, [store.url])
    assert not cache.has(ref.digest, ref.size_bytes)


async def test_content_that_is_never_right_never_gets_its_name(
    fetcher: Fetcher, store: Store, cache: ArtifactCache
) -> None:
    ref = offer(store)
    store.faults = ["wrong"] * 10
    with pytest.raises(ExecutorFailure, match="not what its digest says") as caught:
        await fetcher.fetch_artifact(ref, [store.url])
    failed = caught.value.failed
    assert (failed.code, failed.blame, failed.retryable) == (
        FailureCode.FETCH,
        Blame.ENVIRONMENT,
        True,
    )
    assert not cache.path(ref.digest).exists()
    assert len(store.asked) == 4


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ([], "no address"),
        (["http://127.0.0.1:9"], "refused"),
        (["ftp://127.0.0.1"], "no way to fetch"),
        (["http://[broken"], "IPv6"),
        (["http://127.0.0.1:port"], "port"),
        (["http://127.0.0.1/\u00e4 b"], "127"),
    ],
)
async def test_an_address_that_does_not_serve_is_named(
    fetcher: Fetcher, store: Store, urls: list[str], said: str
) -> None:
    with pytest.raises(ExecutorFailure, match=said):
        await fetcher.fetch_artifact(offer(store), urls)


async def test_the_next_address_serves(fetcher: Fetcher, store: Store) -> None:
    ref = offer(store)
    urls = ["http://127.0.0.1:9", store.url]
    assert (await fetcher.fetch_artifact(ref, urls)).read_bytes() == DATA


async def test_nobody_has_it(fetcher: Fetcher, store: Store) -> None:
    ref = ArtifactRef("sha256:" + "0" * 64, 5)
    with pytest.raises(ExecutorFailure, match="404"):
        await fetcher.fetch_artifact(ref, [store.url])
    assert len(store.asked) == 1


async def test_a_file_that_rotted_is_fetched_again(
    fetcher: Fetcher, store: Store, cache: ArtifactCache
) -> None:
    ref = offer(store)
    cache.path(ref.digest).write_bytes(bytes(len(DATA)))
    assert (await fetcher.fetch_artifact(ref, [store.url])).read_bytes() == DATA


async def test_a_whole_file_of_an_earlier_life_is_not_fetched(
    fetcher: Fetcher, store: Store, cache: ArtifactCache
) -> None:
    ref = offer(store)
    cache.path(ref.digest).write_bytes(DATA)
    assert (await fetcher.fetch_artifact(ref, [store.url])).read_bytes() == DATA
    assert store.asked == []


async def test_a_partial_file_of_an_earlier_life_is_resumed(
    fetcher: Fetcher, store: Store, cache: ArtifactCache
) -> None:
    ref = offer(store)
    cache.part(ref.digest).write_bytes(DATA[:123])
    assert (await fetcher.fetch_artifact(ref, [store.url])).read_bytes() == DATA
    assert store.asked[0][2] == "bytes=123-"


async def test_room_is_made_but_not_from_what_is_in_use(
    tmp_path: Path, blobs: BlobFolder, store: Store
) -> None:
    cache = ArtifactCache(tmp_path / "small", 1_000_000, now_s=0)
    fetcher = Fetcher(cache, blobs)
    try:
        first = offer(store)
        await fetcher.fetch_artifact(first, [store.url])
        cache.pin(first.digest)
        second = offer(store, os.urandom(600_000))
        with pytest.raises(ExecutorFailure, match="do not fit") as caught:
            await fetcher.fetch_artifact(second, [store.url])
        assert caught.value.failed.blame is Blame.ENVIRONMENT
        assert cache.has(first.digest, first.size_bytes)
        cache.unpin(first.digest)
        await fetcher.fetch_artifact(second, [store.url])
        assert not cache.has(first.digest, first.size_bytes)
    finally:
        await fetcher.close()


async def test_a_full_disk_is_said_and_leaves_the_old_intact(
    fetcher: Fetcher, store: Store, cache: ArtifactCache
) -> None:
    old = offer(store, b"old")
    await fetcher.fetch_artifact(old, [store.url])
    ref = offer(store)
    # A bound on the size of a file fails a write just as a full disk does.
    process = fetcher._process.pid
    resource.prlimit(process, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    with pytest.raises(ExecutorFailure, match=r"cannot store .*File too large") as caught:
        await fetcher.fetch_artifact(ref, [store.url])
    assert caught.value.failed.blame is Blame.ENVIRONMENT
    assert cache.path(old.digest).read_bytes() == b"old"
    assert not cache.part(ref.digest).exists()
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(process, resource.RLIMIT_FSIZE, unlimited)
    assert (await fetcher.fetch_artifact(ref, [store.url])).read_bytes() == DATA


async def test_a_blob_goes_there_and_back(
    fetcher: Fetcher, store: Store, blobs: BlobFolder
) -> None:
    data = os.urandom(100_000)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blobs.path(digest).write_bytes(data)
    store.faults = ["503"]
    await fetcher.push_blob(digest, [store.url])
    assert store.content[f"/v1/blobs/{digest[7:]}"] == data
    blobs.drop(digest)
    path = await fetcher.fetch_blob(digest, len(data), [store.url])
    assert path.read_bytes() == data
    with pytest.raises(ExecutorFailure, match="cannot send"):
        await fetcher.push_blob("sha256:" + "1" * 64, [store.url])


async def test_the_most_urgent_value_that_waits_is_moved_first(
    fetcher: Fetcher, store: Store
) -> None:
    def path_of(data: bytes) -> str:
        return f"/v1/blobs/{hashlib.sha256(data).hexdigest()}"

    async def fetched(data: bytes, urgency: Urgency) -> None:
        value = offer(store, data, "blobs")
        path = await fetcher.fetch_blob(value.digest, value.size_bytes, [store.url], urgency)
        assert path.read_bytes() == data

    first = [f"first {number}".encode() for number in range(PARALLEL)]
    for one in first:
        store.gates[path_of(one)] = threading.Event()
    wanted = [(b"later", 3000.0), (b"sooner", 1000.0), (b"soon", 2000.0)]
    try:
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for one in first:
                group.create_task(fetched(one, (0, 5000.0)))
            await asyncio.sleep(0)
            waiting = [group.create_task(fetched(data, (0, due_ms))) for data, due_ms in wanted]
            await asyncio.sleep(0)
            # One place: they go one after another.
            store.gates[path_of(first[0])].set()
            await asyncio.wait(waiting)
            asked = [path for _, path, _ in store.asked if path not in store.gates]
            for gate in store.gates.values():
                gate.set()
    finally:
        for gate in store.gates.values():
            gate.set()
    assert asked == [path_of(one) for one in (b"sooner", b"soon", b"later")]


def occupied(fetcher: Fetcher, store: Store) -> list[asyncio.Task[Path]]:
    """Take every place, until the gates of the store are set."""
    going = []
    for number in range(PARALLEL):
        value = offer(store, f"first {number}".encode(), "blobs")
        store.gates[f"/v1/blobs/{value.digest[7:]}"] = threading.Event()
        fetch = fetcher.fetch_blob(value.digest, value.size_bytes, [store.url], (-9, 0.0))
        going.append(asyncio.create_task(fetch))
    return going


@pytest.mark.parametrize("again", [True, False])
async def test_a_value_that_waits_is_as_urgent_as_the_most_urgent_who_asks(
    fetcher: Fetcher, store: Store, *, again: bool
) -> None:
    going = occupied(fetcher, store)
    shared, other = (offer(store, data, "blobs") for data in (b"shared", b"other"))

    def fetch(ref: ArtifactRef, due_ms: float) -> asyncio.Task[Path]:
        one = fetcher.fetch_blob(ref.digest, ref.size_bytes, [store.url], (0, due_ms))
        going.append(asyncio.create_task(one))
        return going[-1]

    try:
        async with asyncio.timeout(60):
            waiting = [fetch(shared, 3000.0), fetch(other, 2000.0)]
            # Theirs are transfers then, and stand in line.
            for _ in range(2):
                await asyncio.sleep(0)
            if again:
                waiting.append(fetch(shared, 1000.0))
                await asyncio.sleep(0)
            else:
                fetcher.hurry_blob(shared.digest, (0, 1000.0))
            # One place: they go one after another.
            next(iter(store.gates.values())).set()
            await asyncio.wait(waiting)
            asked = [path for _, path, _ in store.asked if path not in store.gates]
    finally:
        for gate in store.gates.values():
            gate.set()
        await asyncio.gather(*going, return_exceptions=True)
    assert asked == [f"/v1/blobs/{one.digest[7:]}" for one in (shared, other)]


async def test_a_value_that_nobody_waits_for_any_more_leaves_the_line(
    fetcher: Fetcher, store: Store
) -> None:
    going = occupied(fetcher, store)
    gone, shared, live = (offer(store, data, "blobs") for data in (b"gone", b"shared", b"live"))

    def fetch(ref: ArtifactRef) -> asyncio.Task[Path]:
        one = fetcher.fetch_blob(ref.digest, ref.size_bytes, [store.url], (-5, 1000.0))
        going.append(asyncio.create_task(one))
        return going[-1]

    try:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
            expired = [fetch(gone), fetch(gone), fetch(shared)]
            also, last = fetch(shared), fetch(live)
            await asyncio.sleep(0)
            for one in expired:
                one.cancel()
            await asyncio.wait(expired)
            again = fetch(gone)
            again.cancel()
            for gate in store.gates.values():
                gate.set()
            await asyncio.gather(also, last)
            assert (await fetch(gone)).read_bytes() == b"gone", "asked for again, it comes"
    finally:
        for gate in store.gates.values():
            gate.set()
        await asyncio.gather(*going, return_exceptions=True)
    *asked, asked_last = [path for _, path, _ in store.asked if path not in store.gates]
    # These two went beside each other: either may have come first.
    assert sorted(asked) == sorted(f"/v1/blobs/{one.digest[7:]}" for one in (shared, live))
    assert asked_last == f"/v1/blobs/{gone.digest[7:]}"


async def test_a_memory_is_fetched_though_so_many_values_wait(
    fetcher: Fetcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.fetch.MAX_TRANSFERS", PARALLEL)
    going = occupied(fetcher, store)
    ref = offer(store, b"memory", "blobs")
    try:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
            with pytest.raises(ExecutorFailure, match="transfers wait already"):
                await fetcher.fetch_blob(ref.digest, ref.size_bytes, [store.url], (-9, 0.0))
            fetch = fetcher.fetch_blob(ref.digest, ref.size_bytes, [store.url], FIRST)
            going.append(asyncio.create_task(fetch))
            await asyncio.sleep(0)
            for gate in store.gates.values():
                gate.set()
            assert (await going[-1]).read_bytes() == b"memory"
    finally:
        for gate in store.gates.values():
            gate.set()
        await asyncio.gather(*going, return_exceptions=True)


async def test_a_value_that_leaves_gets_its_digest_and_lies_under_it(
    fetcher: Fetcher, store: Store, blobs: BlobFolder
) -> None:
    data = os.urandom(100_000)
    made = blobs.make(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    store.faults = ["503"]
    assert await fetcher.push_blob(made, [store.url]) == digest
    assert store.content[f"/v1/blobs/{digest[7:]}"] == data
    assert blobs.path(digest).samefile(blobs.path(made)), "its memory is taken once"
    # Twice is as well as once, and what goes here stays there.
    assert await fetcher.push_blob(made, [store.url]) == digest
    blobs.drop(made)
    assert blobs.path(digest).read_bytes() == data
    with pytest.raises(ExecutorFailure, match="cannot name a value: No such file"):
        await fetcher.push_blob(made, [store.url])


async def test_nobody_changes_what_lies_under_a_digest(
    fetcher: Fetcher, store: Store, blobs: BlobFolder
) -> None:
    data = os.urandom(100_000)
    made = blobs.make(data)
    with blobs.path(made).open("r+b") as hostile:
        digest = await fetcher.push_blob(made, [store.url])
        hostile.write(b"other")
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert blobs.path(digest).read_bytes() == data
    assert [one.name for one in blobs.entries() if "part" in one.name] == []


async def test_a_killed_process_fails_the_transfer_and_the_next_one_works(
    fetcher: Fetcher, store: Store
) -> None:
    ref = offer(store)
    await fetcher.fetch_artifact(offer(store, b"warm"), [store.url])
    pid = fetcher._process.pid
    os.kill(pid, signal.SIGSTOP)
    fetch = asyncio.create_task(fetcher.fetch_artifact(ref, [store.url]))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ExecutorFailure, match="process ended") as caught:
        await fetch
    assert caught.value.failed.retryable
    assert (await fetcher.fetch_artifact(ref, [store.url])).read_bytes() == DATA


async def test_the_process_leaves_when_idle(
    fetcher: Fetcher, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.fetch.IDLE_EXIT_S", 0.01)
    await fetcher.fetch_artifact(offer(store), [store.url])
    process = fetcher._process
    if process is not None:
        await asyncio.wait_for(process.exited(), 60)
    assert fetcher._process is None
    assert (await fetcher.fetch_artifact(offer(store, b"more"), [store.url])).exists()


def authority(folder: Path) -> Key:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate("authority", key, "authority", key, folder, ca=True)
    return key


def certificate(
    name: str, key: Key, issuer: str, issuer_key: Key, folder: Path, *, ca: bool = False
) -> None:
    now = dt.datetime.now(dt.UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, issuer)]
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(names[0])
        .issuer_name(names[1])
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


async def test_both_sides_of_https_are_verified(
    tmp_path: Path, store: Store, cache: ArtifactCache, blobs: BlobFolder
) -> None:
    key = authority(tmp_path)
    for name in ("store", "node"):
        own = ec.generate_private_key(ec.SECP256R1())
        certificate(name, own, "authority", key, tmp_path)
    strange = tmp_path / "strange"
    strange.mkdir()
    authority(strange)
    context = ssl.create_default_context(
        ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "authority.pem")
    )
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tmp_path / "store.pem", tmp_path / "store.key")
    store.socket = context.wrap_socket(
        store.socket, server_side=True, do_handshake_on_connect=False
    )
    url = store.url.replace("http:", "https:")
    ref = offer(store)

    def files(trust: Path, who: Path, name: str) -> TlsFiles:
        return TlsFiles(trust / "authority.pem", who / f"{name}.pem", who / f"{name}.key")

    for tls, works in (
        (files(tmp_path, tmp_path, "node"), True),
        (files(strange, tmp_path, "node"), False),
        (files(tmp_path, strange, "authority"), False),
        (None, False),
    ):
        cache.drop(ref.digest)
        fetcher = Fetcher(cache, blobs, tls=tls)
        try:
            if works:
                assert (await fetcher.fetch_artifact(ref, [url])).read_bytes() == DATA
            else:
                with pytest.raises(ExecutorFailure, match=r"(?i)certificate|ssl|reset|broken"):
                    await fetcher.fetch_artifact(ref, [url])
        finally:
            await fetcher.close()
