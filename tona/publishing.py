"""An author's keys, and the metadata that he signs: which artifacts he vouches for.

The secret key stays in the author's own folder. What he has signed so far comes from the
controller, but only what TUF's client has verified from the root in his bundle is signed again.
"""

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import httpx
import msgspec
from msgspec import Struct
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, TargetFile, Targets
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from controller.trust import metadata as made
from controller.trust.files import PUBLIC, write_atomic
from controller.trust.publishers import (
    TARGETS_MAX,
    PublisherState,
    Request,
    TrustState,
    target_path,
)
from controller.trust.signers import load_signer, new_signer, save_signer
from protocols.errors import EnvironmentFailure, PeerError, UserError
from protocols.topics import NAME_PATTERN, valid_name
from tona.cli.settings import KEYS_VARIABLE

FOLDER_MODE: Final = 0o700
RENEW_AT: Final = timedelta(days=made.TARGETS_DAYS) / 2
TIMEOUT_S: Final = 10.0
NOBODY: Final = "0" * 64
"""A digest that nothing has: to look for it reads what every publisher of a tenant has signed."""


class AuthorKey(Struct, frozen=True):
    """A key of this user."""

    name: str
    """Of the publisher."""
    keyid: str
    file: str


class Wanted(Struct, frozen=True):
    """An artifact to vouch for."""

    digest: str
    size_bytes: int


def keys_folder() -> Path:
    """Return where this user's keys lie: where `TONA_KEYS` says, or among what tona keeps."""
    if given := os.environ.get(KEYS_VARIABLE):
        return Path(given).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "tona" / "keys"


def new_key(folder: Path, name: str) -> tuple[AuthorKey, Path]:
    """Make a key; returns it and the request to hand to whoever has the authority.

    Raises UserError: no name of a publisher, or there is such a key already.
    """
    if not valid_name(name):
        raise UserError(f"{name!r} cannot be the name of a publisher: {NAME_PATTERN}")
    path = folder / f"{name}.pem"
    if path.exists():
        raise UserError(f"{path} is there already: choose another name, or move it away first")
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from None
    signer = new_signer()
    public = signer.public_key
    save_signer(signer, path)
    first = Targets()
    made.stamp(first, 1, datetime.now(UTC).replace(microsecond=0), made.TARGETS_DAYS)
    request = Request(
        publisher=name,
        keyid=public.keyid,
        key=public.to_dict(),
        metadata=msgspec.Raw(made.sealed(first, [signer])),
    )
    asked = folder / f"{name}.request.json"
    write_atomic(asked, msgspec.json.encode(request), PUBLIC)
    return AuthorKey(name, public.keyid, str(path)), asked


def read_request(path: Path) -> Request:
    """Read what `new_key` has written. Raises UserError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Request)
    except OSError as error:
        raise UserError(f"{path}: cannot read the request: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no request of `tona artifact key new`: {error}") from None


def list_keys(folder: Path) -> list[AuthorKey]:
    """Return this user's keys by name. Raises UserError for a damaged one."""
    return [
        AuthorKey(path.stem, load_signer(path).public_key.keyid, str(path))
        for path in sorted(folder.glob("*.pem"))
    ]


