"""The repository: who may sign what, kept in date, rotated, and read by TUF's own client."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, TargetFile
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from controller.trust import metadata as made
from controller.trust.publishers import check_target, target_path
from controller.trust.repository import VERSIONS_KEPT, Repository
from controller.trust.signers import load_signer
from protocols.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))

from trust_authors import Author


@pytest.fixture
def repository(tmp_path: Path, clock: Any) -> Repository:
    return Repository.init(tmp_path / "artifacts", clock)


@pytest.fixture
def alice(repository: Repository, clock: Any) -> Author:
    author = Author("alice", "acme", clock.now)
    repository.allow(author.request(), "acme")
    return author


class FromFolder(FetcherInterface):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str) -> Any:
        path = self.folder / url.rpartition("/")[2]
        if not path.exists():
            raise DownloadHTTPError("absent", 404)
        return iter([path.read_bytes()])


def trusts(repository: Repository, tmp_path: Path, clock: Any, bootstrap: bytes = b"") -> Any:
    """Return what asks a client whether it takes a target now; its folder stays."""
    first = bootstrap or repository.root()
    folder = tmp_path / "client"
    folder.mkdir(exist_ok=True)

    def ask(path: str) -> bool:
        fetcher = FromFolder(repository.file(""))
        updater = Updater(str(folder), "x://y/", fetcher=fetcher, bootstrap=first)
        updater._trusted_set.reference_time = clock.now
        return updater.get_targetinfo(path) is not None

    return ask


def test_what_an_allowed_author_signs_is_taken_and_nothing_else(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any
) -> None:
    ask = trusts(repository, tmp_path, clock)
    mine = target_path("acme", made.hashlib.sha256(b"model").hexdigest())
    assert not ask(mine)
    repository.publish("alice", alice.sign(b"model"))
    assert ask(mine)
    assert not ask(mine.replace("acme", "other"))
    state = repository.state()
    assert [(one.name, one.tenant, one.artifacts, one.trusted) for one in state.publishers] == [
        ("alice", "acme", 1, True)
    ]


def test_two_publishers_of_a_tenant_stand_beside_each_other(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any
) -> None:
    bob = Author("bob", "acme", clock.now)
    repository.allow(bob.request(), "acme")
    repository.publish("alice", alice.sign(b"a"))
    repository.publish("bob", bob.sign(b"b"))
    ask = trusts(repository, tmp_path, clock)
    paths = [target_path("acme", made.hashlib.sha256(one).hexdigest()) for one in (b"a", b"b")]
    assert [ask(one) for one in paths] == [True, True]
    repository.revoke("alice")
    assert [ask(one) for one in paths] == [False, True]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda a: a.sealed(version=1), "version 1, the next one of alice is 2"),
        (lambda a: a.sealed(version=9), "version 9, the next one"),
        (lambda a: a.sealed(version=2, signer=CryptoSigner.generate_ed25519()), "not signed"),
        (lambda a: a.sealed(version=2, expires=a.now - timedelta(days=1)), "expires on"),
        (lambda a: a.sealed(version=2, expires=a.now + timedelta(days=9999)), "expires on"),
        (lambda a: a.sign(b"x", "other/" + "0" * 64), "no artifact of tenant acme"),
        (lambda a: a.sign(b"x", "acme/" + "0" * 64), "its hash is not"),
        (lambda a: a.sign(b"x", "acme/../other/x"), "no artifact of tenant acme"),
        (lambda _: b"{}", "no signed metadata"),
        (lambda _: b"\xff\x00", "no signed metadata"),
        (lambda _: b"[" * 100_000, "no signed metadata"),
        (lambda _: b" " * 5_000_001, "at most 5000000"),
    ],
)
def test_what_a_publisher_may_not_is_refused(
    repository: Repository, alice: Author, spoil: Any, said: str
) -> None:
    before = repository.state()
    with pytest.raises(UserError, match=said):
        repository.publish("alice", spoil(alice))
    assert repository.state() == before


def test_root_of_the_repository_cannot_be_published(repository: Repository, clock: Any) -> None:
    for role in ("root", "targets", "snapshot", "timestamp"):
        with pytest.raises(UserError, match="a role of the repository itself"):
            repository.allow(Author(role, "acme", clock.now).request(), "acme")
        with pytest.raises(UserError, match="no publisher"):
            repository.publish(role, Author(role, "acme", clock.now).sign(b"x"))


def test_a_publisher_changes_his_key_while_nodes_follow(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any
) -> None:
    ask = trusts(repository, tmp_path, clock)
    repository.publish("alice", alice.sign(b"old"))
    old, new = alice.signer, CryptoSigner.generate_ed25519()
    fresh = Author("alice", "acme", clock.now)
    fresh.signer = new
    repository.allow(fresh.request(), "acme")
    alice.signer = new
    repository.publish("alice", alice.sign(b"new"))
    repository.revoke("alice", old.public_key.keyid)
    paths = [target_path("acme", made.hashlib.sha256(one).hexdigest()) for one in (b"old", b"new")]
    assert [ask(one) for one in paths] == [True, True]
    alice.signer = old
    with pytest.raises(UserError, match="not signed with a key of alice"):
        repository.publish("alice", alice.sign(b"stolen"))


def test_what_only_a_revoked_key_has_signed_is_out_until_signed_anew(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any
) -> None:
    repository.publish("alice", alice.sign(b"old"))
    stolen = alice.signer
    fresh = Author("alice", "acme", clock.now)
    repository.allow(fresh.request(), "acme")
    ask = trusts(repository, tmp_path, clock)
    path = target_path("acme", made.hashlib.sha256(b"old").hexdigest())
    assert ask(path)
    repository.revoke("alice", stolen.public_key.keyid)
    assert not ask(path)
    assert not repository.state().publishers[0].trusted
    fresh.version = repository.state().publishers[0].version
    repository.publish("alice", fresh.sign(b"old"))
    assert ask(path)


def test_everything_is_renewed_before_it_expires_and_roots_key_may_be_away(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any
) -> None:
    repository.publish("alice", alice.sign(b"model"))
    ask = trusts(repository, tmp_path, clock)
    path = target_path("acme", made.hashlib.sha256(b"model").hexdigest())
    for _ in range(80):
        clock.now += timedelta(days=1)
        assert repository.renew() == ()
        assert ask(path)
    names = [one.name for one in repository.file("").iterdir()]
    assert len([one for one in names if one.endswith(".snapshot.json")]) <= VERSIONS_KEPT + 1
    root = repository.folder / "keys" / "root.pem"
    away = root.rename(tmp_path / "root.pem")
    clock.now += timedelta(days=made.ROOT_DAYS - 90)
    assert "root.pem back" in repository.renew()[0]
    away.rename(root)
    assert repository.renew() == ()
    assert repository.state().root_version == 2


@pytest.mark.parametrize("role", ["root", "targets", "online"])
def test_a_key_is_rotated_and_nodes_follow(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any, role: Any
) -> None:
    repository.publish("alice", alice.sign(b"model"))
    path = target_path("acme", made.hashlib.sha256(b"model").hexdigest())
    ask = trusts(repository, tmp_path, clock)
    assert ask(path)
    before = load_signer(repository.folder / "keys" / f"{role}.pem").public_key.keyid
    assert repository.rotate(role) == 2
    assert load_signer(repository.folder / "keys" / f"{role}.pem").public_key.keyid != before
    assert ask(path)
    repository.publish("alice", alice.sign(b"more"))
    assert ask(target_path("acme", made.hashlib.sha256(b"more").hexdigest()))
    stranger = tmp_path / "stranger.pem"
    stranger.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    stranger.chmod(0o600)
    with pytest.raises(UserError, match="not the key of the present root"):
        repository.rotate("root", [stranger])


def test_root_takes_so_many_of_its_keys(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any
) -> None:
    repository.publish("alice", alice.sign(b"model"))
    path = target_path("acme", made.hashlib.sha256(b"model").hexdigest())
    ask = trusts(repository, tmp_path, clock)
    assert ask(path)
    keys = repository.folder / "keys"
    assert repository.rotate("root", keys=3, threshold=2) == 2
    assert ask(path), "a node that knew the single key follows"
    assert sorted(one.name for one in keys.glob("root*")) == [f"root-{at}.pem" for at in (1, 2, 3)]
    state = repository.state()
    assert (state.root_keys, state.root_threshold, state.offline) == (3, 2, ())
    away = tmp_path / "away"
    away.mkdir()
    for at in (1, 2):
        (keys / f"root-{at}.pem").rename(away / f"root-{at}.pem")
    assert repository.state().offline == ("root",)
    with pytest.raises(UserError, match="root takes 2 of its 3 keys, 1 are here"):
        repository.rotate("online")
    assert repository.rotate("online", [away / "root-1.pem"]) == 3
    assert ask(path)
    assert repository.rotate("root", [away / "root-2.pem"]) == 4, "as many keys as before"
    assert repository.state().root_threshold == 2
    assert ask(path)
    with pytest.raises(UserError, match="not the key of the present root"):
        repository.rotate("root", [away / "root-1.pem"])
    assert repository.rotate("root", keys=1) == 5
    assert (keys / "root.pem").exists()
    assert ask(path)


@pytest.mark.parametrize(("keys", "threshold"), [(2, 3), (17, 2), (3, 0)])
def test_a_threshold_that_cannot_be_is_refused(
    repository: Repository, keys: int, threshold: int
) -> None:
    with pytest.raises(UserError, match="cannot sign"):
        repository.rotate("root", keys=keys, threshold=threshold)
    with pytest.raises(UserError, match="only root may have several"):
        repository.rotate("targets", keys=2)
    assert repository.state().root_version == 1


def test_a_root_that_too_few_of_the_old_keys_have_signed_is_not_followed(
    repository: Repository, alice: Author, tmp_path: Path, clock: Any
) -> None:
    repository.publish("alice", alice.sign(b"model"))
    repository.rotate("root", keys=3, threshold=2)
    ask = trusts(repository, tmp_path, clock)
    stolen = load_signer(repository.folder / "keys" / "root-1.pem")
    root = Metadata[Root].from_bytes(repository.root()).signed
    for keyid in list(root.roles[Root.type].keyids):
        root.revoke_key(keyid, Root.type)
    forged = CryptoSigner.generate_ed25519()
    root.add_key(forged.public_key, Root.type)
    root.roles[Root.type].threshold = 1
    made.stamp(root, root.version + 1, clock.now, made.ROOT_DAYS)
    data = made.sealed(root, [stolen, forged])
    repository.file(f"{root.version}.root.json").write_bytes(data)
    with pytest.raises(UnsignedMetadataError):
        ask(target_path("acme", made.hashlib.sha256(b"model").hexdigest()))


def test_a_rotation_that_was_cut_short_is_finished(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if self.name == "online.new.pem":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        repository.rotate("online")
    monkeypatch.undo()
    repository.renew()
    again = Repository.open(repository.folder, repository._now)
    assert again.state().root_version == 2
    again.rotate("targets")


def test_others_cannot_read_the_keys_and_damage_is_told(repository: Repository) -> None:
    assert (repository.folder.stat().st_mode & 0o077) == 0
    for one in (repository.folder / "keys").iterdir():
        assert (one.stat().st_mode & 0o077) == 0
    repository.file("timestamp.json").write_bytes(b"{")
    with pytest.raises(UserError, match="is damaged"):
        repository.state()
    with pytest.raises(UserError, match="is absent"):
        Repository.open(repository.folder.parent / "nothing")


@given(tenant=st.text(max_size=20), path=st.text(max_size=90), hex_=st.text(max_size=64))
def test_no_name_reaches_another_tenant(tenant: str, path: str, hex_: str) -> None:
    try:
        check_target(path, "acme", {"sha256": hex_})
    except UserError:
        pass
    else:
        assert path == f"acme/{hex_}"
    with pytest.raises(UserError):
        check_target(target_path(tenant, "0" * 64), f"{tenant}x", {"sha256": "0" * 64})


def test_the_metadata_is_what_the_specification_says(repository: Repository) -> None:
    for path in repository.file("").iterdir():
        metadata = Metadata.from_bytes(path.read_bytes())
        assert made.issued(metadata.signed) is not None
        assert all(
            key.keytype == "ed25519" for key in getattr(metadata.signed, "keys", {}).values()
        )
    assert TargetFile.from_data("x", b"y").length == 1
