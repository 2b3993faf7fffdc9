"""Late words: a scheduler must act on nothing that an older connection of a node has said."""

from collections.abc import Callable, Sequence

from controller.decider import Event, Fired, Output, Received, ToNode
from controller.twin.rules import BrokenRule, Rule
from protocols.messages import Birth, Death, NodeSummary, Welcome
from protocols.messages.hierarchy import NodeState


class Words:
    """Holds what one life of a scheduler says about nodes against the births it has heard."""

    def __init__(self, broken: Callable[[Rule, str], BrokenRule]) -> None:
        self._broken = broken
        self._born: dict[str, int] = {}
        """The highest incarnation whose birth was heard, by node."""
        self._told: dict[str, NodeState] = {}

    def decided(self, batch: Sequence[Event], output: Output) -> None:
        """Check a turn. Raises BrokenRule."""
        before: dict[str, int] = {}
        only_late: dict[str, bool] = {}
        for event in batch:
            if isinstance(event, Received) and event.incarnation:
                node = event.sender
                born = self._born.get(node, 0)
                before.setdefault(node, born)
                if isinstance(event.body, Birth):
                    self._born[node] = max(born, event.incarnation)
                late = isinstance(event.body, Death) and event.incarnation < born
                only_late[node] = late and only_late.get(node, True)
        timed = any(isinstance(event, Fired) for event in batch)
        for send in output.sends:
            body = send.body
            if isinstance(body, Welcome) and isinstance(send.to, ToNode):
                node, number = send.to.node, body.incarnation
            elif isinstance(body, NodeSummary):
                node, number = body.node, body.incarnation
                fell = body.state in (NodeState.LOST, NodeState.SUSPECT)
                changed = self._told.get(node) is not body.state
                if fell and changed and only_late.get(node) and not timed:
                    text = f"{node} is {body.state} by the word of an older connection"
                    raise self._broken(Rule.INCARNATION, text)
                self._told[node] = body.state
            else:
                continue
            born = before.get(node, self._born.get(node, 0))
            if number < born:
                text = f"{node} was born as {born} and counts as {number} again"
                raise self._broken(Rule.INCARNATION, text)
