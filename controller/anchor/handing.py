"""Services that go to another anchor, from anchor to anchor: the one beside the cell they are in.

Theory of operation. Where every gateway has an anchor of its own, a service whose tasks have all
followed a node to another cell is OFFERED to the anchor beside that cell. If that says yes, all
that is durable of the service leaves the books here in one output and stands in a record of its
own, GIVEN, which is said to the other one until it is TAKEN: durable there, and granted anew from
there under epochs above. So two never own it. Between GIVEN and TAKEN nobody does: its scheduler
goes on in the envelope that it has, and the task runs; a scheduler that greets us meanwhile is told
not to give it up, and later whose it is. Who refuses what was given gives it back. NAMO is told by
whoever has it; an order that comes here meanwhile is answered with where it went. What NAMO has
ordered at the other one before it came there is *adopted*: each task goes on as it was given, the
order is a change of it, and what was begun instead is taken back, unless that serves already.
"""

from collections.abc import Callable, Iterable
from typing import Final

from msgspec import Struct, structs

from controller.anchor.book import Book
from controller.anchor.granting import Granting
from controller.anchor.jobs import Jobs
from controller.anchor.lifecycle import HOMELESS, SERVING
from controller.anchor.parcels import Parcel, age, opened, packed
from controller.anchor.placing import Placing
from controller.anchor.upward import Upward
from controller.decider import Received, Record
from controller.records import GIVEN, AnchoredRecord, GivenRecord, TaskRecord, TaskState
from protocols.messages import (
    AnchorMoved,
    AnchorOffer,
    AnchorTaken,
    AnchorTransfer,
    ServiceDelete,
    ServiceOrder,
)

LOOK_MS: Final = 200
"""Between two looks at a service that is not ready to go yet."""
LOOKS_MAX: Final = 300
"""After so many it stays: what is in its way lasts."""
OFFER_MS: Final = 2000
"""An offer that nobody answers is void then."""
AGAIN_MS: Final = 2000
"""What was not answered is said again."""
GIVEN_MAX: Final = 4096
"""Services of which it is remembered who has them; the oldest is forgotten."""
TIMER: Final = "anchor/"


class _Offer(Struct, frozen=True):
    to: str
    number: int
    at_ms: int


