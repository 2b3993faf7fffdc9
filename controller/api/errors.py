"""What a request is answered with when it cannot be served: `{error: {blame, text, field?}}`."""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct

from protocols.errors import (
    Blame,
    EnvironmentFailure,
    PeerError,
    TonaBug,
    TonaError,
    UserError,
)
from protocols.submission import near

STATUS: Final = {Blame.USER: 400, Blame.PEER: 400, Blame.ENVIRONMENT: 503, Blame.OURS: 500}
"""The status of a failure that names none of its own."""
CONFLICT: Final = 409
_BY_BLAME: Final[dict[Blame, type[TonaError]]] = {
    Blame.USER: UserError,
    Blame.PEER: PeerError,
    Blame.ENVIRONMENT: EnvironmentFailure,
    Blame.OURS: TonaBug,
}


class Refused(TonaError):
    """A request that is answered with a status of its own."""

    def __init__(
        self,
        status: int,
        text: str,
        field: str = "",
        blame: Blame = Blame.USER,
        *,
        retry_after_s: int = 0,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.field = field
        self.blame = blame
        self.retry_after_s = retry_after_s
        """When to ask again; 0: that would not help, or nobody knows."""


class Busy(EnvironmentFailure):
    """Something else is under way; asking again when that has ended may help."""


class ErrorDetail(Struct, frozen=True, omit_defaults=True):
    """One sentence, and who has to act."""

    blame: Blame
    text: str
    field: str = ""
    """The argument that is wrong, where it is one."""


class ErrorBody(Struct, frozen=True):
    """The body of every answer that is not 2xx or 304."""

    error: ErrorDetail


def status_of(error: TonaError) -> int:
    """Return the HTTP status of a failure."""
    return error.status if isinstance(error, Refused) else STATUS[error.blame]


def body_of(error: TonaError) -> bytes:
    """Return the JSON of a failure."""
    field = error.field if isinstance(error, Refused) else ""
    return msgspec.json.encode(ErrorBody(ErrorDetail(error.blame, str(error), field)))


def error_of(status: int, body: bytes) -> TonaError:
    """Return the failure that an answer tells of, with the type of its blame; for clients."""
    try:
        detail = msgspec.json.decode(body, type=ErrorBody).error
    except msgspec.DecodeError:
        return PeerError(f"the controller answered with status {status} and no reason of its own")
    if status == CONFLICT and detail.blame is Blame.ENVIRONMENT:
        return Busy(detail.text)
    return _BY_BLAME[detail.blame](detail.text)


def not_found(what: str, name: str, known: Iterable[str], field: str = "name") -> Refused:
    """Return the refusal of a name that nothing has."""
    return Refused(404, f"there is no {what} {name!r}{near(name, known)}", field)
