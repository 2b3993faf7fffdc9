"""What an anchor hears of nodes and says to them itself, where it also speaks to them.

In the paper's fourth deployment the core's TA speaks to the UEs beside their TS. It believes the TS
about load and reachability; from the node itself it hears what the node is, and when a task is over
there: a deletion reaches a node although its TS is away.
"""

from typing import Final

from msgspec import Struct, structs

from controller.anchor.book import Book
from controller.anchor.lifecycle import TaskEvent
from controller.decider import Received, ToNode
from controller.records import TaskRecord, TaskState
from protocols.messages import Birth, Death, Release, Status
from protocols.messages.hierarchy import NodeState
from protocols.messages.task import InstanceState

AGAIN_MS: Final = 2000
TRIES: Final = 30
"""A release is repeated so often; a node that is silent for longer is asked at its next birth."""
TIMER: Final = "release/"


class _Ending(Struct):
    nodes: set[str]
    epoch: int
    reason: str
    cause: str
    tries: int = 0


class Direct:
    """The anchor's own word with nodes; without `direct` in the settings it says nothing."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._ending: dict[str, _Ending] = {}
        self._incarnations: dict[str, int] = {}

    def restored(self) -> None:
        """Go on with the deletions that a crash has interrupted."""
        for task in list(self._book.tasks.values()):
            if task.state is TaskState.DELETING and not self.release(task, task.reason, "restore"):
                self._over(task.spec.task, "restore")

    def release(self, task: TaskRecord, reason: str, cause: str) -> bool:
        """Release a task on every node that may run it; False when there is nobody to tell."""
        if not self._book.settings.direct:
            return False
        nodes = {task.node, *task.reserved} - {""}
        if not nodes:
            return False
        self._ending[task.spec.task] = _Ending(nodes, task.epoch_high, reason, cause)
        self._say(task.spec.task)
        return True

    def fired(self, name: str) -> None:
        """Repeat a release that was not confirmed, or leave it to the node's next birth."""
        ending = self._ending.get(name)
        if ending is None:
            return
        ending.tries += 1
        if ending.tries >= TRIES:
            self._over(name, ending.cause)
        else:
            self._say(name)

    def born(self, event: Received, birth: Birth) -> None:
        """Learn what a node is; what it holds that is over here is released again."""
        if not self._newer(event):
            return
        book, node = self._book, event.sender
        facts = book.nodes.get(node)
        if facts is not None and facts.inventory != birth.inventory:
            book.put_node(structs.replace(facts, inventory=birth.inventory))
        held = {one.task: one.epoch for one in birth.holdings}
        over = set(book.stories.over())
        for name, ending in list(self._ending.items()):
            if node in ending.nodes and name not in held:
                self._confirmed(name, node, event.cause)
        for name, epoch in held.items():
            if name in self._ending:
                self._say(name)
            elif name in over:
                release = Release(name, epoch, "the task is over")
                book.desk.tell(ToNode(node), release, event.cause)

    def died(self, event: Received, death: Death) -> None:
        """Take in a farewell: nothing runs there any more. A will is only a hint, for the TS."""
        if not self._newer(event) or not death.orderly:
            return
        for name in list(self._ending):
            self._confirmed(name, event.sender, event.cause)

    def status(self, event: Received, status: Status) -> None:
        """Take in that a task has ended on a node."""
        ending = self._ending.get(status.task)
        if ending is not None and status.state is InstanceState.STOPPED:
            self._confirmed(status.task, event.sender, event.cause)

    def _newer(self, event: Received) -> bool:
        """Whether this is not the late word of an older connection."""
        if event.incarnation < self._incarnations.get(event.sender, 0):
            return False
        self._incarnations[event.sender] = event.incarnation
        return True

    def _say(self, name: str) -> None:
        ending = self._ending[name]
        for node in sorted(ending.nodes):
            release = Release(name, ending.epoch, ending.reason)
            self._book.desk.tell(ToNode(node), release, ending.cause)
        self._book.desk.wake(TIMER + name, self._book.desk.now_ms + AGAIN_MS)

    def _confirmed(self, name: str, node: str, cause: str) -> None:
        ending = self._ending[name]
        ending.nodes.discard(node)
        ending.nodes = {one for one in ending.nodes if not self._lost(one)}
        if not ending.nodes:
            self._over(name, cause)

    def _lost(self, node: str) -> bool:
        facts = self._book.nodes.get(node)
        return facts is not None and facts.state is NodeState.LOST

    def _over(self, name: str, cause: str) -> None:
        """Forget a task that is deleted and has ended."""
        self._ending.pop(name, None)
        self._book.desk.wake(TIMER + name, None)
        task = self._book.tasks.get(name)
        if task is not None and task.state is TaskState.DELETING:
            self._book.after(task, TaskEvent.FORGET)
            self._book.drop(task, cause)