class Handing:
    """Gives services to other anchors, and takes them."""

    def __init__(
        self,
        book: Book,
        granting: Granting,
        placing: Placing,
        jobs: Jobs,
        upward: Upward,
        forget: Callable[[Iterable[str]], None],
    ) -> None:
        """Make one; `forget` drops what others were told of tasks that are not here any more."""
        self._book = book
        self._granting = granting
        self._placing = placing
        self._jobs = jobs
        self._upward = upward
        self._forget = forget
        self.look: Callable[[str, str], None] = lambda *_: None
        """Has the tasks of a node follow it."""
        self.apply: Callable[[ServiceOrder, Received], None] = lambda *_: None
        """Brings the tasks of a service up to its order."""
        self.beside: dict[str, str] = {}
        """The anchor in the process of each scheduler."""
        self._looks: dict[str, int] = {}
        self._offers: dict[str, _Offer] = {}
        self.given: dict[str, GivenRecord] = {}
        self._given_ms: dict[str, int] = {}
        self._again_ms: dict[str, int] = {}
        """When something is said again of a service, at the earliest."""
        self._due_ms: int | None = None
        book.counters |= {"anchors_given": 0, "anchors_taken": 0, "anchorless_longest_ms": 0}

    def restore(self, records: Iterable[Record]) -> None:
        """Take in what was given."""
        for one in records:
            if isinstance(one.value, GivenRecord):
                self.given[one.key] = one.value

    def restored(self) -> None:
        """Go on with what a crash has interrupted."""
        self._say_again()

    def gave(self, task: str, scheduler: str, cause: str) -> bool:
        """Say to a scheduler who has a task now, or will have it; False: it was not given."""
        given = self.given.get(task.rpartition(".")[0])
        if given is None or given.service in self._book.services:
            return False
        self._tell(scheduler, given, cause)
        return True

    # Giving.

    def touch(self, service: str) -> None:
        """Look whether a service is to go, now that a task of it is in another cell."""
        self._looks[service] = 0
        self._wake(0)

    def fired(self, _name: str = "") -> None:
        """Look again, and say again what is due."""
        self._due_ms = None
        now_ms = self._book.desk.now_ms
        for service, offer in list(self._offers.items()):
            if now_ms >= offer.at_ms + OFFER_MS:
                del self._offers[service]
        for service, looks in list(self._looks.items()):
            to = self._wanted(service)
            if not to or looks >= LOOKS_MAX:
                del self._looks[service]
                continue
            self._looks[service] = looks + 1
            if service not in self._offers and self._settled(service):
                self._offer(service, to)
        if self._looks or self._offers:
            self._wake(LOOK_MS)
        self._say_again()

    def _wanted(self, service: str) -> str:
        """Return the anchor that a service should go to; empty: it stays."""
        tasks = self._book.ordered(service)
        owners = {self.beside.get(one.heir or one.scheduler, "") for one in tasks}
        owner = owners.pop() if len(owners) == 1 else ""
        return "" if owner == self._book.desk.name else owner

    def _settled(self, service: str) -> bool:
        """Whether nothing is under way for a service."""
        return all(
            one.state in SERVING
            and one.held is None
            and one.leaving is None
            and one.memory is None
            and one.asked is None
            and not one.heir
            # We alone can tell who was waited out that he has it no more.
            and not one.former
            for one in self._book.ordered(service)
        )

    def _offer(self, service: str, to: str) -> None:
        number = self._book.services[service].number + 1
        self._offers[service] = _Offer(to, number, self._book.desk.now_ms)
        schedulers = tuple(sorted({one.scheduler for one in self._book.ordered(service)}))
        self._book.desk.tell_role(to, AnchorOffer(service, number, schedulers), "anchor")

    def answered(self, event: Received, body: AnchorTaken) -> None:
        """Take in whether an offer, a transfer or a word to NAMO was taken."""
        held = self._book.services.get(body.service)
        offer, given = self._offers.get(body.service), self.given.get(body.service)
        if body.offer:
            if offer is None or (event.sender, body.number) != (offer.to, offer.number):
                return
            del self._offers[body.service]
            # It may have gone on while the offer was on its way. Who acts on it is to be in the
            # process of its next anchor: another one would go on with the leave that it has of us.
            there = self._wanted(body.service) == offer.to
            if not body.refused and there and self._settled(body.service):
                self._give(body.service, offer, event.cause)
        elif held is not None and event.sender == held.namo and body.number == held.number:
            self._book.put_service(body.service, structs.replace(held, giver=""), event.cause)
        elif (
            given is not None and (event.sender, body.number) == (given.to, given.number)
        ) and given.records:
            self._taken(given, body.refused, event.cause)

    def _give(self, service: str, offer: _Offer, cause: str) -> None:
        book, name = self._book, self._book.desk.name
        held, tasks = book.services[service], book.ordered(service)
        going = structs.replace(held, number=offer.number, giver=name, expects=(name,))
        for task in tasks:
            book.tell(task.spec.task, "given", f"to the anchor {offer.to}", cause)
        stories = {one.spec.task: book.stories.length(one.spec.task) for one in tasks}
        given = GivenRecord(
            service,
            offer.to,
            offer.number,
            held.order.generation,
            held.namo,
            held.tenant,
            max(one.epoch_high for one in tasks),
            packed(Parcel(going, tuple(tasks), stories)),
            tuple(sorted({one.scheduler for one in tasks})),
        )
        self._keep(given, cause)
        book.put_service(service, None, cause)
        for task in tasks:
            book.drop(task, cause)
        names = tuple(one.spec.task for one in tasks)
        self._placing.forget(service, names)
        self._forget(names)
        self._looks.pop(service, None)
        book.counters["anchors_given"] += 1
        self._given_ms[service] = book.desk.now_ms
        self._say(given)

    def _taken(self, given: GivenRecord, refused: str, cause: str) -> None:
        began_ms = self._given_ms.pop(given.service, None)
        if refused:
            self._back(given, refused, cause)
            return
        if began_ms is not None:
            took_ms = self._book.desk.now_ms - began_ms
            longest_ms = max(self._book.counters["anchorless_longest_ms"], took_ms)
            self._book.counters["anchorless_longest_ms"] = longest_ms
        given = structs.replace(given, records=())
        self._keep(given, cause)
        for scheduler in given.schedulers:
            self._tell(scheduler, given, cause)
        # Only now: a job is told where its service is.
        self._jobs.leave(given.service, cause, given.to)

    def _back(self, given: GivenRecord, why: str, cause: str) -> None:
        """Own a service again that the other one would not take."""
        parcel = opened(given.records)
        assert parcel is not None  # noqa: S101 - we have packed it
        number = given.number + 1
        held = structs.replace(parcel.held, number=number, giver=self._book.desk.name, expects=())
        self._drop(given.service, cause)
        self._own(given.service, structs.replace(parcel, held=held), f"back: {why}", cause)

    def _keep(self, given: GivenRecord, cause: str) -> None:
        self.given.pop(given.service, None)
        self.given[given.service] = given
        self._book.desk.keep(GIVEN, given.service, given, cause)
        taken = [name for name, one in self.given.items() if not one.records]
        for name in taken[: max(0, len(taken) - GIVEN_MAX)]:
            self._drop(name, cause)

    def _drop(self, service: str, cause: str) -> None:
        if self.given.pop(service, None) is not None:
            self._book.desk.keep(GIVEN, service, None, cause)

    def again(self, scheduler: str, cause: str) -> None:
        """Say to a scheduler who has the services of which it had tasks, or will have them."""
        for given in self.given.values():
            if scheduler in given.schedulers:
                self._tell(scheduler, given, cause)
        coming = {one.service: one for one in self._book.tasks.values() if one.heir == scheduler}
        for service, task in coming.items():
            # It may run there already: who has it beside that is to let go first.
            moved = structs.replace(self._moved(service), going=True)
            self._book.desk.tell_role(scheduler, moved, cause, task.tenant)

    def _tell(self, scheduler: str, given: GivenRecord, cause: str) -> None:
        moved = structs.replace(self._where(given), going=bool(given.records))
        self._book.desk.tell_role(scheduler, moved, cause, given.tenant)

    # Taking.

    def offered(self, event: Received, body: AnchorOffer) -> None:
        """Say whether we would take a service."""
        answer = AnchorTaken(body.service, body.number, True, self._against(body))
        self._book.desk.tell_role(event.sender, answer, event.cause)

    def _against(self, body: AnchorOffer) -> str:
        strangers = sorted(set(body.schedulers) - set(self._book.settings.schedulers))
        if strangers:
            return f"{', '.join(strangers)} is no scheduler of this anchor"
        if body.service in self._book.services:
            return "it is here"
        return ""

    def transferred(self, event: Received, body: AnchorTransfer) -> None:
        """Own a service that another anchor has given to us; what is known already is answered."""
        held, given = self._book.services.get(body.service), self.given.get(body.service)
        parcel = opened(body.records)
        refused = ""
        if parcel is None or parcel.held.number != body.number:
            refused = "it is not whole"
        elif held is not None and _has(held, parcel.held):
            # The same one said again, or one of before.
            self._book.counters["stale_report"] += 1
        elif given is not None and age(parcel.held) <= (given.generation, given.number):
            # It was here and has gone on; whoever says so has died before our answer came.
            self._book.counters["stale_report"] += 1
        else:
            refused = self._take(event, parcel, held)
        answer = AnchorTaken(body.service, body.number, refused=refused)
        self._book.desk.tell_role(event.sender, answer, event.cause)

    def _take(self, event: Received, parcel: Parcel, held: AnchoredRecord | None) -> str:
        """Own what is whole and new; returns why not."""
        strange = {one.scheduler for one in parcel.tasks} - set(self._book.settings.schedulers)
        if strange:
            return f"{', '.join(sorted(strange))} is no scheduler of this anchor"
        service = parcel.held.order.service
        self._drop(service, event.cause)
        if held is None:
            self._own(service, parcel, f"from the anchor {event.sender}", event.cause)
        else:
            self._adopt(held, parcel, event)
        self._book.counters["anchors_taken"] += 1
        return ""

    def _adopt(self, held: AnchoredRecord, parcel: Parcel, event: Received) -> None:
        """Own what NAMO has ordered here before it came: what runs goes on, as it is ordered."""
        book, service = self._book, held.order.service
        newest = max(held, parcel.held, key=lambda one: one.order.generation)
        owned = structs.replace(
            newest,
            # Two that NAMO has made owners of a generation each may count alike.
            number=max(parcel.held.number, held.number + 1),
            giver=parcel.held.giver,
            expects=tuple(dict.fromkeys((*held.expects, *parcel.held.expects))),
            followers=parcel.held.followers,
        )
        book.put_service(service, owned, event.cause)
        self._jobs.arrive(service)
        before = {one.spec.task: one for one in book.of_service(service)}
        adopted = [one for one in parcel.tasks if _goes_on(one, before.get(one.spec.task))]
        for task in adopted:
            self._adopt_task(task, before.get(task.spec.task), parcel, event)
        # What was given is of the generation before: its newest one is a change of what runs.
        self.apply(owned.order, event)
        for task in adopted:
            known = book.tasks.get(task.spec.task)
            if known is not None and known.heir and known.generation == task.generation:
                # Of what is ordered anew the order has had it taken back.
                self._placing.take_back(task.spec.task, event.cause)
        self._came(service, parcel.tasks, event.cause)

    def _adopt_task(
        self, task: TaskRecord, mine: TaskRecord | None, parcel: Parcel, event: Received
    ) -> None:
        book, name = self._book, task.spec.task
        book.stories.goes_on(name, parcel.stories.get(name, 0))
        book.tell(name, "taken over", f"from the anchor {event.sender}, as it runs", event.cause)
        if mine is not None:
            high = max(task.epoch_high, mine.epoch_high)
            task = structs.replace(task, epoch_high=high, former=mine.former)
        book.put(task, event.cause)
        if mine is None or mine.scheduler in ("", task.scheduler):
            self._granting.renew(self._placing.reserve(task), event.cause)
        else:
            # It has leave for what was to begin there: it lets go first.
            waiting = structs.replace(task, scheduler=mine.scheduler, heir=task.scheduler)
            book.put(waiting, event.cause)

    def _own(self, service: str, parcel: Parcel, how: str, cause: str) -> None:
        book = self._book
        book.put_service(service, parcel.held, cause)
        self._jobs.arrive(service)
        for task in parcel.tasks:
            name = task.spec.task
            book.stories.goes_on(name, parcel.stories.get(name, 0))
            book.put(task, cause)
            book.tell(name, "taken over", how, cause)
        for task in parcel.tasks:
            self._granting.renew(self._placing.reserve(task), cause)
        self._came(service, parcel.tasks, cause)

    def _came(self, service: str, tasks: Iterable[TaskRecord], cause: str) -> None:
        for node in dict.fromkeys(one.node for one in tasks if one.node):
            # It may have gone on while nobody owned the service.
            self.look(node, cause)
        self._say_moved(service)
        self._upward.report(service, cause, again=True)
        self._placing.later(service, cause)

    # NAMO.

    def admit(
        self, event: Received, body: ServiceOrder | ServiceDelete
    ) -> ServiceOrder | ServiceDelete | None:
        """Return what is ordered of us; None: we gave the service away, and have said so."""
        held, given = self._book.services.get(body.service), self.given.get(body.service)
        if held is not None and _missed(held, body):
            # It may have had another one go on meanwhile: it says again what it wants.
            self._say_moved(body.service)
            return None
        if given is None or held is not None:
            return body
        if given.records:
            # It is on its way: who takes it says so, and would begin it anew if ordered before.
            return None
        if isinstance(body, ServiceOrder) and _knows(body, given):
            self._drop(body.service, event.cause)
            return structs.replace(body, handed=max(body.handed, given.number))
        self._book.desk.tell_role(event.sender, self._where(given), event.cause, given.tenant)
        return None

    def _where(self, given: GivenRecord) -> AnchorMoved:
        return AnchorMoved(
            given.service,
            given.generation,
            given.number,
            given.to,
            self._book.desk.name,
            given.epoch_high,
        )

    def _say_moved(self, service: str) -> None:
        held = self._book.services[service]
        self._book.desk.tell_role(held.namo, self._moved(service), "anchor", held.tenant)
        self._later(service)

    def _moved(self, service: str) -> AnchorMoved:
        held = self._book.services[service]
        high = max((one.epoch_high for one in self._book.ordered(service)), default=0)
        generation, name = held.order.generation, self._book.desk.name
        return AnchorMoved(service, generation, held.number, name, held.giver or name, high)

    # Again.

    def linked(self) -> None:
        """Say at once what may be lost."""
        self._again_ms.clear()
        self._say_again()

    def _say_again(self) -> None:
        given = {name: one for name, one in self.given.items() if one.records}
        moved = [name for name, held in self._book.services.items() if held.giver]
        now_ms = self._book.desk.now_ms
        for service in (*given, *moved):
            if now_ms < self._again_ms.get(service, 0):
                continue
            if service in given:
                self._say(given[service])
            else:
                self._say_moved(service)
        self._again_ms = {
            name: at_ms for name, at_ms in self._again_ms.items() if name in given or name in moved
        }
        if self._again_ms:
            self._wake(max(0, min(self._again_ms.values()) - now_ms))

    def _say(self, given: GivenRecord) -> None:
        body = AnchorTransfer(given.service, given.number, given.records)
        self._book.desk.tell_role(given.to, body, "anchor", given.tenant)
        self._later(given.service)

    def _later(self, service: str) -> None:
        self._again_ms[service] = self._book.desk.now_ms + AGAIN_MS
        self._wake(AGAIN_MS)

    def _wake(self, in_ms: int) -> None:
        at_ms = self._book.desk.now_ms + in_ms
        if self._due_ms is None or at_ms < self._due_ms:
            self._due_ms = at_ms
            self._book.desk.wake(TIMER, at_ms)


def _has(held: AnchoredRecord, given: AnchoredRecord) -> bool:
    """Whether what is given was here before, or went on to here by another way since."""
    return held.number >= given.number and held.order.generation >= given.order.generation


def _goes_on(given: TaskRecord, mine: TaskRecord | None) -> bool:
    """Whether a task goes on as it was given, rather than as what was begun here instead."""
    begun = mine is not None and mine.state not in (*HOMELESS, TaskState.PLACED)
    return mine is None or not begun or mine.generation < given.generation


def _knows(order: ServiceOrder, given: GivenRecord) -> bool:
    """Whether NAMO wants a service here and knows who had it from us, or who has had it since."""
    return _heard(order) >= (given.generation, given.number) and order.generation > given.generation


def _missed(held: AnchoredRecord, body: ServiceOrder | ServiceDelete) -> bool:
    """Whether NAMO has ordered anew what we were given before it heard that we have it."""
    if not isinstance(body, ServiceOrder) or not held.giver:
        return False
    return body.generation > held.order.generation and _heard(body) < age(held)


def _heard(order: ServiceOrder) -> tuple[int, int]:
    return order.moved_generation, order.moved_number
