"""Where clients find what they ask for, when it is not where the API is."""

from msgspec import Struct

from controller.records import CellView


class ServicePlace(Struct, frozen=True):
    """Where the requests for a service go."""

    service: str
    known: bool
    """Whether there is such a service."""
    cell: CellView | None = None
    """None: its tasks have no place yet."""
