"""Jobs that may be on their way here: their service was taken over from another anchor.

Which anchors have not said yet that all jobs of a service are here stands in the record of the
service. Until they have, nobody is told that there is no such job: for a while nothing is said at
all, then that it may be asked for later. The word of the other anchor may get lost when either of
us begins anew, so it is asked for, ever more rarely.
"""

from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from protocols.messages import JobsMoved

HANDOVER_MS: Final = 60_000
"""How long nothing is said about a job that may be on its way."""
ASK_MS: Final = 2000
ASK_MAX_MS: Final = 30_000
"""Between questions after the jobs of a service; doubled each time."""
TIMER: Final = "job/ask"


class Arrivals:
    """The services of an anchor whose jobs may not all be here yet."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._desk = book.desk
        self._since_ms: dict[str, int] = {}
        self._wait_ms = ASK_MS

    def restored(self) -> None:
        """Wait on for what the records say has not come."""
        for service, held in self._book.services.items():
            if held.expects:
                self.begin(service)

    def begin(self, service: str) -> None:
        """Wait for the jobs of a service from now on, if any may come."""
        if self.expects(service):
            self._since_ms[service] = self._desk.now_ms
            self._wait_ms = ASK_MS
            self._desk.wake(TIMER, self._desk.now_ms + ASK_MS)

    def end(self, service: str) -> None:
        """Wait no more: the service is not here any more."""
        self._since_ms.pop(service, None)

    def expects(self, service: str) -> bool:
        """Whether jobs of a service may be on their way here."""
        held = self._book.services.get(service)
        return held is not None and bool(held.expects)

    def silent(self, service: str) -> bool:
        """Whether that is to be waited for without a word."""
        until_ms = self._since_ms.get(service, -HANDOVER_MS) + HANDOVER_MS
        return self._desk.now_ms < until_ms and self.expects(service)

    def moved(self, body: JobsMoved, cause: str) -> None:
        """Take in that an anchor has no jobs of a service any more."""
        held = self._book.services.get(body.service)
        if held is None or not held.expects:
            return
        # An empty name stands for whoever had it before.
        rest = tuple(one for one in held.expects if one and one != body.owner and body.owner)
        if rest != held.expects:
            self._book.put_service(body.service, structs.replace(held, expects=rest), cause)
        if not rest:
            self.end(body.service)

    def linked(self) -> None:
        """Ask at once: a word may be lost."""
        self._wait_ms = ASK_MS
        self.fired()

    def fired(self) -> None:
        """Ask the anchors of before whether there is more to come."""
        asked = False
        for service in self._since_ms:
            held = self._book.services.get(service)
            for owner in held.expects if held is not None else ():
                asked = True
                question = JobsMoved(service, owner, self._desk.name, asks=True)
                for scheduler in self._book.settings.schedulers:
                    self._desk.tell_role(scheduler, question, "moved")
        if asked:
            self._desk.wake(TIMER, self._desk.now_ms + self._wait_ms)
            self._wait_ms = min(2 * self._wait_ms, ASK_MAX_MS)
