"""What an identity needs to trust and be trusted: one bundle, one file, two TLS contexts.

Both sides verify, TLS 1.2 at least, the server's name is checked, a revocation list is obeyed; no
switch turns any of it off. Validity is held against this machine's clock: a board that starts in
1970 is refused with a sentence that says so, and the session goes on once the clock is set.
"""

# The device agent reads its bundle: pathlib, which nothing else here needs, would cost it 0.6 MB.
# ruff: noqa: PTH105, PTH123 - as said

import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta, Struct

from protocols.base import Name
from protocols.errors import EnvironmentFailure, UserError
from protocols.topics import Speaker

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE_MODE: Final = 0o600
BUNDLE_MAX_BYTES: Final = 1024 * 1024
_OTHERS: Final = 0o077

Pem = Annotated[str, Meta(pattern="^-----BEGIN ")]


class Bundle(Struct, frozen=True, kw_only=True):
    """An identity and the way to its cell; `key_pem` is its secret."""

    name: Name
    """The certificate's common name: who speaks."""
    speaker: Speaker
    cell: Name
    broker_host: str
    """The broker's certificate must carry it."""
    broker_port: Annotated[int, Meta(ge=1, le=65535)]
    api_url: str
    key_pem: Pem
    certificate_pem: Pem
    """The leaf first, then what leads to the authority."""
    ca_pem: Pem
    crl_pem: str = ""
    root_json: str = ""
    """The root of trust in artifacts (TUF), from which a node or an author begins."""


def save(bundle: Bundle, path: str | os.PathLike[str]) -> None:
    """Write the bundle as one JSON file that its owner alone can read; all of it or nothing.

    Raises EnvironmentFailure.
    """
    draft = f"{os.fspath(path)}.{os.getpid()}.new"
    data = msgspec.json.format(msgspec.json.encode(bundle))
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, FILE_MODE)
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(draft, path)
    except OSError as error:
        raise EnvironmentFailure(f"{path}: cannot write the bundle: {error.strerror}") from None


def load(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle. Raises UserError: absent, readable by others, or no bundle."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(BUNDLE_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read the bundle: {error.strerror}") from None
    if mode & _OTHERS:
        raise UserError(f"{path}: others can read this secret key: run chmod 600 {path}")
    if len(data) > BUNDLE_MAX_BYTES:
        raise UserError(f"{path}: larger than any bundle: name the file made by `tona ca issue`")
    try:
        return msgspec.json.decode(data, type=Bundle)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a bundle made by `tona ca issue`: {error}") from None


def client_context(bundle: Bundle) -> ssl.SSLContext:
    """Return the context of a client that shows its certificate. Raises UserError."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, bundle)


def server_context(bundle: Bundle) -> ssl.SSLContext:
    """Return the context of a server that asks for its clients' certificates. Raises UserError."""
    return _context(ssl.PROTOCOL_TLS_SERVER, bundle)


def _context(protocol: int, bundle: Bundle) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    what = "authority"
    try:
        context.load_verify_locations(cadata=bundle.ca_pem)
        if bundle.crl_pem:
            what = "revocation list"
            with _as_file(bundle.crl_pem) as path:
                context.load_verify_locations(cafile=path)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        what = "key and certificate"
        with _as_file(bundle.key_pem + "\n" + bundle.certificate_pem) as path:
            # Without a password of its own, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(path, password="")
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise UserError(f"bundle of {bundle.name}: its {what} cannot be used: {reason}") from None
    return context


@contextmanager
def _as_file(pem: str) -> "Iterator[str]":
    """Lend OpenSSL, which reads only files here, one that never touches a disk."""
    handle = os.memfd_create("pem", os.MFD_CLOEXEC)
    try:
        os.write(handle, pem.encode())
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
