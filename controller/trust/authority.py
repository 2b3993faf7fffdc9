"""The authority of a fleet: one folder, one key, an index of who was issued what.

    FOLDER/           0700
      key.pem         0600  the authority's secret; whoever has it can be anyone
      certificate.pem       what both sides trust
      index.json            who was issued what: the truth
      crl.pem               who was revoked, made from the index
      artifacts/            who may sign artifacts (see repository.py)

The index is written first; a list that a crash left behind is renewed by the next change, and the
broker's ACL comes from the index, so a revoked identity is mute even then.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec
from msgspec import Struct

from controller.trust import certificates, index
from controller.trust.files import PRIVATE, PUBLIC, locked, write_atomic
from controller.trust.index import Entry, Index
from protocols.errors import UserError
from protocols.topics import NAME_PATTERN, Speaker, valid_name
from protocols.transport.tls import Bundle

if TYPE_CHECKING:
    from controller.trust.repository import Repository

MQTTS_PORT: Final = 8883

ARTIFACTS: Final = "artifacts"
"""Folder of who may sign artifacts."""

_FOLDER_MODE: Final = 0o700
_OTHERS: Final = 0o077

_log = logging.getLogger(__name__)


class Standing(Struct, frozen=True):
    """What a broker enforces: whom it trusts, who may speak, who is revoked."""

    ca_pem: str
    crl_pem: str
    identities: tuple[tuple[str, Speaker], ...]
    """Names with a certificate in force, sorted."""
    revoked: frozenset[str]
    """Serials."""


def _now() -> datetime:
    # Certificates count in seconds.
    return datetime.now(UTC).replace(microsecond=0)


class Authority:
    """Issues and revokes the identities of a fleet; made by `init` or `open`."""

    def __init__(self, folder: Path, now: Callable[[], datetime] = _now) -> None:
        self._folder = folder
        self._now = now

    @classmethod
    def init(cls, folder: Path, name: str, now: Callable[[], datetime] = _now) -> Self:
        """Make a new authority in `folder`. Raises UserError when one is there already."""
        _check_name("authority", name)
        authority = cls(folder, now)
        try:
            folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
            folder.chmod(_FOLDER_MODE)
        except OSError as error:
            raise UserError(
                f"cannot make an authority in {folder}: {error.strerror}; name another folder"
            ) from None
        with locked(folder):
            if authority._key.exists() or authority._index.exists():
                raise UserError(
                    f"{folder} already holds an authority; its certificates would all end with "
                    "it: name another folder, or remove this one first"
                )
            signer = certificates.make_authority(name, now())
            key = certificates.key_pem(signer.key).encode()
            write_atomic(authority._key, key, PRIVATE)
            certificate = certificates.certificate_pem(signer.certificate).encode()
            write_atomic(authority._certificate, certificate, PUBLIC)
            authority._write(signer, Index(authority=name))
        return authority

    @classmethod
    def open(cls, folder: Path, now: Callable[[], datetime] = _now) -> Self:
        """Open the authority in `folder`. Raises UserError: absent or damaged."""
        authority = cls(folder, now)
        authority._read_index()
        return authority

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

    @property
    def name(self) -> str:
        """Its own name."""
        return self._read_index().authority

    def issue(
        self,
        name: str,
        speaker: Speaker,
        cell: str,
        *,
        broker_host: str,
        broker_port: int = MQTTS_PORT,
        api_url: str = "",
        addresses: Sequence[str] = (),
        days: int = certificates.DEFAULT_DAYS,
    ) -> Bundle:
        """Return a new identity and the way to its cell, for `protocols.transport.tls.save`.

        An older certificate of the same name and kind is revoked. `addresses` are what a
        controller's clients reach it at. Raises UserError.
        """
        _check_name(speaker.value, name)
        _check_name("cell", cell)
        if not 0 < broker_port < 1 << 16:
            raise UserError(f"{broker_port} is no port of a broker: give 1 to 65535")
        now = self._now()
        with locked(self._folder):
            old = self._read_index()
            index.check_kind(old, name, speaker)
            signer = self._signer()
            made = certificates.make_identity(signer, name, speaker, cell, addresses, days, now)
            self._write(signer, index.issue(old, made.entry, now))
        _log.info("authority: issued %s %s until %s", speaker, name, made.entry.expires.date())
        return Bundle(
            name=name,
            speaker=speaker,
            cell=cell,
            broker_host=broker_host,
            broker_port=broker_port,
            api_url=api_url,
            key_pem=made.key_pem,
            certificate_pem=made.certificate_pem,
            ca_pem=self.ca_pem(),
            crl_pem=self.crl_pem(),
            root_json=self.artifacts().root().decode(),
        )

    def artifacts(self) -> "Repository":
        """Return the repository of trust in artifacts, made when it is first asked for."""
        from controller.trust.repository import Repository  # noqa: PLC0415 - slow to import

        return Repository.init(self._folder / ARTIFACTS, self._now)

    def revoke(self, name: str) -> None:
        """Take the certificate of `name` out of force. Raises UserError when it has none."""
        with locked(self._folder):
            new = index.revoke(self._read_index(), name, self._now())
            self._write(self._signer(), new)
        _log.info("authority: revoked %s", name)

    def list(self) -> tuple[Entry, ...]:
        """Return every certificate, oldest first; the revoked ones until they expire."""
        return self._read_index().entries

    def standing(self) -> Standing:
        """Return what a broker has to enforce now. Raises UserError."""
        current = self._read_index()
        return Standing(
            ca_pem=self.ca_pem(),
            crl_pem=self.crl_pem(),
            identities=tuple(sorted((one.name, one.speaker) for one in index.active(current))),
            revoked=frozenset(one.serial for one in index.revoked(current)),
        )

    def version(self) -> tuple[int, ...]:
        """Return a value that is another one after every change. Raises UserError."""
        try:
            stats = [path.stat() for path in (self._index, self._crl)]
        except OSError as error:
            raise self._absent(error) from None
        return tuple(
            part for stat in stats for part in (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        )

    def has_revoked(self, bundle: Bundle) -> bool:
        """Whether the certificate in `bundle` is no longer in force. Raises UserError."""
        try:
            serial = certificates.serial_of(bundle.certificate_pem)
        except ValueError as error:
            raise UserError(
                f"bundle of {bundle.name}: its certificate is damaged ({error}): issue it again "
                "with `tona ca issue`"
            ) from None
        return serial in {one.serial for one in index.revoked(self._read_index())}

    def ca_pem(self) -> str:
        """Return the authority's certificate."""
        return self._read(self._certificate).decode(errors="replace")

    def crl_pem(self) -> str:
        """Return the revocation list."""
        return self._read(self._crl).decode(errors="replace")

    @property
    def _key(self) -> Path:
        return self._folder / "key.pem"

    @property
    def _certificate(self) -> Path:
        return self._folder / "certificate.pem"

    @property
    def _index(self) -> Path:
        return self._folder / "index.json"

    @property
    def _crl(self) -> Path:
        return self._folder / "crl.pem"

    def _write(self, signer: certificates.Signer, new: Index) -> None:
        write_atomic(self._index, msgspec.json.format(msgspec.json.encode(new)), PUBLIC)
        if not self._crl.exists() or certificates.list_number(self._read(self._crl)) != (
            new.crl_number
        ):
            entries = index.revoked(new)
            pem = certificates.make_list(signer, entries, new.crl_number, self._now())
            write_atomic(self._crl, pem.encode(), PUBLIC)

    def _read_index(self) -> Index:
        try:
            return msgspec.json.decode(self._read(self._index), type=Index)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{self._index} is damaged ({error}): restore it from a backup, or make a new "
                "authority with `tona ca init` and issue its bundles again"
            ) from None

    def _signer(self) -> certificates.Signer:
        key = self._read(self._key)
        if self._key.stat().st_mode & _OTHERS:
            raise UserError(f"{self._key}: others can read this secret key: run chmod 600 on it")
        try:
            return certificates.load_signer(key, self._read(self._certificate))
        except ValueError as error:
            raise UserError(
                f"{self._key} or certificate.pem beside it is damaged ({error}): restore them "
                "from a backup, or make a new authority with `tona ca init`"
            ) from None

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._absent(error) from None

    def _absent(self, error: OSError) -> UserError:
        if isinstance(error, FileNotFoundError):
            return UserError(
                f"no authority in {self._folder} ({Path(error.filename).name} is absent): "
                "make one with `tona ca init`"
            )
        return UserError(
            f"cannot read {error.filename}: {error.strerror}; run this as the user who owns it"
        )


def _check_name(what: str, name: str) -> None:
    if not valid_name(name):
        raise UserError(
            f"{name!r} cannot be the name of a {what}: use letters, digits and . _ - "
            f"({NAME_PATTERN})"
        )
