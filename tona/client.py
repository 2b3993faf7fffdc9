"""The client of a cell: the shell around `tona.requests`, with one MQTT session and one store.

A warm request is one message to the node and one back: the route is known, the connection stands.
"""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from protocols import topics
from protocols.errors import Blame, EnvironmentFailure
from protocols.messages import (
    Accepted,
    Cancel,
    Invoke,
    JobAccepted,
    JobEnded,
    JobQuery,
    JobStatus,
    JobSubmit,
    Result,
    Route,
    RouteRequest,
)
from protocols.messages.invocation import Blob, Failure, FailureCode, Value
from protocols.messages.quality import PRIORITY_DEFAULT
from protocols.topics import Channel, Party, Topic
from protocols.transport.session import DEFAULT_TENANT, Inbound
from tona import values
from tona.attachment import Attachment
from tona.errors import ClientClosed, InvocationError, bad_input, error_of
from tona.events import (
    AskRoute,
    Cancelled,
    Event,
    Finish,
    Heard,
    Online,
    SendCancel,
    SendInvoke,
    Submit,
    Unsent,
    Upload,
    Uploaded,
    Wake,
    Woken,
)
from tona.job_client import ACCEPT_S, RUN_S, Job, JobDesk, check_name, check_times
from tona.jobs import Ended
from tona.requests import Requests
from tona.routes import cell_of
from tona.store import Store
from tona.streams import stream
from tona.target import Target, asked, find

DEADLINE_S: Final = 30.0
"""For a request, when the caller names none."""
DEADLINE_MAX_S: Final = 3600.0
PRIORITY_MAX: Final = 9
CONNECT_TIMEOUT_S: Final = 15.0
IN_FLIGHT: Final = 8
INBOXES_MAX: Final = 4096
"""Inboxes of nodes whose topics are kept."""
BEHIND_S: Final = 1.0
"""For so long a scheduler may not have heard yet that the one before has led to it."""
LEFT_MAX: Final = 1024
"""Cells of services that are kept as left."""
ROUTE_AGAIN_S: Final = 1.0
"""Between two questions where a service's large values go."""


@asynccontextmanager
async def connect(
    where: str | Path,
    *,
    tenant: str = DEFAULT_TENANT,
    timeout_s: float = CONNECT_TIMEOUT_S,
    agent: str = "",
    follow: str | Path = "",
) -> AsyncIterator["AsyncClient"]:
    """Connect to the cell whose controller is at `where` (`http://...`), or that a bundle names.

    `agent` names the AI agent for which it is asked, for the log of calls. With `follow`, the file
    that the device agent beside it writes (`--attachment`), the client is attached to the cell that
    serves that node, and goes with it; services of other cells are reached from there.

    Raises CannotConnect when there is no connection within the time, and UserError.
    """
    from tona.beside import BesideClient  # noqa: PLC0415 - is a client itself
    from tona.spread import SpreadClient  # noqa: PLC0415 - the same

    target = await find(where)
    client: AsyncClient
    if follow:
        client = BesideClient(
            await asked(target) if target.unasked else target, Path(follow), tenant=tenant
        )
    else:
        client = (SpreadClient if target.api_url else AsyncClient)(target, tenant=tenant)
    client.agent = agent
    try:
        await client.open(timeout_s)
        yield client
    finally:
        await client.close()


def check_deadline(deadline_s: float) -> float:
    """Return a deadline that is one. Raises BadInput."""
    if not 0 < deadline_s <= DEADLINE_MAX_S:
        raise bad_input(f"deadline_s is {deadline_s}: give more than 0, up to {DEADLINE_MAX_S}")
    return deadline_s


