"""The rows of several processes as one table: each keeps its own, one of them is shown. Pure.

The newest word about a thing is shown, whoever it comes from; when that source drops it, what
another still holds is shown again. Of a node that several schedulers know, the one that it has
come to last is believed; of one connection, those that have lost it are believed least. While a
source is away, what it said of nodes is shown as suspect: they may work on, but nobody says so.
"""

from collections.abc import Iterable
from typing import Any, Final

from msgspec import structs

from controller.decider import Record, View
from controller.records import FLEET
from controller.registry.model import Registry
from protocols.messages.hierarchy import NodeState

_LEFT: Final = (NodeState.LOST, NodeState.MOVED)
LOCAL: Final = ""
"""The source that this process itself is."""


class Merger:
    """Decides what a registry shows; remembers only what other processes have said."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        """By kind and key: what each source holds, the newest last."""
        self._unrenewed: dict[str, set[tuple[str, str]]] = {}
        """Of a source that began anew: what it has not named since."""
        self._away: dict[str, str] = {}
        """Sources that are not heard, and why."""

    def merge(self, source: str, changes: Iterable[Record | View]) -> list[Record | View]:
        """Return the changes to show for those that a source has said."""
        if source == LOCAL and not self._rows:
            return list(changes)
        shown: list[Record | View] = []
        newest: dict[tuple[str, str], Any] = {}
        for one in changes:
            key = one.kind, one.key
            rows = self._rows.get(key)
            if rows is None:
                if source == LOCAL:
                    shown.append(one)
                    continue
                present = self._registry.get(*key)
                rows = self._rows[key] = {} if present is None else {LOCAL: present}
            if source in self._unrenewed:
                self._unrenewed[source].discard(key)
            rows.pop(source, None)
            if one.value is not None:
                rows[source] = one.value
            chosen = self._choose(key, rows)
            if chosen != newest.get(key, self._registry.get(*key)):
                newest[key] = chosen
                shown.append(View(*key, chosen))
        return shown

    def holders(self, kind: str, key: str) -> list[str]:
        """Return the sources that hold a thing; those that have lost a node come last."""
        rows = self._rows.get((kind, key))
        if rows is None:
            return [] if self._registry.get(kind, key) is None else [LOCAL]
        return sorted(rows, key=lambda one: getattr(rows[one], "state", "") == NodeState.LOST)

    def begin(self, source: str) -> None:
        """Note that a source tells everything anew from here on."""
        self._unrenewed[source] = {key for key, rows in self._rows.items() if source in rows}

    def end(self, source: str) -> list[Record | View]:
        """Return the changes to show once a source that began anew has told everything."""
        gone = self._unrenewed.pop(source, set())
        return self.merge(source, [View(kind, key, None) for kind, key in sorted(gone)])

    def away(self, source: str, reason: str) -> list[Record | View]:
        """Return the changes to show when a source falls silent, or with no reason is back."""
        if reason:
            self._away[source] = reason
        else:
            self._away.pop(source, None)
        known = [key for key, rows in self._rows.items() if key[0] == FLEET and source in rows]
        return [View(*key, self._choose(key, self._rows[key])) for key in known]

    def _choose(self, key: tuple[str, str], rows: dict[str, Any]) -> Any:
        if not rows or set(rows) == {LOCAL}:
            # Nobody else holds it any more: it is nothing to merge.
            del self._rows[key]
        values = list(rows.values())
        if key[0] == FLEET:
            newest = max((one.incarnation for one in values), default=0)
            rows = {source: view for source, view in rows.items() if view.incarnation == newest}
            values = [self._believed(source, view) for source, view in rows.items()]
            there = [one for one in values if one.state not in _LEFT]
            values = there or [one for one in values if one.state is not NodeState.LOST] or values
        return values[-1] if values else None

    def _believed(self, source: str, view: Any) -> Any:
        reason = self._away.get(source)
        if reason is None or view.state is NodeState.LOST:
            return view
        return structs.replace(view, state=NodeState.SUSPECT, reason=reason)
