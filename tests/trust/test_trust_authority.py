"""The authority on disk: what it writes, what it refuses, what it says."""

import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from controller.trust import certificates
from controller.trust.authority import Authority
from controller.trust.certificates import BACKDATE
from controller.trust.files import PRIVATE, write_atomic
from protocols.errors import UserError
from protocols.topics import Speaker
from protocols.transport import tls
from protocols.transport.tls import Bundle


def issue(authority: Authority, name: str, speaker: Speaker = Speaker.NODE, **more: Any) -> Bundle:
    return authority.issue(name, speaker, "cell-1", broker_host="gw.example", **more)


def certificate(bundle: Bundle) -> x509.Certificate:
    return x509.load_pem_x509_certificate(bundle.certificate_pem.encode())


def extension(bundle: Bundle, kind: Any) -> Any:
    return certificate(bundle).extensions.get_extension_for_class(kind).value


def crl_of(authority: Authority) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(authority.crl_pem().encode())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_private(authority: Authority, tmp_path: Path) -> None:
    assert mode(authority.folder) == 0o700
    assert mode(authority.folder / "key.pem") == 0o600
    bundle = issue(authority, "n1")
    tls.save(bundle, tmp_path / "n1.json")
    assert mode(tmp_path / "n1.json") == 0o600
    assert tls.load(tmp_path / "n1.json") == bundle


def test_a_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(mode=0o755)
    assert mode(Authority.init(tmp_path / "ca", "fleet").folder) == 0o700


def test_a_bundle_says_everything(authority: Authority) -> None:
    bundle = issue(authority, "n1", broker_port=9, api_url="https://gw.example:8443")
    assert (bundle.name, bundle.speaker, bundle.cell) == ("n1", Speaker.NODE, "cell-1")
    assert (bundle.broker_host, bundle.broker_port) == ("gw.example", 9)
    assert bundle.api_url == "https://gw.example:8443"
    assert bundle.ca_pem == authority.ca_pem()
    assert bundle.crl_pem == authority.crl_pem()
    assert bundle.key_pem.startswith("-----BEGIN PRIVATE KEY-----")
    tls.client_context(bundle)


def test_the_certificate_names_who_and_what(authority: Authority, clock: Any) -> None:
    one = certificate(issue(authority, "n1", days=30))
    assert one.subject.rfc4514_string() == "CN=n1,OU=node,O=cell-1"
    assert one.not_valid_before_utc == clock.now - BACKDATE
    assert one.not_valid_after_utc == clock.now + timedelta(days=30)
    one.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem().encode()))


