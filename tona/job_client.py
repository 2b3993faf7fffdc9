"""Jobs for an application: the shell around `tona.jobs`, and the handle that it holds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import Struct

from protocols.errors import Blame
from protocols.messages import JobAccepted, JobEnded, JobQuery, JobStatus, JobSubmit
from protocols.messages.invocation import Failure, FailureCode
from protocols.submission import check_job_id
from tona.errors import ClientClosed, bad_input, error_of
from tona.jobs import (
    Ended,
    Event,
    Followed,
    JobHeard,
    Jobs,
    JobsOnline,
    JobsWake,
    JobsWoken,
    Left,
    Opened,
    SendJob,
    Taken,
)
from tona.values import Result

UNACCEPTED_MAX: Final = 256
"""Submissions on their way at once; the others of this client wait here, not at the anchor."""
ACCEPT_S: Final = 30.0
"""How long a submission may wait for its acceptance, when the caller says nothing."""
RUN_S: Final = 60.0
RUN_MAX_S: Final = 3600.0
DEADLINE_MAX_S: Final = 30 * 86_400.0
ASK_S: Final = 10.0
ASK_AGAIN_S: Final = 2.0

Word = JobAccepted | JobStatus | JobEnded
Sender = Callable[[JobSubmit | JobQuery], bool]
"""Says something on the topic of its service."""
Unpacker = Callable[[str, Ended, float], Awaitable[Result]]
"""Makes a result of the end of a service's job, known since a time of the loop's clock; raises
what `invoke` raises.
"""


class Job:
    """A durable invocation: it goes on whatever becomes of this client."""

    def __init__(
        self,
        desk: "JobDesk",
        service: str,
        job: str,
        end: asyncio.Future[Ended | None] | None = None,
        begin_s: float | None = None,
    ) -> None:
        self.id = job
        self.service = service
        self._desk = desk
        self._end = end
        self._begin_s = desk.now_s() if begin_s is None else begin_s

    async def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end and return the outputs; may be asked again, by other clients too.

        Raises TimeoutError when the time ends first (the job goes on), and what `invoke` raises.
        """
        async with asyncio.timeout(timeout_s):
            if self._end is None or not self._end.done():
                self._end = self._desk.follow(self.service, self.id)
            ended = await asyncio.shield(self._end)
            if ended is None:
                raise ClientClosed("the client was closed while the job was under way: it goes on")
            return await self._desk.unpack(self.service, ended, self._begin_s)

    async def status(self) -> JobStatus | JobEnded:
        """Ask where it stands, or how it has ended. Raises Refused when it is not known."""
        return await self._desk.ask(self.service, self.id, cancel=False)

    async def cancel(self) -> JobStatus | JobEnded:
        """End it, if it is not over, and return how it has ended. Raises as `status`."""
        return await self._desk.ask(self.service, self.id, cancel=True)


