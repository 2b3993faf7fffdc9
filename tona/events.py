"""What the requests of a client hear, and what they want done; see `tona.requests`."""

from msgspec import Struct

from protocols.messages.invocation import Accepted, Failure, Invoke, Result, Route, Timing, Value
from protocols.messages.quality import PRIORITY_DEFAULT


class Submit(Struct, frozen=True):
    """A new request; with `uploads` some inputs are blobs that are not stored yet."""

    request: str
    service: str
    inputs: dict[str, Value]
    deadline_ms: float
    uploads: bool = False
    priority: int = PRIORITY_DEFAULT


class Heard(Struct, frozen=True):
    """A message of a node or of the scheduler."""

    body: Accepted | Result | Route
    sender: str = ""
    """Who has said it."""


class Uploaded(Struct, frozen=True):
    """The large inputs of a request are stored, or, with a text, why not."""

    request: str
    failed: str = ""


class Unsent(Struct, frozen=True):
    """A message of this request could not even be queued."""

    request: str


class Cancelled(Struct, frozen=True):
    """Nobody waits for this request any more."""

    request: str


class Online(Struct, frozen=True):
    """The connection to the broker stands, or is gone."""

    connected: bool


class Woken(Struct, frozen=True):
    """The time of the last `Wake` has come."""


Event = Submit | Heard | Uploaded | Unsent | Cancelled | Online | Woken


class SendInvoke(Struct, frozen=True):
    """Send a request to a node."""

    node: str
    body: Invoke
    cell: str = ""
    """Of the node; empty: that of its service."""


class SendCancel(Struct, frozen=True):
    """Tell a node that nobody waits for a request."""

    node: str
    request: str
    service: str
    cell: str = ""
    """As in SendInvoke."""


class AskRoute(Struct, frozen=True):
    """Ask the scheduler where a service is served, and follow what it says of it."""

    service: str


class Upload(Struct, frozen=True):
    """Store the large inputs of a request at one of these addresses."""

    request: str
    urls: tuple[str, ...]


class Finish(Struct, frozen=True):
    """The one answer to a request."""

    request: str
    outputs: dict[str, Value]
    failure: Failure | None
    timings: tuple[Timing, ...]
    attempts: int
    urls: tuple[str, ...]
    """Where outputs that are blobs can be fetched."""


class Wake(Struct, frozen=True):
    """Say `Woken` at this time; replaces the one before."""

    at_ms: float


Command = SendInvoke | SendCancel | AskRoute | Upload | Finish | Wake