class Signing:
    """One author at one controller.

    Every method blocks, and raises UserError, EnvironmentFailure or PeerError.
    """

    def __init__(self, http: httpx.Client, root: bytes, state: TrustState, folder: Path) -> None:
        self._http = http
        self._state = state
        view = folder / "trust" / sha256(root).hexdigest()[:16]
        try:
            view.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {view}: {error.strerror}") from None
        self._view = view
        self._folder = folder
        self._updater = Updater(
            str(view), f"{http.base_url}/v1/trust/", fetcher=_Metadata(http), bootstrap=root
        )

    def missing(self, tenant: str, wanted: Sequence[Wanted]) -> list[Wanted]:
        """Return what nobody has signed for a tenant yet."""
        return [one for one in wanted if not self._signed(target_path(tenant, _hex(one)))]

    def sign(self, tenant: str, wanted: Sequence[Wanted], key: str = "") -> PublisherState:
        """Vouch for artifacts with a key of this user; returns who has signed them."""
        publisher, signer = self._publisher(tenant, key)
        now = datetime.now(UTC).replace(microsecond=0)
        signed = self._mine(publisher)
        for one in wanted:
            path = target_path(tenant, _hex(one))
            signed.targets[path] = TargetFile(one.size_bytes, {"sha256": _hex(one)}, path)
        if len(signed.targets) > TARGETS_MAX:
            raise UserError(
                f"{publisher.name} vouches for {TARGETS_MAX} artifacts already: withdraw some with "
                "`tona artifact withdraw`"
            )
        made.stamp(signed, publisher.version + 1, now, made.TARGETS_DAYS)
        self._send(publisher, made.sealed(signed, [signer]))
        return publisher

    def withdraw(self, tenant: str, digests: Sequence[str], key: str = "") -> list[str]:
        """Vouch for these artifacts no more; returns those that were signed."""
        publisher, signer = self._publisher(tenant, key)
        signed = self._mine(publisher)
        paths = [target_path(tenant, one.removeprefix("sha256:")) for one in digests]
        gone = [one for one in paths if signed.targets.pop(one, None) is not None]
        if gone:
            now = datetime.now(UTC).replace(microsecond=0)
            made.stamp(signed, publisher.version + 1, now, made.TARGETS_DAYS)
            self._send(publisher, made.sealed(signed, [signer]))
        return gone

    def _publisher(self, tenant: str, key: str) -> tuple[PublisherState, CryptoSigner]:
        """Return whom one of this user's keys may sign as."""
        mine = [one for one in list_keys(self._folder) if key in {"", one.name}]
        for one in mine:
            for publisher in self._state.publishers:
                if publisher.tenant == tenant and one.keyid in publisher.keys:
                    return publisher, load_signer(Path(one.file))
        if not mine:
            named = f"no key {key!r}" if key else "no key"
            raise UserError(
                f"nodes here run only what is signed, and you have {named}: make one with "
                "`tona artifact key new` and have it allowed with `tona artifact key allow`"
            )
        raise UserError(
            f"none of your keys ({', '.join(one.name for one in mine)}) may sign for tenant "
            f"{tenant}: have one allowed with `tona artifact key allow`"
        )

    def _mine(self, publisher: PublisherState) -> Targets:
        """Return what a publisher has signed so far; nothing, where that is out of force."""
        if not publisher.trusted:
            return Targets()
        self._signed(target_path(publisher.tenant, NOBODY))
        try:
            data = (self._view / f"{publisher.name}.json").read_bytes()
            metadata: Metadata[Targets] = Metadata[Targets].from_bytes(data)
        except (OSError, RepositoryError) as error:
            raise PeerError(f"what {publisher.name} has signed cannot be read: {error}") from None
        return metadata.signed

    def _signed(self, path: str) -> bool:
        try:
            return self._updater.get_targetinfo(path) is not None
        except DownloadError as error:
            raise EnvironmentFailure(
                f"the trust of the controller cannot be had: {error}"
            ) from None
        except RepositoryError as error:
            raise PeerError(f"the trust of the controller is refused: {error}") from None

    def _send(self, publisher: PublisherState, data: bytes) -> None:
        try:
            response = self._http.put(f"/v1/trust/publishers/{publisher.name}", content=data)
        except httpx.HTTPError as error:
            raise EnvironmentFailure(f"the controller does not answer: {error}") from None
        if not response.is_success:
            raise UserError(_text(response))


class _Metadata(FetcherInterface):
    """Metadata over the author's own connection."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def _fetch(self, url: str) -> Iterator[bytes]:
        response = self._http.send(self._http.build_request("GET", url), stream=True)
        if not response.is_success:
            response.close()
            raise DownloadHTTPError(f"{url}: {response.status_code}", response.status_code)
        return response.iter_bytes()


def _hex(wanted: Wanted) -> str:
    return wanted.digest.removeprefix("sha256:")


def _text(response: httpx.Response) -> str:
    try:
        return str(msgspec.json.decode(response.content)["error"]["text"])
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeDecodeError):
        return f"the controller answers {response.status_code}"
