"""Who asks, and whether they may: the one place where a request meets its permission."""

from typing import Final

from msgspec import Struct
from starlette.types import Scope

from controller.api.errors import Refused
from controller.api.operations import Operation, Permission


class Identity(Struct, frozen=True):
    """Who sends a request."""

    name: str
    tenant: str
    permissions: frozenset[Permission]


LOCAL: Final = Identity("local", "default", frozenset(Permission))
"""Whoever reaches a listener that lets only the right ones in: loopback, or verified by TLS."""


def identify(_scope: Scope) -> Identity:
    """Return who is at the other end of a connection."""
    return LOCAL


def authorise(operation: Operation, identity: Identity) -> None:
    """Let an identity do an operation or not. Raises Refused (403)."""
    if operation.permission not in identity.permissions:
        raise Refused(
            403,
            f"{identity.name!r} may not {operation.name}: it needs the permission "
            f"{operation.permission.value!r}",
        )