class JobDesk:
    """The jobs of one client, in its event loop."""

    def __init__(self, reply_to: str, send: Sender, unpack: Unpacker) -> None:
        self._loop = asyncio.get_running_loop()
        self._core = Jobs(reply_to)
        self._reply_to = reply_to
        self._send = send
        self.unpack = unpack
        self._window = asyncio.Semaphore(UNACCEPTED_MAX)
        self._taken: dict[str, asyncio.Future[str]] = {}
        self._ends: dict[str, asyncio.Future[Ended | None]] = {}
        self._asked: dict[str, asyncio.Future[Word]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._on: dict[type[Struct], Callable[[Any], object]] = {
            SendJob: lambda one: self._send(one.body),
            Taken: self._was_taken,
            Ended: self._has_ended,
            JobsWake: self._wake,
        }

    def move(self, reply_to: str) -> None:
        """Have answers go to another topic from now on."""
        self._reply_to = self._core.reply_to = reply_to

    def now_s(self) -> float:
        """Return the loop's clock."""
        return self._loop.time()

    # For the application.

    async def submit(self, body: JobSubmit, accept_s: float) -> Job:
        """Submit a job; returns when it is durable. Raises Refused or ServiceUnavailable."""
        name = body.job
        begin_s = self._loop.time()
        try:
            async with asyncio.timeout_at(begin_s + accept_s), self._window:
                taken = self._taken[name] = self._loop.create_future()
                end = self._ends[name] = self._loop.create_future()
                self._do(Opened(body))
                refused = await taken
        except TimeoutError:
            self.leave(name)
            text = f"service {body.service!r} did not take the job within {accept_s:g} s"
            raise error_of(
                Failure(FailureCode.NO_SERVICE, Blame.ENVIRONMENT, text, retryable=True)
            ) from None
        except BaseException:
            self.leave(name)
            raise
        finally:
            self._taken.pop(name, None)
        if refused:
            self._ends.pop(name, None)
            raise _refusal(refused)
        return Job(self, body.service, name, end, begin_s)

    def follow(self, service: str, name: str) -> asyncio.Future[Ended | None]:
        """Have the end of a job looked after, and return what it comes to; None: we were closed."""
        end = self._ends.get(name)
        if end is None:
            end = self._ends[name] = self._loop.create_future()
        self._do(Followed(name, service))
        return end

    def leave(self, name: str) -> None:
        """Forget a job here; it goes on."""
        self._ends.pop(name, None)
        self._do(Left(name))

    async def ask(self, service: str, name: str, *, cancel: bool) -> JobStatus | JobEnded:
        """Ask the anchor about a job. Raises Refused, DeadlineExceeded."""
        query = JobQuery(name, service, self._reply_to, cancel)
        answer = self._asked.get(name)
        if answer is None:
            answer = self._asked[name] = self._loop.create_future()
            answer.add_done_callback(lambda _: self._asked.pop(name, None))
        try:
            async with asyncio.timeout(ASK_S):
                while not answer.done():
                    self._send(query)
                    await asyncio.wait({answer}, timeout=ASK_AGAIN_S)
        except TimeoutError:
            answer.cancel()
            text = f"nobody answered about job {name!r} within {ASK_S:g} s"
            raise error_of(
                Failure(FailureCode.DEADLINE, Blame.ENVIRONMENT, text, retryable=True)
            ) from None
        word = answer.result()
        if isinstance(word, JobAccepted):
            raise _refusal(word.reason)
        return word

    def close(self) -> None:
        """Let go of every job: whoever waits hears that the client was closed."""
        if self._timer is not None:
            self._timer.cancel()
        for end in self._ends.values():
            if not end.done():
                end.set_result(None)
        for taken in self._taken.values():
            if not taken.done():
                taken.set_exception(ClientClosed("the client was closed before the job was taken"))
        for asked in list(self._asked.values()):
            asked.cancel()

    # From the session.

    def heard(self, body: Word) -> None:
        """Take in a word of the anchor."""
        asked = self._asked.get(body.job)
        if asked is not None and not asked.done() and not _is_taken(body):
            asked.set_result(body)
        self._do(JobHeard(body))

    def online(self, *, connected: bool) -> None:
        """Take in that the connection stands, or is gone."""
        self._do(JobsOnline(connected))

    # Between the core and the world.

    def _do(self, event: Event) -> None:
        for command in self._core.handle(event, self._loop.time() * 1000):
            self._on[type(command)](command)

    def _was_taken(self, command: Taken) -> None:
        taken = self._taken.get(command.job)
        if taken is not None and not taken.done():
            taken.set_result(command.refused)
            return
        if command.refused:
            # A job of an earlier client that nobody knows of any more.
            failure = _refusal(command.refused).failure
            self._has_ended(Ended(command.job, {}, failure, (), 0))

    def _has_ended(self, command: Ended) -> None:
        end = self._ends.pop(command.job, None)
        if end is not None and not end.done():
            end.set_result(command)

    def _wake(self, command: JobsWake) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(command.at_ms / 1000, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._do(JobsWoken())


def check_times(deadline_s: float, run_s: float) -> None:
    """Check what a caller asks for. Raises BadInput."""
    if not 0 <= deadline_s <= DEADLINE_MAX_S:
        raise bad_input(f"deadline_s is {deadline_s}: give 0 to {DEADLINE_MAX_S:.0f}")
    if not 0 < run_s <= RUN_MAX_S:
        raise bad_input(f"run_s is {run_s}: give more than 0, up to {RUN_MAX_S:.0f}")


def check_name(job: str) -> None:
    """Check an id that the caller chose. Raises BadInput."""
    try:
        check_job_id(job)
    except ValueError as error:
        raise bad_input(str(error)) from None


def _is_taken(body: Word) -> bool:
    return isinstance(body, JobAccepted) and body.accepted


def _refusal(reason: str) -> Any:
    return error_of(Failure(FailureCode.BUSY, Blame.USER, reason, retryable=False))
