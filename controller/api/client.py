"""The table of operations from the caller's side: requests to send, answers to read. Pure.

request = call("task.show", name="ocr.detect")     # method, path, body
task = answer("task.show", status, body)           # a TaskRecord, or the error is raised
"""

from typing import Any, Final

import msgspec
from msgspec import Struct

from controller.api.arguments import Request, build, sentence
from controller.api.errors import error_of
from controller.api.named import from_json
from controller.api.operation import Operation
from controller.api.operations import BY_NAME, WATCHED
from protocols.errors import PeerError, TonaBug, UserError
from protocols.submission import near

OK_BELOW: Final = 300


class Event(Struct, frozen=True):
    """One server-sent event of a watch: `change`, `resync` or `end`."""

    event: str
    data: bytes
    token: str = ""
    """Where to continue from."""


class Change(Struct, frozen=True):
    """A thing became `value`; None: it is gone."""

    key: str
    value: Any


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
        raise UserError(str(sentence(operation, str(error)))) from None


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


class EventReader:
    """Takes the lines of an event stream apart; comments and unfinished events are dropped."""

    def __init__(self) -> None:
        self._fields: dict[str, str] = {}

    def feed(self, line: str) -> Event | None:
        """Take one line without its end; return the event that it completes."""
        name, _, value = line.partition(": ")
        if name in {"event", "id", "data"}:
            self._fields[name] = value
        if line or not self._fields:
            return None
        fields, self._fields = self._fields, {}
        return Event(fields.get("event", ""), fields.get("data", "").encode(), fields.get("id", ""))


def change(kind: str, event: Event) -> Change:
    """Return what a `change` event of a kind tells, typed. Raises PeerError."""
    try:
        raw = msgspec.json.decode(event.data, type=_RawChange)
        gone = bytes(raw.value) == b"null"
        return Change(raw.key, None if gone else from_json(bytes(raw.value), WATCHED[kind]))
    except msgspec.DecodeError as error:
        raise PeerError(f"the change of a {kind} is not of this version: {error}") from None


class _RawChange(Struct, frozen=True):
    key: str
    value: msgspec.Raw
