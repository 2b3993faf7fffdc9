"""The links of a running host: hands frames to the wire, messages to roles, and wakes in time."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from controller.host.links import Dispatch, Due, Event, Hand, Hear, Links, Open, Say, Up, Wired
from protocols.messages import Body, Linking


class Speak(Protocol):
    """The wire between processes."""

    def __call__(self, own: str, frame: Linking) -> bool:
        """Put a frame of a role into the inbox of its receiver; False: not now."""
        ...


class Linker:
    """Runs `Links` on an event loop. `hand` and `up` must be set before anything is heard."""

    def __init__(self, links: Links, speak: Speak, now_ms: Callable[[], int]) -> None:
        self.links = links
        self.hand: Callable[[Hand], None] = lambda _: None
        """Takes a message for a role of this process."""
        self.up: Callable[[Up], None] = lambda _: None
        """Hears that a link is bound anew."""
        self._speak = speak
        self._now_ms = now_ms
        self._timer: asyncio.TimerHandle | None = None
        self._arming = False
        self._closed = False

    def say(self, own: str, peer: str, tenant: str, cause: str, body: Body) -> None:
        """Say something to a role elsewhere."""
        self._do(Say(own, peer, tenant, cause, body))

    def hear(self, own: str, peer: str, frame: Linking) -> None:
        """Take a frame from the wire."""
        self._do(Hear(own, peer, frame))

    def open(self, own: str, peer: str) -> None:
        """Make a role of this process known to one elsewhere."""
        self._do(Open(own, peer))

    def wired(self) -> None:
        """Note that the wire is up again."""
        self._do(Wired())

    def silent_ms(self, own: str, peer: str) -> int:
        """Return how long a role elsewhere was not heard."""
        return self.links.silent_ms(own, peer, self._now_ms())

    def close(self) -> None:
        """Wake no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _do(self, event: Event) -> None:
        self._act(event)
        if not self._arming:
            # Once for whatever is said in this turn.
            self._arming = True
            asyncio.get_running_loop().call_soon(self._arm)

    def _act(self, event: Event) -> None:
        for command in self.links.handle(event, self._now_ms()):
            match command:
                case Dispatch(own=own, frame=frame):
                    # What cannot be sent now is sent again.
                    self._speak(own, frame)
                case Hand():
                    self.hand(command)
                case Up():
                    self.up(command)

    def _arm(self) -> None:
        self._arming = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        due_ms = self.links.due_ms
        if due_ms is not None and due_ms <= self._now_ms():
            self._act(Due())
            due_ms = self.links.due_ms
        if due_ms is not None:
            delay_s = max(0, due_ms - self._now_ms()) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._do, Due())
