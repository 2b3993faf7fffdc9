"""Who asks, and whether they may: the one place where a request meets its permission."""

from collections.abc import Callable
from typing import Final

from msgspec import Struct
from starlette.types import Scope

from controller.api.errors import Refused
from controller.api.operation import Operation, Permission
from controller.api.peers import EXTENSION
from protocols.topics import Speaker


class Identity(Struct, frozen=True):
    """Who sends a request."""

    name: str
    tenant: str
    permissions: frozenset[Permission]


_EVERYTHING: Final = frozenset(Permission)
LOCAL: Final = Identity("local", "default", _EVERYTHING)
"""Whoever reaches a listener without TLS, which is on loopback."""
PERMISSIONS: Final = {
    Speaker.CLIENT.value: _EVERYTHING,
    Speaker.CONTROLLER.value: _EVERYTHING,
    # A node that was taken over must not command the fleet: it fetches and stores, no more.
    Speaker.NODE.value: frozenset((Permission.FETCH, Permission.STORE)),
}


def identify(scope: Scope, revoked: Callable[[str], bool]) -> Identity:
    """Return who is at the other end of a connection, by the certificate that TLS verified.

    `revoked` tells of a serial whether it is out of force. Raises Refused (403).
    """
    peer = scope.get("extensions", {}).get(EXTENSION)
    if peer is None:
        return LOCAL
    if revoked(peer.serial):
        raise Refused(403, f"the certificate of {peer.name!r} was revoked: have another issued")
    permissions = PERMISSIONS.get(peer.kind, frozenset())
    return Identity(peer.name or "a certificate without a name", "default", permissions)


def authorise(operation: Operation, identity: Identity) -> None:
    """Let an identity do an operation or not. Raises Refused (403)."""
    if operation.permission not in identity.permissions:
        raise Refused(
            403,
            f"{identity.name!r} may not {operation.name}: it needs the permission "
            f"{operation.permission.value!r}",
        )
