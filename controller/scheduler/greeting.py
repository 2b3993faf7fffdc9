"""What anchors hold here: each is greeted when it is linked, and grants again all that it has.

What an anchor has not granted by the time it bids us welcome it holds no more; its revoke may have
been lost. But a service may be on its way to another anchor: until that one has it the first says
so, and nothing is dropped. Then it says who has it, and that one is greeted as well where its grant
does not come: what it does not grant either is over.
"""

from typing import Final

from msgspec import Struct

from controller.decider import ToRole
from controller.desk import Desk
from controller.scheduler.settings import Settings
from protocols.messages import AnchorWelcome, SchedulerHello

HELLO_MS: Final = 1000
"""A hello that is not answered is said again then."""
GRANT_MS: Final = 1000
"""So long the grant of who is said to have a service now may take."""
TIMER: Final = "hello"


class _Hello(Struct):
    number: int
    granted: set[str] = set()
    """Tasks that the anchor has granted since."""
    going: set[str] = set()
    """Tasks that it has given to another anchor, which has not got them yet."""


class Greeting:
    """Greets anchors, and tells what of theirs is over."""

    def __init__(self, settings: Settings, desk: Desk) -> None:
        self._settings = settings
        self._desk = desk
        self._number = 0
        self._hellos: dict[str, _Hello] = {}
        """By anchor that has not answered."""
        self._awaited: dict[str, dict[str, int]] = {}
        """By anchor: tasks that it is said to have, and until when its grant may come."""
        for anchor in settings.anchors:
            self.begin(anchor)

    def __len__(self) -> int:
        return len(self._hellos)

    def begin(self, anchor: str) -> None:
        """Have an anchor greeted; what it granted before that counts no more."""
        self._number += 1
        self._hellos[anchor] = _Hello(self._number)
        self._awaited.pop(anchor, None)

    def say(self) -> None:
        """Greet every anchor that has not answered, and come back."""
        if not self._hellos:
            return
        settings = self._settings
        for anchor in sorted(self._hellos):
            number = self._hellos[anchor].number
            hello = SchedulerHello(
                settings.name, settings.epoch, settings.point, settings.beside, number
            )
            self._desk.tell(ToRole(anchor), hello, "start")
        self._desk.wake(TIMER, self._desk.now_ms + HELLO_MS)

    def granted(self, anchor: str, task: str) -> None:
        """Note that an anchor holds a task."""
        if anchor in self._hellos:
            self._hellos[anchor].granted.add(task)
        self._awaited.get(anchor, {}).pop(task, None)

    def going(self, anchor: str, task: str) -> None:
        """Note that a task of an anchor is on its way to another one."""
        if anchor in self._hellos:
            self._hellos[anchor].going.add(task)

    def awaits(self, anchor: str, task: str) -> None:
        """Note that an anchor is said to have a task that another one has given."""
        awaited = self._awaited.setdefault(anchor, {})
        awaited.setdefault(task, self._desk.now_ms + GRANT_MS)

    def asks(self, anchor: str, task: str) -> bool:
        """Whether an anchor is still to say whether it has a task."""
        return anchor in self._hellos or task in self._awaited.get(anchor, ())

    def sweep(self) -> None:
        """Greet the anchors whose grants have not come."""
        late = [
            anchor
            for anchor, awaited in self._awaited.items()
            if any(self._desk.now_ms >= until_ms for until_ms in awaited.values())
        ]
        for anchor in late:
            self.begin(anchor)
        if late:
            self.say()

    def welcomed(self, anchor: str, welcome: AnchorWelcome) -> frozenset[str] | None:
        """Take in a welcome; returns the tasks that its anchor answers for, None: any."""
        hello = self._hellos.get(anchor)
        if hello is None or welcome.number not in (0, hello.number):
            return None
        del self._hellos[anchor]
        if len(hello.granted) < welcome.grants:
            return None
        return frozenset(hello.granted | hello.going)
