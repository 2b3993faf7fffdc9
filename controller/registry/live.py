"""The registry in a running host: the pure model, and the waking of those who watch it."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from controller.decider import Record, View
from controller.registry.merge import LOCAL, Merger
from controller.registry.model import Registry

Change = Record | View


class LiveRegistry:
    """Feeds the model and wakes whoever waits; lives on one event loop."""

    def __init__(self, model: Registry) -> None:
        self.model = model
        self.merger = Merger(model)
        self.closed = False
        self.followers: list[Callable[[Sequence[Change]], None]] = []
        """Hear every change of this process's own roles."""
        self._changed: dict[str, asyncio.Event] = {}

    def apply(self, records: Iterable[Record] = (), views: Iterable[View] = ()) -> None:
        """Take in an output of a decider, once its records are durable."""
        changes: list[Change] = [*records, *views]
        self.show(self.merger.merge(LOCAL, changes))
        for follower in self.followers:
            follower(changes)

    def show(self, changes: Sequence[Change]) -> None:
        """Take in what the merger has decided to show."""
        self.model.apply(changes)
        for kind in {one.kind for one in changes}:
            event = self._changed.pop(kind, None)
            if event is not None:
                event.set()

    async def changed(self, kind: str) -> None:
        """Wait until something of this kind changes after this call, or `close`."""
        if not self.closed:
            await self._changed.setdefault(kind, asyncio.Event()).wait()

    def close(self) -> None:
        """Wake everybody for the last time; `closed` tells them why."""
        self.closed = True
        for event in self._changed.values():
            event.set()
        self._changed.clear()
