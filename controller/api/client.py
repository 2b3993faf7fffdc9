"""The table of operations from the caller's side: requests to send, answers to read. Pure.

request = call("task.show", name="ocr.detect")     # method, path, body
task = answer("task.show", status, body)           # a TaskRecord, or the error is raised
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from controller.api.arguments import Request, build
from controller.api.errors import error_of
from controller.api.named import from_json
from controller.api.operations import BY_NAME, Operation
from controller.namo.reader import near
from protocols.errors import PeerError, TonaBug, UserError

OK_BELOW: Final = 300


class Event(Struct, frozen=True):
    """One server-sent event: `change`, `resync` or `end`."""

    event: str
    data: bytes
    id: str = ""
    """The token to continue from."""


def find(name: str) -> Operation:
    """Return an operation of the table. Raises TonaBug: the caller's own table is this one."""
    operation = BY_NAME.get(name)
    if operation is None:
        raise TonaBug(f"there is no operation {name!r}{near(name, BY_NAME)}")
    return operation


def call(name: str, /, **arguments: Any) -> Request:
    """Return the request of an operation. Raises UserError when an argument is not valid."""
    operation = find(name)
    try:
        return build(operation, msgspec.convert(arguments, operation.arguments))
    except msgspec.ValidationError as error:
        raise UserError(f"{name}: {error}") from None


def answer(name: str, status: int, body: bytes) -> Any:
    """Return the typed result of an operation.

    Raises UserError, EnvironmentFailure, PeerError or TonaBug, as the controller lays the blame.
    """
    if status >= OK_BELOW:
        raise error_of(status, body)
    try:
        return from_json(body, find(name).result)
    except msgspec.DecodeError as error:
        raise PeerError(f"the answer to {name} is not of this version: {error}") from None


def events(lines: Iterable[str]) -> Iterator[Event]:
    """Take the lines of an event stream apart; feed it all lines of one event, blank one included.

    An unfinished event at the end is dropped, as the format has it.
    """
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if name in {"event", "id", "data"}:
            fields[name] = value
        elif not line and fields:
            yield Event(
                fields.get("event", ""), fields.get("data", "").encode(), fields.get("id", "")
            )
            fields = {}
