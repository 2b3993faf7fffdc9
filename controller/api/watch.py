"""`GET /v1/watch/KIND`: the registry's changes as server-sent events.

    event: change   id: TOKEN   data: {"key": KEY, "value": STATE or null}
    event: resync   id: TOKEN   data: {"reason": TEXT}   list again, what follows is newer
    event: end                  data: {"reason": TEXT}   connect again, with the last id

A watcher pulls from the bounded log of its kind, so a slow one costs no memory: when the log has
passed it by, it is told so and let go.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from controller.api.errors import Refused, not_found
from controller.api.named import to_json
from controller.api.operations import WATCHED, Watch
from controller.registry import Change, Expired, LiveRegistry
from protocols.errors import Blame

MAX_WATCHERS: Final = 64
BATCH: Final = 256
"""Changes in one piece of the stream."""
PING_S: Final = 15.0
"""A comment goes out after this silence, so that both ends notice a dead connection."""


class Watchers:
    """Opens watches on a registry, a bounded number at once."""

    def __init__(self, registry: LiveRegistry) -> None:
        self.count = 0
        self.dropped = 0
        """Watchers that were too slow."""
        self._registry = registry

    def open(self, arguments: Watch) -> StreamingResponse:
        """Return the stream of a watch. Raises Refused, UserError."""
        if arguments.kind not in WATCHED:
            raise not_found("kind", arguments.kind, WATCHED, "kind")
        if self.count >= MAX_WATCHERS:
            raise Refused(
                503,
                f"{MAX_WATCHERS} watchers are connected, the most there may be",
                blame=Blame.ENVIRONMENT,
            )
        model = self._registry.model
        token = arguments.from_
        first = model.watch(arguments.kind, token) if token else Expired(model.token, "begin here")
        return _Stream(self, self._events(arguments.kind, arguments.prefix, token, first))

    async def _events(
        self, kind: str, prefix: str, token: str, first: object
    ) -> AsyncIterator[bytes]:
        model = self._registry.model
        if isinstance(first, Expired):
            token = first.token
            yield _event("resync", {"reason": first.reason}, token)
        while not self._registry.closed:
            newer = model.watch(kind, token)
            if isinstance(newer, Expired):
                self.dropped += 1
                yield _event("end", {"reason": f"this watcher is too slow: {newer.reason}"})
                return
            if newer:
                token = model.token_at(newer[min(BATCH, len(newer)) - 1].revision)
                shown = [one for one in newer[:BATCH] if one.key.startswith(prefix)]
                if shown:
                    yield b"".join(_change(one, model.token_at(one.revision)) for one in shown)
            elif not await self._changed(kind):
                yield b": ping\n\n"
        yield _event("end", {"reason": "the controller is stopping"})

    async def _changed(self, kind: str) -> bool:
        try:
            async with asyncio.timeout(PING_S):
                await self._registry.changed(kind)
        except TimeoutError:
            return False
        return True


class _Stream(StreamingResponse):
    """A stream that counts as long as it is open."""

    def __init__(self, watchers: Watchers, events: AsyncIterator[bytes]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )
        self._watchers = watchers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._watchers.count += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watchers.count -= 1


def _change(change: Change, token: str) -> bytes:
    value = b"null" if change.value is None else to_json(change.value, WATCHED[change.kind])
    key = msgspec.json.encode(change.key)
    return b'event: change\nid: %b\ndata: {"key":%b,"value":%b}\n\n' % (token.encode(), key, value)


def _event(name: str, data: dict[str, str], token: str = "") -> bytes:
    id_ = f"id: {token}\n" if token else ""
    return b"event: %b\n%bdata: %b\n\n" % (name.encode(), id_.encode(), msgspec.json.encode(data))