def test_only_a_controller_and_a_node_with_an_address_may_serve(authority: Authority) -> None:
    uses = certificates.ExtendedKeyUsageOID
    for speaker in (Speaker.NODE, Speaker.CLIENT):
        bundle = issue(authority, f"a-{speaker}", speaker)
        assert list(extension(bundle, x509.ExtendedKeyUsage)) == [uses.CLIENT_AUTH]
        with pytest.raises(x509.ExtensionNotFound):
            extension(bundle, x509.SubjectAlternativeName)
    addresses = ["gw.example", "10.0.0.1", "fd00::1", "127.0.0.1"]
    bundle = issue(authority, "gw", Speaker.CONTROLLER, addresses=addresses)
    assert set(extension(bundle, x509.ExtendedKeyUsage)) == {uses.CLIENT_AUTH, uses.SERVER_AUTH}
    names = extension(bundle, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.DNSName) == ["gw.example", "localhost"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == [
        "10.0.0.1",
        "fd00::1",
        "127.0.0.1",
        "::1",
    ]
    bundle = issue(authority, "n9", addresses=["10.0.0.2"])
    assert set(extension(bundle, x509.ExtendedKeyUsage)) == {uses.CLIENT_AUTH, uses.SERVER_AUTH}
    names = extension(bundle, x509.SubjectAlternativeName)
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.2"]
    assert names.get_values_for_type(x509.DNSName) == [], "its neighbours' address and no other"
    with pytest.raises(UserError, match="which serves nobody"):
        issue(authority, "c9", Speaker.CLIENT, addresses=["10.0.0.2"])


def test_serials_are_random(authority: Authority) -> None:
    serials = {certificate(issue(authority, f"n{i}")).serial_number for i in range(20)}
    assert len(serials) == 20
    assert min(serials).bit_length() > 100


def test_nothing_outlives_the_authority(authority: Authority, clock: Any) -> None:
    root = x509.load_pem_x509_certificate(authority.ca_pem().encode())
    clock.now = root.not_valid_after_utc - timedelta(days=10)
    assert certificate(issue(authority, "n1")).not_valid_after_utc == root.not_valid_after_utc
    assert crl_of(authority).next_update_utc == root.not_valid_after_utc
    clock.now = root.not_valid_after_utc
    with pytest.raises(UserError, match="the authority expired"):
        issue(authority, "n2")


def test_revocation(authority: Authority, clock: Any) -> None:
    bundle, other = issue(authority, "n1"), issue(authority, "n2")
    assert len(crl_of(authority)) == 0
    assert not authority.has_revoked(bundle)
    before = authority.version()
    authority.revoke("n1")
    assert authority.version() != before
    assert [one.serial_number for one in crl_of(authority)] == [certificate(bundle).serial_number]
    assert authority.has_revoked(bundle)
    assert not authority.has_revoked(other)
    assert [(one.name, one.revoked) for one in authority.list()] == [
        ("n1", clock.now),
        ("n2", None),
    ]
    standing = authority.standing()
    assert standing.identities == (("n2", Speaker.NODE),)
    assert standing.revoked == {f"{certificate(bundle).serial_number:x}"}


def test_revoking_who_is_unknown_suggests_the_near_name(authority: Authority) -> None:
    issue(authority, "camera-1")
    with pytest.raises(UserError, match=r"camera-l has no valid.*did you mean camera-1\?"):
        authority.revoke("camera-l")
    authority.revoke("camera-1")
    with pytest.raises(UserError, match="has no valid certificate"):
        authority.revoke("camera-1")


def test_issuing_again_replaces(authority: Authority) -> None:
    old, new = issue(authority, "n1"), issue(authority, "n1")
    assert old.key_pem != new.key_pem
    assert authority.has_revoked(old)
    assert not authority.has_revoked(new)
    assert authority.standing().identities == (("n1", Speaker.NODE),)


def test_a_name_belongs_to_one_kind(authority: Authority) -> None:
    issue(authority, "one")
    with pytest.raises(UserError, match=r"already the name of a node.*tona ca revoke one"):
        issue(authority, "one", Speaker.CLIENT)
    authority.revoke("one")
    issue(authority, "one", Speaker.CLIENT)


def test_what_has_expired_leaves_the_list(authority: Authority, clock: Any) -> None:
    issue(authority, "n1", days=1)
    authority.revoke("n1")
    clock.now += timedelta(days=2)
    issue(authority, "n2")
    issue(authority, "n2")
    assert [one.name for one in authority.list()] == ["n2", "n2"]
    assert len(crl_of(authority)) == 1


def test_a_list_that_a_crash_left_behind_is_renewed(authority: Authority) -> None:
    stale = (authority.folder / "crl.pem").read_bytes()
    issue(authority, "n1")
    authority.revoke("n1")
    (authority.folder / "crl.pem").write_bytes(stale)
    assert authority.standing().identities == ()
    issue(authority, "n2")
    assert len(crl_of(authority)) == 1


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "%u", "-x", "a b", "n1\n", "x" * 65, "ä"])
def test_a_name_that_could_leave_its_topic_is_refused(authority: Authority, name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name of a node"):
        issue(authority, name)
    with pytest.raises(UserError, match="cannot be the name of a cell"):
        authority.issue("n1", Speaker.NODE, name, broker_host="h")
    assert authority.list() == ()


def test_bad_numbers_are_refused(authority: Authority) -> None:
    with pytest.raises(UserError, match="0 days"):
        issue(authority, "n1", days=0)
    with pytest.raises(UserError, match="is no port"):
        issue(authority, "n1", broker_port=0)
    assert authority.list() == ()


@given(st.text(max_size=80) | st.ip_addresses().map(str))
def test_any_address_goes_into_a_certificate_or_is_refused(address: str) -> None:
    with suppress(UserError):
        names = certificates.subject_alternatives([address])
        assert len(x509.SubjectAlternativeName(names).public_bytes()) > 0


@pytest.mark.parametrize("address", ["", "gw:8883", "mqtts://gw", "a_b", "-a", "a..b", "*", "gw\n"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="neither a host name nor an IP address"):
        certificates.subject_alternatives([address])


@pytest.mark.parametrize(
    "garbage",
    [b"", b"garbage", b"\xff\xfe", b"[]", b'{"authority": "x", "version": 9}', b'{"authority": 1}'],
)
def test_a_damaged_index_is_one_clear_sentence(authority: Authority, garbage: bytes) -> None:
    (authority.folder / "index.json").write_bytes(garbage)
    for act in (
        lambda: Authority.open(authority.folder),
        lambda: issue(authority, "n1"),
        lambda: authority.revoke("n1"),
        authority.list,
        authority.standing,
    ):
        with pytest.raises(UserError, match=r"index\.json is damaged .*restore it") as told:
            act()
        assert "\n" not in str(told.value)
    assert (authority.folder / "index.json").read_bytes() == garbage


def test_a_damaged_key_is_one_clear_sentence(authority: Authority) -> None:
    key = authority.folder / "key.pem"
    good = key.read_bytes()
    for bad in (b"", b"garbage", good[:60], authority.ca_pem().encode()):
        key.write_bytes(bad)
        with pytest.raises(UserError, match="is damaged"):
            issue(authority, "n1")
    key.write_bytes(good)
    key.chmod(0o640)
    with pytest.raises(UserError, match="others can read this secret key"):
        issue(authority, "n1")


def test_absent_and_present(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(UserError, match=r"no authority in .*tona ca init"):
        Authority.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="already holds an authority"):
        Authority.init(authority.folder, "again")
    (authority.folder / "index.json").unlink()
    with pytest.raises(UserError, match="already holds an authority"):
        Authority.init(authority.folder, "again")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make an authority"):
        Authority.init(tmp_path / "file", "fleet")


def test_two_at_once_lose_nothing(authority: Authority) -> None:
    def one(number: int) -> None:
        issue(Authority.open(authority.folder), f"n{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(12)))
    assert {entry.name for entry in authority.list()} == {f"n{number}" for number in range(12)}


def test_where_nothing_can_be_written_it_is_said(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(UserError, match=r"cannot write .*key\.pem: Not a directory; name a"):
        write_atomic(place / "key.pem", b"secret", PRIVATE)