class AsyncClient:
    """Invokes the services of one cell; made by `connect`, for one event loop."""

    def __init__(self, target: Target, *, tenant: str = DEFAULT_TENANT) -> None:
        self._tenant = tenant
        self._settings = target.settings
        self._attachment = Attachment(target.settings, self, self._abandon)
        self._core = Requests(self._attachment.reply_to)
        self._homes: dict[str, str] = {}
        """The cells that serve services which are not in the first one."""
        self._left: dict[tuple[str, str], float] = {}
        """When a service was sought in another cell than this one."""
        self._behind: dict[str, asyncio.TimerHandle] = {}
        """Services whose scheduler is asked again, for it did not know them yet."""
        self._asked: set[str] = set()
        self.agent = ""
        """The AI agent for which requests are made, for the log of calls."""
        self._store = Store(target.context)
        self._jobs = JobDesk(self._attachment.reply_to, self._say_job, self._unpack_job)
        self._urls: dict[str, tuple[str, ...]] = {}
        """Stores for the large values of a service, as its last route said."""
        self._routed = asyncio.Event()
        self._connected = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)
        self._inboxes: dict[tuple[str, str], Topic] = {}
        self._futures: dict[str, asyncio.Future[Finish]] = {}
        self._contents: dict[str, dict[str, values.Content]] = {}
        self._uploads: dict[str, asyncio.Task[None]] = {}
        self._on: dict[type[Struct], Callable[[Any], None]] = {
            SendInvoke: self._send_invoke,
            SendCancel: self._send_cancel,
            AskRoute: self._ask_route,
            Upload: self._upload,
            Finish: self._finish,
            Wake: self._wake,
        }

    async def open(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect to the broker. Raises CannotConnect."""
        await self._attachment.open(timeout_s)

    async def close(self) -> None:
        """End every open request with ClientClosed, and the connection; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for later in self._behind.values():
            later.cancel()
        for upload in self._uploads.values():
            upload.cancel()
        self._abandon(ClientClosed("the client was closed while the request was under way"))
        self._jobs.close()
        await self._attachment.close()
        self._connected.set()
        self._store.close()

    @property
    def cell(self) -> str:
        """The cell whose broker it speaks to."""
        return self._attachment.cell

    def move(self, cell: str, host: str, port: int, *, alone: bool = False) -> None:
        """Begin to attach to the broker of another cell; the present connection stays till then.

        What is under way is answered all the same; `alone` says that the present connection is
        dead when the new one stands. Services stay where they are, and are reached through the
        cell of the moment.
        """
        there = replace(self._settings, cell=cell, host=host, port=port)
        self._attachment.move(there, alone=alone)

    async def invoke(
        self,
        service: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float = DEADLINE_S,
        priority: int = PRIORITY_DEFAULT,
    ) -> values.Result:
        """Run a service once and return its answer.

        Inputs are bytes, text, numpy arrays or `tona.Tensor`, by the names of the service's
        inputs; of requests that cannot all be served those with the lowest priority (0 to 9) are
        refused first. Raises BadInput, ServiceUnavailable, DeadlineExceeded, Refused or TaskFailed;
        all of them are InvocationError.
        """
        begin_s = self._loop.time()
        due_s = begin_s + check_deadline(deadline_s)
        packed, contents = await self._pack(service, inputs, priority)
        request = f"{self._prefix}-{next(self._numbers)}"
        finish = await self._run(
            Submit(request, service, packed, due_s * 1000, bool(contents), priority), contents
        )
        if finish.failure is not None:
            raise error_of(finish.failure)
        unpacked = await self._unpack(finish.outputs, finish.urls, due_s)
        return values.Result(
            unpacked, finish.timings, finish.attempts, (self._loop.time() - begin_s) * 1000
        )

    def stream(
        self,
        service: str,
        inputs: AsyncIterable[Mapping[str, Any]] | Iterable[Mapping[str, Any]],
        *,
        in_flight: int = IN_FLIGHT,
        ordered: bool = True,
        deadline_s: float = DEADLINE_S,
    ) -> AsyncIterator[values.Result | InvocationError]:
        """Run a service for each input, `in_flight` of them at a time, and yield the answers.

        Answers come in the order of the inputs, or as they are there. An input that was not served
        yields its InvocationError, and the stream goes on.
        """

        async def one(item: Mapping[str, Any]) -> values.Result:
            return await self.invoke(service, item, deadline_s=deadline_s)

        return stream(one, inputs, in_flight, ordered)

    async def publish(
        self, service: str, inputs: Mapping[str, Any], *, deadline_s: float = DEADLINE_S
    ) -> str:
        """Publish values on the inputs of a service, for the nodes that feed it from there.

        Inputs are those of `invoke`. Returns under which name the nodes know them, once they have
        left; waits for a connection meanwhile. Nobody answers, or says that he has taken them; each
        node takes them once. Raises BadInput, DeadlineExceeded, Refused, TaskFailed, ClientClosed.
        """
        due_s = self._loop.time() + check_deadline(deadline_s)
        packed, contents = await self._pack(service, inputs, PRIORITY_DEFAULT)
        if contents:
            await self._put_all(service, contents, deadline_s)
        name = f"{self._prefix}-{next(self._numbers)}"
        while True:
            left_ms = max(1, round((due_s - self._loop.time()) * 1000))
            topic = topics.build(self.cell, Party.SERVICE, service, Channel.INPUT)
            body = Invoke(name, service, left_ms, packed, agent=self.agent)
            if self._attachment.send(topic, body, cause=name, tenant=self._tenant):
                return name
            if not self._attachment.running:
                raise ClientClosed("the client was closed before the values had left")
            await self._reconnected(due_s)

    async def _reconnected(self, due_s: float) -> None:
        """Wait for a connection. Raises Refused where there is one, and DeadlineExceeded."""
        if self._connected.is_set():
            text = "the connection to the broker takes no more messages"
            raise error_of(Failure(FailureCode.BUSY, Blame.ENVIRONMENT, text, retryable=True))
        try:
            async with asyncio.timeout_at(due_s):
                await self._connected.wait()
        except TimeoutError:
            text = "there was no connection to the broker in time: nothing was published"
            raise error_of(
                Failure(FailureCode.DEADLINE, Blame.ENVIRONMENT, text, retryable=True)
            ) from None

    async def submit(
        self,
        service: str,
        inputs: Mapping[str, Any],
        *,
        job: str = "",
        deadline_s: float = 0.0,
        run_s: float = RUN_S,
        priority: int = PRIORITY_DEFAULT,
        accept_s: float = ACCEPT_S,
    ) -> Job:
        """Submit a job, a durable invocation, and return when it can no more be lost.

        `job` is its id, for a caller that submits again after a crash of its own; empty: a new one.
        `deadline_s` counts from acceptance, 0: none; `run_s` bounds each run; of priorities 0 to 9
        the higher ones run first. Raises BadInput, Refused, ServiceUnavailable.
        """
        check_times(deadline_s, run_s)
        if job:
            check_name(job)
        packed, contents = await self._pack(service, inputs, priority)
        if contents:
            await self._put_all(service, contents, accept_s)
        name = job or self.job_name()
        body = JobSubmit(
            name,
            service,
            packed,
            self._attachment.reply_to,
            round(deadline_s * 1000),
            max(1, round(run_s * 1000)),
            priority,
        )
        return await self._jobs.submit(body, accept_s)

    def job_name(self) -> str:
        """Return an identifier that no other job has."""
        return f"{self._prefix}-job-{next(self._numbers)}"

    def job(self, service: str, job: str) -> Job:
        """Return the handle of a job that was submitted before, perhaps by another client."""
        return Job(self._jobs, service, job)

    # Values.

    async def _pack(
        self, service: str, inputs: Mapping[str, Any], priority: int
    ) -> tuple[dict[str, Value], dict[str, values.Content]]:
        if not self._attachment.running:
            raise ClientClosed("the client is closed: connect anew")
        if not topics.valid_name(service):
            raise bad_input(f"{service!r} cannot name a service")
        if not 0 <= priority <= PRIORITY_MAX:
            raise bad_input(f"priority is {priority}: give 0 to {PRIORITY_MAX}")
        if values.is_large(inputs):
            return await self._store.run(values.pack, inputs)
        return values.pack(inputs)

    async def _unpack(
        self, outputs: Mapping[str, Value], urls: tuple[str, ...], due_s: float
    ) -> dict[str, Any]:
        unpacked = {
            name: values.dense(one) for name, one in outputs.items() if not isinstance(one, Blob)
        }
        if len(unpacked) < len(outputs):
            unpacked |= await self._fetch(outputs, urls, due_s)
        return unpacked

    # Jobs.

    def _say_job(self, body: JobSubmit | JobQuery) -> bool:
        # What cannot be sent is said again by the core.
        return self._attachment.send(
            self._asking(body.service), body, cause=body.job, tenant=self._tenant
        )

    async def _unpack_job(self, service: str, ended: Ended, begin_s: float) -> values.Result:
        if ended.failure is not None:
            raise error_of(ended.failure)
        urls: tuple[str, ...] = ()
        due_s = self._loop.time() + DEADLINE_S
        if any(isinstance(one, Blob) for one in ended.outputs.values()):
            urls = await self._stores(service, DEADLINE_S)
        unpacked = await self._unpack(ended.outputs, urls, due_s)
        return values.Result(
            unpacked, ended.timings, ended.attempts, (self._loop.time() - begin_s) * 1000
        )

    async def _put_all(
        self, service: str, contents: dict[str, values.Content], wait_s: float
    ) -> None:
        try:
            urls = await self._stores(service, wait_s)
            await self._store.put_all(urls, contents)
        except EnvironmentFailure as error:
            text = f"the inputs could not be stored: {error}"
            raise error_of(
                Failure(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True)
            ) from None

    async def _stores(self, service: str, wait_s: float) -> tuple[str, ...]:
        """Return where large values of a service are stored. Raises EnvironmentFailure."""
        try:
            async with asyncio.timeout(wait_s):
                while service not in self._urls:
                    self._routed.clear()
                    self._ask_route(AskRoute(service))
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._routed.wait(), ROUTE_AGAIN_S)
        except TimeoutError:
            raise EnvironmentFailure(f"nobody said where values of {service!r} go") from None
        return self._urls[service]

    # One request.

    async def _run(self, submit: Submit, contents: dict[str, values.Content]) -> Finish:
        request = submit.request
        future: asyncio.Future[Finish] = self._loop.create_future()
        self._futures[request] = future
        if contents:
            self._contents[request] = contents
        try:
            self._do(submit)
            return await future
        finally:
            del self._futures[request]
            if contents:
                del self._contents[request]
                upload = self._uploads.pop(request, None)
                if upload is not None:
                    upload.cancel()
            if not future.done() or future.cancelled():
                self._do(Cancelled(request))

    async def _fetch(
        self, outputs: Mapping[str, Value], urls: tuple[str, ...], due_s: float
    ) -> dict[str, Any]:
        fetched: dict[str, Any] = {}
        try:
            async with asyncio.timeout_at(due_s):
                for name, one in outputs.items():
                    if isinstance(one, Blob):
                        data = await self._store.get(urls, one.digest, one.size_bytes)
                        fetched[name] = values.unpack(one.dtype, one.shape, data)
        except TimeoutError:
            text = "the deadline came while the outputs were fetched"
            raise error_of(
                Failure(FailureCode.DEADLINE, Blame.ENVIRONMENT, text, retryable=True)
            ) from None
        except EnvironmentFailure as error:
            text = f"the outputs could not be fetched: {error}"
            raise error_of(
                Failure(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True)
            ) from None
        return fetched

    # Between the core and the world.

    def _do(self, event: Event) -> None:
        for command in self._core.handle(event, self._loop.time() * 1000):
            self._on[type(command)](command)

    def _send_invoke(self, command: SendInvoke) -> None:
        inbox = self._inbox(command.body.service, command.node, command.cell)
        request = command.body.request
        body = replace(command.body, agent=self.agent) if self.agent else command.body
        if not self._attachment.send(inbox, body, cause=request, tenant=self._tenant):
            self._do(Unsent(request))

    def _send_cancel(self, command: SendCancel) -> None:
        self._attachment.send(
            self._inbox(command.service, command.node, command.cell),
            Cancel(command.request),
            cause=command.request,
            tenant=self._tenant,
        )

    def _inbox(self, service: str, node: str, cell: str) -> Topic:
        key = cell or self._home(service), node
        inbox = self._inboxes.get(key)
        if inbox is None:
            if len(self._inboxes) >= INBOXES_MAX:
                self._inboxes.clear()
            inbox = topics.build(key[0], Party.NODE, node, Channel.INVOKE)
            self._inboxes[key] = inbox
        return inbox

    def _home(self, service: str) -> str:
        """Return the cell that serves a service, of which its topics are."""
        return self._homes.get(service, self._settings.cell)

    def _asking(self, service: str) -> Topic:
        """Return the topic of a service's requests."""
        return topics.build(self._home(service), Party.SERVICE, service, Channel.REQUEST)

    def _ask_route(self, command: AskRoute) -> None:
        service = command.service
        self._asked.add(service)
        self._attachment.follow(
            topics.build(self._home(service), Party.SERVICE, service, Channel.ROUTE)
        )
        question = RouteRequest(f"{self._prefix}-{service}", service, self._attachment.reply_to)
        # A question that cannot be sent is asked again by the core.
        self._attachment.send(
            self._asking(service), question, cause=question.request, tenant=self._tenant
        )

    def _upload(self, command: Upload) -> None:
        request = command.request
        self._uploads[request] = self._loop.create_task(
            self._put(request, command.urls, self._contents[request])
        )

    async def _put(
        self, request: str, urls: tuple[str, ...], contents: dict[str, values.Content]
    ) -> None:
        try:
            await self._store.put_all(urls, contents)
        except EnvironmentFailure as error:
            self._do(Uploaded(request, str(error)))
        else:
            self._do(Uploaded(request))

    def _finish(self, command: Finish) -> None:
        future = self._futures.get(command.request)
        if future is not None and not future.done():
            future.set_result(command)

    def _wake(self, command: Wake) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(command.at_ms / 1000, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._do(Woken())

    # What the attachment reports.

    def hear(self, inbound: Inbound) -> None:
        """Take in a message."""
        body = inbound.frame.body
        if isinstance(body, Route) and body.service in self._asked:
            if self._is_behind(body):
                return
            self._routed_to(body)
        if isinstance(body, Result | Accepted | Route):
            self._do(Heard(body, inbound.frame.sender))
        elif isinstance(body, JobEnded | JobAccepted | JobStatus):
            self._jobs.heard(body)

    def _routed_to(self, route: Route) -> None:
        """Note where a service's large values go, and in which cell it is."""
        self._urls[route.service] = route.blob_urls
        self._routed.set()
        there = cell_of(route.plan) if route.plan is not None else ""
        if there:
            self.served_in(route.service, there)

    def _is_behind(self, route: Route) -> bool:
        """Whether a scheduler has not heard yet that it serves what the one before has led to it.

        It knows of none, or leads back, from where it would go on in circles until it hears. It
        says so then; it is asked again in case that is lost.
        """
        service, now_s = route.service, self._loop.time()
        there = cell_of(route.plan) if route.plan is not None else ""
        left = {
            cell
            for (name, cell), at_s in self._left.items()
            if name == service and now_s - at_s < BEHIND_S
        }
        if not (there in left or (left and route.plan is None)):
            return False
        if service not in self._behind:
            self._behind[service] = self._loop.call_later(BEHIND_S, self._ask_behind, service)
        return True

    def _ask_behind(self, service: str) -> None:
        del self._behind[service]
        self._ask_route(AskRoute(service))

    def served_in(self, service: str, cell: str) -> None:
        """Ask the scheduler of a cell for a service from now on: it is served there."""
        home = self._home(service)
        if cell != home:
            self._attachment.leave(topics.build(home, Party.SERVICE, service, Channel.ROUTE))
            self._homes[service] = cell
            if len(self._left) >= LEFT_MAX:
                self._left.clear()
            self._left[service, home] = self._loop.time()
            self._left.pop((service, cell), None)
            self._ask_route(AskRoute(service))

    def online(self, *, connected: bool) -> None:
        """Take in that the connection stands, or has ended."""
        (self._connected.set if connected else self._connected.clear)()
        self._do(Online(connected=connected))
        self._jobs.online(connected=connected)

    def moved(self, reply_to: str) -> None:
        """Take in where answers go from now on."""
        self._core.reply_to = reply_to
        self._jobs.move(reply_to)

    def _abandon(self, error: BaseException) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)
