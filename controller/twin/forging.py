"""Old messages that come again, and messages of whoever may not say them.

What follows on a message carries its cause: so a forged one is seen to change nothing, for no
record and no word has its cause but the answer to whoever has sent it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from controller.decider import Event, Output, Received, ToRole
from controller.records import TaskRecord
from controller.twin.hosting import SimHost
from controller.twin.network import Network
from controller.twin.roamer import Roamer
from controller.twin.rules import Rule
from protocols.codec import Frame
from protocols.messages import (
    AnchorMoved,
    AnchorOffer,
    AnchorTaken,
    AnchorTransfer,
    Birth,
    Body,
    Death,
    EnvelopeGrant,
    EnvelopeRevoke,
    HandoverAnswer,
    HandoverCommand,
    HandoverComplete,
    HandoverFailed,
    HandoverRequest,
    HandoverRequired,
    HandoverTimes,
    Lease,
    Linking,
    Measurement,
    Neighbours,
    NodeSummary,
    Relinquished,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import CellMeasure, CellPoint
from protocols.topics import Topic

if TYPE_CHECKING:
    from controller.twin.handovers import Roaming

FORGED: Final = "forged"
"""The cause of what is forged."""
KEPT_FRAMES: Final = 60
"""Of each kind, for a replay."""
_FRAMES: Final = (
    Birth,
    Death,
    HandoverCommand,
    HandoverComplete,
    HandoverFailed,
    HandoverTimes,
    Measurement,
    Neighbours,
)
_TAGS: Final = {
    tag.encode(): kind.__name__
    for kind, tag in (
        (one, str(one.__struct_config__.tag))
        for one in (
            AnchorOffer,
            AnchorTaken,
            AnchorTransfer,
            EnvelopeGrant,
            EnvelopeRevoke,
            HandoverAnswer,
            HandoverRequest,
            HandoverRequired,
            Lease,
            NodeSummary,
            Relinquished,
        )
    )
}
"""What links carry between roles."""
_TAG_WITHIN: Final = 24
"""Bytes of a message that hold its tag."""


class Forger:
    """Says again what was said, and what nobody may say."""

    def __init__(self, twin: "Roaming") -> None:
        self._twin = twin
        self._frames: dict[str, deque[tuple[Network, Topic, Frame]]] = {}
        self.replayed: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self._numbers = 0

    # Replays.

    def seen(self, network: Network, topic: Topic, frame: Frame) -> None:
        """Keep a frame for later."""
        for kind in _kinds(frame.body):
            kept = self._frames.setdefault(kind, deque(maxlen=KEPT_FRAMES))
            kept.append((network, topic, frame))

    def replay(self) -> None:
        """Say an old word again."""
        if self._frames:
            dice = self._twin.world.dice
            kind = dice.choice(sorted(self._frames))
            network, topic, frame = dice.choice(self._frames[kind])
            self.replayed[kind] = self.replayed.get(kind, 0) + 1
            network.publish("replayer", topic, frame)

    # Forgeries.

    def forge(self, node: Roamer) -> None:
        """Have somebody who may not say it say something about a node."""
        task = self._twin.tasks().get(self._twin.own_task(node.name))
        if task is None:
            return
        found = [one for one in self._forgeries(node, task) if one[0].alive]
        if found:
            host, role, sender, body = self._twin.world.dice.choice(found)
            host.post(role, Received(sender, 0, 0, "default", FORGED, body))

    def _forgeries(
        self, node: Roamer, task: TaskRecord
    ) -> Iterator[tuple[SimHost, str, str, Body]]:
        """Yield who hears it, who is said to have sent it, and what."""
        twin = self._twin
        owner, name, cell = twin.owner_of(task.spec.task), node.name, node.network.cell
        entitled = {task.scheduler, task.heir, *task.former}
        others = [f"ts-{one}" for one in twin.cells if f"ts-{one}" not in entitled]
        thief = others[0] if others else "ts-nobody"
        here, attached = twin.hosts[cell], node.incarnation
        for body in self._to_anchors(node, task, thief):
            yield owner, owner.config.ta, thief, body
        for stranger in ("ts-nobody", name):
            summary = NodeSummary(name, NodeState.ONLINE, attached + 9, node.hands.inventory)
            yield owner, owner.config.ta, stranger, summary
        point = CellPoint("cell-9", thief, ("mqtt://127.0.0.1/cell-9",))
        grant = EnvelopeGrant(
            task.service,
            task.generation + 1,
            task.spec,
            (f"edge-{cell}",),
            task.epoch_high + 1,
            task.epoch_high + 9,
            (task.spec.task,),
        )
        for body in (
            HandoverCommand(FORGED, name, point, attached),
            HandoverRequest(FORGED, name, attached, thief, node.hands.inventory),
            EnvelopeRevoke(task.spec.task, task.generation, "", node=name),
            EnvelopeRevoke(
                task.spec.task, task.generation, "", transferred=True, node=name, leased=1 << 40
            ),
            Neighbours(1 << 40, (point,)),
            Lease(1),
            AnchorMoved(task.service, task.generation, 1 << 20, thief, owner.config.ta),
            grant,
        ):
            yield here, here.config.ts, thief if thief != here.config.ts else "ta-nobody", body
        moved = AnchorMoved(task.service, task.generation, 1 << 20, thief, owner.config.ta)
        yield twin.head, twin.head.config.namo, thief, moved

    def _to_anchors(self, node: Roamer, task: TaskRecord, thief: str) -> Iterator[Body]:
        """Yield what a scheduler says of a task or a node that is not its own."""
        name, kept = task.spec.task, task.epoch_high
        elsewhere = CellMeasure("cell-9", level_db=-60.0)
        yield Relinquished(name, task.generation, node.name, task.epoch, 0, kept)
        yield HandoverAnswer(FORGED, node.name, True, thief.removeprefix("ts-"))
        yield HandoverFailed(FORGED, node.name, "")
        yield HandoverRequired(FORGED, node.name, 0, ("cell-1", "cell-2", "cell-3"), "")
        yield Measurement("a3", elsewhere, (), node=node.name)
        yield AnchorOffer(task.service, 1 << 20, (thief,))
        yield AnchorTransfer(task.service, 1 << 20, ())
        yield AnchorTaken(task.service, 1)

    def decided(self, batch: Sequence[Event], output: Output) -> None:
        """Check that what was forged has changed nothing. Raises BrokenRule."""
        forged = [one for one in batch if isinstance(one, Received) and one.cause == FORGED]
        if not forged:
            return
        senders = {one.sender for one in forged}
        changed = [one.kind for one in output.records if one.cause == FORGED]
        for send in (*output.early, *output.sends):
            answers = isinstance(send.to, ToRole) and send.to.role in senders
            if send.cause == FORGED and not answers:
                changed.append(type(send.body).__name__)
        for one in forged:
            kind = type(one.body).__name__
            if changed:
                text = f"{kind} of {one.sender} has brought about {', '.join(changed)}"
                raise self._twin.checkers.broken(Rule.FORGERY, text)
            self.refused[kind] = self.refused.get(kind, 0) + 1


def _kinds(body: Body) -> set[str]:
    """Return what of a frame is worth saying again; it may bring several messages of a link."""
    if not isinstance(body, Linking):
        return {type(body).__name__} if isinstance(body, _FRAMES) else set()
    bodies = [body.body, *(one.body for one in body.further)]
    begins = [one[:_TAG_WITHIN] for one in bodies]
    found = (next((name for tag, name in _TAGS.items() if tag in one), "") for one in begins)
    return {one for one in found if one}
