"""What a line of the table of operations is made of."""

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, Struct


class Plane(StrEnum):
    """What an operation touches: the work of users, or the network itself."""

    DATA = "data"
    CONTROL = "control"


class Effect(StrEnum):
    """Whether an operation changes anything."""

    READ = "read"
    WRITE = "write"


class Permission(StrEnum):
    """What an identity must hold for an operation."""

    VIEW = "view"
    SUBMIT = "submit"
    OPERATE = "operate"
    FETCH = "fetch"
    """Contents by digest: whoever names one knows it already."""
    STORE = "store"
    """Large values, which pass."""


class Transfer(StrEnum):
    """How arguments and result travel."""

    JSON = "json"
    EVENTS = "events"
    """The result is a stream of server-sent events."""
    BYTES = "bytes"
    """The content itself, with ranges."""


Key = Annotated[str, Meta(min_length=1, max_length=128)]
"""The name of one thing; an unknown one is answered with the nearest that there is."""


class Arguments(Struct, frozen=True, forbid_unknown_fields=True):
    """What every argument struct has in common: a misspelt name is an error."""


class Named(Arguments, frozen=True):
    """One thing by its name."""

    name: Key


class Operation(Struct, frozen=True):
    """One line of the table."""

    name: str
    summary: str
    arguments: type[Struct]
    result: Any
    """A type that msgspec knows; None where the result is no JSON."""
    permission: Permission
    plane: Plane
    method: str
    path: str
    effect: Effect = Effect.READ
    idempotent: bool = True
    kind: str = ""
    """Where `name` must be found; an unknown one is refused with the nearest."""
    transfer: Transfer = Transfer.JSON
    asked: bool = False
    """Whether a role answers it although it changes nothing: the registry does not know it."""

    @property
    def dry_run(self) -> bool:
        """Whether the operation can say what it would do without doing it."""
        return "dry_run" in self.arguments.__struct_fields__
